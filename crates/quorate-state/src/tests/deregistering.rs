//! Deregistering, and what is remembered of it.

use super::*;
use crate::registry::leases::{TOMBSTONE_MS, TOMBSTONES_MAX};

const ENDED_7: &str = "rejected: incarnation 7 of instance default/web/a was deregistered; register with a higher one";
const ABSENT: &str = "rejected: instance default/web/a is not registered";

#[test]
fn deregistering_a_lease_removes_all_it_keeps() {
    let mut t = Transcript::default();
    t.apply(0, register("api/a web/a", 7));
    t.apply(0, register("web/b", 7));
    let lease = || Deregister::Lease(LeaseId(1));
    t.at(1, lease(), "deregistered 2 | #4 removed api/a@7 | #5 removed web/a@7");
    let gone =
        "rejected: lease 1 is unknown: it expired, was deregistered or taken over; register again";
    t.at(2, lease(), gone);
    t.at(2, register("web/a", 7), ENDED_7);
    assert_eq!(t.instances(), "web/b@7 L2");
}

#[test]
fn last_instance_deregistered_ends_the_lease() {
    let mut t = Transcript::default();
    t.apply(0, register("web/a web/b", 7));
    t.at(1, deregister("web/a"), "deregistered 1 | #3 removed web/a@7");
    t.at(1, renew(&[1]), "renewed");
    t.at(1, deregister("web/b@7"), "deregistered 1 | #4 removed web/b@7");
    t.at(1, renew(&[1]), "renewed but L1");
    t.at(15_000, Op::Tick, "done");
}

// S1.5
#[test]
fn registering_and_deregistering_works_a_thousand_times() {
    let mut t = Transcript::default();
    for round in 1..=1_000 {
        let added = format!(
            "registered L{round} 15000ms @{round} | #{} added web/a@{round}",
            2 * round - 1
        );
        t.at(0, register("web/a", round), &added);
        let removed = format!("deregistered 1 | #{} removed web/a@{round}", 2 * round);
        t.at(0, deregister(&format!("web/a@{round}")), &removed);
    }
}

// S0.4
#[test]
fn older_run_cannot_deregister_a_newer_one() {
    let mut t = Transcript::default();
    t.apply(0, register("web/a web/b", 7));
    t.apply(0, register("web/a", 8));
    let before = t.registry.hash();
    let refused = "rejected: instance default/web/a is held by a newer incarnation, 8";
    t.at(0, deregister("web/b@7 web/a@7"), refused);
    assert_eq!(t.registry.hash(), before);
    t.at(0, Deregister::Lease(LeaseId(1)), "deregistered 1 | #4 removed web/b@7");
    assert_eq!(t.instances(), "web/a@8 L2");
}

// S0.7
#[test]
fn delayed_registration_cannot_bring_back_what_was_deregistered() {
    let mut t = Transcript::default();
    t.apply(0, register("web/a", 7));
    t.at(0, deregister("web/a"), "deregistered 1 | #2 removed web/a@7");
    let mut older = register("web/a", 6);
    t.at(TOMBSTONE_MS - 1, older.clone(), ENDED_7);
    older.incarnation = Some(Incarnation(7));
    t.at(TOMBSTONE_MS - 1, older, ENDED_7);
    t.at(TOMBSTONE_MS, register("web/a", 7), "registered L2 15000ms @7 | #3 added web/a@7");
}

// S0.7
#[test]
fn registration_overtaken_by_its_deregistration_stays_out() {
    let mut t = Transcript::default();
    t.at(0, deregister("web/a@7"), ABSENT);
    t.at(1, register("web/a", 7), ENDED_7);
    t.at(1, register("web/a", 8), "registered L1 15000ms @8 | #1 added web/a@8");
}

/// The same outcome as when the registration of run 8 had come before its deregistration.
#[test]
fn run_that_leaves_before_its_registration_arrives_takes_its_predecessor_along() {
    let mut t = Transcript::default();
    t.apply(0, register("web/a", 6));
    t.at(0, deregister("web/a@7"), "deregistered 1 | #2 removed web/a@6");
    t.at(0, register("web/a", 7), ENDED_7);
}

// S0.7
#[test]
fn deregistration_of_an_older_run_does_not_forget_a_newer_one() {
    let mut t = Transcript::default();
    t.apply(0, register("web/a", 7));
    t.apply(0, deregister("web/a@7"));
    t.at(1, deregister("web/a@3"), ABSENT);
    t.at(2, register("web/a", 7), ENDED_7);
    t.at(TOMBSTONE_MS, register("web/a", 7), "registered L2 15000ms @7 | #3 added web/a@7");
}

#[test]
fn deregistering_again_remembers_it_for_longer() {
    let mut t = Transcript::default();
    t.apply(0, register("web/a", 7));
    t.apply(0, deregister("web/a@7"));
    t.at(1_000, deregister("web/a@7"), ABSENT);
    t.at(TOMBSTONE_MS, register("web/a", 7), ENDED_7);
    t.at(TOMBSTONE_MS + 1_000, register("web/a", 7), "registered L2 15000ms @7 | #3 added web/a@7");
}

/// One caller that deregisters what never was.
#[test]
fn what_is_remembered_is_bounded_and_the_youngest_stay() {
    let mut t = Transcript::default();
    for at in 0..TOMBSTONES_MAX as u64 + 1 {
        t.at(
            at,
            deregister(&format!("web/never-{at}@7")),
            &format!("rejected: instance default/web/never-{at} is not registered"),
        );
    }
    assert_eq!(t.registry.tombstones.len(), TOMBSTONES_MAX);
    let at = TOMBSTONES_MAX as u64;
    t.at(at, register("web/never-0", 7), "registered L1 15000ms @7 | #1 added web/never-0@7");
    let refused = t.apply(at, register("web/never-1", 7));
    assert!(matches!(refused.reply, Reply::Rejected(Rejection::Deregistered { .. })));
}

/// However many records wait to be forgotten, and however long they have been due.
#[test]
fn leases_end_before_anything_is_forgotten() {
    let mut t = Transcript::default();
    for at in 0..TOMBSTONES_MAX as u64 {
        t.apply(at, deregister(&format!("web/never-{at}@7")));
    }
    t.apply(TOMBSTONE_MS - 10_000, register("web/a", 7));
    // All is due, and the lease last.
    t.at(TOMBSTONE_MS + 5_000, Op::Tick, "done | #2 expired web/a@7");
    assert!(t.registry.tombstones.len() > 1, "they wait for their turn");
}

#[test]
fn nothing_is_remembered_of_an_absent_instance_without_incarnation() {
    let mut t = Transcript::default();
    t.at(0, deregister("web/a"), ABSENT);
    assert_eq!(t.registry.next_deadline(), None);
    t.at(0, register("web/a", 1), "registered L1 15000ms @1 | #1 added web/a@1");
}

#[test]
fn expired_run_may_register_again() {
    let mut t = Transcript::default();
    t.apply(0, register("web/a", 7));
    t.at(15_000, Op::Tick, "done | #2 expired web/a@7");
    t.at(15_000, register("web/a", 7), "registered L2 15000ms @7 | #3 added web/a@7");
}

#[test]
fn instances_that_are_there_are_removed_beside_absent_ones() {
    let mut t = Transcript::default();
    t.apply(0, register("web/b", 7));
    t.at(0, deregister("web/a web/b web/b"), "deregistered 1 | #2 removed web/b@7");
}
