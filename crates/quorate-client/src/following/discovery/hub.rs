//! [`Hub`]: one stream for all services that a client follows in a namespace. The task keeps it on
//! some node, for ever; what the messages mean to each service is the matter of `topics.rs`.
//!
//! A stream subscribes to a list of services, so one that is added needs another stream. The new
//! service is read first, on a short stream of its own; then all go on from the lowest position
//! among them, and each passes over the changes that it has already. So no view misses a change or
//! sees one twice, and none shows less meanwhile.
//!
//! A node takes such a list or refuses it as a whole. Where it refuses one, the services are tried
//! one by one; the ones that are allowed go on (`apart.rs`).

mod apart;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use quorate_proto::ClusterId;
use quorate_proto::limits::SERVICES_PER_CALL;
use quorate_proto::v1::WatchSubscribe;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use self::apart::Apart;
use super::audit;
use super::cache::{self, Cache};
use super::topics::{Feed, LINGER, Queue, Topics};
use crate::core::Core;
use crate::counters::Counts;
use crate::error::Error;
use crate::following::status::WatchStatus;
use crate::following::stream::{Ended, Event, Follower, Node, Stream, Taken};
use crate::nodes::retry::jittered;

/// Services that are added within this go together.
const GATHER: Duration = Duration::from_millis(5);
/// A stream that is still to bring what was missed is not ended for other services, unless nothing
/// comes for so long: where there are new ones all the time, none would bring anything.
const FIRST_WORD: Duration = Duration::from_millis(100);
/// Services that were refused are asked for again after this: the views have no way to begin anew,
/// and rights change.
const REFUSED_PAUSE: Duration = Duration::from_secs(10);

