//! A node to test against: a small honest registry in memory, which can be made to misbehave.
//! Several fakes can share one registry, as the nodes of a cluster do. Each runs on a runtime of
//! its own, so that killing it closes its connections.

mod page;
mod secured;
mod service;
mod waits;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::TryStreamExt as _;
use quorate_proto::v1::registry_server::RegistryServer;
use quorate_proto::v1::*;
use tokio::io::{AsyncWriteExt as _, DuplexStream, copy, sink};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Status;

use self::service::Node;
pub(crate) use self::waits::{in_one_of, until, until_long, within, within_long};

pub(crate) const CLUSTER: u64 = 7;
/// When an overloaded node wants to be asked again, unless it says otherwise.
pub(crate) const RETRY_AFTER: Duration = Duration::from_millis(400);
const WATCH_QUEUE: usize = 1_024;

/// What a node does with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Mode {
    #[default]
    Honest,
    /// Answers nothing, as a stopped process.
    Hang,
    /// Has no leader, and serves what it has.
    Leaderless,
    /// Has no leader, and says so to each call.
    Unavailable,
    /// Answers no call, and goes on renewing.
    Deaf,
    /// Makes the change and never answers.
    SwallowAnswers,
    /// Answers INTERNAL.
    Broken,
    /// Has too much to do, and says when to come back.
    Overloaded,
    /// Has no room for more calls, which is no other node's trouble, and says when to come back.
    Full,
    /// Does nothing for this client, which has no right to it.
    Refusing,
    /// Knows no caller, and says of which cluster it is.
    Stranger,
    /// Has a disk that is nearly full: it registers nothing, and goes on renewing.
    NoRoom,
    /// Does everything, and takes this long.
    Slow(Duration),
}

/// What lets clients know that the members have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Tells {
    #[default]
    Nothing,
    Answers,
    Renewals,
    Watches,
}

/// The registry that the fakes of a cluster share.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) cluster_id: u64,
    pub(crate) revision: u64,
    pub(crate) instances: BTreeMap<(String, String), Instance>,
    /// What was deregistered, with its incarnation.
    ended: HashMap<(String, String), u64>,
    pub(crate) leases: BTreeMap<u64, Vec<(String, String)>>,
    last_lease: u64,
    pub(crate) calls: HashMap<&'static str, usize>,
    /// When each registration came, and each stream of renewals.
    pub(crate) registered_at: Vec<std::time::Instant>,
    pub(crate) streams_at: Vec<std::time::Instant>,
    /// For each lease, on which nodes its renewals came over a stream, and when.
    pub(crate) renewals: HashMap<u64, Vec<(usize, std::time::Instant)>>,
    /// Calls that came without a deadline.
    pub(crate) without_deadline: Vec<&'static str>,
    /// Reads that asked for a revision that is not there.
    pub(crate) behind: usize,
    /// How many instances fit into one answer; 0: all.
    pub(crate) page_of: usize,
    pub(crate) members: Vec<String>,
    /// The log index of their last change, and what says so beside the list itself.
    pub(crate) members_as_of: u64,
    pub(crate) tells_of_members: Tells,
    /// Streams of renewals that asked for news.
    news: Vec<mpsc::Sender<Result<RenewResponse, Status>>>,
    pub(crate) leader_address: String,
    pub(crate) granted_ttl_ms: u64,
    /// What a node in [`Mode::Overloaded`] or [`Mode::Full`] says.
    pub(crate) retry_after: Duration,
    pub(crate) subscriptions: Vec<WatchSubscribe>,
    pub(crate) acks: Vec<u64>,
    /// How long a stream that was taken is silent at first.
    pub(crate) first_word_after: Duration,
    watchers: Vec<Watcher>,
    /// For each subscription to come: what is sent instead of an honest beginning.
    pub(crate) scripts: VecDeque<Vec<WatchResponse>>,
    /// Every change, for subscriptions that resume; emptied to force resets.
    pub(crate) log: Vec<Change>,
    /// Services that may not be followed.
    pub(crate) denied: Vec<&'static str>,
    /// A registration with a higher one is wrong.
    pub(crate) incarnation_max: Option<u64>,
    /// How many such there were.
    pub(crate) refused_incarnations: usize,
    /// Calls without it are not taken.
    pub(crate) wanted_token: Option<&'static str>,
}

