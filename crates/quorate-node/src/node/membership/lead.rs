//! Handing the lead over: when an operator asks for it, and before a leader is taken out or stops.

use std::time::Duration;

use futures_util::future::join_all;
use openraft::async_runtime::watch::WatchReceiver as _;
use quorate_log::NodeId;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::error::{MembershipError, NodeError};
use crate::node::membership::{CAUGHT_UP_LAG, refused};
use crate::node::status::NodeStatus;
use crate::node::{MemberInfo, Node};

/// A voter that is to lead next has this long to answer: one that stands still must not hold a stop
/// up for long.
const SUCCESSOR_ANSWERS_WITHIN: Duration = Duration::from_millis(300);

/// A leader that stops asks so often who answers: the others may stand still for a moment.
const ASKED_BEFORE_STOP: u32 = 3;

/// Of handing the lead over; answered with the node that is to lead, or leads.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum LeadCall {
    /// Which voter would lead next.
    Successor,
    /// Hand it over.
    Transfer { to: NodeId },
}

impl Node {
    /// Hands the lead over, or says which voter it would go to; only while this node leads.
    pub(crate) async fn hand_over(
        &self,
        call: LeadCall,
        deadline: Instant,
    ) -> Result<NodeId, NodeError> {
        let _turn = self.one_at_a_time(deadline).await?;
        match call {
            LeadCall::Successor => self.successor().await,
            LeadCall::Transfer { to } => {
                self.transfer(to, deadline).await?;
                Ok(to)
            }
        }
    }

    /// If this node is the one that is to go, it hands the lead over and says that it does not lead
    /// any more.
    pub(super) async fn leave_lead(&self, id: NodeId, deadline: Instant) -> Result<(), NodeError> {
        if id != self.id {
            return Ok(());
        }
        self.transfer(self.successor().await?, deadline).await?;
        Err(NodeError::NotLeader { node: self.id })
    }

    /// The other voters that were heard of lately, with how far along each is.
    fn candidates(&self) -> Vec<(u64, MemberInfo)> {
        let members = self.members().into_iter();
        let others = members.filter(|info| info.voter && info.id != self.id && self.hears(info.id));
        let others: Vec<MemberInfo> = others.collect();
        let metrics = self.metrics.borrow_watched();
        let progress = |id: &NodeId| {
            let matched = metrics.replication.as_ref().and_then(|all| all.get(id));
            matched.and_then(|matched| matched.as_ref()).map_or(0, |log_id| log_id.index())
        };
        others.into_iter().map(|info| (progress(&info.id), info)).collect()
    }

    /// The other voter that is furthest along, of the ones that answer now: one that died or froze
    /// a moment ago still counts as heard of.
    ///
    /// # Errors
    /// There is no other voter; or none answers, or was heard of yet, which may pass.
    async fn successor(&self) -> Result<NodeId, NodeError> {
        if self.voters().into_iter().all(|voter| voter == self.id) {
            return Err(refused(MembershipError::NoOther));
        }
        let asked = self.candidates().into_iter().map(async |(at, info)| {
            let answer = self.ask_status(&info, SUCCESSOR_ANSWERS_WITHIN).await;
            answer.ok().map(|_| (at, info.id))
        });
        let furthest = join_all(asked).await.into_iter().flatten().max();
        let (_, id) = furthest.ok_or_else(|| refused(MembershipError::NobodyAnswers))?;
        Ok(id)
    }

    /// As [`Self::successor`], for a leader that stops: nobody asks it again.
    pub(crate) async fn successor_at_stop(&self) -> Result<NodeId, NodeError> {
        let mut asked = 0;
        loop {
            let next_at = Instant::now() + SUCCESSOR_ANSWERS_WITHIN;
            asked += 1;
            match self.successor().await {
                Err(error) if error.may_pass() && asked < ASKED_BEFORE_STOP && self.leads() => {}
                done => return done,
            }
            sleep_until(next_at).await;
        }
    }

