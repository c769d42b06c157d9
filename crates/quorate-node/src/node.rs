//! One node: proposes writes (here or at the leader), reads, and answers what only a leader can. Handlers of calls reach
//! Raft and the registry only through this.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{Instant as _, RaftMetrics, ReadPolicy};
use quorate_proto::peer::v1::{Payload, ReadIndexRequest};
use quorate_state::{Clock, Command, LeaseId, Op, Registry, Reply};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::applied::Applied;
use crate::clock::LeaderClock;
use crate::config::Tunables;
use crate::disk::Disk;
use crate::error::NodeError;
use crate::leadership::Leadership;
use crate::membership::MembershipCall;
use crate::peers::{Lane, Peers};
use crate::raft::types::{Member, Outcome, Raft, TypeConfig, decode, encode};
use crate::reads::ReadIndex;
use crate::renewals::{BatchRenewed, Renewals, Renewed};

/// After a failed attempt, the next one waits this long unless the leader changes before.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// What only the leader can do; travels to it from any node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum LeaderCall {
    Propose(Op),
    Renew(Vec<LeaseId>),
    Membership(MembershipCall),
}

/// The leader's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum LeaderAnswer {
    Outcome(Outcome),
    Renewed { unknown: Vec<LeaseId>, revision: u64 },
    Members(Vec<MemberInfo>),
    Leader(u64),
}

/// A member as the membership has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemberInfo {
    pub(crate) id: u64,
    pub(crate) member: Member,
    pub(crate) voter: bool,
}

/// How fresh a read has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Consistency {
    Linearizable,
    Local,
}

/// See the head of this file.
pub(crate) struct Node {
    pub(crate) id: u64,
    /// The addresses that others are told.
    pub(crate) me: Member,
    pub(crate) tunables: Tunables,
    pub(crate) raft: Raft,
    pub(crate) metrics: openraft::alias::WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>,
    pub(crate) applied: Arc<Applied>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) clock: LeaderClock,
    pub(crate) leadership: Leadership,
    pub(crate) disk: Arc<Disk>,
    /// Renewals of this node's clients, on their way to the leader.
    pub(crate) edge_renewals: Renewals,
    /// Renewals of all nodes, on their way into the log; used while this node leads.
    pub(crate) log_renewals: Renewals,
    pub(crate) reads: ReadIndex,
    /// Membership changes, one at a time.
    pub(crate) membership: AsyncMutex<()>,
    pub(crate) started: Instant,
    /// Cancelled when the node begins to stop.
    pub(crate) stop: CancellationToken,
}

impl Node {
    /// Proposes a write and waits until it is applied; forwards it if another node leads.
    ///
    /// # Errors
    /// The state machine's refusal, or why it could not be told in time.
    pub(crate) async fn propose(&self, op: Op, deadline: Instant) -> Result<Outcome, NodeError> {
        match self.on_leader(LeaderCall::Propose(op), deadline).await? {
            LeaderAnswer::Outcome(outcome) => accepted(outcome),
            other => Err(self.mismatched(&other)),
        }
    }

    /// Renews leases with the next batch.
    ///
    /// # Errors
    /// Why it could not be done in time.
    pub(crate) async fn renew(
        &self,
        leases: Vec<LeaseId>,
        deadline: Instant,
    ) -> Result<Renewed, NodeError> {
        let since = Instant::now();
        let renewals = if self.leads() { &self.log_renewals } else { &self.edge_renewals };
        match tokio::time::timeout_at(deadline, renewals.submit(leases.clone())).await {
            Ok(Err(NodeError::NotLeader { .. })) => self.renew_batch(leases, deadline).await,
            Ok(done) => done,
            Err(_) => Err(self.late(since)),
        }
    }

    /// Renews leases at the leader.
    pub(crate) async fn renew_batch(
        &self,
        leases: Vec<LeaseId>,
        deadline: Instant,
    ) -> Result<Renewed, NodeError> {
        match self.on_leader(LeaderCall::Renew(leases), deadline).await? {
            LeaderAnswer::Renewed { unknown, revision } => Ok(Renewed { unknown, revision }),
            other => Err(self.mismatched(&other)),
        }
    }

