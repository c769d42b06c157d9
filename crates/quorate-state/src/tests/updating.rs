//! Updates of live instances, and operators' overrides.

use super::*;
use crate::limits::{OVERRIDES, OVERRIDES_AHEAD};

// S2.9
#[test]
fn update_of_a_live_instance_is_told_to_watchers() {
    let mut t = Transcript::default();
    t.apply(0, register("web/a", 7));
    let metadata = BTreeMap::from([("load".to_owned(), "high".to_owned())]);
    let change = Update {
        status: Some(Status::Draining),
        weight: Some(5),
        metadata: Some(metadata.clone()),
        ..update("web/a@7")
    };
    let applied = t.apply(1, change.clone());
    assert_eq!(told(&applied), "updated | #2 changed web/a@7");
    let event = &applied.events[0];
    let (before, after) = (event.before().unwrap(), event.after().unwrap());
    assert_eq!((before.status(), before.weight()), (Status::Up, 100));
    assert_eq!((after.status(), after.weight()), (Status::Draining, 5));
    assert_eq!(after.spec.metadata().to_map(), metadata);
    assert_eq!(after.spec.endpoints(), before.spec.endpoints());
    t.at(2, change, "updated");
    t.at(3, update("web/a"), "updated");
}

#[test]
fn update_does_not_renew() {
    let mut t = Transcript::default();
    t.apply(0, register("web/a", 7));
    t.apply(14_000, Update { weight: Some(5), ..update("web/a") });
    t.at(15_000, Op::Tick, "done | #3 expired web/a@7");
}

// S0.4
#[test]
fn only_the_run_that_is_registered_may_update() {
    let mut t = Transcript::default();
    let absent = "rejected: instance default/web/a is not registered";
    t.at(0, Update { weight: Some(5), ..update("web/a@7") }, absent);
    t.apply(0, register("web/a", 7));
    let before = t.registry.hash();
    let newer = "rejected: instance default/web/a is held by a newer incarnation, 7";
    t.at(0, Update { weight: Some(5), ..update("web/a@6") }, newer);
    t.at(0, Update { weight: Some(5), ..update("web/a@8") }, absent);
    assert_eq!(t.registry.hash(), before);
}

#[test]
fn override_stands_until_it_is_cleared() {
    let mut t = Transcript::default();
    t.apply(0, register("web/a", 7));
    t.at(0, set_override("web/a", Status::OutOfService), "done | #2 changed web/a@7");
    t.at(0, set_override("web/a", Status::OutOfService), "done");
    assert_eq!(t.instance("web/a").status(), Status::OutOfService);
    assert_eq!(t.instance("web/a").weight(), 100);
    t.at(0, register("web/a", 7), "registered L1 15000ms @7");
    t.at(0, register("web/a", 8), "registered L2 15000ms @8 | #3 web/a@7 taken over by @8");
    t.at(0, Update { status: Some(Status::Up), ..update("web/a") }, "updated");
    assert_eq!(t.instance("web/a").status(), Status::OutOfService);
    t.at(15_000, Op::Tick, "done | #4 expired web/a@8");
    t.at(15_000, register("web/a", 8), "registered L3 15000ms @8 | #5 added web/a@8");
    assert_eq!(t.instance("web/a").status(), Status::OutOfService);
    let clear = || Op::Override { key: key("web/a"), value: None };
    t.at(15_000, clear(), "done | #6 changed web/a@8");
    assert_eq!(t.instance("web/a").status(), Status::Up);
    let none = "rejected: instance default/web/a is not overridden: there is nothing to clear";
    t.at(15_000, clear(), none);
}

/// They outlive their instances, so something else has to bound them.
#[test]
fn overrides_are_bounded_and_those_of_registered_instances_last() {
    let mut t = Transcript::default();
    t.apply(0, register("web/a", 7));
    let value = Override::new(None, Some(0), String::new()).unwrap();
    let set = |registry: &mut Registry, name: &str| {
        let op = Op::Override { key: key(name), value: Some(value.clone()) };
        told(&registry.apply(&Command::new(Clock(0), op)))
    };
    for number in 0..OVERRIDES_AHEAD {
        assert_eq!(set(&mut t.registry, &format!("gone/{number}")), "done");
    }
    let full = set(&mut t.registry, "gone/more");
    assert_eq!(
        full,
        "rejected: default/gone/more cannot be overridden: there are 10000 overrides, which is the limit for one of an \
         instance that is not registered; clear those that are of no use any more"
    );
    assert_eq!(set(&mut t.registry, "gone/7"), "done", "it has one");
    t.at(0, set_override("web/a", Status::OutOfService), "done | #2 changed web/a@7");
    t.at(0, Op::Override { key: key("gone/7"), value: None }, "done");
    t.at(0, Op::Override { key: key("gone/8"), value: None }, "done");
    assert_eq!(set(&mut t.registry, "gone/more"), "done");
    for number in 0..=OVERRIDES - OVERRIDES_AHEAD {
        let register = register(&format!("many/{number}"), 7);
        t.registry.apply(&Command::new(Clock(0), register.into()));
        let told = set(&mut t.registry, &format!("many/{number}"));
        let room = number < OVERRIDES - OVERRIDES_AHEAD;
        assert_eq!(told.starts_with("done | "), room, "{told}");
    }
}

