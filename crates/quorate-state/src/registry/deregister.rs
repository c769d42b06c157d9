//! Deregistering, and remembering for a while what was deregistered (its tombstone), so that a
//! registration that was delayed on its way cannot bring it back. So many are remembered at most
//! ([`TOMBSTONES_MAX`]), the youngest.
//!
//! Invariants: a registered instance has a higher incarnation than its tombstone; a tombstone is
//! only ever replaced by one of the same or a higher incarnation.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::command::{Deregister, InstanceRef, Rejection, Reply};
use crate::event::{Event, RemoveReason};
use crate::hash::Kind;
use crate::registry::Registry;
use crate::registry::leases::{TOMBSTONE_MS, TOMBSTONES_MAX};
use crate::tables::deadlines::Due;
use crate::types::{Clock, Incarnation, InstanceKey};

/// An incarnation that was deregistered, until the clock reaches `until`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tombstone {
    pub(crate) key: InstanceKey,
    pub(crate) incarnation: Incarnation,
    pub(crate) until: Clock,
}

impl Registry {
    pub(crate) fn deregister(
        &mut self,
        deregister: &Deregister,
        events: &mut Vec<Arc<Event>>,
    ) -> Result<Reply, Rejection> {
        let before = self.instances;
        match deregister {
            Deregister::Lease(id) => {
                let lease = self.leases.get(*id).ok_or(Rejection::UnknownLease(*id))?;
                for key in lease.instances.clone().iter() {
                    self.deregister_instance(key, None, events);
                }
            }
            Deregister::Instances(targets) => {
                for target in targets {
                    self.check_not_newer(target)?;
                }
                for InstanceRef { key, incarnation } in targets {
                    self.deregister_instance(key, *incarnation, events);
                }
                if self.instances == before {
                    let first = targets.first().map(|target| target.key.clone());
                    return match first {
                        Some(key) => Err(Rejection::UnknownInstance(key)),
                        None => Ok(Reply::Deregistered { removed: 0 }),
                    };
                }
            }
        }
        Ok(Reply::Deregistered { removed: (before - self.instances) as u32 })
    }

    /// Removes an instance and remembers its incarnation. A named one that is not there (yet) is
    /// remembered too, and takes its predecessor along: all is as if its registration had come
    /// first.
    fn deregister_instance(
        &mut self,
        key: &InstanceKey,
        named: Option<Incarnation>,
        events: &mut Vec<Arc<Event>>,
    ) {
        let held = self.instance(key).map(|instance| (instance.incarnation, instance.lease));
        if let Some((_, lease)) = held {
            self.remove_instance(key, RemoveReason::Deregistered, events);
            self.detach(lease, key);
        }
        let Some(incarnation) = held.map(|(incarnation, _)| incarnation).max(named) else { return };
        if self.tombstones.get(key).is_some_and(|ended| ended.incarnation > incarnation) {
            return;
        }
        self.forget_tombstone(key);
        let until = self.clock.plus_ms(TOMBSTONE_MS);
        self.insert_tombstone(Tombstone { key: key.clone(), incarnation, until });
        if self.tombstones.len() > TOMBSTONES_MAX
            && let Some(first) = self.deadlines.first_tombstone().cloned()
        {
            self.forget_tombstone(&first);
        }
    }

    /// Refuses a command that names an older run than the one that is registered.
    pub(super) fn check_not_newer(&self, target: &InstanceRef) -> Result<(), Rejection> {
        let (Some(named), Some(held)) = (target.incarnation, self.instance(&target.key)) else {
            return Ok(());
        };
        if held.incarnation <= named {
            return Ok(());
        }
        Err(Rejection::NewerIncarnation { key: target.key.clone(), current: held.incarnation })
    }

    pub(crate) fn insert_tombstone(&mut self, tombstone: Tombstone) {
        self.hash.add(Kind::Tombstone, &tombstone);
        self.deadlines.insert(tombstone.until, Due::Tombstone(tombstone.key.clone()));
        self.tombstones.insert(tombstone.key.clone(), tombstone);
    }

    pub(super) fn forget_tombstone(&mut self, key: &InstanceKey) {
        if let Some(tombstone) = self.tombstones.remove(key) {
            self.hash.remove(Kind::Tombstone, &tombstone);
            self.deadlines.remove(tombstone.until, Due::Tombstone(key.clone()));
        }
    }
}
