//! How large a registry is, so that a node can hold that against what it may take.

use crate::checks::Checks;
use crate::command::{Op, Request, Update};
use crate::registry::Registry;
use crate::registry::replies::Known;
use crate::spec::{Instance, InstanceSpec};
use crate::types::{InstanceId, InstanceKey};

/// What an instance takes beside its texts, bytes: itself, its places in the tables, a lease of its
/// own, what trees and the allocator leave free. A million instances with 330 bytes of texts take
/// 706 MiB (docs/sizing.md).
const INSTANCE_BYTES: usize = 400;

/// What a health check takes beside its texts.
const CHECK_BYTES: usize = 64;

impl Registry {
    /// About what the instances and their leases take in memory. Not what has limits of its own:
    /// overrides, what is known of writes, what failed checks said.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// By how much `op` makes that larger at most, where it is done; 0: not at all.
    pub fn growth(&self, op: &Op) -> usize {
        match op {
            Op::Register(register) => {
                let growth = |(key, spec): &(InstanceKey, InstanceSpec)| {
                    let held = self.instance(key).map_or(0, |held| instance_bytes(held));
                    bytes(&key.id, spec).saturating_sub(held)
                };
                register.instances.iter().map(growth).sum()
            }
            Op::Update(update) => self.growth_by_update(update).unwrap_or(0),
            _ => 0,
        }
    }

    /// `None`: nothing is done.
    fn growth_by_update(&self, update: &Update) -> Option<usize> {
        let held = self.instance(&update.target.key)?;
        let new = update.new_values();
        new.metadata?;
        let after = bytes(&held.key.id, &held.spec.updated(new));
        Some(after.saturating_sub(instance_bytes(held)))
    }

    /// Whether a request came before, so that it changes nothing when it comes again.
    pub fn is_answered(&self, request: &Request) -> bool {
        !matches!(self.replies.find(request), Known::New)
    }
}

pub(crate) fn instance_bytes(instance: &Instance) -> usize {
    bytes(&instance.key.id, &instance.spec)
}

fn bytes(id: &InstanceId, spec: &InstanceSpec) -> usize {
    let checks = spec.checks().into_iter().flat_map(Checks::iter);
    let checks: usize =
        checks.map(|check| CHECK_BYTES + check.endpoint.len() + check.text().len()).sum();
    INSTANCE_BYTES + id.as_str().len() + spec.packed_bytes() + checks
}
