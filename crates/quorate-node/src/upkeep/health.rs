//! Active health checks: while this node leads, and a quorum hears it, it probes the instances that
//! declare checks, and puts what changed into the log. A follower probes nothing, and no node does
//! unless the operator allows networks; a leader that may not says that nothing is known any more
//! of what was found before.
//!
//! One task makes all probes, a bounded number at a time; nothing it knows is kept but the health
//! in the registry: the next leader begins with that, and with new counts.

mod grpc;
mod http;
mod lookup;
mod probe;
mod schedule;
mod verdict;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use openraft::AsyncRuntime as _;
use quorate_state::{CheckedInstances, HealthReason, HealthReport, InstanceKey, Op};
use rand_core::Rng as _;
use tokio::time::{Instant, sleep, timeout};

use crate::config::Networks;
use crate::error::RunError;
use crate::node::Node;
use crate::runtime::{Runtime, SplitMix};

use probe::{Failure, Means};
use schedule::{CheckId, Due, Schedule};

/// Probes under way: far below the 1,024 descriptors that a process often may have, and enough for
/// 1,000 checks a second that take a quarter of one.
const UNDER_WAY_MAX: usize = 256;

/// Of these, at most this many that did not answer in time before, or were not looked up in time.
const HANGING_MAX: usize = UNDER_WAY_MAX / 2;

/// The registry is looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// When the task itself did not get to run for this long, probes of that time say nothing of their
/// targets.
const STALL: Duration = Duration::from_millis(800);

/// Changes of health in one log entry: as many as leases that end in one (`registry/leases.rs`), so
/// that an outage of many targets holds up other commands no longer than an expiry of as many.
const REPORTS_PER_COMMAND: usize = 250;

/// Changes are collected this long after an entry with some, so that they are at most 20 entries a
/// second; an entry is given up after the other: what it said is found again with the next probe.
const REPORTS_APART: Duration = Duration::from_millis(50);
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// Probes instances while this node leads.
pub(crate) struct Prober {
    node: Arc<Node>,
    means: Means,
    random: SplitMix,
}

/// What is there while this node leads.
#[derive(Default)]
struct Lead<'a> {
    schedule: Schedule,
    under_way: FuturesUnordered<BoxFuture<'a, Probed>>,
    /// How many of the probes under way may hang, as the last ones of these checks did.
    hanging: usize,
    /// Of which something is not in the log yet.
    news: BTreeSet<InstanceKey>,
    reporting: Option<BoxFuture<'a, ()>>,
    /// When this task last found that it had stood still.
    stalled: Option<Instant>,
}

struct Probed {
    id: CheckId,
    hangs: bool,
    began: Instant,
    result: Result<(), Failure>,
}

impl Prober {
    pub(crate) fn new(node: Arc<Node>, allowed: Networks) -> Self {
        let means = Means::new(node.peers().net().clone(), allowed);
        Self { node, means, random: Runtime::thread_rng() }
    }

    pub(crate) async fn run(mut self) -> Result<(), RunError> {
        let mut leaders = self.node.leadership().views();
        loop {
            let me = self.node.id();
            if leaders.wait_for(|leader| *leader == Some(me)).await.is_err() {
                return Err(RunError::Ended);
            }
            if self.means.allow_none() {
                self.forget().await;
                continue;
            }
            tracing::info!("this node makes the health checks");
            self.lead().await;
        }
    }

    /// Nothing may be probed: until this node no longer leads, what was found before is not known
    /// any more. Once done, only what changes is looked at: the last words of a leader that could.
    async fn forget(&self) {
        let node = &self.node;
        let mut seen = CheckedInstances::default();
        while node.leadership().leader() == Some(node.id()) {
            let checked = node.applied().lock().registry.checked();
            let known: Vec<_> = schedule::no_longer_known(&checked, &seen).collect();
            if known.is_empty() {
                seen = checked;
                sleep(LOOK_EVERY).await;
                continue;
            }
            tracing::info!(instances = known.len(), "no health checks: health is not known");
            for reports in known.chunks(REPORTS_PER_COMMAND) {
                report(node, reports.to_vec()).await;
            }
        }
    }

    /// Probes until this node no longer leads.
    async fn lead(&mut self) {
        let (node, means) = (self.node.clone(), self.means.clone());
        let mut lead = Lead::default();
        let mut looked = Instant::now();
        let mut look = true;
        while node.leadership().leader() == Some(node.id()) {
            let now = Instant::now();
            if look {
                let checked = node.applied().lock().registry.checked();
                lead.schedule.update(now, checked, || share(&mut self.random));
                looked = now;
            }
            lead.begin(now, &node, &means);
            lead.report(&node);
            let next = lead.next().unwrap_or(looked + LOOK_EVERY).min(looked + LOOK_EVERY);
            let probed = tokio::select! {
                Some(probed) = lead.under_way.next(), if !lead.under_way.is_empty() => Some(probed),
                () = reported(&mut lead.reporting) => {
                    lead.reporting = None;
                    None
                }
                () = tokio::time::sleep_until(next) => None,
            };
            // Before anything is made of what a probe says.
            let now = Instant::now();
            look = now >= looked + LOOK_EVERY;
            if now > looked + LOOK_EVERY + STALL {
                lead.stalled = Some(now);
            }
            if let Some(probed) = probed {
                lead.done(&node, probed, share(&mut self.random));
            }
        }
    }
}

