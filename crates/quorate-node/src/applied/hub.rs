//! The watch hub: the latest changes in a ring, and what each watcher still has to be sent.
//!
//! Lives under the lock of `applied.rs`. A change is put into the ring and into the queue of each
//! watcher that it concerns; a watcher takes its queue when its stream is polled. A queue that
//! would grow over [`QUEUE_MAX`] is dropped and the watcher served from the ring instead, coalesced
//! to the latest state of each instance; one that is even behind the ring gets a snapshot. So a
//! slow watcher costs a bounded amount of memory and never holds the others up: the ring is handed
//! out in pieces of [`BATCH_MAX`], and what a watcher sees of a piece is found without the lock.

mod coalesced;
mod follower;
mod prefixes;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

pub(super) use crate::applied::hub::coalesced::Coalesced;
pub(crate) use crate::applied::hub::follower::{Follower, Start};
use crate::applied::hub::prefixes::Prefixes;
pub(super) use crate::applied::ring::AGES_EVERY;
use crate::applied::ring::{Gone, Ring};
use crate::applied::shared_event::{SharedEvent, View};
use crate::applied::wake::Wake;
use quorate_state::{
    Change, Event, Instance, Namespace, RemoveReason, Revision, ServiceKey, ServiceName, Status,
};
use tokio::time::Instant;

/// Changes that wait for one watcher: enough for a burst, small enough for 10,000 stalled watchers
/// (8 bytes each).
const QUEUE_MAX: usize = 1_024;

/// Changes in one message, and taken from the ring under the lock at once.
pub(super) const BATCH_MAX: usize = 1_000;

/// Changes of one command that are not queued for each watcher: an expiry or a large call, seldom
/// anything else.
const QUEUED_CHANGES_MAX: usize = 64;

/// What a watcher wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) namespace: Namespace,
    pub(crate) selection: Selection,
    /// Effective status; empty: any.
    pub(crate) statuses: BTreeSet<Status>,
    /// It has all of these.
    pub(crate) tags: BTreeSet<String>,
    /// It is in one of these; empty: any.
    pub(crate) zones: BTreeSet<String>,
}

/// Which services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Selection {
    Services(BTreeSet<ServiceName>),
    Prefix(String),
}

impl Selection {
    /// How many names it has; a prefix is one.
    pub(crate) fn names(&self) -> usize {
        match self {
            Self::Services(names) => names.len(),
            Self::Prefix(_) => 1,
        }
    }
}

impl Filter {
    /// Every instance of these services.
    pub(crate) fn all_of(namespace: Namespace, selection: Selection) -> Self {
        let (statuses, tags, zones) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        Self { namespace, selection, statuses, tags, zones }
    }

    /// Whether it leaves out no instance of the services that it covers.
    pub(crate) fn is_all(&self) -> bool {
        self.statuses.is_empty() && self.tags.is_empty() && self.zones.is_empty()
    }

    fn covers_service(&self, key: &ServiceKey) -> bool {
        key.namespace == self.namespace
            && match &self.selection {
                Selection::Services(names) => names.contains(&key.name),
                Selection::Prefix(prefix) => key.name.as_str().starts_with(prefix),
            }
    }

    pub(crate) fn covers_instance(&self, instance: &Instance) -> bool {
        let has = |tag: &String| instance.spec.tags().any(|it| it == tag);
        (self.statuses.is_empty() || self.statuses.contains(&instance.status()))
            && self.tags.iter().all(has)
            && (self.zones.is_empty() || self.zones.contains(instance.spec.zone()))
    }

    /// Whether a watcher with this filter sees anything of the change.
    pub(crate) fn sees(&self, event: &Event) -> bool {
        self.covers_service(&event.key().service) && self.view(event).is_some()
    }

    /// How the change of a service that is covered looks: an instance that comes into what is
    /// covered is added, one that leaves it removed. `None`: it was not and is not covered.
    pub(crate) fn view(&self, event: &Event) -> Option<View> {
        let covered = |instance: Option<&Arc<Instance>>| {
            instance.is_some_and(|instance| self.covers_instance(instance))
        };
        match (covered(event.before()), covered(event.after())) {
            (false, false) => None,
            (false, true) => Some(View::Added),
            (true, true) => Some(View::Modified),
            (true, false) => Some(View::Removed),
        }
    }
}

