//! Handing the lead over: when an operator asks for it, and before a leader is taken out or stops.

use std::time::Duration;

use futures_util::future::join_all;
use openraft::async_runtime::watch::WatchReceiver as _;
use quorate_log::NodeId;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::error::{MembershipError, NodeError, Unfit};
use crate::node::Node;
use crate::node::leadership::Handed;
use crate::node::membership::looks::Looks;
use crate::node::membership::promotion::CAUGHT_UP_LAG;
use crate::node::membership::refused;
use crate::node::status::NodeStatus;

/// A voter that is to lead next has this long to answer: one that stands still must not hold a stop
/// up for long.
const SUCCESSOR_ANSWERS_WITHIN: Duration = Duration::from_millis(300);

/// A leader that stops asks so often who can lead: the others may stand still for a moment, or be
/// behind.
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

    /// How far a voter has this leader's log; 0: not known yet, or it needs a snapshot first.
    fn progress_of(&self, id: NodeId) -> u64 {
        let metrics = self.metrics.borrow_watched();
        let matched = metrics.replication.as_ref().and_then(|all| all.get(&id));
        matched.and_then(|matched| matched.as_ref()).map_or(0, |log_id| log_id.index())
    }

    /// The other voters that answer now, with how far along each is: one that died or froze a
    /// moment ago still counts as heard of.
    async fn answering(&self, within: Duration) -> Vec<(u64, NodeId, NodeStatus)> {
        let members = self.members().into_iter();
        let others = members.filter(|info| info.voter && info.id != self.id && self.hears(info.id));
        let asked = others.map(async |info| {
            let report = self.ask_status(&info, within).await.ok()?;
            Some((self.progress_of(info.id), info.id, report.status))
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// The other voter that is furthest along, of those that answer now and can lead.
    ///
    /// # Errors
    /// There is no other voter; or none answers, or was heard of yet, which may pass; or none can
    /// lead.
    pub(crate) async fn successor(&self) -> Result<NodeId, NodeError> {
        self.successor_within(SUCCESSOR_ANSWERS_WITHIN).await
    }

    async fn successor_within(&self, within: Duration) -> Result<NodeId, NodeError> {
        if self.voters().into_iter().all(|voter| voter == self.id) {
            return Err(refused(MembershipError::NoOther));
        }
        let answered = self.answering(within).await;
        let untaken = |id| self.leadership.was_untaken(id);
        furthest_fit(self.applied.position().index, &answered, untaken).map_err(refused)
    }

    /// As [`Self::successor`], for a leader that stops, which has so long: nobody asks it again.
    pub(crate) async fn successor_at_stop(&self, within: Duration) -> Result<NodeId, NodeError> {
        let each = SUCCESSOR_ANSWERS_WITHIN.min(within / ASKED_BEFORE_STOP);
        asked_again(each, || self.successor_within(each), || self.leads()).await
    }

    /// Whether a node can lead now.
    async fn check_successor(&self, to: NodeId) -> Result<(), MembershipError> {
        let member = self.members().into_iter().find(|info| info.id == to && info.voter);
        let info = member.ok_or(MembershipError::NotVoter { id: to })?;
        if !self.hears(to) {
            return Err(MembershipError::Silent { id: to });
        }
        let report = self.ask_status(&info, SUCCESSOR_ANSWERS_WITHIN).await;
        let report = report.map_err(|_unanswered| MembershipError::Silent { id: to })?;
        let of = self.applied.position().index;
        check_fit(self.progress_of(to), of, &report.status)
            .map_err(|why| MembershipError::Unfit { id: to, why })
    }

    /// As [`Self::check_successor`]; looks again for as long as a node counts as alive. A leader
    /// that was elected just now has not heard of the others yet, and a node that has just started
    /// does not vote yet.
    async fn once_fit(&self, to: NodeId) -> Result<(), NodeError> {
        let mut looks = Looks::for_about(self.counts_as_alive());
        loop {
            if self.leadership.was_untaken(to) {
                return Err(refused(MembershipError::Unfit { id: to, why: Unfit::Untaken }));
            }
            let Err(error) = self.check_successor(to).await else { return Ok(()) };
            if !self.leads() {
                return Err(NodeError::NotLeader { node: self.id });
            }
            if !looks.next().await {
                return Err(refused(error));
            }
        }
    }

    /// Hands the lead over and waits until the other node leads. From the moment when that is asked
    /// to, nobody takes writes: if it does not come to lead, `upkeep/untaken.rs` ends that.
    pub(crate) async fn transfer(&self, to: NodeId, deadline: Instant) -> Result<(), NodeError> {
        if to == self.id {
            return Ok(());
        }
        let begun = Instant::now();
        let late = || {
            let waited_ms = begun.elapsed().as_millis() as u64;
            NodeError::NoAnswer { leader: to, waited_ms }
        };
        timeout_at(deadline, self.once_fit(to)).await.map_err(|_elapsed| late())??;
        tracing::info!(to = to.get(), "handing the lead over");
        let asked = self.raft.trigger().transfer_leader(to).await;
        asked.map_err(|error| self.fatal(&error))?;
        let (since, term) = (Instant::now(), self.term());
        self.leadership.hands_over(Handed { to, term, since });
        loop {
            let leader = self.current_leader();
            match leader {
                Some(leader) if leader == to => return Ok(()),
                // Another node won: the caller tries again there.
                Some(leader) if leader != self.id => {
                    return Err(NodeError::NotLeader { node: self.id });
                }
                Some(_) if self.term() > term => {
                    return Err(refused(MembershipError::Unfit { id: to, why: Unfit::Untaken }));
                }
                _ => {}
            }
            if timeout_at(deadline, self.leader_is_other_than(leader)).await.is_err() {
                return Err(late());
            }
        }
    }

    /// A node that was asked to lead does by then, or another one: without heartbeats, all of them
    /// stand for election within half of that.
    pub(crate) fn taken_within(&self) -> Duration {
        2 * self.silence_max()
    }
}

/// What is answered in the end: it is asked again, after so long each time, where that may help and
/// this node still leads.
async fn asked_again<F: Future<Output = Result<NodeId, NodeError>>>(
    each: Duration,
    mut ask: impl FnMut() -> F,
    leads: impl Fn() -> bool,
) -> Result<NodeId, NodeError> {
    for _ in 1..ASKED_BEFORE_STOP {
        let next_at = Instant::now() + each;
        match ask().await {
            Err(error) if passes_soon(&error) && leads() => sleep_until(next_at).await,
            done => return done,
        }
    }
    ask().await
}

/// Whether another voter may be found a moment later: also one that is only behind.
fn passes_soon(error: &NodeError) -> bool {
    let why = match error {
        NodeError::Membership(MembershipError::Unfit { why, .. }) => Some(why),
        _ => None,
    };
    error.may_pass() || matches!(why, Some(Unfit::Behind { .. }))
}

/// Of voters, how far each has this leader's log and what it says of itself: the furthest of those
/// that can lead. `of`: how far this leader has applied. `untaken`: whether a node was asked to
/// lead and did not.
fn furthest_fit(
    of: u64,
    answered: &[(u64, NodeId, NodeStatus)],
    untaken: impl Fn(NodeId) -> bool,
) -> Result<NodeId, MembershipError> {
    let mut known: Vec<_> = answered.iter().filter(|(at, ..)| *at > 0).collect();
    known.sort_by_key(|(at, id, _)| std::cmp::Reverse((*at, *id)));
    let mut why_not = None;
    for (at, id, status) in known {
        let fit = match untaken(*id) {
            true => Err(Unfit::Untaken),
            false => check_fit(*at, of, status),
        };
        match fit {
            Ok(()) => return Ok(*id),
            Err(why) => drop(why_not.get_or_insert(MembershipError::Unfit { id: *id, why })),
        }
    }
    Err(why_not.unwrap_or(MembershipError::NobodyAnswers))
}

/// Whether a voter that is this far can lead at once: one that needs more of the log first would
/// not, and one without room would take no registrations.
fn check_fit(at: u64, of: u64, status: &NodeStatus) -> Result<(), Unfit> {
    if at == 0 || of.saturating_sub(at) > CAUGHT_UP_LAG {
        return Err(Unfit::Behind { at, of });
    }
    if status.disk_low {
        return Err(Unfit::Full);
    }
    match status.recovering.as_str() {
        "" => Ok(()),
        doubt => Err(Unfit::Doubtful(doubt.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u64) -> NodeId {
        NodeId::new(id).unwrap()
    }

    #[test]
    fn the_lead_goes_to_the_furthest_voter_that_can_lead_at_once() {
        let voter = |at, id, disk_low, recovering: &str| {
            let recovering = recovering.to_owned();
            let status = NodeStatus { disk_low, recovering, ..NodeStatus::default() };
            (at, node(id), status)
        };
        let unfit = |id, why| Err(MembershipError::Unfit { id: node(id), why });
        let last = 10_000;
        let near = last - CAUGHT_UP_LAG;
        let behind = |at| Unfit::Behind { at, of: last };
        let nobody = Err(MembershipError::NobodyAnswers);
        for (what, voters, expected) in [
            ("nobody answers", &[][..], nobody.clone()),
            ("nobody's log is known", &[voter(0, 2, false, "")], nobody),
            ("the furthest", &[voter(last, 3, false, ""), voter(near, 2, false, "")], Ok(node(3))),
            ("not a full one", &[voter(near, 2, false, ""), voter(last, 3, true, "")], Ok(node(2))),
            (
                "nor one that doubts its log",
                &[voter(near, 2, false, ""), voter(last, 3, false, "old")],
                Ok(node(2)),
            ),
            (
                "nor one that did not take it",
                &[voter(near, 2, false, ""), voter(last, 4, false, "")],
                Ok(node(2)),
            ),
            (
                "nor one that is behind",
                &[voter(near - 1, 2, false, "")],
                unfit(2, behind(near - 1)),
            ),
            (
                "of none, the furthest says why",
                &[voter(near - 1, 2, false, ""), voter(last, 3, true, "")],
                unfit(3, Unfit::Full),
            ),
            (
                "all that could be has been tried",
                &[voter(last, 4, false, ""), voter(near, 2, false, "old")],
                unfit(4, Unfit::Untaken),
            ),
        ] {
            let found = furthest_fit(last, voters, |id| id == node(4));
            assert_eq!(found, expected, "{what}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_stops_asks_again_where_a_moment_may_help() {
        const EACH: Duration = Duration::from_millis(100);
        let unfit = |why| Err(refused(MembershipError::Unfit { id: node(2), why }));
        let behind = || unfit(Unfit::Behind { at: 1, of: 1_000 });
        let nobody = || Err(refused(MembershipError::NobodyAnswers));
        let alone = || Err(refused(MembershipError::NoOther));
        for (answers, leads, asked, expected) in [
            (vec![Ok(node(2))], true, 1, Ok(node(2))),
            (vec![behind(), Ok(node(2))], true, 2, Ok(node(2))),
            (vec![nobody(), behind(), Ok(node(2))], true, 3, Ok(node(2))),
            (vec![nobody(), nobody(), behind(), Ok(node(2))], true, 3, behind()),
            (vec![behind(), Ok(node(2))], false, 1, behind()),
            (vec![unfit(Unfit::Full), Ok(node(2))], true, 1, unfit(Unfit::Full)),
            (vec![alone(), Ok(node(2))], true, 1, alone()),
        ] {
            let (begun, mut left) = (Instant::now(), answers.into_iter());
            let ask = || std::future::ready(left.next().expect("not asked that often"));
            let found = asked_again(EACH, ask, || leads).await;
            assert_eq!(found, expected);
            assert_eq!(begun.elapsed(), EACH * (asked - 1), "{expected:?}");
        }
    }

    #[test]
    fn a_voter_without_this_leaders_log_is_behind_also_where_that_is_short() {
        let status = NodeStatus::default();
        assert_eq!(check_fit(0, 5, &status), Err(Unfit::Behind { at: 0, of: 5 }));
        assert_eq!(check_fit(1, 5, &status), Ok(()));
    }
}
