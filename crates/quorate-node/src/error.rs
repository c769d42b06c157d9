//! Why a node could not do what it was asked; `api/grpc/codes.rs` turns these into gRPC codes.

mod start;

pub use start::{RunError, StartError};

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quorate_log::NodeId;
use quorate_proto::ClusterId;
use quorate_state::{Invalid, Rejection};
use tokio::task::JoinError;

use crate::types::Fatal;

/// The code of [`MembershipError::Busy`] in gRPC, as another node says it.
const ABORTED: i32 = 10;

/// An error and its causes, for people.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |told, cause| format!("{told}: {cause}"))
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NodeError {
    /// The state machine refused: nothing changed.
    #[error(transparent)]
    Rejected(Rejection),
    /// There is no leader within the deadline.
    #[error(
        "no leader within {waited_ms} ms: there is no quorum (a majority of the voters), or this node is cut off from it; see `quorate cluster status`"
    )]
    NoLeader { waited_ms: u64 },
    /// There is a leader, but it did not answer or commit within the deadline; a write may yet
    /// happen.
    #[error(
        "the leader (node {leader}) did not finish within {waited_ms} ms: no quorum, or too much load"
    )]
    NoAnswer { leader: NodeId, waited_ms: u64 },
    /// This node has not applied what the caller wants to see.
    #[error("this node has applied revision {applied}, {wanted}; another node may be further")]
    Behind { applied: u64, wanted: Wanted },
    /// This node has a leader, and for long nothing has come of what that has.
    #[error(
        "node {node} has got nothing new for {for_ms} ms, though it has a leader: its disk has no room, or it catches up; another node is further"
    )]
    Outdated { node: NodeId, for_ms: u64 },
    /// The caller wants to see what no node can have.
    #[error("{wanted}, but this node is caught up with revision {applied}: no node is that far")]
    Ahead { applied: u64, wanted: Wanted },
    /// This node was not taken in yet, or was taken out.
    #[error(
        "node {node} is not a member of the cluster, or has not caught up since it became one; ask another node"
    )]
    NotMember { node: NodeId },
    /// The cluster has no identity yet: nothing may be served that could be taken for another
    /// cluster's.
    #[error("node {node}: this cluster is being founded; try again in a moment")]
    Founding { node: NodeId },
    /// This node has just started.
    #[error("node {node} asks the others how far it was before it started")]
    Recalling { node: NodeId },
    /// This node was started on an older copy of its directory.
    #[error(
        "node {node} has an older copy of its directory: it had acknowledged up to entry {acknowledged}, in term {term}"
    )]
    RolledBack { node: NodeId, acknowledged: u64, term: u64 },
    /// This node does not lead (any more); the node that forwarded to it tries again.
    #[error("node {node} is not the leader")]
    NotLeader { node: NodeId },
    /// The disk is nearly full.
    #[error(
        "the disk of node {node} has {free_bytes} bytes free, below its reserve of {reserve_bytes}: {}",
        still_done(*is_at_floor)
    )]
    DiskFull { node: NodeId, free_bytes: u64, reserve_bytes: u64, is_at_floor: bool },
    /// Nothing can be written, and what was handed in before, perhaps this very write, is not
    /// committed.
    #[error("{full}; whether this was done before is not known, as entries wait to be committed")]
    Unsettled { full: Box<Self> },
    /// The registry would be larger than the leader lets it grow.
    #[error(
        "the registry takes {bytes} bytes and would grow beyond its limit, state_bytes_max = {limit} on node {node}: deregister some, or raise it on all nodes"
    )]
    StateFull { node: NodeId, bytes: usize, limit: usize },
    /// A snapshot might fill the disk.
    #[error(
        "the disk of node {node} has {free_bytes} bytes free, and for a snapshot {wanted_bytes} are wanted: make room there; until then its log grows"
    )]
    NoRoomForSnapshot { node: NodeId, free_bytes: u64, wanted_bytes: u64 },
    /// Too many calls wait already.
    #[error("overloaded: {waiting} calls wait already; try again later")]
    Overloaded { waiting: usize },
    /// The node is stopping.
    #[error("node {node} is stopping")]
    Stopping { node: NodeId },
    /// Another node could not be reached.
    #[error("node {node} at {address} did not answer: {why}")]
    PeerUnreachable { node: NodeId, address: String, why: Unanswered },
    /// A snapshot takes too long.
    #[error("the snapshot was not finished within {waited_ms} ms; it goes on, ask again")]
    SnapshotLate { waited_ms: u64 },
    /// A membership change that must not be.
    #[error("{0}")]
    Membership(MembershipError),
    /// The cluster is not as far as that.
    #[error(
        "this needs level {needed}, and the cluster is at level {level}: run this release on all nodes, then `quorate cluster upgrade finalize`"
    )]
    Level { needed: u32, level: u32 },
    /// What cannot be: a bug of ours, or of a library.
    #[error("node {node}: {what}; this is a bug, please report it with the node's log")]
    Unexpected { node: NodeId, what: String },
    /// The Raft library stopped for good: its disk failed, or a bug.
    #[error("node {node} has stopped taking part: {reason}; see its log")]
    Fatal { node: NodeId, reason: Box<Fatal> },
    /// What the leader, another node, says.
    #[error("{}", .0.message)]
    Told(Box<Told>),
}