/// Resolves when the entry under way is in the log, or given up.
async fn reported(reporting: &mut Option<BoxFuture<'_, ()>>) {
    match reporting {
        Some(reporting) => reporting.await,
        None => std::future::pending().await,
    }
}

/// A number from 0 to 1.
fn share(random: &mut SplitMix) -> f64 {
    f64::from(random.next_u32()) / f64::from(u32::MAX)
}

impl<'a> Lead<'a> {
    /// When a probe can begin; `None`: not before one ends.
    fn next(&self) -> Option<Instant> {
        let room = self.under_way.len() < UNDER_WAY_MAX;
        room.then(|| self.schedule.next(self.hanging < HANGING_MAX)).flatten()
    }

    /// Begins what is due, as far as there is room.
    fn begin(&mut self, now: Instant, node: &'a Node, means: &'a Means) {
        while self.next().is_some_and(|due| due <= now) {
            let due = self.schedule.take_due(now, self.hanging < HANGING_MAX);
            let Some(due) = due else { continue };
            self.hanging += usize::from(due.hangs);
            self.under_way.push(Box::pin(probe(node, means, due)));
        }
    }

    /// Notes what came of a probe.
    fn done(&mut self, node: &Node, probed: Probed, share: f64) {
        let Probed { id, hangs, began, mut result } = probed;
        self.hanging -= usize::from(hangs);
        if result.is_err() && self.stalled.is_some_and(|stalled| began <= stalled) {
            result = Err(Failure::Stalled);
        }
        let Some(report) = self.schedule.done(Instant::now(), id, &result, share) else { return };
        let reason = report.reason.as_ref().map_or("its checks pass", HealthReason::as_str);
        let health = report.health;
        tracing::info!(node = node.id().get(), instance = %report.key, ?health, reason, "health changes");
        self.news.insert(report.key);
    }

    /// Puts what is news into the log, one entry at a time.
    fn report(&mut self, node: &'a Node) {
        if self.reporting.is_some() || self.news.is_empty() {
            return;
        }
        let mut reports = Vec::new();
        while reports.len() < REPORTS_PER_COMMAND
            && let Some(key) = self.news.pop_first()
        {
            reports.extend(self.schedule.news(&key));
        }
        if reports.is_empty() {
            return;
        }
        self.reporting = Some(Box::pin(report(node, reports)));
    }
}

/// Makes a probe, and counts it, or that it was not made.
async fn probe(node: &Node, means: &Means, due: Due) -> Probed {
    let Due { id, instance, check, hangs, name_is_slow } = due;
    let began = Instant::now();
    let result = means.probe(&instance, &check, name_is_slow).await;
    let count = match result {
        Err(Failure::NotAllowed { .. }) => &node.probes().refused,
        Err(Failure::NoLookup) => node.meters().probes_left_out.inner(),
        _ => &node.probes().made,
    };
    count.fetch_add(1, Ordering::Relaxed);
    Probed { id, hangs, began, result }
}

/// Puts changes into the log; over when the next ones may follow.
async fn report(node: &Node, reports: Vec<HealthReport>) {
    match timeout(REPORT_TIMEOUT, node.propose_here(Op::SetHealth(reports), None)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(%error, "health is not recorded; it will be tried again"),
        Err(_) => tracing::warn!("health is not recorded in time; it will be tried again"),
    }
    sleep(REPORTS_APART).await;
}

#[cfg(test)]
mod tests {
    use quorate_state::CheckKind;

    use super::*;
    use crate::net::Net;
    use crate::server::Bound;
    use probe::tests::checked;

    #[tokio::test]
    async fn a_check_that_is_not_made_is_not_counted_as_made() {
        let dir = tempfile::tempdir().unwrap();
        let bound = Bound::waiting(dir.path()).await;
        let means = Means::new(Net::Tcp, "127.0.0.0/8".parse().unwrap());
        let _others = means.lookups.crowd(false);
        let counts = async |uri: &str| {
            let (instance, mut check) = checked(uri, CheckKind::Tcp);
            check.timeout_ms = 100;
            let instance = Arc::new(instance);
            let due = Due { id: 1, instance, check, hangs: false, name_is_slow: false };
            drop(probe(bound.node(), &means, due).await);
            let probes = bound.node().probes();
            let [made, refused] =
                [&probes.made, &probes.refused].map(|count| count.load(Ordering::Relaxed));
            [made, refused, bound.node().meters().probes_left_out.get()]
        };
        assert_eq!(counts("tcp://127.0.0.1:1").await, [1, 0, 0], "nobody listens");
        assert_eq!(counts("tcp://10.0.0.1:1").await, [1, 1, 0], "not allowed");
        assert_eq!(counts("tcp://db:1").await, [1, 1, 1], "no place for its lookup");
    }
}
