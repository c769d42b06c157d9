//! Registering, re-registering and taking over.

use super::*;

// S0.1
#[test]
fn first_instance_of_a_new_service_needs_nothing_else() {
    let mut t = Transcript::default();
    t.at(0, register("web/a", 7), "registered L1 15000ms @7 | #1 added web/a@7");
    assert_eq!(t.registry.service(&service_key("web")).unwrap().revision, Revision(1));
}

#[test]
fn tags_are_a_set_that_updates_leave_and_registrations_say_anew() {
    let tagged = |tags: &[&str]| {
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        let instance = (key("web/a"), spec(SpecParts { tags, ..parts() }));
        Register { instances: vec![instance], ..register("", 7) }
    };
    let tags = |t: &Transcript| t.instance("web/a").spec.tags().collect::<Vec<_>>().join(" ");
    let mut t = Transcript::default();
    t.at(0, tagged(&["b", "a"]), "registered L1 15000ms @7 | #1 added web/a@7");
    assert_eq!(tags(&t), "a b");
    t.at(1, tagged(&["a", "b"]), "registered L1 15000ms @7");
    let metadata = Some(BTreeMap::from([("k".to_owned(), "v".to_owned())]));
    t.at(2, Update { metadata, ..update_load("web/a", 5) }, "updated | #2 changed web/a@7");
    assert_eq!(tags(&t), "a b");
    t.at(3, tagged(&["b"]), "registered L1 15000ms @7 | #3 changed web/a@7");
    assert_eq!(tags(&t), "b");
    let restored = read_snapshot(&mut &golden::snapshot_bytes(&t.registry)[..]).unwrap();
    assert_eq!(tags(&Transcript { registry: restored }), "b");
}

#[test]
fn instances_of_one_call_share_a_lease() {
    let mut t = Transcript::default();
    let both = "registered L1 15000ms @7 | #1 added api/a@7 | #2 added web/a@7";
    t.at(0, register("api/a web/a", 7), both);
    assert_eq!(t.instances(), "api/a@7 L1, web/a@7 L1");
}

// S2.15
#[test]
fn granted_ttl_is_told_to_the_millisecond() {
    let mut t = Transcript::default();
    let asked = Register { ttl: ttl(1_001), ..register("web/a", 7) };
    t.at(0, asked, "registered L1 1001ms @7 | #1 added web/a@7");
    t.at(1_000, Op::Tick, "done");
    t.at(1_001, Op::Tick, "done | #2 expired web/a@7");
}

// S4.10, S2.16
#[test]
fn registering_again_changes_nothing_and_renews() {
    let mut t = Transcript::default();
    t.at(0, register("web/a", 7), "registered L1 15000ms @7 | #1 added web/a@7");
    t.at(10_000, register("web/a", 7), "registered L1 15000ms @7");
    t.at(24_999, Op::Tick, "done");
    t.at(25_000, Op::Tick, "done | #2 expired web/a@7");
}

// S2.16
#[test]
fn late_success_of_an_abandoned_attempt_leaves_one_registration() {
    let mut t = Transcript::default();
    t.at(0, register("web/a", 7), "registered L1 15000ms @7 | #1 added web/a@7");
    t.at(1, Register { ttl: ttl(9_000), ..register("web/a", 7) }, "registered L1 9000ms @7");
    t.at(2, register("web/a", 7), "registered L1 9000ms @7");
    assert_eq!(t.instances(), "web/a@7 L1");
    assert_eq!(t.registry.counts().leases, 1);
}

#[test]
fn registering_other_content_changes_the_instance() {
    let mut t = Transcript::default();
    t.at(0, register("web/a", 7), "registered L1 15000ms @7 | #1 added web/a@7");
    let mut moved = register("web/a", 7);
    moved.instances[0].1 = spec(SpecParts { zone: "eu-1b".to_owned(), ..parts() });
    t.at(1, moved, "registered L1 15000ms @7 | #2 changed web/a@7");
    let instance = t.instance("web/a");
    assert_eq!((instance.created, instance.modified), (Revision(1), Revision(2)));
    assert_eq!(instance.spec.zone(), "eu-1b");
}

// S0.2, S0.3
#[test]
fn restart_within_the_ttl_takes_over_in_one_change() {
    let mut t = Transcript::default();
    t.at(0, register("web/a", 7), "registered L1 15000ms @7 | #1 added web/a@7");
    t.at(5_000, register("web/a", 8), "registered L2 15000ms @8 | #2 web/a@7 taken over by @8");
    assert_eq!(t.instance("web/a").created, Revision(1));
    t.at(15_000, Op::Tick, "done");
    t.at(15_001, renew(&[1]), "renewed but L1");
    assert_eq!(t.instances(), "web/a@8 L2");
}

