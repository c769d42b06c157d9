//! Doing something on the leader, wherever it is: here, or in one hop at the node that leads.

use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ClientWriteError, RaftError};
use quorate_log::NodeId;
use quorate_state::{Command, Levels, Op, Reply, Request, Revision, Write};
use tokio::time::Instant;

use crate::error::{CallError, NodeError};
use crate::meters::Reason;
use crate::node::Node;
use crate::node::calls::{Ask, LeaderAnswer, LeaderCall};
use crate::node::membership::MembershipCall;
use crate::node::requests::{self, GivenName};
use crate::types::{Outcome, TypeConfig};

/// After a failed attempt, the next one waits this long unless the leader changes before.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// A node that is further behind names no writes. Origins are forgotten after twice that
/// (`ORIGIN_MS`), and a write may be under way for half of the rest.
const RECENT: Duration = Duration::from_secs(60);

/// One that has a leader in sight (again) is near by then, if it ever is.
const RECENT_WITHIN: Duration = Duration::from_secs(2);

type WriteError = RaftError<TypeConfig, ClientWriteError<TypeConfig>>;

impl Node {
    /// Proposes a write and waits until it is applied; forwards it if another node leads. Done
    /// once, whatever becomes of the attempts; `given`: the name that the caller has for it, to try
    /// again itself.
    ///
    /// # Errors
    /// The state machine's refusal, or why it did not come in time; the name is none.
    pub(crate) async fn propose<W: Write>(
        &self,
        write: W,
        given: Option<GivenName>,
        deadline: Instant,
    ) -> Result<(W::Answer, Revision), CallError> {
        self.once_recent(deadline).await?;
        let op = write.into();
        let now = self.applied.lock().registry.clock();
        let named = requests::name(&self.origin, given, &op, now)?;
        let outcome = self.on_leader((op, named.request), deadline, &mut 0).await?;
        Ok(self.answer_to::<W>(outcome)?)
    }

    /// What a write is answered, and the revision after it.
    ///
    /// # Errors
    /// The state machine's refusal.
    pub(super) fn answer_to<W: Write>(
        &self,
        outcome: Outcome,
    ) -> Result<(W::Answer, Revision), NodeError> {
        match outcome.reply {
            Reply::Rejected(rejection) => Err(NodeError::Rejected(rejection)),
            reply => {
                let answer = W::read(reply);
                let answer = answer.ok_or_else(|| self.unexpected(&"the reply to another write"));
                Ok((answer?, outcome.revision))
            }
        }
    }

    /// Waits until this node is not far behind. A write is named with its clock, and where the
    /// others have forgotten what was asked for at that time, a new write would be taken for an old
    /// one.
    ///
    /// # Errors
    /// It does not come that far, soon or by the deadline.
    async fn once_recent(&self, deadline: Instant) -> Result<(), NodeError> {
        let since = Instant::now();
        let mut led: Option<Instant> = None;
        while !is_recent(self.last_moment().at) {
            self.check_goes_on()?;
            self.check_inside()?;
            let leader = self.current_leader();
            // Raft names the leader of its vote also where that has been dead for long.
            let in_sight = self.leadership.leader().is_some_and(|leader| leader != self.id);
            led = in_sight.then(|| led.unwrap_or_else(Instant::now));
            if led.is_some_and(|led| led.elapsed() >= RECENT_WITHIN) {
                let (node, last) = (self.id, self.last_moment().at.unwrap_or(self.started));
                let for_ms = last.elapsed().as_millis() as u64;
                return Err(NodeError::Outdated { node, for_ms });
            }
            if !self.pause(leader, deadline).await {
                return Err(self.late(since));
            }
        }
        Ok(())
    }

