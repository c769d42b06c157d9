//! [`Hub`]: one stream for all services that a client follows in a namespace. The task keeps it on some node, for ever; what
//! the messages mean to each service is the matter of `topics.rs`.
//!
//! A stream subscribes to a list of services, so one that is added needs another stream. The new service is read first, on
//! a short stream of its own; then all go on from the lowest position among them, and each passes over the changes that it
//! has already. So nobody misses a change or sees one twice, and nobody is shown less meanwhile.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use quorate_proto::limits::SERVICES_PER_CALL;
use quorate_proto::v1::watch_request::Kind as Request;
use quorate_proto::v1::watch_response::Kind;
use quorate_proto::v1::{Service, WatchAck, WatchRequest, WatchResponse, WatchSubscribe};
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::audit;
use super::cache::{self, Cache};
use super::topics::{Feed, Queue, Topics};
use crate::core::{Core, Options};
use crate::counters::Counts;
use crate::error::{Attempt, Error, explain};
use crate::following::watch::WatchStatus;
use crate::nodes::call::Rounds;
use crate::nodes::endpoints::{Address, Endpoints, Target};
use crate::nodes::rebalance::{Move, Mover};
use crate::nodes::retry::{BACKGROUND, jittered};
use crate::nodes::stub::registry;

/// Services that are added within this go together.
const GATHER: Duration = Duration::from_millis(5);
/// Acknowledgements on their way; one that finds no room is left out.
const ACKS_MAX: usize = 8;
/// A stream that lived so long was a good one: what ended it is a new failure, not the next of the same.
const GOOD_STREAM: Duration = Duration::from_secs(1);
/// Between two streams there is at least this after a failure.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);

/// The stream that the views of a client share. Ends with the last of them.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(super) shared: Arc<Shared>,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

/// What the task and the views share.
#[derive(Debug)]
pub(crate) struct Shared {
    namespace: String,
    options: Options,
    endpoints: Arc<Endpoints>,
    runtime: Handle,
    /// Held for the length of one message, never across an await.
    topics: Mutex<Topics>,
    /// Told when services were added or removed.
    subscriptions: Notify,
    pub(super) status: watch::Sender<WatchStatus>,
    /// When the registry last said that all is known, with a leader.
    fresh_at: Mutex<Option<Instant>>,
    pub(super) cache: Option<Cache>,
    /// Services to be written to the cache.
    pub(super) unsaved: Mutex<BTreeSet<String>>,
    pub(super) saving: Notify,
}

impl Hub {
    pub(crate) fn start(core: &Core, namespace: String) -> Arc<Self> {
        let cache = core.options.cache_dir.clone().map(|dir| Cache::new(dir, &namespace));
        let shared = Arc::new(Shared {
            namespace,
            options: core.options.clone(),
            endpoints: core.endpoints.clone(),
            runtime: core.runtime.clone(),
            topics: Mutex::default(),
            subscriptions: Notify::new(),
            status: watch::Sender::new(WatchStatus::Connecting),
            fresh_at: Mutex::default(),
            cache,
            unsaved: Mutex::default(),
            saving: Notify::new(),
        });
        let mut tasks = vec![core.runtime.spawn(follow(shared.clone()))];
        if shared.cache.is_some() {
            tasks.push(core.runtime.spawn(cache::save(shared.clone())));
        }
        let tasks = tasks.into_iter().map(AbortOnDropHandle::new).collect();
        Arc::new(Self { shared, _tasks: tasks })
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.shared.namespace
    }

    /// Whether one more service can be followed here.
    pub(crate) fn takes(&self, service: &str) -> bool {
        let topics = self.shared.topics();
        // Whoever follows more has several streams.
        topics.by_name.len() < SERVICES_PER_CALL || topics.by_name.contains_key(service)
    }

