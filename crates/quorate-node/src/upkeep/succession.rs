//! Tells the nodes of the clusters that this one was made from (`quorate recover`) that it was, for
//! as long as this node runs: they may come back at any time, and where none of their members is of
//! this cluster, nobody else would tell them that they are a second one. Each node of this cluster
//! does so, since they may be reached from one only. And ends this node when it is told that.
//!
//! What is told has how long ago that was: by the wall clock, and at least for as long as this node
//! has known it. So this asks for right clocks: of whoever recovered, then, and of each node that
//! tells, now. If the first was behind, or the second is ahead, nodes that ran already when the
//! recovery was made end, also a majority. `recover` refuses a clock that is behind what was
//! written last. If the first was ahead, or the second is behind, nodes that were started later,
//! but before every node of this cluster that tells them, go on, until they are started again.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use quorate_log::NodeId;
use quorate_proto::ClusterId;
use quorate_state::{OldNode, Predecessor};

use crate::error::RunError;
use crate::node::{MemberInfo, Node};
use crate::runtime::random;
use crate::wall;

/// Each of them is called this often, on average: most often before two that come back together
/// have elected a leader.
const CALL_EVERY: Duration = Duration::from_millis(250);

/// How long each has to answer.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);

/// Tells the old nodes, until this one is told.
pub(crate) async fn run(node: Arc<Node>) -> Result<(), RunError> {
    tokio::select! {
        succeeded = node.once_succeeded() => Err(succeeded),
        never = node.tell_old_nodes() => match never {},
    }
}

impl Node {
    async fn tell_old_nodes(&self) -> Infallible {
        loop {
            let before = self.applied().lock().registry.predecessors().to_vec();
            if before.is_empty() || !self.is_founded() {
                tokio::time::sleep(CALL_EVERY).await;
                continue;
            }
            let members = self.members();
            let told = before.iter().flat_map(|old| {
                let (ago, members) = (self.made_ago(old, wall::since_1970()), &members);
                old.left.iter().map(move |node| self.tell_old_node(old, node, ago, members))
            });
            join_all(told).await;
            // So that the nodes of this cluster do not all call in the same moment.
            tokio::time::sleep(CALL_EVERY / 2 + CALL_EVERY * (random() % 1_024) as u32 / 1_024)
                .await;
        }
    }

    /// A node of this cluster may be at its place now: that is called as itself first. With TLS, a
    /// call for another node would fail in the handshake, and be told in the log there.
    async fn tell_old_node(
        &self,
        cluster: &Predecessor,
        old: &OldNode,
        ago: Duration,
        members: &[MemberInfo],
    ) {
        let address = &old.address;
        let there = members.iter().find(|info| info.member.peer_address == *address);
        let there = there.map(|info| info.id);
        if there == Some(self.id()) {
            return;
        }
        let of = ClusterId::from(cluster.cluster_id);
        let old = NodeId::new(old.id).filter(|id| Some(*id) != there);
        for id in there.into_iter().chain(old) {
            match self.peers().succeed(id, address, of, ago, ANSWER_WITHIN).await {
                Ok(true) => {
                    let of = of.to_string();
                    tracing::info!(
                        id = id.get(),
                        address,
                        of,
                        "a node of the cluster that this one was made from was back, and ends"
                    );
                    return;
                }
                Ok(false) => return,
                Err(_gone_or_goes_on) => {}
            }
        }
    }
}
