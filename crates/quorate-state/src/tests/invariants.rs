//! What must hold of a registry after every command, found by scanning all of it.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use crate::Clock;
use crate::Health;
use crate::Instance;
use crate::InstanceKey;
use crate::LeaseId;
use crate::Registry;
use crate::Revision;
use crate::ServiceKey;
use crate::hash::{Kind, StateHash};
use crate::registry::leases::{EMPTY_SERVICE_MS, EMPTY_SERVICES_MAX};
use crate::registry::nodes::REMOVED_MAX;
use crate::registry::replies::{
    Done, ORIGIN_MS, ORIGINS_MAX, REPLIES_IN_ALL_MAX, REPLIES_MAX, USED_STEP_MS,
};
use crate::registry::size::{instance_bytes, service_bytes};
use crate::tables::deadlines::{Deadlines, Due};
use crate::tables::name_ends::NameEnds;

#[track_caller]
pub(super) fn check_invariants(registry: &Registry) {
    check_leases(registry);
    check_services(registry);
    check_replies(registry);
    assert_eq!(registry.deadlines, deadlines(registry), "the deadline index");
    assert_eq!(registry.dependents, dependents(registry), "the index of dependents");
    assert_eq!(registry.checked, checked(registry), "the index of those with checks");
    assert_eq!(registry.name_ends, name_ends(registry), "the index of what names end in");
    assert_eq!(registry.hash, hash(registry), "the running hash");
    assert_eq!(registry.bytes(), bytes(registry), "the size");
    assert!(registry.removed.len() <= REMOVED_MAX);
    let mut behind = 0;
    for (last, removed) in &registry.removed {
        assert!(behind < removed.first && removed.first <= *last && *last == removed.last);
        behind = *last;
    }
    for (key, tombstone) in &registry.tombstones {
        let held = registry.instance(key).map(|instance| instance.incarnation);
        assert!(held.is_none_or(|held| held > tombstone.incarnation), "{key} is dead and alive");
    }
}

/// Nothing is there whose time is over: when no more is due, for nothing waits for its turn.
#[track_caller]
pub(super) fn check_nothing_is_late(registry: &Registry) {
    let clock = registry.clock;
    assert!(registry.next_deadline().is_none_or(|deadline| deadline > clock));
    assert!(registry.leases.values().all(|lease| lease.deadline > clock), "a lease is late");
    assert!(registry.tombstones.values().all(|t| t.until > clock), "a tombstone is late");
    let mut empty = registry.services.values().filter_map(|service| service.empty_since);
    assert!(empty.all(|since| since.plus_ms(EMPTY_SERVICE_MS) > clock), "a service is late");
    let mut origins = registry.replies.origins();
    let until = |used: Clock| used.plus_ms(USED_STEP_MS).plus_ms(ORIGIN_MS);
    assert!(origins.all(|origin| until(origin.used) > clock), "an origin is late");
}

/// Each instance is kept by one lease that lists it, no lease is empty.
#[track_caller]
fn check_leases(registry: &Registry) {
    for lease in registry.leases.values() {
        let id = &lease.id;
        assert!((1..=registry.last_lease).contains(&lease.id.0), "{id:?} was never given out");
        assert!(lease.renewed <= registry.clock, "{id:?} was renewed in the future");
        let ttl = lease.ttl.as_ms();
        assert!(lease.deadline >= lease.renewed.plus_ms(ttl), "{id:?} lives shorter than its TTL");
        assert!(lease.deadline <= lease.renewed.plus_ms(2 * ttl), "{id:?} got unbounded grace");
        assert!(!lease.instances.is_empty(), "{id:?} keeps nothing");
        let listed: Vec<_> = lease.instances.iter().cloned().collect();
        assert_eq!(listed, instances_of(registry, *id), "what {id:?} lists");
        assert_eq!(listed.len(), lease.instances.len());
    }
    for service in registry.services.values() {
        for instance in service.instances.values() {
            assert!(registry.lease(instance.lease).is_some(), "{} has no lease", instance.key);
        }
    }
}

fn instances_of(registry: &Registry, lease: LeaseId) -> Vec<InstanceKey> {
    let all = registry.services.values().flat_map(|service| service.instances.values());
    all.filter(|instance| instance.lease == lease).map(|instance| instance.key.clone()).collect()
}

#[track_caller]
fn check_services(registry: &Registry) {
    let mut instances = 0;
    let mut revisions = std::collections::BTreeSet::new();
    for (key, service) in &registry.services {
        assert_eq!(service.instances.is_empty(), service.empty_since.is_some(), "{key} empty?");
        assert!(service.revision > Revision(0) && service.revision <= registry.revision);
        for (id, instance) in service.instances.iter() {
            assert_eq!((key, id), (&instance.key.service, &instance.key.id), "stands elsewhere");
            assert_eq!(instance.overridden.as_deref(), registry.overrides.get(&instance.key));
            assert!(instance.created > Revision(0) && instance.created <= instance.modified);
            assert!(instance.modified <= service.revision, "{key} changed without notice");
            let found = instance.found.as_ref();
            assert!(found.is_none() || instance.checks().is_some(), "{key}: found by no check");
            assert!(found.is_none_or(|found| found.health != Health::Unknown), "{key}");
            assert!(revisions.insert(instance.modified), "two changes with one revision");
        }
        instances += service.instances.len();
    }
    let empty = registry.services.values().filter(|service| service.empty_since.is_some());
    assert!(empty.count() <= EMPTY_SERVICES_MAX);
    assert!(registry.forgotten <= registry.revision);
    assert_eq!(registry.counts().instances, instances);
    assert_eq!(registry.counts().services, registry.services.len());
    assert_eq!(registry.counts().leases, registry.leases.len());
}