/// What a watcher takes at one time.
#[derive(Debug)]
pub(crate) enum Batch {
    /// These changes, all of which it sees, lead from its position to this revision.
    Changes { events: Vec<Arc<SharedEvent>>, upto: Revision },
    /// All changes from its position to this revision, to be looked through. `coalesce`: the latest
    /// of each instance is enough. `last`: what comes after them is queued; else there is more to
    /// take at once.
    Ring { events: Vec<Arc<SharedEvent>>, upto: Revision, coalesce: bool, last: bool },
    /// The ring does not reach back to its position: begin anew.
    Lost,
}

#[derive(Debug)]
enum Backlog {
    /// The queue has everything after the watcher's position.
    Queued(VecDeque<Arc<SharedEvent>>),
    /// The ring has it, after a revision up to which the watcher has all; it is sent every change.
    /// Its wake is pending.
    Replay { from: Revision },
    /// As `Replay`, but it is sent only the latest change of each instance.
    Coalesce { from: Revision },
}

#[derive(Debug)]
struct Watcher {
    filter: Filter,
    backlog: Backlog,
    wake: Arc<Wake>,
    start: Start,
    /// What it takes from the ring it has taken up to here.
    taken: Revision,
}

/// The ring of changes and the watchers with their queues.
#[derive(Debug)]
pub(crate) struct Hub {
    ring: Ring,
    watchers: HashMap<u64, Watcher>,
    by_service: HashMap<ServiceKey, Vec<u64>>,
    by_prefix: Prefixes,
    /// Watchers that have something to take and were not woken yet.
    wakes: Vec<Arc<Wake>>,
    last_id: u64,
    counts: WatchCounts,
}

/// What became of watches since this node started.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct WatchCounts {
    /// Changes that were applied, but for those that the log had when this node started.
    pub(crate) changes: u64,
    /// Of them, instances whose lease ended without renewal.
    pub(crate) expired: u64,
    /// Queues that were full: these watchers got the latest of each instance.
    pub(crate) overflows: u64,
    /// Watchers that the ring did not reach back to: they were given a snapshot.
    pub(crate) resets: u64,
}

/// What watchers have not taken yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// Changes in all queues, and in the longest.
    pub(crate) queued: usize,
    pub(crate) most: usize,
    /// Watchers that take theirs from the ring.
    pub(crate) behind: usize,
}

impl Hub {
    /// The ring keeps at most this many changes, and this many bytes of them.
    pub(crate) fn new(ring_max: usize, ring_bytes_max: usize) -> Self {
        Self {
            ring: Ring::new(ring_max, ring_bytes_max),
            watchers: HashMap::new(),
            by_service: HashMap::new(),
            by_prefix: Prefixes::default(),
            wakes: Vec::new(),
            last_id: 0,
            counts: WatchCounts::default(),
        }
    }

    /// How many watchers there are.
    pub(crate) fn watchers(&self) -> usize {
        self.watchers.len()
    }

    pub(crate) fn counts(&self) -> WatchCounts {
        self.counts
    }

    /// What waits for the watchers now; looks at each of them.
    pub(crate) fn waiting(&self) -> Waiting {
        let mut waiting = Waiting::default();
        for watcher in self.watchers.values() {
            match &watcher.backlog {
                Backlog::Queued(queue) => {
                    waiting.queued += queue.len();
                    waiting.most = waiting.most.max(queue.len());
                }
                Backlog::Replay { .. } | Backlog::Coalesce { .. } => waiting.behind += 1,
            }
        }
        waiting
    }

    /// Those that follow a service, so many of them, and how many there are. `now` is the state's
    /// revision.
    pub(crate) fn followers(
        &self,
        service: &ServiceKey,
        now: Revision,
        max: usize,
    ) -> (Vec<Follower>, usize) {
        let by_name = self.by_service.get(service).map(Vec::as_slice).into_iter();
        let groups = by_name.chain(self.by_prefix.of(service).map(|(_, ids)| ids));
        let some = groups.clone().flatten().filter_map(|id| self.watchers.get(id)).take(max);
        (some.map(|watcher| watcher.shown(now)).collect(), groups.map(<[u64]>::len).sum())
    }

    /// Counts what a command changed.
    pub(crate) fn count(&mut self, events: &[Arc<Event>]) {
        let expired = |event: &&Arc<Event>| {
            matches!(event.change, Change::Removed { reason: RemoveReason::Expired, .. })
        };
        self.counts.changes += events.len() as u64;
        self.counts.expired += events.iter().filter(expired).count() as u64;
    }

