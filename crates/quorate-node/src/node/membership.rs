//! Membership changes, on the leader, one at a time: each of them can be called again and goes on
//! where it stopped.
//!
//! No change may lose a live majority: a voter is only taken out when enough of the others were
//! heard of lately. A leader that is to go hands the lead over first; the caller's retry then finds
//! the new leader. What can be refused is refused before anything is proposed: a refused change
//! leaves nothing behind. While a change waits for a node to catch up, others have their turn.

mod lead;
mod level;
mod looks;
mod promotion;
mod removed;
mod settling;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{AllowNextRevertError, ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{ChangeMembers, Instant as _};
use quorate_log::NodeId;
use quorate_proto::ClusterId;
use tokio::sync::SemaphorePermit;
use tokio::time::{Instant, sleep, timeout};

use crate::error::{MembershipError, NodeError};
use crate::node::{MemberInfo, Node, said};
use crate::peers::listens_there;
use crate::types::{Member, TypeConfig};

pub(crate) use lead::LeadCall;
pub(crate) use level::LevelChange;

use looks::Looks;

/// How long a node that is to be taken in has to name itself.
const IDENTIFY_TIMEOUT: Duration = Duration::from_secs(2);
const IDENTIFY_AGAIN: Duration = Duration::from_millis(200);
/// How long a learner that is to vote is looked for.
const LEARNER_ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// A membership change or something that belongs to one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum MembershipCall {
    /// Take a node in, which may have asked for it itself; it stays a learner if `learner_only`.
    Add { id: NodeId, peer_address: String, learner_only: bool, by_itself: bool },
    /// Take a node out.
    Remove { id: NodeId },
    /// Take one in and another one out.
    Replace { old: NodeId, new: NodeId, peer_address: String },
    /// A member reports its own addresses.
    Announce { id: NodeId, member: Member },
    /// Raise the cluster's level, or hold it.
    SetLevel(LevelChange),
}

type WriteError = RaftError<TypeConfig, ClientWriteError<TypeConfig>>;

impl Node {
    /// Does a membership change here; only while this node leads.
    pub(super) async fn change_membership(
        &self,
        call: MembershipCall,
        deadline: Instant,
    ) -> Result<Vec<MemberInfo>, NodeError> {
        let turn = self.one_at_a_time(deadline).await?;
        match call {
            MembershipCall::Add { id, peer_address, learner_only, by_itself } => {
                self.finish_change().await?;
                self.check_add(id, by_itself, deadline).await?;
                let turn = self.take_in(id, &peer_address, learner_only, turn, deadline).await?;
                if !learner_only {
                    let _turn = self.caught_up(id, turn, deadline).await?;
                    self.promote(id).await?;
                }
            }
            MembershipCall::Remove { id } => self.take_out(id, deadline).await?,
            MembershipCall::Replace { old, new, peer_address } => {
                self.replace(old, new, &peer_address, turn, deadline).await?;
            }
            MembershipCall::Announce { id, member } => self.announce(id, member).await?,
            MembershipCall::SetLevel(change) => self.set_level(change).await?,
        }
        Ok(self.members())
    }

