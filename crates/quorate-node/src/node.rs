//! One node: proposes writes (here or at the leader), reads, and answers what only a leader can.
//! Handlers of calls reach Raft and the registry only through this.
//!
//! | file | duty |
//! |---|---|
//! | `propose`, `calls` | does something on the leader, wherever it is; what only a leader can do, and the answer to each |
//! | `forwards`, `renewals`, `queues` | calls in one message; renewals in one entry; where both wait, and the loops that do them |
//! | `reads` | reads in one round, and how old what is read may be |
//! | `membership`, `status`, `leadership` | changing members; how they are; the leader and how fresh that is |
//! | `quorum` | which voters answer |
//! | `outsiders` | nodes that lead or stand and are no members here |
//! | `twins` | two processes with one id |
//! | `succession` | the end of a node from whose cluster another one was made |
//! | `condition` | this node's place in its cluster, and what else an operator has to know of it |
//! | `own_files` | which of its files other users of its machine may read or change |
//! | `requests` | the name of a write, so that it is done once |
//! | `room` | whether there is room for it: on the disk, in the log, in the registry |
//! | `snapshot` | a snapshot that a call waits for |

pub(crate) mod calls;
pub(crate) mod condition;
pub(crate) mod forwards;
pub(crate) mod leadership;
pub(crate) mod membership;
pub(crate) mod outsiders;
pub(crate) mod own_files;
mod propose;
pub(crate) mod queues;
mod quorum;
pub(crate) mod reads;
pub(crate) mod renewals;
pub(crate) mod requests;
mod room;
pub(crate) mod snapshot;
pub(crate) mod status;
pub(crate) mod succession;
mod twins;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::metrics::RaftServerMetrics;
use openraft::{AsyncRuntime as _, Instant as _, RaftMetrics};
use quorate_log::NodeId;
use quorate_proto::requests::Origin;
use quorate_state::{Clock, Level, Levels};
use rand_core::Rng as _;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::access::Access;
use crate::applied::Applied;
use crate::applied::encoded::EncodedServices;
use crate::audit::Audit;
use crate::clock::LeaderClock;
use crate::config::Tunables;
use crate::error::{NodeError, Unanswered};
use crate::free_space::Disk;
use crate::meters::Meters;
use crate::net::answers::{Answers, Refused};
use crate::node::condition::Vitals;
use crate::node::leadership::Leadership;
use crate::node::queues::{Queues, Waiting, queues};
use crate::node::status::ProbeCounts;
use crate::peers::Peers;
use crate::raft::Raft;
use crate::raft::recall::Recall;
use crate::runtime::Runtime;
use crate::types::{Fatal, Member, TypeConfig};

/// A member as the membership has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemberInfo {
    pub(crate) id: NodeId,
    pub(crate) member: Member,
    pub(crate) voter: bool,
}

/// How fresh a read has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Consistency {
    Linearizable,
    Local,
}

type View = openraft::alias::WatchReceiverOf<TypeConfig, RaftServerMetrics<TypeConfig>>;
type Metrics = openraft::alias::WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>;

/// The parts of this node that calls and loops share.
pub(crate) struct Node {
    id: NodeId,
    /// The addresses that this node announces.
    me: Member,
    /// Those that it works at.
    levels: Levels,
    tunables: Tunables,
    raft: Raft,
    /// The leader and the members: changes seldom, so it is what calls wait on.
    view: View,
    /// Everything that Raft reports of itself: changes with every step it takes, so nothing that a
    /// call does waits on it.
    metrics: Metrics,
    applied: Arc<Applied>,
    peers: Arc<Peers>,
    clock: LeaderClock,
    leadership: Leadership,
    /// What this node had promised, and others to it.
    recall: Arc<Recall>,
    disk: Arc<Disk>,
    access: Arc<Access>,
    audit: Arc<Audit>,
    meters: Arc<Meters>,
    queues: Queues,
    probes: ProbeCounts,
    vitals: Vitals,
    /// Names the writes of callers that do not name theirs.
    origin: Origin,
    answers: Arc<Answers>,
    /// What was fetched last.
    encoded: EncodedServices,
    /// Membership changes, one at a time.
    membership: Semaphore,
    /// What the others said of nodes that are no members here.
    outsiders: outsiders::Outsiders,
    twins: twins::Twins,
    succession: succession::Succession,
    /// In which all members are asked how they are.
    rounds: status::Rounds<status::Reports>,
    started: Instant,
    /// The ids of the nodes that are to found the cluster with this one; empty for a node that
    /// joins.
    founders: BTreeSet<NodeId>,
    /// False for a founder that does not know yet whether it has run before: see
    /// `upkeep/amnesia.rs`.
    takes_part: AtomicBool,
    /// Cancelled when the node begins to stop.
    stop: CancellationToken,
}