fn still_done(is_at_floor: bool) -> &'static str {
    match is_at_floor {
        true => "nothing is written until there is room, and no lease ends; reads go on",
        false => "no registrations until there is room; reads, renewals and deregistrations go on",
    }
}

/// Why another node has not said what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unanswered {
    #[error("deadline has elapsed")]
    Late,
    /// What the node says, or the transport; `code`: of gRPC.
    #[error("{message}")]
    Refused { code: i32, message: String },
    #[error("it answered {answers} of {asked} calls")]
    Partly { answers: usize, asked: usize },
    #[error("not a known member")]
    NoMember,
    #[error("node {found} is at {address}")]
    OtherNode { found: u64, address: String },
}

/// An error of another node, with all that is done about it. Its kind stays there: a later release
/// may have kinds that this one does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    /// Of gRPC, for a client.
    pub(crate) code: i32,
    pub(crate) message: String,
    /// The same may succeed a little later, or with the next leader.
    pub(crate) again: bool,
    /// The time that was given for it was too short.
    pub(crate) late: bool,
    /// The call named this node, which is no member.
    pub(crate) unknown: Option<NodeId>,
    /// What a client's refusal has beside its words.
    pub(crate) incarnation: Option<u64>,
    pub(crate) retry_after_ms: Option<u64>,
}

impl Told {
    /// For a client, and nothing else.
    pub(crate) fn new(code: i32, message: String) -> Self {
        let (again, late, unknown) = (false, false, None);
        Self { code, message, again, late, unknown, incarnation: None, retry_after_ms: None }
    }
}

/// The revision that a caller has to see, with the name of the field in which it said so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Wanted {
    #[error("min_revision is {0}")]
    MinRevision(u64),
    #[error("from_revision is {0}")]
    FromRevision(u64),
}

impl Wanted {
    pub(crate) fn revision(self) -> u64 {
        match self {
            Self::MinRevision(revision) | Self::FromRevision(revision) => revision,
        }
    }
}

impl NodeError {
    /// Whether the time that was given for it was too short.
    pub(crate) fn is_late(&self) -> bool {
        match self {
            Self::NoLeader { .. } | Self::NoAnswer { .. } => true,
            Self::Told(told) => told.late,
            _ => false,
        }
    }

    /// Whether this leader has no room for it.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self, Self::DiskFull { .. } | Self::StateFull { .. })
    }

    /// Whether another change was in the way, as this node or the leader says.
    pub(crate) fn is_busy(&self) -> bool {
        match self {
            Self::Membership(MembershipError::Busy) => true,
            Self::Told(told) => told.again && told.code == ABORTED,
            _ => false,
        }
    }

    /// Whether the same may succeed a little later, or with the next leader.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::NotLeader { .. }
            | Self::Founding { .. }
            | Self::PeerUnreachable { .. }
            | Self::Membership(MembershipError::Busy | MembershipError::NobodyAnswers) => true,
            Self::Membership(MembershipError::NotKnown { why }) => !why.is_full(),
            Self::Told(told) => told.again,
            _ => false,
        }
    }

    /// Whether the same may succeed at the next leader, where this node is asked by another: one on
    /// its way out leaves the lead.
    pub(crate) fn may_pass_elsewhere(&self) -> bool {
        self.may_pass() || matches!(self, Self::Stopping { .. } | Self::Fatal { .. })
    }

    /// The node that was named, and is no member.
    pub(crate) fn unknown_node(&self) -> Option<NodeId> {
        match self {
            Self::Membership(MembershipError::Unknown { id }) => Some(*id),
            Self::Told(told) => told.unknown,
            _ => None,
        }
    }
}

