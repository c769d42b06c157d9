//! How large a registry is, so that a node can hold that against what it may take.

use std::collections::BTreeMap;

use crate::checks::Checks;
use crate::command::{Op, Register, Update};
use crate::registry::Registry;
use crate::spec::{Instance, InstanceSpec};
use crate::types::{InstanceId, InstanceKey, ServiceKey};

/// What an instance takes beside its texts, bytes: itself, its places in the tables, a lease of its
/// own, what trees and the allocator leave free. A million instances with 330 bytes of texts take
/// 706 MiB (docs/sizing.md).
const INSTANCE_BYTES: usize = 400;

/// What a health check takes beside its texts.
const CHECK_BYTES: usize = 64;

/// What a service that an instance requires takes beside its name: 40 bytes in the index of
/// dependents, a tree that may be half full, and a copy of the name.
const REQUIRED_BYTES: usize = 112;

/// What a service takes beside its names: its place among the services, a list of its instances,
/// and two places by what the names end in.
const SERVICE_BYTES: usize = 400;

impl Registry {
    /// About what the instances, their services and their leases take in memory. Not what has
    /// limits of its own: services without instances, overrides, what is known of writes, what
    /// failed checks said.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// By how much `op` makes that larger at most, where it is done; 0: not at all.
    pub fn growth(&self, op: &Op) -> usize {
        match op {
            Op::Register(register) => self.growth_by_register(register),
            Op::Update(update) => self.growth_by_update(update).unwrap_or(0),
            _ => 0,
        }
    }

    /// On the whole: what shrinks makes room for what grows.
    fn growth_by_register(&self, register: &Register) -> usize {
        // In order, so that those of one service stand together. Of a key that comes twice, the
        // last counts.
        let specs: BTreeMap<&InstanceKey, &InstanceSpec> =
            register.instances.iter().map(|(key, spec)| (key, spec)).collect();
        let (mut before, mut after, mut last) = (0, 0, None);
        for (key, spec) in specs {
            before += self.instance(key).map_or(0, |held| instance_bytes(held));
            after += bytes(&key.id, spec);
            let service = Some(&key.service);
            if last.replace(&key.service) != service && !self.has_instances(&key.service) {
                after += service_bytes(&key.service);
            }
        }
        after.saturating_sub(before)
    }

    fn has_instances(&self, service: &ServiceKey) -> bool {
        self.services.get(service).is_some_and(|service| !service.instances.is_empty())
    }

    /// `None`: nothing is done.
    fn growth_by_update(&self, update: &Update) -> Option<usize> {
        let held = self.instance(&update.target.key)?;
        let new = update.new_values();
        new.metadata?;
        let after = bytes(&held.key.id, &held.spec.updated(new));
        Some(after.saturating_sub(instance_bytes(held)))
    }

    /// Whether nothing of it grows but what was deregistered a short while ago, however much that
    /// had then.
    pub fn comes_back(&self, op: &Op) -> bool {
        let Op::Register(register) = op else { return false };
        register.instances.iter().all(|(key, spec)| match self.instance(key) {
            Some(held) => bytes(&key.id, spec) <= instance_bytes(held),
            None => self.tombstones.contains_key(key),
        })
    }
}

pub(crate) fn instance_bytes(instance: &Instance) -> usize {
    bytes(&instance.key.id, &instance.spec)
}

fn bytes(id: &InstanceId, spec: &InstanceSpec) -> usize {
    let checks = spec.checks().into_iter().flat_map(Checks::iter);
    let checks: usize =
        checks.map(|check| CHECK_BYTES + check.endpoint.len() + check.text().len()).sum();
    let required: usize = spec.required_names().map(|name| REQUIRED_BYTES + name.len()).sum();
    INSTANCE_BYTES + id.as_str().len() + spec.packed_bytes() + checks + required
}

/// While it has instances. Its names count twice: those with dots have copies by what they end in.
pub(crate) fn service_bytes(key: &ServiceKey) -> usize {
    SERVICE_BYTES + 2 * (key.namespace.as_str().len() + key.name.as_str().len())
}