/// What a node is made of that is there before it.
pub(crate) struct Parts {
    pub(crate) id: NodeId,
    pub(crate) me: Member,
    pub(crate) levels: Levels,
    pub(crate) tunables: Tunables,
    pub(crate) raft: Raft,
    pub(crate) applied: Arc<Applied>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) recall: Arc<Recall>,
    pub(crate) disk: Arc<Disk>,
    pub(crate) access: Arc<Access>,
    pub(crate) audit: Arc<Audit>,
    pub(crate) meters: Arc<Meters>,
    pub(crate) founders: BTreeSet<NodeId>,
    pub(crate) takes_part: bool,
    pub(crate) vitals: Vitals,
    /// Whether the operator allows health checks.
    pub(crate) makes_checks: bool,
}

impl Node {
    /// A node, and what waits in its queues for loops to do it.
    pub(crate) fn new(parts: Parts) -> (Self, Waiting) {
        let Parts { id, me, tunables, raft, applied, peers, recall, disk, founders, .. } = parts;
        let (queues, waiting) =
            queues(id, Duration::from_millis(tunables.renew_window_ms), &parts.meters);
        let refused = Refused {
            in_all: parts.meters.refused("answers"),
            of_connection: parts.meters.refused("answers_of_connection"),
            encoding: parts.meters.refused("encoding"),
            backups: parts.meters.refused("backups"),
        };
        let node = Self {
            id,
            me,
            levels: parts.levels,
            metrics: raft.metrics(),
            view: raft.server_metrics(),
            raft,
            applied,
            peers,
            clock: LeaderClock::default(),
            leadership: Leadership::new(),
            recall,
            disk,
            access: parts.access,
            audit: parts.audit,
            meters: parts.meters,
            queues,
            vitals: parts.vitals,
            probes: ProbeCounts { allowed: parts.makes_checks, ..ProbeCounts::default() },
            origin: Origin::new(Runtime::thread_rng().next_u64()),
            answers: Arc::new(Answers::new(
                tunables.answers_bytes_max,
                tunables.answers_per_connection_bytes_max,
                refused,
            )),
            encoded: EncodedServices::default(),
            membership: Semaphore::new(1),
            outsiders: outsiders::Outsiders::default(),
            twins: twins::Twins::default(),
            succession: succession::Succession::default(),
            rounds: status::Rounds::default(),
            started: Instant::now(),
            founders,
            takes_part: AtomicBool::new(parts.takes_part),
            stop: CancellationToken::new(),
            tunables,
        };
        (node, waiting)
    }

    /// The levels of a cluster that it works at.
    pub(crate) fn levels(&self) -> Levels {
        self.levels
    }

    /// The cluster's level, as far as this node has applied.
    pub(crate) fn level(&self) -> Level {
        self.applied.lock().registry.level()
    }

    pub(crate) fn id(&self) -> NodeId {
        self.id
    }

    /// The addresses that this node announces.
    pub(crate) fn me(&self) -> &Member {
        &self.me
    }

    pub(crate) fn tunables(&self) -> &Tunables {
        &self.tunables
    }

    /// The library, for its own messages, its snapshots and its end. Writes go by
    /// [`Node::propose`].
    pub(crate) fn raft(&self) -> &Raft {
        &self.raft
    }

    /// The leader and the members.
    pub(crate) fn view(&self) -> &View {
        &self.view
    }

