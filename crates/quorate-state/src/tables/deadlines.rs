//! Everything that ends by the clock. Leases come before records that only wait to be forgotten,
//! however long those have been due: millions of them must not keep what is dead in sight.
//!
//! Leases have an index of their own: there are many, and theirs takes a quarter of what a common
//! one would. So have tombstones, of which the first goes when there are too many.

use imbl::OrdSet;

use crate::types::{Clock, InstanceKey, LeaseId, ServiceKey};

/// What a deadline is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    Lease(LeaseId),
    Tombstone(InstanceKey),
    EmptyService(ServiceKey),
    Origin(u64),
}

/// Every deadline of a registry, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Deadlines {
    leases: OrdSet<(Clock, LeaseId)>,
    tombstones: OrdSet<(Clock, InstanceKey)>,
    others: OrdSet<(Clock, Due)>,
}

impl Deadlines {
    pub(crate) fn insert(&mut self, at: Clock, due: Due) {
        match due {
            Due::Lease(id) => self.leases.insert((at, id)).is_some(),
            Due::Tombstone(key) => self.tombstones.insert((at, key)).is_some(),
            other => self.others.insert((at, other)).is_some(),
        };
    }

    pub(crate) fn remove(&mut self, at: Clock, due: Due) {
        match due {
            Due::Lease(id) => self.leases.remove(&(at, id)).is_some(),
            Due::Tombstone(key) => self.tombstones.remove(&(at, key)).is_some(),
            other => self.others.remove(&(at, other)).is_some(),
        };
    }

    /// When the first is due.
    pub(crate) fn first(&self) -> Option<Clock> {
        let lease = self.leases.get_min().map(|(at, _)| *at);
        let tombstone = self.tombstones.get_min().map(|(at, _)| *at);
        let other = self.others.get_min().map(|(at, _)| *at);
        lease.into_iter().chain(tombstone).chain(other).min()
    }

    /// Takes out what is due at this time: leases in their order, then everything else in its.
    pub(crate) fn pop_due(&mut self, now: Clock) -> Option<Due> {
        if self.leases.get_min().is_some_and(|(at, _)| *at <= now) {
            return self.leases.remove_min().map(|(_, id)| Due::Lease(id));
        }
        let tombstone = self.tombstones.get_min().map(|(at, _)| *at).filter(|at| *at <= now);
        let other = self.others.get_min().map(|(at, _)| *at).filter(|at| *at <= now);
        match (tombstone, other) {
            (Some(tombstone), other) if other.is_none_or(|other| tombstone <= other) => {
                self.tombstones.remove_min().map(|(_, key)| Due::Tombstone(key))
            }
            (_, Some(_)) => self.others.remove_min().map(|(_, due)| due),
            (_, None) => None,
        }
    }

    /// The tombstone that is forgotten first.
    pub(crate) fn first_tombstone(&self) -> Option<&InstanceKey> {
        self.tombstones.get_min().map(|(_, key)| key)
    }

    /// The leases that are due before this time.
    pub(crate) fn leases_before(&self, horizon: Clock) -> impl Iterator<Item = LeaseId> {
        self.leases.iter().take_while(move |(at, _)| *at < horizon).map(|(_, id)| *id)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.leases.len() + self.tombstones.len() + self.others.len()
    }
}