/// The stream that the views of a client share. Let go by the next view that is made once it
/// follows nothing, or with the client.
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
            cache,
            unsaved: Mutex::default(),
            saving: Notify::new(),
        });
        let runtime = &shared.core.runtime;
        let follow = runtime.spawn(follow(shared.clone()));
        let mut tasks = vec![follow, runtime.spawn(forget_unused(shared.clone()))];
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
        topics.used().count() < SERVICES_PER_CALL || topics.by_name.contains_key(service)
    }

    pub(super) fn follows_nothing(&self) -> bool {
        self.shared.topics().by_name.is_empty()
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
        if self.shared.topics().remove(feed, Instant::now()) {
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

    /// Why the registry refuses its service, if it does.
    pub(super) fn refused(&self, feed: &Feed) -> Option<Error> {
        self.shared.topics().refused(&feed.selector.service)
    }

    /// Waits until the registry refuses its service; why.
    pub(super) async fn refusal(&self, feed: &Feed) -> Error {
        let mut status = self.shared.status.subscribe();
        loop {
            if let Some(error) = self.refused(feed) {
                return error;
            }
            // The sender lives as long as this hub.
            let _never_closed = status.changed().await;
        }
    }

    /// How old the view is at most; `None`: nothing has said so yet.
    pub(super) fn age(&self, feed: &Feed) -> Option<Duration> {
        let fresh_at = self.shared.topics().fresh_at(&feed.selector.service);
        fresh_at.map(|at| at.elapsed())
    }

    /// The same of each service that has a view.
    pub(super) fn ages(&self) -> Vec<Option<Duration>> {
        let topics = self.shared.topics();
        let fresh_at = topics.used().map(|name| topics.fresh_at(name));
        fresh_at.map(|at| at.map(|at| at.elapsed())).collect()
    }
}

impl Shared {
    pub(super) fn topics(&self) -> MutexGuard<'_, Topics> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To these services, from this revision on.
    fn subscribe(&self, services: Vec<String>, from_revision: u64) -> WatchSubscribe {
        let cluster_id = ClusterId::to_wire(self.topics().cluster_id);
        let namespace = self.namespace.clone();
        WatchSubscribe { namespace, services, from_revision, cluster_id, ..Default::default() }
    }

    pub(super) fn to_be_saved(&self, services: impl IntoIterator<Item = String>) {
        if self.cache.is_some() {
            self.unsaved.lock().unwrap_or_else(PoisonError::into_inner).extend(services);
            self.saving.notify_one();
        }
    }

    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    pub(super) fn counters(&self) -> &Counts {
        &self.core.endpoints.counts
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
    follower.gives_up_when_denied();
    let mut apart = Apart::default();
    let mut audit = next_audit(&shared);
    loop {
        if shared.topics().by_name.is_empty() {
            follower.forget_doubts();
            shared.subscriptions.notified().await;
            continue;
        }
        sleep(GATHER).await;
        let Err(next) = stream(&shared, &mut follower, &mut apart, &mut audit).await;
        match next {
            Next::Services => follower.begin_afresh(),
            // Refused together, though each alone is taken.
            Next::After(Ended::Refused) if apart.in_vain > 1 => {
                let _or_others = timeout(REFUSED_PAUSE, shared.subscriptions.notified()).await;
            }
            // What was refused is known to `apart`.
            Next::After(Ended::Lost | Ended::Refused) => follower.pause().await,
            Next::After(Ended::Ahead) => {
                shared.topics().distrust_all();
                follower.pause().await;
            }
        }
    }
}

/// Lets go of what no view has shown for long, for as long as the hub lives.
async fn forget_unused(shared: Arc<Shared>) {
    loop {
        sleep(LINGER / 10).await;
        if shared.topics().forget_unused(Instant::now()) {
            shared.subscriptions.notify_one();
        }
    }
}

/// Follows all services that may be followed, for as long as that works. The audit outlives it.
async fn stream<'a>(
    shared: &'a Shared,
    follower: &mut Follower,
    apart: &mut Apart,
    audit: &mut BoxFuture<'a, bool>,
) -> Result<Infallible, Next> {
    // What was added until now is among the names.
    let _told = shared.subscriptions.notified().now_or_never();
    {
        let topics = shared.topics();
        apart.review(&topics.names());
        // One that was made since asks anew.
        apart.refused.retain(|name, _| topics.refused(name).is_some());
    }
    let node = follower.pick();
    while let Some(name) = apart.suspects.first().cloned() {
        match read(shared, follower, &node, apart, vec![name.clone()]).await {
            Err(Ended::Refused) => {}
            tried => {
                tried?;
                apart.suspects.remove(&name);
            }
        }
    }
    let (mut names, mut new) = {
        let topics = shared.topics();
        (topics.names(), topics.unknown())
    };
    names.retain(|name| !apart.refused.contains_key(name));
    new.retain(|name| names.contains(name));
    if names.is_empty() {
        follower.forget_doubts();
        return Err(others_or_due(shared, apart).await);
    }
    if !new.is_empty() && new.len() < names.len() {
        read(shared, follower, &node, apart, new).await?;
    }
    let from = shared.topics().lowest(&names);
    let mut stream = open(shared, follower, &node, apart, names, from).await?;
    loop {
        let is_complete = stream.is_complete();
        tokio::select! {
            event = follower.next(&mut stream) => {
                let event = apart.note(shared, stream.services(), event)?;
                apart.in_vain = 0;
                take(shared, follower, &mut stream, event).await;
            }
            next = async {
                if !is_complete {
                    sleep(FIRST_WORD).await;
                }
                others_or_due(shared, apart).await
            } => return Err(next),
            differs = &mut *audit, if is_complete => {
                *audit = next_audit(shared);
                if differs {
                    return Err(Next::Services);
                }
            }
        }
    }
}

/// Waits until other services are to be followed, or one that was refused is to be tried again.
async fn others_or_due(shared: &Shared, apart: &mut Apart) -> Next {
    tokio::select! {
        () = shared.subscriptions.notified() => apart.try_all_again(),
        () = apart.due() => {}
    }
    Next::Services
}

/// Subscribes to these services.
async fn open(
    shared: &Shared,
    follower: &mut Follower,
    node: &Node,
    apart: &mut Apart,
    names: Vec<String>,
    from_revision: u64,
) -> Result<Stream, Ended> {
    let opened = follower.open(node, shared.subscribe(names.clone(), from_revision)).await;
    apart.note(shared, &names, opened)
}

/// Takes all that the registry has of these services.
async fn read(
    shared: &Shared,
    follower: &mut Follower,
    node: &Node,
    apart: &mut Apart,
    names: Vec<String>,
) -> Result<(), Ended> {
    let mut reading = open(shared, follower, node, apart, names, 0).await?;
    while !reading.is_complete() {
        let event = follower.next(&mut reading).await;
        let event = apart.note(shared, reading.services(), event)?;
        take(shared, follower, &mut reading, event).await;
    }
    Ok(())
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
    let taken = match event {
        Event::Due(to) => return follower.relocate(stream, to).await,
        Event::Taken(taken) => taken,
    };
    let mut topics = shared.topics();
    let mut different = Vec::new();
    match taken {
        Taken::Leader(_) => topics.belongs_to(stream.cluster_id()),
        Taken::Part => {}
        Taken::Snapshot { services, revision } => {
            topics.replace(stream.services(), revision, services);
            different = stream.services().to_vec();
        }
        Taken::Changes { changes, revision } => {
            different = topics.apply(changes);
            topics.move_to(stream.services(), revision);
        }
    }
    // Under the same lock: whoever waited for the view asks for its age now.
    if let Some(at) = stream.fresh_at() {
        topics.freshen(stream.services(), at);
    }
    drop(topics);
    shared.to_be_saved(different);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Moment, suspend};
    use crate::following::discovery::instances::Selector;

    #[tokio::test]
    async fn a_view_ages_while_the_machine_is_suspended() {
        let hub = Hub::start(Arc::new(Core::for_tests()), String::new());
        let feed = Arc::new(Feed::new(Selector::service("a")));
        hub.add(&feed);
        let names = ["a".to_owned()];
        hub.shared.topics().replace(&names, 1, Vec::new());
        hub.shared.topics().freshen(&names, Moment::now());
        let hour = Duration::from_secs(3_600);
        assert!(hub.age(&feed).unwrap() < hour);
        suspend(hour);
        assert!(hub.age(&feed).unwrap() >= hour);
    }
}
