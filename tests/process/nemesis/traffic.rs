//! Who writes, reads and watches meanwhile, and notes what was seen. Knows nothing of the faults.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use quorate_client::{Client, Error, Update};
use quorate_proto::v1::admin_client::AdminClient;
use quorate_proto::v1::registry_client::RegistryClient;
use quorate_proto::v1::watch_request::Kind as Ask;
use quorate_proto::v1::watch_response::Kind;
use quorate_proto::v1::{
    ChangeKind, Consistency, DeregisterRequest, FetchRequest, InstanceOverride, InstanceRef,
    InstanceSpec, RegisterRequest, ResponseHeader, SetOverrideRequest, UpdateRequest, WatchRequest,
    WatchSubscribe,
};
use rand::Rng;
use rand::rngs::StdRng;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::checker::{Answer, Call, FIRST_WEIGHT, Seen, Told, Write};
use super::{INSTANCES, OVERRIDDEN, PATIENCE, TOLD_WITHIN, TTL_MS};
use crate::raw::spec;
use crate::wait::{eventually, time_passes};

/// What the client crate gives an attempt, unless all nodes are slow.
pub(super) const ATTEMPT: Duration = Duration::from_millis(500);
/// Not to spin where a node is down.
const PAUSE: Duration = Duration::from_millis(20);
/// A stream that says nothing for so long is dead: nodes send bookmarks every 5 s.
const QUIET: Duration = Duration::from_secs(12);

/// What all write down.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) stop: Arc<AtomicBool>,
    weights: Arc<AtomicU32>,
    pub(super) calls: Arc<Mutex<Vec<Call>>>,
    pub(super) told: Arc<Mutex<Told>>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            stop: Arc::default(),
            weights: Arc::new(AtomicU32::new(FIRST_WEIGHT)),
            calls: Arc::default(),
            told: Arc::default(),
        }
    }
}

impl Shared {
    fn new_weight(&self) -> u32 {
        self.weights.fetch_add(1, Ordering::Relaxed)
    }

    fn note(&self, begun: Instant, seen: Seen) {
        let ended = Instant::now();
        self.calls.lock().unwrap().push(Call { begun, ended, seen });
    }

    /// Waits until all watchers are where the last read was.
    pub(super) async fn all_is_told(&self, watchers: usize) {
        let last = {
            let calls = self.calls.lock().unwrap();
            let reads = calls.iter().filter_map(|call| match call.seen {
                Seen::Read { revision, .. } => Some(revision),
                Seen::Write(_) => None,
            });
            reads.max().expect("there were reads")
        };
        eventually("watchers have all changes", TOLD_WITHIN, async || {
            let reached = self.told.lock().unwrap().reached.clone();
            let there = reached.values().filter(|position| **position >= last).count();
            if there == watchers { Ok(()) } else { Err(format!("{reached:?}, not at {last}")) }
        })
        .await;
    }
}

pub(super) fn name(instance: usize) -> String {
    format!("i{instance}")
}

fn number(id: &str) -> usize {
    id.trim_start_matches('i').parse().expect("our own name")
}

/// Whether an answer says that there was no such instance, or that another run holds it: the write
/// was not done.
fn is_refusal(code: Code) -> bool {
    matches!(code, Code::NotFound | Code::FailedPrecondition)
}

/// The client crate returns no revision, only that it was done. It tries again by itself, and an
/// earlier attempt may still be done when a later one was refused.
pub(super) async fn write_as_client(client: Client, writer: usize, shared: Shared) {
    let mut instance = writer % INSTANCES;
    while !shared.stop.load(Ordering::Relaxed) {
        instance = next(instance);
        let (weight, begun) = (shared.new_weight(), Instant::now());
        let done = match instance {
            OVERRIDDEN => client.admin().set_override("web", &name(instance), of(weight)).await,
            _ => client.update("web", &name(instance), &Update::new().weight(weight)).await,
        };
        let answer = match done {
            Ok(()) => Answer::Done(None),
            Err(Error::Rejected { code, .. }) if is_refusal(code) => {
                // A later attempt gets more time where all nodes were slow: never as much as all
                // that came before it.
                let ended = Instant::now();
                let asked = begun.max(ended - ATTEMPT.max((ended - begun) / 2));
                Answer::Refused { asked, alone: false }
            }
            Err(_) => Answer::Unknown,
        };
        shared.note(begun, Seen::Write(Write { instance, weight, removes: false, answer }));
        if answer != Answer::Done(None) {
            time_passes(PAUSE).await;
        }
    }
}

