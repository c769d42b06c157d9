//! [`View`]: what a watch knows, as an immutable value, and what changes from one to the next.
//! Knows nothing of streams.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use quorate_proto::ClusterId;
use quorate_proto::v1::{Change, ChangeKind, Instance, RemoveReason, Service};

use super::WatchEvent;

type Instances = BTreeMap<String, Arc<Instance>>;

/// All instances that a watch covers, as of one revision. It never changes; the watch has a new one
/// after each change.
///
/// An example is at [`crate::Watch`].
#[derive(Debug, Clone, Default)]
pub struct View {
    synced: bool,
    revision: u64,
    cluster_id: Option<ClusterId>,
    /// Services with at least one instance.
    services: BTreeMap<String, Arc<Instances>>,
}

impl View {
    /// False until the first snapshot is there: nothing is known yet, and empty means nothing.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// The revision that it shows.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The cluster that it is of; `None` until the first snapshot is there.
    pub fn cluster_id(&self) -> Option<ClusterId> {
        self.cluster_id
    }

    /// The number of instances.
    pub fn len(&self) -> usize {
        self.services.values().map(|instances| instances.len()).sum()
    }

    /// Whether there is no instance.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// The names of the services with instances, ordered.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        self.services.keys().map(String::as_str)
    }

    /// The instances of a service, ordered by id.
    pub fn instances(&self, service: &str) -> impl Iterator<Item = &Arc<Instance>> {
        self.services.get(service).into_iter().flat_map(|instances| instances.values())
    }

    /// All instances, ordered by service and id.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Instance>> {
        self.services.values().flat_map(|instances| instances.values())
    }

    /// One instance.
    pub fn get(&self, service: &str, id: &str) -> Option<&Arc<Instance>> {
        self.services.get(service)?.get(id)
    }

    /// It now shows this position.
    pub(super) fn move_to(&mut self, revision: u64, cluster_id: Option<ClusterId>) {
        self.synced = true;
        self.revision = revision;
        self.cluster_id = cluster_id;
    }

    /// Takes a whole snapshot; returns the difference.
    pub(super) fn replace(&mut self, parts: Vec<Service>) -> Vec<WatchEvent> {
        let mut fresh: BTreeMap<String, Instances> = BTreeMap::new();
        for instance in parts.into_iter().flat_map(|service| service.instances) {
            let service = fresh.entry(instance.service.clone()).or_default();
            service.insert(instance.id.clone(), Arc::new(instance));
        }
        let mut events = Vec::new();
        for gone in self.iter() {
            let still = fresh.get(&gone.service).is_some_and(|left| left.contains_key(&gone.id));
            if !still {
                let (instance, reason) = (gone.clone(), RemoveReason::Unspecified);
                events.push(WatchEvent::Removed { instance, reason, revision: 0 });
            }
        }
        for instance in fresh.values_mut().flat_map(|instances| instances.values_mut()) {
            match self.get(&instance.service, &instance.id) {
                Some(known) if known == instance => *instance = known.clone(),
                Some(_) => events.push(WatchEvent::Modified(instance.clone())),
                None => events.push(WatchEvent::Added(instance.clone())),
            }
        }
        self.services = fresh.into_iter().map(|(name, all)| (name, Arc::new(all))).collect();
        events
    }

    /// Takes changes in their order; returns the ones that changed something here. A change that
    /// says nothing is passed over: it must stop neither this nor the ones after it.
    pub(super) fn apply(&mut self, changes: Vec<Change>) -> Vec<WatchEvent> {
        let mut events = Vec::new();
        for change in changes {
            let (kind, reason, revision) = (change.kind(), change.reason(), change.revision);
            let Some(instance) = change.instance else {
                tracing::warn!(revision, "a change without an instance was passed over");
                continue;
            };
            let event = match kind {
                ChangeKind::Added | ChangeKind::Modified => self.put(instance),
                ChangeKind::Removed => self.remove(&instance, reason, revision),
                ChangeKind::Unspecified => {
                    tracing::warn!(revision, "a change of an unknown kind was passed over");
                    None
                }
            };
            events.extend(event);
        }
        events
    }

    fn put(&mut self, instance: Instance) -> Option<WatchEvent> {
        let service = Arc::make_mut(self.services.entry(instance.service.clone()).or_default());
        let instance = Arc::new(instance);
        match service.insert(instance.id.clone(), instance.clone()) {
            Some(known) if known == instance => None,
            Some(_) => Some(WatchEvent::Modified(instance)),
            None => Some(WatchEvent::Added(instance)),
        }
    }

    fn remove(
        &mut self,
        gone: &Instance,
        reason: RemoveReason,
        revision: u64,
    ) -> Option<WatchEvent> {
        let service = Arc::make_mut(self.services.get_mut(&gone.service)?);
        let instance = service.remove(&gone.id)?;
        if service.is_empty() {
            self.services.remove(&gone.service);
        }
        Some(WatchEvent::Removed { instance, reason, revision })
    }
}

