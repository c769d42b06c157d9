//! What may be written into the log and snapshots: a cluster has a level, and each release works at
//! a range of levels. A command that needs a higher one than the cluster's is not proposed, so
//! nodes of an older release can stay members, and come back, until an operator or time has raised
//! it. (As the finalised feature levels of Kafka's KRaft.)

use serde::{Deserialize, Serialize};

/// The levels that a release works at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Levels {
    /// The lowest: a cluster below it was not upgraded release by release.
    pub min: u32,
    /// The highest: what a cluster above it writes is not known.
    pub max: u32,
}

impl Levels {
    /// Those of this release.
    pub const OWN: Self = Self { min: 1, max: 1 };

    /// Whether a node works in a cluster of this level.
    pub fn contains(self, level: u32) -> bool {
        (self.min..=self.max).contains(&level)
    }
}

impl Default for Levels {
    fn default() -> Self {
        Self::OWN
    }
}

/// The level of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Level {
    /// 1 in a new cluster; it only grows.
    pub number: u32,
    /// An operator holds it where it is.
    pub held: bool,
}

impl Default for Level {
    fn default() -> Self {
        Self { number: 1, held: false }
    }
}
