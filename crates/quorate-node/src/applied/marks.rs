//! Hashes of the state at log indexes at which every node keeps them, so that nodes at different
//! positions can be compared at one that both passed. Knows no registry.

use std::collections::VecDeque;

/// The hash of the state is kept at every multiple of this log index.
const HASH_EVERY: u64 = 64;

/// As many are kept, 16 bytes each: a follower may be 65,536 entries behind whoever compares it
/// with itself.
const KEPT_MAX: usize = 1_024;

/// The latest hashes and where they were taken, in order; at least one.
#[derive(Debug)]
pub(crate) struct Marks(VecDeque<(u64, u64)>);

impl Marks {
    /// Of a state that is known at this index alone.
    pub(super) fn begin(index: u64, hash: u64) -> Self {
        Self(VecDeque::from([(index, hash)]))
    }

    /// The entry at this index has been applied; `hash` is asked for where it is to be kept.
    pub(super) fn passed(&mut self, index: u64, hash: impl FnOnce() -> u64) {
        if !index.is_multiple_of(HASH_EVERY) {
            return;
        }
        if self.0.len() == KEPT_MAX {
            self.0.pop_front();
        }
        self.0.push_back((index, hash()));
    }

    /// The log index of the last one, and the hash there.
    pub(crate) fn last(&self) -> (u64, u64) {
        *self.0.back().expect("invariant: it begins with one, and keeps the last")
    }

    /// The hash at this index; `None`: it was not kept, or is gone.
    pub(crate) fn at(&self, index: u64) -> Option<u64> {
        let found = self.0.binary_search_by_key(&index, |(index, _)| *index).ok()?;
        self.0.get(found).map(|(_, hash)| *hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_kept_at_indexes_that_all_nodes_have() {
        let mut marks = Marks::begin(7, 70);
        assert_eq!((marks.last(), marks.at(7), marks.at(0)), ((7, 70), Some(70), None));
        let end = HASH_EVERY * (KEPT_MAX as u64 + 9);
        for index in 8..=end {
            marks.passed(index, || index + 1);
        }
        assert_eq!(marks.last(), (end, end + 1));
        assert_eq!(marks.0.len(), KEPT_MAX);
        let first = end - HASH_EVERY * (KEPT_MAX as u64 - 1);
        assert_eq!((marks.at(first), marks.at(first - HASH_EVERY)), (Some(first + 1), None));
        assert_eq!((marks.at(7), marks.at(first + 1)), (None, None));
    }
}
