//! The adapter between the Raft library and the applied state: entries in, outcomes out, snapshots
//! as files.
//!
//! The state lives in memory. It is durable because the log is, and because a snapshot is on disk
//! before the log behind it is purged. Building a snapshot works on a clone, so commands go on
//! meanwhile.

use std::io::{self, BufReader};
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{OptionalSend, Snapshot};
use quorate_log::{Identity, SnapshotFile, SnapshotStore};
use quorate_proto::ClusterId;
use quorate_state::{Registry, read_snapshot, write_snapshot};

use crate::applied::Applied;
use crate::free_space::Disk;
use crate::peers::Peers;
use crate::runtime::blocking;
use crate::types::{LogId, LogStore, SnapshotMeta, StoredMembership, TypeConfig};

/// At most this many entries are announced to watchers together: they wait for the last of them.
const ANNOUNCED_AT_ONCE_MAX: usize = 64;

/// What the Raft library drives.
#[derive(Debug)]
pub(crate) struct StateMachine {
    pub(crate) applied: Arc<Applied>,
    pub(crate) snapshots: Arc<SnapshotStore<TypeConfig>>,
    pub(crate) disk: Arc<Disk>,
    /// Records which node this is, and of which cluster ...
    pub(crate) log: LogStore,
    /// ... and sends the others that identity.
    pub(crate) peers: Arc<Peers>,
}

impl StateMachine {
    /// Records the id of the cluster once it is applied, before anything is served with it. What
    /// another cluster's log or snapshot holds stops the node.
    async fn settle_cluster(&self) -> io::Result<()> {
        let applied = self.applied.lock().registry.cluster_id();
        let known = self.peers.identity();
        let Some(cluster_id) = applied.filter(|_| applied != known.cluster_id) else {
            return Ok(());
        };
        let identity = Identity { cluster_id: Some(cluster_id), ..known };
        self.log.stamp(identity).await.map_err(io::Error::other)?;
        self.peers.set_identity(identity);
        let cluster_id = ClusterId::from(cluster_id);
        tracing::info!(%cluster_id, "the cluster is founded");
        Ok(())
    }
}

/// A view of the state, to be written to a file.
#[derive(Debug)]
pub(crate) struct SnapshotBuilder {
    registry: Registry,
    meta: SnapshotMeta,
    snapshots: Arc<SnapshotStore<TypeConfig>>,
}

type RaftSnapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotFile<TypeConfig>>;

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile<TypeConfig>;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let state = self.applied.lock();
        Ok((state.last_log_id, state.membership.clone()))
    }

    /// Watchers and readers are woken once for all entries that are ready together: to wake one
    /// costs more than what it then takes.
    async fn apply<Strm>(&mut self, entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut ready = entries.ready_chunks(ANNOUNCED_AT_ONCE_MAX);
        while let Some(entries) = ready.next().await {
            let mut answers = Vec::with_capacity(entries.len());
            for entry in entries {
                let (entry, responder) = entry?;
                answers.push((responder, self.applied.apply(entry)));
            }
            self.settle_cluster().await?;
            // First, so that a caller that has its answer finds this node as far as that (a backup
            // that it asks for next has it).
            self.applied.tell_position();
            for (responder, outcome) in answers {
                if let Some(responder) = responder {
                    responder.send(outcome);
                }
            }
            self.applied.wake_watchers();
        }
        Ok(())
    }

    /// Without room on the disk, a snapshot is put off, also one that was asked for: Raft forces
    /// none.
    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<SnapshotBuilder> {
        let last_bytes = self.snapshots.written().map_or(0, |(_, bytes)| bytes);
        if !force && !self.disk.may_begin_snapshot(last_bytes) {
            return None;
        }
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        let state = self.applied.lock();
        SnapshotBuilder {
            registry: state.registry.clone(),
            meta: SnapshotMeta {
                last_log_id: state.last_log_id,
                last_membership: state.membership.clone(),
            },
            snapshots: self.snapshots.clone(),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotFile<TypeConfig>,
    ) -> io::Result<()> {
        let snapshots = self.snapshots.clone();
        let registry = on_disk(move || {
            // First whether it can be read at all: what is installed replaces what was there.
            let registry = read_snapshot(&mut BufReader::new(snapshot.body()));
            let registry = registry.map_err(io::Error::other)?;
            snapshots.install(snapshot).map_err(io::Error::other)?;
            Ok(registry)
        })
        .await?;
        let (log_id, membership) = (meta.last_log_id, meta.last_membership.clone());
        let replaced = self.applied.restore(registry, log_id, membership);
        self.settle_cluster().await?;
        // To free a large state takes long, and here runs Raft.
        on_disk(move || {
            drop(replaced);
            Ok(())
        })
        .await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<RaftSnapshot>> {
        let snapshots = self.snapshots.clone();
        let current = on_disk(move || snapshots.current().map_err(io::Error::other)).await?;
        Ok(current.map(|file| Snapshot { meta: file.meta().clone(), snapshot: file }))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotFile<TypeConfig>;

    async fn build_snapshot(&mut self) -> io::Result<RaftSnapshot> {
        let meta = self.meta.clone();
        // Taken, so that what only this copy still holds is not freed where Raft runs, which may
        // take long.
        let registry = std::mem::take(&mut self.registry);
        let snapshots = self.snapshots.clone();
        let file = on_disk(move || {
            let mut writer = snapshots.begin(&meta).map_err(io::Error::other)?;
            write_snapshot(&registry, &mut writer)?;
            writer.finish().map_err(io::Error::other)
        })
        .await?;
        Ok(Snapshot { meta: self.meta.clone(), snapshot: file })
    }
}

async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    blocking(work).await.map_err(io::Error::other)?
}
