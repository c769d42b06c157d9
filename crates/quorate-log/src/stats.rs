//! What the log has written since it was opened.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Flushes are counted by how long they took: up to each of these bounds, and longer. From what a
/// good disk needs to what ends a leader's lead.
pub const FLUSH_BOUNDS: [Duration; 12] = [
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2_500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(1),
];

/// Counters since the log was opened, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Entries made durable.
    pub entries: u64,
    /// Bytes of them, as they lie in the log.
    pub entry_bytes: u64,
    /// Bytes written to the journal: entries, votes and marks, with what frames them.
    pub journal_bytes: u64,
    /// How often the log was written anew, to give back what its file took.
    pub rewrites: u64,
    /// Syncs of the disk; several appends may share one.
    pub flushes: u64,
    /// Time spent writing and syncing, over all flushes.
    pub flush_time: Duration,
    /// Duration of the latest flush.
    pub last_flush: Duration,
    /// How many took up to each of [`FLUSH_BOUNDS`] and longer than the one before; at last, how
    /// many took longer than all.
    pub flushes_within: [u64; FLUSH_BOUNDS.len() + 1],
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    entries: AtomicU64,
    entry_bytes: AtomicU64,
    journal_bytes: AtomicU64,
    rewrites: AtomicU64,
    flushes: AtomicU64,
    flush_micros: AtomicU64,
    last_flush_micros: AtomicU64,
    flushes_within: [AtomicU64; FLUSH_BOUNDS.len() + 1],
}

impl Counters {
    pub(crate) fn flushed(&self, entries: u64, entry_bytes: u64, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.entries.fetch_add(entries, Ordering::Relaxed);
        self.entry_bytes.fetch_add(entry_bytes, Ordering::Relaxed);
        self.flushes.fetch_add(1, Ordering::Relaxed);
        self.flush_micros.fetch_add(micros, Ordering::Relaxed);
        self.last_flush_micros.store(micros, Ordering::Relaxed);
        let at = FLUSH_BOUNDS.partition_point(|bound| *bound < took);
        self.flushes_within[at].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn journaled(&self, bytes: u64) {
        self.journal_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn rewritten(&self) {
        self.rewrites.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Stats {
        Stats {
            entries: self.entries.load(Ordering::Relaxed),
            entry_bytes: self.entry_bytes.load(Ordering::Relaxed),
            journal_bytes: self.journal_bytes.load(Ordering::Relaxed),
            rewrites: self.rewrites.load(Ordering::Relaxed),
            flushes: self.flushes.load(Ordering::Relaxed),
            flush_time: Duration::from_micros(self.flush_micros.load(Ordering::Relaxed)),
            last_flush: Duration::from_micros(self.last_flush_micros.load(Ordering::Relaxed)),
            flushes_within: std::array::from_fn(|at| {
                self.flushes_within[at].load(Ordering::Relaxed)
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_flush_is_in_one_bucket_with_its_bound_included() {
        let counters = Counters::default();
        for took in [Duration::ZERO, FLUSH_BOUNDS[0], FLUSH_BOUNDS[3], Duration::from_secs(2)] {
            counters.flushed(1, 10, took);
        }
        let stats = counters.read();
        assert_eq!((stats.flushes_within[0], stats.flushes_within[3]), (2, 1));
        assert_eq!(stats.flushes_within[FLUSH_BOUNDS.len()], 1);
        assert_eq!(stats.flushes_within.iter().sum::<u64>(), stats.flushes);
    }
}
