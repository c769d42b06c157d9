//! Leases, and everything that ends by the clock: [`Registry::expire_due`] is the only place where
//! a lease ends by time.
//!
//! Every deadline stands in an ordered index (`tables/deadlines.rs`): what is due, and when to look
//! next, is its first element.
//!
//! When many leases are due at once, each command ends [`ENDED_PER_COMMAND`] and leaves the rest to
//! the next ones (the leader proposes ticks as long as something is due), so that no command takes
//! long to apply and others come in between. What waits for its turn is there in every respect; a
//! lease that is renewed before its turn has proved that it lives, and stays.
//!
//! Mass-expiry protection (holding the instances of a service as SUSPECT when too many of them
//! would expire at once) belongs into `expire_due`, before a lease is ended; it is not built yet.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::event::{Event, RemoveReason};
use crate::hash::Kind;
use crate::registry::Registry;
use crate::tables::deadlines::Due;
use crate::tables::kept::Kept;
use crate::types::{Clock, InstanceKey, LeaseId, Ttl};

/// A deregistered incarnation is remembered this long, so that a delayed registration of it cannot
/// bring it back, ms of registry time. Longer than any call may take (the node caps deadlines at 60
/// s).
pub(crate) const TOMBSTONE_MS: u64 = 120_000;

/// The most deregistered incarnations that are remembered: some 90 MB. When there are more, the
/// one that would be forgotten first is: at 10,000 deregistrations a second, each is remembered
/// for 25 s, which is more than calls have by default. Without a bound, one caller that
/// deregisters what never was takes all memory. All nodes must have the same.
pub(crate) const TOMBSTONES_MAX: usize = if cfg!(test) { 4 } else { 250_000 };

/// A service without instances is remembered as known this long, ms of registry time.
pub(crate) const EMPTY_SERVICE_MS: u64 = 60 * 60 * 1_000;

/// The most services without instances that are remembered: some 75 MB, or 240 with the longest
/// names. When there are more, the one that has been without longest is forgotten. Without a bound,
/// one caller that registers under a new name each time takes all memory. All nodes must have the
/// same.
pub(crate) const EMPTY_SERVICES_MAX: usize = if cfg!(test) { 2 } else { 250_000 };

/// The most instances (and records that only wait to be forgotten) that end by time in one command;
/// the last lease of them ends whole, as the last origin goes with all its replies. About 0.5 ms of
/// work. All nodes must have the same: with another number, it would be another state machine.
pub(crate) const ENDED_PER_COMMAND: usize = if cfg!(test) { 2 } else { 250 };

/// Keeps the instances of one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Which lease.
    pub id: LeaseId,
    /// How long it lives without renewal.
    pub ttl: Ttl,
    /// When it was renewed last.
    pub renewed: Clock,
    /// When it ends: `renewed` + `ttl`, or later by a grace.
    pub deadline: Clock,
    /// What it keeps. Not part of the record in snapshots and hash: each instance names its lease.
    #[serde(skip)]
    pub(crate) instances: Kept,
}

impl Lease {
    /// What it keeps, in order.
    pub fn instances(&self) -> impl Iterator<Item = &InstanceKey> {
        self.instances.iter()
    }
}

impl Registry {
    /// No lease that was given out has a higher id than this, and all later ones have.
    pub fn last_lease(&self) -> u64 {
        self.last_lease
    }

    /// Ends what has been due longest, up to [`ENDED_PER_COMMAND`]; leases first, so that nothing
    /// that only waits to be forgotten keeps dead instances in sight.
    pub(super) fn expire_due(&mut self, events: &mut Vec<Arc<Event>>) {
        let mut ended = 0;
        while ended < ENDED_PER_COMMAND {
            let Some(due) = self.deadlines.pop_due(self.clock) else { return };
            let told = events.len();
            let mut replies = 0;
            match due {
                Due::Lease(id) => {
                    self.end_lease(id, RemoveReason::Expired, events);
                }
                Due::Tombstone(key) => self.forget_tombstone(&key),
                Due::EmptyService(key) => self.forget_service(&key),
                Due::Origin(id) => replies = self.forget_origin(id),
            }
            ended += (events.len() - told).max(replies).max(1);
        }
    }