#[derive(Debug)]
struct Watcher {
    node: usize,
    position: u64,
    messages: mpsc::Sender<Result<WatchResponse, Status>>,
}

/// Certificates, and how late a handshake begins.
type Tls = (Arc<rustls::ServerConfig>, Duration);

pub(crate) type Shared = Arc<Mutex<State>>;

pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    pub(crate) state: Shared,
    mode: Arc<Mutex<Mode>>,
    number: usize,
    tls: Option<Tls>,
    /// Connections end in good order at this age.
    age: Option<Duration>,
    runtime: Option<Runtime>,
}

impl Fake {
    /// A cluster of one.
    pub(crate) fn start() -> Self {
        Self::cluster(1).remove(0)
    }

    /// Several nodes with one registry.
    pub(crate) fn cluster(nodes: usize) -> Vec<Self> {
        let state = Shared::default();
        locked(&state).granted_ttl_ms = 15_000;
        locked(&state).retry_after = RETRY_AFTER;
        locked(&state).cluster_id = CLUSTER;
        let listen = |number| Self::listen(number, state.clone(), "127.0.0.1:0", None, None);
        (0..nodes).map(listen).collect()
    }

    /// The same node again, where it was, which ends each connection in good order at this age.
    pub(crate) fn end_connections_at(&mut self, age: Duration) {
        self.age = Some(age);
        self.restart();
    }

    /// The same node again, where it was, with these certificates: as one that ended all of its
    /// connections.
    pub(crate) fn secure(&mut self, tls: Arc<rustls::ServerConfig>) {
        self.secure_slowly(tls, Duration::ZERO);
    }

    /// The same where each handshake begins so late.
    pub(crate) fn secure_slowly(&mut self, tls: Arc<rustls::ServerConfig>, late: Duration) {
        self.tls = Some((tls, late));
        self.restart();
    }

    fn listen(
        number: usize,
        state: Shared,
        address: &str,
        tls: Option<Tls>,
        age: Option<Duration>,
    ) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap();
        let mode = Arc::new(Mutex::new(Mode::Honest));
        let node = Node { state: state.clone(), mode: mode.clone(), number };
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let secured = tls.clone();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let mut server = tonic::transport::Server::builder();
            let service = RegistryServer::new(node);
            match (secured, age) {
                (Some((tls, late)), _) => {
                    let incoming = secured::incoming(listener, tls, late);
                    server.add_service(service).serve_with_incoming(incoming).await
                }
                (None, Some(age)) => {
                    let mut server = server.max_connection_age(age);
                    let incoming = TcpListenerStream::new(listener).map_ok(lingering);
                    server.add_service(service).serve_with_incoming(incoming).await
                }
                (None, None) => {
                    let incoming = TcpListenerStream::new(listener);
                    server.add_service(service).serve_with_incoming(incoming).await
                }
            }
        });
        Self { address, state, mode, number, tls, age, runtime: Some(runtime) }
    }

    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    pub(crate) fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    pub(crate) fn calls(&self, name: &'static str) -> usize {
        self.state().calls.get(name).copied().unwrap_or(0)
    }

    /// As kill -9: every connection is closed, nothing is answered any more.
    pub(crate) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waits, so that the port is free when it returns; as long as a busy machine takes.
            std::thread::spawn(move || runtime.shutdown_timeout(Duration::from_secs(60)))
                .join()
                .unwrap();
        }
        let number = self.number;
        self.state().watchers.retain(|watcher| watcher.node != number);
    }

    /// The same node again, at the same address.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let address = self.address.to_string();
        let (state, tls) = (self.state.clone(), self.tls.clone());
        *self = Self::listen(self.number, state, &address, tls, self.age);
    }
}

