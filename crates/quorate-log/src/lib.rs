//! The durable half of a Raft node: its log ([`LogStore`], on sled) and its snapshot files
//! ([`SnapshotStore`]).
//!
//! Generic over openraft's type configuration: this crate knows nothing of the registry, of gRPC or
//! of the wire format. It promises two things. What was reported as durable is there after a power
//! cut, or the node refuses to start and says which file is damaged; and a reader never sees a hole
//! or an entry that was not appended.
//!
//! | file | duty |
//! |---|---|
//! | `store` | the handle: openraft's traits, and the order in which changes reach the disk |
//! | `memory` | what is known without reading the disk: positions, vote, recent entries |
//! | `writer` | group commit: the one thread that writes and syncs |
//! | `journal` | what is not yet synced in sled, made durable with one write and one sync |
//! | `disk` | sled: where records lie, how they are written, removed, synced and read |
//! | `recover`, `replay` | opening: check everything that was written, give sled what only the journal has, refuse what is damaged |
//! | `codec`, `meta`, `numbers` | the formats of batches and of single values |
//! | `witness` | remembers what was acknowledged, to notice a log that lost its end |
//! | `snapshots`, `snapshot_file` | the current snapshot; the format of one file |
//! | `slow_close` | gives the blocks of a removed snapshot back so that the log need not wait |

mod codec;
mod disk;
mod error;
mod identity;
mod journal;
mod memory;
mod meta;
mod numbers;
#[cfg(test)]
mod observe;
mod panics;
#[cfg(test)]
mod power_cut_tests;
mod recover;
mod replay;
mod room;
mod slow_close;
mod snapshot_error;
mod snapshot_file;
mod snapshots;
mod stats;
mod store;
mod witness;
mod writer;

pub use codec::RecordError;
pub use error::{LogError, OpenError};
pub use identity::{Identity, StampError};
pub use panics::catches_panics;
pub use snapshot_error::{SnapshotError, SnapshotProblem};
pub use snapshot_file::{SnapshotBody, SnapshotBytes, SnapshotFile};
pub use snapshots::{SnapshotEncoder, SnapshotReceiver, SnapshotStore, SnapshotWriter};
pub use stats::Stats;
pub use store::{Io, LogOptions, LogStore};
