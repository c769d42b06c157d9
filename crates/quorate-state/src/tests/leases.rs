//! Leases and the clock.

use super::*;
use crate::registry::leases::{EMPTY_SERVICE_MS, EMPTY_SERVICES_MAX};

#[test]
fn lease_ends_at_its_deadline_and_not_before() {
    let mut t = Transcript::default();
    t.apply(100, register("web/a", 7));
    assert_eq!(t.registry.next_deadline(), Some(Clock(15_100)));
    t.at(15_099, Op::Tick, "done");
    t.at(15_100, Op::Tick, "done | #2 expired web/a@7");
}

#[test]
fn renewal_starts_the_ttl_again() {
    let mut t = Transcript::default();
    t.apply(0, register("web/a", 7));
    t.apply(0, register("web/b", 7));
    t.at(10_000, renew(&[1]), "renewed");
    t.at(15_000, Op::Tick, "done | #3 expired web/b@7");
    t.at(24_999, renew(&[1]), "renewed");
    t.at(39_999, Op::Tick, "done | #4 expired web/a@7");
}

#[test]
fn what_is_due_expires_before_the_command_runs() {
    let mut t = Transcript::default();
    t.apply(0, register("web/a", 7));
    t.at(15_000, renew(&[1]), "renewed but L1 | #2 expired web/a@7");
    t.apply(15_000, register("web/a", 7));
    let anew = "registered L3 15000ms @7 | #4 expired web/a@7 | #5 added web/a@7";
    t.at(30_000, register("web/a", 7), anew);
}

#[test]
fn renewing_names_only_the_unknown_leases() {
    let mut t = Transcript::default();
    t.apply(0, register("web/a", 7));
    t.at(1, renew(&[9, 1, 4, 9]), "renewed but L9 L4 L9");
    assert_eq!(t.registry.lease(LeaseId(1)).unwrap().renewed, Clock(1));
}

#[test]
fn leases_end_in_the_order_of_their_deadlines() {
    let mut t = Transcript::default();
    t.apply(0, Register { ttl: ttl(3_000), ..register("web/a", 7) });
    t.apply(0, Register { ttl: ttl(1_000), ..register("web/z", 7) });
    t.at(9_000, Op::Tick, "done | #3 expired web/z@7 | #4 expired web/a@7");
}

#[test]
fn clock_never_goes_back() {
    let mut t = Transcript::default();
    t.apply(10_000, register("web/a", 7));
    t.at(5_000, register("web/b", 7), "registered L2 15000ms @7 | #2 added web/b@7");
    assert_eq!(t.registry.clock(), Clock(10_000));
    assert_eq!(t.registry.lease(LeaseId(2)).unwrap().deadline, Clock(25_000));
    t.at(0, renew(&[1]), "renewed");
    t.at(24_999, Op::Tick, "done");
}

#[test]
fn shorter_ttl_holds_from_the_registration_that_names_it() {
    let mut t = Transcript::default();
    t.apply(0, register("web/a", 7));
    t.at(1_000, Register { ttl: ttl(2_000), ..register("web/a", 7) }, "registered L1 2000ms @7");
    t.at(2_000, renew(&[1]), "renewed");
    t.at(4_000, Op::Tick, "done | #2 expired web/a@7");
}

#[test]
fn grace_gives_time_to_renew_after_an_election() {
    let mut t = Transcript::default();
    t.apply(0, register("web/a", 7));
    t.at(14_000, Op::Grace { grace_ms: 10_000 }, "done");
    t.at(23_999, renew(&[1]), "renewed");
    t.at(38_998, Op::Tick, "done");
    t.at(38_999, Op::Tick, "done | #2 expired web/a@7");
}

#[test]
fn grace_never_shortens_a_lease() {
    let mut t = Transcript::default();
    t.apply(0, register("web/a", 7));
    t.at(1_000, Op::Grace { grace_ms: 10_000 }, "done");
    t.at(14_999, Op::Tick, "done");
    t.at(14_999, Op::Grace { grace_ms: 10_000 }, "done");
    t.at(23_000, Op::Grace { grace_ms: 2_000 }, "done");
    t.at(24_998, Op::Tick, "done");
    t.at(24_999, Op::Tick, "done | #2 expired web/a@7");
}

#[test]
fn five_elections_keep_a_dead_instance_no_longer_than_its_ttl_and_one_grace() {
    let mut t = Transcript::default();
    t.apply(0, register("web/a", 7));
    for clock in [10_000, 14_000, 18_000, 22_000, 24_999] {
        t.at(clock, Op::Grace { grace_ms: 10_000 }, "done");
    }
    t.at(25_000, Op::Grace { grace_ms: 10_000 }, "done | #2 expired web/a@7");
}

