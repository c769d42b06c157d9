//! Linearizable reads (ReadIndex, Raft thesis section 6.4): one round trip to a quorum confirms
//! many reads at once.
//!
//! A round may answer every read that began before the round did: reads wait in a queue, and each
//! round answers all that were in it when the round began.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use futures_util::StreamExt;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::RaftError;
use openraft::vote::RaftLeaderId;
use openraft::{RaftState, ReadPolicy};
use quorate_log::{ClusterId, NodeId};
use quorate_proto::peer::v1::ReadIndexRequest;
use quorate_state::Registry;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use crate::applied::Position;
use crate::error::{NodeError, Wanted};
use crate::node::{Consistency, Node, unreachable};
use crate::peers::Lane;
use crate::types::{LogId, TypeConfig, Vote, encode};

/// A node that has applied what its leader had this long ago counts as caught up, ms.
const CAUGHT_UP_MS: u64 = 1_000;
/// A caught-up node waits for a revision that is at most this far ahead. Its leader may be further
/// by what is written within `CAUGHT_UP_MS`: some 100,000 instances where they come a thousand a
/// call, on the fastest machine by far less than this. What is beyond is of a cluster that lost its
/// state, or a mistake, and never comes.
const AHEAD_MAX: u64 = 1_000_000;
/// Reads that wait for a round.
const QUEUE_MAX: usize = 65_536;

/// A question for how fresh this node is may take this long: an answer that was long on its way
/// still says its age.
const FRESHNESS_PATIENCE: Duration = Duration::from_secs(10);

type Waiting = oneshot::Sender<Result<u64, NodeError>>;

/// Where reads wait.
#[derive(Debug)]
pub(crate) struct ReadIndex {
    node: NodeId,
    waiting: mpsc::Sender<Waiting>,
}

/// The other end: the loop of rounds.
pub(crate) struct Rounds {
    waiting: mpsc::Receiver<Waiting>,
}

/// A queue for reads and the loop that empties it.
pub(crate) fn read_index(node: NodeId) -> (ReadIndex, Rounds) {
    let (sender, receiver) = mpsc::channel(QUEUE_MAX);
    (ReadIndex { node, waiting: sender }, Rounds { waiting: receiver })
}

