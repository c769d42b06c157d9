//! Finds out what this node had promised before it started, and watches it catch up; what follows
//! from it is in `raft/recall.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use openraft::async_runtime::watch::WatchReceiver as _;
use quorate_log::NodeId;
use quorate_proto::ClusterId;

use crate::error::RunError;
use crate::node::Node;
use crate::node::succession::Claim;
use crate::peers::succeeded_by;
use crate::raft::network::messages::recalled_from_wire;
use crate::raft::recall::{Reached, Recalled, Standing, reached};
use crate::types::{LogId, LogStore};

/// How long each of the others has to answer.
const ASK_TIMEOUT: Duration = Duration::from_millis(500);

/// While something is not settled, a look this often; then the nodes that did not answer yet are
/// asked this often.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const EVERY_SETTLED: Duration = Duration::from_secs(1);

/// Finds out what this node had promised, and watches it catch up.
pub(crate) async fn run(node: Arc<Node>, log: LogStore) -> Result<(), RunError> {
    // What a founder with an empty log is held to is known by then.
    while !node.takes_part() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let Ok(at_start) = reached(&log).await else { return std::future::pending().await };
    let is_held = matches!(node.recall().standing(), Standing::Behind(_));
    let copied = log.is_doubted() && !is_held;
    let mut looking = LookingBack { node, log, copied, at_start, answers: BTreeMap::new() };
    // None: the log has failed, and with it soon the node.
    while let Some(standing) = looking.look().await? {
        looking.node.recall().settle(standing);
        let settled = standing == Standing::Sound;
        tokio::time::sleep(if settled { EVERY_SETTLED } else { LOOK_EVERY }).await;
    }
    std::future::pending().await
}

struct LookingBack {
    node: Arc<Node>,
    log: LogStore,
    /// The log was doubted when the node started.
    copied: bool,
    at_start: Reached,
    answers: BTreeMap<NodeId, Recalled>,
}

impl LookingBack {
    /// Asks the nodes that have not answered yet, and weighs what is known.
    ///
    /// # Errors
    /// One of them is of a cluster that was made from this one before this node started.
    async fn look(&mut self) -> Result<Option<Standing>, RunError> {
        let configs = {
            let view = self.node.view().borrow_watched();
            view.membership_config.membership().get_joint_config().clone()
        };
        let me = self.node.id();
        let others: BTreeSet<NodeId> = configs.iter().flatten().copied().collect();
        let node = &self.node;
        // Members refuse a node that was taken out.
        let is_out = node.leadership().is_removed();
        let missing = others.iter().filter(|id| **id != me && !self.answers.contains_key(id));
        let missing = missing.filter(|_| !is_out);
        let asked = join_all(missing.map(|id| async move { (*id, node.ask(*id).await) }));
        for (id, answer) in asked.await {
            match answer {
                Answer::Recalled(recalled) => drop(self.answers.insert(id, recalled)),
                Answer::Succeeded { by, ago } => {
                    let of = self.node.peers().cluster_id();
                    // This node has called it.
                    let is_proved = true;
                    let claim = Claim { told_by: id, by: Some(by), of, ago, is_proved };
                    if self.node.hear_succession(claim).await == Ok(true) {
                        return Err(self.node.is_succeeded(id, by));
                    }
                }
                Answer::None => {}
            }
        }
        Ok(self.weigh(me, &configs).await)
    }

    /// What follows from the answers until now; `None`: the log has failed.
    async fn weigh(&self, me: NodeId, configs: &[BTreeSet<NodeId>]) -> Option<Standing> {
        let before = self.node.recall().standing();
        let reached = reached(&self.log).await.ok()?;
        let floor = match self.copied && self.log.is_doubted() {
            true => match missing_answers(me, configs, &self.answers) {
                0 => floor_of_copy(self.answers.values()),
                missing => return Some(self.asks_on(before, missing)),
            },
            // Of a floor that was found, a later term alone is no end.
            false => match before {
                Standing::Behind(floor) => floor,
                Standing::Asking { .. } | Standing::Sound => Reached::default(),
            },
        };
        let floor = floor.or(broken(self.at_start, reached, self.answers.values()));
        match reached.covers(&floor) {
            true if self.log.is_doubted() => self.caught_up(before).await,
            true => Some(Standing::Sound),
            false => self.is_behind(before, reached, floor).await,
        }
    }

