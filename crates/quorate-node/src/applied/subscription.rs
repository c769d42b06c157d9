//! One watcher's stream as a pull: a snapshot or a replay first, then changes, bookmarks and news
//! of the leader.
//!
//! Knows nothing of gRPC: `api/grpc/watch.rs` turns the messages into answers. There is no task for
//! a watcher: the stream is driven by the task that polls it.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use quorate_log::NodeId;
use quorate_state::{Instance, Registry, Revision, Service, ServiceKey};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::applied::Applied;
use crate::applied::hub::{BATCH_MAX, Batch, Coalesced, Filter, Selection, Start};
use crate::applied::shared_event::SharedEvent;
use crate::applied::wake::Wake;
use crate::applied::wire_size::{instance_bytes, service_bytes};

/// A message at most, bytes, unless one instance alone is larger: far below the 4 MiB that
/// receivers take as a rule.
const MESSAGE_BYTES: usize = 256 * 1024;

/// Where a subscription begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begin {
    /// With a snapshot.
    Snapshot,
    /// With a snapshot that says `reset`: what the watcher has is of another cluster.
    Reset,
    /// After a revision that this node has reached; with a reset if the ring does not reach back to
    /// it.
    After(Revision),
    /// With the oldest change that the ring has.
    Oldest,
}

/// What a watcher is sent.
#[derive(Debug)]
pub(crate) enum Message {
    /// A part of a snapshot.
    Snapshot { services: Vec<Part>, reset: bool, last: bool },
    /// Changes in order.
    Delta(Vec<Arc<SharedEvent>>),
    /// Nothing new up to here.
    Bookmark,
    /// This node now follows this leader.
    Leader(Option<NodeId>),
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

/// A message that waits to be sent, and the position that it leads to.
#[derive(Debug)]
struct Ready {
    message: Message,
    revision: Revision,
    /// Its changes count only together.
    coalesced: bool,
}

/// One watcher, until something ends it with an `E`.
#[derive(Debug)]
pub(crate) struct Subscription<E> {
    applied: Arc<Applied>,
    id: u64,
    /// Called by the hub and by all that comes seldom.
    wake: Arc<Wake>,
    waker: Waker,
    filter: Filter,
    /// What the last message led to.
    position: Revision,
    /// Everything up to here was taken from the hub.
    taken: Revision,
    /// Whether it is still told what came before it did.
    replays: bool,
    /// Changes that are sent when the rest of the ring is looked through, too.
    coalesced: Option<Coalesced>,
    ready: VecDeque<Ready>,
    /// What ends it, alone.
    end: FuturesUnordered<BoxFuture<'static, E>>,
    /// Each of them is polled only when it has woken.
    seldom: FuturesUnordered<BoxFuture<'static, News>>,
    bookmark: Duration,
    last_sent: Instant,
}

impl<E: Send + 'static> Subscription<E> {
    /// Subscribes, for somebody at this address; the position is taken under the lock that commands
    /// are applied under, so there is no gap.
    pub(crate) fn start(
        applied: Arc<Applied>,
        filter: Filter,
        (begin, from): (Begin, Option<IpAddr>),
        leader: watch::Receiver<Option<NodeId>>,
        bookmark: Duration,
        end: impl Future<Output = E> + Send + 'static,
    ) -> Self {
        let mut state = applied.lock();
        let replay_from = match begin {
            Begin::After(revision) if state.hub.reaches(revision) => Some(revision),
            Begin::Oldest => Some(state.hub.oldest()),
            _ => None,
        };
        let registry = replay_from.is_none().then(|| state.registry.clone());
        let position = replay_from.unwrap_or(state.registry.revision());
        let start = Start { from, at: position };
        let (id, wake) = state.hub.subscribe(filter.clone(), start, replay_from.is_some());
        drop(state);
        let last_sent = Instant::now();
        let seldom = FuturesUnordered::new();
        seldom.push(next_leader(leader).boxed());
        seldom.push(quiet(last_sent + bookmark).boxed());
        let mut subscription = Self {
            applied,
            id,
            waker: wake.clone().into(),
            wake,
            filter,
            position,
            taken: position,
            replays: replay_from.is_some(),
            coalesced: None,
            ready: VecDeque::new(),
            end: FuturesUnordered::from_iter([end.boxed()]),
            seldom,
            bookmark,
            last_sent,
        };
        if let Some(registry) = registry {
            subscription.queue_snapshot(&registry, begin != Begin::Snapshot);
        }
        subscription
    }

