//! What a change costs the watch hub, under the lock that commands are applied under: `cargo bench
//! -p quorate-node`. Figures are in docs/performance.md.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use divan::Bencher;
use quorate_state::{
    Command, Event, Incarnation, InstanceId, InstanceKey, InstanceRef, InstanceSpec, Namespace, Op,
    Register, Registry, ServiceKey, ServiceName, SpecParts, Update,
};

use self::applied::hub::{Batch, Filter, Hub, Selection, Start};

#[allow(dead_code, unused_imports, reason = "the hub's own; the node uses the rest")]
#[path = "../src/applied"]
mod applied {
    pub(crate) mod hub;
    mod ring;
    pub(crate) mod shared_event;
    pub(crate) mod wake;
    pub(crate) mod wire_size;
}

fn main() {
    divan::main();
}

/// Few where each runs only once, unoptimised, to see that it works.
const WATCHERS: u64 = if cfg!(debug_assertions) { 100 } else { 10_000 };
const RING: usize = 100_000;
const RING_BYTES: usize = 64 * 1024 * 1024;

fn service(number: u64) -> ServiceName {
    ServiceName::new("service", &format!("service-{number}")).expect("is a name")
}

/// One instance of 350 bytes, of service 0, and a hub.
struct Scene {
    registry: Registry,
    key: InstanceKey,
    weight: u32,
    hub: Hub,
    watchers: Vec<u64>,
}

impl Scene {
    fn new(select: impl Fn(u64) -> Selection) -> Self {
        let service = ServiceKey { namespace: Namespace::default(), name: service(0) };
        let id = InstanceId::new("id", "instance").expect("is a name");
        let key = InstanceKey { service, id };
        let parts = SpecParts {
            endpoints: BTreeMap::from([("http".to_owned(), "http://10.0.0.1:8080".to_owned())]),
            metadata: BTreeMap::from([("value".to_owned(), "x".repeat(256))]),
            ..SpecParts::default()
        };
        let spec = InstanceSpec::new("instance", parts).expect("is within the limits");
        let instances = vec![(key.clone(), spec)];
        let incarnation = Some(Incarnation(1));
        let register = Register { lease: None, ttl: None, incarnation, instances, within: None };
        let mut registry = Registry::new();
        let clock = registry.clock();
        registry.apply(&Command::new(clock, Op::Register(register)));
        let mut hub = Hub::new(RING, RING_BYTES);
        hub.restart(registry.revision());
        let start = Start { from: None, at: registry.revision() };
        let subscribe = |number| {
            let namespace = Namespace::default();
            let selection = select(number);
            hub.subscribe(Filter::all_of(namespace, selection), start, false).0
        };
        let watchers = (0..WATCHERS).map(subscribe).collect();
        Self { registry, key, weight: 0, hub, watchers }
    }

    /// Another change, when every watcher has taken the one before.
    fn change(&mut self) -> Vec<Arc<Event>> {
        self.take_all();
        self.weight = (self.weight + 1) % 1_000;
        let target = InstanceRef { key: self.key.clone(), incarnation: None };
        let op = Op::Update(Update { weight: Some(self.weight), ..Update::of(target) });
        let clock = self.registry.clock();
        self.registry.apply(&Command::new(clock, op)).events
    }

    /// How many are to be woken.
    fn publish(&mut self, events: Vec<Arc<Event>>) -> usize {
        self.hub.publish(events);
        self.hub.take_wakes().len()
    }

    /// How many changes there were to take.
    fn take_all(&mut self) -> usize {
        let now = self.registry.revision();
        let mut taken = 0;
        for id in &self.watchers {
            let Batch::Changes { events, .. } = self.hub.take(*id, now, now) else {
                panic!("a watcher fell behind");
            };
            taken += events.len();
        }
        taken
    }
}

fn publish(bencher: Bencher<'_, '_>, select: impl Fn(u64) -> Selection, concerned: u64) {
    let scene = RefCell::new(Scene::new(select));
    let events = scene.borrow_mut().change();
    assert_eq!(scene.borrow_mut().publish(events) as u64, concerned);
    assert_eq!(scene.borrow_mut().take_all() as u64, concerned);
    bencher
        .with_inputs(|| scene.borrow_mut().change())
        .bench_local_values(|events| scene.borrow_mut().publish(events));
}

/// Each of 10,000 watchers sees it.
#[divan::bench(sample_size = 1)]
fn to_all_of_a_namespace(bencher: Bencher<'_, '_>) {
    publish(bencher, |_| Selection::Prefix(String::new()), WATCHERS);
}

/// The same, each by the name of the service.
#[divan::bench(sample_size = 1)]
fn to_all_of_a_service(bencher: Bencher<'_, '_>) {
    publish(bencher, |_| Selection::Services(BTreeSet::from([service(0)])), WATCHERS);
}

/// One of 10,000 watchers sees it; each watches a service of its own.
#[divan::bench(sample_size = 1)]
fn to_one_of_many(bencher: Bencher<'_, '_>) {
    publish(bencher, |number| Selection::Services(BTreeSet::from([service(number)])), 1);
}

/// The same by prefix.
#[divan::bench(sample_size = 1)]
fn to_one_of_many_prefixes(bencher: Bencher<'_, '_>) {
    publish(bencher, |number| Selection::Prefix(format!("service-{number}")), 1);
}
