//! What the log has written since it was opened.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counters since the log was opened, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Entries made durable.
    pub entries: u64,
    /// Bytes of them, as they lie in the log.
    pub entry_bytes: u64,
    /// Syncs of the disk; several appends may share one.
    pub flushes: u64,
    /// Time spent writing and syncing, over all flushes.
    pub flush_time: Duration,
    /// Duration of the latest flush.
    pub last_flush: Duration,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    entries: AtomicU64,
    entry_bytes: AtomicU64,
    flushes: AtomicU64,
    flush_micros: AtomicU64,
    last_flush_micros: AtomicU64,
}

impl Counters {
    pub(crate) fn flushed(&self, entries: u64, entry_bytes: u64, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.entries.fetch_add(entries, Ordering::Relaxed);
        self.entry_bytes.fetch_add(entry_bytes, Ordering::Relaxed);
        self.flushes.fetch_add(1, Ordering::Relaxed);
        self.flush_micros.fetch_add(micros, Ordering::Relaxed);
        self.last_flush_micros.store(micros, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Stats {
        Stats {
            entries: self.entries.load(Ordering::Relaxed),
            entry_bytes: self.entry_bytes.load(Ordering::Relaxed),
            flushes: self.flushes.load(Ordering::Relaxed),
            flush_time: Duration::from_micros(self.flush_micros.load(Ordering::Relaxed)),
            last_flush: Duration::from_micros(self.last_flush_micros.load(Ordering::Relaxed)),
        }
    }
}
