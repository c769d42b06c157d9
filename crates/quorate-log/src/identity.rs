//! Whose data directory this is. A node must not run on another node's log, nor in another cluster.

use std::fmt;
use std::num::NonZeroU64;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::LogError;

/// Which cluster: drawn at random when it was founded, never 0. Shown as 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterId(NonZeroU64);

impl ClusterId {
    /// The id that formats and messages write as this number; 0 stands for none there.
    pub const fn new(number: u64) -> Option<Self> {
        match NonZeroU64::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// What formats and messages write for an id that may not be known.
    pub const fn number(id: Option<Self>) -> u64 {
        match id {
            Some(Self(number)) => number.get(),
            None => 0,
        }
    }
}

impl From<NonZeroU64> for ClusterId {
    fn from(number: NonZeroU64) -> Self {
        Self(number)
    }
}

impl From<ClusterId> for NonZeroU64 {
    fn from(id: ClusterId) -> Self {
        id.0
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Which node: its Raft id, at least 1, never reused for another disk. Shown in decimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(NonZeroU64);

impl NodeId {
    /// The id that formats and messages write as this number; 0 stands for none there.
    pub const fn new(number: u64) -> Option<Self> {
        match NonZeroU64::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// As formats and messages write it.
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

/// It stands in errors of libraries that show them so.
impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// In the file an id that is not known is a 0.
mod known_or_zero {
    use super::{ClusterId, Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(
        id: &Option<ClusterId>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        ClusterId::number(*id).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<ClusterId>, D::Error> {
        u64::deserialize(deserializer).map(ClusterId::new)
    }
}

/// The node and the cluster that a data directory belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// `None`: not known yet.
    #[serde(with = "known_or_zero")]
    pub cluster_id: Option<ClusterId>,
    /// A hash of the founders' list, by which they know each other until the id is drawn. 0: none.
    pub founders: u64,
    /// The node.
    pub node_id: NodeId,
}

impl Identity {
    /// Whether this is the same node, of the same cluster as far as it knew that.
    pub(crate) fn may_become(&self, other: &Self) -> bool {
        let same = (self.founders, self.node_id) == (other.founders, other.node_id);
        same && [None, other.cluster_id].contains(&self.cluster_id)
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
            None => write!(f, "node {} of a cluster that is being founded", self.node_id),
            Some(id) => write!(f, "node {} of cluster {id}", self.node_id),
        }
    }
}