    /// Whoever waits in vain is told so before its deadline.
    async fn one_at_a_time(&self, deadline: Instant) -> Result<SemaphorePermit<'_>, NodeError> {
        let patience = deadline.saturating_duration_since(Instant::now()) * 9 / 10;
        let turn = timeout(patience, self.membership.acquire()).await;
        let turn = turn.map_err(|_| refused(MembershipError::Busy))?;
        Ok(turn.expect("invariant: nobody closes it"))
    }

    /// Makes a node a learner, where it is none yet. One that is to vote has to answer; others have
    /// their turn while it is looked for.
    async fn take_in<'a>(
        &'a self,
        id: NodeId,
        peer_address: &str,
        learner_only: bool,
        mut turn: SemaphorePermit<'a>,
        deadline: Instant,
    ) -> Result<SemaphorePermit<'a>, NodeError> {
        match self.member(id) {
            Some(member) if member.peer_address != peer_address => {
                let address = member.peer_address;
                return Err(refused(MembershipError::Taken { id, address }));
            }
            Some(_) if self.voters().contains(&id) => {}
            Some(member) => {
                if !learner_only {
                    drop(turn);
                    let address = self.peers.book.address(id, &member.peer_address);
                    self.identify_learner(id, &address, deadline).await?;
                    turn = self.one_at_a_time(deadline).await?;
                    if self.voters().contains(&id) {
                        return Ok(turn);
                    }
                }
                // A learner may have lost its disk; it has no vote to forget, and gets the log from
                // the beginning.
                let reverted = self.raft.trigger().allow_next_revert(&id, true).await;
                reverted
                    .map_err(|error| self.fatal(&error))?
                    .map_err(|error| revert_error(self.id, &error))?;
            }
            None => {
                let member = self.identify(id, peer_address).await?;
                tracing::info!(id = id.get(), peer_address, "taking a node in as a learner");
                let added = self.raft.add_learner(id, member, false).await;
                added.map_err(|error| self.raft_error(error))?;
            }
        }
        Ok(turn)
    }

    /// One that is to vote may be cut off, or be started again, while it is waited for.
    async fn identify_learner(
        &self,
        id: NodeId,
        address: &str,
        deadline: Instant,
    ) -> Result<Member, NodeError> {
        let patience = deadline.saturating_duration_since(Instant::now()) / 2;
        let until = Instant::now() + patience.min(LEARNER_ANSWERS_WITHIN);
        loop {
            match self.identify(id, address).await {
                Err(NodeError::Membership(MembershipError::NoAnswer { .. }))
                    if Instant::now() < until =>
                {
                    sleep(IDENTIFY_AGAIN).await;
                }
                done => return done,
            }
        }
    }

    /// Asks the node at an address for its id.
    async fn identify(&self, wanted: NodeId, address: &str) -> Result<Member, NodeError> {
        let found = self.peers.identify(wanted, address, None, IDENTIFY_TIMEOUT).await;
        let found = found.map_err(|status| {
            let (id, address, runs) = (wanted, address.to_owned(), listens_there(&status));
            let reason = said(status.code(), status.message());
            refused(MembershipError::NoAnswer { id, address, reason, runs })
        })?;
        let address = address.to_owned();
        if found.node_id != wanted.get() {
            let found = found.node_id;
            return Err(refused(MembershipError::WrongId { address, wanted, found }));
        }
        let ours = self.peers.identity();
        if ![None, ours.cluster_id.map(ClusterId::from)].contains(&found.cluster_id)
            || ![None, ours.founders].contains(&found.founders)
        {
            return Err(refused(match found.cluster_id {
                Some(found) => MembershipError::OtherCluster { address, found },
                None => MembershipError::Founder { id: wanted, address },
            }));
        }
        self.check_levels(wanted, &address, found.levels)?;
        Ok(Member { peer_address: address, client_address: found.client_address })
    }

    async fn take_out(&self, id: NodeId, deadline: Instant) -> Result<(), NodeError> {
        if self.member(id).is_none() {
            return Err(self.unknown(id).await);
        }
        self.finish_change().await?;
        if self.member(id).is_none() {
            return self.make_known().await;
        }
        self.once_heard(|| self.check_quorum()).await?;
        let voters = self.voters();
        if !voters.contains(&id) {
            tracing::info!(id = id.get(), "taking a learner out");
            return self.change(ChangeMembers::RemoveNodes(BTreeSet::from([id]))).await;
        }
        if voters.len() == 1 {
            return Err(refused(MembershipError::LastVoter { id }));
        }
        self.keep_majority(id, &voters.into_iter().filter(|voter| *voter != id).collect()).await?;
        self.leave_lead(id, deadline).await?;
        tracing::info!(id = id.get(), "taking a voter out");
        self.change(ChangeMembers::RemoveVoters(BTreeSet::from([id]))).await
    }

    /// What to say of a node that is no member: whoever asks may have had it taken out a moment
    /// ago, without an answer, and counts that as done. So it has to be known as it is then.
    async fn unknown(&self, id: NodeId) -> NodeError {
        let known = async {
            self.once_heard(|| self.check_quorum()).await?;
            self.make_known().await
        };
        known.await.err().unwrap_or(refused(MembershipError::Unknown { id }))
    }

    async fn replace(
        &self,
        old: NodeId,
        new: NodeId,
        peer_address: &str,
        turn: SemaphorePermit<'_>,
        deadline: Instant,
    ) -> Result<(), NodeError> {
        self.finish_change().await?;
        self.once_heard(|| self.check_replace(old, new)).await?;
        let size =
            self.voters().iter().filter(|voter| **voter != old && **voter != new).count() + 1;
        let was_member = self.member(new).is_some();
        let turn = self.take_in(new, peer_address, false, turn, deadline).await?;
        let _turn = self.caught_up(new, turn, deadline).await?;
        // By now the old one may be out, or the new one vote: both is what was asked for.
        let swapped = self.swap(old, new, size, deadline).await;
        let is_learner = self.member(new).is_some() && !self.voters().contains(&new);
        if let Err(error @ NodeError::Membership(reason)) = &swapped
            && !error.may_pass()
            && !was_member
            && is_learner
            && !matches!(reason, MembershipError::Mute { .. })
        {
            // Only if something changed since it was checked.
            tracing::info!(new = new.get(), %reason, "refused; taking the new node out again");
            let taken_out = self.change(ChangeMembers::RemoveNodes(BTreeSet::from([new]))).await;
            or_not_known(taken_out)?;
        }
        swapped
    }

    /// Whether one node may take another one's place, as far as that is known before it is taken
    /// in.
    fn check_replace(&self, old: NodeId, new: NodeId) -> Result<(), NodeError> {
        let voters = self.voters();
        let known = self.member(old).is_some();
        let votes_already = voters.contains(&new);
        // One that was done before has the new one only.
        if known && votes_already {
            return Err(refused(MembershipError::VotesAlready { id: new, old }));
        }
        if !known && !votes_already {
            return Err(refused(MembershipError::Unknown { id: old }));
        }
        self.check_quorum()?;
        let after: BTreeSet<NodeId> =
            voters.into_iter().filter(|voter| *voter != old).chain([new]).collect();
        // The new one is asked when it is taken in.
        self.check_majority(old, &after, |voter| voter == new || self.hears(voter))
    }

    /// `size`: how many voters there are to be.
    async fn swap(
        &self,
        old: NodeId,
        new: NodeId,
        size: usize,
        deadline: Instant,
    ) -> Result<(), NodeError> {
        let voters = self.voters();
        if !voters.contains(&old) {
            if !voters.contains(&new) && voters.len() >= size {
                // Another node has its place.
                return Err(refused(MembershipError::Unknown { id: old }));
            }
            self.promote(new).await?;
            return match self.member(old) {
                Some(_) => self.take_out(old, deadline).await,
                None => self.make_known().await,
            };
        }
        let alone = voters.len() == 1;
        let after = voters.into_iter().filter(|voter| *voter != old).chain([new]).collect();
        self.keep_majority(old, &after).await?;
        // It may have died since it was looked at.
        self.once_heard(|| self.check_heard(new)).await?;
        if !alone {
            // A single voter has no other to hand the lead to: it leads until the change is
            // committed, and then steps down.
            self.leave_lead(old, deadline).await?;
        }
        tracing::info!(old = old.get(), new = new.get(), "replacing a voter");
        self.change(ChangeMembers::Batch(vec![
            ChangeMembers::AddVoterIds(BTreeSet::from([new])),
            ChangeMembers::RemoveVoters(BTreeSet::from([old])),
        ]))
        .await
    }

    /// Refuses to take a node out if the voters that remain then have no live majority.
    async fn keep_majority(&self, id: NodeId, after: &BTreeSet<NodeId>) -> Result<(), NodeError> {
        self.once_heard(|| self.check_majority(id, after, |voter| self.hears(voter))).await
    }

    /// A leader that was elected just now has not heard of the others yet: what that would refuse
    /// is looked at again for as long as a node counts as alive.
    async fn once_heard<T>(
        &self,
        check: impl Fn() -> Result<T, NodeError>,
    ) -> Result<T, NodeError> {
        let mut metrics = self.metrics.clone();
        let mut looks = Looks::for_about(self.counts_as_alive());
        loop {
            let refused = match check() {
                Ok(found) => return Ok(found),
                Err(error) => error,
            };
            tokio::select! {
                _ = metrics.changed() => {}
                goes_on = looks.next() => if !goes_on { return Err(refused) },
            }
            if !self.leads() {
                return Err(NodeError::NotLeader { node: self.id });
            }
        }
    }

    /// A voter that was heard of this long ago is alive.
    fn counts_as_alive(&self) -> Duration {
        2 * self.silence_max()
    }

    /// Without a live majority of the present voters, no change can be committed, and none is to
    /// wait in the log for one.
    fn check_quorum(&self) -> Result<(), NodeError> {
        let halves = self.view.borrow_watched().membership_config.get_joint_config().clone();
        check_halves(&halves, |voter| self.hears(voter)).map_err(refused)
    }

    fn check_majority(
        &self,
        id: NodeId,
        after: &BTreeSet<NodeId>,
        alive: impl Fn(NodeId) -> bool,
    ) -> Result<(), NodeError> {
        let alive = after.iter().filter(|voter| alive(**voter)).count();
        let voters = after.len();
        let needed = voters / 2 + 1;
        if alive >= needed {
            return Ok(());
        }
        Err(refused(MembershipError::WouldLoseQuorum { id, alive, voters, needed }))
    }

    /// A member's addresses changed, or are reported for the first time.
    async fn announce(&self, id: NodeId, member: Member) -> Result<(), NodeError> {
        match self.member(id) {
            None => Err(refused(MembershipError::Unknown { id })),
            Some(known) if known == member => Ok(()),
            Some(known) => {
                let (from, to) = (&known.peer_address, &member.peer_address);
                if from != to && self.twins.moved(id, from, to) {
                    tracing::error!(
                        "two nodes have id {id}: {from} and {to}; stop one, and give it an id of its own and an empty directory"
                    );
                }
                self.change(ChangeMembers::SetNodes(BTreeMap::from([(id, member)]))).await
            }
        }
    }

    async fn change(&self, change: ChangeMembers<NodeId, Member>) -> Result<(), NodeError> {
        let is_of_addresses = matches!(change, ChangeMembers::SetNodes(_));
        let done = self.raft.change_membership(change, false).await;
        done.map_err(|error| self.raft_error(error))?;
        if is_of_addresses { Ok(()) } else { self.make_known().await }
    }

    fn voters(&self) -> BTreeSet<NodeId> {
        self.view.borrow_watched().membership_config.voter_ids().collect()
    }

    /// Whether a node acknowledged this leader lately; a leader hears itself.
    fn hears(&self, id: NodeId) -> bool {
        let metrics = self.metrics.borrow_watched();
        let heard = metrics.heartbeat.as_ref().and_then(|heard| heard.get(&id));
        let recent = self.counts_as_alive();
        id == self.id || heard.and_then(|at| at.as_ref()).is_some_and(|at| at.elapsed() < recent)
    }

    fn raft_error(&self, error: WriteError) -> NodeError {
        use ChangeMembershipError as Change;
        match error {
            RaftError::APIError(
                ClientWriteError::ForwardToLeader(_) | ClientWriteError::LogEntryDiscarded(_),
            ) => NodeError::NotLeader { node: self.id },
            RaftError::APIError(ClientWriteError::ChangeMembershipError(change)) => match change {
                Change::InProgress(_) => refused(MembershipError::Busy),
                Change::LearnerNotFound(missing) => {
                    refused(MembershipError::Unknown { id: missing.node_id })
                }
                other => self.unexpected(&other),
            },
            RaftError::APIError(other) => self.unexpected(&other),
            RaftError::Fatal(fatal) => self.fatal(&fatal),
        }
    }
}

