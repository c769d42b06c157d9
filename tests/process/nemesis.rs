//! Everything at once: nodes are killed, paused, cut off and replaced by new ones, and the lead
//! moves, while many write to the same instances and read them, some through the client crate
//! (which tries again by itself), some with the generated stub. Afterwards a checker looks at all
//! answers: every write was done once at most, all happened in one order, and that order is the one
//! in which calls followed each other (linearizability; revisions are the witness of the order).
//!
//! `QUORATE_NEMESIS_SECONDS=1800 cargo test -p quorate-cli --test process nemesis -- --nocapture`
//! runs for that long; `QUORATE_NEMESIS_SEED` chooses other faults.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use quorate_client::{Client, Update};
use quorate_proto::v1::admin_client::AdminClient;
use quorate_proto::v1::registry_client::RegistryClient;
use quorate_proto::v1::{
    Consistency, DeregisterRequest, FetchRequest, InstanceRef, InstanceSpec, RegisterRequest,
    ReplaceNodeRequest, ResponseHeader, TransferLeaderRequest, UpdateRequest,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::cluster::{Cluster, Settings};
use crate::raw::spec;
use crate::wait::{eventually, time_passes};

#[path = "nemesis/checker.rs"]
mod checker;

use self::checker::{Call, Seen, check};

const INSTANCES: usize = 4;
const WRITERS: usize = 12;
const READERS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(2);
/// Nothing expires meanwhile.
const TTL_MS: u64 = 86_400_000;
/// Some elections, a snapshot, and the retries between, on a busy machine.
const REPLACED_WITHIN: Duration = Duration::from_secs(60);

#[derive(Clone)]
struct Shared {
    stop: Arc<AtomicBool>,
    weights: Arc<AtomicU32>,
    calls: Arc<Mutex<Vec<Call>>>,
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
    let client = cluster.client().build().unwrap();
    let mut registry = cluster.nodes[0].registry();
    let instances = (0..INSTANCES).map(|at| spec("web", &name(at))).collect();
    let request = RegisterRequest { instances, ttl_ms: TTL_MS, ..RegisterRequest::default() };
    registry.register(request).await.unwrap();
    let shared = Shared {
        stop: Arc::default(),
        weights: Arc::new(AtomicU32::new(1_000)),
        calls: Arc::default(),
    };
    let mut work = JoinSet::new();
    for writer in 0..WRITERS {
        let rng = StdRng::seed_from_u64(seed ^ (writer as u64 + 1) << 32);
        let nodes = cluster.nodes.iter().map(|node| node.registry()).collect();
        match writer % 2 {
            0 => drop(work.spawn(write_as_client(client.clone(), writer, shared.clone()))),
            _ => drop(work.spawn(write_as_stranger(nodes, writer, rng, shared.clone()))),
        }
    }
    for reader in 0..READERS {
        let nodes = cluster.nodes.iter().map(|node| node.registry()).collect();
        work.spawn(read(nodes, reader, shared.clone()));
    }
    let faults = trouble(&mut cluster, time, StdRng::seed_from_u64(seed)).await;
    shared.stop.store(true, Ordering::Relaxed);
    work.join_all().await;
    cluster.leader().await;
    let mut last = [cluster.nodes[0].registry(), cluster.nodes[1].registry()];
    for registry in &mut last {
        read_once(registry, &shared).await.expect("a read of the whole cluster");
    }
    let calls = shared.calls.lock().unwrap();
    let acknowledged =
        calls.iter().filter(|call| matches!(call.seen, Seen::Write { revision: Some(_), .. }));
    eprintln!(
        "measured: {} calls, {} acknowledged writes with their revisions, faults (seed {seed}): {faults:?}",
        calls.len(),
        acknowledged.count(),
    );
    let wrong = check(&calls);
    assert!(
        wrong.is_empty(),
        "{} things wrong:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(20)].join("\n")
    );
    assert!(calls.len() > 100, "nothing was done: {} calls", calls.len());
}

fn name(instance: usize) -> String {
    format!("i{instance}")
}

/// Disturbs one node at a time, so that a quorum can always come together.
async fn trouble(
    cluster: &mut Cluster,
    time: Duration,
    mut rng: StdRng,
) -> BTreeMap<&'static str, usize> {
    let until = Instant::now() + time;
    let mut faults = BTreeMap::new();
    while Instant::now() < until {
        let at = rng.random_range(0..cluster.nodes.len());
        let lasting = Duration::from_millis(rng.random_range(50..1_500));
        // A replacement takes longer than the rest.
        let fault = match rng.random_range(0..13) {
            0..3 => {
                cluster.nodes[at].kill();
                time_passes(lasting).await;
                cluster.nodes[at].start();
                "kill -9"
            }
            3..6 => {
                cluster.nodes[at].pause();
                time_passes(lasting).await;
                cluster.nodes[at].go_on();
                "pause"
            }
            6..9 => {
                cluster.nodes[at].cut_off();
                time_passes(lasting).await;
                cluster.nodes[at].reconnect();
                "cut"
            }
            9..12 => {
                let mut admin = AdminClient::new(cluster.nodes[at].channel());
                let mut request = Request::new(TransferLeaderRequest { to_id: 0 });
                request.set_timeout(PATIENCE);
                let _refused_is_fine = admin.transfer_leader(request).await;
                "transfer"
            }
            _ => {
                cluster.nodes[at].kill();
                replace(cluster, at).await;
                "replace"
            }
        };
        *faults.entry(fault).or_insert(0) += 1;
        time_passes(Duration::from_millis(rng.random_range(50..700))).await;
    }
    faults
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

impl Shared {
    fn new_weight(&self) -> u32 {
        self.weights.fetch_add(1, Ordering::Relaxed)
    }

    fn note(&self, begun: Instant, ended: Option<Instant>, seen: Seen) {
        self.calls.lock().unwrap().push(Call { begun, ended, seen });
    }
}

/// The client crate returns no revision, only that it was done.
async fn write_as_client(client: Client, writer: usize, shared: Shared) {
    let mut instance = writer % INSTANCES;
    while !shared.stop.load(Ordering::Relaxed) {
        instance = (instance + 1) % INSTANCES;
        let (weight, begun) = (shared.new_weight(), Instant::now());
        let done = client.update("web", &name(instance), &Update::new().weight(weight)).await;
        let ended = done.is_ok().then(Instant::now);
        let (revision, refused, removes) = (None, false, false);
        shared.note(begun, ended, Seen::Write { instance, weight, revision, refused, removes });
    }
}

/// Calls any node, and never again: it updates, registers anew, or deregisters.
async fn write_as_stranger(
    mut nodes: Vec<RegistryClient<Channel>>,
    writer: usize,
    mut rng: StdRng,
    shared: Shared,
) {
    let mut instance = writer % INSTANCES;
    while !shared.stop.load(Ordering::Relaxed) {
        instance = (instance + 1) % INSTANCES;
        let (weight, begun) = (shared.new_weight(), Instant::now());
        let at = rng.random_range(0..nodes.len());
        let what = rng.random_range(0..10);
        let removes = what == 0;
        let answer = match what {
            0 => deregister(&mut nodes[at], instance).await,
            1..4 => register(&mut nodes[at], instance, weight).await,
            _ => update(&mut nodes[at], instance, weight).await,
        };
        let (revision, refused) = match answer {
            Ok(header) => (header.map(|header| header.revision), false),
            Err(status) => {
                // Not to spin where a node is down.
                time_passes(Duration::from_millis(20)).await;
                (None, matches!(status.code(), Code::NotFound | Code::FailedPrecondition))
            }
        };
        let ended = revision.map(|_| Instant::now());
        shared.note(begun, ended, Seen::Write { instance, weight, revision, refused, removes });
    }
}

type Written = Result<Option<ResponseHeader>, Status>;

fn soon<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(PATIENCE);
    request
}

