//! A read shows the state of one moment: exactly what the history says of its revision. A
//! linearizable one sees every write that was acknowledged, and every state that was read
//! linearizably, before it began; a local one has at least the revision that it was to wait for.
//! Writes take effect in the order in which they are acknowledged.

use std::collections::BTreeMap;

use crate::simulation::history::{Answer, History, Notes, Read};
use crate::simulation::plan::Ms;

pub(crate) fn check(notes: &Notes, history: &History) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut by_revision: BTreeMap<u64, Vec<&Read>> = BTreeMap::new();
    for read in &notes.reads {
        by_revision.entry(read.revision).or_default().push(read);
        if read.revision < read.min_revision {
            let Read { node, min_revision, revision, .. } = read;
            wrong.push(format!("n{node} was to be at {min_revision} and answered at {revision}"));
        }
    }
    history.replay(|revision, map| {
        for read in by_revision.get(&revision).into_iter().flatten() {
            if read.map != *map {
                wrong.push(format!("{read:?} but the history says {map:?}"));
            }
        }
    });
    wrong.extend(order(notes));
    wrong.extend(ages(notes));
    wrong
}

/// A read has everything that was acknowledged before the age that it names.
fn ages(notes: &Notes) -> Vec<String> {
    let mut done: Vec<(Ms, u64)> = Vec::new();
    for call in &notes.calls {
        if let Answer::Done { revision, .. } = call.answer {
            done.push((call.to, revision));
        }
    }
    let too_old = notes.reads.iter().filter_map(|read| {
        let Read { node, from, revision, age_ms, .. } = read;
        // It was made when it was asked for, or later. A millisecond more: moments are cut to whole
        // ones.
        let current = from.checked_sub(age_ms.saturating_add(1))?;
        let before = done.iter().filter(|(at, _)| *at < current);
        let (at, missing) = before.max_by_key(|(_, revision)| revision)?;
        (missing > revision).then(|| {
            format!(
                "n{node} at {from} ms answered {revision}, {age_ms} ms old, but {missing} was \
                 acknowledged at {at} ms"
            )
        })
    });
    too_old.collect()
}

/// Nothing that begins after something ended is before it.
fn order(notes: &Notes) -> Vec<String> {
    let mut done: Vec<(Ms, Ms, u64, String)> = Vec::new();
    for call in &notes.calls {
        if let Answer::Done { revision, .. } = call.answer {
            done.push((call.from, call.to, revision, format!("{} {:?}", call.key, call.ask)));
        }
    }
    for read in notes.reads.iter().filter(|read| read.linearizable) {
        done.push((read.from, read.to, read.revision, format!("read from n{}", read.node)));
    }
    let mut ended: Vec<usize> = (0..done.len()).collect();
    ended.sort_by_key(|at| done[*at].1);
    done.iter()
        .filter_map(|(from, _, revision, what)| {
            // The highest revision of an answer that came before this began.
            let before = ended.iter().take_while(|at| done[**at].1 < *from);
            let highest = before.max_by_key(|at| done[**at].2).map(|at| &done[*at])?;
            (highest.2 > *revision).then(|| {
                format!("{what} from {from} ms at revision {revision}, but before: {highest:?}")
            })
        })
        .collect()
}
