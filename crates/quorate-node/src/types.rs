//! The Raft library's types as this node uses them, and how what stands in the log becomes bytes
//! for peers.

use std::cell::Cell;

use bytes::Bytes;
use quorate_log::NodeId;
use quorate_state::{Command, Reply, Revision, record};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::runtime::Runtime;

openraft::declare_raft_types!(
    /// The types of log entries, answers, node ids and members.
    pub(crate) TypeConfig:
        D = Command,
        R = Outcome,
        NodeId = NodeId,
        // One leader in a term, as in Raft's own paper. The library's default lets several nodes
        // lead one after the other in a term, and all that takes a term for a leader (clock.rs,
        // headers, status, clients) would be wrong.
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, NodeId>,
        Node = Member,
        AsyncRuntime = Runtime,
);

pub(crate) type LogStore = quorate_log::LogStore<TypeConfig>;
pub(crate) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(crate) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Vote = openraft::alias::VoteOf<TypeConfig>;
/// Why the Raft library stopped for good.
pub(crate) type Fatal = openraft::errors::Fatal<TypeConfig>;

/// No node is at a term that is further ahead of this node's than this: terms grow by one an
/// election, an election takes 0.2 s at least, so no cluster gets there within two days of nothing
/// but elections; and no sequence of messages reaches the largest term, behind which no node could
/// lead.
const TERM_JUMP_MAX: u64 = 1_000_000;

/// Whether no node that works can be at this term, as seen from one that is at `ours`.
pub(crate) fn is_absurd(theirs: u64, ours: u64) -> bool {
    theirs > ours.saturating_add(TERM_JUMP_MAX)
}

/// A member's addresses, replicated with the membership.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Member {
    /// Where it listens for peers, `host:port`.
    pub(crate) peer_address: String,
    /// Where it listens for clients, `host:port`.
    pub(crate) client_address: String,
}

record!(Member { peer_address, client_address } {});

/// What came of a command, and the revision of the state after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// The state machine's reply.
    pub(crate) reply: Reply,
    /// The state's revision after the command.
    pub(crate) revision: Revision,
}

/// What peers send each other of the log and of snapshots begins with this byte; another one is of
/// an incompatible version.
const WIRE_VERSION: u8 = 1;

/// A longer message's room is not kept for the next one.
const SCRATCH_BYTES_MAX: usize = 1024 * 1024;

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A peer message that cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("peer message has format version {0:?}, this node speaks {WIRE_VERSION}")]
    Version(Option<u8>),
    #[error("peer message is damaged")]
    Damaged(#[source] postcard::Error),
    #[error("peer message is no protobuf of that kind")]
    NoMessage(#[from] prost::DecodeError),
    #[error("peer message lacks {0}")]
    Lacks(&'static str),
    #[error("peer message holds what this version does not know: its sender is newer")]
    Unknown,
}

/// Writes for a peer what stands in the log or in snapshots: a version byte, then postcard.
pub(crate) fn encode<T: Serialize>(message: &T) -> Bytes {
    // Written where there is room already, then copied: memory that grows with a message is copied
    // several times.
    let mut scratch = SCRATCH.take();
    scratch.clear();
    scratch.push(WIRE_VERSION);
    let written = postcard::to_extend(message, scratch)
        .expect("invariant: writing to memory does not fail, and our types have no unsized maps");
    let bytes = Bytes::copy_from_slice(&written);
    if written.capacity() <= SCRATCH_BYTES_MAX {
        SCRATCH.set(written);
    }
    bytes
}

/// Reads what [`encode`] wrote.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    match bytes.split_first() {
        Some((&WIRE_VERSION, body)) => {
            quorate_state::read_whole(body).map_err(|error| match error {
                postcard::Error::SerdeDeCustom => WireError::Unknown,
                error => WireError::Damaged(error),
            })
        }
        other => Err(WireError::Version(other.map(|(version, _)| *version))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member() -> Member {
        Member { peer_address: "p:1".to_owned(), client_address: "c".to_owned() }
    }

    /// What the membership in the log has of a member: the version, two texts, no optional fields.
    #[test]
    fn the_bytes_of_a_member() {
        let bytes = encode(&member());
        assert_eq!(&bytes[..], b"\x01\x03p:1\x01c\x00");
        assert_eq!(decode::<Member>(&bytes).unwrap(), member());
    }

    #[test]
    fn what_a_newer_release_has_in_the_log_is_refused_with_words() {
        let told = |bytes: &[u8]| decode::<Member>(bytes).unwrap_err().to_string();
        let newer = "peer message holds what this version does not know: its sender is newer";
        assert_eq!(told(b"\x01\x03p:1\x01c\x01\x07"), newer, "an optional field");
        assert_eq!(told(b"\x01\x03p:1\x01c\x00\x07"), newer, "bytes that are left over");
        let other = "peer message has format version Some(2), this node speaks 1";
        assert_eq!(told(b"\x02\x03p:1\x01c\x00"), other);
        assert_eq!(told(b"\x01\x03p:1\x01"), "peer message is damaged");
    }
}
