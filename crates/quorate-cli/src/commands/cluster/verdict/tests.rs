//! What one line says of each kind of trouble.

use quorate_client::{Condition, Member, ResponseHeader, Standing, WritesRefused};

use super::*;

fn status(leader_id: u64, reachable: &[bool]) -> StatusResponse {
    let header = Some(ResponseHeader { leader_id, ..Default::default() });
    let members = (1..).zip(reachable).map(|(id, reachable)| {
        let mut member = Member { id, ..Default::default() };
        member.set_role(MemberRole::Voter);
        MemberStatus { member: Some(member), reachable: *reachable, ..Default::default() }
    });
    StatusResponse { header, members: members.collect(), ..Default::default() }
}

type Row = (StatusResponse, Vec<String>, Health, &'static str, &'static str);

fn down(id: u64) -> Vec<String> {
    vec![format!("node {id} does not answer: refused")]
}

fn check(rows: impl IntoIterator<Item = Row>) {
    for (status, faults, health, meaning, next) in rows {
        let found = verdict(&View::of(status), &faults);
        assert_eq!(found.health, health, "{found:?}");
        assert!(found.meaning.contains(meaning), "{found:?}");
        assert!(found.next.contains(next) && found.next.is_empty() == next.is_empty());
    }
}

#[test]
fn one_line_says_who_answers_and_what_to_do() {
    check([
        (status(2, &[true; 3]), vec![], Health::Ok, "node 2 leads, 3 of 3", ""),
        (status(1, &[true]), vec![], Health::Ok, "1 of 1 voters", ""),
        (
            status(2, &[true, true, false]),
            down(3),
            Health::Degraded,
            "with 0 more down",
            "cluster replace 3 NEW",
        ),
        (
            status(2, &[true, true, true, true, false]),
            down(5),
            Health::Degraded,
            "with 1 more down",
            "start node 5 again",
        ),
        (
            status(2, &[true, true, false, false, true]),
            down(3),
            Health::Degraded,
            "with 0 more down",
            "start node 3, 4 again, or replace them, one after the other: `quorate cluster replace 3 NEW-ID",
        ),
        // Its leader has not noticed yet.
        (
            status(1, &[true, false, false]),
            down(2),
            Health::NoQuorum,
            "1 of 3 voters answer, 2 are needed",
            "start node 2, 3 again",
        ),
        (status(0, &[true, true]), vec![], Health::NoQuorum, "no node leads", "look again"),
    ]);
}

#[test]
fn one_line_says_what_is_wrong_with_those_that_answer() {
    let mut low = status(2, &[true, true, true]);
    low.members[0].disk_low = true;
    let mut all_low = low.clone();
    all_low.members.iter_mut().for_each(|member| member.disk_low = true);
    let mut lags = status(2, &[true; 3]);
    lags.members[2].lag = LAG_MAX + 1;
    let with = |condition: Condition| {
        let mut status = status(2, &[true; 3]);
        status.members[1].condition = Some(condition);
        status
    };
    let held = |clock_held_ms| with(Condition { clock_held_ms, ..Default::default() });
    let ends = |days: i64| {
        let certificate_ends_in_s = Some(days * 86_400);
        with(Condition { certificate_ends_in_s, ..Default::default() })
    };
    let mut mixed = status(2, &[true; 3]);
    mixed.members[0].version = "0.2.0".to_owned();
    check([
        (low, vec![], Health::Degraded, "the disk of node 1 is", "make room"),
        (all_low, vec![], Health::Degraded, "node 1, 2, 3 is nearly full, and", "make room"),
        (lags, vec![], Health::Degraded, "node 3 lags: it has 5001", "its log"),
        (held(5_001), vec![], Health::Degraded, "stands still for 5 s", "log of node 2"),
        (held(5_000), vec![], Health::Ok, "node 2 leads", ""),
        (ends(6), vec![], Health::Degraded, "of node 2 ends in 6 d", "certs node 2"),
        (ends(-1), vec![], Health::Degraded, "of node 2 has ended", "certs node 2"),
        (ends(8), vec![], Health::Ok, "node 2 leads", ""),
        (mixed, vec![], Health::Degraded, "different versions", "the same"),
        (
            status(1, &[true; 3]),
            vec!["node 3 lags".to_owned()],
            Health::Degraded,
            "node 3 lags",
            "log of that node",
        ),
    ]);
}

/// Whatever else is wrong, this is worse.
#[test]
fn nodes_that_disagree_are_not_well() {
    let mut differs = status(2, &[true, true, false]);
    differs.members.iter_mut().for_each(|member| member.state_hash_index = 64);
    differs.members[1].state_hash = 7;
    let found = verdict(&View::of(differs), &["node 3 does not answer".to_owned()]);
    assert_eq!(found.health, Health::Degraded);
    assert!(found.meaning.contains("nodes 1 and 2 disagree"), "{found:?}");

    let mut found = status(2, &[true; 3]);
    let states_differ = vec![3];
    found.members[1].condition = Some(Condition { states_differ, ..Default::default() });
    let found = verdict(&View::of(found), &[]);
    assert_eq!(found.health, Health::Degraded, "at no index of now");
    assert!(found.meaning.contains("nodes 2 and 3 disagree"), "{found:?}");

    let mut behind = status(2, &[true; 3]);
    behind.members[1].state_hash = 7;
    behind.members[1].state_hash_index = 64;
    assert_eq!(verdict(&View::of(behind), &[]).health, Health::Ok, "of another index");
}

