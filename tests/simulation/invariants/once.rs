//! A write is done once, however often it is handed in: each update has a weight of its own, so an
//! instance gets each weight at most once, and each override has a reason of its own. (A
//! deregistration that is done twice removes what was registered in between: `acknowledged.rs`.)

use std::collections::{BTreeMap, BTreeSet};

use quorate_proto::v1::ChangeKind;

use crate::simulation::history::History;

pub(crate) fn check(history: &History) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut last: BTreeMap<&str, u32> = BTreeMap::new();
    let mut given = BTreeSet::new();
    let mut reasons: BTreeMap<&str, Option<&str>> = BTreeMap::new();
    let mut left = BTreeSet::new();
    for (revision, at, told) in history.iter() {
        let weight = told.held.weight;
        let before = last.insert(&told.key, weight);
        let updated = told.kind == ChangeKind::Modified && before != Some(weight) && weight > 1_000;
        if updated && !given.insert((&told.key, weight)) {
            wrong.push(format!("{revision} at {at} ms: done a second time: {told:?}"));
        }
        // An override stands while its instance comes and goes, until another one or none does.
        let reason = told.held.overridden.as_deref();
        let before = reasons.insert(&told.key, reason).flatten();
        if before != reason {
            left.extend(before);
            if reason.is_some_and(|reason| left.contains(reason)) {
                wrong.push(format!("{revision} at {at} ms: overridden a second time: {told:?}"));
            }
        }
    }
    wrong
}