// S0.2
#[test]
fn what_a_restart_does_not_take_over_ends_with_the_old_lease() {
    let mut t = Transcript::default();
    t.apply(0, register("web/a web/b", 7));
    t.at(5_000, register("web/a", 8), "registered L2 15000ms @8 | #3 web/a@7 taken over by @8");
    assert_eq!(t.instances(), "web/a@8 L2, web/b@7 L1");
    t.at(15_000, Op::Tick, "done | #4 expired web/b@7");
    assert_eq!(t.instances(), "web/a@8 L2");
}

// S0.4
#[test]
fn older_run_cannot_register_over_a_newer_one() {
    let mut t = Transcript::default();
    t.apply(0, register("web/a", 8));
    let refused = "rejected: instance default/web/a is held by a newer incarnation, 8";
    t.at(14_000, register("web/a", 7), refused);
    t.at(15_000, Op::Tick, "done | #2 expired web/a@8");
}

// S4.11
#[test]
fn refused_registration_leaves_no_trace() {
    let mut t = Transcript::default();
    t.apply(0, register("web/b", 8));
    t.apply(0, register("web/c", 7));
    let before = (t.registry.hash(), t.instances());
    let refused = "rejected: instance default/web/b is held by a newer incarnation, 8";
    t.at(0, register("new/a web/c web/b", 7), refused);
    let gone =
        "rejected: lease 9 is unknown: it expired, was deregistered or taken over; register again";
    t.at(0, Register { lease: Some(LeaseId(9)), ..register("new/a web/c", 7) }, gone);
    assert_eq!((t.registry.hash(), t.instances()), before);
    t.at(0, register("new/a", 7), "registered L3 15000ms @7 | #3 added new/a@7");
}

#[test]
fn unnamed_incarnation_is_one_more_than_the_highest() {
    let mut t = Transcript::default();
    t.at(0, register("web/a", 0), "registered L1 15000ms @1 | #1 added web/a@1");
    t.apply(0, register("web/b", 40));
    t.apply(0, deregister("web/b"));
    let both = register("web/a web/b", 0);
    let told = "registered L3 15000ms @41 | #4 web/a@1 taken over by @41 | #5 added web/b@41";
    t.at(0, both, told);
}

#[test]
fn unnamed_incarnation_after_the_last_one_cannot_revive_it() {
    let mut t = Transcript::default();
    t.apply(0, register("web/a", u64::MAX));
    let same_run = format!("registered L1 15000ms @{}", u64::MAX);
    t.at(0, register("web/a", 0), &same_run);
    t.apply(0, deregister("web/a"));
    let refused = format!(
        "rejected: incarnation {} of instance default/web/a was deregistered; register with a higher one",
        u64::MAX
    );
    t.at(0, register("web/a", 0), &refused);
}

#[test]
fn instances_may_be_added_to_a_lease() {
    let mut t = Transcript::default();
    t.apply(0, register("web/a", 7));
    let more = Register { lease: Some(LeaseId(1)), ttl: ttl(20_000), ..register("web/b", 3) };
    t.at(5_000, more, "registered L1 20000ms @3 | #2 added web/b@3");
    t.at(24_999, Op::Tick, "done");
    t.at(25_000, Op::Tick, "done | #3 expired web/a@7 | #4 expired web/b@3");
}

#[test]
fn instance_moved_to_another_lease_leaves_its_own() {
    let mut t = Transcript::default();
    t.apply(0, register("web/a web/b", 7));
    t.apply(0, register("web/c", 7));
    let moved = Register { lease: Some(LeaseId(2)), ..register("web/a", 7) };
    t.at(0, moved, "registered L2 15000ms @7 | #4 changed web/a@7");
    assert_eq!(t.instances(), "web/a@7 L2, web/b@7 L1, web/c@7 L2");
    let last = Register { lease: Some(LeaseId(2)), ..register("web/b", 7) };
    t.at(0, last, "registered L2 15000ms @7 | #5 changed web/b@7");
    t.at(0, renew(&[1, 2]), "renewed but L1");
}

