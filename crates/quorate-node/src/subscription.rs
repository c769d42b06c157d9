//! One watcher's stream as a pull: a snapshot or a replay first, then changes, bookmarks and news of the leader.
//!
//! Knows nothing of gRPC: `grpc/watch.rs` turns the messages into answers. There is no task for a watcher: the stream is
//! driven by whoever polls it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use quorate_state::{Instance, Registry, Revision, Service, ServiceKey};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::applied::Applied;
use crate::shared_event::SharedEvent;
use crate::wake::Wake;
use crate::watch::{BATCH_MAX, Batch, Coalesced, Filter, Selection};
use crate::wire_size::{instance_bytes, service_bytes};

/// A message at most, bytes, unless one instance alone is larger: far below the 4 MiB that receivers take as a rule.
const MESSAGE_BYTES: usize = 256 * 1024;

/// Where a subscription begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begin {
    /// With a snapshot.
    Snapshot,
    /// With a snapshot that says `reset`: what the watcher has is of another cluster.
    Reset,
    /// After a revision that this node has reached; with a reset if the ring does not reach back to it.
    After(Revision),
}

/// What a watcher is told.
#[derive(Debug)]
pub(crate) enum Message {
    /// A part of a snapshot.
    Snapshot { services: Vec<Part>, reset: bool, last: bool },
    /// Changes in order.
    Delta(Vec<Arc<SharedEvent>>),
    /// Nothing new up to here.
    Bookmark,
    /// This node now follows this leader.
    Leader(Option<u64>),
}

/// Some instances of one service.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) key: ServiceKey,
    /// `None`: the service is not known.
    pub(crate) revision: Option<Revision>,
    pub(crate) instances: Vec<Arc<Instance>>,
}

/// A message with the positions before and after it.
#[derive(Debug)]
pub(crate) struct Positioned {
    pub(crate) message: Message,
    pub(crate) previous: Revision,
    pub(crate) revision: Revision,
}

/// One watcher.
#[derive(Debug)]
pub(crate) struct Subscription {
    applied: Arc<Applied>,
    id: u64,
    wake: Arc<Wake>,
    filter: Filter,
    /// What the last message led to.
    position: Revision,
    /// Everything up to here was taken from the hub.
    taken: Revision,
    /// Changes that are told when the rest of the ring is looked through, too.
    coalesced: Option<Coalesced>,
    /// Messages that are ready, with the position that each of them leads to.
    ready: VecDeque<(Message, Revision)>,
    /// What comes seldom. Polled when it has woken and not for every change.
    seldom: FuturesUnordered<BoxFuture<'static, News>>,
    bookmark: Duration,
    last_sent: Instant,
}

impl Subscription {
    /// Subscribes; the position is taken under the lock that commands are applied under, so there is no gap.
    pub(crate) fn start(
        applied: Arc<Applied>,
        filter: Filter,
        begin: Begin,
        leader: watch::Receiver<Option<u64>>,
        bookmark: Duration,
    ) -> Self {
        let mut state = applied.lock();
        let replay_from = match begin {
            Begin::After(revision) if state.hub.reaches(revision) => Some(revision),
            _ => None,
        };
        let registry = replay_from.is_none().then(|| state.registry.clone());
        let position = replay_from.unwrap_or(state.registry.revision());
        let (id, wake) = state.hub.subscribe(filter.clone(), replay_from.is_some());
        drop(state);
        let last_sent = Instant::now();
        let seldom = FuturesUnordered::new();
        seldom.push(next_leader(leader).boxed());
        seldom.push(quiet(last_sent + bookmark).boxed());
        let mut subscription = Self {
            applied,
            id,
            wake,
            filter,
            position,
            taken: position,
            coalesced: None,
            ready: VecDeque::new(),
            seldom,
            bookmark,
            last_sent,
        };
        if let Some(registry) = registry {
            subscription.queue_snapshot(&registry, begin != Begin::Snapshot);
        }
        subscription
    }

