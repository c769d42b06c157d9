//! What a caller was told of a write is what the state machine did: one that was refused was not
//! done, not before and not later, and one that was acknowledged was, at that revision.

use crate::simulation::history::{Answer, Ask, Call, Notes};

pub(crate) fn check(notes: &Notes) -> Vec<String> {
    // Renewals have no name.
    let named = notes.calls.iter().filter(|call| !matches!(call.ask, Ask::Renew { .. }));
    named.filter_map(|call| wrong(call, notes.applied.get(&call.name).copied())).collect()
}

/// `done`: the revision at which the state machine did it, if it did.
fn wrong(call: &Call, done: Option<u64>) -> Option<String> {
    match (&call.answer, done) {
        (Answer::Refused(_), Some(revision)) => {
            Some(format!("{call:?}, and it was done: {revision}"))
        }
        (Answer::Done { revision, .. }, done) if done != Some(*revision) => {
            Some(format!("{call:?}, and it was done: {done:?}"))
        }
        _ => None,
    }
}
