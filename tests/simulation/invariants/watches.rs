//! A watcher that follows by cursor, from one node or from many, has what the history says of its
//! position (that nothing is left out or repeated on the way is checked as it comes, in
//! `watcher.rs`).

use std::collections::BTreeMap;

use crate::simulation::history::{History, Map, Notes};

pub(crate) fn check(notes: &Notes, history: &History) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut by_position: BTreeMap<u64, Vec<(&String, &Map)>> = BTreeMap::new();
    for (name, (position, map)) in &notes.watchers {
        by_position.entry(*position).or_default().push((name, map));
    }
    history.replay(|revision, expected| {
        for (name, map) in by_position.remove(&revision).unwrap_or_default() {
            if map != expected {
                wrong.push(format!("{name} at {revision} has {map:?}, the history {expected:?}"));
            }
        }
    });
    for (position, watchers) in by_position {
        let names: Vec<_> = watchers.iter().map(|(name, _)| name).collect();
        wrong.push(format!("{names:?} at {position}, where no watcher got anything"));
    }
    wrong
}
