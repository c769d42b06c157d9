//! What a change of the members leaves to be done: one that was cut off is finished, and one that
//! is done is made known.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver as _;
use quorate_state::Op;
use tokio::time::timeout;

use crate::error::{MembershipError, NodeError};
use crate::node::Node;
use crate::node::membership::{or_not_known, refused};

/// A majority that has committed a change takes the next entries within this, if it is well.
const KNOWN_WITHIN: Duration = Duration::from_secs(1);

/// A majority that is well ends a change within this, and has it known.
const SETTLED_WITHIN: Duration = Duration::from_secs(2);

impl Node {
    /// Ends a change that was cut off between its two steps, before another begins: Raft starts the
    /// next from the half that is to be, not from all who vote now, so that it would come to other
    /// voters than those that were checked.
    ///
    /// # Errors
    /// There is no quorum, or this node leads no more.
    pub(super) async fn finish_change(&self) -> Result<(), NodeError> {
        if !self.in_joint_membership() {
            return Ok(());
        }
        self.once_heard(|| self.check_quorum()).await?;
        tracing::debug!("finishing a membership change that was cut off");
        or_not_known(self.change(ChangeMembers::AddVoterIds(BTreeSet::new())).await)?;
        // It may have taken this node out.
        match self.leads() {
            true => Ok(()),
            false => Err(NodeError::NotLeader { node: self.id }),
        }
    }

    fn in_joint_membership(&self) -> bool {
        self.view.borrow_watched().membership_config.get_joint_config().len() > 1
    }

    /// Ends a change that was cut off between its two steps; only while this node leads and no
    /// other change is going on. `told`: the log index of the last one that the log has a line of.
    /// A leader that is cut off gives up soon: it has to ask whether it is a member.
    pub(crate) async fn settle_membership(&self, told: &mut Option<u64>) {
        let Ok(_turn) = self.membership.try_acquire() else { return };
        if !self.leads() || !self.in_joint_membership() {
            return;
        }
        let open = self.view.borrow_watched().membership_config.log_id().map(|at| at.index());
        if std::mem::replace(told, open) != open {
            tracing::info!("finishing a membership change that was cut off");
        }
        let change = self.change(ChangeMembers::AddVoterIds(BTreeSet::new()));
        match timeout(SETTLED_WITHIN, change).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(%error, "finishing the membership change failed; trying again");
            }
            Err(_elapsed) => tracing::debug!("finishing the membership change takes too long"),
        }
    }

    /// A change is committed, and so far only this node knows that for sure. The next entry tells a
    /// majority, and with the one after it they have that on disk. From then on, a node that was
    /// taken out is refused (`node/outsiders.rs`), whoever dies or restarts.
    ///
    /// # Errors
    /// [`MembershipError::NotKnown`]: the change stands, and asking for it again comes back here.
    pub(super) async fn make_known(&self) -> Result<(), NodeError> {
        let known = async {
            for _ in 0..2 {
                if self.voters().contains(&self.id) {
                    self.propose_here(Op::Tick, None).await?;
                } else if !self.is_membership_committed() {
                    return Err(NodeError::NotLeader { node: self.id });
                }
                // Else it has taken itself out, and proposes no more.
            }
            Ok(())
        };
        let why = match timeout(KNOWN_WITHIN, known).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_elapsed) => {
                let waited_ms = KNOWN_WITHIN.as_millis() as u64;
                NodeError::NoAnswer { leader: self.id, waited_ms }
            }
        };
        tracing::debug!(%why, "a change is not known to a majority yet");
        Err(refused(MembershipError::NotKnown { why: Box::new(why) }))
    }

    fn is_membership_committed(&self) -> bool {
        let metrics = self.metrics.borrow_watched();
        *metrics.membership_config.log_id() <= metrics.local_committed
    }
}
