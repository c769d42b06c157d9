//! Everything at once: nodes are killed, paused, cut off and replaced by new ones, and the lead
//! moves, while many write to the same instances and read them, some through the client crate
//! (which tries again by itself), some with the generated stub. One instance is written to by
//! operators alone, who override its weight. Watchers, one at each place, go on
//! from the revision where they were: what one of them misses, another gets. Afterwards a checker
//! looks at all answers and at all changes: every change was asked for, every write was done once
//! at most, all happened in one order, and that order is the one in which calls followed each other
//! (linearizability; revisions are the witness of the order).
//!
//! `QUORATE_NEMESIS_SECONDS=1800 cargo test -p quorate-cli --test process nemesis -- --nocapture`
//! runs for that long; `QUORATE_NEMESIS_SEED` chooses other faults.
//!
//! | file | duty |
//! |---|---|
//! | `traffic` | who writes, reads and watches |
//! | `checker` | what is wrong with what they saw |

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use quorate_proto::v1::admin_client::AdminClient;
use quorate_proto::v1::registry_client::RegistryClient;
use quorate_proto::v1::{RegisterRequest, ReplaceNodeRequest, TransferLeaderRequest};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tonic::Request;
use tonic::transport::Channel;

use crate::cluster::{Cluster, Node, Settings};
use crate::raw::spec;
use crate::wait::{eventually, time_passes};

#[path = "nemesis/checker.rs"]
mod checker;
#[path = "nemesis/traffic.rs"]
mod traffic;

use self::checker::{Answer, Call, Seen, Write, check};
use self::traffic::{
    ATTEMPT, Shared, name, read, read_once, watch, write_as_client, write_as_stranger,
};

const INSTANCES: usize = 4;
/// The one after them, which is overridden. It is what shows: nobody else writes to it.
const OVERRIDDEN: usize = INSTANCES;
const WRITERS: usize = 12;
const READERS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(2);
/// Nothing expires meanwhile.
const TTL_MS: u64 = 86_400_000;
/// Some elections, a snapshot, and the retries between, on a busy machine.
const REPLACED_WITHIN: Duration = Duration::from_secs(60);
/// Watchers have the last change, on a busy machine.
const TOLD_WITHIN: Duration = Duration::from_secs(30);
/// A fault that did not come about is tried again as often, where each kind is to be there.
const TRIES: usize = 20;
/// Of each kind of call that is answered as it should be, at least: with fewer, nothing is shown.
/// On two busy cores, there are 380 to 880 of each in 15 s.
const ANSWERED_MIN: usize = 50;

