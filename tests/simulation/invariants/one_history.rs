//! There is one history: revisions are dense, every node reports the same change for each of them,
//! and nodes with the same log position have the same state hash (compared while the run goes on,
//! see `reader.rs`).

use crate::simulation::history::{Hash, History, Notes};
use crate::simulation::plan::HEALED;

pub(crate) fn check(notes: &Notes, history: &History) -> Vec<String> {
    let mut wrong = Vec::new();
    let last = notes.told.last_key_value().map_or(0, |(revision, _)| *revision);
    if history.last() != last {
        wrong.push(format!("no watcher got revision {}, the last is {last}", history.last() + 1));
    }
    for (revision, told) in &notes.told {
        let (first, _, change) = &told[0];
        for (name, _, other) in &told[1..] {
            if other != change {
                wrong.push(format!("revision {revision}: {first} {change:?}, {name} {other:?}"));
            }
        }
    }
    for (revision, _, told) in history.iter() {
        let modified = told.held.modified;
        let gone = told.kind == quorate_proto::v1::ChangeKind::Removed;
        if !gone && modified != revision {
            wrong.push(format!("revision {revision} made an instance of revision {modified}"));
        }
    }
    // At index 0, no node has a hash yet.
    let is_compared = |(index, hash): (&u64, &Hash)| {
        *index > 0 && hash.seen >= HEALED && hash.by.is_superset(&notes.members)
    };
    if !notes.hashes.iter().any(is_compared) {
        let line = "the hashes of all members were not compared after the healing";
        wrong.push(format!("{line}: {:?}", notes.hashes));
    }
    if history.iter().all(|(_, at, _)| at < HEALED) {
        wrong.push("no change was reported after the healing".to_owned());
    }
    wrong
}
