//! Linearizable reads (ReadIndex, Raft thesis section 6.4): one round trip to a quorum confirms
//! many reads at once.
//!
//! A round may answer every read that began before the round did: reads wait in a queue, and each
//! round answers all that were in it when the round began.

mod freshness;
mod lead;

use std::future::Future;
use std::time::Duration;

use openraft::ReadPolicy;
use openraft::errors::RaftError;
use openraft::vote::RaftLeaderId as _;
use prometheus_client::metrics::counter::Counter;
use quorate_log::NodeId;
use quorate_proto::ClusterId;
use quorate_state::Registry;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use crate::applied::Position;
use crate::error::{NodeError, Unanswered, Wanted};
use crate::node::queues::hand_in;
use crate::node::reads::lead::Lead;
use crate::node::{Consistency, Node, said, unreachable};
use crate::raft::network::messages::vote_to_wire;
use crate::types::Vote;

pub(crate) use freshness::{CURRENT_MS, age_ms};

/// A node that has applied what its leader had this long ago counts as caught up, ms.
const CAUGHT_UP_MS: u64 = 1_000;
/// A caught-up node waits for a revision that is at most this far ahead. Its leader may be further
/// by what is written within `CAUGHT_UP_MS`: some 100,000 instances where they come a thousand a
/// call, on the fastest machine by far less than this. What is beyond is of a cluster that lost its
/// state, or a mistake, and never comes.
const AHEAD_MAX: u64 = 1_000_000;
/// Reads that wait for a round.
const QUEUE_MAX: usize = 65_536;

type Waiting = oneshot::Sender<Result<u64, NodeError>>;

/// Where calls wait for a round that begins after they have come.
#[derive(Debug)]
pub(crate) struct ReadIndex {
    node: NodeId,
    waiting: mpsc::Sender<Waiting>,
    refused: Counter,
}

/// The other end: the loop of rounds.
pub(crate) struct Rounds {
    waiting: mpsc::Receiver<Waiting>,
}

/// A queue for reads and the loop that empties it; `refused` counts those that are too many.
pub(crate) fn read_index(node: NodeId, refused: Counter) -> (ReadIndex, Rounds) {
    let (sender, receiver) = mpsc::channel(QUEUE_MAX);
    (ReadIndex { node, waiting: sender, refused }, Rounds { waiting: receiver })
}

impl ReadIndex {
    /// A log index that a read which begins now has to wait for.
    ///
    /// # Errors
    /// The round's, for all reads that waited for it; [`NodeError::Overloaded`] when too many wait.
    pub(super) async fn confirm(&self) -> Result<u64, NodeError> {
        let (done, index) = oneshot::channel();
        hand_in(&self.waiting, done, self.node, &self.refused)?;
        index.await.unwrap_or(Err(NodeError::Stopping { node: self.node }))
    }
}

impl Rounds {
    /// Runs a round whenever reads wait, one at a time, until every [`ReadIndex`] is gone.
    pub(crate) async fn run<F>(mut self, mut round: impl FnMut() -> F)
    where
        F: Future<Output = Result<u64, NodeError>>,
    {
        let mut batch = Vec::new();
        while self.waiting.recv_many(&mut batch, QUEUE_MAX).await > 0 {
            let index = round().await;
            for waiting in batch.drain(..) {
                // A caller that is gone needs no answer.
                let _ = waiting.send(index.clone());
            }
        }
    }
}