/// A connection whose end resets nothing, as the real nodes' connections: it is closed when the
/// other end closes it.
fn lingering(connection: TcpStream) -> DuplexStream {
    let (near, far) = tokio::io::duplex(65_536);
    tokio::spawn(async move {
        let (mut arriving, mut leaving) = connection.into_split();
        let (mut answers, mut calls) = tokio::io::split(far);
        let up = async {
            let _ = copy(&mut arriving, &mut calls).await;
            let _ = copy(&mut arriving, &mut sink()).await;
        };
        let down = async {
            let _ = copy(&mut answers, &mut leaving).await;
            let _ = leaving.shutdown().await;
        };
        tokio::join!(up, down)
    });
    near
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) fn locked(state: &Shared) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl State {
    /// The leases and their instances are gone, as after they ran out.
    pub(crate) fn expire_all(&mut self) {
        self.leases.clear();
        for key in self.instances.keys().cloned().collect::<Vec<_>>() {
            self.remove(&key, RemoveReason::Expired);
        }
    }

    /// It is founded again: another cluster, in which everything begins anew. (What tests look at
    /// stays.)
    pub(crate) fn found_again(&mut self, cluster_id: u64) {
        self.cluster_id = cluster_id;
        (self.revision, self.last_lease) = (0, 0);
        self.instances.clear();
        self.ended.clear();
        self.leases.clear();
        self.renewals.clear();
        self.log.clear();
        self.watchers.clear();
    }

    /// Another client has this lease.
    pub(crate) fn take_lease(&mut self, lease_id: u64, id: &str) {
        let key = ("strangers".to_owned(), id.to_owned());
        let (service, id) = key.clone();
        self.leases.insert(lease_id, vec![key]);
        self.last_lease = self.last_lease.max(lease_id);
        self.put(Instance { service, id, lease_id, ..Instance::default() });
    }

    pub(crate) fn put(&mut self, mut instance: Instance) {
        let key = (instance.service.clone(), instance.id.clone());
        let before = self.instances.get(&key);
        instance.create_revision = before.map_or(self.revision + 1, |b| b.create_revision);
        instance.modify_revision = before.map_or(self.revision + 1, |b| b.modify_revision);
        if before == Some(&instance) {
            return;
        }
        let kind = if before.is_none() { ChangeKind::Added } else { ChangeKind::Modified };
        instance.modify_revision = self.revision + 1;
        self.instances.insert(key, instance.clone());
        self.changed(kind, instance, RemoveReason::Unspecified);
    }

    pub(crate) fn remove(&mut self, key: &(String, String), reason: RemoveReason) -> bool {
        let Some(instance) = self.instances.remove(key) else { return false };
        self.changed(ChangeKind::Removed, instance, reason);
        true
    }

    /// Deregisters what it keeps; how many that were.
    fn end_lease(&mut self, lease_id: u64) -> u32 {
        let keys = self.leases.remove(&lease_id).unwrap_or_default();
        let gone = |key: &&(String, String)| self.remove(key, RemoveReason::Deregistered);
        keys.iter().filter(gone).count() as u32
    }

    /// Nobody may end a run that is not there, and whose incarnation no node takes.
    fn check_ended(&self, request: &DeregisterRequest) -> Result<(), Status> {
        let Some(max) = self.incarnation_max else { return Ok(()) };
        for (at, target) in request.instances.iter().enumerate() {
            let held = self.instances.get(&(target.service.clone(), target.id.clone()));
            if target.incarnation > held.map_or(max, |held| held.incarnation.max(max)) {
                let said = format!("instances[{at}].incarnation: must be at most {max}");
                return Err(Status::invalid_argument(said));
            }
        }
        Ok(())
    }

    fn changed(&mut self, kind: ChangeKind, instance: Instance, reason: RemoveReason) {
        self.revision += 1;
        let (revision, instance) = (self.revision, Some(instance));
        let change = Change { revision, kind: kind as i32, instance, reason: reason as i32 };
        self.log.push(change.clone());
        for watcher in &mut self.watchers {
            let message = delta(watcher.position, vec![change.clone()]);
            watcher.position = revision;
            let _gone = watcher.messages.try_send(Ok(message));
        }
    }

    /// Other nodes are members now, which is told as `tells_of_members` says.
    pub(crate) fn change_members(&mut self, members: Vec<String>) {
        self.members = members;
        self.members_as_of += 3;
        let told = leader(1);
        let header = told
            .header
            .clone()
            .map(|it| ResponseHeader { members_as_of: self.members_as_of, ..it });
        match self.tells_of_members {
            Tells::Nothing | Tells::Answers => {}
            Tells::Watches => self.send_raw(&WatchResponse { header, ..told }),
            Tells::Renewals => {
                let news = RenewResponse { header, news: true, ..RenewResponse::default() };
                self.news.retain(|stream| stream.try_send(Ok(news.clone())).is_ok());
            }
        }
    }

    /// Sends this to all watchers, as it is.
    pub(crate) fn send_raw(&mut self, message: &WatchResponse) {
        for watcher in &self.watchers {
            let _gone = watcher.messages.try_send(Ok(message.clone()));
        }
    }

    /// Sends all watchers of a node a bookmark, which says that what they have is this old.
    pub(crate) fn bookmark(&mut self, node: usize, age: Duration) {
        for watcher in self.watchers.iter().filter(|watcher| watcher.node == node) {
            let message = aged(delta(watcher.position, Vec::new()), age);
            let _gone = watcher.messages.try_send(Ok(as_bookmark(message)));
        }
    }

    pub(crate) fn watchers_of(&self, node: usize) -> usize {
        self.watchers.iter().filter(|w| w.node == node && !w.messages.is_closed()).count()
    }

    pub(crate) fn end_watches(&mut self) {
        self.watchers.clear();
    }

    fn subscribe(
        &mut self,
        node: usize,
        subscribe: &WatchSubscribe,
        leader_id: u64,
    ) -> mpsc::Receiver<Result<WatchResponse, Status>> {
        let (messages, receiver) = mpsc::channel(WATCH_QUEUE);
        self.subscriptions.push(subscribe.clone());
        let is_foreign = ![0, self.cluster_id].contains(&subscribe.cluster_id);
        let from = subscribe.from_revision;
        let first = match self.scripts.pop_front() {
            Some(script) => script,
            None if from > 0
                && !is_foreign
                && self.log.first().is_some_and(|c| c.revision <= from + 1) =>
            {
                let missed = self.log.iter().filter(|c| c.revision > from).cloned();
                let missed = delta(from, missed.collect());
                vec![if missed.revision > from { missed } else { as_bookmark(missed) }]
            }
            None => vec![snapshot(self.revision, from > 0, true, self.instances.values())],
        };
        let position = first.last().map_or(0, |message| message.revision);
        for mut message in first {
            if message.header.is_none() {
                message = with_header(message, leader_id);
            }
            let header = message.header.iter_mut();
            header.for_each(|header| header.cluster_id = self.cluster_id);
            messages.try_send(Ok(message)).unwrap();
        }
        self.watchers.push(Watcher { node, position, messages });
        receiver
    }
}

