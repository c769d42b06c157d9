//! The node's pulse. Every node looks at its leader and its disk; a leader lets registry time pass: it proposes a tick
//! when something is due, and a grace first after an election or a stall.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use quorate_state::{Clock, Op, limits};
use tokio::time::Instant;

use crate::clock::TICK;
use crate::cluster_status::NodeStatus;
use crate::error::NodeError;
use crate::node::Node;
use crate::start_error::RunError;

/// With nothing due, the clock in the log is moved on this often, so that little time is lost when the leader dies, ms.
const IDLE_TICK_MS: u64 = 500;

/// A command of the ticker that is not applied by then is given up; the next tick tries again.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A leader without room on its disk looks for a voter that has some this often.
const HAND_OVER_EVERY: Duration = Duration::from_secs(2);

/// See the head of this file.
pub(crate) struct Ticker {
    node: Arc<Node>,
    /// The term in which this node last led and gave the grace that a new leader owes.
    grace_given: u64,
    grace_owed: bool,
    handed_over: Instant,
}

impl Ticker {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node, grace_given: 0, grace_owed: false, handed_over: Instant::now() }
    }

    pub(crate) async fn run(mut self) -> Result<(), RunError> {
        loop {
            let pause = self.tick().await;
            tokio::time::sleep(pause).await;
        }
    }

    /// One look around; how long until the next.
    async fn tick(&mut self) -> Duration {
        let node = self.node.clone();
        node.disk.measure();
        node.leadership.set_leader(self.leader_in_sight());
        if !node.leads() {
            self.grace_owed = false;
            return TICK;
        }
        if node.disk.check().is_err() {
            self.hand_over_to_room().await;
            return TICK;
        }
        let now = node.read_clock();
        let term = node.term();
        let elected = self.grace_given != term;
        self.grace_owed |= elected | node.clock.take_stall();
        if self.grace_owed {
            let grace_ms = self.grace_ms();
            if self.propose(Op::Grace { grace_ms }).await {
                if elected {
                    tracing::info!(term, grace_ms, "this node leads; leases get a grace");
                }
                (self.grace_owed, self.grace_given) = (false, term);
            }
            return TICK;
        }
        let (applied, due) = {
            let state = node.applied.lock();
            (state.registry.clock(), state.registry.next_deadline())
        };
        let idle = due.is_some() && now.0 >= applied.0 + IDLE_TICK_MS;
        if idle || due.is_some_and(|due| due <= now) {
            self.propose(Op::Tick).await;
        }
        until(due, now)
    }

    /// A leader that can write nothing hands the lead to a voter that can.
    async fn hand_over_to_room(&mut self) {
        if self.handed_over.elapsed() < HAND_OVER_EVERY {
            return;
        }
        self.handed_over = Instant::now();
        let reserve_bytes = self.node.tunables.disk_reserve_bytes;
        let has_room = |status: &NodeStatus| status.disk_free_bytes >= reserve_bytes;
        let all = self.node.cluster_status(false).await;
        let next = all.into_iter().find_map(|(member, status)| {
            let fit = member.voter && status.as_ref().is_ok_and(has_room);
            fit.then_some(member.id)
        });
        let Some(next) = next else { return };
        tracing::warn!(to = next, "no room on this leader's disk: handing the lead over");
        let handed = self.node.transfer(next, Instant::now() + PROPOSE_TIMEOUT).await;
        if let Err(error) = handed {
            tracing::warn!(%error, "handing the lead over failed");
        }
    }

    /// The leader, if it was heard of lately; this node itself, if it leads and a quorum was.
    fn leader_in_sight(&self) -> Option<u64> {
        let node = &self.node;
        let patience = node.election_timeout_max();
        let leader = node.metrics.borrow_watched().current_leader?;
        let silence = match leader == node.id {
            true => node.quorum_silence(),
            false => node.leadership.silence()?,
        };
        (silence <= patience).then_some(leader)
    }

    /// After an election among running nodes, clients need time to find the new leader. When this node has heard of no
    /// other leader since it started, the cluster was down: clients may be backing off, and get a whole TTL.
    fn grace_ms(&self) -> u64 {
        match self.node.leadership.ever_heard() {
            true => self.node.tunables.election_grace_ms,
            false => limits::TTL_MAX_MS,
        }
    }

    async fn propose(&self, op: Op) -> bool {
        let proposed = tokio::time::timeout(PROPOSE_TIMEOUT, self.node.propose_here(op)).await;
        match proposed {
            Ok(Ok(_)) => true,
            // Told elsewhere: by the election, the metrics, the disk's own log line.
            Err(_) | Ok(Err(NodeError::NotLeader { .. } | NodeError::DiskFull { .. })) => false,
            Ok(Err(error)) => {
                tracing::warn!(%error, "letting registry time pass failed");
                false
            }
        }
    }
}

/// The time from now until something is due, but no longer than a tick.
fn until(due: Option<Clock>, now: Clock) -> Duration {
    let ms = due.map_or(u64::MAX, |due| due.0.saturating_sub(now.0).max(1));
    TICK.min(Duration::from_millis(ms))
}