    /// Takes in what a command changed. The watchers that it concerns are still to be woken.
    pub(crate) fn publish(&mut self, events: Vec<Arc<Event>>) {
        if events.is_empty() {
            return;
        }
        let now = Instant::now();
        let shared = |event| Arc::new(SharedEvent::new(Arc::unwrap_or_clone(event), now));
        let events: Vec<_> = events.into_iter().map(shared).collect();
        if events.len() >= QUEUED_CHANGES_MAX && events.len() <= self.ring.max() / 2 {
            self.point_to_ring(&events);
        } else {
            self.queue_for_each(&events);
        }
        events.into_iter().for_each(|event| self.ring.push(event));
    }

    /// The watchers to wake for what was published since this was last called; best woken when the
    /// lock is free.
    #[must_use]
    pub(crate) fn take_wakes(&mut self) -> Vec<Arc<Wake>> {
        std::mem::take(&mut self.wakes)
    }

    fn queue_for_each(&mut self, events: &[Arc<SharedEvent>]) {
        let Self { watchers, by_service, by_prefix, wakes, counts, .. } = self;
        for shared in events {
            let event = &shared.event;
            let service = &event.key().service;
            let by_name = by_service.get(service).into_iter().flatten();
            for id in by_name.chain(by_prefix.of(service).flat_map(|(_, ids)| ids)) {
                if let Some(watcher) = watchers.get_mut(id)
                    && watcher.filter.view(event).is_some()
                {
                    counts.overflows += u64::from(watcher.queue(shared, wakes));
                }
            }
        }
    }

    /// For many changes at once: the watchers that they may concern find them in the ring, outside
    /// the lock.
    fn point_to_ring(&mut self, events: &[Arc<SharedEvent>]) {
        let Self { watchers, by_service, by_prefix, wakes, .. } = self;
        let (mut services, mut prefixes) = (HashSet::new(), HashSet::new());
        for event in events {
            let service = &event.event.key().service;
            if !services.insert(service) {
                continue;
            }
            let by_name = by_service.get(service).into_iter().flatten();
            let new = by_prefix.of(service);
            let new = new.filter(|(prefix, _)| prefixes.insert((&service.namespace, *prefix)));
            for id in by_name.chain(new.flat_map(|(_, ids)| ids)) {
                if let Some(watcher) = watchers.get_mut(id) {
                    watcher.replay(event, wakes);
                }
            }
        }
    }

    /// The state was replaced: nothing before this revision is known any more.
    pub(crate) fn restart(&mut self, revision: Revision) {
        self.ring.restart(revision);
        let mut watchers: Vec<_> = self.watchers.iter_mut().collect();
        // Again in the same order in a simulation.
        watchers.sort_unstable_by_key(|(id, _)| **id);
        for (_, watcher) in watchers {
            watcher.backlog = Backlog::Replay { from: Revision(0) };
            watcher.wake.call();
        }
    }

    /// Lets go of changes that are old: of some at once, the rest when this is called again.
    pub(super) fn age(&mut self, now: Instant) -> Gone {
        self.ring.age(now)
    }

    /// Whether the ring has everything after this revision.
    pub(crate) fn reaches(&self, revision: Revision) -> bool {
        revision >= self.ring.base()
    }

    /// Every change after this is known.
    pub(crate) fn oldest(&self) -> Revision {
        self.ring.base()
    }

