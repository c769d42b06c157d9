//! What level the cluster has.

use super::*;

fn set_level(number: u32, held: bool) -> Op {
    Op::SetLevel(Level { number, held })
}

#[test]
fn a_level_only_grows_and_is_in_the_snapshot_and_the_hash() {
    let mut t = Transcript::default();
    let new = t.registry.hash();
    assert_eq!(t.registry.level(), Level { number: 1, held: false });
    t.at(0, set_level(1, true), "done");
    assert_eq!(t.registry.level(), Level { number: 1, held: true });
    let held = t.registry.hash();
    assert_ne!(held, new);
    t.at(0, set_level(3, false), "done");
    t.at(0, set_level(2, false), "done");
    assert_eq!(t.registry.level(), Level { number: 3, held: false });
    assert_ne!(t.registry.hash(), held);

    let restored = read_snapshot(&mut &golden::snapshot_bytes(&t.registry)[..]).unwrap();
    assert_eq!((restored.level(), restored.hash()), (t.registry.level(), t.registry.hash()));
    let cluster_id = NonZeroU64::new(9).unwrap();
    let anew =
        t.registry.founded_anew(Founding { cluster_id, node_id: 1, wall_ms: 0, left: Vec::new() });
    assert_eq!(anew.level(), t.registry.level(), "its services may hold what needs that level");
}

#[test]
fn a_node_works_at_a_range_of_levels() {
    let levels = Levels { min: 2, max: 3 };
    let all: Vec<u32> = (0..6).filter(|level| levels.contains(*level)).collect();
    assert_eq!(all, [2, 3]);
    assert!(Levels::OWN.contains(Level::default().number), "a new cluster has a level of ours");
    assert!(Op::Tick.level() <= Level::default().number);
}
