//! Takes a snapshot when the log has become long in bytes. (The Raft library counts entries only:
//! 50,000 of them are 20 MiB or a GiB.) The log store holds in memory what is not purged, and its
//! files are about two and a half times that.
//!
//! When little is written, a snapshot is taken for much less, and the log gives back what its file
//! took: else a node would keep for good what a busy minute left. Each node does so by itself, at a
//! moment of its own.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use quorate_log::{LogStore, SnapshotStore};
use tokio::time::Instant;

use crate::error::{NodeError, RunError};
use crate::node::Node;
use crate::runtime::random;
use crate::types::{LogId, TypeConfig};

/// The log is looked at this often: at full speed, a MiB is written meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A snapshot that was asked for and has not come by then (another one was under way, the disk is
/// full) is asked for again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Where there may be no room for one, what it would have is counted this often.
const COUNT_EVERY: Duration = Duration::from_secs(30);

/// The log is quiet as long as it gets at most this many bytes in this time: the ticks of a cluster
/// and the renewals of a thousand instances, whose intervals (a third of a TTL, usually 5 to 10 s)
/// are in it.
const QUIET_BYTES: u64 = 16 * 1024;
const QUIET_WITHIN: Duration = Duration::from_secs(10);

/// Once it has been quiet for this long, and up to half as long again, drawn by each node so that
/// they do not all write at once, the log is made short.
const QUIET_FOR: Duration = Duration::from_secs(120);

/// A quiet log is worth a snapshot when that lets go of this many bytes ...
const QUIET_LOG_BYTES: u64 = 2 * 1024 * 1024;
/// ... counting this many for each entry, beside its own: what it takes in memory.
const ENTRY_BYTES: u64 = 256;

/// Decides when a snapshot is taken, and when the log's file is made short.
pub(crate) struct Compaction {
    node: Arc<Node>,
    log: LogStore<TypeConfig>,
    snapshots: Arc<SnapshotStore<TypeConfig>>,
    /// The log index of the last snapshot, its size, and what the log had written about when it was
    /// begun.
    index: Option<u64>,
    snapshot_bytes: u64,
    written_bytes: u64,
    /// When the next one was asked for, and what the log had written then.
    asked: Option<(Instant, u64)>,
    /// When it was counted what a snapshot would have.
    counted: Option<Instant>,
    quiet: Quiet,
    quiet_for: Duration,
    /// Up to where the log was purged when it last gave back what it took.
    shrunk: Option<u64>,
}

impl Compaction {
    pub(crate) fn new(
        node: Arc<Node>,
        log: LogStore<TypeConfig>,
        snapshots: Arc<SnapshotStore<TypeConfig>>,
    ) -> Self {
        Self {
            node,
            log,
            snapshots,
            index: None,
            snapshot_bytes: 0,
            written_bytes: 0,
            asked: None,
            counted: None,
            quiet: Quiet::new(Instant::now()),
            quiet_for: QUIET_FOR + (QUIET_FOR / 2).mul_f64(random() as f64 / u64::MAX as f64),
            shrunk: None,
        }
    }