/// Nothing is known of a cluster of which no member answers.
#[test]
fn a_node_that_is_no_member_speaks_for_itself_only() {
    for standing in [Standing::Removed, Standing::Waiting, Standing::Joining] {
        let mut condition = Condition { reason: "because".to_owned(), ..Default::default() };
        condition.set_standing(standing);
        let mut status = status(0, &[]);
        status.header.as_mut().unwrap().node_id = 7;
        status.condition = Some(condition);
        let found = verdict(&View::of(status.clone()), &[]);
        assert_eq!(found.health, Health::NoQuorum);
        let words = match standing {
            Standing::Waiting => "node 7 is in no cluster yet: because",
            _ => "node 7 is none: because",
        };
        assert!(found.meaning.contains(words), "{found:?}");
        let is_of_strangers = View::of(status).is_of_strangers();
        assert_eq!(is_of_strangers, standing != Standing::Waiting, "{standing:?}");
    }
    assert!(!View::of(status(1, &[true, false, false])).is_of_strangers());
}

/// These members of three, of which node 2 leads, refuse writes for this reason.
fn refusing(ids: &[u64], why: WritesRefused) -> StatusResponse {
    let mut status = status(2, &[true; 3]);
    for member in status.members.iter_mut().filter(|it| ids.contains(&id(it))) {
        let mut condition =
            Condition { writes_refused_why: "why".to_owned(), ..Default::default() };
        condition.set_writes_refused(why);
        member.condition = Some(condition);
    }
    status
}

#[test]
fn writes_that_are_refused_are_told_whatever_else_there_is() {
    for (ids, why, health, meaning, next) in [
        (
            &[2][..],
            WritesRefused::DiskFloor,
            Health::NoWrites,
            "node 2, which leads, has less free than a quarter of its reserve: nothing is written, and no lease ends",
            "#a-full-disk",
        ),
        (
            &[1, 2, 3],
            WritesRefused::Audit,
            Health::NoWrites,
            "every node that answers refuses writes: why",
            "#writes-that-are-refused",
        ),
        (
            &[3],
            WritesRefused::Audit,
            Health::Degraded,
            "node 3 refuses the writes that come to it: why",
            "#writes-that-are-refused",
        ),
        (
            &[2],
            WritesRefused::StateFull,
            Health::Degraded,
            "registrations are refused, the rest goes on: why",
            "#a-full-registry",
        ),
    ] {
        let mut refusing = refusing(ids, why);
        // As all of them say on a full disk.
        if why == WritesRefused::DiskFloor {
            refusing.members.iter_mut().for_each(|it| it.disk_low = true);
        }
        for faults in [vec![], vec!["node 3 lags".to_owned()]] {
            let found = verdict(&View::of(refusing.clone()), &faults);
            assert_eq!(found.health, health, "{found:?}");
            assert!(found.meaning.contains(meaning) && found.next.contains(next), "{found:?}");
        }
    }
    let stalled = refusing(&[2], WritesRefused::Stalled);
    assert_eq!(verdict(&View::of(stalled), &[]).health, Health::Ok, "its clock tells");
    assert_eq!([Health::NoWrites.code(), Health::Degraded.code()], [2, 1]);
    assert_eq!(Health::NoWrites.word(), "NO WRITES");
}

#[test]
fn two_clusters_are_not_well() {
    let mut view = View::of(status(2, &[true; 3]));
    view.clusters = [(7, "a:1".to_owned()), (8, "b:1".to_owned())].into();
    let found = verdict(&view, &[]);
    assert_eq!(found.health, Health::Degraded);
    assert!(found.meaning.contains("different clusters") && !found.next.is_empty(), "{found:?}");
}

/// They run, and nothing of them is lost.
#[test]
fn nodes_whose_certificates_are_refused_are_not_taken_for_lost() {
    let refused = "it does not take this node's certificate (CertificateExpired): its log says why";
    for reachable in [[true, false, false], [true, true, false]] {
        let plain = status(1, &reachable);
        let mut told = plain.clone();
        told.members[2].error = refused.to_owned();
        let mut own = plain.clone();
        let certificate_ends_in_s = Some(-1);
        own.condition = Some(Condition { certificate_ends_in_s, ..Default::default() });
        for (status, by_tls) in [(plain, false), (told, true), (own, true)] {
            let next = verdict(&View::of(status), &[]).next;
            let leads_there = ["#certificates-that-have-ended", "#a-wrong-clock"]
                .iter()
                .all(|it| next.contains(it));
            assert_eq!(leads_there, by_tls, "{next}");
            assert_eq!(next.contains("recover") || next.contains("replace"), !by_tls, "{next}");
        }
    }
    let mut all_answer = status(1, &[true; 3]);
    let certificate_ends_in_s = Some(-1);
    all_answer.condition = Some(Condition { certificate_ends_in_s, ..Default::default() });
    assert_eq!(verdict(&View::of(all_answer), &[]).health, Health::Ok, "its own row tells");
}

#[test]
fn an_ok_of_a_part_is_not_one_of_all() {
    let whole = status(2, &[true; 3]);
    let partial = StatusResponse { partial: true, ..whole.clone() };
    let found = verdict(&View::of(partial), &[]);
    assert_eq!((found.health, found.health.code()), (Health::Ok, 0));
    assert!(found.line(true).starts_with("OK as far as this caller may see: node 2 leads"));
    assert!(found.next.contains("the role operator, or to read all namespaces"), "{found:?}");
    let found = verdict(&View::of(whole), &[]);
    assert!(found.line(false).starts_with("OK: node 2 leads") && found.next.is_empty());
    let down = StatusResponse { partial: true, ..status(2, &[true, true, false]) };
    let found = verdict(&View::of(down), &[]);
    assert!(found.line(true).starts_with("DEGRADED: 2 of 3"), "that is seen: {found:?}");
}
