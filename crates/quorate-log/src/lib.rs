//! The durable half of a Raft node: its log ([`LogStore`], on sled) and its snapshot files
//! ([`SnapshotStore`]).
//!
//! Generic over openraft's type configuration: this crate knows nothing of the registry, of gRPC or
//! of the wire format. It promises two things. What was reported as durable is there after a power
//! cut, or the node refuses to start and says which file is damaged; and a reader never sees a hole
//! or an entry that was not appended.
//!
//! | room | duty |
//! |---|---|
//! | `store/` | the handle: openraft's traits, and the order in which changes reach the disk; the one thread that writes |
//! | `memory` | what is known without reading the disk: positions, vote, recent entries |
//! | `opening/` | check everything that was written, give sled what only the journal has, refuse what is damaged |
//! | `disk/` | what lies on disk and how: sled, the journal, the witness |
//! | `snapshots/` | the current snapshot; the format of one file |
//! | `identity`, `stats`, `error` | whose directory it is; what is counted; what can go wrong |

mod disk;
mod error;
mod identity;
mod memory;
#[cfg(test)]
mod observe;
mod opening;
mod panics;
#[cfg(test)]
mod power_cut_tests;
mod snapshots;
mod stats;
mod store;

pub use error::{LogError, OpenError, RecordError};
pub use identity::{Identity, NodeId, StampError};
pub use opening::dirs::make_dir;
pub use panics::catches_panics;
pub use snapshots::{
    SnapshotBody, SnapshotBytes, SnapshotEncoder, SnapshotError, SnapshotFile, SnapshotProblem,
    SnapshotReceiver, SnapshotStore, SnapshotWriter,
};
pub use stats::{FLUSH_BOUNDS, Stats};
pub use store::{Io, LogOptions, LogStore};