/// Events that wait for their reader, no more than one for each instance: a new one takes the place
/// of the one before it, so that what is lost to a slow reader is only what was outdated anyway.
/// Bounded by the instances that the reader has seen and the instances that there are.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    events: BTreeMap<u64, WatchEvent>,
    by_key: HashMap<Option<(String, String)>, u64>,
    next: u64,
}

impl Backlog {
    pub(crate) fn push(&mut self, event: WatchEvent) {
        let key = key(&event);
        let waiting = self.by_key.remove(&key).and_then(|at| self.events.remove(&at));
        let Some(event) = coalesce(waiting, event) else { return };
        self.events.insert(self.next, event);
        self.by_key.insert(key, self.next);
        self.next += 1;
    }

    pub(crate) fn pop(&mut self) -> Option<WatchEvent> {
        let (_, event) = self.events.pop_first()?;
        self.by_key.remove(&key(&event));
        Some(event)
    }
}

/// The instance that it is about; `None`: it is about all, and only the last of its kind counts.
fn key(event: &WatchEvent) -> Option<(String, String)> {
    let instance = match event {
        WatchEvent::Snapshot(_) | WatchEvent::Reset { .. } => return None,
        WatchEvent::Added(instance) | WatchEvent::Modified(instance) => instance,
        WatchEvent::Removed { instance, .. } => instance,
    };
    Some((instance.service.clone(), instance.id.clone()))
}

