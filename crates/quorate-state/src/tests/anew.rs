//! A cluster that is founded from another one's state.

use super::*;

const AHEAD: u64 = 1_000_000_000_000;

fn cluster(id: u64) -> NonZeroU64 {
    NonZeroU64::new(id).unwrap()
}

/// One of everything, at 20,000 ms.
fn old() -> Registry {
    let mut t = Transcript::default();
    t.apply(0, found(5, 40));
    t.apply(1_000, Register { ttl: ttl(60_000), ..register("web/a web/b", 7) });
    t.apply(1_001, with_checks("api/a", 7, &[tcp_check()]));
    t.apply(1_002, deregister("web/b"));
    t.apply(1_003, set_override("web/a", Status::Draining));
    t.apply(1_004, register("gone/a", 1));
    t.apply(1_005, deregister("gone/a"));
    let request = Request { origin: 1, number: 2, done_below: 1, since: Clock(1_000), digest: 5 };
    let op = register("once/a", 3).into();
    t.registry.apply(&Command { clock: Clock(1_006), request: Some(request), op });
    t.apply(14_000, renew(&[42, 44]));
    t.apply(20_000, Op::Tick);
    t.registry
}

#[test]
fn a_new_cluster_has_the_same_instances_and_each_lease_its_whole_time() {
    let old = old();
    let anew = old.founded_anew(cluster(9));
    check_invariants(&anew);
    assert_eq!((anew.cluster_id(), anew.clock()), (Some(cluster(9)), Clock(20_000)));
    assert_eq!(anew.predecessors(), [cluster(5)]);
    assert_eq!(anew.counts(), old.counts());
    assert_eq!(anew.counts().leases, 3);
    for name in ["web/a", "api/a", "once/a"] {
        assert_eq!(anew.instance(&key(name)), old.instance(&key(name)), "{name}");
        let lease = anew.lease(anew.instance(&key(name)).unwrap().lease).unwrap();
        let until = lease.deadline.0 - 20_000;
        assert_eq!(until, if name == "web/a" { 60_000 } else { 15_000 }, "{name}");
    }
    let mut t = Transcript { registry: anew };
    let ended = "rejected: incarnation 7 of instance default/web/b was deregistered; register with a higher one";
    t.at(20_001, register("web/b", 7), ended);
    t.at(34_999, Op::Tick, "done");
    let events = [1, 2].map(|n| AHEAD + old.revision().0 + n);
    t.at(
        35_000,
        Op::Tick,
        &format!("done | #{} expired api/a@7 | #{} expired once/a@3", events[0], events[1]),
    );
}

/// Whoever holds a revision or a lease that the old cluster gave out later is not told that it is
/// one of this cluster's.
#[test]
fn nothing_that_the_old_cluster_said_later_means_something_else() {
    let old = old();
    let mut later = Transcript { registry: old.clone() };
    for run in 0..9 {
        later.apply(20_000, register(&format!("late/{run}"), 1));
    }
    let (revision, last_lease) = (later.registry.revision(), later.registry.last_lease());
    let anew = old.founded_anew(cluster(9));
    assert!(anew.revision() > revision && anew.last_lease() > last_lease);
    assert!(anew.forgot_after(revision), "a service of then is no longer known");
    for name in ["web", "api", "once", "gone"] {
        let service = anew.service(&service_key(name)).unwrap();
        assert!(service.revision > revision, "{name} counts as changed");
    }
    let mut t = Transcript { registry: anew };
    let renewed = t.apply(20_001, renew(&[last_lease.0]));
    assert_eq!(told(&renewed), format!("renewed but L{}", last_lease.0));
    t.apply(20_001, register("new/a", 1));
    assert!(t.instance("new/a").lease > last_lease);
}

#[test]
fn a_write_that_was_done_before_is_still_answered() {
    let mut anew = old().founded_anew(cluster(9));
    let request = Request { origin: 1, number: 2, done_below: 1, since: Clock(1_000), digest: 5 };
    let op = register("once/a", 3).into();
    let again = anew.apply(&Command { clock: Clock(20_001), request: Some(request), op });
    assert_eq!(told(&again), "registered L44 15000ms @3");
    assert!(again.revision.0 < AHEAD, "with the revision of then");
}

#[test]
fn it_is_written_and_read_with_the_clusters_before_it() {
    let mut registry = old();
    for id in 9..40 {
        registry = registry.founded_anew(cluster(id));
        check_invariants(&registry);
        let mut bytes = Vec::new();
        write_snapshot(&registry, &mut bytes).unwrap();
        let read = read_snapshot(&mut &bytes[..]).unwrap();
        assert_eq!(read.predecessors(), registry.predecessors());
        assert_eq!(read.hash(), registry.hash());
    }
    let known: Vec<u64> = registry.predecessors().iter().map(|id| id.get()).collect();
    assert_eq!(known, (23..39).collect::<Vec<_>>(), "the latest");
}
