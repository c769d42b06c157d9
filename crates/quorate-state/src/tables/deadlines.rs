//! Everything that ends by the clock, in the order in which it is due; of what is due at the same
//! time, leases first.
//!
//! Leases have an index of their own: there are many, and theirs takes a quarter of what a common
//! one would.

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
    others: OrdSet<(Clock, Due)>,
}

impl Deadlines {
    pub(crate) fn insert(&mut self, at: Clock, due: Due) {
        match due {
            Due::Lease(id) => self.leases.insert((at, id)).is_some(),
            other => self.others.insert((at, other)).is_some(),
        };
    }

    pub(crate) fn remove(&mut self, at: Clock, due: Due) {
        match due {
            Due::Lease(id) => self.leases.remove(&(at, id)).is_some(),
            other => self.others.remove(&(at, other)).is_some(),
        };
    }

    /// When the first is due.
    pub(crate) fn first(&self) -> Option<Clock> {
        let lease = self.leases.get_min().map(|(at, _)| *at);
        let other = self.others.get_min().map(|(at, _)| *at);
        lease.into_iter().chain(other).min()
    }

    /// Takes the first out.
    pub(crate) fn pop_first(&mut self) -> Option<Due> {
        let first = self.first()?;
        if self.leases.get_min().is_some_and(|(at, _)| *at == first) {
            return self.leases.remove_min().map(|(_, id)| Due::Lease(id));
        }
        self.others.remove_min().map(|(_, due)| due)
    }

    /// The leases that are due before this time.
    pub(crate) fn leases_before(&self, horizon: Clock) -> impl Iterator<Item = LeaseId> {
        self.leases.iter().take_while(move |(at, _)| *at < horizon).map(|(_, id)| *id)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.leases.len() + self.others.len()
    }
}
