//! Takes a snapshot when the log has become long in bytes. (The Raft library counts entries only: 50,000 of them are 20 MiB
//! or a GiB.) The log store holds in memory what is not purged, and its files are about two and a half times that.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use quorate_log::{LogStore, SnapshotStore};
use tokio::time::Instant;

use crate::error::RunError;
use crate::node::Node;
use crate::types::TypeConfig;

/// The log is looked at this often: at full speed, a MiB is written meanwhile.
const EVERY: Duration = Duration::from_millis(100);

/// A snapshot that was asked for and has not come by then (another one was under way, the disk is full) is asked for again.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// See the head of this file.
pub(crate) struct Compaction {
    node: Arc<Node>,
    log: LogStore<TypeConfig>,
    snapshots: Arc<SnapshotStore<TypeConfig>>,
    /// The log index of the last snapshot, its size, and what the log had written about when it was begun.
    index: Option<u64>,
    snapshot_bytes: u64,
    written_bytes: u64,
    /// When the next one was asked for, and what the log had written then.
    asked: Option<(Instant, u64)>,
}

impl Compaction {
    pub(crate) fn new(
        node: Arc<Node>,
        log: LogStore<TypeConfig>,
        snapshots: Arc<SnapshotStore<TypeConfig>>,
    ) -> Self {
        Self { node, log, snapshots, index: None, snapshot_bytes: 0, written_bytes: 0, asked: None }
    }

    pub(crate) async fn run(mut self) -> Result<(), RunError> {
        loop {
            self.look().await;
            tokio::time::sleep(EVERY).await;
        }
    }

    async fn look(&mut self) {
        let index = self.node.metrics().borrow_watched().snapshot.map(|log_id| log_id.index());
        let written_bytes = self.log.stats().entry_bytes;
        if index != self.index {
            // Only now: while one is put in its place, this would wait for that.
            let current = self.snapshots.current().ok().flatten();
            self.snapshot_bytes = current.map_or(0, |file| file.len_bytes());
            self.written_bytes = self.asked.take().map_or(written_bytes, |(_, at_bytes)| at_bytes);
            self.index = index;
        }
        let log_bytes = written_bytes - self.written_bytes;
        let is_asked = self.asked.is_some_and(|(asked, _)| asked.elapsed() < AGAIN_AFTER);
        if is_asked
            || log_bytes < bound(self.node.tunables().snapshot_log_bytes, self.snapshot_bytes)
        {
            return;
        }
        self.asked = Some((Instant::now(), written_bytes));
        tracing::debug!(log_bytes, self.snapshot_bytes, "the log is long: a snapshot");
        // It only fails when the library has ended, which others notice.
        let _ = self.node.raft().trigger().snapshot().await;
    }
}

/// So many bytes of log after a snapshot of that size call for the next: so, for a large state, two bytes of snapshots are
/// written for one of the log, and not more.
fn bound(least_bytes: u64, snapshot_bytes: u64) -> u64 {
    least_bytes.max(snapshot_bytes / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_state_is_not_copied_more_often_than_the_log_is_worth() {
        assert_eq!(bound(8, 0), 8);
        assert_eq!(bound(8, 16), 8);
        assert_eq!(bound(8, 100), 50);
    }
}
