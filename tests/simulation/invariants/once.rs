//! A write is done once, however often it is handed in: each update has a weight of its own, so an
//! instance gets each weight at most once. (A deregistration that is done twice removes what was
//! registered in between: `acknowledged.rs`.)

use std::collections::{BTreeMap, BTreeSet};

use quorate_proto::v1::ChangeKind;

use crate::simulation::history::History;

pub(crate) fn check(history: &History) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut last: BTreeMap<&str, u32> = BTreeMap::new();
    let mut given = BTreeSet::new();
    for (revision, at, told) in history.iter() {
        let weight = told.held.weight;
        let before = last.insert(&told.key, weight);
        let updated = told.kind == ChangeKind::Modified && before != Some(weight) && weight > 1_000;
        if updated && !given.insert((&told.key, weight)) {
            wrong.push(format!("{revision} at {at} ms: done a second time: {told:?}"));
        }
    }
    wrong
}
