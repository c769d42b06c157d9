//! A learner becomes a voter, once it has the log and answers: with each voter, a majority needs
//! more of them, and one that is down may take it away for good.

use std::collections::BTreeSet;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::{ChangeMembers, Instant as _, RaftMetrics};
use quorate_log::NodeId;
use tokio::sync::SemaphorePermit;
use tokio::time::{Instant, timeout_at};

use crate::error::{MembershipError, NodeError};
use crate::node::Node;
use crate::node::membership::{check_halves, or_not_known, refused};
use crate::types::TypeConfig;

/// A learner that is no more entries than this behind can become a voter without holding up commits
/// for long.
pub(super) const CAUGHT_UP_LAG: u64 = 256;

impl Node {
    /// Waits until a learner has nearly all of the log. That may take long, or for ever, and others
    /// have their turn meanwhile, so the quorum is checked again.
    pub(super) async fn caught_up<'a>(
        &'a self,
        id: NodeId,
        turn: SemaphorePermit<'a>,
        deadline: Instant,
    ) -> Result<SemaphorePermit<'a>, NodeError> {
        drop(turn);
        self.await_caught_up(id, deadline).await?;
        let turn = self.one_at_a_time(deadline).await?;
        self.finish_change().await?;
        self.once_heard(|| self.check_quorum()).await?;
        Ok(turn)
    }

    async fn await_caught_up(&self, id: NodeId, deadline: Instant) -> Result<(), NodeError> {
        let since = Instant::now();
        let mut metrics = self.metrics.clone();
        let mut was_member = false;
        loop {
            let Progress { at, of, answers } = {
                let metrics = metrics.borrow_watched();
                if metrics.current_leader != Some(self.id) {
                    return Err(NodeError::NotLeader { node: self.id });
                }
                // It may not be told yet that it is one.
                let is_member = metrics.membership_config.get_node(&id).is_some();
                if was_member && !is_member {
                    return Err(refused(MembershipError::Unknown { id }));
                }
                was_member = is_member;
                progress(&metrics, id, since)
            };
            if answers && at > 0 && of.saturating_sub(at) <= CAUGHT_UP_LAG {
                return Ok(());
            }
            if timeout_at(deadline, metrics.changed()).await.is_err() {
                if !answers {
                    return Err(refused(MembershipError::Mute { id }));
                }
                let waited_ms = since.elapsed().as_millis() as u64;
                return Err(refused(MembershipError::TooSlow { id, waited_ms, at, of }));
            }
        }
    }

    pub(super) async fn promote(&self, id: NodeId) -> Result<(), NodeError> {
        if self.voters().contains(&id) {
            return Ok(());
        }
        // It may have died since it was looked at.
        self.once_heard(|| self.check_promotion(id)).await?;
        tracing::info!(id = id.get(), "promoting a learner to voter");
        // Nobody was taken out, about whom others would have to know.
        or_not_known(self.change(ChangeMembers::AddVoterIds(BTreeSet::from([id]))).await)
    }

    pub(super) fn check_heard(&self, id: NodeId) -> Result<(), NodeError> {
        if self.hears(id) { Ok(()) } else { Err(refused(MembershipError::Mute { id })) }
    }

    /// Nothing is committed any more, not even its removal, if the voters with this one have no
    /// live majority.
    fn check_promotion(&self, id: NodeId) -> Result<(), NodeError> {
        self.check_heard(id)?;
        let after = self.voters().into_iter().chain([id]).collect();
        check_halves(&[after], |voter| self.hears(voter)).map_err(refused)
    }
}

/// How far a node is, as its leader knows.
#[derive(Debug, PartialEq, Eq)]
struct Progress {
    at: u64,
    of: u64,
    /// It does not stand where it was before it died, or lost its disk.
    answers: bool,
}

/// A learner answers once it has acknowledged what was sent to it since then: whatever it has lost
/// by then, Raft has found out.
fn progress(metrics: &RaftMetrics<TypeConfig>, id: NodeId, since: Instant) -> Progress {
    let waited = since.elapsed();
    let matched = metrics.replication.as_ref().and_then(|all| all.get(&id));
    let at = matched.and_then(|matched| matched.as_ref()).map_or(0, |log| log.index());
    let heard = metrics.heartbeat.as_ref().and_then(|heard| heard.get(&id));
    let is_heard = heard.and_then(|at| at.as_ref()).is_some_and(|at| at.elapsed() < waited);
    let votes = metrics.membership_config.voter_ids().any(|voter| voter == id);
    Progress { at, of: metrics.last_log_index.unwrap_or(0), answers: votes || is_heard }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use openraft::AsyncRuntime;
    use openraft::metrics::SerdeInstant;
    use tokio::time::advance;

    use super::*;
    use crate::runtime::Runtime;

    fn node(id: u64) -> NodeId {
        NodeId::new(id).unwrap()
    }

    /// Node 2 has all 40 entries, and was heard of just now.
    fn heard() -> RaftMetrics<TypeConfig> {
        let mut metrics = RaftMetrics::<TypeConfig>::new_initial(node(1));
        metrics.last_log_index = Some(40);
        let matched = openraft::testing::log_id::<TypeConfig>(3, node(1), 40);
        metrics.replication = Some([(node(2), Some(matched))].into());
        let now = <Runtime as AsyncRuntime>::Instant::now();
        metrics.heartbeat = Some([(node(2), Some(SerdeInstant::new(now)))].into());
        metrics
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_learner_had_before_counts_once_it_answers() {
        let of = |metrics: &_, id, since| progress(metrics, node(id), since);
        let dead = heard();
        advance(Duration::from_millis(1)).await;
        let since = Instant::now();
        let its = |answers| Progress { at: 40, of: 40, answers };
        advance(Duration::from_millis(1)).await;
        assert_eq!(of(&dead, 2, since), its(false));
        assert_eq!(of(&heard(), 2, since), its(true));
        advance(Duration::from_secs(60)).await;
        assert_eq!(of(&dead, 2, since), its(false), "however long it is waited for");
        assert_eq!(of(&heard(), 3, since), Progress { at: 0, ..its(false) });
    }
}
