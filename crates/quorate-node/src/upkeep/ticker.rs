//! The node's pulse. Every node looks at its leader and its disk; a leader lets registry time pass:
//! it proposes a tick when something is due, and a grace first after an election or a stall.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use quorate_log::NodeId;
use quorate_state::{Clock, Op, limits};
use tokio::time::Instant;

use crate::clock::TICK;
use crate::error::NodeError;
use crate::error::RunError;
use crate::node::Node;
use crate::runtime::random;
use crate::types::Outcome;

/// With nothing due, the clock in the log is moved on this often, so that little time is lost when
/// the leader dies, ms.
const IDLE_TICK_MS: u64 = 500;

/// Between two ticks: leases that end one after the other share an entry.
const TICK_PAUSE: Duration = Duration::from_millis(20);

/// When more is due than one command ends, the next tick comes when no other command was applied
/// for this long: each of them ends as much, so a tick beside them only makes them wait. On two
/// cores the writes of one at 200/s took 2.8 ms in the middle while 20,000 leases ended, with ticks
/// every 5 ms between them; 1.9 ms without ticks, 0.6 ms when nothing ends. Alone, ticks end 20,000
/// leases in 80 such pauses: 0.8 s.
const LATE_PAUSE_MIN: Duration = Duration::from_millis(8);
/// Where a tick takes long, the pause is twice of that, so that ending leases takes a third of the
/// time; but no more than this.
const LATE_PAUSE_MAX: Duration = Duration::from_millis(20);

/// A command of the ticker that is not applied by then is given up; the next tick tries again. Not
/// a grace: with millions of leases it takes longer, and each that is given up is applied, too.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A cluster's lease ids count on from a random number below this, so that a lease of a cluster
/// that was founded again is not taken for one of this. Two clusters that gave a million leases
/// each share ids with a probability of 10^-6. Not larger: each instance in an answer carries its
/// lease, and up to 2^42 that takes six bytes.
const LEASE_BASES: u64 = 1 << 41;

/// A leader without room on its disk looks for a voter that has some this often.
const HAND_OVER_EVERY: Duration = Duration::from_secs(2);

/// Looks at the leader and the disk, and lets registry time pass while this node leads.
pub(crate) struct Ticker {
    node: Arc<Node>,
    /// The last term in which this node led and gave a grace.
    grace_given: u64,
    handed_over: Instant,
    /// The log says that handing the lead over has failed.
    has_told: bool,
}

impl Ticker {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node, grace_given: 0, handed_over: Instant::now(), has_told: false }
    }

    pub(crate) async fn run(mut self) -> Result<(), RunError> {
        loop {
            let pause = self.tick().await;
            tokio::time::sleep(pause).await;
        }
    }

    /// One look around, and what a leader then has to propose; how long until the next.
    async fn tick(&mut self) -> Duration {
        let node = self.node.clone();
        self.look();
        if !node.leads() {
            return TICK;
        }
        if node.disk().check().is_err() {
            self.hand_over_to_room().await;
        }
        if node.disk().check_floor().is_err() {
            return TICK;
        }
        let founded = node.applied().lock().registry.cluster_id().is_some();
        if !founded {
            return if self.propose(founding()).await { Duration::ZERO } else { TICK };
        }
        let now = node.read_clock();
        if node.clock().is_held() {
            self.give_grace().await;
            return TICK;
        }
        let (applied, due) = {
            let state = node.applied().lock();
            (state.registry.clock(), state.registry.next_deadline())
        };
        let idle = due.is_some() && now.0 >= applied.0 + IDLE_TICK_MS;
        let needed = idle || due.is_some_and(|due| due <= now);
        if !needed {
            return until(due, now);
        }
        let proposed = Instant::now();
        if !self.propose(Op::Tick).await {
            return TICK;
        }
        let (applied, due) = {
            let state = node.applied().lock();
            (state.registry.clock(), state.registry.next_deadline())
        };
        if due.is_none_or(|due| due > applied) {
            return until(due, now).max(TICK_PAUSE);
        }
        let pause = late_pause(proposed.elapsed());
        until_nothing_is_applied(pause, || node.applied().position().index).await;
        Duration::ZERO
    }

    /// What every node looks at, also while a leader waits for its proposal.
    fn look(&self) {
        let node = &self.node;
        node.disk().measure();
        node.count_of_late();
        node.leadership().set_members(node.members_as_of());
        if node.is_founded() {
            node.leadership().set_inside();
        }
        let leader = self.leader_in_sight();
        if node.leadership().set_leader(leader) {
            node.meters().leader_changes.inc();
            match leader {
                Some(leader) => {
                    tracing::info!(leader = leader.get(), term = node.term(), "there is a leader")
                }
                None => tracing::warn!("no leader in sight: no writes; local reads go on"),
            }
        }
    }

    /// Gives renewals that may be waiting the time to arrive, then lets the clock go on. When the
    /// whole cluster was down, clients may be backing off, and every lease gets a whole TTL. One
    /// grace, however long it takes: each that is proposed is applied.
    async fn give_grace(&mut self) {
        let node = self.node.clone();
        let term = node.term();
        let elected = self.grace_given != term;
        let timed_by = node.applied().lock().timed_by;
        let grace_ms = match elected && node.leadership().all_was_down(timed_by) {
            true => limits::TTL_MAX_MS,
            false => node.tunables().election_grace_ms,
        };
        let mut proposed = std::pin::pin!(node.propose_here(Op::Grace { grace_ms }, None));
        let proposed = loop {
            let waited = tokio::time::timeout(PROPOSE_TIMEOUT, &mut proposed);
            match self.looking(waited).await {
                Ok(proposed) => break proposed,
                Err(_) if !node.leads() || node.term() != term => return,
                Err(_) if node.disk().check().is_err() => self.hand_over_to_room().await,
                Err(_) => {}
            }
        };
        if !is_applied(proposed) {
            return;
        }
        node.clock().release(term);
        node.leadership().led(term);
        self.grace_given = term;
        if elected {
            tracing::info!(term, "this node leads");
        } else {
            tracing::warn!(term, grace_ms, "this leader was held up; leases get a grace");
        }
    }

    /// A leader that can write nothing hands the lead to a voter that can, if there is one.
    async fn hand_over_to_room(&mut self) {
        if self.handed_over.elapsed() < HAND_OVER_EVERY {
            return;
        }
        self.handed_over = Instant::now();
        let Ok(next) = self.looking(self.node.successor()).await else { return };
        let handed = self.node.transfer(next, Instant::now() + PROPOSE_TIMEOUT);
        match self.looking(handed).await {
            Ok(()) => {
                let to = next.get();
                tracing::warn!(to, "no room on this leader's disk: it has handed the lead over");
                self.has_told = false;
            }
            Err(error) if !self.has_told => {
                let to = next.get();
                tracing::warn!(to, %error, "no room on this leader's disk, and handing the lead over failed; trying again");
                self.has_told = true;
            }
            Err(error) => tracing::debug!(%error, "handing the lead over failed again"),
        }
    }

    /// The leader, if it was heard of lately; this node itself, if it leads and a quorum was.
    fn leader_in_sight(&self) -> Option<NodeId> {
        let node = &self.node;
        let patience = node.silence_max();
        let leader = node.current_leader()?;
        let silence = match leader == node.id() {
            true => node.quorum_silence(),
            false => node.leadership().silence()?,
        };
        (silence <= patience).then_some(leader)
    }

    /// Waits for this, and looks around meanwhile: a gap between two looks at the clock is a stall.
    async fn looking<T>(&self, waited: impl Future<Output = T>) -> T {
        let mut waited = std::pin::pin!(waited);
        loop {
            tokio::select! {
                done = &mut waited => return done,
                () = tokio::time::sleep(TICK) => {
                    self.look();
                    self.node.read_clock();
                }
            }
        }
    }

    /// Puts a command of the ticker into the log; false: not in time.
    async fn propose(&self, op: Op) -> bool {
        let proposed = tokio::time::timeout(PROPOSE_TIMEOUT, self.node.propose_here(op, None));
        self.looking(proposed).await.is_ok_and(is_applied)
    }
}