impl Node {
    /// A copy of the registry to read from, and, for a local read, a moment before which everything
    /// that was acknowledged is in it.
    ///
    /// # Errors
    /// No quorum within the deadline (linearizable), or this node is not as far as `min_revision`.
    pub(crate) async fn read(
        &self,
        consistency: Consistency,
        min_revision: u64,
        deadline: Instant,
    ) -> Result<(Registry, Option<Instant>), NodeError> {
        if consistency == Consistency::Linearizable {
            self.check_inside()?;
            let index = self.read_index(deadline).await?;
            self.await_applied(deadline, |position| position.index >= index).await?;
            if !self.is_founded() {
                let founded = self.await_applied(deadline, |_| self.is_founded()).await;
                founded.map_err(|_| NodeError::Founding { node: self.id })?;
            }
        }
        self.check_member()?;
        self.await_revision(Wanted::MinRevision(min_revision), deadline).await?;
        // Before the copy is made: what this node learns in between is not about it.
        let fresh_at = match consistency {
            Consistency::Linearizable => None,
            Consistency::Local => self.fresh_at(),
        };
        Ok((self.applied.registry(), fresh_at))
    }

    /// Waits until this node has applied a revision.
    ///
    /// # Errors
    /// [`NodeError::Ahead`] at once where it can never come; [`NodeError::Behind`] at the deadline.
    pub(crate) async fn await_revision(
        &self,
        wanted: Wanted,
        deadline: Instant,
    ) -> Result<(), NodeError> {
        let revision = wanted.revision();
        let applied = self.applied.position().revision;
        let is_far = revision.saturating_sub(applied) > AHEAD_MAX;
        if is_far && self.age_ms() <= CAUGHT_UP_MS {
            return Err(NodeError::Ahead { applied, wanted });
        }
        let waited = self.await_applied(deadline, |position| position.revision >= revision).await;
        let applied = self.applied.position().revision;
        waited.map_err(|_| NodeError::Behind { applied, wanted })
    }

    /// Whether this node is a member as of what it has applied; one that is not yet, or no more,
    /// has no list to answer with.
    ///
    /// # Errors
    /// [`NodeError::NotMember`]; [`NodeError::Founding`] while the cluster has no identity.
    pub(crate) fn check_member(&self) -> Result<(), NodeError> {
        let cluster_id = self.peers.cluster_id();
        let state = self.applied.lock();
        if self.leadership.is_removed() || state.membership.get_node(&self.id).is_none() {
            return Err(NodeError::NotMember { node: self.id });
        }
        if cluster_id.is_none() || state.registry.cluster_id().map(ClusterId::from) != cluster_id {
            return Err(NodeError::Founding { node: self.id });
        }
        Ok(())
    }

    /// Waits until this node has applied something.
    ///
    /// # Errors
    /// Why it has not by the deadline.
    async fn await_applied(
        &self,
        deadline: Instant,
        mut reached: impl FnMut(&Position) -> bool,
    ) -> Result<(), NodeError> {
        // Most calls find it so, and need no timer.
        if reached(&self.applied.position()) {
            return Ok(());
        }
        let since = Instant::now();
        let mut positions = self.applied.positions();
        let waited = tokio::select! {
            waited = timeout_at(deadline, positions.wait_for(reached)) => waited,
            () = self.stop.cancelled() => return Err(NodeError::Stopping { node: self.id }),
        };
        match waited {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(NodeError::Stopping { node: self.id }),
            Err(_elapsed) => Err(self.late(since)),
        }
    }

    /// The index that a linearizable read which begins now has to wait for.
    async fn read_index(&self, deadline: Instant) -> Result<u64, NodeError> {
        let since = Instant::now();
        loop {
            if self.stop.is_cancelled() {
                return Err(NodeError::Stopping { node: self.id });
            }
            if self.leadership.is_removed() {
                return Err(NodeError::NotMember { node: self.id });
            }
            let leader = self.current_leader();
            let confirmed = tokio::select! {
                confirmed = timeout_at(deadline, self.queues.reads.confirm()) => confirmed,
                () = self.leadership.removed() => continue,
            };
            match confirmed {
                Err(_elapsed) => return Err(self.late(since)),
                Ok(Err(error)) if error.may_pass() => {}
                Ok(index) => return index,
            }
            if !self.pause(leader, deadline).await {
                return Err(self.late(since));
            }
        }
    }

