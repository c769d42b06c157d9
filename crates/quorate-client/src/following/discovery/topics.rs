//! What a hub knows: the services it follows, each with a position of its own, and which view shows
//! what of them. Pure data; knows nothing of streams and reads no clock.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use quorate_proto::ClusterId;
use quorate_proto::limits::SERVICES_PER_CALL;
use quorate_proto::v1::{Change, ChangeKind, Instance, RemoveReason, Service};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::instances::{Instances, Origin, Selector};
use crate::clock::Moment;
use crate::error::Error;
use crate::following::watch::{Backlog, WatchEvent};

/// A service that no view shows any more is followed on for this long: where each call makes a view
/// of its own, the next one finds it, and the stream stays.
pub(super) const LINGER: Duration = Duration::from_secs(30);

/// The services of a hub, by name.
#[derive(Debug, Default)]
pub(super) struct Topics {
    pub(super) by_name: BTreeMap<String, Topic>,
    /// What the positions belong to; `None`: none yet.
    pub(super) cluster_id: Option<ClusterId>,
}

/// One service.
#[derive(Debug)]
pub(super) struct Topic {
    /// Everything up to this revision is in `instances`; 0 until it is synced.
    position: u64,
    /// The last change in `instances`, as far as that is known: no later than this.
    changed: u64,
    /// Whether there was a snapshot from the cluster that answers now.
    synced: bool,
    /// Everything that was acknowledged before this is in `instances`; `None`: no node has said so.
    fresh_at: Option<Moment>,
    known: bool,
    origin: Origin,
    instances: BTreeMap<String, Arc<Instance>>,
    feeds: Vec<Arc<Feed>>,
    /// Since when there are no feeds.
    unused_since: Option<Instant>,
    /// Why the registry refuses it, if it does.
    refused: Option<Error>,
}

/// What one view shows of a service.
#[derive(Debug)]
pub(super) struct Feed {
    pub(super) selector: Selector,
    pub(super) current: ArcSwap<Instances>,
    /// Notified after `current` was replaced.
    pub(super) changes: watch::Sender<()>,
    queues: Mutex<Vec<Arc<Queue>>>,
    /// Events that wait until `current` shows them.
    staged: Mutex<Vec<WatchEvent>>,
}

/// Changes that wait for a listener one by one; with more than these, only the latest of each
/// instance is kept.
const HISTORY_MAX: usize = 1_024;

/// Events for one listener.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pending: Mutex<Pending>,
    pub(super) arrived: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    history: VecDeque<WatchEvent>,
    /// In place of the history, once that was too long, until all is read.
    coalesced: Option<Backlog>,
}

impl Pending {
    fn push(&mut self, event: WatchEvent) {
        if let Some(backlog) = &mut self.coalesced {
            return backlog.push(event);
        }
        self.history.push_back(event);
        if self.history.len() > HISTORY_MAX {
            let backlog = self.coalesced.insert(Backlog::default());
            self.history.drain(..).for_each(|event| backlog.push(event));
        }
    }

    fn pop(&mut self) -> Option<WatchEvent> {
        let Some(backlog) = &mut self.coalesced else { return self.history.pop_front() };
        let event = backlog.pop();
        if event.is_none() {
            self.coalesced = None;
        }
        event
    }
}

/// Whether a queue has a listener still.
fn is_read(queue: &Arc<Queue>) -> bool {
    Arc::strong_count(queue) > 1
}

impl Queue {
    pub(super) fn pop(&self) -> Option<WatchEvent> {
        self.lock().pop()
    }

