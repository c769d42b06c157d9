//! The watch hub: the latest changes in a ring, and what each watcher still has to be told.
//!
//! Lives under the lock of `applied.rs`. A change is put into the ring and into the queue of each watcher that it
//! concerns; a watcher takes its queue when its stream is polled. A queue that would grow over [`QUEUE_MAX`] is dropped
//! and the watcher served from the ring instead, coalesced to the latest state of each instance; one that is even behind
//! the ring gets a snapshot. So a slow watcher costs a bounded amount of memory and never holds anybody up.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use quorate_state::{
    Change, Event, Instance, InstanceKey, Namespace, Revision, ServiceKey, ServiceName, Status,
};
use tokio::sync::Notify;

/// Changes that wait for one watcher: enough for a burst, small enough for 10,000 stalled watchers (8 bytes each).
const QUEUE_MAX: usize = 1_024;

/// Changes in one message, and taken from the ring under the lock at once.
pub(crate) const BATCH_MAX: usize = 1_000;

/// What a watcher wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) namespace: Namespace,
    pub(crate) selection: Selection,
    /// Effective status; empty: any.
    pub(crate) statuses: BTreeSet<Status>,
}

/// Which services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Selection {
    Services(BTreeSet<ServiceName>),
    Prefix(String),
}

impl Filter {
    pub(crate) fn covers_service(&self, key: &ServiceKey) -> bool {
        key.namespace == self.namespace
            && match &self.selection {
                Selection::Services(names) => names.contains(&key.name),
                Selection::Prefix(prefix) => key.name.as_str().starts_with(prefix),
            }
    }

    pub(crate) fn covers_status(&self, instance: &Instance) -> bool {
        self.statuses.is_empty() || self.statuses.contains(&instance.status())
    }

    /// Whether somebody with this filter sees anything of the change.
    fn sees(&self, event: &Event) -> bool {
        let covered = |instance: Option<&Arc<Instance>>| {
            instance.is_some_and(|instance| self.covers_status(instance))
        };
        self.covers_service(&event.key().service)
            && (covered(event.before()) || covered(event.after()))
    }
}

/// What a watcher takes at one time.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Batch {
    /// These changes lead from its position to this revision; `coalesced`: only all of them together do.
    Changes { events: Vec<Arc<Event>>, upto: Revision, coalesced: bool },
    /// The ring does not reach back to its position: begin anew.
    Lost,
}

#[derive(Debug)]
enum Backlog {
    /// The queue has everything after the watcher's position.
    Queued(VecDeque<Arc<Event>>),
    /// The ring has it; every change is told.
    Replay,
    /// The ring has it; the latest change of each instance is told.
    Coalesce,
}

#[derive(Debug)]
struct Watcher {
    filter: Filter,
    backlog: Backlog,
    wake: Arc<Notify>,
}

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Hub {
    /// Changes with revisions `base + 1, base + 2, ..`.
    ring: VecDeque<Arc<Event>>,
    ring_max: usize,
    base: Revision,
    watchers: HashMap<u64, Watcher>,
    by_service: HashMap<ServiceKey, Vec<u64>>,
    by_prefix: Vec<u64>,
    last_id: u64,
}

impl Hub {
    pub(crate) fn new(ring_max: usize) -> Self {
        Self {
            ring: VecDeque::new(),
            ring_max,
            base: Revision(0),
            watchers: HashMap::new(),
            by_service: HashMap::new(),
            by_prefix: Vec::new(),
            last_id: 0,
        }
    }

    /// Takes in what a command changed.
    pub(crate) fn publish(&mut self, events: Vec<Arc<Event>>) {
        for event in events {
            let by_service = self.by_service.get(&event.key().service);
            for id in by_service.into_iter().flatten().chain(&self.by_prefix) {
                if let Some(watcher) = self.watchers.get_mut(id) {
                    watcher.offer(&event);
                }
            }
            if self.ring.len() == self.ring_max {
                self.ring.pop_front();
                self.base = Revision(self.base.0 + 1);
            }
            self.ring.push_back(event);
        }
    }

    /// The state was replaced: nothing before this revision is known any more.
    pub(crate) fn restart(&mut self, revision: Revision) {
        self.ring.clear();
        self.base = revision;
        for watcher in self.watchers.values_mut() {
            watcher.backlog = Backlog::Replay;
            watcher.wake.notify_one();
        }
    }

    /// Whether the ring has everything after this revision.
    pub(crate) fn reaches(&self, revision: Revision) -> bool {
        revision >= self.base
    }

