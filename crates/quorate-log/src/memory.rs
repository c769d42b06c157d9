//! What the log knows without reading the disk: its positions, the vote, and the recent entries.
//!
//! Appended entries are here at once, before they are durable, and stay until they were written and
//! the bounds below are exceeded. It does no IO.

use std::collections::VecDeque;
use std::ops::Range;

use openraft::RaftTypeConfig;
use openraft::entry::RaftEntry;
use openraft::type_config::alias::{EntryOf, LogIdOf, VoteOf};

use crate::Identity;

/// Entries kept for replication, in encoded bytes (they take about half as much again, without what
/// they share with the state): what a follower that was away for a sixth of a second of a very busy
/// cluster needs. What is older is read from sled.
const RECENT_BYTES_MAX: usize = 2 * 1024 * 1024;

/// The same bound for small entries, whose cost is the allocation rather than the bytes.
const RECENT_ENTRIES_MAX: usize = 8 * 1024;

/// An entry ready to be kept: it, its encoded size, and the sequence number of the last write it
/// needs.
#[derive(Debug)]
pub(crate) struct Kept<E> {
    pub(crate) entry: E,
    pub(crate) encoded_bytes: usize,
    pub(crate) seq: u64,
}

#[derive(Debug)]
pub(crate) struct Memory<C: RaftTypeConfig> {
    pub(crate) identity: Option<Identity>,
    pub(crate) vote: Option<VoteOf<C>>,
    pub(crate) committed: Option<LogIdOf<C>>,
    /// `committed` as it is to be written, once everything up to this sequence number is.
    committed_unwritten: Option<(u64, Vec<u8>)>,
    pub(crate) purged: Option<LogIdOf<C>>,
    /// The last entry's. `None` if the log has no entry.
    pub(crate) last_log_id: Option<LogIdOf<C>>,
    /// Where a log of which nothing was purged begins. 0 in a Raft cluster; openraft's suite begins
    /// at 1.
    start_index: u64,
    /// Changes whenever entries go away other than by eviction: a reader that also reads the disk
    /// starts over then.
    pub(crate) removals: u64,
    /// The last entries, without gaps up to `last_log_id`.
    recent: VecDeque<Kept<EntryOf<C>>>,
    recent_bytes: usize,
    recent_bytes_max: usize,
}

impl<C: RaftTypeConfig> Memory<C> {
    pub(crate) fn new(
        identity: Option<Identity>,
        vote: Option<VoteOf<C>>,
        committed: Option<LogIdOf<C>>,
        purged: Option<LogIdOf<C>>,
        last_log_id: Option<LogIdOf<C>>,
        start_index: u64,
    ) -> Self {
        Self {
            start_index,
            identity,
            vote,
            committed,
            committed_unwritten: None,
            purged,
            last_log_id,
            removals: 0,
            recent: VecDeque::new(),
            recent_bytes: 0,
            recent_bytes_max: RECENT_BYTES_MAX,
        }
    }

    /// Lower the bound, so that a test reads from the disk.
    pub(crate) fn limit_recent_bytes(&mut self, bytes: usize) {
        self.recent_bytes_max = bytes.min(RECENT_BYTES_MAX);
    }

    /// The index behind the last entry, or behind the last purged one.
    pub(crate) fn next_index(&self) -> u64 {
        let last = self.last_log_id.as_ref().or(self.purged.as_ref());
        last.map_or(self.start_index, |log_id| log_id.index + 1)
    }

    /// The first index that may be read.
    pub(crate) fn first_index(&self) -> u64 {
        self.purged.as_ref().map_or(self.start_index, |log_id| log_id.index + 1)
    }

    /// An empty log that was never purged takes any first entry.
    pub(crate) fn begin_at(&mut self, index: u64) {
        if self.last_log_id.is_none() && self.purged.is_none() {
            self.start_index = index;
        }
    }

    /// From here on entries are in memory; equal to `next_index` if none is.
    pub(crate) fn recent_index(&self) -> u64 {
        self.next_index() - self.recent.len() as u64
    }

    /// Add an entry that follows the last one.
    pub(crate) fn push(&mut self, kept: Kept<EntryOf<C>>) {
        self.last_log_id = Some(kept.entry.log_id());
        self.recent_bytes += kept.encoded_bytes;
        self.recent.push_back(kept);
    }