/// The event for a reader that has read neither of two events of an instance.
fn coalesce(waiting: Option<WatchEvent>, event: WatchEvent) -> Option<WatchEvent> {
    use WatchEvent::{Added, Modified, Removed};
    match (waiting, event) {
        (Some(Added(_)), Removed { .. }) => None,
        (Some(Added(_)), Modified(instance)) => Some(Added(instance)),
        (Some(Removed { .. }), Added(instance)) => Some(Modified(instance)),
        (_, event) => Some(event),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(id: &str, weight: u32) -> Instance {
        let (service, id) = ("s".to_owned(), id.to_owned());
        Instance { service, id, weight, ..Instance::default() }
    }

    fn change(kind: ChangeKind, id: &str, weight: u32) -> Change {
        let instance = Some(instance(id, weight));
        Change { kind: kind as i32, instance, ..Change::default() }
    }

    fn snapshot(instances: &[(&str, u32)]) -> Vec<Service> {
        let instances = instances.iter().map(|(id, weight)| instance(id, *weight)).collect();
        vec![Service { name: "s".to_owned(), instances, ..Service::default() }]
    }

    /// Events in short: "+a1" is "a was added with weight 1".
    fn short(events: &[WatchEvent]) -> String {
        let words = events.iter().map(|event| match event {
            WatchEvent::Snapshot(_) => "snapshot".to_owned(),
            WatchEvent::Reset { cluster_id, .. } => format!("reset{}", cluster_id.get()),
            WatchEvent::Added(i) => format!("+{}{}", i.id, i.weight),
            WatchEvent::Modified(i) => format!("~{}{}", i.id, i.weight),
            WatchEvent::Removed { instance, .. } => format!("-{}", instance.id),
        });
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_reset_tells_only_the_difference() {
        let mut view = View::default();
        view.replace(snapshot(&[("a", 1), ("b", 1), ("c", 1)]));
        let events = view.replace(snapshot(&[("b", 1), ("c", 2), ("d", 1)]));
        assert_eq!(short(&events), "-a ~c2 +d1");
        assert!(view.replace(snapshot(&[("b", 1), ("c", 2), ("d", 1)])).is_empty());
    }

    #[test]
    fn a_slow_reader_is_told_of_the_last_reset_only_and_before_what_follows_it() {
        let mut backlog = Backlog::default();
        let id = |number| ClusterId::new(number).unwrap();
        let reset = |number| WatchEvent::Reset { cluster_id: id(number), revision: 1 };
        let added = |id| WatchEvent::Added(Arc::new(instance(id, 1)));
        for event in [added("a"), reset(7), added("b"), reset(8), added("c")] {
            backlog.push(event);
        }
        let read: Vec<_> = std::iter::from_fn(|| backlog.pop()).collect();
        assert_eq!(short(&read), "+a1 +b1 reset8 +c1");
    }

    #[test]
    fn changes_that_change_nothing_are_not_told() {
        let mut view = View::default();
        use ChangeKind::{Added, Modified, Removed};
        let events = view.apply(vec![
            change(Modified, "a", 1),
            change(Added, "a", 1),
            change(Added, "a", 2),
            change(Removed, "b", 1),
            change(Removed, "a", 2),
        ]);
        assert_eq!(short(&events), "+a1 ~a2 -a");
        assert!(view.is_empty());
        assert_eq!(view.services().count(), 0, "a service without instances is gone"); // S0.16
    }

    #[test]
    fn a_poisoned_change_stops_nothing() {
        // S2.11
        let mut view = View::default();
        let unknown_kind = Change { kind: 99, ..change(ChangeKind::Added, "x", 1) };
        let empty = Change { kind: ChangeKind::Added as i32, ..Change::default() };
        let events = view.apply(vec![unknown_kind, empty, change(ChangeKind::Added, "a", 1)]);
        assert_eq!(short(&events), "+a1");
    }

    #[test]
    fn a_view_is_immutable() {
        let mut view = View::default();
        view.replace(snapshot(&[("a", 1)]));
        let before = view.clone();
        view.apply(vec![change(ChangeKind::Removed, "a", 1), change(ChangeKind::Added, "b", 1)]);
        assert!(before.get("s", "a").is_some() && before.get("s", "b").is_none());
    }

    /// Every sequence of changes comes to the same end through the backlog, whenever the reader
    /// reads. // S2.12
    #[test]
    fn a_slow_reader_sees_the_same_end() {
        use rand::{Rng, SeedableRng};
        for seed in 0..200 {
            let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
            let (mut truth, mut reader) = (View::default(), View::default());
            let mut backlog = Backlog::default();
            for _ in 0..60 {
                let id = ["a", "b", "c"][rng.random_range(0..3)];
                let kind = [ChangeKind::Added, ChangeKind::Modified, ChangeKind::Removed];
                let kind = kind[rng.random_range(0..3)];
                let changes = vec![change(kind, id, rng.random_range(0..3))];
                truth.apply(changes).into_iter().for_each(|event| backlog.push(event));
                assert!(backlog.events.len() <= 3, "one event for each instance at most");
                if rng.random_bool(0.2) {
                    read(&mut backlog, &mut reader);
                }
            }
            while read(&mut backlog, &mut reader) {}
            let all = |view: &View| view.iter().cloned().collect::<Vec<_>>();
            assert_eq!(all(&truth), all(&reader), "seed {seed}");
        }
    }

    /// Reads one event as an application would, which trusts every event: nothing added twice,
    /// nothing unknown removed.
    fn read(backlog: &mut Backlog, reader: &mut View) -> bool {
        let Some(event) = backlog.pop() else { return false };
        let known = |reader: &View, instance: &Instance| reader.get("s", &instance.id).is_some();
        match event {
            WatchEvent::Snapshot(_) | WatchEvent::Reset { .. } => unreachable!("none was put in"),
            WatchEvent::Added(instance) => {
                assert!(!known(reader, &instance), "added twice");
                reader.put((*instance).clone());
            }
            WatchEvent::Modified(instance) => {
                assert!(known(reader, &instance), "modified, but never added");
                reader.put((*instance).clone());
            }
            WatchEvent::Removed { instance, reason, revision } => {
                assert!(reader.remove(&instance, reason, revision).is_some(), "removed twice");
            }
        }
        true
    }
}
