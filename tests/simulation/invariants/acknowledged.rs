//! What was acknowledged stands in the history at the revision of its answer. (What ends it is
//! looked at in `explained.rs` and `live_leases.rs`.)

use std::collections::BTreeMap;

use crate::simulation::history::{Answer, Ask, Call, Fate, History, Map, Notes};
use crate::simulation::liveness::last_maps;
use crate::simulation::plan::END;

pub(crate) fn check(notes: &Notes, history: &History) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut by_revision: BTreeMap<u64, Vec<&Call>> = BTreeMap::new();
    for call in &notes.calls {
        if let Answer::Done { revision, .. } = call.answer {
            by_revision.entry(revision).or_default().push(call);
        }
    }
    history.replay(|revision, map| {
        for call in by_revision.remove(&revision).unwrap_or_default() {
            if !stands(call, map) {
                wrong.push(format!("{call:?} but at {revision}: {:?}", map.get(&call.key)));
            }
        }
    });
    let seen_at_the_end = |call: &&Call| call.to < END;
    for call in by_revision.into_values().flatten().filter(seen_at_the_end) {
        wrong.push(format!("{call:?}: no watcher got that revision"));
    }
    wrong.extend(wrong_ends(notes));
    wrong
}

/// Whether the map at the revision of a call shows what the call did.
fn stands(call: &Call, map: &Map) -> bool {
    let held = map.get(&call.key);
    match (&call.ask, &call.answer) {
        (Ask::Register { incarnation, .. }, Answer::Done { lease, .. }) => {
            held.is_some_and(|held| (held.incarnation, held.lease) == (*incarnation, *lease))
        }
        (Ask::Register { .. }, _) => true,
        (Ask::Update { incarnation, weight }, _) => {
            held.is_some_and(|held| (held.incarnation, held.weight) == (*incarnation, *weight))
        }
        (Ask::Deregister { .. }, _) => held.is_none(),
        (Ask::Renew { lease }, _) => held.is_some_and(|held| held.lease == *lease),
        // Where nothing is registered, it waits for that.
        (Ask::Override { reason }, _) => held.is_none_or(|held| held.overridden == *reason),
    }
}

/// At the end, every node has what is alive and nothing that was deregistered.
fn wrong_ends(notes: &Notes) -> Vec<String> {
    let mut wrong = Vec::new();
    for (node, map) in last_maps(notes) {
        for (key, fates) in &notes.fates {
            let held = map.get(key).map(|held| (held.incarnation, held.lease));
            let fits = match fates.last() {
                Some(Fate::Alive { incarnation, lease }) => held == Some((*incarnation, *lease)),
                Some(Fate::Gone { incarnation }) => held.is_none_or(|held| held.0 > *incarnation),
                _ => true,
            };
            if !fits {
                wrong
                    .push(format!("at the end, n{node} has {key} as {held:?}: {:?}", fates.last()));
            }
        }
    }
    wrong
}