    /// The next message, or what ended it. `may` says how large it may be, about, given what it has
    /// at least. To be polled again and again costs next to nothing: the transport does so.
    pub(crate) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        may: &mut dyn FnMut(&mut Context<'_>, usize) -> Poll<usize>,
    ) -> Poll<Result<Positioned, E>> {
        loop {
            // First: what is queued may not be its watcher's to see any more.
            if let Poll::Ready(end) = self.poll_end() {
                return Poll::Ready(Err(end));
            }
            if let Some(next) = self.ready.front() {
                let Poll::Ready(bytes) = may(cx, next.least()) else {
                    self.wake.register(cx);
                    // It may have come in between.
                    return self.poll_end().map(Err);
                };
                let Some(Ready { message, revision, .. }) = self.pop_ready(bytes) else { continue };
                let begins = matches!(message, Message::Snapshot { .. });
                let previous = if begins { Revision(0) } else { self.position };
                self.position = revision;
                self.last_sent = Instant::now();
                return Poll::Ready(Ok(Positioned { message, previous, revision }));
            }
            ready!(self.wake.poll_called(cx));
            let mut woken = Context::from_waker(&self.waker);
            while let Poll::Ready(Some(news)) = self.seldom.poll_next_unpin(&mut woken) {
                match news {
                    News::Leader(leaders) => self.tell_leader(leaders),
                    News::Quiet => self.tell_bookmark(),
                }
                woken = Context::from_waker(&self.waker);
            }
            self.take(false);
        }
    }

    fn poll_end(&mut self) -> Poll<E> {
        let mut woken = Context::from_waker(&self.waker);
        match self.end.poll_next_unpin(&mut woken) {
            Poll::Ready(Some(end)) => Poll::Ready(end),
            _ => Poll::Pending,
        }
    }

    /// What the last message that is ready leads to.
    fn reached(&self) -> Revision {
        self.ready.back().map_or(self.position, |last| last.revision)
    }

    fn push_ready(&mut self, message: Message, revision: Revision) {
        self.ready.push_back(Ready { message, revision, coalesced: false });
    }

    /// The first message that is ready, cut where it has more than about so many bytes.
    fn pop_ready(&mut self, bytes: usize) -> Option<Ready> {
        let next = self.ready.pop_front()?;
        if bytes >= MESSAGE_BYTES {
            return Some(next);
        }
        let Ready { message, revision, coalesced } = next;
        let cut = match message {
            Message::Snapshot { services, reset, last } => {
                in_parts(services, (reset, last), revision, bytes)
            }
            Message::Delta(events) => deltas(events, self.position, revision, coalesced, bytes),
            Message::Bookmark | Message::Leader(_) => {
                return Some(Ready { message, revision, coalesced });
            }
        };
        cut.into_iter().rev().for_each(|ready| self.ready.push_front(ready));
        self.ready.pop_front()
    }

    fn tell_leader(&mut self, mut leaders: watch::Receiver<Option<NodeId>>) {
        let leader = *leaders.borrow_and_update();
        self.push_ready(Message::Leader(leader), self.reached());
        self.seldom.push(next_leader(leaders).boxed());
    }

    /// Sends a bookmark if nothing was sent for its interval; else looks again when that may be so.
    fn tell_bookmark(&mut self) {
        let (now, mut since) = (Instant::now(), self.last_sent);
        if since + self.bookmark <= now {
            self.take(true);
            since = now;
        }
        self.seldom.push(quiet(since + self.bookmark).boxed());
    }

    /// Makes messages of what the hub has for this watcher.
    fn take(&mut self, bookmark: bool) {
        let mut guard = self.applied.lock();
        let state = &mut *guard;
        match state.hub.take(self.id, self.taken, state.registry.revision()) {
            Batch::Changes { events, upto } => {
                drop(guard);
                self.taken = upto;
                if let Some(first) = events.first() {
                    self.applied.propagation.observe(first.at.elapsed().as_secs_f64());
                    self.queue_changes(events, upto, false);
                } else if bookmark {
                    self.push_ready(Message::Bookmark, upto);
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
                (self.replays, self.coalesced) = (false, None);
                self.queue_snapshot(&registry, true);
            }
        }
    }

    /// Queues what it sees of a piece of the ring, or keeps that until the last piece where it is
    /// coalesced.
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
        let replays = self.replays;
        self.replays &= !last;
        if !events.is_empty() {
            self.queue_changes(events, self.taken, coalesced);
        } else if replays && last {
            // It waits to hear that nothing is new, and how old that is.
            self.push_ready(Message::Bookmark, self.taken);
        }
    }

