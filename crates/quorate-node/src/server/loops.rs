//! What a node does unasked beside Raft, each for as long as it runs (`upkeep.rs`).

use std::sync::Arc;

use quorate_log::SnapshotStore;

use crate::config::Start;
use crate::node::Node;
use crate::node::queues::Loop;
use crate::types::{LogStore, TypeConfig};
use crate::upkeep::compaction::Compaction;
use crate::upkeep::failover::Failover;
use crate::upkeep::own_membership::MemberLoop;
use crate::upkeep::ticker::Ticker;
use crate::upkeep::{moving, recall, states, succession, untaken, upgrade};

pub(super) fn loops(
    node: &Arc<Node>,
    log: &LogStore,
    snapshots: &Arc<SnapshotStore<TypeConfig>>,
    start: Start,
) -> [Loop; 13] {
    let of = || node.clone();
    let ticker = Ticker::new(of());
    let members = MemberLoop::new(of(), log.clone(), start.clone());
    let compaction = Compaction::new(of(), log.clone(), snapshots.clone());
    let failover = Failover::new(of());
    let (fresh, outsiders, applied) = (of(), of(), node.applied().clone());
    [
        Box::pin(recall::run(of(), log.clone())),
        Box::pin(succession::run(of())),
        Box::pin(untaken::run(of(), log.clone())),
        Box::pin(async move { ticker.run().await }),
        Box::pin(moving::run(of(), start)),
        Box::pin(upgrade::run(of())),
        Box::pin(states::run(of())),
        Box::pin(async move { members.run().await }),
        Box::pin(async move { compaction.run().await }),
        Box::pin(async move { failover.run().await }),
        Box::pin(async move { match fresh.stay_fresh().await {} }),
        Box::pin(async move { match outsiders.ask_about_outsiders().await {} }),
        Box::pin(async move { match applied.forget_old_changes().await {} }),
    ]
}