    /// When something is due next; `None`: nothing ever. The leader proposes a command by then. Not
    /// later than the clock: something waits for its turn.
    pub fn next_deadline(&self) -> Option<Clock> {
        self.deadlines.first()
    }

    /// How much ends by the clock: leases, and records that only wait to be forgotten.
    pub fn deadlines(&self) -> usize {
        self.deadlines.len()
    }

    /// A lease.
    pub fn lease(&self, id: LeaseId) -> Option<&Lease> {
        self.leases.get(id)
    }

    /// Starts the lease's time again; false: there is no such lease.
    pub(super) fn renew_lease(&mut self, id: LeaseId, ttl: Option<Ttl>) -> bool {
        let renewed = self.clock;
        self.change_lease(id, |lease| {
            lease.ttl = ttl.unwrap_or(lease.ttl);
            (lease.renewed, lease.deadline) = (renewed, renewed.plus_ms(lease.ttl.as_ms()));
        })
    }

    pub(super) fn add_lease(&mut self, ttl: Ttl) -> LeaseId {
        self.last_lease += 1;
        let id = LeaseId(self.last_lease);
        let deadline = self.clock.plus_ms(ttl.as_ms());
        let lease = Lease { id, ttl, renewed: self.clock, deadline, instances: Kept::None };
        self.insert_lease(lease);
        id
    }

    pub(crate) fn insert_lease(&mut self, lease: Lease) {
        self.hash.add(Kind::Lease, &lease);
        self.deadlines.insert(lease.deadline, Due::Lease(lease.id));
        self.leases.insert(lease);
    }

    /// Removes a lease with all that it keeps; false: there is no such lease.
    fn end_lease(
        &mut self,
        id: LeaseId,
        reason: RemoveReason,
        events: &mut Vec<Arc<Event>>,
    ) -> bool {
        let Some(lease) = self.leases.get(id) else { return false };
        for key in lease.instances.clone().iter() {
            self.remove_instance(key, reason, events);
        }
        self.drop_lease(id);
        true
    }

    /// Takes an instance from its lease; a lease that keeps nothing any more ends.
    pub(super) fn detach(&mut self, id: LeaseId, key: &InstanceKey) {
        let Some(lease) = self.leases.get_mut(id) else { return };
        lease.instances.remove(key);
        if lease.instances.is_empty() {
            self.drop_lease(id);
        }
    }

    /// See [`crate::Op::Grace`].
    pub(super) fn give_grace(&mut self, grace_ms: u64) {
        let horizon = self.clock.plus_ms(grace_ms);
        let near: Vec<LeaseId> = self.deadlines.leases_before(horizon).collect();
        for id in near {
            let Some(lease) = self.leases.get(id) else { continue };
            let grace_ms = grace_ms.min(lease.ttl.as_ms());
            let latest = lease.renewed.plus_ms(lease.ttl.as_ms()).plus_ms(grace_ms);
            let deadline = self.clock.plus_ms(grace_ms).min(latest);
            // A grace is proposed again when its answer is late, and must not be as dear each time.
            if deadline > lease.deadline {
                self.change_lease(id, |lease| lease.deadline = deadline);
            }
        }
    }

    /// Changes a lease's times; false: there is no such lease.
    fn change_lease(&mut self, id: LeaseId, change: impl FnOnce(&mut Lease)) -> bool {
        let Some(lease) = self.leases.get_mut(id) else { return false };
        self.hash.remove(Kind::Lease, lease);
        let before = lease.deadline;
        change(lease);
        self.hash.add(Kind::Lease, lease);
        if lease.deadline != before {
            self.deadlines.remove(before, Due::Lease(id));
            self.deadlines.insert(lease.deadline, Due::Lease(id));
        }
        true
    }

    fn drop_lease(&mut self, id: LeaseId) {
        if let Some(lease) = self.leases.remove(id) {
            self.hash.remove(Kind::Lease, &lease);
            self.deadlines.remove(lease.deadline, Due::Lease(id));
        }
    }
}
