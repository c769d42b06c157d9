//! The nodes that were taken out of the cluster. One of them may still hold its certificate, and a
//! new node is let in by its own: so it has to be known which are not new.
//!
//! Bounded: of more than [`REMOVED_MAX`], the two lowest become one range. What is forgotten only
//! ever makes more ids count as taken out, never fewer.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::hash::Kind;
use crate::registry::Registry;
use crate::types::Revision;

/// More of them are kept as ranges.
pub(crate) const REMOVED_MAX: usize = 1_024;

/// What is known of a node that counts as taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It was, at this revision.
    At(Revision),
    /// It was, or never was a member: it lies between others that were.
    Perhaps,
}

/// Nodes that were taken out: one, or all from the first to the last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RemovedNodes {
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// The registry's revision when the first of them went.
    pub(crate) at: Revision,
}

impl Registry {
    /// The members of the cluster are others from here on.
    pub fn members_changed(&mut self, before: &BTreeSet<u64>, after: &BTreeSet<u64>) {
        for id in after.difference(before) {
            if self.removed.get(id).is_some_and(|removed| removed.first == *id) {
                self.take_removed(*id);
            }
        }
        for id in before.difference(after) {
            if self.removal_of(*id).is_none() {
                self.insert_removed(RemovedNodes { first: *id, last: *id, at: self.revision });
            }
        }
        while self.removed.len() > REMOVED_MAX {
            let mut lowest = self.removed.keys().copied();
            let (Some(one), Some(two)) = (lowest.next(), lowest.next()) else { return };
            let both = (self.take_removed(one), self.take_removed(two));
            let (Some(one), Some(two)) = both else { return };
            self.insert_removed(RemovedNodes { last: two.last, ..one });
        }
    }

    /// Whether a node that is no member now was taken out; `None`: it never was a member.
    pub fn removal_of(&self, id: u64) -> Option<Removal> {
        let (_, removed) = self.removed.range(id..).next()?;
        let RemovedNodes { first, last, at } = *removed;
        (first <= id).then_some(if first == last { Removal::At(at) } else { Removal::Perhaps })
    }

    pub(crate) fn insert_removed(&mut self, removed: RemovedNodes) {
        self.hash.add(Kind::RemovedNodes, &removed);
        self.removed.insert(removed.last, removed);
    }

    fn take_removed(&mut self, last: u64) -> Option<RemovedNodes> {
        let removed = self.removed.remove(&last)?;
        self.hash.remove(Kind::RemovedNodes, &removed);
        Some(removed)
    }
}
