//! What the tests of the hub work with.

use quorate_state::{
    Command, Incarnation, InstanceId, InstanceKey, InstanceRef, InstanceSpec, Op, Register,
    Registry, SpecParts, Update,
};

use super::*;

/// A registry with one instance of about this size.
pub(in crate::applied) fn registry(bytes: usize) -> (Registry, InstanceKey) {
    let name = ServiceName::new("service", "web").unwrap();
    let service = ServiceKey { namespace: Namespace::default(), name };
    let key = InstanceKey { service, id: InstanceId::new("id", "a").unwrap() };
    let parts = SpecParts {
        endpoints: [("http".to_owned(), "http://10.0.0.1:80".to_owned())].into(),
        metadata: [("large".to_owned(), "x".repeat(bytes))].into(),
        ..SpecParts::default()
    };
    let instances = vec![(key.clone(), InstanceSpec::new("", parts).unwrap())];
    let incarnation = Some(Incarnation(1));
    let register = Register { lease: None, ttl: None, incarnation, instances, within: None };
    let mut registry = Registry::new();
    let clock = registry.clock();
    registry.apply(&Command::new(clock, Op::Register(register)));
    (registry, key)
}

pub(in crate::applied) fn weigh(
    registry: &mut Registry,
    key: &InstanceKey,
    weight: u32,
) -> Vec<Arc<Event>> {
    let target = InstanceRef { key: key.clone(), incarnation: None };
    let op = Op::Update(Update { weight: Some(weight), ..Update::of(target) });
    let clock = registry.clock();
    registry.apply(&Command::new(clock, op)).events
}