/// Whether a command of the ticker is applied.
fn is_applied(proposed: Result<Outcome, NodeError>) -> bool {
    match proposed {
        Ok(_) => true,
        // Reported elsewhere: by the election, the metrics, the disk's own log line.
        Err(NodeError::NotLeader { .. } | NodeError::DiskFull { .. }) => false,
        Err(error) => {
            tracing::warn!(%error, "letting registry time pass failed");
            false
        }
    }
}

/// What the first leader of a new log proposes. The randomness travels in the command: applying it
/// is the same everywhere.
fn founding() -> Op {
    let cluster_id = NonZeroU64::new(random()).unwrap_or(NonZeroU64::MIN);
    let lease_base = random() % LEASE_BASES;
    Op::Found { cluster_id, lease_base }
}

/// How long nothing is to be applied before the next tick, when the last one took this long and
/// left something due.
fn late_pause(took: Duration) -> Duration {
    (took * 2).clamp(LATE_PAUSE_MIN, LATE_PAUSE_MAX)
}

/// Waits until the index of what is applied has stood still for a pause, but not much longer than a
/// tick: the ticker has to look around, and what is applied may be no command.
async fn until_nothing_is_applied(pause: Duration, index: impl Fn() -> u64) {
    let latest = Instant::now() + TICK;
    let mut seen = index();
    loop {
        tokio::time::sleep(pause).await;
        let applied = index();
        if applied == seen || Instant::now() >= latest {
            return;
        }
        seen = applied;
    }
}

/// The time from now until something is due, but no longer than a tick.
fn until(due: Option<Clock>, now: Clock) -> Duration {
    let ms = due.map_or(u64::MAX, |due| due.0.saturating_sub(now.0).max(1));
    TICK.min(Duration::from_millis(ms))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn ending_leases_takes_a_third_of_the_time_where_a_command_takes_long() {
        let ms = Duration::from_millis;
        let rows = [(0, 8), (2, 8), (4, 8), (5, 10), (9, 18), (10, 20), (400, 20)];
        for (took, pause) in rows {
            assert_eq!(late_pause(ms(took)), ms(pause), "a tick took {took} ms");
        }
    }

    /// With other commands applied every `every` ms until `until`, a late tick waits `waited` ms.
    #[tokio::test(start_paused = true)]
    async fn a_late_tick_waits_for_other_commands_but_not_for_ever() {
        let ms = Duration::from_millis;
        // No writes; writes for a while; all the time; more seldom than the pause is long.
        for (every, until, waited) in
            [(1_000, 10_000, 8), (5, 30, 40), (5, 10_000, 104), (20, 10_000, 8)]
        {
            let begun = Instant::now();
            let applied = AtomicU64::new(0);
            let others = async {
                while begun.elapsed() + ms(every) <= ms(until) {
                    tokio::time::sleep(ms(every)).await;
                    applied.fetch_add(1, Ordering::Relaxed);
                }
                std::future::pending::<()>().await;
            };
            let waiting = until_nothing_is_applied(ms(8), || applied.load(Ordering::Relaxed));
            tokio::select! {
                () = others => {}
                () = waiting => assert_eq!(begun.elapsed(), ms(waited), "every {every} ms"),
            }
        }
    }
}
