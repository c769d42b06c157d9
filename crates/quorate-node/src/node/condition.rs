//! How this node is beside its place in the log: its standing in the cluster, and what an operator
//! has to know of its disk, its certificate, its callers. Only looks; what is done about it is done
//! elsewhere.

mod refusal;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, UNIX_EPOCH};

use quorate_log::{FLUSH_BOUNDS, NodeId, SnapshotStore, Stats};
use tokio::time::Instant;

use crate::net::connections::Connections;
use crate::net::tls::Tls;
use crate::node::Node;
use crate::node::own_files::OwnFiles;
use crate::types::{LogStore, TypeConfig};

pub(crate) use crate::node::condition::refusal::{Obstacle, Refusal};

/// What is counted of late, is of this long to twice as long.
const COUNTED: Duration = Duration::from_secs(60);

/// A learner whose state is older than this has not caught up, ms.
const CAUGHT_UP_MS: u64 = 5_000;

/// Of what another node said when this one asked to be taken in, and of why writes are refused,
/// this many characters are kept.
const TOLD_MAX: usize = 300;

/// This node's place in its cluster. Nodes send it to each other: a number stays what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Standing {
    /// One that only a later release has.
    Unknown = 0,
    Member = 1,
    Waiting = 2,
    Joining = 3,
    Removed = 4,
    CutOff = 5,
    Stopping = 6,
}

/// What a node says of itself, beside its status. Nodes send it to each other, see
/// [`Report`](crate::node::status::Report).
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Condition {
    #[prost(enumeration = "Standing", tag = "1")]
    pub(crate) standing: i32,
    #[prost(string, tag = "2")]
    pub(crate) reason: String,
    #[prost(uint64, tag = "3")]
    pub(crate) clock_held_ms: u64,
    #[prost(uint64, optional, tag = "4")]
    pub(crate) snapshot_written_ms: Option<u64>,
    #[prost(uint64, optional, tag = "5")]
    pub(crate) backup_age_ms: Option<u64>,
    #[prost(int64, optional, tag = "6")]
    pub(crate) certificate_ends_in_s: Option<i64>,
    #[prost(bool, tag = "7")]
    pub(crate) files_refused: bool,
    #[prost(uint64, tag = "8")]
    pub(crate) disk_reserve_bytes: u64,
    #[prost(string, tag = "9")]
    pub(crate) open_listeners: String,
    #[prost(uint64, tag = "10")]
    pub(crate) counted_ms: u64,
    #[prost(uint64, tag = "11")]
    pub(crate) syncs: u64,
    #[prost(uint64, tag = "12")]
    pub(crate) sync_p99_us: u64,
    #[prost(uint64, tag = "13")]
    pub(crate) watch_resets: u64,
    #[prost(uint64, tag = "14")]
    pub(crate) probes_refused: u64,
    #[prost(uint64, tag = "15")]
    pub(crate) connections: u64,
    #[prost(string, tag = "16")]
    pub(crate) busiest_address: String,
    #[prost(uint64, tag = "17")]
    pub(crate) busiest_connections: u64,
    #[prost(uint64, tag = "18")]
    pub(crate) busiest_calls: u64,
    #[prost(uint64, tag = "19")]
    pub(crate) connections_per_address_max: u64,
    #[prost(btree_map = "string, string", tag = "20")]
    pub(crate) open_files: BTreeMap<String, String>,
    #[prost(enumeration = "Refusal", tag = "21")]
    pub(crate) writes_refused: i32,
    #[prost(string, tag = "22")]
    pub(crate) writes_refused_why: String,
    #[prost(uint64, repeated, tag = "23")]
    pub(crate) states_differ: Vec<u64>,
}

/// What a node looks at to say how it is.
pub(crate) struct Vitals {
    pub(crate) log: LogStore,
    pub(crate) snapshots: Arc<SnapshotStore<TypeConfig>>,
    pub(crate) tls: Option<Arc<Tls>>,
    /// The listeners that others reach without TLS or rights.
    pub(crate) open_listeners: String,
    /// The nodes that this one asks to take it in; empty: it asks none.
    pub(crate) asks: String,
    pub(crate) own_files: OwnFiles,
    pub(crate) seen: Seen,
}