    pub(super) fn add(&self, feed: &Arc<Feed>) {
        if self.shared.topics().add(feed.clone()) {
            if let Some(cache) = &self.shared.cache {
                cache.load_in_background(&self.shared, feed.selector.service.clone());
            }
            self.shared.subscriptions.notify_one();
        }
    }

    pub(super) fn remove(&self, feed: &Arc<Feed>) {
        if self.shared.topics().remove(feed) {
            self.shared.subscriptions.notify_one();
        }
    }

    pub(super) fn listen(&self, feed: &Feed) -> Arc<Queue> {
        let _unchanged_meanwhile = self.shared.topics();
        feed.listen()
    }

    /// Whether this client has written something that the view may not show yet. // S2.5
    pub(super) fn is_behind_own_writes(&self, feed: &Feed) -> bool {
        let topics = self.shared.topics();
        let position = topics.known(&feed.selector.service).map(|(at, _)| at);
        position < Some(self.shared.counters().written(topics.cluster_id))
    }

    pub(super) fn age(&self) -> Option<Duration> {
        let fresh_at = self.shared.fresh_at.lock().unwrap_or_else(PoisonError::into_inner);
        fresh_at.map(|at| at.elapsed())
    }
}

impl Shared {
    pub(super) fn topics(&self) -> MutexGuard<'_, Topics> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fresh(&self) {
        *self.fresh_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn to_be_saved(&self, services: impl IntoIterator<Item = String>) {
        if self.cache.is_some() {
            self.unsaved.lock().unwrap_or_else(PoisonError::into_inner).extend(services);
            self.saving.notify_one();
        }
    }

    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(super) fn counters(&self) -> &Counts {
        &self.options.counters
    }

    fn following(&self, address: &Address, has_leader: bool) {
        let address = address.to_string();
        self.status.send_replace(WatchStatus::Following { address, has_leader });
    }

    fn interrupted(&self, address: &Address, status: &Status) {
        self.endpoints.failed(address);
        let attempt =
            Attempt { address: address.to_string(), code: status.code(), reason: explain(status) };
        tracing::debug!(%attempt, "the stream of live views was interrupted; going on elsewhere");
        let within = self.options.attempt_timeout;
        let last_error = Error::Unreachable { operation: "discover", within, tried: vec![attempt] };
        self.status.send_modify(|now| {
            let since = match now {
                WatchStatus::Interrupted { since, .. } => *since,
                _ => std::time::Instant::now(),
            };
            *now = WatchStatus::Interrupted { since, last_error };
        });
    }
}

/// Why a stream ended.
enum Ended {
    /// Other services are to be followed now.
    Subscriptions,
    Failed(Status),
}

/// The task: runs until it is aborted.
async fn follow(shared: Arc<Shared>) {
    let mut rounds = Rounds::new(BACKGROUND);
    let mut mover = Mover::new(shared.endpoints.clone());
    loop {
        if shared.topics().by_name.is_empty() {
            shared.subscriptions.notified().await;
            continue;
        }
        sleep(GATHER).await;
        let (mut address, channel) = rounds.pick(&shared.endpoints, Target::Any);
        let begun = Instant::now();
        match stream(&shared, &mut address, channel, &mut mover).await {
            Ended::Subscriptions => rounds.reset(),
            Ended::Failed(status) => {
                shared.interrupted(&address, &status);
                if status.code() == Code::OutOfRange {
                    shared.topics().distrust_all();
                }
                if begun.elapsed() >= GOOD_STREAM {
                    rounds.reset();
                }
                sleep(rounds.wait(&shared.endpoints).max(SHORTEST_PAUSE)).await;
            }
        }
    }
}

