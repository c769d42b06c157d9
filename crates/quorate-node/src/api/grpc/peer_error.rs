//! Why a call of another node is refused, or fails; `codes.rs` turns these into gRPC codes.

use std::io;

use openraft::errors::{Fatal, RaftError};
use quorate_log::{NodeId, StampError};
use quorate_proto::ClusterId;
use quorate_state::Invalid;
use tokio::task::JoinError;

use crate::api::grpc::peer_door::name;
use crate::error::MoveError;
use crate::node::forwards::FORWARDED_MAX;
use crate::node::succession::Made;
use crate::types::{TypeConfig, WireError};

#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    /// `made`: ours from theirs, whose node this is asked as.
    #[error("this is a node of cluster {:016x}, {}", ClusterId::to_wire(*ours), not_of(*theirs, *made))]
    OtherCluster {
        ours: Option<ClusterId>,
        theirs: Option<ClusterId>,
        made: Option<(NodeId, Made)>,
    },
    #[error("this is node {node}, not {}", name(*meant))]
    OtherNode { node: NodeId, meant: Option<NodeId> },
    #[error("node {node} waits to hear from the other founders")]
    Founding { node: NodeId },
    #[error("node {node} is a voter, but its disk was lost: replace it")]
    LostDisk { node: NodeId },
    #[error("the call does not say which node sent it")]
    NoSender,
    /// A certificate speaks for its own node only.
    #[error("the certificate is of {}, not of {}", name(*proved), name(*said))]
    OtherSender { proved: Option<NodeId>, said: Option<NodeId> },
    /// What is taken from whom: `guard.rs`.
    #[error("node {sender} is refused: {why}")]
    Refused { sender: NodeId, why: String },
    #[error("{calls} calls in one message, at most {FORWARDED_MAX}")]
    TooManyCalls { calls: usize },
    #[error(transparent)]
    Move(#[from] MoveError),
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

fn not_of(theirs: Option<ClusterId>, made: Option<(NodeId, Made)>) -> String {
    let theirs = ClusterId::to_wire(theirs);
    match made {
        None => format!("not of {theirs:016x}"),
        Some((node, Made::Restored)) => format!(
            "which was made from {theirs:016x} (`quorate restore`, or a `quorate recover` of long ago) and is one of its own: to have a node {node} there again, replace it with a new one (`quorate cluster replace`)"
        ),
        Some((_, Made::Recovered { .. })) => format!(
            "which was made from {theirs:016x} (`quorate recover`): stop the nodes of one of them"
        ),
    }
}