    /// The voter that a leader without room on its disk hands the lead to; `None`: no other has
    /// room and can lead now.
    pub(crate) async fn successor_with_room(&self) -> Option<NodeId> {
        let last = self.metrics.borrow_watched().last_log_index.unwrap_or(0);
        let asked = self.candidates().into_iter().map(async |(at, info)| {
            let report = self.ask_status(&info, SUCCESSOR_ANSWERS_WITHIN).await.ok()?;
            Some((at, info.id, report.status))
        });
        let answered: Vec<_> = join_all(asked).await.into_iter().flatten().collect();
        furthest_with_room(last, &answered)
    }

    fn check_successor(&self, to: NodeId) -> Result<(), NodeError> {
        if !self.voters().contains(&to) {
            return Err(refused(MembershipError::NotVoter { id: to }));
        }
        if !self.hears(to) {
            return Err(refused(MembershipError::Silent { id: to }));
        }
        Ok(())
    }

    /// Hands the lead over and waits until the other node leads.
    pub(crate) async fn transfer(&self, to: NodeId, deadline: Instant) -> Result<(), NodeError> {
        if to == self.id {
            return Ok(());
        }
        self.once_heard(|| self.check_successor(to)).await?;
        tracing::info!(to = to.get(), "handing the lead over");
        let asked = self.raft.trigger().transfer_leader(to).await;
        asked.map_err(|error| self.fatal(&error))?;
        let since = Instant::now();
        loop {
            let leader = self.current_leader();
            match leader {
                Some(leader) if leader == to => return Ok(()),
                // Another node won: the caller tries again there.
                Some(leader) if leader != self.id => {
                    return Err(NodeError::NotLeader { node: self.id });
                }
                _ => {}
            }
            if timeout_at(deadline, self.leader_is_other_than(leader)).await.is_err() {
                let waited_ms = since.elapsed().as_millis() as u64;
                return Err(NodeError::NoAnswer { leader: to, waited_ms });
            }
        }
    }
}

/// Of voters, how far each has this leader's log and what it says of itself: the furthest of those
/// that have room and could lead at once. From the moment when it is asked to lead, nobody does:
/// one that needs a snapshot first would not, and each change of the lead would begin that anew.
fn furthest_with_room(last: u64, answered: &[(u64, NodeId, NodeStatus)]) -> Option<NodeId> {
    let is_fit = |at: u64, status: &NodeStatus| {
        let is_near = at > 0 && last.saturating_sub(at) <= CAUGHT_UP_LAG;
        is_near && !status.disk_low && status.recovering.is_empty()
    };
    let fit = answered.iter().filter(|(at, _, status)| is_fit(*at, status));
    fit.map(|(at, id, _)| (*at, *id)).max().map(|(_, id)| id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lead_goes_to_a_voter_with_room_that_can_lead_at_once() {
        let voter = |at, id, disk_low, recovering: &str| {
            let recovering = recovering.to_owned();
            let status = NodeStatus { disk_low, recovering, ..NodeStatus::default() };
            (at, NodeId::new(id).unwrap(), status)
        };
        let last = 10_000;
        let near = last - CAUGHT_UP_LAG;
        for (what, voters, expected) in [
            ("nobody answers", &[][..], None),
            (
                "the one that is furthest",
                &[voter(near, 2, false, ""), voter(last, 3, false, "")],
                Some(3),
            ),
            (
                "not one without room",
                &[voter(near, 2, false, ""), voter(last, 3, true, "")],
                Some(2),
            ),
            (
                "nor one that doubts its log",
                &[voter(near, 2, false, ""), voter(last, 3, false, "old")],
                Some(2),
            ),
            (
                "nor one that is behind",
                &[voter(near - 1, 2, false, ""), voter(last, 3, true, "")],
                None,
            ),
            ("nor one that needs a snapshot", &[voter(0, 2, false, "")], None),
            ("nobody has room", &[voter(last, 2, true, ""), voter(last, 3, true, "")], None),
        ] {
            assert_eq!(furthest_with_room(last, voters).map(NodeId::get), expected, "{what}");
        }
        let young = [voter(0, 2, false, "")];
        assert_eq!(furthest_with_room(5, &young), None, "it has nothing of a short log");
    }
}
