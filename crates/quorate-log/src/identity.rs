//! Whose data directory this is. A node must not run on another node's log, nor in another cluster.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::LogError;

/// The node and the cluster that a data directory belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// Drawn at random when the cluster was founded. Shown as 16 hexadecimal digits. 0: not known
    /// yet.
    pub cluster_id: u64,
    /// A hash of the founders' list, by which they know each other until the id is drawn. 0: none.
    pub founders: u64,
    /// The node's Raft id, never reused for another disk.
    pub node_id: u64,
}

impl Identity {
    /// Whether this is the same node, of the same cluster as far as it knew that.
    pub(crate) fn may_become(&self, other: &Self) -> bool {
        let same = (self.founders, self.node_id) == (other.founders, other.node_id);
        same && [0, other.cluster_id].contains(&self.cluster_id)
    }
}

/// Why a data directory could not be claimed.
#[derive(Debug, thiserror::Error)]
pub enum StampError {
    /// The directory was claimed before, by another node or for another cluster.
    #[error("data directory {} belongs to {owner}, not to {claimant}", .path.display())]
    Foreign {
        /// The log's directory.
        path: PathBuf,
        /// The node that it belongs to.
        owner: Identity,
        /// The node that tried to claim it.
        claimant: Identity,
    },
    /// The identity could not be written.
    #[error("cannot record in the log that it belongs to {claimant}")]
    Write {
        /// The node that tried to claim it.
        claimant: Identity,
        /// What went wrong.
        #[source]
        source: LogError,
    },
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cluster_id {
            0 => write!(f, "node {} of a cluster that is being founded", self.node_id),
            id => write!(f, "node {} of cluster {id:016x}", self.node_id),
        }
    }
}
