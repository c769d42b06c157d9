//! The cluster's level (`quorate_state::Levels`): a leader raises it when all members have worked
//! at a higher one for a while, and a node ends whose release does not work at it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::RunError;
use crate::node::Node;
use crate::node::membership::{LevelChange, MembershipCall};

/// A look this often. Others are asked only where there is a higher level than the cluster's.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// # Errors
/// This node's release does not work at the cluster's level.
pub(crate) async fn run(node: Arc<Node>) -> Result<(), RunError> {
    let after = Duration::from_millis(node.tunables().upgrade_after_ms);
    let mut ripens = None;
    loop {
        let (level, levels) = (node.level().number, node.levels());
        // What a node has that waits to be taken in is no cluster's.
        if node.is_founded() && !levels.contains(level) {
            return Err(RunError::Level { id: node.id(), level, levels });
        }
        ripens = match can_rise(&node).await {
            true => ripens.or_else(|| Some(Instant::now() + after)),
            false => None,
        };
        if ripens.is_some_and(|at| at <= Instant::now()) {
            raise(&node).await;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn can_rise(node: &Node) -> bool {
    let level = node.level();
    if !node.leads() || level.held || node.levels().max <= level.number {
        return false;
    }
    node.common_level().await.is_ok_and(|common| common > level.number)
}

async fn raise(node: &Node) {
    let deadline = Instant::now() + node.tunables().request_timeout();
    let raise = MembershipCall::SetLevel(LevelChange::Raise);
    match node.on_leader(raise, deadline, &mut 0).await {
        Ok(_) => tracing::info!(level = node.level().number, "the cluster's level is raised"),
        Err(error) => tracing::warn!(%error, "raising the cluster's level failed; trying again"),
    }
}