    fn push(&self, event: WatchEvent) {
        self.lock().push(event);
        self.arrived.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Feed {
    pub(super) fn new(selector: Selector) -> Self {
        let current = ArcSwap::from_pointee(Instances::none());
        let (queues, staged) = (Mutex::default(), Mutex::default());
        Self { selector, current, changes: watch::Sender::new(()), queues, staged }
    }

    /// A queue that begins with all that is shown now. To be called under the lock of the topics.
    pub(super) fn listen(&self) -> Arc<Queue> {
        let queue = Arc::new(Queue::default());
        for instance in self.current.load().iter() {
            queue.push(WatchEvent::Added(instance.clone()));
        }
        let mut queues = self.queues();
        if queues.len() == queues.capacity() {
            // As many again have room then, so that this is done once for so many listeners.
            queues.retain(is_read);
            let living = queues.len();
            queues.reserve(living);
        }
        queues.push(queue.clone());
        queue
    }

    fn queues(&self) -> MutexGuard<'_, Vec<Arc<Queue>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn staged(&self) -> MutexGuard<'_, Vec<WatchEvent>> {
        self.staged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports what is shown now to the listeners that are still there.
    fn tell(&self) {
        let mut queues = self.queues();
        queues.retain(is_read);
        for event in self.staged().drain(..) {
            queues.iter().for_each(|queue| queue.push(event.clone()));
        }
        drop(queues);
        self.changes.send_replace(());
    }

    /// What a change of an instance is to this view.
    fn stage(
        &self,
        before: Option<&Arc<Instance>>,
        after: Option<&Arc<Instance>>,
        reason: RemoveReason,
        revision: u64,
    ) {
        let before = before.filter(|instance| self.selector.admits(instance));
        let after = after.filter(|instance| self.selector.admits(instance));
        self.staged().push(match (before, after) {
            (None, Some(new)) => WatchEvent::Added(new.clone()),
            (Some(_), Some(new)) => WatchEvent::Modified(new.clone()),
            (Some(old), None) => WatchEvent::Removed { instance: old.clone(), reason, revision },
            (None, None) => return,
        });
    }
}

impl Topic {
    fn new() -> Self {
        Self {
            position: 0,
            changed: 0,
            synced: false,
            fresh_at: None,
            known: false,
            origin: Origin::Nowhere,
            instances: BTreeMap::new(),
            feeds: Vec::new(),
            unused_since: None,
            refused: None,
        }
    }

    /// Puts everything in place of what was known; stages the difference.
    fn replace(&mut self, origin: Origin, position: u64, known: bool, all: Vec<Instance>) {
        let mut fresh: BTreeMap<String, Arc<Instance>> = BTreeMap::new();
        for instance in all {
            fresh.insert(instance.id.clone(), Arc::new(instance));
        }
        for (id, gone) in &self.instances {
            if !fresh.contains_key(id) {
                self.stage(Some(gone), None, RemoveReason::Unspecified, 0);
            }
        }
        for (id, instance) in &mut fresh {
            match self.instances.get(id) {
                Some(known) if known == instance => *instance = known.clone(),
                before => {
                    self.stage(before, Some(instance), RemoveReason::Unspecified, position);
                }
            }
        }
        self.instances = fresh;
        self.known = known || !self.instances.is_empty();
        self.origin = origin;
        (self.position, self.changed) = (position, position);
        self.synced = origin == Origin::Registry;
        self.publish();
    }

    /// Takes one change, if it is not among what is known already. True: something is different
    /// now.
    fn apply(&mut self, change: Change) -> bool {
        let (kind, reason, revision) = (change.kind(), change.reason(), change.revision);
        let Some(instance) = change.instance.filter(|_| revision > self.position) else {
            return false;
        };
        (self.known, self.changed) = (true, revision);
        match kind {
            ChangeKind::Added | ChangeKind::Modified => {
                let instance = Arc::new(instance);
                let before = self.instances.insert(instance.id.clone(), instance.clone());
                let changed = before.as_ref() != Some(&instance);
                if changed {
                    self.stage(before.as_ref(), Some(&instance), reason, revision);
                }
                changed
            }
            ChangeKind::Removed => {
                let Some(before) = self.instances.remove(&instance.id) else { return false };
                self.stage(Some(&before), None, reason, revision);
                true
            }
            ChangeKind::Unspecified => {
                tracing::warn!(revision, "a change of an unknown kind was passed over");
                false
            }
        }
    }

    fn stage(
        &self,
        before: Option<&Arc<Instance>>,
        after: Option<&Arc<Instance>>,
        reason: RemoveReason,
        revision: u64,
    ) {
        for feed in &self.feeds {
            feed.stage(before, after, reason, revision);
        }
    }

    /// Shows what is known, in all views, and only then reports it: a listener that hears of a
    /// change finds it in every view.
    fn publish(&self) {
        self.feeds.iter().for_each(|feed| self.show_in(feed));
        self.feeds.iter().for_each(|feed| feed.tell());
    }

    fn show_in(&self, feed: &Feed) {
        let admitted = self.instances.values().filter(|instance| feed.selector.admits(instance));
        let all = admitted.cloned().collect();
        let instances = Instances::new(self.origin, self.position, self.known, all);
        feed.current.store(Arc::new(instances));
    }
}

impl Topics {
    /// Shows a service to one more. True: the service is new here.
    pub(super) fn add(&mut self, feed: Arc<Feed>) -> bool {
        let name = feed.selector.service.clone();
        let is_new = !self.by_name.contains_key(&name);
        if is_new && self.by_name.len() >= SERVICES_PER_CALL {
            let unused =
                |(name, topic): (&String, &Topic)| Some((topic.unused_since?, name.clone()));
            let oldest = self.by_name.iter().filter_map(unused).min();
            oldest.and_then(|(_, name)| self.by_name.remove(&name));
        }
        let topic = self.by_name.entry(name).or_insert_with(Topic::new);
        if topic.origin != Origin::Nowhere {
            topic.show_in(&feed);
            feed.tell();
        }
        topic.feeds.push(feed);
        topic.unused_since = None;
        is_new
    }

    /// The registry refuses to show a service. What is known of it stays, for as long as there is a
    /// view: the next one asks anew.
    pub(super) fn refuse(&mut self, name: &str, error: Error) {
        if let Some(topic) = self.by_name.get_mut(name) {
            topic.refused = Some(error);
        }
        self.by_name.retain(|_, topic| topic.unused_since.is_none() || topic.refused.is_none());
    }

    pub(super) fn refused(&self, name: &str) -> Option<Error> {
        self.by_name.get(name)?.refused.clone()
    }

    /// Shows it in one view less. True: the service is not to be followed any more.
    pub(super) fn remove(&mut self, feed: &Arc<Feed>, now: Instant) -> bool {
        let name = &feed.selector.service;
        let Some(topic) = self.by_name.get_mut(name) else { return false };
        topic.feeds.retain(|known| !Arc::ptr_eq(known, feed));
        topic.unused_since = topic.feeds.is_empty().then_some(now);
        let goes = topic.unused_since.is_some() && topic.refused.is_some();
        if goes {
            self.by_name.remove(name);
        }
        goes
    }

    /// Forgets the services that no view has shown for long. True: there were some.
    pub(super) fn forget_unused(&mut self, now: Instant) -> bool {
        let before = self.by_name.len();
        let stays = |topic: &Topic| topic.unused_since.is_none_or(|since| now < since + LINGER);
        self.by_name.retain(|_, topic| stays(topic));
        self.by_name.len() < before
    }

    /// The services that some view shows.
    pub(super) fn used(&self) -> impl Iterator<Item = &String> {
        let used = self.by_name.iter().filter(|(_, topic)| topic.unused_since.is_none());
        used.map(|(name, _)| name)
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.by_name.keys().cloned().collect()
    }

    /// The services of which nothing is known from the registry.
    pub(super) fn unknown(&self) -> Vec<String> {
        let unknown = self.by_name.iter().filter(|(_, topic)| !topic.synced);
        unknown.map(|(name, _)| name.clone()).collect()
    }

    /// The services of which everything is known from the registry up to some revision, and which
    /// may be asked for.
    pub(super) fn synced(&self) -> Vec<String> {
        let is_synced = |topic: &Topic| topic.synced && topic.refused.is_none();
        let synced = self.by_name.iter().filter(|(_, topic)| is_synced(topic));
        synced.map(|(name, _)| name.clone()).collect()
    }

    /// From where on changes are needed: everything before it is known of each of these services.
    pub(super) fn lowest(&self, names: &[String]) -> u64 {
        let position = |name| self.by_name.get(name).map_or(0, |topic: &Topic| topic.position);
        names.iter().map(position).min().unwrap_or(0)
    }

    /// Another cluster answers: what is known is shown on, but counts for nothing when changes
    /// come.
    pub(super) fn belongs_to(&mut self, cluster_id: Option<ClusterId>) {
        if self.cluster_id != cluster_id {
            self.cluster_id = cluster_id;
            self.distrust_all();
        }
    }

    /// All services have to be read anew. What is known is shown on, until then.
    pub(super) fn distrust_all(&mut self) {
        for topic in self.by_name.values_mut() {
            (topic.position, topic.synced) = (0, false);
        }
    }

    /// Takes a whole snapshot of the services with these names, except services that are known up
    /// to a later revision.
    pub(super) fn replace(&mut self, names: &[String], revision: u64, parts: Vec<Service>) {
        let mut fresh: BTreeMap<String, (bool, Vec<Instance>)> = BTreeMap::new();
        for part in parts {
            let (known, instances) = fresh.entry(part.name).or_default();
            *known |= part.known;
            instances.extend(part.instances);
        }
        for name in names {
            let Some(topic) = self.by_name.get_mut(name) else { continue };
            topic.refused = None;
            if revision >= topic.position {
                let (known, instances) = fresh.remove(name).unwrap_or_default();
                topic.replace(Origin::Registry, revision, known, instances);
            }
        }
    }

    /// Takes what an earlier run left, where nothing better is there, nor another cluster than it
    /// was of.
    #[cfg_attr(not(feature = "cache"), allow(dead_code, reason = "nothing is cached"))]
    pub(super) fn take_cached(
        &mut self,
        name: &str,
        cluster_id: Option<ClusterId>,
        all: Vec<Instance>,
    ) {
        let may_be = [None, cluster_id].contains(&self.cluster_id);
        if let Some(topic) = self.by_name.get_mut(name)
            && topic.origin == Origin::Nowhere
            && may_be
        {
            topic.replace(Origin::Cache, 0, true, all);
        }
    }

    /// Takes changes in order. Returns the services that are different now. Only services that were
    /// read are changed: of another one, the stream does not bring all.
    pub(super) fn apply(&mut self, changes: Vec<Change>) -> Vec<String> {
        let mut changed: Vec<String> = Vec::new();
        for change in changes {
            let Some(instance) = &change.instance else {
                tracing::warn!(
                    revision = change.revision,
                    "a change without an instance was passed over"
                );
                continue;
            };
            let service = instance.service.clone();
            let revision = change.revision;
            let topic = self.by_name.get_mut(&service).filter(|topic| topic.synced);
            let Some(topic) = topic else { continue };
            if topic.apply(change) && changed.last() != Some(&service) {
                changed.push(service);
            }
            topic.position = topic.position.max(revision);
        }
        changed.sort();
        changed.dedup();
        for name in &changed {
            self.by_name[name].publish();
        }
        changed
    }

    /// What is known of a service from the registry: the revision, and the instances.
    pub(super) fn known(&self, name: &str) -> Option<(u64, Vec<Arc<Instance>>)> {
        let topic = self.by_name.get(name).filter(|topic| topic.synced)?;
        Some((topic.position, topic.instances.values().cloned().collect()))
    }

    /// The last change that is shown of a service is no later than this.
    pub(super) fn changed(&self, name: &str) -> u64 {
        self.by_name.get(name).map_or(0, |topic| topic.changed)
    }

    /// What was shown of a service was wrong, and this is right, as far as it is known here.
    pub(super) fn repair(&mut self, service: Service) {
        if let Some(topic) = self.by_name.get_mut(&service.name) {
            let Service { known, instances, .. } = service;
            topic.replace(Origin::Registry, topic.position, known, instances);
        }
    }

    /// Everything that was acknowledged before this is known of those of these services that were
    /// read.
    pub(super) fn freshen(&mut self, names: &[String], at: Moment) {
        for name in names {
            if let Some(topic) = self.by_name.get_mut(name).filter(|topic| topic.synced) {
                topic.fresh_at = topic.fresh_at.max(Some(at));
            }
        }
    }

    /// Everything that was acknowledged before this is shown of a service; `None`: not known.
    pub(super) fn fresh_at(&self, name: &str) -> Option<Moment> {
        self.by_name.get(name)?.fresh_at
    }

    /// Everything up to this revision is known of those of these services that were read. The
    /// others stay at 0, where a stream begins with a snapshot.
    pub(super) fn move_to(&mut self, names: &[String], revision: u64) {
        for name in names {
            if let Some(topic) = self.by_name.get_mut(name).filter(|topic| topic.synced) {
                topic.position = topic.position.max(revision);
            }
        }
    }
}

#[cfg(test)]
mod tests;