/// Why a membership change was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MembershipError {
    #[error("node {id} is not a member of this cluster; `quorate cluster status` lists them")]
    Unknown { id: NodeId },
    #[error(
        "node {id} votes already and cannot take the place of node {old}: name a new node, or take node {old} out with `quorate cluster remove {old}`"
    )]
    VotesAlready { id: NodeId, old: NodeId },
    #[error(
        "no quorum: only {alive} of {voters} voters can be reached, {needed} are needed for any change of members; bring the others back first, `quorate cluster status` names them"
    )]
    NoQuorum { alive: usize, voters: usize, needed: usize },
    #[error("the node at {address} has id {found}, not {wanted}")]
    WrongId { address: String, wanted: NodeId, found: u64 },
    #[error(
        "the node at {address} belongs to another cluster ({found}); start it with an empty data directory"
    )]
    OtherCluster { address: String, found: ClusterId },
    /// Of no cluster yet, and no newcomer either.
    #[error(
        "node {id} at {address} waits to found a cluster of its own: it was started with --bootstrap (QUORATE_BOOTSTRAP), and its data directory keeps that; start it without --bootstrap, on an empty directory"
    )]
    Founder { id: NodeId, address: String },
    #[error("node {id} was not heard of lately; it cannot lead now")]
    Silent { id: NodeId },
    #[error(
        "node {id} is a member already, at {address}; a new address needs a new id, or remove the old one first"
    )]
    Taken { id: NodeId, address: String },
    #[error(
        "without node {id}, only {alive} of {voters} voters would be reachable, {needed} are needed; bring the others back first, `quorate cluster status` names them"
    )]
    WouldLoseQuorum { id: NodeId, alive: usize, voters: usize, needed: usize },
    #[error("node {id} is the last voter and cannot be removed")]
    LastVoter { id: NodeId },
    #[error("node {id} is no voter, only voters can lead")]
    NotVoter { id: NodeId },
    #[error("there is no other voter to hand the lead to")]
    NoOther,
    #[error("no other voter answers now, and the lead goes to one that does")]
    NobodyAnswers,
    #[error("node {id} cannot lead now: {why}")]
    Unfit { id: NodeId, why: Unfit },
    #[error("another membership change is going on; try again when it is done")]
    Busy,
    #[error(
        "node {id} did not catch up within {waited_ms} ms: it is at log index {at} of {of}; it stays a learner, the same call goes on from there"
    )]
    TooSlow { id: NodeId, waited_ms: u64, at: u64, of: u64 },
    #[error(
        "node {id} does not answer this leader, and a voter that is down may take the majority away: start it and call again, or take it out with `quorate cluster remove {id}`; it stays a learner"
    )]
    Mute { id: NodeId },
    /// The change is committed.
    #[error(
        "the members are changed, but a majority may not know that yet: {why}; {}call again, which makes it known",
        make_room_first(why.is_full())
    )]
    NotKnown { why: Box<NodeError> },
    #[error(
        "node {id} was taken out of the cluster at revision {revision}, and its certificate does not let it in again: give it a new id and an empty directory, or take it in as an admin, with `quorate cluster add {id} ADDRESS`"
    )]
    WasRemoved { id: NodeId, revision: u64 },
    #[error(
        "whether node {id} was taken out of the cluster is not known any more (its id lies between those of others that were), so its certificate alone does not let it in: give it an id above all that there were, or take it in as an admin, with `quorate cluster add {id} ADDRESS`"
    )]
    PerhapsRemoved { id: NodeId },
    #[error(
        "node {id} at {address} supports levels {min} to {max}, and the cluster is at level {level}: start it with a release that works there (`quorate cluster upgrade status`)"
    )]
    OtherLevels { id: NodeId, address: String, level: u32, min: u32, max: u32 },
    #[error(
        "node {id} does not say which levels it works at: {reason}; the cluster's level is raised only while every member answers: start it, or take it out"
    )]
    Levels { id: NodeId, reason: Unanswered },
    /// `runs`: something listens there, perhaps another node.
    #[error("node {id} does not answer at {address}: {reason}{}", start_first(*runs))]
    NoAnswer { id: NodeId, address: String, reason: Unanswered, runs: bool },
}

