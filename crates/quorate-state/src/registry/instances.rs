//! Instances in their services: putting in, changing, taking out, each with its event, revision and
//! indexes.
//!
//! Invariants: every change has the next revision and one event; what changes nothing makes
//! neither; the indexes, the count and the hash follow every change. Who may change what is decided
//! before (`registry.rs`, `registry/deregister.rs`).

use std::sync::Arc;

use crate::event::{Change, Event, RemoveReason};
use crate::hash::Kind;
use crate::registry::Registry;
use crate::registry::leases::{EMPTY_SERVICE_MS, EMPTY_SERVICES_MAX};
use crate::registry::size::{instance_bytes, service_bytes};
use crate::spec::{Instance, InstanceSpec};
use crate::tables::deadlines::Due;
use crate::tables::sorted_map::SortedMap;
use crate::types::{Clock, Incarnation, InstanceId, InstanceKey, LeaseId, Revision, ServiceKey};

/// One service, also for a while after its last instance left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    /// Its instances by id.
    pub instances: SortedMap<InstanceId, Arc<Instance>>,
    /// The last change to any of them.
    pub revision: Revision,
    /// When its last instance left; `None`: it has some. So many of these are known at most
    /// ([`EMPTY_SERVICES_MAX`]), the youngest.
    pub(crate) empty_since: Option<Clock>,
}

impl Registry {
    /// Makes the instance what is said here; nothing happens, and there is no event, where it is
    /// that already.
    pub(super) fn put_instance(
        &mut self,
        key: &InstanceKey,
        spec: InstanceSpec,
        incarnation: Incarnation,
        lease: LeaseId,
        events: &mut Vec<Arc<Event>>,
    ) {
        let before = self.instance(key).cloned();
        // What is known of the health belongs to a run of the process. A new run begins as UNKNOWN,
        // which callers take for callable (Consul begins as critical): it says by its status when
        // it is ready, its lease shows that it lives, and a restart of many instances must not
        // leave their callers without any until a leader has probed them. What its checks then find
        // takes it out.
        let same_run = before.as_ref().filter(|before| before.incarnation == incarnation);
        let found = same_run.filter(|_| spec.checks().is_some()).and_then(|it| it.found.clone());
        let next = Revision(self.revision.0 + 1);
        let after = Instance {
            key: before
                .as_ref()
                .map_or_else(|| self.with_known_names(key), |held| held.key.clone()),
            spec,
            incarnation,
            lease,
            created: before.as_ref().map_or(next, |before| before.created),
            modified: next,
            overridden: self.overrides.get(key).cloned().map(Box::new),
            found,
        };
        self.replace_instance(before, after, events);
    }

    /// Puts the instance in the place of what has its key now, with the next revision, if it
    /// differs.
    pub(super) fn replace_instance(
        &mut self,
        before: Option<Arc<Instance>>,
        mut after: Instance,
        events: &mut Vec<Arc<Event>>,
    ) {
        if let Some(before) = &before {
            after.modified = before.modified;
            if **before == after {
                return;
            }
        }
        let next = Revision(self.revision.0 + 1);
        after.modified = next;
        self.revision = next;
        let after = Arc::new(after);
        if let Some(before) = &before {
            self.unindex_instance(before);
            if before.lease != after.lease {
                self.detach(before.lease, &after.key);
            }
        }
        self.index_instance(&after);
        let instance = (after.key.id.clone(), after.clone());
        self.change_service(&after.key.service, next, |instances| {
            instances.insert(instance.0, instance.1)
        });
        let change = match before {
            None => Change::Added { after },
            Some(before) => Change::Modified { before, after },
        };
        events.push(Arc::new(Event { revision: next, change }));
    }

    /// The same key with the names that its service has already: all instances of a service share
    /// one copy of them.
    pub(crate) fn with_known_names(&self, key: &InstanceKey) -> InstanceKey {
        let known = self.services.get_key_value(&key.service);
        let service = known.map_or(&key.service, |(known, _)| known).clone();
        InstanceKey { service, id: key.id.clone() }
    }

    /// Takes an instance out, for a reason that the event names; its lease still lists it.
    pub(super) fn remove_instance(
        &mut self,
        key: &InstanceKey,
        reason: RemoveReason,
        events: &mut Vec<Arc<Event>>,
    ) {
        let Some(before) = self.instance(key).cloned() else { return };
        self.unindex_instance(&before);
        self.revision = Revision(self.revision.0 + 1);
        self.change_service(&key.service, self.revision, |instances| instances.remove(&key.id));
        let change = Change::Removed { before, reason };
        events.push(Arc::new(Event { revision: self.revision, change }));
    }