/// What others tell it while the node runs.
#[derive(Default)]
pub(crate) struct Seen {
    /// Of clients.
    connections: OnceLock<Arc<Connections>>,
    backup: Mutex<Option<Instant>>,
    /// Why this node was not taken in, as it was told last.
    refusal: Mutex<String>,
    /// Why this founder cannot be sure that it founds a new cluster.
    founding: Mutex<String>,
    /// When this node, as leader, last refused a write for the size of the registry.
    state_full: Mutex<Option<Instant>>,
    /// Members whose state was another than its own, when this node, as leader, compared them last.
    differing: Mutex<BTreeSet<NodeId>>,
    counted: Mutex<Option<[Counts; 2]>>,
}

/// Counts that only grow, at one moment.
#[derive(Debug, Clone, Copy)]
struct Counts {
    at: Instant,
    syncs: [u64; FLUSH_BOUNDS.len() + 1],
    watch_resets: u64,
    probes_refused: u64,
}

impl Vitals {
    pub(crate) fn of(
        log: &LogStore,
        snapshots: &Arc<SnapshotStore<TypeConfig>>,
        tls: &Option<Arc<Tls>>,
        open_listeners: String,
        asks: String,
        own_files: OwnFiles,
    ) -> Self {
        let (log, snapshots, tls) = (log.clone(), snapshots.clone(), tls.clone());
        Self { log, snapshots, tls, open_listeners, asks, own_files, seen: Seen::default() }
    }
}

impl Seen {
    /// The connections of clients are these.
    pub(crate) fn follow(&self, connections: Arc<Connections>) {
        // A node has one listener for clients.
        let _ = self.connections.set(connections);
    }

    /// A backup of all that was acknowledged was sent whole, that was begun then.
    pub(crate) fn backup_taken(&self, begun: Instant) {
        *self.backup.lock().expect("invariant: nothing panics under this lock") = Some(begun);
    }

    /// Another node has not taken this one in, or (empty) has.
    pub(crate) fn refused(&self, why: &str) {
        *self.refusal.lock().expect("invariant: nothing panics under this lock") =
            why.chars().take(TOLD_MAX).collect();
    }

    fn refusal(&self) -> String {
        self.refusal.lock().expect("invariant: nothing panics under this lock").clone()
    }

    /// Why this founder cannot be sure yet that it founds a new cluster; empty: it is.
    pub(crate) fn founding_waits(&self, why: &str) {
        why.clone_into(
            &mut self.founding.lock().expect("invariant: nothing panics under this lock"),
        );
    }

    fn founding(&self) -> String {
        self.founding.lock().expect("invariant: nothing panics under this lock").clone()
    }

    /// These members were found to have another state.
    pub(crate) fn differ(&self, from_ours: &BTreeSet<NodeId>) {
        let mut differing =
            self.differing.lock().expect("invariant: nothing panics under this lock");
        differing.clone_from(from_ours);
    }

    fn differing(&self) -> Vec<u64> {
        let differing = self.differing.lock().expect("invariant: nothing panics under this lock");
        differing.iter().map(|id| id.get()).collect()
    }

    /// This node, as leader, has refused a write for the size of the registry.
    pub(super) fn state_is_full(&self) {
        *self.state_full.lock().expect("invariant: nothing panics under this lock") =
            Some(Instant::now());
    }

    fn state_full(&self) -> Option<Duration> {
        let refused = *self.state_full.lock().expect("invariant: nothing panics under this lock");
        refused.map(|at| at.elapsed())
    }

    pub(crate) fn backup_age(&self) -> Option<Duration> {
        let taken = *self.backup.lock().expect("invariant: nothing panics under this lock");
        taken.map(|at| at.elapsed())
    }

    /// The counts that those of now are compared with: `now` where there are none yet.
    fn before(&self, now: impl Fn() -> Counts) -> Counts {
        let mut counted = self.counted.lock().expect("invariant: nothing panics under this lock");
        let [before, since] = counted.get_or_insert_with(|| [now(), now()]);
        if since.at.elapsed() >= COUNTED {
            (*before, *since) = (*since, now());
        }
        *before
    }
}

impl Counts {
    fn since(&self, before: &Self) -> Self {
        Self {
            at: self.at,
            syncs: std::array::from_fn(|at| self.syncs[at].saturating_sub(before.syncs[at])),
            watch_resets: self.watch_resets.saturating_sub(before.watch_resets),
            probes_refused: self.probes_refused.saturating_sub(before.probes_refused),
        }
    }
}