    #[cfg(test)]
    async fn next(&mut self) -> Positioned {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The next message.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Positioned> {
        loop {
            if let Some((message, revision)) = self.ready.pop_front() {
                let previous = self.position;
                self.position = revision;
                self.last_sent = Instant::now();
                return Poll::Ready(Positioned { message, previous, revision });
            }
            if let Poll::Ready(Some(news)) = self.seldom.poll_next_unpin(cx) {
                self.take_news(news);
            } else {
                ready!(self.wake.poll_called(cx));
                self.take(false);
            }
        }
    }

    fn take_news(&mut self, news: News) {
        match news {
            News::Leader(mut leaders) => {
                let leader = *leaders.borrow_and_update();
                self.ready.push_back((Message::Leader(leader), self.position));
                self.seldom.push(next_leader(leaders).boxed());
            }
            News::Quiet => {
                let (now, mut since) = (Instant::now(), self.last_sent);
                if since + self.bookmark <= now {
                    self.take(true);
                    since = now;
                }
                self.seldom.push(quiet(since + self.bookmark).boxed());
            }
        }
    }

    /// Makes messages of what the hub has for this watcher.
    fn take(&mut self, bookmark: bool) {
        let mut guard = self.applied.lock();
        let state = &mut *guard;
        match state.hub.take(self.id, self.taken, state.registry.revision()) {
            Batch::Changes { events, upto } => {
                drop(guard);
                self.taken = upto;
                if !events.is_empty() {
                    self.queue_changes(events, upto, false);
                } else if bookmark {
                    self.ready.push_back((Message::Bookmark, upto));
                }
            }
            Batch::Ring { events, upto, coalesce, last } => {
                drop(guard);
                self.taken = upto;
                self.look_through(events, coalesce, last);
            }
            Batch::Lost => {
                let registry = state.registry.clone();
                state.hub.begin_anew(self.id);
                drop(guard);
                self.taken = registry.revision();
                self.coalesced = None;
                self.queue_snapshot(&registry, true);
            }
        }
    }

    /// Tells what it sees of a piece of the ring, or keeps that until the last piece where it is coalesced.
    fn look_through(&mut self, mut events: Vec<Arc<SharedEvent>>, coalesce: bool, last: bool) {
        events.retain(|shared| self.filter.sees(&shared.event));
        let coalesced = coalesce || self.coalesced.is_some();
        if coalesced {
            let merged = self.coalesced.get_or_insert_default();
            events.drain(..).for_each(|event| merged.add(event));
            if last {
                events = self.coalesced.take().unwrap_or_default().into_events();
            }
        }
        if !events.is_empty() {
            self.queue_changes(events, self.taken, coalesced);
        }
    }

    /// Of coalesced changes, only the last message moves the position: before it, a change may still be missing.
    fn queue_changes(&mut self, events: Vec<Arc<SharedEvent>>, upto: Revision, coalesced: bool) {
        let (mut message, mut bytes) = (Vec::new(), 0);
        let mut reached = self.position;
        for shared in events {
            let full = bytes + shared.bytes > MESSAGE_BYTES || message.len() == BATCH_MAX;
            if full && !message.is_empty() {
                let full = Message::Delta(std::mem::take(&mut message));
                self.ready.push_back((full, reached));
                bytes = 0;
            }
            if !coalesced {
                reached = shared.event.revision;
            }
            bytes += shared.bytes;
            message.push(shared);
        }
        self.ready.push_back((Message::Delta(message), upto));
    }

    fn queue_snapshot(&mut self, registry: &Registry, reset: bool) {
        let revision = registry.revision();
        let (mut services, mut bytes) = (Vec::new(), 0);
        for mut whole in covered(registry, &self.filter) {
            let instances = std::mem::take(&mut whole.instances);
            let mut part = whole.with(Vec::new());
            bytes += service_bytes(&whole.key);
            for instance in instances {
                let size = instance_bytes(&instance);
                if bytes + size > MESSAGE_BYTES {
                    services.push(std::mem::replace(&mut part, whole.with(Vec::new())));
                    self.queue_part(std::mem::take(&mut services), reset);
                    bytes = 0;
                }
                bytes += size;
                part.instances.push(instance);
            }
            services.push(part);
            if bytes > MESSAGE_BYTES {
                self.queue_part(std::mem::take(&mut services), reset);
                bytes = 0;
            }
        }
        let message = Message::Snapshot { services, reset, last: true };
        self.position = Revision(0);
        self.ready.push_back((message, revision));
    }

    fn queue_part(&mut self, services: Vec<Part>, reset: bool) {
        let message = Message::Snapshot { services, reset, last: false };
        self.ready.push_back((message, Revision(0)));
    }
}

enum News {
    Leader(watch::Receiver<Option<u64>>),
    /// Perhaps nothing was sent for long.
    Quiet,
}

async fn next_leader(mut leaders: watch::Receiver<Option<u64>>) -> News {
    match leaders.changed().await {
        Ok(()) => News::Leader(leaders),
        Err(_) => std::future::pending().await,
    }
}

async fn quiet(until: Instant) -> News {
    tokio::time::sleep_until(until).await;
    News::Quiet
}

impl Part {
    /// The same service with these instances.
    fn with(&self, instances: Vec<Arc<Instance>>) -> Self {
        Self { key: self.key.clone(), revision: self.revision, instances }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.applied.lock().hub.unsubscribe(self.id);
    }
}

/// One service with the instances that a filter covers.
pub(crate) fn part_of(key: &ServiceKey, service: Option<&Service>, filter: &Filter) -> Part {
    let instances = service.into_iter().flat_map(|service| service.instances.values());
    Part {
        key: key.clone(),
        revision: service.map(|service| service.revision),
        instances: instances.filter(|instance| filter.covers_status(instance)).cloned().collect(),
    }
}

/// Every service that a filter covers, with the instances that it covers.
pub(crate) fn covered(registry: &Registry, filter: &Filter) -> Vec<Part> {
    let part = |key: &ServiceKey, service: Option<&Service>| part_of(key, service, filter);
    match &filter.selection {
        Selection::Services(names) => names
            .iter()
            .map(|name| ServiceKey { namespace: filter.namespace.clone(), name: name.clone() })
            .map(|key| part(&key, registry.service(&key)))
            .collect(),
        Selection::Prefix(prefix) => registry
            .services(&filter.namespace, prefix, None)
            .map(|(key, service)| part(key, Some(service)))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use quorate_state::{
        Command, Event, Incarnation, InstanceId, InstanceKey, InstanceRef, InstanceSpec, Namespace,
        Op, Register, ServiceName, SpecParts, Status, Update,
    };

    use super::*;

    fn key(id: &str) -> InstanceKey {
        let name = ServiceName::new("service", "web").unwrap();
        let service = ServiceKey { namespace: Namespace::default(), name };
        InstanceKey { service, id: InstanceId::new("id", id).unwrap() }
    }

    fn apply(applied: &Applied, op: Op) {
        let mut state = applied.lock();
        let command = Command { clock: state.registry.clock(), op };
        let events = state.registry.apply(&command).events;
        let wakes = state.hub.publish(events);
        wakes.iter().for_each(|watcher| watcher.call());
    }

    fn register(applied: &Applied, id: &str) {
        register_all(applied, &[id]);
    }

    /// In one command.
    fn register_all(applied: &Applied, ids: &[&str]) {
        let parts = SpecParts {
            endpoints: [("http".to_owned(), "http://10.0.0.1:80".to_owned())].into(),
            zone: String::new(),
            version: String::new(),
            weight: None,
            status: Status::Up,
            metadata: std::collections::BTreeMap::default(),
            requires: std::collections::BTreeSet::default(),
        };
        let spec = InstanceSpec::new("", parts).unwrap();
        let instances = ids.iter().map(|id| (key(id), spec.clone())).collect();
        let incarnation = Some(Incarnation(1));
        apply(applied, Op::Register(Register { lease: None, ttl: None, incarnation, instances }));
    }

    fn weigh(applied: &Applied, id: &str, weight: u32) {
        let target = InstanceRef { key: key(id), incarnation: None };
        let (status, metadata) = (None, None);
        apply(applied, Op::Update(Update { target, status, weight: Some(weight), metadata }));
    }

    fn watch(
        applied: &Arc<Applied>,
        leaders: &watch::Sender<Option<u64>>,
        begin: Begin,
    ) -> Subscription {
        let filter = Filter {
            namespace: Namespace::default(),
            selection: Selection::Prefix(String::new()),
            statuses: std::collections::BTreeSet::default(),
        };
        let bookmark = Duration::from_secs(60);
        Subscription::start(applied.clone(), filter, begin, leaders.subscribe(), bookmark)
    }

    fn changes(positioned: Positioned) -> Vec<Event> {
        let Message::Delta(events) = positioned.message else { panic!("{positioned:?}") };
        events.iter().map(|shared| shared.event.clone()).collect()
    }

    /// More changes than its queue holds, and than one piece of the ring.
    #[tokio::test]
    async fn a_slow_watcher_is_told_the_latest_of_each_instance() {
        let applied = Arc::new(Applied::new(100_000, usize::MAX));
        let leaders = watch::Sender::new(None);
        register(&applied, "a");
        register(&applied, "b");
        let mut slow = watch(&applied, &leaders, Begin::Snapshot);
        assert!(matches!(slow.next().await.message, Message::Snapshot { last: true, .. }));
        for weight in 0..3_500 {
            weigh(&applied, "a", weight);
        }
        weigh(&applied, "b", 1);
        let all = slow.next().await;
        assert_eq!((all.previous, all.revision), (Revision(2), Revision(2 + 3_501)));
        let told: Vec<_> = changes(all)
            .iter()
            .map(|event| {
                let (before, after) = (event.before().unwrap(), event.after().unwrap());
                (before.key.id.as_str().to_owned(), before.weight(), after.weight())
            })
            .collect();
        assert_eq!(told, [("a".to_owned(), 100, 3_499), ("b".to_owned(), 100, 1)]);
        weigh(&applied, "b", 2);
        assert_eq!(changes(slow.next().await).len(), 1, "from here on it is told all again");
    }

    /// From many pieces of the ring ago.
    #[tokio::test]
    async fn a_watcher_that_resumes_is_told_every_change() {
        let applied = Arc::new(Applied::new(100_000, usize::MAX));
        let leaders = watch::Sender::new(None);
        register(&applied, "a");
        for weight in 0..2_500 {
            weigh(&applied, "a", weight);
        }
        let mut resumed = watch(&applied, &leaders, Begin::After(Revision(1)));
        let mut told = Vec::new();
        while told.last() != Some(&2_501) {
            let positioned = resumed.next().await;
            assert_eq!(positioned.previous.0, told.last().copied().unwrap_or(1));
            told.extend(changes(positioned).iter().map(|event| event.revision.0));
        }
        assert!(told.into_iter().eq(2..=2_501));
    }

    /// Between single changes, so many at once that they are not queued.
    #[tokio::test]
    async fn many_changes_of_one_command_are_told_once_and_in_order() {
        let applied = Arc::new(Applied::new(100_000, usize::MAX));
        let leaders = watch::Sender::new(None);
        let mut watcher = watch(&applied, &leaders, Begin::Snapshot);
        assert!(matches!(watcher.next().await.message, Message::Snapshot { last: true, .. }));
        let many: Vec<String> = (0..1_500).map(|at| format!("i{at}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let mut told = Vec::new();
        for round in 0..3 {
            weigh(&applied, "i0", round);
            register(&applied, &format!("before{round}"));
            register_all(&applied, &many[500 * round as usize..][..500]);
            register(&applied, &format!("after{round}"));
            let upto = applied.lock().registry.revision().0;
            while round % 2 == 0 && told.last() != Some(&upto) {
                let positioned = watcher.next().await;
                assert_eq!(positioned.previous.0, told.last().copied().unwrap_or(0));
                told.extend(changes(positioned).iter().map(|event| event.revision.0));
            }
        }
        assert!(told.into_iter().eq(1..=applied.lock().registry.revision().0));
    }

    /// A watcher from before what the ring keeps begins anew.
    #[tokio::test]
    async fn the_ring_is_bounded_by_bytes() {
        let applied = Arc::new(Applied::new(100_000, 10_000));
        let leaders = watch::Sender::new(None);
        register(&applied, "a");
        for weight in 0..100 {
            weigh(&applied, "a", weight);
        }
        let first = watch(&applied, &leaders, Begin::After(Revision(1))).next().await;
        assert!(matches!(first.message, Message::Snapshot { reset: true, .. }), "{first:?}");
        let first = watch(&applied, &leaders, Begin::After(Revision(90))).next().await;
        assert_eq!(changes(first).len(), 11);
    }
}