    /// Everything that Raft reports of itself.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn applied(&self) -> &Arc<Applied> {
        &self.applied
    }

    pub(crate) fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    pub(crate) fn clock(&self) -> &LeaderClock {
        &self.clock
    }

    pub(crate) fn leadership(&self) -> &Leadership {
        &self.leadership
    }

    /// What this node had promised, and others to it.
    pub(crate) fn recall(&self) -> &Arc<Recall> {
        &self.recall
    }

    pub(crate) fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// Who may do what.
    pub(crate) fn access(&self) -> &Arc<Access> {
        &self.access
    }

    /// What is said of what they did.
    pub(crate) fn audit(&self) -> &Arc<Audit> {
        &self.audit
    }

    /// What is measured.
    pub(crate) fn meters(&self) -> &Arc<Meters> {
        &self.meters
    }

    pub(crate) fn probes(&self) -> &ProbeCounts {
        &self.probes
    }

    /// What this node looks at to say how it is.
    pub(crate) fn vitals(&self) -> &Vitals {
        &self.vitals
    }

    /// The answers under way.
    pub(crate) fn answers(&self) -> &Arc<Answers> {
        &self.answers
    }

    /// What was fetched last.
    pub(crate) fn encoded(&self) -> &EncodedServices {
        &self.encoded
    }

    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// The ids of the nodes that are to found the cluster with this one; empty for a node that
    /// joins.
    pub(crate) fn founders(&self) -> &BTreeSet<NodeId> {
        &self.founders
    }

    /// False for a founder that does not know yet whether it has run before: see
    /// `upkeep/amnesia.rs`.
    pub(crate) fn takes_part(&self) -> bool {
        self.takes_part.load(Ordering::Acquire)
    }

    pub(crate) fn take_part(&self) {
        self.takes_part.store(true, Ordering::Release);
    }

    /// Cancelled when the node begins to stop.
    pub(crate) fn stop(&self) -> &CancellationToken {
        &self.stop
    }
}

impl Node {
    /// The leader, as far as this node's Raft knows.
    pub(crate) fn current_leader(&self) -> Option<NodeId> {
        self.view.borrow_watched().current_leader
    }

    /// Whether this node has applied which cluster it is of, and has that on disk.
    pub(crate) fn is_founded(&self) -> bool {
        let cluster_id = self.peers.cluster_id();
        cluster_id.is_some() && self.applied.position().cluster_id == cluster_id
    }

    /// A node that is in no cluster and founds none may wait for days to be taken in; another node
    /// can do now what it is asked for.
    ///
    /// # Errors
    /// [`NodeError::NotMember`].
    pub(crate) fn check_inside(&self) -> Result<(), NodeError> {
        let waits = self.founders.is_empty() && self.peers.cluster_id().is_none();
        match waits && self.current_leader().is_none() {
            true => Err(NodeError::NotMember { node: self.id }),
            false => Ok(()),
        }
    }

    /// Whether this node believes that it leads.
    pub(crate) fn leads(&self) -> bool {
        let view = self.view.borrow_watched();
        view.state.is_leader() && view.current_leader == Some(self.id)
    }

    pub(crate) fn term(&self) -> u64 {
        self.metrics.borrow_watched().current_term
    }

    /// A member's addresses, as far as this node's membership has them.
    pub(crate) fn member(&self, id: NodeId) -> Option<Member> {
        self.view.borrow_watched().membership_config.get_node(&id).cloned()
    }

    /// The log index of the membership in effect, if this node is a member by it.
    pub(crate) fn member_as_of(&self) -> Option<u64> {
        let view = self.view.borrow_watched();
        let membership = &view.membership_config;
        membership.get_node(&self.id)?;
        membership.log_id().map(|log_id| log_id.index())
    }

    /// The log index of the membership in effect; 0: it is not applied yet, and may come to
    /// nothing.
    pub(crate) fn members_as_of(&self) -> u64 {
        let of = *self.view.borrow_watched().membership_config.log_id();
        let index = of.map_or(0, |log_id| log_id.index());
        if index <= self.applied.position().index { index } else { 0 }
    }

