//! Everything that ends by the clock. Leases come before records that only wait to be forgotten,
//! however long those have been due: millions of them must not keep what is dead in sight.
//!
//! Each kind has an index of its own: it takes a part of what a common one would, and of tombstones
//! and of services without instances the first goes when there are too many.

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
    empty_services: OrdSet<(Clock, ServiceKey)>,
    origins: OrdSet<(Clock, u64)>,
}

impl Deadlines {
    pub(crate) fn insert(&mut self, at: Clock, due: Due) {
        match due {
            Due::Lease(id) => self.leases.insert((at, id)).is_some(),
            Due::Tombstone(key) => self.tombstones.insert((at, key)).is_some(),
            Due::EmptyService(key) => self.empty_services.insert((at, key)).is_some(),
            Due::Origin(id) => self.origins.insert((at, id)).is_some(),
        };
    }

    pub(crate) fn remove(&mut self, at: Clock, due: Due) {
        match due {
            Due::Lease(id) => self.leases.remove(&(at, id)).is_some(),
            Due::Tombstone(key) => self.tombstones.remove(&(at, key)).is_some(),
            Due::EmptyService(key) => self.empty_services.remove(&(at, key)).is_some(),
            Due::Origin(id) => self.origins.remove(&(at, id)).is_some(),
        };
    }

    /// When the first is due.
    pub(crate) fn first(&self) -> Option<Clock> {
        let lease = self.leases.get_min().map(|(at, _)| *at);
        lease.into_iter().chain(self.first_records().into_iter().flatten()).min()
    }

    /// When the first tombstone, the first service and the first origin are to be forgotten.
    fn first_records(&self) -> [Option<Clock>; 3] {
        [
            self.tombstones.get_min().map(|(at, _)| *at),
            self.empty_services.get_min().map(|(at, _)| *at),
            self.origins.get_min().map(|(at, _)| *at),
        ]
    }

    /// Takes out what is due at this time: leases in their order, then everything else in its; of
    /// what is due at the same time, tombstones first, then services.
    pub(crate) fn pop_due(&mut self, now: Clock) -> Option<Due> {
        if self.leases.get_min().is_some_and(|(at, _)| *at <= now) {
            return self.leases.remove_min().map(|(_, id)| Due::Lease(id));
        }
        let [tombstone, service, origin] = self.first_records();
        let first = [tombstone, service, origin].into_iter().flatten().min();
        let first = first.filter(|at| *at <= now);
        match first {
            None => None,
            _ if first == tombstone => {
                self.tombstones.remove_min().map(|(_, key)| Due::Tombstone(key))
            }
            _ if first == service => {
                self.empty_services.remove_min().map(|(_, key)| Due::EmptyService(key))
            }
            _ => self.origins.remove_min().map(|(_, id)| Due::Origin(id)),
        }
    }

    /// The tombstone that is forgotten first.
    pub(crate) fn first_tombstone(&self) -> Option<&InstanceKey> {
        self.tombstones.get_min().map(|(_, key)| key)
    }

    /// The service that has been without instances longest, where there are more than so many.
    pub(crate) fn empty_service_beyond(&self, limit: usize) -> Option<&ServiceKey> {
        if self.empty_services.len() <= limit {
            return None;
        }
        self.empty_services.get_min().map(|(_, key)| key)
    }

    /// The leases that are due before this time.
    pub(crate) fn leases_before(&self, horizon: Clock) -> impl Iterator<Item = LeaseId> {
        self.leases.iter().take_while(move |(at, _)| *at < horizon).map(|(_, id)| *id)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        let records = self.tombstones.len() + self.empty_services.len() + self.origins.len();
        self.leases.len() + records
    }
}
