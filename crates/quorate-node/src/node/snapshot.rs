//! Snapshots that a call waits for.

use std::io::{self, Write};
use std::time::Duration;

use openraft::RaftMetrics;
use openraft::alias::WatchReceiverOf;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::RaftError;
use quorate_log::{SnapshotEncoder, SnapshotFile};
use quorate_state::{Registry, write_snapshot};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::error::NodeError;
use crate::node::Node;
use crate::runtime::blocking;
use crate::types::{SnapshotMeta, TypeConfig};

/// While a snapshot is waited for, it is asked for this often.
const TRIGGER_EVERY: Duration = Duration::from_millis(100);

impl Node {
    /// Builds a snapshot of at least what is applied now; the index that it covers.
    ///
    /// # Errors
    /// The disk has no room, Raft has stopped, or it is not done by the deadline (and goes on).
    pub(crate) async fn snapshot(&self, deadline: Instant) -> Result<u64, NodeError> {
        let since = Instant::now();
        let wanted = self.applied.position().index;
        let mut metrics = self.metrics.clone();
        let mut has_counted = false;
        loop {
            let built = built(&metrics.borrow_watched());
            if built >= wanted {
                return Ok(built);
            }
            let mut put_off = self.disk.snapshots_put_off();
            // Does nothing while another one is being built, so it is asked for again.
            let triggered = self.raft.trigger().snapshot().await;
            triggered.map_err(|error| self.fatal(&error))?;
            let again = (Instant::now() + TRIGGER_EVERY).min(deadline);
            tokio::select! {
                () = wait_until_built(&mut metrics, wanted, again) => {}
                reason = until_put_off(&mut put_off) => {
                    if has_counted || !matches!(reason, NodeError::NoRoomForSnapshot { .. }) {
                        return Err(reason);
                    }
                    has_counted = true;
                    self.count_snapshot().await;
                }
            }
            if Instant::now() >= deadline {
                let waited_ms = since.elapsed().as_millis() as u64;
                return Err(NodeError::SnapshotLate { waited_ms });
            }
        }
    }

    /// What this node has applied, and what a snapshot of it says it covers.
    pub(crate) fn state(&self) -> (Registry, SnapshotMeta) {
        let state = self.applied.lock();
        let (last_log_id, last_membership) = (state.last_log_id, state.membership.clone());
        (state.registry.clone(), SnapshotMeta { last_log_id, last_membership })
    }

    /// Counts what a snapshot would have now: where there is little room, that decides whether one
    /// is made. Takes about as long as one, without the disk.
    pub(crate) async fn count_snapshot(&self) {
        let (registry, meta) = self.state();
        let counted = blocking(move || encode(&registry, &meta, Count(0)).map(|count| count.0));
        match counted.await {
            Ok(Ok(bytes)) => self.disk.has_counted(bytes),
            Ok(Err(error)) => tracing::warn!(%error, "a snapshot cannot be counted"),
            Err(error) => tracing::warn!(%error, "a snapshot cannot be counted"),
        }
    }

    /// Builds such a snapshot and removes the log behind it; the index that both cover.
    ///
    /// # Errors
    /// As [`Node::snapshot`].
    pub(crate) async fn compact(&self, deadline: Instant) -> Result<u64, NodeError> {
        let index = self.snapshot(deadline).await?;
        let purged = self.raft.trigger().purge_log(index).await;
        purged.map_err(|error| self.fatal(&error))?;
        Ok(index)
    }

    /// The newest snapshot there is, where one was built.
    ///
    /// # Errors
    /// Raft has stopped.
    pub(crate) async fn newest_snapshot(
        &self,
    ) -> Result<(SnapshotMeta, SnapshotFile<TypeConfig>), NodeError> {
        let newest = self.raft.get_snapshot().await.map_err(|error| match error {
            RaftError::Fatal(fatal) => self.fatal(&fatal),
            RaftError::APIError(other) => self.unexpected(&other),
        })?;
        let newest = newest.ok_or_else(|| self.unexpected(&"no snapshot was built"))?;
        Ok((newest.meta, newest.snapshot))
    }
}

/// The same state gives the same bytes each time.
pub(crate) fn encode<W: Write>(registry: &Registry, meta: &SnapshotMeta, out: W) -> io::Result<W> {
    let mut encoder = SnapshotEncoder::begin::<TypeConfig>(meta, out)?;
    write_snapshot(registry, &mut encoder)?;
    encoder.finish()
}

/// Counts what is written.
pub(crate) struct Count(pub(crate) u64);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the newest snapshot covers.
fn built(metrics: &RaftMetrics<TypeConfig>) -> u64 {
    metrics.snapshot.map_or(0, |log_id| log_id.index())
}

/// Not for any change: each trigger is one, and waiting for it would keep Raft busy with nothing
/// else.
async fn wait_until_built(
    metrics: &mut WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>,
    wanted: u64,
    until: Instant,
) {
    // The caller looks whether it was built.
    let _ = timeout_at(until, metrics.wait_until(|now| built(now) >= wanted)).await;
}

/// Why the next snapshot that is put off is.
async fn until_put_off(put_off: &mut watch::Receiver<Option<NodeError>>) -> NodeError {
    loop {
        if put_off.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        if let Some(reason) = put_off.borrow_and_update().clone() {
            return reason;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;
    use openraft::async_runtime::watch::{Watch as _, WatchSender as _};
    use quorate_log::NodeId;

    use super::*;

    const NODE: NodeId = NodeId::new(1).unwrap();

    type WatchOf =
        <<TypeConfig as openraft::RaftTypeConfig>::AsyncRuntime as openraft::AsyncRuntime>::Watch;

    #[tokio::test]
    async fn only_a_snapshot_ends_the_wait_for_one() {
        let (sender, mut metrics) = WatchOf::channel(RaftMetrics::<TypeConfig>::new_initial(NODE));
        let until = Instant::now() + Duration::from_secs(3600);
        let mut waiting = Box::pin(wait_until_built(&mut metrics, 7, until));
        let change = |change: &dyn Fn(&mut RaftMetrics<TypeConfig>)| {
            sender.send_if_modified(|metrics| {
                change(metrics);
                true
            });
        };
        for index in 1..100 {
            change(&|metrics| metrics.last_log_index = Some(index));
            assert!(poll!(&mut waiting).is_pending(), "after change {index} of something else");
        }
        let snapshot = |index| Some(openraft::testing::log_id::<TypeConfig>(1, NODE, index));
        change(&|metrics| metrics.snapshot = snapshot(6));
        assert!(poll!(&mut waiting).is_pending(), "it is an older one");
        change(&|metrics| metrics.snapshot = snapshot(7));
        assert!(poll!(&mut waiting).is_ready());
    }
}