    fn queue_changes(&mut self, events: Vec<Arc<SharedEvent>>, upto: Revision, coalesced: bool) {
        let from = self.reached();
        self.ready.extend(deltas(events, from, upto, coalesced, MESSAGE_BYTES));
    }

    fn queue_snapshot(&mut self, registry: &Registry, reset: bool) {
        let services = covered(registry, &self.filter);
        let whole = (reset, true);
        self.ready.extend(in_parts(services, whole, registry.revision(), MESSAGE_BYTES));
    }
}

impl Ready {
    /// What it has when it is cut, bytes.
    fn least(&self) -> usize {
        match &self.message {
            Message::Snapshot { services, .. } => services.first().map_or(0, |part| {
                service_bytes(&part.key) + part.instances.first().map_or(0, |it| instance_bytes(it))
            }),
            Message::Delta(events) => events.first().map_or(0, |first| first.bytes),
            Message::Bookmark | Message::Leader(_) => 0,
        }
    }
}

/// Messages of about so many bytes with these changes, which lead from one revision to another. Of
/// coalesced changes, only the last message moves the position: before it, a change may still be
/// missing.
fn deltas(
    mut events: Vec<Arc<SharedEvent>>,
    from: Revision,
    upto: Revision,
    coalesced: bool,
    most: usize,
) -> Vec<Ready> {
    let (mut ready, mut revision) = (Vec::new(), from);
    while let Some(rest) = split_off_rest(&mut events, most) {
        if !coalesced {
            revision = events.last().map_or(revision, |last| last.event.revision);
        }
        let message = Message::Delta(std::mem::replace(&mut events, rest));
        ready.push(Ready { message, revision, coalesced });
    }
    ready.push(Ready { message: Message::Delta(events), revision: upto, coalesced });
    ready
}

/// What is too much for one message, if anything.
fn split_off_rest(
    events: &mut Vec<Arc<SharedEvent>>,
    most: usize,
) -> Option<Vec<Arc<SharedEvent>>> {
    let mut bytes = 0;
    let too_much = events.iter().enumerate().position(|(at, shared)| {
        bytes += shared.bytes;
        at > 0 && (bytes > most || at == BATCH_MAX)
    });
    too_much.map(|at| events.split_off(at))
}

/// Messages of about so many bytes with these services, of which only the last leads to a revision.
fn in_parts(
    all: Vec<Part>,
    (reset, last): (bool, bool),
    revision: Revision,
    most: usize,
) -> Vec<Ready> {
    let mut ready = Vec::new();
    let mut add = |services: &mut Vec<Part>, last, revision| {
        let message = Message::Snapshot { services: std::mem::take(services), reset, last };
        ready.push(Ready { message, revision, coalesced: false });
    };
    let (mut services, mut bytes) = (Vec::new(), 0);
    for mut whole in all {
        let instances = std::mem::take(&mut whole.instances);
        let mut part = whole.with(Vec::new());
        if bytes > most {
            add(&mut services, false, Revision(0));
            bytes = 0;
        }
        bytes += service_bytes(&whole.key);
        for instance in instances {
            let size = instance_bytes(&instance);
            // One instance may be larger than that, and has a message of its own.
            let has_some = !part.instances.is_empty() || !services.is_empty();
            if bytes + size > most && has_some {
                services.push(std::mem::replace(&mut part, whole.with(Vec::new())));
                add(&mut services, false, Revision(0));
                bytes = service_bytes(&whole.key);
            }
            bytes += size;
            part.instances.push(instance);
        }
        services.push(part);
    }
    if last || !services.is_empty() {
        add(&mut services, last, revision);
    }
    ready
}

/// What comes seldom.
enum News {
    Leader(watch::Receiver<Option<NodeId>>),
    /// Perhaps nothing was sent for long.
    Quiet,
}

async fn next_leader(mut leaders: watch::Receiver<Option<NodeId>>) -> News {
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

impl<E> Drop for Subscription<E> {
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
        instances: instances.filter(|instance| filter.covers_instance(instance)).cloned().collect(),
    }
}

/// Every service that a filter covers, with the instances that it covers.
pub(super) fn covered(registry: &Registry, filter: &Filter) -> Vec<Part> {
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
mod tests;