#[test]
fn override_may_come_before_its_instance() {
    let mut t = Transcript::default();
    t.at(0, set_override("web/a", Status::Starting), "done");
    assert_eq!(t.registry.counts(), Counts { overrides: 1, ..Counts::default() });
    t.at(0, register("web/a", 7), "registered L1 15000ms @7 | #1 added web/a@7");
    assert_eq!(t.instance("web/a").status(), Status::Starting);
}

#[test]
fn override_of_the_weight_leaves_the_status() {
    let mut t = Transcript::default();
    t.apply(0, register("web/a", 7));
    let value = Override::new(None, Some(0), String::new()).unwrap();
    t.at(0, Op::Override { key: key("web/a"), value: Some(value) }, "done | #2 changed web/a@7");
    assert_eq!((t.instance("web/a").status(), t.instance("web/a").weight()), (Status::Up, 0));
}

/// What a registry grows by is known before.
#[test]
fn only_what_is_new_makes_it_larger() {
    let mut t = Transcript::default();
    let long = |bytes| Update {
        metadata: Some(BTreeMap::from([("note".to_owned(), "x".repeat(bytes))])),
        ..update("web/a")
    };
    for (op, is_larger, bytes) in [
        (Op::from(long(1_000)), false, 0..=0),
        (register("web/a", 7).into(), true, 800..=1_000),
        (register("web/a", 7).into(), false, 800..=1_000),
        (register("web/a", 8).into(), false, 800..=1_000),
        (long(1_000).into(), true, 1_800..=2_000),
        (long(1_000).into(), false, 1_800..=2_000),
        (long(10).into(), false, 800..=1_000),
        (long(11).into(), true, 800..=1_000),
        (Update { weight: Some(5), ..update("web/a") }.into(), false, 800..=1_000),
        (deregister("web/a").into(), false, 0..=0),
    ] {
        let growth = t.registry.growth(&op);
        let before = t.registry.bytes();
        t.apply(0, op.clone());
        let after = t.registry.bytes();
        assert_eq!(growth, after.saturating_sub(before), "{op:?}");
        assert_eq!(growth > 0, is_larger, "{op:?}");
        assert!(bytes.contains(&after), "{after} after {op:?}");
    }
}

/// A registration of one instance that requires so many services.
fn requiring(name: &str, services: usize) -> Op {
    let requires = (0..services).map(|at| format!("{at}-{}", "x".repeat(200)));
    let requires = requires.map(|name| ServiceName::new("requires", &name).unwrap()).collect();
    let spec = spec(SpecParts { requires, ..parts() });
    Register { instances: vec![(key(name), spec)], ..register("", 7) }.into()
}

/// What an index, or a table of services, takes for it.
#[test]
fn what_an_instance_requires_counts_and_so_does_a_service_of_its_own() {
    let mut t = Transcript::default();
    t.apply(0, requiring("web/a", 0));
    let before = t.registry.bytes();
    for (op, least) in [
        (requiring("web/b", 0), 400),
        (requiring("web/c", 64), 400 + 64 * (112 + 2 * 202)),
        (requiring(&format!("{}/a", "y".repeat(250)), 0), 400 + 400 + 2 * 250),
    ] {
        let (growth, before) = (t.registry.growth(&op), t.registry.bytes());
        t.apply(0, op);
        let more = t.registry.bytes() - before;
        assert_eq!(growth, more);
        assert!((least..least + 1_000).contains(&more), "{more}, and not {least}");
    }
    t.apply(0, deregister("web/b"));
    t.apply(0, deregister("web/c"));
    t.apply(0, deregister(&format!("{}/a", "y".repeat(250))));
    assert_eq!(t.registry.bytes(), before);
}

/// One that comes back is no way in for others beside it.
#[test]
fn a_batch_comes_back_if_all_of_it_was_deregistered() {
    let mut t = Transcript::default();
    t.apply(0, register("web/a", 7));
    t.apply(0, deregister("web/a"));
    for (names, expected) in
        [(&["web/a"][..], true), (&["web/new"], false), (&["web/a", "web/new"], false)]
    {
        let instances = names.iter().map(|name| (key(name), spec(parts()))).collect();
        let op = Op::from(Register { instances, ..register("", 8) });
        assert_eq!(t.registry.comes_back(&op), expected, "{names:?}");
    }
}

/// A batch that is smaller on the whole needs no room.
#[test]
fn what_shrinks_makes_room_for_what_grows_beside_it() {
    let noted = |name: &str, bytes| {
        let metadata = BTreeMap::from([("note".to_owned(), "x".repeat(bytes))]);
        (key(name), spec(SpecParts { metadata, ..parts() }))
    };
    let both = |a, b| {
        let instances = vec![noted("web/a", a), noted("web/b", b)];
        Op::from(Register { instances, ..register("", 7) })
    };
    let mut t = Transcript::default();
    t.apply(0, both(1_000, 10));
    for (op, is_larger) in
        [(both(10, 900), false), (both(1_000, 900), true), (both(10, 1_001), false)]
    {
        let (growth, before) = (t.registry.growth(&op), t.registry.bytes());
        t.apply(0, op);
        assert_eq!(growth, t.registry.bytes().saturating_sub(before));
        assert_eq!(growth > 0, is_larger);
    }
}