/// For those who call any node.
fn stubs(node: &Node) -> (RegistryClient<Channel>, AdminClient<Channel>) {
    (node.registry(), AdminClient::new(node.channel()))
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_are_done_once_and_in_order_whatever_happens_to_the_nodes() {
    let time = Duration::from_secs(number("QUORATE_NEMESIS_SECONDS").unwrap_or(15));
    let seed = number("QUORATE_NEMESIS_SEED").unwrap_or(1);
    let mut cluster =
        Cluster::start_with(3, Settings { cuttable: true, ..Settings::default() }).await;
    let client = cluster.client().attempt_timeout(ATTEMPT).build().unwrap();
    let mut registry = cluster.nodes[0].registry();
    let instances = (0..=OVERRIDDEN).map(|at| spec("web", &name(at))).collect();
    let request = RegisterRequest { instances, ttl_ms: TTL_MS, ..RegisterRequest::default() };
    registry.register(request).await.unwrap();
    let shared = Shared::default();
    read_once(&mut registry, &shared).await.expect("what is there to begin with");
    let (mut work, mut watchers) = (JoinSet::new(), JoinSet::new());
    for writer in 0..WRITERS {
        let rng = StdRng::seed_from_u64(seed ^ (writer as u64 + 1) << 32);
        let nodes = cluster.nodes.iter().map(stubs).collect();
        match writer % 2 {
            0 => drop(work.spawn(write_as_client(client.clone(), writer, shared.clone()))),
            _ => drop(work.spawn(write_as_stranger(nodes, writer, rng, shared.clone()))),
        }
    }
    for reader in 0..READERS {
        let nodes = cluster.nodes.iter().map(|node| node.registry()).collect();
        work.spawn(read(nodes, reader, shared.clone()));
    }
    for (at, node) in cluster.nodes.iter().enumerate() {
        watchers.spawn(watch(at, node.registry(), shared.clone()));
    }
    let faults = trouble(&mut cluster, time, StdRng::seed_from_u64(seed)).await;
    shared.stop.store(true, Ordering::Relaxed);
    work.join_all().await;
    cluster.leader().await;
    for node in &cluster.nodes[..2] {
        eventually("a read of the whole cluster", TOLD_WITHIN, async || {
            read_once(&mut node.registry(), &shared).await.ok_or("it fails")
        })
        .await;
    }
    shared.all_is_told(cluster.nodes.len()).await;
    drop(watchers);
    let calls = shared.calls.lock().unwrap();
    let told = shared.told.lock().unwrap();
    let counts = Counts::of(&calls);
    eprintln!(
        "measured: {} calls, {} changes told, {counts:?}, faults (seed {seed}): {faults:?}",
        calls.len(),
        told.len(),
    );
    let wrong = check(&calls, &told);
    assert!(
        wrong.is_empty(),
        "{} things wrong:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(20)].join("\n")
    );
    let Counts { reads, by_stub, by_client, overridden, .. } = counts;
    let least = [reads, by_stub, by_client, overridden].into_iter().min();
    assert!(least >= Some(ANSWERED_MIN), "too little was done to show anything: {counts:?}");
    for fault in FAULTS {
        assert!(faults.get(&fault) >= Some(&1), "no {fault:?} took effect: {faults:?}");
    }
}

/// How many calls were answered as they should be: reads, and writes of either kind; `overridden`:
/// of those, the ones of operators.
#[derive(Debug, Default)]
struct Counts {
    reads: usize,
    by_stub: usize,
    by_client: usize,
    overridden: usize,
    refused: usize,
}

impl Counts {
    fn of(calls: &[Call]) -> Self {
        let mut counts = Self::default();
        for call in calls {
            if let Seen::Write(Write { instance: OVERRIDDEN, answer: Answer::Done(_), .. }) =
                call.seen
            {
                counts.overridden += 1;
            }
            let count = match &call.seen {
                Seen::Read { .. } => &mut counts.reads,
                Seen::Write(Write { answer: Answer::Done(Some(_)), .. }) => &mut counts.by_stub,
                Seen::Write(Write { answer: Answer::Done(None), .. }) => &mut counts.by_client,
                Seen::Write(Write { answer: Answer::Refused { .. }, .. }) => &mut counts.refused,
                Seen::Write(Write { answer: Answer::Unknown, .. }) => continue,
            };
            *count += 1;
        }
        counts
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Kill,
    Pause,
    Cut,
    Transfer,
    Replace,
}

const FAULTS: [Fault; 5] = [Fault::Kill, Fault::Pause, Fault::Cut, Fault::Transfer, Fault::Replace];

/// Disturbs one node at a time, so that a quorum can always come together: once in each way, in any
/// order, then as it comes. How often each took effect.
async fn trouble(cluster: &mut Cluster, time: Duration, mut rng: StdRng) -> BTreeMap<Fault, usize> {
    let until = Instant::now() + time;
    let mut first = FAULTS.to_vec();
    first.shuffle(&mut rng);
    let mut faults = BTreeMap::new();
    loop {
        let (fault, tries) = match first.pop() {
            Some(fault) => (fault, TRIES),
            None if Instant::now() >= until => return faults,
            None => (any_fault(&mut rng), 1),
        };
        for _ in 0..tries {
            let took_effect = disturb(cluster, fault, &mut rng).await;
            time_passes(Duration::from_millis(rng.random_range(50..700))).await;
            if took_effect {
                *faults.entry(fault).or_insert(0) += 1;
                break;
            }
        }
    }
}

/// A replacement takes longer than the rest.
fn any_fault(rng: &mut StdRng) -> Fault {
    match rng.random_range(0..13) {
        0..3 => Fault::Kill,
        3..6 => Fault::Pause,
        6..9 => Fault::Cut,
        9..12 => Fault::Transfer,
        _ => Fault::Replace,
    }
}

/// Whether it took effect.
async fn disturb(cluster: &mut Cluster, fault: Fault, rng: &mut StdRng) -> bool {
    let at = rng.random_range(0..cluster.nodes.len());
    let lasting = Duration::from_millis(rng.random_range(50..1_500));
    match fault {
        Fault::Kill => {
            cluster.nodes[at].kill();
            time_passes(lasting).await;
            cluster.nodes[at].start();
        }
        Fault::Pause => {
            cluster.nodes[at].pause();
            time_passes(lasting).await;
            cluster.nodes[at].go_on();
        }
        Fault::Cut => {
            cluster.nodes[at].cut_off();
            time_passes(lasting).await;
            cluster.nodes[at].reconnect();
        }
        Fault::Transfer => {
            let mut admin = AdminClient::new(cluster.nodes[at].channel());
            let mut request = Request::new(TransferLeaderRequest { to_id: 0 });
            request.set_timeout(PATIENCE);
            return admin.transfer_leader(request).await.is_ok();
        }
        Fault::Replace => {
            cluster.nodes[at].kill();
            replace(cluster, at).await;
        }
    }
    true
}

/// A new machine takes the place of a dead one.
async fn replace(cluster: &mut Cluster, at: usize) {
    let old_id = cluster.nodes[at].id;
    let new_id = cluster.nodes.iter().map(|node| node.id).max().unwrap_or(0) + 1;
    cluster.nodes[at].become_new(new_id);
    cluster.nodes[at].start();
    let peer_address = cluster.nodes[at].peer_address();
    let helper = cluster.nodes[(at + 1) % cluster.nodes.len()].channel();
    eventually("a node is replaced", REPLACED_WITHIN, || async {
        let peer_address = peer_address.clone();
        let mut request = Request::new(ReplaceNodeRequest { old_id, new_id, peer_address });
        request.set_timeout(REPLACED_WITHIN / 3);
        let replaced = AdminClient::new(helper.clone()).replace_node(request).await;
        replaced.map_err(|status| status.to_string())
    })
    .await;
}