fn named(instance: usize) -> InstanceRef {
    InstanceRef { service: "web".to_owned(), id: name(instance), incarnation: 0 }
}

async fn update(node: &mut RegistryClient<Channel>, instance: usize, weight: u32) -> Written {
    let instance = Some(named(instance));
    let request = UpdateRequest { instance, weight: Some(weight), ..UpdateRequest::default() };
    Ok(node.update(soon(request)).await?.into_inner().header)
}

async fn register(node: &mut RegistryClient<Channel>, instance: usize, weight: u32) -> Written {
    let instances = vec![InstanceSpec { weight: Some(weight), ..spec("web", &name(instance)) }];
    let request = RegisterRequest { instances, ttl_ms: TTL_MS, ..RegisterRequest::default() };
    Ok(node.register(soon(request)).await?.into_inner().header)
}

async fn deregister(node: &mut RegistryClient<Channel>, instance: usize) -> Written {
    let instances = vec![named(instance)];
    let request = DeregisterRequest { instances, ..DeregisterRequest::default() };
    Ok(node.deregister(soon(request)).await?.into_inner().header)
}

async fn read(mut nodes: Vec<RegistryClient<Channel>>, reader: usize, shared: Shared) {
    let mut at = reader;
    while !shared.stop.load(Ordering::Relaxed) {
        at += 1;
        let place = at % nodes.len();
        if read_once(&mut nodes[place], &shared).await.is_none() {
            time_passes(Duration::from_millis(20)).await;
        }
    }
}

async fn read_once(registry: &mut RegistryClient<Channel>, shared: &Shared) -> Option<()> {
    let begun = Instant::now();
    let consistency = Consistency::Linearizable as i32;
    let services = vec!["web".to_owned()];
    let request = FetchRequest { services, consistency, ..FetchRequest::default() };
    let mut request = Request::new(request);
    request.set_timeout(PATIENCE);
    let answer = registry.fetch(request).await.ok()?.into_inner();
    let ended = Some(Instant::now());
    let instances = answer.services.into_iter().flat_map(|service| service.instances);
    let number = |id: &str| id.trim_start_matches('i').parse().expect("our own name");
    let state = instances.map(|i| (number(&i.id), (i.weight, i.modify_revision))).collect();
    let revision = answer.header?.revision;
    shared.note(begun, ended, Seen::Read { revision, state });
    Some(())
}