    /// Whether this node knows any members: not before a cluster was founded or this node taken in.
    pub(crate) fn has_membership(&self) -> bool {
        self.view.borrow_watched().membership_config.nodes().next().is_some()
    }

    /// By the membership in effect, both halves of a joint one; before there is one, by the
    /// founders' list.
    pub(crate) fn counts_as_voter(&self, id: NodeId) -> bool {
        let votes = self.view.borrow_watched().membership_config.voter_ids().any(|it| it == id);
        votes || !self.has_membership() && self.founders.contains(&id)
    }

    /// The highest term that this node has voted in, or followed a leader of.
    pub(crate) fn vote_term(&self) -> u64 {
        self.view.borrow_watched().vote.leader_id().term
    }

    /// All members in effect, by id.
    pub(crate) fn members(&self) -> Vec<MemberInfo> {
        let view = self.view.borrow_watched();
        let membership = &view.membership_config;
        let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
        let info = |(id, member): (&NodeId, &Member)| MemberInfo {
            id: *id,
            member: member.clone(),
            voter: voters.contains(id),
        };
        membership.nodes().map(info).collect()
    }

    /// Where clients reach the members, as far as this node knows.
    pub(crate) fn client_addresses(&self) -> Vec<String> {
        let removed = self.leadership.is_removed();
        let members = self.members().into_iter().filter(|info| !(removed && info.id == self.id));
        let addresses = members.map(|info| info.member.client_address);
        addresses.filter(|address| !address.is_empty()).collect()
    }

    /// How long ago a quorum last acknowledged this leader.
    pub(crate) fn quorum_silence(&self) -> Duration {
        let metrics = self.metrics.borrow_watched();
        // A leader that is being removed is no quorum by itself.
        if metrics.membership_config.voter_ids().all(|voter| voter == self.id) {
            return Duration::ZERO;
        }
        let acked = metrics.last_quorum_acked.as_ref();
        acked.map_or(Duration::MAX, |acked| acked.elapsed())
    }

    pub(crate) fn read_clock(&self) -> Clock {
        let (applied, pending) = self.applied_clock();
        self.clock.read(self.term(), applied, pending)
    }

    fn stamp(&self) -> Clock {
        let (applied, pending) = self.applied_clock();
        self.clock.stamp(self.term(), applied, pending)
    }

    /// And whether anything ends by it.
    fn applied_clock(&self) -> (Clock, bool) {
        let state = self.applied.lock();
        (state.registry.clock(), state.registry.next_deadline().is_some())
    }

    /// The longest silence of a leader that no follower takes for its end.
    pub(crate) fn silence_max(&self) -> Duration {
        let Tunables { election_timeout_min_ms, election_timeout_max_ms, .. } = self.tunables;
        Duration::from_millis(election_timeout_min_ms + election_timeout_max_ms)
    }

    pub(crate) fn late(&self, since: Instant) -> NodeError {
        let waited_ms = since.elapsed().as_millis() as u64;
        match self.current_leader() {
            Some(_) if !self.is_founded() => NodeError::Founding { node: self.id },
            Some(leader) => NodeError::NoAnswer { leader, waited_ms },
            None => NodeError::NoLeader { waited_ms },
        }
    }

    /// Raft has stopped; takes no other error, since no node tries again after this one.
    pub(crate) fn fatal(&self, reason: &Fatal) -> NodeError {
        NodeError::Fatal { node: self.id, reason: Box::new(reason.clone()) }
    }

    pub(crate) fn unexpected(&self, what: &impl std::fmt::Display) -> NodeError {
        NodeError::Unexpected { node: self.id, what: what.to_string() }
    }
}

pub(crate) fn unreachable(node: NodeId, address: String, why: Unanswered) -> NodeError {
    NodeError::PeerUnreachable { node, address, why }
}

/// What a call to another node came back with.
pub(crate) fn said(code: impl Into<i32>, message: &str) -> Unanswered {
    Unanswered::Refused { code: code.into(), message: message.to_owned() }
}