    pub(crate) fn insert_instance(&mut self, instance: Arc<Instance>) {
        self.index_instance(&instance);
        let key = &instance.key;
        let Some(service) = self.known_service(&key.service) else { return };
        let is_first = service.instances.is_empty();
        service.instances.insert(key.id.clone(), instance.clone());
        if is_first {
            self.bytes += service_bytes(&key.service);
        }
    }

    /// Puts an instance into everything but its service.
    fn index_instance(&mut self, instance: &Arc<Instance>) {
        self.hash.add(Kind::Instance, instance);
        self.instances += 1;
        self.bytes += instance_bytes(instance);
        let key = &instance.key;
        if instance.checks().is_some() {
            self.checked.insert(key.clone(), instance.clone());
        }
        for target in required(instance) {
            self.dependents.insert((target, key.clone()));
        }
        if let Some(lease) = self.leases.get_mut(instance.lease) {
            lease.instances.insert(key.clone());
        }
    }

    /// Takes an instance out of everything but its service and its lease, where the next one takes
    /// its place.
    fn unindex_instance(&mut self, instance: &Arc<Instance>) {
        self.hash.remove(Kind::Instance, instance);
        self.instances -= 1;
        self.bytes -= instance_bytes(instance);
        let key = &instance.key;
        if instance.checks().is_some() {
            self.checked.remove(key);
        }
        for target in required(instance) {
            self.dependents.remove(&(target, key.clone()));
        }
    }

    /// Changes a service's instances with this revision, and notes whether that leaves it empty:
    /// then another one may be forgotten. A new one is made.
    fn change_service<T>(
        &mut self,
        key: &ServiceKey,
        revision: Revision,
        change: impl FnOnce(&mut SortedMap<InstanceId, Arc<Instance>>) -> T,
    ) {
        let now = self.clock;
        let Some(service) = self.known_service(key) else { return };
        let was_empty = service.instances.is_empty();
        change(&mut service.instances);
        let is_empty = service.instances.is_empty();
        let before = (service.revision, service.empty_since);
        let empty_since = is_empty.then_some(now);
        (service.revision, service.empty_since) = (revision, empty_since);
        match (was_empty, is_empty) {
            (true, false) => self.bytes += service_bytes(key),
            (false, true) => self.bytes -= service_bytes(key),
            _ => {}
        }
        self.unindex_service(key, before);
        self.index_service(key, (revision, empty_since));
        if let Some(longest) = self.deadlines.empty_service_beyond(EMPTY_SERVICES_MAX).cloned() {
            self.forget_service(&longest);
        }
    }

    /// A new one is made.
    fn known_service(&mut self, key: &ServiceKey) -> Option<&mut Service> {
        if !self.services.contains_key(key) {
            self.name_ends.add(key);
            self.services.insert(key.clone(), Service::default());
        }
        self.services.get_mut(key)
    }

    pub(crate) fn insert_service(&mut self, key: ServiceKey, service: Service) {
        self.index_service(&key, (service.revision, service.empty_since));
        self.name_ends.add(&key);
        self.services.insert(key, service);
    }

    pub(super) fn forget_service(&mut self, key: &ServiceKey) {
        if let Some(service) = self.services.remove(key) {
            self.unindex_service(key, (service.revision, service.empty_since));
            self.name_ends.remove(key);
            self.forgotten = self.forgotten.max(service.revision);
        }
    }

    fn index_service(&mut self, key: &ServiceKey, record: (Revision, Option<Clock>)) {
        let (revision, empty_since) = record;
        self.hash.add(Kind::Service, &(key, revision, empty_since));
        if let Some(since) = empty_since {
            let due = Due::EmptyService(key.clone());
            self.deadlines.insert(since.plus_ms(EMPTY_SERVICE_MS), due);
        }
    }

    fn unindex_service(&mut self, key: &ServiceKey, record: (Revision, Option<Clock>)) {
        let (revision, empty_since) = record;
        if revision != Revision(0) {
            self.hash.remove(Kind::Service, &(key, revision, empty_since));
        }
        if let Some(since) = empty_since {
            let due = Due::EmptyService(key.clone());
            self.deadlines.remove(since.plus_ms(EMPTY_SERVICE_MS), due);
        }
    }
}

fn required(instance: &Instance) -> impl Iterator<Item = ServiceKey> {
    let namespace = &instance.key.service.namespace;
    let names = instance.spec.requires();
    names.map(|name| ServiceKey { namespace: namespace.clone(), name })
}