    /// Proposes one entry with many renewals; only while this node leads.
    pub(crate) async fn propose_renewals(
        &self,
        leases: Vec<LeaseId>,
    ) -> Result<BatchRenewed, NodeError> {
        let Outcome { reply, revision } = self.propose_here(Op::Renew(leases)).await?;
        let Reply::Renewed { unknown } = reply else {
            return Err(self.mismatched(&reply));
        };
        let unknown = Arc::new(unknown.into_iter().collect());
        Ok(BatchRenewed { unknown, revision: revision.0 })
    }

    /// Has the leader do something, wherever it is, trying again when the leader changes, until the deadline.
    ///
    /// # Errors
    /// The leader's refusal; [`NodeError::NoLeader`] or [`NodeError::NoAnswer`] at the deadline.
    pub(crate) async fn on_leader(
        &self,
        call: LeaderCall,
        deadline: Instant,
    ) -> Result<LeaderAnswer, NodeError> {
        let since = Instant::now();
        let mut metrics = self.metrics.clone();
        loop {
            if self.stop.is_cancelled() {
                return Err(NodeError::Stopping { node: self.id });
            }
            let leader = metrics.borrow_watched().current_leader;
            let attempt = async {
                match leader {
                    None => Err(NodeError::NotLeader { node: 0 }),
                    Some(id) if id == self.id => self.execute(call.clone(), deadline).await,
                    Some(id) => self.forward(id, &call, deadline).await,
                }
            };
            let elsewhere = async {
                while metrics.borrow_watched().current_leader == leader {
                    if metrics.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
            };
            let done = tokio::select! {
                done = tokio::time::timeout_at(deadline, attempt) => done,
                () = elsewhere => continue,
            };
            match done {
                Err(_elapsed) => return Err(self.late(since)),
                Ok(Err(NodeError::NotLeader { .. } | NodeError::PeerUnreachable { .. })) => {}
                Ok(answer) => return answer,
            }
            let pause = (Instant::now() + RETRY_PAUSE).min(deadline);
            let _ = tokio::time::timeout_at(pause, metrics.changed()).await;
            if Instant::now() >= deadline {
                return Err(self.late(since));
            }
        }
    }

    /// Does here what only a leader can do.
    ///
    /// # Errors
    /// [`NodeError::NotLeader`] if this node is not it.
    pub(crate) async fn execute(
        &self,
        call: LeaderCall,
        deadline: Instant,
    ) -> Result<LeaderAnswer, NodeError> {
        if !self.leads() {
            return Err(NodeError::NotLeader { node: self.id });
        }
        match call {
            LeaderCall::Propose(op) => self.propose_here(op).await.map(LeaderAnswer::Outcome),
            LeaderCall::Renew(leases) => {
                let Renewed { unknown, revision } = self.log_renewals.submit(leases).await?;
                Ok(LeaderAnswer::Renewed { unknown, revision })
            }
            LeaderCall::Membership(call) => self.change_membership(call, deadline).await,
        }
    }

    /// Stamps a command and puts it into the log; only while this node leads.
    pub(crate) async fn propose_here(&self, op: Op) -> Result<Outcome, NodeError> {
        self.disk.check()?;
        let clock = self.read_clock();
        match self.raft.client_write(Command { clock, op }).await {
            Ok(written) => Ok(written.data),
            Err(RaftError::Fatal(fatal)) => Err(self.fatal(&fatal)),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))
            | Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(_))) => {
                Err(NodeError::NotLeader { node: self.id })
            }
            Err(RaftError::APIError(other)) => {
                Err(NodeError::Fatal { node: self.id, reason: other.to_string() })
            }
        }
    }

    /// A copy of the registry to read from.
    ///
    /// # Errors
    /// No quorum within the deadline (linearizable), or this node is not as far as `min_revision`.
    pub(crate) async fn read(
        &self,
        consistency: Consistency,
        min_revision: u64,
        deadline: Instant,
    ) -> Result<Registry, NodeError> {
        if consistency == Consistency::Linearizable {
            let index = self.read_index(deadline).await?;
            self.await_applied(deadline, |position| position.index >= index).await?;
        }
        self.check_member()?;
        let waited = self.await_applied(deadline, |position| position.revision >= min_revision);
        waited.await.map_err(|_| NodeError::Behind {
            applied: self.applied.position().revision,
            wanted: min_revision,
        })?;
        Ok(self.applied.registry())
    }

    /// Whether this node is a member as of what it has applied; one that is not yet, or no more, has no list to answer with.
    ///
    /// # Errors
    /// [`NodeError::NotMember`].
    pub(crate) fn check_member(&self) -> Result<(), NodeError> {
        let state = self.applied.lock();
        match state.membership.get_node(&self.id) {
            Some(_) => Ok(()),
            None => Err(NodeError::NotMember { node: self.id }),
        }
    }

    /// How old what this node has may be, in ms; the maximum: it has never heard of a leader.
    pub(crate) fn age_ms(&self) -> u64 {
        if self.leads() && self.quorum_silence() < self.election_timeout_max() {
            return self.quorum_silence().as_millis() as u64;
        }
        let age = self.leadership.age(self.applied.position().index);
        age.map_or(u64::MAX, |age| age.as_millis() as u64)
    }

    /// The index that a linearizable read which begins now has to wait for.
    async fn read_index(&self, deadline: Instant) -> Result<u64, NodeError> {
        let since = Instant::now();
        loop {
            let metrics = self.metrics.clone();
            let leader = metrics.borrow_watched().current_leader;
            let round = self.reads.confirm(self.read_index_round(leader));
            match tokio::time::timeout_at(deadline, round).await {
                Err(_elapsed) => return Err(self.late(since)),
                Ok(Ok(index)) => return Ok(index),
                Ok(Err(NodeError::NotLeader { .. } | NodeError::PeerUnreachable { .. })) => {}
                Ok(Err(error)) => return Err(error),
            }
            let pause = (Instant::now() + RETRY_PAUSE).min(deadline);
            let _ = tokio::time::timeout_at(pause, self.metrics.clone().changed()).await;
            if Instant::now() >= deadline {
                return Err(self.late(since));
            }
        }
    }

    async fn read_index_round(&self, leader: Option<u64>) -> Result<u64, NodeError> {
        let Some(leader) = leader else { return Err(NodeError::NotLeader { node: 0 }) };
        if leader == self.id {
            return self.read_index_here().await;
        }
        // Bounded, so that a leader that hangs does not hold up the reads that wait behind this round.
        let timeout = self.election_timeout_max();
        let request = self.peers.request(leader, ReadIndexRequest {}, Some(timeout));
        let (address, mut client) = self.peer_client(leader, Lane::Control)?;
        match tokio::time::timeout(timeout, client.read_index(request)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner().index),
            Ok(Err(status)) => Err(unreachable(leader, address, status.message())),
            Err(elapsed) => Err(unreachable(leader, address, &elapsed.to_string())),
        }
    }

    /// The index that a read has to wait for, confirmed by a quorum; only while this node leads.
    pub(crate) async fn read_index_here(&self) -> Result<u64, NodeError> {
        match self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => Ok(linearizer.read_log_id().index()),
            Err(RaftError::Fatal(fatal)) => Err(self.fatal(&fatal)),
            Err(RaftError::APIError(_)) => Err(NodeError::NotLeader { node: self.id }),
        }
    }

    /// Reads' index for another node: shares rounds with this node's own reads.
    pub(crate) async fn read_index_for_peer(&self) -> Result<u64, NodeError> {
        self.reads.confirm(self.read_index_here()).await
    }

    pub(crate) async fn await_applied(
        &self,
        deadline: Instant,
        reached: impl FnMut(&crate::applied::Position) -> bool,
    ) -> Result<(), NodeError> {
        let since = Instant::now();
        let mut positions = self.applied.positions();
        let waited = tokio::time::timeout_at(deadline, positions.wait_for(reached)).await;
        match waited {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(NodeError::Stopping { node: self.id }),
            Err(_elapsed) => Err(self.late(since)),
        }
    }

    async fn forward(
        &self,
        leader: u64,
        call: &LeaderCall,
        deadline: Instant,
    ) -> Result<LeaderAnswer, NodeError> {
        let (address, mut client) = self.peer_client(leader, Lane::Forward)?;
        let timeout = deadline.saturating_duration_since(Instant::now());
        let payload = Payload { data: encode(call) };
        match client.forward(self.peers.request(leader, payload, Some(timeout))).await {
            Ok(answer) => decode(&answer.into_inner().data)
                .unwrap_or_else(|error| Err(unreachable(leader, address, &error.to_string()))),
            Err(status) => Err(unreachable(leader, address, status.message())),
        }
    }

    pub(crate) fn peer_client(
        &self,
        id: u64,
        lane: Lane,
    ) -> Result<(String, crate::peers::Client), NodeError> {
        let address = self.member(id).map(|member| member.peer_address);
        let Some(address) = address else {
            return Err(unreachable(id, String::new(), "not a known member"));
        };
        match self.peers.client(&address, lane) {
            Ok(client) => Ok((address, client)),
            Err(status) => Err(unreachable(id, address, status.message())),
        }
    }

    /// Whether this node believes that it leads.
    pub(crate) fn leads(&self) -> bool {
        let metrics = self.metrics.borrow_watched();
        metrics.state.is_leader() && metrics.current_leader == Some(self.id)
    }

    pub(crate) fn term(&self) -> u64 {
        self.metrics.borrow_watched().current_term
    }

    /// A member's addresses, as far as this node's membership has them.
    pub(crate) fn member(&self, id: u64) -> Option<Member> {
        let metrics = self.metrics.borrow_watched();
        metrics.membership_config.get_node(&id).cloned()
    }

    /// All members in effect, by id.
    pub(crate) fn members(&self) -> Vec<MemberInfo> {
        let metrics = self.metrics.borrow_watched();
        let membership = &metrics.membership_config;
        let voters: std::collections::BTreeSet<u64> = membership.voter_ids().collect();
        let info = |(id, member): (&u64, &Member)| MemberInfo {
            id: *id,
            member: member.clone(),
            voter: voters.contains(id),
        };
        membership.nodes().map(info).collect()
    }

    /// How long ago a quorum last acknowledged this leader.
    pub(crate) fn quorum_silence(&self) -> Duration {
        let metrics = self.metrics.borrow_watched();
        let voters = metrics.membership_config.voter_ids().count();
        if voters <= 1 {
            return Duration::ZERO;
        }
        let acked = metrics.last_quorum_acked.as_ref();
        acked.map_or(Duration::MAX, |acked| acked.elapsed())
    }

    pub(crate) fn read_clock(&self) -> Clock {
        let applied = self.applied.lock().registry.clock();
        self.clock.read(self.term(), applied, self.quorum_silence())
    }

    pub(crate) fn election_timeout_max(&self) -> Duration {
        Duration::from_millis(self.tunables.election_timeout_max_ms)
    }

    fn late(&self, since: Instant) -> NodeError {
        let waited_ms = since.elapsed().as_millis() as u64;
        match self.metrics.borrow_watched().current_leader {
            Some(leader) => NodeError::NoAnswer { leader, waited_ms },
            None => NodeError::NoLeader { waited_ms },
        }
    }

    fn fatal(&self, reason: &impl std::fmt::Display) -> NodeError {
        NodeError::Fatal { node: self.id, reason: reason.to_string() }
    }

    pub(crate) fn mismatched(&self, answer: &impl std::fmt::Debug) -> NodeError {
        let reason = format!("an answer of another kind than was asked for: {answer:?}");
        NodeError::Fatal { node: self.id, reason }
    }
}

fn accepted(outcome: Outcome) -> Result<Outcome, NodeError> {
    match outcome.reply {
        Reply::Rejected(rejection) => Err(NodeError::Rejected(rejection)),
        _ => Ok(outcome),
    }
}

fn unreachable(node: u64, address: String, reason: &str) -> NodeError {
    NodeError::PeerUnreachable { node, address, reason: reason.to_owned() }
}