    /// Has the leader do something, wherever it is, trying again when the leader changes, until the
    /// deadline. An attempt may have had its effect although another node leads since: what must
    /// not happen twice has a name ([`Node::propose`]). Adds the attempts that it makes to
    /// `attempts`.
    ///
    /// # Errors
    /// The leader's refusal; at the deadline, that something else was in the way until then,
    /// [`NodeError::NoLeader`] or [`NodeError::NoAnswer`].
    pub(crate) async fn on_leader<C: Ask>(
        &self,
        call: C,
        deadline: Instant,
        attempts: &mut u32,
    ) -> Result<C::Answer, NodeError> {
        let call: LeaderCall = call.into();
        let since = Instant::now();
        let for_client = !matches!(call, LeaderCall::Membership(MembershipCall::Announce { .. }));
        let mut busy = None;
        loop {
            self.check_goes_on()?;
            let leader = self.current_leader();
            if for_client {
                self.check_inside()?;
            }
            *attempts += u32::from(leader.is_some());
            let attempt = async {
                match (leader, &call) {
                    (None, _) => Err(NodeError::NotLeader { node: self.id }),
                    // Its answer could not say of which cluster it is.
                    (Some(_), _) if for_client && self.peers.cluster_id().is_none() => {
                        Err(NodeError::Founding { node: self.id })
                    }
                    (Some(id), _) if id != self.id => self.forward(id, &call, deadline).await,
                    (Some(_), LeaderCall::Propose(op, request)) => {
                        self.check_leads()?;
                        let written = self.propose_here(op.clone(), Some(*request)).await;
                        written.map(LeaderAnswer::Outcome)
                    }
                    (Some(_), other) => self.execute(other.clone(), deadline).await,
                }
            };
            let done = tokio::select! {
                biased; // an answer that is there counts, also when the leader has changed since
                done = tokio::time::timeout_at(deadline, attempt) => done,
                () = self.leader_is_other_than(leader) => continue,
                () = self.leadership.removed() => continue,
            };
            match done {
                Err(_elapsed) => return Err(self.in_vain(busy, since)),
                Ok(Err(error)) if error.is_busy() => {
                    // That one has done nothing.
                    *attempts -= 1;
                    busy = Some((leader, error));
                }
                Ok(Err(error)) if error.may_pass() => {}
                Ok(answer) => {
                    let of_another = || self.unexpected(&"an answer to another call");
                    return answer.and_then(|answer| C::read(answer).ok_or_else(of_another));
                }
            }
            if !self.pause(leader, deadline).await {
                return Err(self.in_vain(busy, since));
            }
        }
    }

    /// What to say at the deadline, where a leader may have said that something else is in the way.
    fn in_vain(&self, busy: Option<(Option<NodeId>, NodeError)>, since: Instant) -> NodeError {
        match busy {
            Some((leader, error)) if leader == self.current_leader() => error,
            _ => self.late(since),
        }
    }

    fn check_goes_on(&self) -> Result<(), NodeError> {
        if self.stop.is_cancelled() {
            return Err(NodeError::Stopping { node: self.id });
        }
        match self.leadership.is_removed() {
            true => Err(NodeError::NotMember { node: self.id }),
            false => Ok(()),
        }
    }

    /// Waits a little before the next attempt, or until another node leads; false: the deadline is
    /// over. Where no node leads there is nothing to try: thousands may wait, and must not wake
    /// again and again while a leader is elected.
    pub(crate) async fn pause(&self, leader: Option<NodeId>, deadline: Instant) -> bool {
        let until = match leader {
            Some(_) => deadline.min(Instant::now() + RETRY_PAUSE),
            None => deadline,
        };
        tokio::select! {
            _ = tokio::time::timeout_at(until, self.leader_is_other_than(leader)) => {}
            () = self.stop.cancelled() => {}
            () = self.leadership.removed() => {}
        }
        Instant::now() < deadline
    }

    /// Whether this node leads a cluster that has its identity.
    ///
    /// # Errors
    /// It does not.
    pub(crate) fn check_leads(&self) -> Result<(), NodeError> {
        if !self.leads() {
            return Err(NodeError::NotLeader { node: self.id });
        }
        if !self.is_founded() {
            return Err(NodeError::Founding { node: self.id });
        }
        Ok(())
    }

    /// Does here what only a leader can do; writes of this node's own callers go past this.
    ///
    /// # Errors
    /// [`NodeError::NotLeader`] if this node is not it.
    pub(crate) async fn execute(
        &self,
        call: LeaderCall,
        deadline: Instant,
    ) -> Result<LeaderAnswer, NodeError> {
        self.check_leads()?;
        match call {
            LeaderCall::Propose(op, request) => {
                let outcome = self.propose_here(op, Some(request)).await?;
                match outcome.reply {
                    Reply::Rejected(rejection) => Err(NodeError::Rejected(rejection)),
                    _ => Ok(LeaderAnswer::Outcome(outcome)),
                }
            }
            LeaderCall::Renew(leases, patience) => {
                let renewed = self.queues.log_renewals.submit(leases, patience).await?;
                Ok(LeaderAnswer::Renewed(renewed))
            }
            LeaderCall::Membership(call) => {
                self.change_membership(call, deadline).await.map(LeaderAnswer::Members)
            }
            LeaderCall::Lead(call) => {
                self.hand_over(call, deadline).await.map(LeaderAnswer::Leader)
            }
        }
    }