/// Of a change that was cut off between its two steps, both halves count: entries need a majority
/// of each.
fn check_halves(
    halves: &[BTreeSet<NodeId>],
    alive: impl Fn(NodeId) -> bool,
) -> Result<(), MembershipError> {
    for all in halves {
        let alive = all.iter().filter(|voter| alive(**voter)).count();
        let (voters, needed) = (all.len(), all.len() / 2 + 1);
        if alive < needed {
            return Err(MembershipError::NoQuorum { alive, voters, needed });
        }
    }
    Ok(())
}

fn refused(error: MembershipError) -> NodeError {
    NodeError::Membership(error)
}

/// For a change that is not the one which was asked for: whether a majority knows of it by now is
/// nothing to its caller.
fn or_not_known(changed: Result<(), NodeError>) -> Result<(), NodeError> {
    match changed {
        Err(NodeError::Membership(MembershipError::NotKnown { .. })) => Ok(()),
        changed => changed,
    }
}

/// Raft goes on after either.
fn revert_error(node: NodeId, error: &AllowNextRevertError<TypeConfig>) -> NodeError {
    match error {
        AllowNextRevertError::ForwardToLeader(_) => NodeError::NotLeader { node },
        AllowNextRevertError::NodeNotFound(missing) => {
            refused(MembershipError::Unknown { id: missing.node_id })
        }
    }
}

#[cfg(test)]
mod tests;
