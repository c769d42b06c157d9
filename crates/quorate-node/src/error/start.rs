//! Why a node does not start, or stopped by itself; each says what an operator can do.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use quorate_log::{Identity, LogError, NodeId, OpenError, SnapshotError, StampError};
use quorate_proto::ClusterId;
use quorate_state::Levels;
use tokio::task::JoinError;

use crate::config::ConfigError;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A setting is wrong.
    #[error("bad configuration")]
    Config(#[from] ConfigError),
    /// The Raft library does not take the settings.
    #[error("bad configuration for Raft")]
    RaftConfig {
        /// What it says.
        #[source]
        source: Source,
    },
    /// The files for TLS cannot be used.
    #[error("cannot use {} for TLS", path.display())]
    Tls {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Source,
    },
    /// The data directory cannot be made.
    #[error("cannot use the data directory {}", dir.display())]
    DataDir {
        /// Which directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The log cannot be opened.
    #[error("cannot open the log")]
    Log(#[from] OpenError),
    /// The snapshots cannot be opened.
    #[error(
        "cannot open the snapshots; if one is damaged, replace this node: start one with a new id and an empty directory, \
         then `quorate cluster replace ID NEW-ID ADDRESS`"
    )]
    Snapshots(#[from] SnapshotError),
    /// The identity cannot be written.
    #[error("cannot write the node's identity")]
    Stamp(#[from] StampError),
    /// The data directory is another node's.
    #[error("the data directory {} belongs to {owner}, not to node {id}; start node {} with it, or give node {id} an empty one", dir.display(), owner.node_id)]
    OtherNode {
        /// Which directory.
        dir: PathBuf,
        /// The node and cluster that it belongs to.
        owner: Identity,
        /// The id that was given.
        id: NodeId,
    },
    /// Snapshots, or a place for them, without a log.
    #[error("the data directory {} has snapshots/ but no log/db: a node has run on it, and its log is lost; remove the node from the cluster and start a new one (new id, empty directory) with --join, or, if it was the only one, restore a backup; if no node has run on it, remove snapshots/", dir.display())]
    LogMissing {
        /// Which directory.
        dir: PathBuf,
    },
    /// A log whose beginning was purged, without the snapshot that stood for it.
    #[error("{}/*.snapshot is missing or too old: the log begins after entry {purged}, so a snapshot that covers it is needed; replace this node: start one with a new id and an empty directory, then `quorate cluster replace ID NEW-ID ADDRESS`", dir.display())]
    SnapshotMissing {
        /// The directory of snapshots.
        dir: PathBuf,
        /// What the log no longer has.
        purged: u64,
    },
    /// What a snapshot stands for cannot be taken out of the log.
    #[error("cannot remove from the log what the snapshot stands for")]
    Purge {
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The disk of a member was lost.
    #[error("node {id} is a member of the cluster already, says the node at {told_by}, but the data directory {} is empty: its disk was lost, and with it votes that the cluster counts on. Start a new node with another id and `quorate cluster replace {id} NEW ADDR`, or give node {id} its directory back", dir.display())]
    Amnesia {
        /// The node whose data is gone.
        id: NodeId,
        /// Which directory.
        dir: PathBuf,
        /// The address of the node that knows it.
        told_by: String,
    },
    /// The access file cannot be used.
    #[error("cannot use the access file")]
    Access {
        /// Which file, where in it, and what is wrong.
        #[source]
        source: Source,
    },
    /// The audit log cannot be written.
    #[error("cannot write the audit log {}", file.display())]
    Audit {
        /// Which file.
        file: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address} ({field})")]
    Listen {
        /// The setting.
        field: &'static str,
        /// Its address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The Raft library does not start.
    #[error(
        "cannot start Raft from what the data directory holds; if a file in it is damaged, replace this node: start one with a \
         new id and an empty directory, then `quorate cluster replace ID NEW-ID ADDRESS`"
    )]
    Raft {
        /// Why.
        #[source]
        source: Source,
    },
    /// Opening the data directory panicked: a bug.
    #[error("opening the data directory panicked")]
    Panicked {
        /// The panic.
        #[source]
        source: JoinError,
    },
}

impl StartError {
    /// Whether starting the node again changes nothing until an operator has done something: what
    /// is wrong is in its settings, its files or its place in the cluster.
    pub fn needs_operator(&self) -> bool {
        match self {
            Self::Config(_)
            | Self::RaftConfig { .. }
            | Self::OtherNode { .. }
            | Self::LogMissing { .. }
            | Self::SnapshotMissing { .. }
            | Self::Amnesia { .. } => true,
            Self::Log(error) => !error.may_pass(),
            Self::Snapshots(error) => !error.may_pass(),
            Self::Stamp(error) => matches!(error, StampError::Foreign { .. }),
            // Files that something else writes, addresses that are free in a moment, bugs.
            Self::Tls { .. }
            | Self::DataDir { .. }
            | Self::Access { .. }
            | Self::Audit { .. }
            | Self::Listen { .. }
            | Self::Purge { .. }
            | Self::Raft { .. }
            | Self::Panicked { .. } => false,
        }
    }
}

/// Why a node stopped by itself, or did not stop as it should.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The listener for clients failed.
    #[error("serving clients failed")]
    Clients(#[source] tonic::transport::Error),
    /// The listener for peers failed.
    #[error("serving peers failed")]
    Peers(#[source] tonic::transport::Error),
    /// The Raft library stopped.
    #[error("Raft stopped")]
    Raft {
        /// Why.
        #[source]
        source: Source,
    },
    /// The log could not be closed.
    #[error("closing the log failed")]
    Log {
        /// Why.
        #[source]
        source: LogError,
    },
    /// The disk of a member was lost.
    #[error(
        "node {id} has run in this cluster before, says the node at {told_by}, but its data directory is empty: its disk was lost, and with it votes that the cluster counts on. Start a new node with another id and `quorate cluster replace {id} NEW ADDR`, or give node {id} its directory back"
    )]
    Amnesia {
        /// The node whose data is gone.
        id: NodeId,
        /// The address of the node that knows it.
        told_by: String,
    },
    /// A founder without data found the cluster founded, and itself not in it.
    #[error(
        "node {id} was to found a cluster, but the node at {told_by} is a member of cluster {cluster_id}, and node {id} is not in it: it was removed or replaced, or its addresses are another cluster's. Let it join under a new id (`--id NEW --join {members}`, an empty data directory), or give all nodes of a new cluster addresses of their own"
    )]
    Founded {
        /// The node that is not in it.
        id: NodeId,
        /// The cluster that is there.
        cluster_id: ClusterId,
        /// The member that said so.
        told_by: String,
        /// Where clients reach its members, separated by commas.
        members: String,
    },
    /// Another cluster was made from this node's.
    #[error(
        "node {id} is of cluster {:016x}, and an operator has made cluster {by} from that, in which node {told_by} is now (`quorate recover`): two of them would give different answers. Move the data directory of node {id} away, and let it join cluster {by} with an empty one. If cluster {by} is a mistake, stop its nodes, then start this one again",
        ClusterId::to_wire(*cluster_id)
    )]
    Succeeded {
        /// The node that is of the old one.
        id: NodeId,
        /// Its cluster's id.
        cluster_id: Option<ClusterId>,
        /// The member of the old one that is of the new one.
        told_by: NodeId,
        /// The new one.
        by: ClusterId,
    },
    /// The cluster was upgraded, and this node was not; or the other way round.
    #[error(
        "the cluster of node {id} is at level {level}, and this release of Quorate supports levels {} to {}: start it with a release that works at level {level}; a cluster never goes back to a lower level, and is upgraded one release after the other",
        levels.min, levels.max
    )]
    Level {
        /// The node.
        id: NodeId,
        /// The cluster's level.
        level: u32,
        /// Those that it works at.
        levels: Levels,
    },
    /// A task panicked: a bug.
    #[error("a task of the node panicked")]
    Panicked(#[source] JoinError),
    /// A task ended that never should.
    #[error("a task of the node ended unexpectedly")]
    Ended,
    /// Stopping took too long.
    #[error("stopping took longer than {} ms", grace.as_millis())]
    SlowStop {
        /// The time that it had.
        grace: Duration,
    },
}

impl RunError {
    /// As [`StartError::needs_operator`].
    pub fn needs_operator(&self) -> bool {
        match self {
            Self::Amnesia { .. }
            | Self::Founded { .. }
            | Self::Succeeded { .. }
            | Self::Level { .. } => true,
            Self::Clients(_)
            | Self::Peers(_)
            | Self::Raft { .. }
            | Self::Log { .. }
            | Self::Panicked(_)
            | Self::Ended
            | Self::SlowStop { .. } => false,
        }
    }

    /// What the end of a task means that should have gone on.
    pub(crate) fn of_task(ended: Result<Result<(), Self>, JoinError>) -> Self {
        match ended {
            Ok(Ok(())) => Self::Ended,
            Ok(Err(error)) => error,
            Err(panicked) => Self::Panicked(panicked),
        }
    }
}