/// Each reply is one of a known origin that may still need it.
#[track_caller]
fn check_replies(registry: &Registry) {
    let origins: Vec<_> = registry.replies.origins().copied().collect();
    assert!(origins.len() <= ORIGINS_MAX);
    assert!(registry.replies.done().count() <= REPLIES_IN_ALL_MAX + origins.len());
    let mut forgotten = registry.replies.forgotten.iter();
    assert!(forgotten.all(|last| last.plus_ms(ORIGIN_MS) <= registry.clock), "too early");
    for origin in &origins {
        let kept = registry.replies.done().filter(|done| done.origin == origin.id);
        let numbers: Vec<_> = kept.map(|done| done.number).collect();
        assert!(numbers.len() == origin.kept && numbers.len() <= REPLIES_MAX, "{origin:?}");
        assert!(numbers.iter().all(|number| *number >= origin.done_below), "{origin:?}");
        assert!(origin.begun <= origin.used && origin.used <= registry.clock, "{origin:?}");
    }
    let known = |done: &Arc<Done>| origins.iter().any(|origin| origin.id == done.origin);
    assert!(registry.replies.done().all(known), "a reply without its origin");
    assert_eq!(registry.replies, registry.replies.recounted(), "what is counted of replies");
}

fn deadlines(registry: &Registry) -> Deadlines {
    let leases = registry.leases.values().map(|lease| (lease.deadline, Due::Lease(lease.id)));
    let tombstones =
        registry.tombstones.iter().map(|(key, t)| (t.until, Due::Tombstone(key.clone())));
    let services = registry.services.iter().filter_map(|(key, service)| {
        let until = service.empty_since?.plus_ms(EMPTY_SERVICE_MS);
        Some((until, Due::EmptyService(key.clone())))
    });
    let mut all = Deadlines::default();
    let origins = registry.replies.origins().map(|origin| {
        let until = origin.used.plus_ms(USED_STEP_MS).plus_ms(ORIGIN_MS);
        (until, Due::Origin(origin.id))
    });
    let each = leases.chain(tombstones).chain(services).chain(origins);
    each.for_each(|(at, due)| all.insert(at, due));
    all
}

fn dependents(registry: &Registry) -> OrdSet<(ServiceKey, InstanceKey)> {
    let mut dependents = OrdSet::new();
    for instance in registry.services.values().flat_map(|service| service.instances.values()) {
        for name in instance.spec.requires() {
            let namespace = instance.key.service.namespace.clone();
            let required = ServiceKey { namespace, name: name.clone() };
            dependents.insert((required, instance.key.clone()));
        }
    }
    dependents
}

fn name_ends(registry: &Registry) -> NameEnds {
    let mut ends = NameEnds::default();
    registry.services.keys().for_each(|key| ends.add(key));
    ends
}

fn checked(registry: &Registry) -> OrdMap<InstanceKey, Arc<Instance>> {
    let all = registry.services.values().flat_map(|service| service.instances.values());
    let checked = all.filter(|instance| instance.checks().is_some());
    checked.map(|instance| (instance.key.clone(), instance.clone())).collect()
}

fn bytes(registry: &Registry) -> usize {
    let used = registry.services.iter().filter(|(_, service)| !service.instances.is_empty());
    used.map(|(key, service)| {
        let instances = service.instances.values().map(|instance| instance_bytes(instance));
        service_bytes(key) + instances.sum::<usize>()
    })
    .sum()
}

fn hash(registry: &Registry) -> StateHash {
    let mut hash = StateHash::default();
    for (key, service) in &registry.services {
        hash.add(Kind::Service, &(key, service.revision, service.empty_since));
        for instance in service.instances.values() {
            hash.add(Kind::Instance, instance);
        }
    }
    for lease in registry.leases.values() {
        hash.add(Kind::Lease, lease);
    }
    for (key, value) in &registry.overrides {
        hash.add(Kind::Override, &(key, value));
    }
    for tombstone in registry.tombstones.values() {
        hash.add(Kind::Tombstone, tombstone);
    }
    for origin in registry.replies.origins() {
        hash.add(Kind::Origin, &origin.hashed());
        hash.add_mark(origin.id, origin.done_below);
    }
    registry.replies.done().for_each(|done| hash.add(Kind::Done, &**done));
    registry.removed.values().for_each(|removed| hash.add(Kind::RemovedNodes, removed));
    hash
}