    pub(crate) async fn run(mut self) -> Result<(), RunError> {
        loop {
            self.look().await;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn look(&mut self) {
        let (index, applied, purged) = {
            let metrics = self.node.metrics().borrow_watched();
            let index = |log_id: Option<LogId>| log_id.map(|log_id| log_id.index());
            (index(metrics.snapshot), index(metrics.last_applied), index(metrics.purged))
        };
        let written_bytes = self.log.stats().entry_bytes;
        if index != self.index {
            self.snapshot_bytes = self.snapshots.written().map_or(0, |(_, bytes)| bytes);
            self.written_bytes = self.asked.take().map_or(written_bytes, |(_, at_bytes)| at_bytes);
            self.index = index;
        }
        let log_bytes = written_bytes - self.written_bytes;
        let meters = self.node.meters();
        meters.log_since_snapshot.set(i64::try_from(log_bytes).unwrap_or(i64::MAX));
        let is_quiet = self.quiet.look(Instant::now(), written_bytes) >= self.quiet_for;
        if is_quiet && purged != self.shrunk {
            self.shrunk = purged;
            // A failure ends the node elsewhere.
            let _ = self.log.shrink(self.node.disk().spare_bytes()).await;
        }
        let is_asked = self.asked.is_some_and(|(asked, _)| asked.elapsed() < RETRY_AFTER);
        let is_long =
            log_bytes >= bound(self.node.tunables().snapshot_log_bytes, self.snapshot_bytes);
        let log = Log {
            entries: applied.unwrap_or(0) - index.unwrap_or(0).min(applied.unwrap_or(0)),
            bytes: log_bytes,
            whole: applied.unwrap_or(0).saturating_sub(purged.unwrap_or(0)),
        };
        let goes = log.goes_bytes(self.node.tunables().keep_entries);
        let is_worth = is_quiet && goes >= bound(QUIET_LOG_BYTES, self.snapshot_bytes);
        if is_asked || !(is_long || is_worth) {
            return;
        }
        self.asked = Some((Instant::now(), written_bytes));
        meters.compacts(if is_long { "long" } else { "quiet" });
        tracing::debug!(log_bytes, self.snapshot_bytes, "the log is long: a snapshot");
        self.count_if_put_off().await;
        // It only fails when the library has ended, which others notice.
        let _ = self.node.raft().trigger().snapshot().await;
    }

    /// What takes the room may be the log, which only a snapshot makes short.
    async fn count_if_put_off(&mut self) {
        let put_off = self.node.disk().snapshots_put_off().borrow().clone();
        let is_put_off = matches!(put_off, Some(NodeError::NoRoomForSnapshot { .. }));
        if is_put_off && self.counted.is_none_or(|at| at.elapsed() >= COUNT_EVERY) {
            self.counted = Some(Instant::now());
            self.node.count_snapshot().await;
        }
    }
}

/// Since when little is written.
#[derive(Debug)]
struct Quiet {
    since: Instant,
    looked: Instant,
    written_bytes: u64,
}

impl Quiet {
    fn new(now: Instant) -> Self {
        Self { since: now, looked: now, written_bytes: 0 }
    }

    /// For how long it has been quiet, when the log has had `written_bytes` by now.
    fn look(&mut self, now: Instant, written_bytes: u64) -> Duration {
        if now >= self.looked + QUIET_WITHIN {
            if written_bytes - self.written_bytes > QUIET_BYTES {
                self.since = now;
            }
            (self.looked, self.written_bytes) = (now, written_bytes);
        }
        now - self.since
    }
}

/// What of the log a snapshot may let go of.
#[derive(Debug, Clone, Copy)]
struct Log {
    /// Entries behind the last snapshot, and their bytes (since the node started: no bytes from
    /// before).
    entries: u64,
    bytes: u64,
    /// Entries that are there.
    whole: u64,
}

impl Log {
    /// What the entries take that a snapshot lets go of, where the last `kept` stay.
    fn goes_bytes(self, kept: u64) -> u64 {
        let goes = self.whole.saturating_sub(kept).min(self.entries);
        goes * (ENTRY_BYTES + self.bytes / self.entries.max(1))
    }
}

/// How many bytes of log after a snapshot of that size call for the next. So, for a large state,
/// two bytes of snapshots are written for one of the log, and not more.
fn bound(least_bytes: u64, snapshot_bytes: u64) -> u64 {
    least_bytes.max(snapshot_bytes / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_log_is_worth_a_snapshot_only_for_what_that_lets_go_of() {
        let kept = 5_000;
        let goes = |entries, bytes, whole| Log { entries, bytes, whole }.goes_bytes(kept);
        assert_eq!(goes(0, 0, 0), 0, "nothing there");
        assert_eq!(goes(5_000, 5_000_000, 5_000), 0, "all of it stays");
        assert_eq!(goes(6_000, 6_000_000, 6_000), 1_000 * 1_256);
        assert_eq!(goes(27_000, 6_750_000, 27_000), 22_000 * 506);
        // After a snapshot: as much goes as came since then.
        assert_eq!(goes(0, 0, 5_000), 0);
        assert_eq!(goes(600, 60_000, 5_600), 600 * 356);
        // Ticks alone, for an hour; what came before the node started.
        assert!(goes(7_200, 504_000, 12_200) > QUIET_LOG_BYTES);
        assert_eq!(goes(20_000, 0, 20_000), 15_000 * 256);
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_is_quiet_while_it_gets_little() {
        let begun = Instant::now();
        let mut quiet = Quiet::new(begun);
        let mut written = 0;
        let mut after = |seconds: u64, bytes: u64| {
            written += bytes;
            quiet.look(begun + Duration::from_secs(seconds), written).as_secs()
        };
        assert_eq!(after(5, 1_000_000), 5, "seen at the end of ten seconds");
        assert_eq!(after(10, 0), 0);
        assert_eq!(after(20, QUIET_BYTES), 10);
        assert_eq!(after(21, QUIET_BYTES), 11);
        assert_eq!(after(30, 1), 0, "more than that within ten seconds");
        assert_eq!(after(300, 0), 270);
        assert_eq!(after(301, QUIET_BYTES + 1), 271);
        assert_eq!(after(310, 0), 0);
    }

    #[test]
    fn a_large_state_is_not_copied_more_often_than_the_log_is_worth() {
        assert_eq!(bound(8, 0), 8);
        assert_eq!(bound(8, 16), 8);
        assert_eq!(bound(8, 100), 50);
    }
}
