//! A cluster that is founded from another one's state.

use super::*;
use crate::registry::Removal;

const AHEAD: u64 = 1_000_000_000_000;

fn cluster(id: u64) -> NonZeroU64 {
    NonZeroU64::new(id).unwrap()
}

/// Of node 1. The old nodes that are left have the ids 1 to `left`.
fn founding(id: u64, left: u64) -> Founding {
    let node = |id| OldNode { id, address: format!("node-{id}:7101") };
    let left = (1..=left).map(node).collect();
    Founding { cluster_id: cluster(id), node_id: 1, wall_ms: id * 1_000, left }
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
    let request = Request {
        origin: 1,
        number: 2,
        done_below: 1,
        since: Clock(1_000),
        digest: 5,
        share: Share(300),
    };
    let op = register("once/a", 3).into();
    t.registry.apply(&Command { clock: Clock(1_006), request: Some(request), op });
    t.apply(14_000, renew(&[42, 44]));
    t.apply(20_000, Op::Tick);
    t.registry
}

#[test]
fn a_new_cluster_has_the_same_instances_and_each_lease_its_whole_time() {
    let old = old();
    let anew = old.founded_anew(founding(9, 0));
    check_invariants(&anew);
    assert_eq!((anew.cluster_id(), anew.clock()), (Some(cluster(9)), Clock(20_000)));
    let [before] = anew.predecessors() else { panic!("{:?}", anew.predecessors()) };
    assert_eq!(before.cluster_id, cluster(5));
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

/// A new cluster of the same name takes the certificates that the old one took.
#[test]
fn a_node_that_was_taken_out_before_is_known_until_it_is_taken_in_again() {
    let mut old = old();
    let members = |all: &[u64]| all.iter().copied().collect();
    old.members_changed(&members(&[1, 2, 9]), &members(&[1, 2]));
    let at = old.revision();
    let mut anew = old.founded_anew(founding(9, 2));
    check_invariants(&anew);
    let of = |registry: &Registry| [1, 2, 9].map(|id| registry.removal_of(id));
    let taken_out = [None, None, Some(Removal::At(at))];
    assert_eq!(of(&anew), taken_out, "those that are left may come back by themselves");
    let read = read_snapshot(&mut &golden::snapshot_bytes(&anew)[..]).unwrap();
    assert_eq!((of(&read), read.hash()), (taken_out, anew.hash()));
    anew.members_changed(&members(&[1]), &members(&[1, 9]));
    assert_eq!(of(&anew), [None; 3]);
    let its_own = old.founded_anew(Founding { node_id: 9, ..founding(9, 0) });
    check_invariants(&its_own);
    assert_eq!(of(&its_own), [None; 3], "the new cluster begins with it");
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
    let anew = old.founded_anew(founding(9, 0));
    assert!(anew.revision() > revision && anew.last_lease() > last_lease);
    assert!(anew.forgot_after(revision), "a service of then is no longer known");
    for name in ["web", "api", "once", "gone"] {
        let service = anew.service(&service_key(name)).unwrap();
        assert!(service.revision > revision, "{name} counts as changed");
    }
    let mut t = Transcript { registry: anew };
    let renewed = t.apply(20_001, renew(&[last_lease]));
    assert_eq!(told(&renewed), format!("renewed but L{last_lease}"));
    t.apply(20_001, register("new/a", 1));
    assert!(t.instance("new/a").lease.0 > last_lease);
}

#[test]
fn a_write_that_was_done_before_is_still_answered() {
    let mut anew = old().founded_anew(founding(9, 0));
    let request = Request {
        origin: 1,
        number: 2,
        done_below: 1,
        since: Clock(1_000),
        digest: 5,
        share: Share(300),
    };
    let op = register("once/a", 3).into();
    let again = anew.apply(&Command { clock: Clock(20_001), request: Some(request), op });
    assert_eq!(told(&again), "registered L44 15000ms @3");
    assert!(again.revision.0 < AHEAD, "with the revision of then");
}

#[test]
fn it_is_written_and_read_with_the_clusters_before_it() {
    let mut registry = old();
    for id in 9..40 {
        registry = registry.founded_anew(founding(id, 3));
        check_invariants(&registry);
        let mut bytes = Vec::new();
        write_snapshot(&registry, &mut bytes).unwrap();
        let read = read_snapshot(&mut &bytes[..]).unwrap();
        assert_eq!(read.predecessors(), registry.predecessors());
        assert_eq!(read.hash(), registry.hash());
    }
    let known: Vec<u64> = registry.predecessors().iter().map(|it| it.cluster_id.get()).collect();
    assert_eq!(known, (23..39).collect::<Vec<_>>(), "the latest");
}

#[test]
fn of_the_latest_clusters_before_it_the_nodes_are_known_and_not_without_end() {
    let mut registry = old();
    for id in 9..20 {
        let mut founding = founding(id, 40);
        founding.left[1].address = "h".repeat(300);
        registry = registry.founded_anew(founding);
    }
    let known: Vec<(u64, usize)> =
        registry.predecessors().iter().map(|it| (it.wall_ms / 1_000, it.left.len())).collect();
    let expected: Vec<_> = (9..20).map(|id| (id, if id < 16 { 0 } else { 16 })).collect();
    assert_eq!(known, expected);
    let nodes = &registry.predecessors().last().unwrap().left;
    assert_eq!((nodes[0].id, nodes[0].address.as_str()), (1, "node-1:7101"));
    assert_eq!(nodes[1].id, 3, "what is no address is left out");
    let mut bytes = Vec::new();
    write_snapshot(&registry, &mut bytes).unwrap();
    let read = read_snapshot(&mut &bytes[..]).unwrap();
    assert_eq!((read.predecessors(), read.hash()), (registry.predecessors(), registry.hash()));
    let last = registry.predecessors().last().unwrap();
    let last = Predecessor { left: last.left[..1].to_vec(), ..last.clone() };
    let written = postcard::to_stdvec(&last).unwrap();
    assert_eq!(written, b"\x12\xb8\x94\x01\x01\x01\x0bnode-1:7101\0\0");
    let other = old().founded_anew(founding(9, 2)).hash();
    assert_ne!(other, old().founded_anew(founding(9, 1)).hash(), "they are part of the state");
}