impl Node {
    /// Where the tasks of this node say what its condition is made of.
    pub(crate) fn seen(&self) -> &Seen {
        &self.vitals().seen
    }

    /// Keeps the counts from which those of late are told; called by the ticker.
    pub(crate) fn count_of_late(&self) {
        self.seen().before(|| self.counts());
    }

    fn counts(&self) -> Counts {
        let Stats { flushes_within: syncs, .. } = self.vitals().log.stats();
        let watch_resets = self.applied().lock().hub.counts().resets;
        let probes_refused = self.probes().refused.load(Ordering::Relaxed);
        Counts { at: Instant::now(), syncs, watch_resets, probes_refused }
    }

    /// For how long registry time has stood still, where this node leads.
    fn clock_held(&self) -> Duration {
        if self.leads() { self.clock().held(self.term()) } else { Duration::ZERO }
    }

    pub(crate) async fn condition(&self) -> Condition {
        let vitals = self.vitals();
        let written = vitals.snapshots.written();
        let written = written.and_then(|(at, _)| at.duration_since(UNIX_EPOCH).ok());
        let open_files = vitals.own_files.open().await;
        let (standing, reason) = self.standing();
        let (now, before) = (self.counts(), self.seen().before(|| self.counts()));
        let late = now.since(&before);
        let tls = vitals.tls.as_ref();
        let refusal = self.refusals().into_iter().next();
        let busiest = self.seen().connections.get().map(|of| of.busiest()).unwrap_or_default();
        Condition {
            standing: standing.into(),
            reason,
            clock_held_ms: self.clock_held().as_millis() as u64,
            snapshot_written_ms: written.map(|since| since.as_millis() as u64),
            backup_age_ms: self.seen().backup_age().map(|age| age.as_millis() as u64),
            certificate_ends_in_s: tls.and_then(|tls| tls.ends_in()),
            files_refused: tls.is_some_and(|tls| tls.is_refused()) || self.access().is_refused(),
            disk_reserve_bytes: self.tunables().disk_reserve_bytes,
            open_listeners: vitals.open_listeners.clone(),
            counted_ms: now.at.duration_since(before.at).as_millis() as u64,
            syncs: late.syncs.iter().sum(),
            sync_p99_us: p99_us(&late.syncs),
            watch_resets: late.watch_resets,
            probes_refused: late.probes_refused,
            connections: busiest.of as u64,
            busiest_address: busiest.address.map(shown).unwrap_or_default(),
            busiest_connections: busiest.connections as u64,
            busiest_calls: busiest.calls as u64,
            connections_per_address_max: self.tunables().connections_per_address_max as u64,
            open_files,
            states_differ: if self.leads() { self.seen().differing() } else { Vec::new() },
            writes_refused: refusal.as_ref().map_or(Refusal::Unknown, |it| it.kind).into(),
            writes_refused_why: refusal
                .map(|it| it.whole.chars().take(TOLD_MAX).collect())
                .unwrap_or_default(),
        }
    }

    /// This node's place in its cluster, and why, if that is not to be a member.
    fn standing(&self) -> (Standing, String) {
        if self.stop().is_cancelled() || self.leadership().is_stopping() {
            return (Standing::Stopping, "it is stopping".to_owned());
        }
        if self.leadership().is_removed() {
            let mut reason =
                "it was removed from its cluster: stop it, and ask a member".to_owned();
            let members = self.client_addresses();
            // One that was removed just after the founding has not heard where clients reach them.
            if !members.is_empty() {
                reason += &format!(" (as it knew them): {}", members.join(", "));
            }
            return (Standing::Removed, reason);
        }
        if !self.is_founded() {
            return self.outside();
        }
        if self.leadership().leader().is_none() {
            let silence = self.quorum().silence.map_or("since it started".to_owned(), |silence| {
                format!("for {:.1} s", silence.as_secs_f64())
            });
            let reason =
                format!("it has had no leader in sight {silence}: no quorum, or it is cut off");
            return (Standing::CutOff, reason);
        }
        let is_voter = self.members().iter().any(|info| info.id == self.id() && info.voter);
        if !is_voter && self.age_ms() > CAUGHT_UP_MS {
            let at = self.applied().position().index;
            let reason = format!("it was taken in, and catches up: it has applied entry {at}");
            return (Standing::Joining, reason);
        }
        (Standing::Member, String::new())
    }