    /// One round with the leader of its beginning; ends when another node leads.
    pub(super) async fn read_index_round(&self) -> Result<u64, NodeError> {
        let Some(leader) = self.current_leader() else {
            return Err(NodeError::NotLeader { node: self.id });
        };
        let round = async {
            match leader == self.id {
                true => self.read_index_here().await,
                // Bounded, so that a leader that hangs does not hold up the reads that wait for
                // this round.
                false => self.read_index_at(leader, self.silence_max()).await,
            }
        };
        tokio::select! {
            index = round => index,
            // A leader that has just lost the lead may never answer.
            () = self.leader_is_other_than(Some(leader)) => {
                Err(NodeError::NotLeader { node: leader })
            }
        }
    }

    async fn read_index_at(&self, leader: NodeId, patience: Duration) -> Result<u64, NodeError> {
        let vote = self.raft.with_raft_state(|state| *state.vote_ref()).await;
        let mut vote = vote.map_err(|fatal| self.fatal(&fatal))?;
        if !self.recall.knows_its_vote(vote.leader_id().term()) {
            // It may have given a later one: this one vouches for no leader.
            vote = Vote::new(0, self.id);
        }
        let vote = vote_to_wire(&vote);
        let address = self.peer_address(leader)?;
        match timeout(patience, self.peers.read_index(leader, &address, vote)).await {
            Ok(Ok(index)) => Ok(index),
            Ok(Err(status)) => {
                self.peers.book.missed(leader, &address);
                Err(unreachable(leader, address, said(status.code(), status.message())))
            }
            Err(_elapsed) => Err(unreachable(leader, address, Unanswered::Late)),
        }
    }

    /// The index that a read has to wait for, confirmed by a quorum; only while this node leads.
    pub(super) async fn read_index_here(&self) -> Result<u64, NodeError> {
        match self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => Ok(linearizer.read_log_id().index()),
            Err(RaftError::Fatal(fatal)) => Err(self.fatal(&fatal)),
            Err(RaftError::APIError(_)) => Err(NodeError::NotLeader { node: self.id }),
        }
    }

    /// The index for the reads of another node, which has this vote: shares rounds with this node's
    /// own, unless that node and this one are a quorum.
    ///
    /// # Errors
    /// [`NodeError::NotLeader`] if this node does not lead.
    pub(crate) async fn read_index_for_peer(
        &self,
        from: NodeId,
        vote: Vote,
    ) -> Result<u64, NodeError> {
        if !self.leads() {
            return Err(NodeError::NotLeader { node: self.id });
        }
        let me = self.id;
        let index =
            self.raft.with_raft_state(move |state| Lead::of(state, me).vouched(from, &vote));
        if let Ok(Some(index)) = index.await {
            return Ok(index);
        }
        self.queues.reads.confirm().await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn node(number: u64) -> NodeId {
        NodeId::new(number).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn reads_that_wait_share_one_later_round() {
        let (reads, rounds) = read_index(node(1), Counter::default());
        let reads = Arc::new(reads);
        let (begun, begins) = mpsc::channel(100);
        let count = Arc::new(AtomicU64::new(0));
        let counted = count.clone();
        tokio::spawn(rounds.run(move || {
            let (begun, counted) = (begun.clone(), counted.clone());
            async move {
                begun.send(()).await.unwrap();
                tokio::time::sleep(Duration::from_millis(10)).await;
                Ok(counted.fetch_add(1, Ordering::SeqCst) + 1)
            }
        }));
        let mut begins = begins;
        let first = tokio::spawn({
            let reads = reads.clone();
            async move { reads.confirm().await.unwrap() }
        });
        begins.recv().await.unwrap();
        let mut later = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let reads = reads.clone();
            later.spawn(async move { reads.confirm().await.unwrap() });
        }
        assert_eq!(first.await.unwrap(), 1);
        let indexes = later.join_all().await;
        assert!(indexes.iter().all(|index| *index == 2), "a round that began before is no answer");
        assert_eq!(count.load(Ordering::SeqCst), 2, "one for all that waited");
    }
}