/// Follows on one node, or another that the stream moves to, for as long as that works.
async fn stream(
    shared: &Arc<Shared>,
    address: &mut Address,
    channel: Channel,
    mover: &mut Mover,
) -> Ended {
    // What was added until now is among the names.
    let _told = shared.subscriptions.notified().now_or_never();
    let (names, new) = {
        let topics = shared.topics();
        (topics.names(), topics.unknown())
    };
    if !new.is_empty() && new.len() < names.len() {
        let read = async {
            let mut reading = Reading::open(shared, channel.clone(), new, 0).await?;
            while !reading.complete {
                reading.next(shared, address).await?;
            }
            Ok(())
        };
        if let Err(status) = read.await {
            return Ended::Failed(status);
        }
    }
    let from = shared.topics().lowest();
    let mut reading = match Reading::open(shared, channel, names, from).await {
        Ok(reading) => reading,
        Err(status) => return Ended::Failed(status),
    };
    let mut audit = next_audit(shared);
    loop {
        let due = tokio::select! {
            read = reading.next(shared, address) => match read {
                Ok(()) => continue,
                Err(status) => return Ended::Failed(status),
            },
            () = shared.subscriptions.notified() => return Ended::Subscriptions,
            due = due(mover, address, &mut audit), if reading.complete => due,
        };
        match due {
            Due::Audited { differs: true } => return Ended::Subscriptions,
            Due::Audited { differs: false } => audit = next_audit(shared),
            Due::Move(to) => {
                let (names, at) = (reading.names.clone(), reading.position);
                match Reading::open(shared, to.channel.clone(), names, at).await {
                    Ok(moved) => (reading, *address) = (moved, to.address.clone()),
                    Err(status) => {
                        let node = &to.address;
                        tracing::debug!(%node, %status, "a new node did not take the stream");
                        mover.try_again(&to);
                    }
                }
            }
        }
    }
}

/// What a stream does beside reading.
enum Due {
    Audited { differs: bool },
    Move(Move),
}

/// Can be cancelled: an audit under way goes on with the next call.
async fn due(mover: &mut Mover, here: &Address, audit: &mut BoxFuture<'_, bool>) -> Due {
    tokio::select! {
        to = mover.due(here) => Due::Move(to),
        differs = audit => Due::Audited { differs },
    }
}

/// Waits for its time, and audits: whether something differs.
fn next_audit(shared: &Shared) -> BoxFuture<'_, bool> {
    let audit = async move {
        sleep(jittered(shared.options.audit_interval)).await;
        audit::finds_difference(shared, &shared.endpoints, &shared.options).await
    };
    audit.boxed()
}

/// One stream, and how far it is.
struct Reading {
    names: Vec<String>,
    /// The cluster that sends it.
    cluster_id: u64,
    /// What the last message led to.
    position: u64,
    /// Whether all that the node knew when the stream began is here.
    complete: bool,
    /// The parts of a snapshot that is not complete.
    parts: Option<Vec<Service>>,
    first: bool,
    leaderless_since: Option<Instant>,
    answers: Streaming<WatchResponse>,
    acks: mpsc::Sender<WatchRequest>,
}

impl Reading {
    async fn open(
        shared: &Shared,
        channel: Channel,
        names: Vec<String>,
        from: u64,
    ) -> Result<Self, Status> {
        let (acks, requests) = mpsc::channel(ACKS_MAX);
        let cluster_id = shared.topics().cluster_id;
        let subscribe = WatchSubscribe {
            namespace: shared.namespace.clone(),
            services: names.clone(),
            from_revision: from,
            cluster_id,
            ..WatchSubscribe::default()
        };
        // A new channel has room.
        let _has_room = acks.try_send(WatchRequest { kind: Some(Request::Subscribe(subscribe)) });
        let mut stub = registry(channel);
        let opening = stub.watch(ReceiverStream::new(requests));
        let answers = timeout(shared.options.attempt_timeout, opening)
            .await
            .map_err(|_elapsed| Status::deadline_exceeded("the watch was not answered"))??
            .into_inner();
        Ok(Self {
            names,
            cluster_id,
            position: from,
            complete: false,
            parts: None,
            first: true,
            leaderless_since: None,
            answers,
            acks,
        })
    }