impl ReadIndex {
    /// A log index that a read which begins now has to wait for.
    ///
    /// # Errors
    /// The round's, for all reads that waited for it; [`NodeError::Overloaded`] when too many wait.
    pub(crate) async fn confirm(&self) -> Result<u64, NodeError> {
        let (done, index) = oneshot::channel();
        self.waiting.try_send(done).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => NodeError::Overloaded { waiting: QUEUE_MAX },
            mpsc::error::TrySendError::Closed(_) => NodeError::Stopping { node: self.node },
        })?;
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

    /// How old what this node has may be, in ms; the maximum: it does not know.
    pub(crate) fn age_ms(&self) -> u64 {
        age_ms(self.fresh_at())
    }

    /// A moment before which everything that was acknowledged is in what this node has; `None`: it
    /// knows of none.
    pub(crate) fn fresh_at(&self) -> Option<Instant> {
        let confirmed = self.leadership.fresh_at(self.applied.position().index);
        confirmed.max(self.led_at())
    }

    /// That moment, as far as this node knows it from its own lead; `None`: it does not lead, or
    /// has not applied all of its predecessors' entries.
    ///
    /// When a quorum acknowledged a message, no other node led at the moment when it was sent: what
    /// had been acknowledged by then was by this leader, which applies before it acknowledges, or
    /// by the leaders before it.
    fn led_at(&self) -> Option<Instant> {
        let settled = {
            let metrics = self.metrics.borrow_watched();
            let own = metrics.vote.leader_id().to_committed();
            let applied = metrics.last_applied.as_ref();
            metrics.state.is_leader() && applied.is_some_and(|at| *at.committed_leader_id() == own)
        };
        let now = Instant::now();
        settled.then(|| self.quorum_silence()).and_then(|silence| now.checked_sub(silence))
    }

    /// Asks the leader how far it has committed, sure of its lead, and notes down when this was
    /// asked. A leader that is no more does not answer: its answer takes a vote of this node's for
    /// it, read after that moment, that is a quorum with its own, or a round of heartbeats that
    /// began later.
    pub(crate) async fn ask_how_fresh(&self) {
        let asked = Instant::now();
        if let Some(led_at) = self.led_at() {
            // Kept for when it leads no more.
            self.leadership.confirmed(0, led_at, self.applied.position().index);
            return;
        }
        let Some(leader) = self.current_leader().filter(|leader| *leader != self.id) else {
            return;
        };
        let answer = tokio::select! {
            answer = self.read_index_at(leader, FRESHNESS_PATIENCE) => answer,
            () = self.leader_is_other_than(Some(leader)) => return,
        };
        match answer {
            Ok(index) => {
                self.leadership.confirmed(index, asked, self.applied.position().index);
            }
            Err(error) => tracing::trace!(%error, "the leader did not say how far it is"),
        }
    }

    /// Keeps asking, once in a heartbeat, and at once when another node leads. Messages that were
    /// merely read prove no age: they may have waited while this node stood still. Not covered: a
    /// machine whose monotonic clock stands still with it (a paused VM).
    pub(crate) async fn stay_fresh(&self) -> Infallible {
        let every = Duration::from_millis(self.tunables.heartbeat_ms);
        loop {
            let leader = self.current_leader();
            self.ask_how_fresh().await;
            let _ = timeout(every, self.leader_is_other_than(leader)).await;
        }
    }

    /// Waits until this node has applied something.
    ///
    /// # Errors
    /// Why it has not by the deadline.
    pub(crate) async fn await_applied(
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
    pub(crate) async fn read_index_round(&self) -> Result<u64, NodeError> {
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
        let vote = encode(&vote);
        let question = ReadIndexRequest { node_id: self.id.get(), vote };
        let (address, mut client) = self.peer_client(leader, Lane::Control)?;
        let asked = self.peers.reads.ask(leader, &address, question, async |questions| {
            let answers = client.read_index(self.peers.request(leader, questions, None)).await?;
            Ok(answers.into_inner().boxed())
        });
        match timeout(patience, asked).await {
            Ok(Ok(answer)) => Ok(answer.index),
            Ok(Err(status)) => {
                self.peers.book.missed(leader, &address);
                Err(unreachable(leader, address, status.message()))
            }
            Err(elapsed) => Err(unreachable(leader, address, &elapsed.to_string())),
        }
    }

    /// The index that a read has to wait for, confirmed by a quorum; only while this node leads.
    async fn read_index_here(&self) -> Result<u64, NodeError> {
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

/// The age to report of a state that has everything from before this moment: rounded up, since it
/// is "at most".
pub(crate) fn age_ms(fresh_at: Option<Instant>) -> u64 {
    let ms = |at: Instant| u64::try_from(at.elapsed().as_micros().div_ceil(1_000));
    fresh_at.and_then(|at| ms(at).ok()).unwrap_or(u64::MAX)
}

/// What a node's Raft says of its lead.
struct Lead<'a> {
    me: NodeId,
    leads: bool,
    vote: &'a Vote,
    /// The last entry that a quorum has.
    committed: Option<&'a LogId>,
    /// The voters whose majorities count: two sets while a change of membership goes on.
    voters: &'a [BTreeSet<NodeId>],
}

impl<'a> Lead<'a> {
    fn of(state: &'a RaftState<TypeConfig>, me: NodeId) -> Self {
        Self {
            me,
            leads: state.server_state.is_leader(),
            vote: state.vote_ref(),
            committed: state.cluster_committed(),
            voters: state.membership_state.effective().get_joint_config(),
        }
    }

    /// The index that reads of another node have to wait for, if it and this one, which leads, are
    /// a quorum.
    ///
    /// That node read its vote after its reads had begun, and it is this leader's: until then it
    /// had voted for no later one. So its question says what its answer to a heartbeat would (Raft
    /// thesis, section 6.4, steps 1 and 2), a round trip sooner.
    fn vouched(&self, from: NodeId, vote: &Vote) -> Option<u64> {
        let leads = self.leads && self.vote == vote && vote.is_committed();
        let is_quorum = |voters: &BTreeSet<NodeId>| {
            let both = [self.me, from].iter().filter(|id| voters.contains(id)).count();
            self.me != from && both > voters.len() / 2
        };
        // Of an earlier term, it would not show how far that term's leader got.
        let committed = self.committed?;
        let of_this_term = committed.committed_leader_id() == &vote.leader_id().to_committed();
        (leads && of_this_term && self.voters.iter().all(is_quorum)).then_some(committed.index())
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
        let (reads, rounds) = read_index(node(1));
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

    /// Node 1 asks whether it can vouch for node 2's reads.
    #[test]
    fn a_voter_with_the_leaders_vote_is_vouched_for_where_two_are_a_quorum() {
        let committed = |term, number| Vote::new_committed(term, node(number));
        let (ours, at) =
            (committed(5, 1), |vote: Vote| LogId::new(vote.leader_id().to_committed(), 9));
        let three: &[&[u64]] = &[&[1, 2, 3]];
        for (what, from, vote, leads, last, voters, vouched) in [
            ("three voters", 2, ours, true, Some(ours), three, true),
            ("two voters", 2, ours, true, Some(ours), &[&[1, 2]], true),
            ("itself", 1, ours, true, Some(ours), three, false),
            ("no leader any more", 2, ours, false, Some(ours), three, false),
            ("a vote for another, later", 2, committed(6, 3), true, Some(ours), three, false),
            ("a vote for another, earlier", 2, committed(4, 3), true, Some(ours), three, false),
            (
                "a vote for its last lead",
                2,
                committed(4, 1),
                true,
                Some(committed(4, 1)),
                three,
                false,
            ),
            ("a vote in an election", 2, Vote::new(5, node(1)), true, Some(ours), three, false),
            ("nothing committed", 2, ours, true, None, three, false),
            ("committed in an earlier term", 2, ours, true, Some(committed(4, 1)), three, false),
            ("a learner", 4, ours, true, Some(ours), three, false),
            ("a leader that is no voter", 2, ours, true, Some(ours), &[&[2, 3, 4]], false),
            ("four voters", 2, ours, true, Some(ours), &[&[1, 2, 3, 4]], false),
            ("five voters", 2, ours, true, Some(ours), &[&[1, 2, 3, 4, 5]], false),
            ("a quorum of both", 2, ours, true, Some(ours), &[&[1, 2, 3], &[1, 2, 4]], true),
            ("of the old only", 2, ours, true, Some(ours), &[&[1, 2, 3], &[1, 3, 4]], false),
            ("of the new only", 2, ours, true, Some(ours), &[&[1, 3, 4], &[1, 2, 3]], false),
        ] {
            let voters: Vec<BTreeSet<NodeId>> =
                voters.iter().map(|ids| ids.iter().copied().map(node).collect()).collect();
            let last: Option<LogId> = last.map(at);
            let committed = last.as_ref();
            let lead = Lead { me: node(1), leads, vote: &ours, committed, voters: &voters };
            assert_eq!(lead.vouched(node(from), &vote), vouched.then_some(9), "{what}");
        }
        // A leader whose own vote is not for itself as the leader, but the same as the asker's.
        let (candidate, voters) = (Vote::new(5, node(1)), [BTreeSet::from([1, 2, 3].map(node))]);
        let last = at(ours);
        let (vote, committed) = (&candidate, Some(&last));
        let lead = Lead { me: node(1), leads: true, vote, committed, voters: &voters };
        assert_eq!(lead.vouched(node(2), &candidate), None, "not elected yet");
    }
}
