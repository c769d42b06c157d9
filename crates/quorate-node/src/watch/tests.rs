//! What the hub keeps, and for how long.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quorate_state::{
    Command, Incarnation, InstanceId, InstanceRef, InstanceSpec, Op, Register, Registry, SpecParts,
    Update,
};

use super::*;

/// A registry with one instance of about this size.
fn registry(bytes: usize) -> (Registry, InstanceKey) {
    let name = ServiceName::new("service", "web").unwrap();
    let service = ServiceKey { namespace: Namespace::default(), name };
    let key = InstanceKey { service, id: InstanceId::new("id", "a").unwrap() };
    let parts = SpecParts {
        endpoints: [("http".to_owned(), "http://10.0.0.1:80".to_owned())].into(),
        zone: String::new(),
        version: String::new(),
        weight: None,
        status: Status::Up,
        metadata: BTreeMap::from([("large".to_owned(), "x".repeat(bytes))]),
        requires: BTreeSet::default(),
    };
    let instances = vec![(key.clone(), InstanceSpec::new("", parts).unwrap())];
    let incarnation = Some(Incarnation(1));
    let register = Register { lease: None, ttl: None, incarnation, instances };
    let mut registry = Registry::new();
    let clock = registry.clock();
    registry.apply(&Command { clock, op: Op::Register(register) });
    (registry, key)
}

fn weigh(registry: &mut Registry, key: &InstanceKey, weight: u32) -> Vec<Arc<Event>> {
    let target = InstanceRef { key: key.clone(), incarnation: None };
    let (status, metadata) = (None, None);
    let op = Op::Update(Update { target, status, weight: Some(weight), metadata });
    let clock = registry.clock();
    registry.apply(&Command { clock, op }).events
}

/// Whether it keeps what it is asked to encode.
fn keeps_encodings(shared: &SharedEvent) -> bool {
    shared.encoded(View::Added, || Bytes::from_static(b"first"));
    shared.encoded(View::Added, || Bytes::from_static(b"second")) == "first"
}

#[test]
fn encodings_are_kept_of_the_latest_changes_only() {
    let (mut registry, key) = registry(12_000);
    // At first the ring holds more than encodings are kept of, then less.
    for ring_bytes_max in [2 * ENCODED_MAX, ENCODED_MAX / 2] {
        let mut hub = Hub::new(100_000, ring_bytes_max);
        hub.restart(registry.revision());
        for weight in 0..3_000 {
            hub.publish(weigh(&mut registry, &key, weight));
        }
        let kept: Vec<_> = hub.ring.iter().map(|shared| keeps_encodings(shared)).collect();
        let from = kept.iter().position(|kept| *kept).unwrap();
        assert!(kept[from..].iter().all(|kept| *kept), "of the latest ones");
        let bytes: usize = hub.ring.iter().skip(from).map(|shared| shared.bytes).sum();
        assert_eq!((hub.encoded_from, hub.encoded_bytes), (from, bytes));
        let wanted = ring_bytes_max.min(ENCODED_MAX);
        assert!(bytes <= wanted && bytes > wanted - 20_000, "{bytes}");
    }
}
