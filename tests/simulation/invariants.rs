//! What must hold of every run, one file each. Each looks at the notes of a whole run and says what
//! is wrong.

mod acknowledged;
mod dead_instances;
mod explained;
mod false_refusals;
mod incarnations;
mod linearizable;
mod live_leases;
mod members;
mod once;
mod one_history;
mod refusals;
mod watches;

use super::history::{History, Notes};
use super::liveness;
use super::membership::Quorums;
use super::plan::Plan;

/// Everything that is wrong with a run.
pub(crate) fn check(plan: &Plan, notes: &Notes) -> Vec<String> {
    let history = History::new(notes);
    let quorums = Quorums::new(plan, &notes.changes);
    let mut wrong = notes.violations.clone();
    for (name, found) in [
        ("once", once::check(&history)),
        ("one_history", one_history::check(notes, &history)),
        ("acknowledged", acknowledged::check(notes, &history)),
        ("refusals", refusals::check(notes)),
        ("explained", explained::check(notes, &history)),
        ("false_refusals", false_refusals::check(notes, &history)),
        ("incarnations", incarnations::check(notes, &history)),
        ("live_leases", live_leases::check(&quorums, notes, &history)),
        ("dead_instances", dead_instances::check(&quorums, notes, &history)),
        ("linearizable", linearizable::check(notes, &history)),
        ("members", members::check(notes)),
        ("watches", watches::check(notes, &history)),
        ("liveness", liveness::check(notes)),
    ] {
        wrong.extend(found.into_iter().map(|line| format!("[{name}] {line}")));
    }
    wrong
}