    /// Stamps a command and puts it into the log; only while this node leads.
    pub(crate) async fn propose_here(
        &self,
        op: Op,
        request: Option<Request>,
    ) -> Result<Outcome, NodeError> {
        let mut counted =
            Counted { node: self, since: Instant::now(), handed_in: None, ended: false };
        let admitted = match check_level(op.level(), || self.level().number) {
            Ok(()) => self.find_room(op, request.as_ref()).await,
            Err(error) => Err(error),
        };
        let written = match admitted {
            Ok((op, takes_room)) => {
                let clock = self.stamp();
                counted.handed_in = request.filter(|_| takes_room);
                let written = self.raft.client_write(Command { clock, request, op }).await;
                written.map(|written| written.data).map_err(|error| self.not_written(error))
            }
            Err(error) => Err(error),
        };
        counted.end(&written);
        written
    }

    fn count_failed(&self, reason: &'static str) {
        self.meters.proposals_failed.get_or_create(&Reason { reason }).inc();
    }

    fn not_written(&self, error: WriteError) -> NodeError {
        match error {
            RaftError::Fatal(fatal) => self.fatal(&fatal),
            RaftError::APIError(
                ClientWriteError::ForwardToLeader(_) | ClientWriteError::LogEntryDiscarded(_),
            ) => NodeError::NotLeader { node: self.id },
            RaftError::APIError(other) => self.unexpected(&other),
        }
    }

    /// Waits until another node leads than this one, as far as is known here, or none.
    pub(super) async fn leader_is_other_than(&self, leader: Option<NodeId>) {
        let mut view = self.view.clone();
        while view.borrow_watched().current_leader == leader {
            if view.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Whether a node is near enough that has everything from before this moment; `None`: it does not
/// know.
fn is_recent(at: Option<Instant>) -> bool {
    at.is_some_and(|at| at.elapsed() <= RECENT)
}

/// Whether a cluster of this level writes what needs another one.
///
/// # Errors
/// Nodes that may be members do not know it.
fn check_level(needed: u32, level: impl FnOnce() -> u32) -> Result<(), NodeError> {
    // What every release knows that this one can be upgraded from: no look at the state.
    if needed <= Levels::OWN.min {
        return Ok(());
    }
    let level = level();
    match needed <= level {
        true => Ok(()),
        false => Err(NodeError::Level { needed, level }),
    }
}

/// A write that is under way. It counts as failed, too, when nobody waits for it any more.
struct Counted<'a> {
    node: &'a Node,
    since: Instant,
    /// What takes room while it is under way.
    handed_in: Option<Request>,
    ended: bool,
}

impl Counted<'_> {
    fn end(mut self, written: &Result<Outcome, NodeError>) {
        self.ended = true;
        if written.is_err() {
            self.give_up();
        }
        match written {
            Ok(_) => self.node.meters.commit_seconds.observe(self.since.elapsed().as_secs_f64()),
            // Answered as it was before.
            Err(NodeError::Rejected(_)) => {}
            Err(error) => {
                if let NodeError::StateFull { .. } = error {
                    self.node.seen().state_is_full();
                }
                self.node.count_failed(failed_for(error));
            }
        }
    }

    /// Another attempt at the same write may be in the log.
    fn give_up(&self) {
        if let Some(request) = &self.handed_in {
            self.node.applied.lock().pending.give_up(request);
        }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.give_up();
            // A change of the leader ends the attempt, which is made again elsewhere.
            self.node.count_failed(if self.node.leads() { "given_up" } else { "lost_lead" });
        }
    }
}

/// The label of a write that could not be committed.
fn failed_for(error: &NodeError) -> &'static str {
    match error {
        NodeError::DiskFull { .. } | NodeError::Unsettled { .. } => "disk_full",
        NodeError::StateFull { .. } => "state_full",
        NodeError::Overloaded { .. } => "overloaded",
        NodeError::NotLeader { .. } => "lost_lead",
        _ => "failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_node_that_is_far_behind_names_no_writes() {
        let at = Instant::now();
        assert!(!is_recent(None), "it does not know");
        for (seconds, expected) in [(0, true), (60, true), (1, false), (600, false)] {
            tokio::time::advance(Duration::from_secs(seconds)).await;
            assert_eq!(is_recent(Some(at)), expected, "{:?}", at.elapsed());
        }
    }

    #[test]
    fn what_needs_a_higher_level_than_the_clusters_is_not_proposed() {
        let above = Levels::OWN.min + 1;
        check_level(above, || above).unwrap();
        check_level(Levels::OWN.min, || panic!("every release knows it")).unwrap();
        let refused = check_level(above, || Levels::OWN.min).unwrap_err();
        let words = "this needs level 2, and the cluster is at level 1: run this release on all nodes, \
                     then `quorate cluster upgrade finalize`";
        assert_eq!(refused.to_string(), words);
        assert_eq!(failed_for(&refused), "failed");
        assert!(!refused.may_pass(), "trying again changes nothing");
    }
}