/// Why the lead does not go to a voter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unfit {
    #[error("it is at log index {at} of {of}, and has to catch up first")]
    Behind { at: u64, of: u64 },
    #[error("its disk is below its reserve, and it would take no registrations")]
    Full,
    #[error("{0}")]
    Doubtful(String),
    #[error("it was asked to a moment ago, and did not come to; this leader goes on")]
    Untaken,
}

fn make_room_first(is_full: bool) -> &'static str {
    if is_full { "make room there, and " } else { "" }
}

/// What is to be done about a node that was not heard.
fn start_first(runs: bool) -> &'static str {
    if runs { "" } else { "; start it first" }
}

/// Why what a member says of where it is now is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MoveError {
    #[error("peer_address has {bytes} bytes, at most {limit}")]
    TooLong { bytes: usize, limit: usize },
    #[error("the node's address {address:?} is no host:port")]
    NoAddress { address: String },
    #[error("node {id} is no member, as far as node {node} knows")]
    NotMember { id: NodeId, node: NodeId },
}

/// Why a file takes no lines.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Trouble {
    #[error("{0}")]
    Write(Arc<io::Error>),
    #[error("{waiting} lines wait for it")]
    Full { waiting: usize },
    #[error("it takes too long")]
    Late,
}

/// No line can be written, and no write is to be without one.
#[derive(Debug, thiserror::Error)]
#[error("the audit log {} cannot be written ({reason}), and auditing is required: {done}", file.display())]
pub(crate) struct Unwritten {
    pub(crate) file: PathBuf,
    pub(crate) reason: Trouble,
    pub(crate) done: &'static str,
}

/// What a handler can answer instead of a result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error("{what} is {bytes} bytes, at most {limit} allowed; {instead}")]
    TooLarge { what: &'static str, bytes: usize, limit: usize, instead: &'static str },
    #[error(
        "{under_way} bytes of answers are under way {place}, at most {limit} allowed: read them, or ask for less at a time"
    )]
    AnswersUnderWay { under_way: usize, limit: usize, place: &'static str },
    #[error(
        "{limit} calls and streams are under way {place}, as many as may be: end some, or ask another node"
    )]
    CallsUnderWay { limit: usize, place: &'static str },
    #[error(
        "a stream of nobody who is known ends after {} s: begin it again, or with a credential",
        within.as_secs()
    )]
    Ended { within: Duration },
    #[error(
        "{limit} names of services are watched from this address, as many as may be: watch a prefix, end some, or ask another node"
    )]
    NamesWatched { limit: usize },
    #[error(
        "{limit} backups are under way at this node, as many as may be: ask another node, or later"
    )]
    BackupsUnderWay { limit: usize },
    #[error(
        "{limit} bytes of requests are arriving {place}, as many as may be: send less at a time, or ask another node"
    )]
    Arriving { limit: usize, place: &'static str },
    #[error("{what} within {} s", within.as_secs())]
    Late { what: &'static str, within: Duration },
    #[error("no subscription arrived in time")]
    NoSubscription,
    /// Another node may have a file that can be written.
    #[error(transparent)]
    Unwritten(#[from] Unwritten),
    /// A thread of its own was to do it: a bug.
    #[error("a thread that worked on the answer panicked")]
    Panicked(#[from] JoinError),
    #[error("the backup cannot be made")]
    Backup(#[source] io::Error),
    /// No quorum says so.
    #[error(
        "this node cannot tell whether it has all that was acknowledged: ask another one, or, without a quorum, for what it has (`quorate cluster backup --local`)"
    )]
    BackupUnconfirmed(#[source] NodeError),
    #[error(transparent)]
    Node(#[from] NodeError),
}