    fn asks_on(&self, before: Standing, missing: usize) -> Standing {
        let standing = Standing::Asking { missing };
        if before != standing {
            tracing::warn!(
                missing,
                "the data directory is a copy and may be old: waiting for other voters to say how far this node was"
            );
        }
        standing
    }

    async fn is_behind(
        &self,
        before: Standing,
        reached: Reached,
        floor: Reached,
    ) -> Option<Standing> {
        if !self.log.is_doubted() {
            // Or it would forget this with its next start.
            self.log.set_doubted(true).await.ok()?;
        }
        if before != Standing::Behind(floor) {
            let index = |last: Option<LogId>| last.map_or(0, |last| last.index());
            tracing::warn!(
                term = reached.term,
                last = index(reached.last),
                known_term = floor.term,
                known_last = index(floor.last),
                "the others know this node further than it is (an older copy of its data directory, or it led and died \
                 before its own disk had what others had): it votes only for nodes that are so far until it has caught up"
            );
        }
        Some(Standing::Behind(floor))
    }

    async fn caught_up(&self, before: Standing) -> Option<Standing> {
        self.log.set_doubted(false).await.ok()?;
        match before {
            Standing::Behind(_) => {
                tracing::info!("this node has caught up with what the others knew of it");
            }
            _ => tracing::info!("the data directory is a copy, and as far as this node was"),
        }
        Some(Standing::Sound)
    }
}

/// What came of asking one of the others.
enum Answer {
    None,
    Recalled(Recalled),
    /// It is a member of the cluster `by` now, which an operator made from that of this node, so
    /// long ago, at least.
    Succeeded {
        by: ClusterId,
        ago: Duration,
    },
}

impl Node {
    async fn ask(&self, id: NodeId) -> Answer {
        let Ok(address) = self.peer_address(id) else { return Answer::None };
        match self.peers().recall(id, &address, ASK_TIMEOUT).await {
            Ok(recalled) => Answer::Recalled(recalled_from_wire(recalled)),
            Err(refusal) => match succeeded_by(&refusal) {
                Some((by, ago)) => Answer::Succeeded { by, ago },
                None => Answer::None,
            },
        }
    }
}

/// How many more have to answer, until one of them is in every quorum of which this node can have
/// been: of n voters, all but as many as may be missing from a quorum that has this node.
fn missing_answers(
    me: NodeId,
    configs: &[BTreeSet<NodeId>],
    answers: &BTreeMap<NodeId, Recalled>,
) -> usize {
    let missing = configs.iter().map(|voters| {
        let others = voters.iter().filter(|id| **id != me);
        let answered = others.clone().filter(|id| answers.contains_key(id)).count();
        (voters.len() - voters.len() / 2).min(others.count()).saturating_sub(answered)
    });
    missing.max().unwrap_or(0)
}

/// What a node that may have lost anything is held to.
fn floor_of_copy<'a>(answers: impl Iterator<Item = &'a Recalled>) -> Reached {
    answers.map(Recalled::floor).fold(Reached::default(), Reached::or)
}

/// What this node had promised before it started and does not have.
fn broken<'a>(
    at_start: Reached,
    reached: Reached,
    answers: impl Iterator<Item = &'a Recalled>,
) -> Reached {
    let broken = answers.map(|told| told.promise).filter(|promise| !promise.is_kept_by(at_start));
    let broken = broken.map(|promise| Reached { term: promise.term, last: promise.last });
    // What it promised since it started, it has.
    broken.filter(|floor| !reached.covers(floor)).fold(Reached::default(), Reached::or)
}

#[cfg(test)]
mod tests;
