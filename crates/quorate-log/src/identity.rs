//! Whose data directory this is. A node must not run on another node's log, nor in another cluster.

use std::fmt;
use std::num::NonZeroU64;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::LogError;

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

/// In the file a number that is not known is a 0.
mod known_or_zero {
    use super::{Deserialize, Deserializer, NonZeroU64, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(
        number: &Option<NonZeroU64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        number.map_or(0, NonZeroU64::get).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<NonZeroU64>, D::Error> {
        u64::deserialize(deserializer).map(NonZeroU64::new)
    }
}

/// The node and the cluster that a data directory belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// `None`: not known yet.
    #[serde(with = "known_or_zero")]
    pub cluster_id: Option<NonZeroU64>,
    /// A hash of the founders' list, by which they know each other until the id is drawn; `None`:
    /// it is no founder.
    #[serde(with = "known_or_zero")]
    pub founders: Option<NonZeroU64>,
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
#[non_exhaustive]
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
            Some(id) => write!(f, "node {} of cluster {id:016x}", self.node_id),
        }
    }
}
