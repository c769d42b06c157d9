//! [`Hub`]: one stream for all services that a client follows in a namespace. The task keeps it on
//! some node, for ever; what the messages mean to each service is the matter of `topics.rs`.
//!
//! A stream subscribes to a list of services, so one that is added needs another stream. The new
//! service is read first, on a short stream of its own; then all go on from the lowest position
//! among them, and each passes over the changes that it has already. So no view misses a change or
//! sees one twice, and none shows less meanwhile.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use quorate_proto::limits::SERVICES_PER_CALL;
use quorate_proto::v1::WatchSubscribe;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::audit;
use super::cache::{self, Cache};
use super::topics::{Feed, Queue, Topics};
use crate::cluster_id::ClusterId;
use crate::core::Core;
use crate::counters::Counts;
use crate::following::status::WatchStatus;
use crate::following::stream::{Ended, Event, Follower, Stream, Taken};
use crate::nodes::retry::jittered;

/// Services that are added within this go together.
const GATHER: Duration = Duration::from_millis(5);
/// Services that were refused are asked for again after this, or when others are followed: the
/// views have no way to begin anew, and a node that refuses may learn better.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);

/// The stream that the views of a client share. Ends with the last of them.
#[derive(Debug)]
pub(super) struct Hub {
    pub(super) shared: Arc<Shared>,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

/// What the task and the views share.
#[derive(Debug)]
pub(super) struct Shared {
    namespace: String,
    pub(super) core: Arc<Core>,
    /// Held for the length of one message, never across an await.
    topics: Mutex<Topics>,
    /// Notified when services were added or removed.
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
    pub(super) fn start(core: Arc<Core>, namespace: String) -> Arc<Self> {
        let cache = Cache::new(core.options.cache_dir.as_deref(), &namespace);
        let shared = Arc::new(Shared {
            namespace,
            core,
            topics: Mutex::default(),
            subscriptions: Notify::new(),
            status: watch::Sender::new(WatchStatus::Connecting),
            fresh_at: Mutex::default(),
            cache,
            unsaved: Mutex::default(),
            saving: Notify::new(),
        });
        let runtime = &shared.core.runtime;
        let mut tasks = vec![runtime.spawn(follow(shared.clone()))];
        if shared.cache.is_some() {
            tasks.push(runtime.spawn(cache::save(shared.clone())));
        }
        let tasks = tasks.into_iter().map(AbortOnDropHandle::new).collect();
        Arc::new(Self { shared, _tasks: tasks })
    }

    pub(super) fn namespace(&self) -> &str {
        &self.shared.namespace
    }

    /// Whether one more service can be followed here.
    pub(super) fn takes(&self, service: &str) -> bool {
        let topics = self.shared.topics();
        // A client that follows more has several streams.
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

    /// To these services, from this revision on.
    fn subscribe(&self, services: Vec<String>, from_revision: u64) -> WatchSubscribe {
        let cluster_id = ClusterId::to_wire(self.topics().cluster_id);
        let namespace = self.namespace.clone();
        WatchSubscribe { namespace, services, from_revision, cluster_id, ..Default::default() }
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

    pub(super) fn counters(&self) -> &Counts {
        &self.core.options.counters
    }
}

/// Why the hub opens another stream.
enum Next {
    /// Other services are to be followed now, or one is to be read anew.
    Services,
    /// The one before it ended.
    After(Ended),
}

impl From<Ended> for Next {
    fn from(ended: Ended) -> Self {
        Self::After(ended)
    }
}

/// The task: runs until it is aborted.
async fn follow(shared: Arc<Shared>) {
    let status = shared.status.clone();
    let mut follower = Follower::new(shared.core.clone(), "discover", status);
    loop {
        if shared.topics().by_name.is_empty() {
            shared.subscriptions.notified().await;
            continue;
        }
        sleep(GATHER).await;
        let Err(next) = stream(&shared, &mut follower).await;
        match next {
            Next::Services => follower.begin_afresh(),
            Next::After(Ended::Lost) => follower.pause().await,
            Next::After(Ended::Ahead) => {
                shared.topics().distrust_all();
                follower.pause().await;
            }
            Next::After(Ended::Refused) => {
                let _or_others = timeout(REFUSED_PAUSE, shared.subscriptions.notified()).await;
                follower.begin_afresh();
            }
        }
    }
}

/// Follows all services, for as long as that works.
async fn stream(shared: &Arc<Shared>, follower: &mut Follower) -> Result<Infallible, Next> {
    // What was added until now is among the names.
    let _told = shared.subscriptions.notified().now_or_never();
    let (names, new) = {
        let topics = shared.topics();
        (topics.names(), topics.unknown())
    };
    let node = follower.pick();
    if !new.is_empty() && new.len() < names.len() {
        let mut reading = follower.open(&node, shared.subscribe(new, 0)).await?;
        while !reading.is_complete() {
            let event = follower.next(&mut reading).await?;
            take(shared, follower, &mut reading, event).await;
        }
    }
    let from = shared.topics().lowest();
    let mut stream = follower.open(&node, shared.subscribe(names, from)).await?;
    let mut audit = next_audit(shared);
    loop {
        tokio::select! {
            event = follower.next(&mut stream) => {
                take(shared, follower, &mut stream, event?).await;
            }
            () = shared.subscriptions.notified() => return Err(Next::Services),
            differs = &mut audit, if stream.is_complete() => match differs {
                true => return Err(Next::Services),
                false => audit = next_audit(shared),
            },
        }
    }
}

/// Waits for its time, and audits: whether something differs.
fn next_audit(shared: &Shared) -> BoxFuture<'_, bool> {
    let audit = async move {
        sleep(jittered(shared.core.options.audit_interval)).await;
        audit::finds_difference(shared).await
    };
    audit.boxed()
}

/// Takes what the stream brought.
async fn take(shared: &Shared, follower: &mut Follower, stream: &mut Stream, event: Event) {
    match event {
        Event::Due(to) => return follower.relocate(stream, to).await,
        Event::Taken(Taken::Leader(_)) => shared.topics().belongs_to(stream.cluster_id()),
        Event::Taken(Taken::Part) => {}
        Event::Taken(Taken::Snapshot { services, revision }) => {
            shared.topics().replace(stream.services(), revision, services);
            shared.to_be_saved(stream.services().iter().cloned());
        }
        Event::Taken(Taken::Changes { changes, revision }) => {
            let changed = {
                let mut topics = shared.topics();
                let changed = topics.apply(changes);
                topics.move_to(revision);
                changed
            };
            shared.to_be_saved(changed);
        }
    }
    if stream.is_fresh() {
        shared.fresh();
    }
}
