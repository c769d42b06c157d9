//! The bytes of calls and answers, and what a node of another release may make of them: see those
//! of the Raft library's messages.

use proptest::prelude::*;
use quorate_state::{Deregister, Incarnation, Reply, Ttl};

use super::*;

/// A number and a text under field numbers that this release does not have.
const LATER: &str = "98_06_01_9a_06_02_6869";

fn id(number: u64) -> NodeId {
    NodeId::new(number).unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.replace('_', "");
    let pairs = digits.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn text(text: &str) -> String {
    text.to_owned()
}

fn request() -> Request {
    let (since, share) = (Clock(300), Share(4));
    Request { origin: 1, number: 2, done_below: 1, since, digest: 5, share }
}

#[test]
fn the_bytes_of_calls() {
    let op = Op::Deregister(Deregister::Lease(LeaseId(7)));
    let member = Member { peer_address: text("p:1"), client_address: text("c") };
    let add = |learner_only, by_itself| MembershipCall::Add {
        id: id(2),
        peer_address: text("p:1"),
        learner_only,
        by_itself,
    };
    let replace = MembershipCall::Replace { old: id(1), new: id(2), peer_address: text("p:1") };
    for (call, golden) in [
        (
            LeaderCall::Propose(op, request()),
            "0a_21_0a_04_01030007_11_0100000000000000_1802_2001_28ac02_31_0500000000000000_3804",
        ),
        (
            LeaderCall::Renew(vec![LeaseId(7), LeaseId(300)], Patience::None),
            "12_07_0a_03_07ac02_1001",
        ),
        (LeaderCall::Renew(vec![LeaseId(7)], Patience::Window), "12_03_0a_01_07"),
        (LeaderCall::Membership(add(true, true)), "1a_0b_0802_12_03_703a31_1801_2001"),
        (LeaderCall::Membership(add(false, false)), "1a_07_0802_12_03_703a31"),
        (LeaderCall::Membership(MembershipCall::Remove { id: id(2) }), "22_02_0802"),
        (LeaderCall::Membership(replace), "2a_09_0801_1002_1a_03_703a31"),
        (
            LeaderCall::Membership(MembershipCall::Announce { id: id(2), member }),
            "32_0a_0802_12_03_703a31_1a_01_63",
        ),
        (LeaderCall::Membership(MembershipCall::SetLevel(LevelChange::Hold)), "3a_02_0801"),
        (LeaderCall::Membership(MembershipCall::SetLevel(LevelChange::Raise)), "3a_00"),
        (LeaderCall::Lead(LeadCall::Successor), "42_00"),
        (LeaderCall::Lead(LeadCall::Transfer { to: id(2) }), "4a_02_0802"),
    ] {
        let (written, golden) = (encode_call(&call), bytes(golden));
        assert_eq!(written, golden, "{call:?} is {written:02x?}");
        let later = [golden.clone(), bytes(LATER)].concat();
        for read in [golden.clone(), later] {
            assert_eq!(read_call(read.into()).unwrap(), call);
        }
        for end in 0..golden.len() {
            if let Ok(read) = read_call(golden[..end].to_vec().into()) {
                assert_ne!(read, call, "the first {end} bytes");
            }
        }
    }
}

#[test]
fn the_bytes_of_answers() {
    let member = Member { peer_address: text("p:1"), client_address: text("c") };
    let members = vec![MemberInfo { id: id(2), member, voter: true }];
    let reply = Reply::Registered {
        lease: LeaseId(7),
        ttl: Ttl::from_ms(30_000).unwrap(),
        incarnation: Incarnation(9),
    };
    for (answer, golden) in [
        (
            LeaderAnswer::Outcome(Outcome { reply, revision: Revision(300) }),
            "0a_0c_0a_07_010107b0ea0109_10ac02",
        ),
        (
            LeaderAnswer::Renewed(Renewed { unknown: vec![LeaseId(7)], revision: 3 }),
            "12_05_0a_01_07_1003",
        ),
        (LeaderAnswer::Members(members), "1a_0e_0a_0c_0802_12_03_703a31_1a_01_63_2001"),
        (LeaderAnswer::Leader(id(2)), "22_02_0802"),
    ] {
        let (written, golden) = (encode_answer(&answer), bytes(golden));
        assert_eq!(written, golden, "{answer:?} is {written:02x?}");
        let later = [golden.clone(), bytes(LATER)].concat();
        for read in [golden.clone(), later] {
            assert_eq!(read_answer(id(1), read.into()).unwrap(), answer);
        }
        for end in 0..golden.len() {
            if let Ok(read) = read_answer(id(1), golden[..end].to_vec().into()) {
                assert_ne!(read, answer, "the first {end} bytes");
            }
        }
    }
}

#[test]
fn a_failure_is_known_by_what_is_to_be_done_about_it() {
    let read = |hex: &str| match read_answer(id(1), bytes(hex).into()) {
        Err(NodeError::Told(told)) => *told,
        other => panic!("{other:?}"),
    };
    let plain = Told::new(9, text("no"));
    assert_eq!(read("2a_06_0809_12_02_6e6f"), plain);
    assert_eq!(read("2a_08_0809_12_02_6e6f_1801"), Told { again: true, ..plain.clone() });
    assert_eq!(read("2a_08_0809_12_02_6e6f_1802"), Told { late: true, ..plain.clone() });
    let full = Told {
        unknown: Some(id(3)),
        incarnation: Some(0),
        retry_after_ms: Some(5),
        ..plain.clone()
    };
    assert_eq!(read("2a_0c_0809_12_02_6e6f_2003_2800_3005"), full);
    // What a later release may want done, and what else it says.
    assert_eq!(read("2a_0b_0809_12_02_6e6f_184d_980601_980601"), plain);
    assert_eq!(read("2a_00"), Told::new(0, String::new()));
}

/// Nobody knows what came of the call, so the client hears that, with a code that it acts on.
#[test]
fn an_answer_that_only_a_later_release_has_is_told_in_words() {
    for hex in [LATER, "0a_04_0a_02_0163", "0a_06_0a_04_01050199", "0a_7f", ""] {
        let Err(NodeError::Told(told)) = read_answer(id(2), bytes(hex).into()) else {
            panic!("{hex} is read");
        };
        assert!(
            told.message.starts_with("node 2 has answered, and it cannot be read: "),
            "{told:?}"
        );
        assert_eq!((told.code, told.again, told.late), (UNAVAILABLE, false, false));
    }
}

#[test]
fn a_call_that_only_a_later_release_has_is_refused_in_words() {
    let newer = "peer message holds what this version does not know: its sender is newer";
    for (what, hex) in [
        ("a call", LATER),
        ("an operation", "0a_04_0a_02_0163"),
        ("bytes behind an operation", "0a_05_0a_03_010000"),
        ("a larger share", "0a_08_0a_02_0100_38808004"),
    ] {
        let refused = read_call(bytes(hex).into()).unwrap_err();
        assert_eq!(refused.to_string(), newer, "{what}");
    }
    let refused = read_call(bytes("22_00").into()).unwrap_err().to_string();
    assert_eq!(refused, "peer message lacks a node's id");
}

proptest! {
    #[test]
    fn whatever_arrives_is_read_or_refused(random in prop::collection::vec(any::<u8>(), 0..200)) {
        let random = Bytes::from(random);
        let _ = read_call(random.clone());
        let _ = read_answer(id(1), random.clone());
        // As an operation and a reply.
        let write = wire::Write { op: random.clone(), ..wire::Write::default() };
        let _ = write_from_wire(&write);
        let written = wire::Written { reply: random, revision: 1 };
        let answer = wire::LeaderAnswer { answer: Some(Answer::Written(written)) };
        let _ = read_answer(id(1), answer.encode_to_vec().into());
    }
}