    /// Forget entries from `from_index` on; `last_log_id` is that of the entry before, if there is
    /// one.
    pub(crate) fn truncate(&mut self, from_index: u64, last_log_id: Option<LogIdOf<C>>) {
        while self.recent.back().is_some_and(|kept| kept.entry.index() >= from_index) {
            if let Some(kept) = self.recent.pop_back() {
                self.recent_bytes -= kept.encoded_bytes;
            }
        }
        self.last_log_id = last_log_id;
        self.removals += 1;
    }

    /// Forget entries up to `log_id`.
    pub(crate) fn purge(&mut self, log_id: LogIdOf<C>) {
        while self.recent.front().is_some_and(|kept| kept.entry.index() <= log_id.index) {
            self.pop_front();
        }
        if self.last_log_id.as_ref().is_some_and(|last| last.index <= log_id.index) {
            self.last_log_id = None;
        }
        self.purged = Some(log_id);
        self.removals += 1;
    }

    /// Sets `committed`; its value is written with the first write after everything up to `seq`.
    pub(crate) fn set_committed(
        &mut self,
        committed: Option<LogIdOf<C>>,
        seq: u64,
        value: Vec<u8>,
    ) {
        self.committed = committed;
        self.committed_unwritten = Some((seq, value));
    }

    /// The value of `committed` that is still to be written and may be, after everything up to
    /// `seq`.
    pub(crate) fn take_committed(&mut self, seq: u64) -> Option<Vec<u8>> {
        let (_, value) = self.committed_unwritten.take_if(|(after_seq, _)| *after_seq <= seq)?;
        Some(value)
    }

    /// Let go of the oldest entries above the bounds, of those that were written.
    pub(crate) fn evict(&mut self, written_seq: u64) {
        while (self.recent_bytes > self.recent_bytes_max || self.recent.len() > RECENT_ENTRIES_MAX)
            && self.recent.front().is_some_and(|kept| kept.seq <= written_seq)
        {
            self.pop_front();
        }
    }

    /// Let go of all entries that were written: they are read from the disk if anyone still needs
    /// them.
    pub(crate) fn evict_all(&mut self, written_seq: u64) {
        while self.recent.front().is_some_and(|kept| kept.seq <= written_seq) {
            self.pop_front();
        }
        self.recent.shrink_to_fit();
    }

    /// Clone entries of `range`, which begins at or behind `recent_index`, until `take` returns
    /// false.
    pub(crate) fn read(&self, range: Range<u64>, mut take: impl FnMut(EntryOf<C>, usize) -> bool)
    where
        EntryOf<C>: Clone,
    {
        let skipped = range.start.saturating_sub(self.recent_index()) as usize;
        let count = range.end.saturating_sub(range.start) as usize;
        for kept in self.recent.iter().skip(skipped).take(count) {
            if !take(kept.entry.clone(), kept.encoded_bytes) {
                return;
            }
        }
    }

    fn pop_front(&mut self) {
        if let Some(kept) = self.recent.pop_front() {
            self.recent_bytes -= kept.encoded_bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    openraft::declare_raft_types!(Toy: D = String, R = String);

    #[test]
    fn only_written_entries_are_evicted_and_the_oldest_first() {
        let mut memory = Memory::<Toy>::new(None, None, None, None, None, 0);
        memory.limit_recent_bytes(10);
        for index in 0..4 {
            let entry = EntryOf::<Toy>::new_blank(openraft::testing::log_id::<Toy>(1, 1, index));
            memory.push(Kept { entry, encoded_bytes: 10, seq: index });
        }
        for (written_seq, recent_index) in [(0, 1), (1, 2), (3, 3)] {
            memory.evict(written_seq);
            assert_eq!(memory.recent_index(), recent_index, "after write {written_seq}");
            assert_eq!(memory.next_index(), 4);
        }
        for (written_seq, recent_index) in [(2, 3), (3, 4), (4, 4)] {
            memory.evict_all(written_seq);
            assert_eq!(memory.recent_index(), recent_index, "after write {written_seq}");
            assert_eq!(memory.next_index(), 4);
        }
    }

    #[test]
    fn the_committed_position_is_not_written_before_what_it_points_to() {
        let mut memory = Memory::<Toy>::new(None, None, None, None, None, 0);
        memory.set_committed(None, 7, b"seven".to_vec());
        assert_eq!(memory.take_committed(6), None);
        memory.set_committed(None, 8, b"eight".to_vec());
        assert_eq!(memory.take_committed(7), None, "the older one is of no use any more");
        assert_eq!(memory.take_committed(9).as_deref(), Some(&b"eight"[..]));
        assert_eq!(memory.take_committed(9), None, "once");
    }
}
