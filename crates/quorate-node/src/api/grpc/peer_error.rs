//! Why a call of another node fails, other than that it is refused; `codes.rs` turns these into
//! gRPC codes.

use std::io;

use openraft::errors::{Fatal, RaftError};
use quorate_log::StampError;
use quorate_state::Invalid;
use tokio::task::JoinError;

use crate::types::{TypeConfig, WireError};

#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    /// A message cannot be read.
    #[error(transparent)]
    Unreadable(#[from] WireError),
    /// What it forwards is not within the limits.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// This node cannot become one of the caller's cluster.
    #[error(transparent)]
    Stamp(#[from] StampError),
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] io::Error),
    /// A snapshot cannot be written here.
    #[error(transparent)]
    Receive(quorate_log::SnapshotError),
    /// A snapshot is not whole.
    #[error(transparent)]
    Snapshot(quorate_log::SnapshotError),
    /// The registry in a snapshot cannot be read.
    #[error(transparent)]
    Registry(#[from] quorate_state::SnapshotError),
    #[error(transparent)]
    Raft(#[from] RaftError<TypeConfig>),
    /// Raft has stopped.
    #[error(transparent)]
    Stopped(#[from] Fatal<TypeConfig>),
    /// A thread that was to do it panicked.
    #[error(transparent)]
    Panicked(#[from] JoinError),
}
