//! One watcher's stream as a pull: a snapshot or a replay first, then changes, bookmarks and news of the leader.
//!
//! Knows nothing of gRPC: `grpc/watch.rs` turns the messages into answers. There is no task for a watcher: the stream is
//! driven by whoever polls it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use quorate_state::{Event, Instance, Registry, Revision, ServiceKey};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::applied::Applied;
use crate::watch::{BATCH_MAX, Batch, Filter, Selection};

/// A message at most, bytes, unless one instance alone is larger: far below the 4 MiB that receivers take as a rule.
const MESSAGE_BYTES: usize = 256 * 1024;

/// What an instance or a service costs beside its texts, bytes: tags, lengths and numbers.
const OVERHEAD_BYTES: usize = 128;

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
    Delta(Vec<Arc<Event>>),
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
    wake: Arc<Notify>,
    filter: Filter,
    position: Revision,
    /// Messages that are ready, with the position that each of them leads to.
    ready: VecDeque<(Message, Revision)>,
    leader: watch::Receiver<Option<u64>>,
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
        let mut subscription = Self {
            applied,
            id,
            wake,
            filter,
            position,
            ready: VecDeque::new(),
            leader,
            bookmark,
            last_sent: Instant::now(),
        };
        if let Some(registry) = registry {
            subscription.queue_snapshot(&registry, begin != Begin::Snapshot);
        }
        subscription
    }

    /// The next message.
    pub(crate) async fn next(&mut self) -> Positioned {
        loop {
            if let Some((message, revision)) = self.ready.pop_front() {
                let previous = self.position;
                self.position = revision;
                self.last_sent = Instant::now();
                return Positioned { message, previous, revision };
            }
            let news = {
                let quiet_until = self.last_sent + self.bookmark;
                tokio::select! {
                    () = self.wake.notified() => News::Changes,
                    changed = self.leader.changed() => News::Leader(changed.is_ok()),
                    () = tokio::time::sleep_until(quiet_until) => News::Quiet,
                }
            };
            match news {
                News::Changes => self.take(false),
                News::Quiet => self.take(true),
                News::Leader(true) => {
                    let leader = *self.leader.borrow_and_update();
                    self.ready.push_back((Message::Leader(leader), self.position));
                }
                News::Leader(false) => std::future::pending().await,
            }
        }
    }

    /// Makes messages of what the hub has for this watcher.
    fn take(&mut self, bookmark: bool) {
        let mut guard = self.applied.lock();
        let state = &mut *guard;
        let now = state.registry.revision();
        match state.hub.take(self.id, self.position, now) {
            Batch::Changes { events, upto, .. } if events.is_empty() => {
                drop(guard);
                if bookmark {
                    self.ready.push_back((Message::Bookmark, upto));
                }
            }
            Batch::Changes { events, upto, coalesced } => {
                drop(guard);
                self.queue_changes(events, upto, coalesced);
            }
            Batch::Lost => {
                let registry = state.registry.clone();
                state.hub.unsubscribe(self.id);
                (self.id, self.wake) = state.hub.subscribe(self.filter.clone(), false);
                drop(guard);
                self.queue_snapshot(&registry, true);
            }
        }
    }

    /// Of coalesced changes, only the last message moves the position: before it, a change may still be missing.
    fn queue_changes(&mut self, events: Vec<Arc<Event>>, upto: Revision, coalesced: bool) {
        let (mut message, mut bytes) = (Vec::new(), 0);
        let mut reached = self.position;
        for event in events {
            let size = event.after().or(event.before()).map_or(0, |instance| wire_bytes(instance));
            if !message.is_empty() && (bytes + size > MESSAGE_BYTES || message.len() == BATCH_MAX) {
                let full = Message::Delta(std::mem::take(&mut message));
                self.ready.push_back((full, reached));
                bytes = 0;
            }
            if !coalesced {
                reached = event.revision;
            }
            bytes += size;
            message.push(event);
        }
        self.ready.push_back((Message::Delta(message), upto));
    }

    fn queue_snapshot(&mut self, registry: &Registry, reset: bool) {
        let revision = registry.revision();
        let (mut services, mut bytes) = (Vec::new(), 0);
        for mut whole in covered(registry, &self.filter) {
            let instances = std::mem::take(&mut whole.instances);
            let mut part = whole.with(Vec::new());
            bytes += OVERHEAD_BYTES + key_bytes(&whole.key);
            for instance in instances {
                let size = wire_bytes(&instance);
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

fn key_bytes(key: &ServiceKey) -> usize {
    key.namespace.as_str().len() + key.name.as_str().len()
}

/// About what an instance takes in a message.
fn wire_bytes(instance: &Instance) -> usize {
    // A tag and a length for the entry, and for each of its texts.
    const ENTRY: usize = 8;
    let spec = &instance.spec;
    let entries = spec.endpoints().iter().chain(spec.metadata());
    let entries: usize = entries.map(|(key, value)| ENTRY + key.len() + value.len()).sum();
    let requires: usize = spec.requires().iter().map(|name| ENTRY + name.as_str().len()).sum();
    let reason = instance.overridden.as_ref().map_or(0, |value| value.reason.len());
    let names = key_bytes(&instance.key.service) + instance.key.id.as_str().len();
    let texts = names + spec.zone().len() + spec.version().len() + reason;
    OVERHEAD_BYTES + texts + entries + requires
}

enum News {
    Changes,
    Leader(bool),
    Quiet,
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

/// Every service that a filter covers, with the instances that it covers.
pub(crate) fn covered(registry: &Registry, filter: &Filter) -> Vec<Part> {
    let part = |key: &ServiceKey, service: Option<&quorate_state::Service>| Part {
        key: key.clone(),
        revision: service.map(|service| service.revision),
        instances: service
            .into_iter()
            .flat_map(|service| service.instances.values())
            .filter(|instance| filter.covers_status(instance))
            .cloned()
            .collect(),
    };
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
