//! Which nodes were taken out of the cluster.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::registry::Removal;
use crate::registry::nodes::REMOVED_MAX;

fn ids(ids: impl IntoIterator<Item = u64>) -> BTreeSet<u64> {
    ids.into_iter().collect()
}

#[test]
fn a_node_that_was_taken_out_is_remembered_until_it_is_taken_in_again() {
    let mut t = Transcript::default();
    t.registry.members_changed(&ids([]), &ids([1, 2, 3]));
    t.apply(1_000, register("web/a", 7));
    t.registry.members_changed(&ids([1, 2, 3]), &ids([1, 2]));
    check_invariants(&t.registry);
    let out =
        |registry: &Registry| (0..9).filter(|id| registry.removal_of(*id).is_some()).collect();
    let all: Vec<u64> = out(&t.registry);
    assert_eq!((all, t.registry.removal_of(3)), (vec![3], Some(Removal::At(Revision(1)))));
    let mut restored = read_snapshot(&mut &golden::snapshot_bytes(&t.registry)[..]).unwrap();
    assert_eq!(restored.removal_of(3), Some(Removal::At(Revision(1))));
    assert_eq!(restored.hash(), t.registry.hash());
    restored.members_changed(&ids([1, 2]), &ids([1, 2, 3]));
    let all: Vec<u64> = out(&restored);
    assert_eq!(all, Vec::<u64>::new());
    check_invariants(&restored);
}

#[test]
fn as_many_as_there_ever_were_take_a_bounded_place_and_none_is_forgotten() {
    let mut registry = Registry::new();
    let all = 2 * REMOVED_MAX as u64;
    let of = |at: u64| 10 + 3 * at;
    for at in 0..all {
        registry.members_changed(&ids([1, of(at)]), &ids([1]));
    }
    assert_eq!(registry.removed.len(), REMOVED_MAX);
    check_invariants(&registry);
    assert!((0..all).all(|at| registry.removal_of(of(at)).is_some()));
    // One that never was a member cannot be told from those that it lies between.
    for id in [of(0), of(0) + 1] {
        assert_eq!(registry.removal_of(id), Some(Removal::Perhaps), "{id}");
    }
    assert_eq!(registry.removal_of(of(all - 1)), Some(Removal::At(Revision(0))));
    assert!(registry.removal_of(9).is_none() && registry.removal_of(of(all)).is_none());
    let between_the_last = registry.removal_of(of(all - 1) - 1);
    assert_eq!(between_the_last, None, "only the lowest are a range");
}

proptest! {
    /// With few ids, so that they come and go again and again.
    #[test]
    fn a_node_is_out_if_it_was_in(changes in prop::collection::vec(prop::collection::btree_set(1..9_u64, 1..5), 0..30)) {
        let mut registry = Registry::new();
        let (mut before, mut known) = (ids([]), ids([]));
        for after in changes {
            registry.members_changed(&before, &after);
            known.extend(&before);
            before = after;
            for id in (0..10).filter(|id| !before.contains(id)) {
                prop_assert_eq!(registry.removal_of(id).is_some(), known.contains(&id));
            }
            check_invariants(&registry);
        }
    }
}