    /// What a node waits for that is not in a cluster yet.
    pub(crate) fn waits_for(&self) -> Option<String> {
        let (standing, reason) = self.standing();
        matches!(standing, Standing::Waiting | Standing::Joining)
            .then_some(reason)
            .filter(|_| !self.is_founded())
    }

    /// Of a node that has applied nothing of a cluster.
    fn outside(&self) -> (Standing, String) {
        let asks = &self.vitals().asks;
        if self.peers().cluster_id().is_some() && !self.has_founders() {
            return (
                Standing::Joining,
                "it was taken in, and has nothing of the log yet".to_owned(),
            );
        }
        if self.has_founders() {
            let others = self.founders().iter().filter(|founder| **founder != self.id());
            let others: Vec<String> = others.map(ToString::to_string).collect();
            let others = others.join(", ");
            let reason = match self.seen().founding() {
                why if why.is_empty() => format!("it founds the cluster with nodes {others}"),
                why => {
                    format!("it waits for the cluster to be founded, with nodes {others}: {why}")
                }
            };
            return (Standing::Waiting, reason);
        }
        if !asks.is_empty() {
            let told = match self.seen().refusal() {
                told if told.is_empty() => "no answer yet".to_owned(),
                told => format!("told last: {told}"),
            };
            return (Standing::Joining, format!("it asks {asks} to take it in; {told}"));
        }
        // It was started with founders, and now without: no cluster takes it in as it is.
        if self.peers().identity().founders.is_some() && !self.has_membership() {
            let reason = "its data directory is that of a founder, of no cluster yet: start it \
                          with the same --bootstrap again, or, to have it taken in, without that \
                          on an empty directory";
            return (Standing::Waiting, reason.to_owned());
        }
        let reason = format!(
            "it is in no cluster: take it in with `quorate cluster add {id} {at}` at a member; for a new cluster, start it with --bootstrap {id}={at}",
            id = self.id(),
            at = self.me().peer_address
        );
        (Standing::Waiting, reason)
    }

    fn has_founders(&self) -> bool {
        !self.founders().is_empty()
    }
}

/// The bound that 99 of 100 keep; the largest number: longer than all bounds.
fn p99_us(within: &[u64; FLUSH_BOUNDS.len() + 1]) -> u64 {
    let all: u64 = within.iter().sum();
    let mut seen = 0;
    let longest = within.iter().position(|count| {
        seen += count;
        seen * 100 >= all * 99
    });
    match longest {
        _ if all == 0 => 0,
        Some(at) => FLUSH_BOUNDS.get(at).map_or(u64::MAX, |bound| bound.as_micros() as u64),
        None => u64::MAX,
    }
}

/// Whose connections count together: an address, or a network of IPv6.
fn shown(from: IpAddr) -> String {
    match from {
        IpAddr::V4(_) => from.to_string(),
        IpAddr::V6(_) => format!("{from}/64"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ninety_nine_of_a_hundred_keep_the_bound() {
        let mut within = [0; FLUSH_BOUNDS.len() + 1];
        assert_eq!(p99_us(&within), 0, "there were none");
        (within[0], within[6]) = (99, 1);
        assert_eq!(p99_us(&within), 100);
        (within[0], within[6]) = (98, 2);
        assert_eq!(p99_us(&within), 10_000);
        within[FLUSH_BOUNDS.len()] = 5;
        assert_eq!(p99_us(&within), u64::MAX, "longer than all bounds");
    }

    #[tokio::test(start_paused = true)]
    async fn counts_of_late_are_of_one_to_two_minutes() {
        let seen = Seen::default();
        let counts = |watch_resets| {
            let (at, syncs) = (Instant::now(), [0; FLUSH_BOUNDS.len() + 1]);
            move || Counts { at, syncs, watch_resets, probes_refused: 0 }
        };
        let mut late = Vec::new();
        for minute in 0..6 {
            let now = counts(minute * 10);
            late.push(now().since(&seen.before(now)).watch_resets);
            tokio::time::advance(COUNTED).await;
        }
        assert_eq!(late, [0, 10, 10, 10, 10, 10], "those of the last look but one");
        let now = counts(60);
        tokio::time::advance(COUNTED / 2).await;
        assert_eq!(seen.before(now).watch_resets, 50, "and half a minute later");
    }
}
