//! What comes to the listener for nodes, and what nodes answer, with mistakes in it. seata#6139 and
//! its like in Nacos: a decoder that did what bytes of a stranger said. Here each message of the
//! contract is read or refused, and takes no memory for what it claims to have.

use std::collections::BTreeSet;

use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use prost_types::FileDescriptorSet;

use super::*;
use crate::node::calls::wire::{read_answer, read_call};

/// Room for other tests and for the allocator; less than any of [`CLAIMS`].
const ROOM_BYTES: u64 = 16 << 30;
/// Lengths that nobody has: 2^35 - 1, and the largest that there is.
const CLAIMS: [&[u8]; 2] = [
    &[0xff, 0xff, 0xff, 0xff, 0x7f],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
];

/// A message, and what a node does first with its bytes.
type Reads = (&'static str, fn(&[u8]));

macro_rules! reads {
    ($($message:ident $($from:expr)?;)*) => {
        &[$((stringify!($message), |bytes| {
            let _ = wire::$message::decode(bytes)$(.map($from))?;
        })),*]
    };
}

const READS: &[Reads] = reads! {
    AppendRequest append_from_wire;
    AppendResponse appended_from_wire;
    ForwardAnswers |it| drop(it.answers.into_iter().map(|one| read_answer(node(1), one)).last());
    Forwarded |it| drop(it.calls.into_iter().map(read_call).last());
    IdentifyRequest;
    IdentifyResponse;
    MovedRequest;
    MovedResponse;
    ReadIndexRequest |it| vote_from_wire(it.vote);
    ReadIndexResponse;
    RecallRequest;
    Recalled recalled_from_wire;
    SnapshotChunk |it| vote_from_wire(it.vote);
    SnapshotResponse installed_from_wire;
    StatusReport |it| quorate_proto::v1::MemberStatus::decode(it.report).map(drop);
    StatusRequest;
    SucceedRequest;
    SucceedResponse;
    TransferRequest transfer_from_wire;
    TransferResponse transferred_from_wire;
    VoteRequest ballot_from_wire;
    VoteResponse voted_from_wire;
};

/// Messages without mistakes, among them all that a call and an answer of a leader may be.
fn whole() -> Vec<Vec<u8>> {
    let vote = Vote::new_committed(3, node(2));
    let append = AppendEntriesRequest {
        vote,
        prev_log_id: Some(at(2, 4)),
        entries: entries(),
        leader_commit: Some(at(1, 0)),
    };
    let ballot = VoteRequest { vote, last_log_id: Some(at(3, 4)), leadership_transfer: true };
    let calls = [
        "0a_21_0a_04_01030007_11_0100000000000000_1802_2001_28ac02_31_0500000000000000_3804",
        "12_07_0a_03_07ac02_1001",
        "2a_09_0801_1002_1a_03_703a31",
        "32_0a_0802_12_03_703a31_1a_01_63",
    ];
    let answers =
        ["0a_0c_0a_07_010107b0ea0109_10ac02", "1a_0e_0a_0c_0802_12_03_703a31_1a_01_63_2001"];
    let all = |of: &[&str]| of.iter().map(|hex| Bytes::from(bytes(hex))).collect();
    let calls = wire::Forwarded { calls: all(&calls), timeout_ms: 5 };
    let answers = wire::ForwardAnswers { answers: all(&answers) };
    vec![
        append_to_wire(&append).encode_to_vec(),
        ballot_to_wire(&ballot).encode_to_vec(),
        calls.encode_to_vec(),
        answers.encode_to_vec(),
    ]
}

#[derive(Debug, Clone)]
enum Mistake {
    Flip(u8),
    Byte(u8),
    Cut,
    Lost,
    Claim(&'static [u8]),
}

impl Mistake {
    fn make(&self, at: Index, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let at = at.index(bytes.len());
        match self {
            Self::Flip(bit) => bytes[at] ^= 1 << bit,
            Self::Byte(byte) => bytes[at] = *byte,
            Self::Cut => bytes.truncate(at),
            Self::Lost => drop(bytes.remove(at)),
            Self::Claim(length) => drop(bytes.splice(at..=at, length.iter().copied())),
        }
    }
}

fn mistake() -> impl Strategy<Value = (Index, Mistake)> {
    let kind = prop_oneof![
        (0..8_u8).prop_map(Mistake::Flip),
        any::<u8>().prop_map(Mistake::Byte),
        Just(Mistake::Cut),
        Just(Mistake::Lost),
        prop::sample::select(&CLAIMS[..]).prop_map(Mistake::Claim),
        prop::sample::select(&CLAIMS[..]).prop_map(Mistake::Claim),
    ];
    (any::<Index>(), kind)
}

/// The most memory that this process has reserved at one time, whether or not it was used.
fn reserved() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn each_message_of_the_contract_is_tried() {
    let descriptors = FileDescriptorSet::decode(quorate_proto::FILE_DESCRIPTOR_SET).unwrap();
    let peer = descriptors.file.iter().find(|file| file.package() == "quorate.peer.v1").unwrap();
    let methods = peer.service.iter().flat_map(|service| &service.method);
    let types = methods.flat_map(|method| [method.input_type(), method.output_type()]);
    let types: BTreeSet<&str> = types.map(|name| name.rsplit('.').next().unwrap()).collect();
    assert_eq!(READS.iter().map(|(name, _)| *name).collect::<BTreeSet<_>>(), types);
}

#[test]
fn spoiled_messages_are_read_or_refused_and_take_no_memory_that_they_claim() {
    let whole = whole();
    let spoiled = (any::<Index>(), prop::collection::vec(mistake(), 1..4));
    let before = reserved();
    let mut runner = TestRunner::new(Config { cases: 2_000, ..Config::default() });
    let tried = runner.run(&spoiled, |(of, mistakes)| {
        let mut bytes = of.get(&whole).clone();
        mistakes.iter().for_each(|(at, mistake)| mistake.make(*at, &mut bytes));
        READS.iter().for_each(|(_, read)| read(&bytes));
        Ok(())
    });
    tried.unwrap();
    let more = reserved() - before;
    assert!(more < ROOM_BYTES, "{more} bytes more were reserved");
}