    /// Adds a watcher. `replay`: it stands at an earlier revision that the ring reaches; else at the present one.
    pub(crate) fn subscribe(&mut self, filter: Filter, replay: bool) -> (u64, Arc<Notify>) {
        self.last_id += 1;
        let id = self.last_id;
        match &filter.selection {
            Selection::Services(names) => {
                for name in names {
                    let namespace = filter.namespace.clone();
                    let key = ServiceKey { namespace, name: name.clone() };
                    self.by_service.entry(key).or_default().push(id);
                }
            }
            Selection::Prefix(_) => self.by_prefix.push(id),
        }
        let backlog = if replay { Backlog::Replay } else { Backlog::Queued(VecDeque::new()) };
        let wake = Arc::new(Notify::new());
        if replay {
            wake.notify_one();
        }
        self.watchers.insert(id, Watcher { filter, backlog, wake: wake.clone() });
        (id, wake)
    }

    pub(crate) fn unsubscribe(&mut self, id: u64) {
        let Some(watcher) = self.watchers.remove(&id) else { return };
        match watcher.filter.selection {
            Selection::Services(names) => {
                for name in names {
                    let namespace = watcher.filter.namespace.clone();
                    let key = ServiceKey { namespace, name };
                    if let Some(ids) = self.by_service.get_mut(&key) {
                        ids.retain(|other| *other != id);
                        if ids.is_empty() {
                            self.by_service.remove(&key);
                        }
                    }
                }
            }
            Selection::Prefix(_) => self.by_prefix.retain(|other| *other != id),
        }
    }

    /// What a watcher that stands at `position` is to be told next; `now` is the state's revision.
    pub(crate) fn take(&mut self, id: u64, position: Revision, now: Revision) -> Batch {
        let nothing = Batch::Changes { events: Vec::new(), upto: now, coalesced: false };
        let Some(watcher) = self.watchers.get_mut(&id) else { return nothing };
        if let Backlog::Queued(queue) = &mut watcher.backlog {
            let events: Vec<_> = queue.drain(..queue.len().min(BATCH_MAX)).collect();
            let more = !queue.is_empty();
            let upto = events.last().map_or(now, |last| if more { last.revision } else { now });
            if more {
                watcher.wake.notify_one();
            }
            return Batch::Changes { events, upto, coalesced: false };
        }
        if position < self.base {
            return Batch::Lost;
        }
        let behind = self.ring.iter().skip((position.0 - self.base.0) as usize);
        let seen = behind.filter(|event| watcher.filter.sees(event)).cloned();
        if matches!(watcher.backlog, Backlog::Coalesce) {
            watcher.backlog = Backlog::Queued(VecDeque::new());
            return Batch::Changes { events: coalesce(seen), upto: now, coalesced: true };
        }
        let events: Vec<_> = seen.take(BATCH_MAX).collect();
        if events.len() < BATCH_MAX {
            watcher.backlog = Backlog::Queued(VecDeque::new());
            return Batch::Changes { events, upto: now, coalesced: false };
        }
        watcher.wake.notify_one();
        let upto = events.last().map_or(now, |last| last.revision);
        Batch::Changes { events, upto, coalesced: false }
    }
}

impl Watcher {
    fn offer(&mut self, event: &Arc<Event>) {
        if !self.filter.sees(event) {
            return;
        }
        if let Backlog::Queued(queue) = &mut self.backlog {
            if queue.len() < QUEUE_MAX {
                queue.push_back(event.clone());
            } else {
                self.backlog = Backlog::Coalesce;
            }
        }
        self.wake.notify_one();
    }
}

/// Leaves of each instance one change, from what it was at first to what it is at last, in the order of the last ones.
fn coalesce(events: impl Iterator<Item = Arc<Event>>) -> Vec<Arc<Event>> {
    let mut merged: HashMap<InstanceKey, Arc<Event>> = HashMap::new();
    for event in events {
        match merged.remove(event.key()) {
            None => {
                merged.insert(event.key().clone(), event);
            }
            Some(earlier) => {
                if let Some(both) = merge(&earlier, &event) {
                    merged.insert(both.key().clone(), Arc::new(both));
                }
            }
        }
    }
    let ordered: BTreeMap<_, _> =
        merged.into_values().map(|event| (event.revision, event)).collect();
    ordered.into_values().collect()
}

/// Two changes of one instance as one; `None`: it came and went.
fn merge(earlier: &Event, later: &Event) -> Option<Event> {
    let change = match (earlier.before().cloned(), later.change.clone()) {
        (None, Change::Removed { .. }) => return None,
        (None, Change::Added { after } | Change::Modified { after, .. }) => Change::Added { after },
        (Some(before), Change::Removed { reason, .. }) => Change::Removed { before, reason },
        (Some(before), Change::Added { after } | Change::Modified { after, .. }) => {
            Change::Modified { before, after }
        }
    };
    Some(Event { revision: later.revision, change })
}