#[test]
fn registration_of_nothing_makes_no_lease() {
    let mut t = Transcript::default();
    let refused =
        "rejected: neither a lease nor an instance is named: there is nothing to register";
    t.at(0, register("", 7), refused);
    assert_eq!(t.registry.counts(), Counts::default());
    t.at(0, register("web/a", 7), "registered L1 15000ms @7 | #1 added web/a@7");
    t.at(1, Register { lease: Some(LeaseId(1)), ..register("", 7) }, "registered L1 15000ms @7");
}

#[test]
fn instance_named_twice_is_registered_once() {
    let mut t = Transcript::default();
    let mut twice = register("web/a web/a", 7);
    twice.instances[1].1 = spec(SpecParts { zone: "eu-1b".to_owned(), ..parts() });
    t.at(0, twice, "registered L1 15000ms @7 | #1 added web/a@7 | #2 changed web/a@7");
    assert_eq!(t.instances(), "web/a@7 L1");
    t.at(15_000, Op::Tick, "done | #3 expired web/a@7");
}

#[test]
fn lease_takes_no_more_than_its_limit() {
    const LIMIT: usize = crate::limits::INSTANCES_PER_LEASE;
    let mut registry = Registry::new();
    let mut clock = Clock(0);
    let mut add = |ids: std::ops::Range<usize>, lease| {
        clock = clock.plus_ms(1);
        registry.apply(&Command::new(clock, Op::Tick));
        let hash = registry.hash();
        let names: Vec<_> = ids.map(|id| format!("web/{id}")).collect();
        let register = Register { lease, ..register(&names.join(" "), 7) };
        let told = told(&registry.apply(&Command::new(clock, register.into())));
        assert!(!told.starts_with("rejected") || registry.hash() == hash, "a trace is left");
        told
    };
    let lease = Some(LeaseId(1));
    add(0..1, None);
    for first in (1..LIMIT).step_by(1_000) {
        add(first..LIMIT.min(first + 1_000), lease);
    }
    let full = "rejected: lease 1 would hold 10001 instances, at most 10000 allowed";
    assert_eq!(add(LIMIT..LIMIT + 1, lease), full);
    assert_eq!(add(LIMIT - 1..LIMIT + 1, None), full);
    assert_eq!(add(LIMIT - 1..LIMIT, lease), "registered L1 15000ms @7");
    let alone = format!("registered L2 15000ms @7 | #{} added web/{LIMIT}@7", LIMIT + 1);
    assert_eq!(add(LIMIT..LIMIT + 1, None), alone);
    let new = "rejected: lease 3 would hold 10001 instances, at most 10000 allowed";
    assert_eq!(add(2 * LIMIT..3 * LIMIT + 1, None), new);
    check_invariants(&registry);
}

// S2.3
#[test]
fn namespaces_do_not_see_each_other() {
    let mut t = Transcript::default();
    t.apply(0, register("blue/web/a", 7));
    t.at(0, register("green/web/a", 3), "registered L2 15000ms @3 | #2 added green/web/a@3");
    let green = Namespace::new("namespace", "green").unwrap();
    let seen: Vec<_> = t.registry.services(&green, "", None).map(|(key, _)| key).collect();
    assert_eq!(seen, [&service_key("green/web")]);
}

/// A caller with rights to some services joins no lease that keeps others, also where that lease
/// came to be after its rights were checked.
#[test]
fn a_caller_joins_no_lease_that_keeps_what_is_not_its_to_register() {
    let mut t = Transcript::default();
    let added = "registered L1 15000ms @7 | #1 added orders/z@7 | #2 added billing/z@7";
    t.at(0, register("orders/z billing/z", 7), added);
    let scope = |namespace: Option<&str>, prefix: &str| Scope {
        namespace: namespace.map(|name| Namespace::new("namespace", name).unwrap()),
        prefix: prefix.into(),
    };
    let within =
        |scopes| Register { ttl: ttl(1_000), within: Some(scopes), ..register("orders/z", 7) };
    for scopes in [
        vec![],
        vec![scope(None, "orders")],
        vec![scope(Some("default"), "orders")],
        vec![scope(Some("other"), ""), scope(None, "orders")],
    ] {
        let refused =
            "rejected: the lease of this run keeps instances that the caller may not register";
        t.at(0, within(scopes.clone()), refused);
        let named = Register { lease: Some(LeaseId(1)), ..within(scopes) };
        t.at(0, named, "rejected: lease 1 is unknown: it expired, was deregistered or taken over; register again");
    }
    for scopes in
        [vec![scope(None, "")], vec![scope(Some("default"), "orders"), scope(None, "bill")]]
    {
        t.at(0, within(scopes), "registered L1 1000ms @7");
    }
}
