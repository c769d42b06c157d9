//! How a registry is read: nothing here changes it or looks at any clock but its own.

use std::num::NonZeroU64;
use std::ops::Bound;
use std::sync::Arc;

use crate::level::Level;
use crate::registry::Registry;
use crate::registry::instances::Service;
use crate::spec::{Instance, Override};
use crate::types::{
    Clock, Incarnation, InstanceId, InstanceKey, Namespace, Revision, ServiceKey, ServiceName,
};

/// How much is in a registry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Services with instances, or known to have had some a while ago.
    pub services: usize,
    /// Instances.
    pub instances: usize,
    /// Leases.
    pub leases: usize,
    /// Instances with an override, registered or not.
    pub overrides: usize,
}

impl Registry {
    /// Whose state this is; `None`: of a cluster that was not founded yet.
    pub fn cluster_id(&self) -> Option<NonZeroU64> {
        self.cluster_id
    }

    /// What formats write for its cluster; 0 stands for none there.
    pub(crate) fn cluster_number(&self) -> u64 {
        self.cluster_id.map_or(0, NonZeroU64::get)
    }

    /// What its log and snapshots may hold.
    pub fn level(&self) -> Level {
        self.level
    }

    /// What time it is in the registry.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// The last change.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// A hash of the whole state: equal on every node that applied the same log.
    pub fn hash(&self) -> u64 {
        let Self { clock, revision, last_lease, forgotten, .. } = *self;
        let (cluster_id, forgotten_origins) = (self.cluster_number(), self.replies.forgotten);
        let head = (clock, revision, last_lease, forgotten, forgotten_origins, cluster_id);
        // What a new cluster does not have changes no hash.
        match (&*self.predecessors, self.level == Level::default()) {
            ([], true) => self.hash.with_head(&head),
            (predecessors, true) => self.hash.with_head(&(head, predecessors)),
            (predecessors, false) => self.hash.with_head(&(head, predecessors, self.level)),
        }
    }

    /// How much there is.
    pub fn counts(&self) -> Counts {
        Counts {
            services: self.services.len(),
            instances: self.instances,
            leases: self.leases.len(),
            overrides: self.overrides.len(),
        }
    }

    /// One instance.
    pub fn instance(&self, key: &InstanceKey) -> Option<&Arc<Instance>> {
        self.services.get(&key.service)?.instances.get(&key.id)
    }

    /// The highest run that is known of an instance: the one that is registered, or one that was
    /// deregistered a short while ago.
    pub fn last_run(&self, key: &InstanceKey) -> Option<Incarnation> {
        let held = self.instance(key).map(|held| held.incarnation);
        held.max(self.tombstones.get(key).map(|ended| ended.incarnation))
    }

    /// One service; `None`: nothing of that name was registered within the last hour of registry
    /// time, or so many others have lost their last instance since that it is forgotten.
    pub fn service(&self, key: &ServiceKey) -> Option<&Service> {
        self.services.get(key)
    }

    /// The known services of all namespaces, in order.
    pub fn all_services(&self) -> impl Iterator<Item = (&ServiceKey, &Service)> {
        self.services.iter()
    }

    /// The known services of a namespace whose names begin with `prefix`, in order, those after
    /// `after` only.
    pub fn services<'a>(
        &'a self,
        namespace: &Namespace,
        prefix: &'a str,
        after: Option<&'a ServiceName>,
    ) -> impl Iterator<Item = (&'a ServiceKey, &'a Service)> + use<'a> {
        let first = after.map_or(prefix, |after| after.as_str().max(prefix));
        let start =
            ServiceKey { namespace: namespace.clone(), name: ServiceName::range_start(first) };
        let namespace = namespace.clone();
        self.services
            .range(start..)
            .take_while(move |(key, _)| {
                key.namespace == namespace && key.name.as_str().starts_with(prefix)
            })
            .filter(move |(key, _)| after.is_none_or(|after| key.name > *after))
    }

    /// Whether a known service of this namespace has a name that ends in `.end`.
    pub fn has_service_below(&self, namespace: &Namespace, end: &str) -> bool {
        self.name_ends.has_name(namespace, end)
    }

    /// Whether a namespace with known services has a name that ends in `.end`.
    pub fn has_namespace_below(&self, end: &str) -> bool {
        self.name_ends.has_namespace(end)
    }

    /// The instances that require a service, by service and id, those after `after` only.
    pub fn dependents<'a>(
        &'a self,
        target: &'a ServiceKey,
        after: Option<&InstanceKey>,
    ) -> impl Iterator<Item = &'a Arc<Instance>> + use<'a> {
        let lowest = || InstanceKey {
            service: ServiceKey {
                namespace: target.namespace.clone(),
                name: ServiceName::range_start(""),
            },
            id: InstanceId::lowest(),
        };
        // Nothing has the lowest key, so it can be left out as well.
        let after = (target.clone(), after.cloned().unwrap_or_else(lowest));
        self.dependents
            .range((Bound::Excluded(after), Bound::Unbounded))
            .take_while(move |(required, _)| required == target)
            .filter_map(|(_, key)| self.instance(key))
    }

    /// The overrides of a namespace, by service and id, those after `after` only; whether or not
    /// the instances are there.
    pub fn overrides<'a>(
        &'a self,
        namespace: &Namespace,
        after: Option<&InstanceKey>,
    ) -> impl Iterator<Item = (&'a InstanceKey, &'a Override)> + use<'a> {
        let first = || InstanceKey {
            service: ServiceKey {
                namespace: namespace.clone(),
                name: ServiceName::range_start(""),
            },
            id: InstanceId::lowest(),
        };
        // Nothing has the lowest key, so it can be left out as well.
        let after = after.cloned().unwrap_or_else(first);
        let namespace = namespace.clone();
        self.overrides
            .range((Bound::Excluded(after), Bound::Unbounded))
            .take_while(move |(key, _)| key.service.namespace == namespace)
    }

    /// Whether a service that is no longer known may have changed after this revision.
    pub fn forgot_after(&self, revision: Revision) -> bool {
        self.forgotten > revision
    }
}