    /// Takes in the next message. Can be cancelled.
    async fn next(&mut self, shared: &Shared, address: &Address) -> Result<(), Status> {
        let idle = Instant::now() + shared.options.watch_idle_timeout;
        let leaderless =
            self.leaderless_since.map(|since| since + shared.options.leaderless_timeout);
        let deadline = leaderless.map_or(idle, |leaderless| leaderless.min(idle));
        let message = match timeout_at(deadline, self.answers.message()).await {
            Ok(Ok(Some(message))) => message,
            Ok(Ok(None)) => return Err(Status::unavailable("the node ended the watch")),
            Ok(Err(status)) => return Err(status),
            Err(_elapsed) if self.leaderless_since.is_some() => {
                return Err(Status::unavailable("the node has no leader"));
            }
            Err(_elapsed) => return Err(Status::deadline_exceeded("no sign of life")),
        };
        if std::mem::take(&mut self.first) {
            let header = message.header.as_ref();
            let header =
                header.ok_or_else(|| Status::aborted("the first message has no header"))?;
            shared.endpoints.succeeded(address, Target::Any, Some(header))?;
            self.cluster_id = header.cluster_id;
            shared.topics().belongs_to(header.cluster_id);
            self.has_leader(shared, address, header.leader_id != 0);
        }
        if self.cluster_id != shared.endpoints.cluster_id() {
            return Err(Status::unavailable("another cluster answers now"));
        }
        self.take(shared, address, message)?;
        if self.leaderless_since.is_none() && self.complete {
            shared.fresh();
        }
        Ok(())
    }

    fn take(
        &mut self,
        shared: &Shared,
        address: &Address,
        message: WatchResponse,
    ) -> Result<(), Status> {
        let (revision, previous) = (message.revision, message.previous_revision);
        match message.kind {
            Some(Kind::Snapshot(snapshot)) => {
                let parts = self.parts.get_or_insert_default();
                parts.extend(snapshot.services);
                if !snapshot.last {
                    return Ok(());
                }
                let parts = self.parts.take().unwrap_or_default();
                shared.topics().replace(&self.names, revision, parts);
                shared.to_be_saved(self.names.iter().cloned());
            }
            Some(Kind::Delta(delta)) => {
                self.check(revision, previous)?;
                let changed = {
                    let mut topics = shared.topics();
                    let changed = topics.apply(delta.changes);
                    topics.move_to(revision);
                    changed
                };
                shared.to_be_saved(changed);
            }
            // A kind of message that a later server may send moves the position like a bookmark.
            Some(Kind::Bookmark(_)) | None => {
                if self.parts.is_some() {
                    return Ok(());
                }
                self.check(revision, previous)?;
                shared.topics().move_to(revision);
            }
            Some(Kind::Leader(leader)) => {
                self.has_leader(shared, address, leader.leader_id != 0);
                return Ok(());
            }
        }
        self.position = revision;
        self.complete = true;
        let ack = Request::Ack(WatchAck { revision });
        let _only_the_last_matters = self.acks.try_send(WatchRequest { kind: Some(ack) });
        Ok(())
    }

    /// Every message begins where the one before it ended, and none goes back. A stream from 0 begins with a snapshot.
    fn check(&self, revision: u64, previous: u64) -> Result<(), Status> {
        let begun = self.complete || self.position > 0;
        if begun && self.parts.is_none() && previous == self.position && revision >= previous {
            return Ok(());
        }
        let expected = self.position;
        Err(Status::aborted(format!(
            "expected what follows {expected}, got what follows {previous}"
        )))
    }

    fn has_leader(&mut self, shared: &Shared, address: &Address, has_leader: bool) {
        self.leaderless_since = match (has_leader, self.leaderless_since) {
            (true, _) => None,
            (false, since) => since.or_else(|| Some(Instant::now())),
        };
        shared.following(address, has_leader);
    }
}