#[test]
fn grace_is_no_longer_than_the_ttl() {
    let mut t = Transcript::default();
    t.apply(0, Register { ttl: ttl(2_000), ..register("web/a", 7) });
    for clock in [1_900, 3_000, 3_999] {
        t.at(clock, Op::Grace { grace_ms: u64::MAX }, "done");
    }
    t.at(4_000, Op::Tick, "done | #2 expired web/a@7");
}

#[test]
fn service_is_known_for_an_hour_after_its_last_instance() {
    let mut t = Transcript::default();
    t.apply(0, register("web/a", 7));
    t.apply(1_000, deregister("web/a"));
    let service = t.registry.service(&service_key("web")).expect("known");
    assert_eq!((service.instances.len(), service.revision), (0, Revision(2)));
    t.at(1_000 + EMPTY_SERVICE_MS - 1, Op::Tick, "done");
    assert!(t.registry.service(&service_key("web")).is_some());
    assert!(!t.registry.forgot_after(Revision(1)));
    t.at(1_000 + EMPTY_SERVICE_MS, Op::Tick, "done");
    assert!(t.registry.service(&service_key("web")).is_none());
    assert!(t.registry.forgot_after(Revision(1)) && !t.registry.forgot_after(Revision(2)));
    assert_eq!(t.registry.next_deadline(), None);
}

/// One caller that registers under a new name each time.
#[test]
fn services_without_instances_are_bounded_and_the_youngest_stay() {
    let mut t = Transcript::default();
    t.apply(0, register("web/a", 7));
    let names: Vec<_> = (0..=EMPTY_SERVICES_MAX).map(|number| format!("job-{number}")).collect();
    for (at, name) in (1..).zip(&names) {
        t.apply(at, register(&format!("{name}/a"), 7));
        t.apply(at, deregister(&format!("{name}/a")));
    }
    let known = |name: &str| t.registry.service(&service_key(name)).is_some();
    assert!(known("web") && !known(&names[0]) && names[1..].iter().all(|name| known(name)));
    // Whoever has seen the first one's end has all of it.
    assert!(t.registry.forgot_after(Revision(2)) && !t.registry.forgot_after(Revision(3)));
    t.at(10_000, register("job-0/a", 8), "registered L5 15000ms @8 | #8 added job-0/a@8");
}

#[test]
fn service_that_comes_back_is_not_forgotten() {
    let mut t = Transcript::default();
    t.apply(0, Register { ttl: ttl(86_400_000), ..register("web/a", 7) });
    t.apply(0, deregister("web/a"));
    t.apply(1_000, Register { ttl: ttl(86_400_000), ..register("web/a", 8) });
    t.at(EMPTY_SERVICE_MS, Op::Tick, "done");
    assert_eq!(t.instances(), "web/a@8 L2");
}

#[test]
fn end_of_time_stops_nothing() {
    let mut t = Transcript::default();
    t.apply(u64::MAX - 1, register("web/a", 7));
    t.at(u64::MAX - 1, renew(&[1]), "renewed");
    t.at(u64::MAX, Op::Tick, "done | #2 expired web/a@7");
}

#[test]
fn what_is_due_at_once_goes_in_turns_and_a_renewal_before_its_turn_keeps_it() {
    let mut t = Transcript::default();
    for id in ["a", "b", "c", "d", "e"] {
        t.apply(0, register(&format!("web/{id}"), 7));
    }
    t.at(15_000, Op::Tick, "done | #6 expired web/a@7 | #7 expired web/b@7");
    assert_eq!(t.registry.next_deadline(), Some(Clock(15_000)), "the rest is still due");
    t.at(15_000, renew(&[1, 5]), "renewed but L1 | #8 expired web/c@7 | #9 expired web/d@7");
    t.at(15_001, Op::Tick, "done");
    assert_eq!(t.instances(), "web/e@7 L5");
    assert_eq!(t.registry.lease(LeaseId(5)).unwrap().deadline, Clock(30_000));
}

#[test]
fn the_first_founding_counts_and_lease_ids_begin_behind_its_base() {
    let mut t = Transcript::default();
    let before = t.registry.hash();
    t.at(0, found(5, 3 << 32), "done");
    assert_ne!(t.registry.hash(), before, "whose state it is belongs to it");
    t.at(1, found(6, 9 << 32), "done");
    assert_eq!(t.registry.cluster_id(), NonZeroU64::new(5));
    t.at(2, register("web/a", 7), "registered L12884901889 15000ms @7 | #1 added web/a@7");
    t.at(3, found(6, 9 << 32), "done");
    t.at(3, register("web/b", 7), "registered L12884901890 15000ms @7 | #2 added web/b@7");
}