/// Calls any node, and never again: it updates, registers anew, or deregisters; or overrides.
pub(super) async fn write_as_stranger(
    mut nodes: Vec<(RegistryClient<Channel>, AdminClient<Channel>)>,
    writer: usize,
    mut rng: StdRng,
    shared: Shared,
) {
    let mut instance = writer % INSTANCES;
    while !shared.stop.load(Ordering::Relaxed) {
        instance = next(instance);
        let (weight, begun) = (shared.new_weight(), Instant::now());
        let at = rng.random_range(0..nodes.len());
        let (registry, admin) = &mut nodes[at];
        let what = rng.random_range(0..10);
        let removes = what == 0 && instance != OVERRIDDEN;
        let answer = match what {
            _ if instance == OVERRIDDEN => decide(admin, weight).await,
            0 => deregister(registry, instance).await,
            1..4 => register(registry, instance, weight).await,
            _ => update(registry, instance, weight).await,
        };
        let answer = match answer {
            Ok(header) => Answer::Done(Some(header.expect("answers have one").revision)),
            Err(status) if is_refusal(status.code()) => {
                Answer::Refused { asked: begun, alone: true }
            }
            Err(_) => Answer::Unknown,
        };
        shared.note(begun, Seen::Write(Write { instance, weight, removes, answer }));
        if !matches!(answer, Answer::Done(_)) {
            time_passes(PAUSE).await;
        }
    }
}

/// Each in turn.
fn next(instance: usize) -> usize {
    (instance + 1) % (OVERRIDDEN + 1)
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

fn of(weight: u32) -> InstanceOverride {
    InstanceOverride { weight: Some(weight), ..InstanceOverride::default() }
}

async fn decide(node: &mut AdminClient<Channel>, weight: u32) -> Written {
    let request = SetOverrideRequest {
        service: "web".to_owned(),
        id: name(OVERRIDDEN),
        r#override: Some(of(weight)),
        ..SetOverrideRequest::default()
    };
    Ok(node.set_override(soon(request)).await?.into_inner().header)
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

pub(super) async fn read(mut nodes: Vec<RegistryClient<Channel>>, reader: usize, shared: Shared) {
    let mut at = reader;
    while !shared.stop.load(Ordering::Relaxed) {
        at += 1;
        let place = at % nodes.len();
        if read_once(&mut nodes[place], &shared).await.is_none() {
            time_passes(PAUSE).await;
        }
    }
}

pub(super) async fn read_once(
    registry: &mut RegistryClient<Channel>,
    shared: &Shared,
) -> Option<()> {
    let begun = Instant::now();
    let consistency = Consistency::Linearizable as i32;
    let services = vec!["web".to_owned()];
    let request = FetchRequest { services, consistency, ..FetchRequest::default() };
    let answer = registry.fetch(soon(request)).await.ok()?.into_inner();
    let instances = answer.services.into_iter().flat_map(|service| service.instances);
    let state = instances.map(|i| (number(&i.id), (i.weight, i.modify_revision))).collect();
    let revision = answer.header?.revision;
    shared.note(begun, Seen::Read { revision, state });
    Some(())
}

/// Follows one place of the cluster, whichever node is there, always from where it was.
pub(super) async fn watch(place: usize, mut node: RegistryClient<Channel>, shared: Shared) {
    let mut position = 0;
    loop {
        let _ended = follow(place, &mut node, &mut position, &shared).await;
        time_passes(PAUSE).await;
    }
}

async fn follow(
    place: usize,
    node: &mut RegistryClient<Channel>,
    position: &mut u64,
    shared: &Shared,
) -> Result<(), Status> {
    let (services, from_revision) = (vec!["web".to_owned()], *position);
    let ask = WatchSubscribe { services, from_revision, ..WatchSubscribe::default() };
    let ask = WatchRequest { kind: Some(Ask::Subscribe(ask)) };
    let asks = stream::once(std::future::ready(ask)).chain(stream::pending());
    let late = |_| Status::deadline_exceeded("no answer");
    let mut answers = timeout(PATIENCE, node.watch(asks)).await.map_err(late)??.into_inner();
    while let Some(message) = timeout(QUIET, answers.message()).await.map_err(late)?? {
        let at = Instant::now();
        let mut told = shared.told.lock().unwrap();
        let is_whole = match message.kind {
            Some(Kind::Snapshot(snapshot)) => {
                for it in snapshot.services.iter().flat_map(|service| &service.instances) {
                    told.add(it.modify_revision, (number(&it.id), Some(it.weight)), at);
                }
                snapshot.last
            }
            Some(Kind::Delta(delta)) => {
                for change in &delta.changes {
                    let it = change.instance.as_ref().expect("changes have one");
                    let stays = change.kind() != ChangeKind::Removed;
                    told.add(change.revision, (number(&it.id), stays.then_some(it.weight)), at);
                }
                true
            }
            _ => true,
        };
        if is_whole {
            *position = message.revision;
            told.reached.insert(place, message.revision);
        }
    }
    Ok(())
}
