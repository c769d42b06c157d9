//! The bytes of each message, and what a node of another release may make of them. Where the bytes
//! change, nodes of releases that are out cannot read what this one sends: give a field a new
//! number instead.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use openraft::{EntryPayload, Membership};
use proptest::prelude::*;
use prost::Message;
use quorate_state::{Clock, Command, Op};

use super::*;
use crate::types::{Entry, Member};

/// A number and a text under field numbers that this release does not have.
const LATER: [&str; 2] = ["98_06_01", "9a_06_02_6869"];

fn node(id: u64) -> NodeId {
    NodeId::new(id).unwrap()
}

fn at(term: u64, index: u64) -> LogId {
    LogId::new(term.into(), index)
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.replace('_', "");
    let pairs = digits.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// Ours is written as these bytes; they are read back, also with what a later release adds, and no
/// beginning of them is taken for the whole.
#[track_caller]
fn check<T: Debug, W: Message + Default>(
    ours: &T,
    golden: &str,
    write: impl Fn(&T) -> W,
    read: impl Fn(W) -> Result<T, WireError>,
) {
    let (written, golden) = (write(ours).encode_to_vec(), bytes(golden));
    assert_eq!(written, golden, "{ours:?} is {written:02x?}");
    let told = format!("{ours:?}");
    let again = |bytes: &[u8]| read(W::decode(bytes)?);
    assert_eq!(format!("{:?}", again(&golden).unwrap()), told);
    let later = [golden.clone(), bytes(LATER[0]), bytes(LATER[1])].concat();
    assert_eq!(format!("{:?}", again(&later).unwrap()), told, "with more");
    for end in 0..golden.len() {
        if let Ok(read) = again(&golden[..end]) {
            assert_ne!(format!("{read:?}"), told, "the first {end} bytes");
        }
    }
}

#[test]
fn the_bytes_of_votes() {
    let vote = Vote::new(300, node(2));
    let last_log_id = Some(at(3, 4));
    let ballot = VoteRequest { vote, last_log_id, leadership_transfer: true };
    let golden = "0a_05_08ac02_1002_12_04_0803_1004_18_01";
    check(&ballot, golden, ballot_to_wire, ballot_from_wire);
    check(&VoteRequest::new(vote, None), "0a_05_08ac02_1002", ballot_to_wire, ballot_from_wire);
    let answer = VoteResponse::new(Vote::new_committed(1, node(2)), last_log_id, true);
    let golden = "0a_06_0801_1002_1801_10_01_1a_04_0803_1004";
    check(&answer, golden, voted_to_wire, voted_from_wire);
    let refused = VoteResponse::new(Vote::new_committed(1, node(2)), None, false);
    check(&refused, "0a_06_0801_1002_1801", voted_to_wire, voted_from_wire);
}

/// An entry of each kind.
fn entries() -> Vec<Entry> {
    let member = Member { peer_address: "p:1".to_owned(), client_address: "c".to_owned() };
    let members = BTreeMap::from([(node(1), member)]);
    let membership = Membership::new(vec![BTreeSet::from([node(1)])], members).unwrap();
    let payloads = [
        EntryPayload::Blank,
        EntryPayload::Normal(Command::new(Clock(300), Op::Tick)),
        EntryPayload::Membership(membership),
    ];
    let entry = |(index, payload)| Entry { log_id: at(3, index), payload };
    (5..).zip(payloads).map(entry).collect()
}

/// The list of them in an append: its version, how many, and each as the log has it.
const ENTRIES: &str = "01_03_030500_030601ac020000_0307020101010101_03703a31_0163_00";

#[test]
fn the_bytes_of_appends() {
    let vote = Vote::new_committed(3, node(2));
    let heartbeat = AppendEntriesRequest {
        vote,
        prev_log_id: Some(at(2, 4)),
        entries: Vec::new(),
        leader_commit: Some(at(1, 0)),
    };
    let golden = "0a_06_0803_1002_1801_12_04_0802_1004_1a_02_0801";
    check(&heartbeat, golden, append_to_wire, append_from_wire);
    let first = AppendEntriesRequest { prev_log_id: None, leader_commit: None, ..heartbeat };
    check(&first, "0a_06_0803_1002_1801", append_to_wire, append_from_wire);
    let append = AppendEntriesRequest { entries: entries(), ..first };
    let length = bytes(ENTRIES).len();
    let golden = format!("0a_06_0803_1002_1801_22_{length:02x}_{ENTRIES}");
    check(&append, &golden, append_to_wire, append_from_wire);
}

#[test]
fn the_bytes_of_answers_to_appends() {
    for (answer, golden) in [
        (Ok(Some(at(3, 4))), "0a_06_0a_04_0803_1004"),
        (Ok(None), "0a_00"),
        (Err(StreamAppendError::Conflict(at(3, 4))), "12_04_0803_1004"),
        (Err(StreamAppendError::HigherVote(Vote::new(3, node(2)))), "1a_04_0803_1002"),
    ] {
        check(&answer, golden, appended_to_wire, appended_from_wire);
    }
}

#[test]
fn the_bytes_of_transfers_snapshots_and_what_was_promised() {
    let vote = Vote::new_committed(3, node(2));
    let transfer = TransferLeaderRequest::new(vote, node(7), Some(at(3, 4)));
    let golden = "0a_06_0803_1002_1801_10_07_1a_04_0803_1004";
    check(&transfer, golden, transfer_to_wire, transfer_from_wire);
    let (expected, actual) = (Some(at(3, 4)), None);
    let changed =
        TransferLeaderError::VoteChanged { expected: vote, actual: Vote::new(4, node(1)) };
    for (answer, golden) in [
        (Ok(()), "0a_00"),
        (Err(changed), "12_0e_0a_06_0803_1002_1801_12_04_0804_1001"),
        (Err(TransferLeaderError::LogNotFlushed { expected, actual }), "1a_06_0a_04_0803_1004"),
    ] {
        check(&answer, golden, transferred_to_wire, transferred_from_wire);
    }
    let installed = SnapshotResponse::new(vote);
    check(&installed, "0a_06_0803_1002_1801", installed_to_wire, installed_from_wire);
    let promise = Promise { term: 5, in_term: Some(at(5, 6)), last: Some(at(5, 7)) };
    let recalled = Recalled { reached: Reached { term: 1, last: Some(at(1, 2)) }, promise };
    let golden = "08_01_12_04_0801_1002_1a_0e_0805_12_04_0805_1006_1a_04_0805_1007";
    check(&recalled, golden, recalled_to_wire, |it| Ok(recalled_from_wire(it)));
}

/// A vote and a log id mean nothing without what they are of; all else has its default.
#[test]
fn what_must_be_there_is_missed_in_words() {
    let told = |hex: &str| {
        let read = wire::AppendRequest::decode(&*bytes(hex)).unwrap();
        append_from_wire(read).unwrap_err().to_string()
    };
    assert_eq!(told(""), "peer message lacks a vote");
    assert_eq!(told("0a_02_0803"), "peer message lacks the node of a vote");
    let nothing = recalled_from_wire(wire::Recalled::default());
    assert_eq!((nothing.reached, nothing.promise), (Reached::default(), Promise::default()));
}

#[test]
fn what_only_a_later_release_can_say_is_refused_in_words() {
    let newer = "peer message holds what this version does not know: its sender is newer";
    let answer = wire::AppendResponse::decode(&*bytes(LATER[0])).unwrap();
    assert_eq!(appended_from_wire(answer).unwrap_err().to_string(), newer);
    let answer = wire::TransferResponse::decode(&*bytes(LATER[0])).unwrap();
    assert_eq!(transferred_from_wire(answer).unwrap_err().to_string(), newer);
    // Of an entry nothing is passed over: a command, an optional field, another kind of entry.
    for (entries, why) in [
        ("01_01_030501ac02_63_00", newer),
        ("01_01_030501ac02_00_02", newer),
        ("02_01_030500", "peer message has format version Some(2), this node speaks 1"),
    ] {
        let vote = Some(vote_to_wire(&Vote::new_committed(3, node(2))));
        let append = wire::AppendRequest {
            vote,
            entries: bytes(entries).into(),
            ..wire::AppendRequest::default()
        };
        assert_eq!(append_from_wire(append).unwrap_err().to_string(), why, "{entries}");
    }
}

/// A list that ends too early is none.
#[test]
fn no_beginning_of_a_list_of_entries_is_taken_for_one() {
    let whole = bytes(ENTRIES);
    let read = |entries: &[u8]| {
        let vote = Some(vote_to_wire(&Vote::new_committed(3, node(2))));
        let entries = Bytes::copy_from_slice(entries);
        append_from_wire(wire::AppendRequest { vote, entries, ..wire::AppendRequest::default() })
    };
    assert_eq!(read(&whole).unwrap().entries, entries());
    for end in 1..whole.len() {
        read(&whole[..end]).unwrap_err();
    }
    read(&[&whole[..], &[0]].concat()).unwrap_err();
}

/// What a lone append is answered with comes back as it was.
#[test]
fn an_answer_to_a_lone_append_travels_as_on_a_stream() {
    let previous = Some(at(2, 4));
    let asked = Asked { previous, last: Some(at(3, 7)) };
    let vote = Vote::new(9, node(3));
    for answer in [
        AppendEntriesResponse::Success,
        AppendEntriesResponse::PartialSuccess(Some(at(3, 5))),
        AppendEntriesResponse::PartialSuccess(None),
        AppendEntriesResponse::Conflict,
        AppendEntriesResponse::HigherVote(vote),
    ] {
        assert_eq!(as_alone(as_on_stream(answer.clone(), &asked), &asked), answer);
    }
}

proptest! {
    #[test]
    fn whatever_arrives_is_read_or_refused(random in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = wire::AppendRequest::decode(&*random).map(append_from_wire);
        let _ = wire::AppendResponse::decode(&*random).map(appended_from_wire);
        let _ = wire::VoteRequest::decode(&*random).map(ballot_from_wire);
        let _ = wire::VoteResponse::decode(&*random).map(voted_from_wire);
        let _ = wire::TransferRequest::decode(&*random).map(transfer_from_wire);
        let _ = wire::TransferResponse::decode(&*random).map(transferred_from_wire);
        let _ = wire::SnapshotResponse::decode(&*random).map(installed_from_wire);
        let _ = wire::Recalled::decode(&*random).map(recalled_from_wire);
        let vote = Some(vote_to_wire(&Vote::new_committed(3, node(2))));
        let entries = random.into();
        let append = wire::AppendRequest { vote, entries, ..wire::AppendRequest::default() };
        let _ = append_from_wire(append);
    }
}