pub(crate) fn with_header(message: WatchResponse, leader_id: u64) -> WatchResponse {
    let header =
        ResponseHeader { cluster_id: CLUSTER, node_id: 1, leader_id, ..ResponseHeader::default() };
    WatchResponse { header: Some(header), ..message }
}

/// The message of a node that has a leader, and says that what its watcher has is this old.
pub(crate) fn aged(message: WatchResponse, age: Duration) -> WatchResponse {
    let mut message = with_header(message, 1);
    let age_ms = age.as_millis() as u64;
    message.header.iter_mut().for_each(|header| header.age_ms = age_ms);
    message
}

pub(crate) fn delta(previous: u64, changes: Vec<Change>) -> WatchResponse {
    let revision = changes.last().map_or(previous, |change| change.revision);
    let kind = Some(watch_response::Kind::Delta(WatchDelta { changes }));
    WatchResponse { revision, previous_revision: previous, kind, header: None }
}

fn as_bookmark(message: WatchResponse) -> WatchResponse {
    let kind = Some(watch_response::Kind::Bookmark(WatchBookmark {}));
    WatchResponse { kind, ..message }
}

pub(crate) fn snapshot<'a>(
    revision: u64,
    reset: bool,
    last: bool,
    instances: impl Iterator<Item = &'a Instance>,
) -> WatchResponse {
    let services = instances.map(|instance| Service {
        name: instance.service.clone(),
        known: true,
        instances: vec![instance.clone()],
        ..Service::default()
    });
    let snapshot = WatchSnapshot { reset, last, services: services.collect() };
    let kind = Some(watch_response::Kind::Snapshot(snapshot));
    WatchResponse { revision, previous_revision: revision, kind, header: None }
}

pub(crate) fn leader(id: u64) -> WatchResponse {
    let kind = Some(watch_response::Kind::Leader(WatchLeader { leader_id: id }));
    with_header(WatchResponse { kind, ..WatchResponse::default() }, id)
}