    /// Adds a watcher. `replay`: it stands at an earlier revision that the ring reaches; else at
    /// the present one.
    pub(crate) fn subscribe(
        &mut self,
        filter: Filter,
        start: Start,
        replay: bool,
    ) -> (u64, Arc<Wake>) {
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
            Selection::Prefix(prefix) => {
                self.by_prefix.add(&filter.namespace, prefix, id);
            }
        }
        let all = Backlog::Replay { from: Revision(0) };
        let backlog = if replay { all } else { Backlog::Queued(VecDeque::new()) };
        let wake = Arc::new(Wake::default());
        wake.call();
        let taken = start.at;
        self.watchers.insert(id, Watcher { filter, backlog, wake: wake.clone(), start, taken });
        (id, wake)
    }

    pub(super) fn unsubscribe(&mut self, id: u64) {
        let Some(watcher) = self.watchers.remove(&id) else { return };
        match watcher.filter.selection {
            Selection::Services(names) => {
                for name in names {
                    let namespace = watcher.filter.namespace.clone();
                    let key = ServiceKey { namespace, name };
                    if remove_id(self.by_service.get_mut(&key), id) {
                        self.by_service.remove(&key);
                    }
                }
            }
            Selection::Prefix(prefix) => {
                self.by_prefix.remove(&watcher.filter.namespace, &prefix, id);
            }
        }
    }

    /// A watcher that the ring does not reach back to begins anew: what comes from now on is
    /// queued.
    pub(super) fn begin_anew(&mut self, id: u64) {
        if let Some(watcher) = self.watchers.get_mut(&id) {
            watcher.backlog = Backlog::Queued(VecDeque::new());
        }
    }

    /// What a watcher that has taken everything up to `position` is to take next; `now` is the
    /// state's revision.
    pub(crate) fn take(&mut self, id: u64, position: Revision, now: Revision) -> Batch {
        let nothing = Batch::Changes { events: Vec::new(), upto: now };
        let Some(watcher) = self.watchers.get_mut(&id) else { return nothing };
        let (from, coalesce) = match &mut watcher.backlog {
            Backlog::Queued(queue) => {
                let events: Vec<_> = queue.drain(..queue.len().min(BATCH_MAX)).collect();
                let more = !queue.is_empty();
                let upto = events.last().filter(|_| more).map_or(now, |last| last.event.revision);
                if more {
                    watcher.wake.call();
                }
                return Batch::Changes { events, upto };
            }
            Backlog::Replay { from } => (*from, false),
            Backlog::Coalesce { from } => (*from, true),
        };
        let position = position.max(from);
        if position < self.ring.base() {
            self.counts.resets += 1;
            return Batch::Lost;
        }
        let (events, last) = self.ring.after(position, BATCH_MAX);
        if last {
            watcher.backlog = Backlog::Queued(VecDeque::new());
        } else {
            watcher.wake.call();
        }
        let upto = events.last().filter(|_| !last).map_or(now, |last| last.event.revision);
        watcher.taken = upto;
        Batch::Ring { events, upto, coalesce, last }
    }
}

impl Watcher {
    fn shown(&self, now: Revision) -> Follower {
        let (sent, queued, behind) = match &self.backlog {
            Backlog::Queued(queue) => {
                (queue.front().map_or(now, |it| before(it)), queue.len(), false)
            }
            Backlog::Replay { from } | Backlog::Coalesce { from } => {
                (self.taken.max(*from), 0, true)
            }
        };
        let prefix = match &self.filter.selection {
            Selection::Services(_) => None,
            Selection::Prefix(prefix) => Some(prefix.clone()),
        };
        let Start { from, at: since } = self.start;
        Follower { from, prefix, since, sent, queued, behind }
    }

    /// Another change that it sees. Whether that is one too many for its queue.
    fn queue(&mut self, event: &Arc<SharedEvent>, wakes: &mut Vec<Arc<Wake>>) -> bool {
        self.wake_if_idle(wakes);
        let Backlog::Queued(queue) = &mut self.backlog else { return false };
        if queue.len() < QUEUE_MAX {
            queue.push_back(event.clone());
            return false;
        }
        self.backlog = Backlog::Coalesce { from: before(queue.front().unwrap_or(event)) };
        true
    }

    /// Other changes that it may see, from this one on.
    fn replay(&mut self, event: &Arc<SharedEvent>, wakes: &mut Vec<Arc<Wake>>) {
        self.wake_if_idle(wakes);
        if let Backlog::Queued(queue) = &self.backlog {
            self.backlog = Backlog::Replay { from: before(queue.front().unwrap_or(event)) };
        }
    }

    /// Wakes it when this is the first that it has to take; until it has, another wake would be in
    /// vain.
    fn wake_if_idle(&self, wakes: &mut Vec<Arc<Wake>>) {
        if matches!(&self.backlog, Backlog::Queued(queue) if queue.is_empty()) {
            wakes.push(self.wake.clone());
        }
    }
}

/// Removes an id; whether none is left.
fn remove_id(ids: Option<&mut Vec<u64>>, id: u64) -> bool {
    ids.is_some_and(|ids| {
        ids.retain(|other| *other != id);
        ids.is_empty()
    })
}

fn before(shared: &SharedEvent) -> Revision {
    Revision(shared.event.revision.0 - 1)
}

#[cfg(test)]
pub(super) mod tests;
