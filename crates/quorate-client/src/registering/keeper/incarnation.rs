//! The incarnation that a registration asks for: this host's clock, unless a run before it was
//! ahead of that.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tonic::Status;

use super::Keeper;
use crate::error::current_incarnation;
use crate::nodes::retry::is_wrong;
use crate::registering::registrar::DEFAULT_TTL;

/// Leases end so late after their TTL, where the registry has little to do.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

impl Keeper {
    /// On a first registration only, against an incarnation that this host's clock has not come to
    /// yet: it went back since the process before this one started, so go above what that one had.
    /// Any other higher incarnation is a newer run, to which this one gives way, also if nothing
    /// has answered it until now. Its own one was deregistered, by an answer that was lost.
    pub(super) fn take_higher_incarnation(&mut self, status: &Status) -> bool {
        let Some(current) = current_incarnation(status) else { return false };
        if self.higher_incarnations == 0 || current <= self.incarnation().max(self.clock()) {
            return false;
        }
        self.higher_incarnations -= 1;
        self.incarnation.store(current.saturating_add(1), Ordering::Relaxed);
        true
    }

    /// Gives up an incarnation that was taken over and that no node takes (any more): it is too far
    /// ahead of their clocks, and would be refused for ever. What this run would have by its own
    /// clock comes next; if the other one is still there, that is refused, and said.
    pub(super) fn leave_higher_incarnation(&mut self, status: &Status) -> bool {
        let own = self.clock();
        if !is_wrong(status.code()) || self.lease.is_some() || self.incarnation() <= own {
            return false;
        }
        self.incarnation.store(own, Ordering::Relaxed);
        self.higher_incarnations = 0;
        self.may_wait_for_lease = true;
        true
    }

    /// The wait before a last attempt, after a higher incarnation was left: the run that holds an
    /// instance may be over, and its lease outlives it by a TTL at most. Not for a
    /// newer run, whose incarnation this host's clock has come to, and not twice.
    pub(super) fn wait_for_lease(&mut self, status: &Status) -> Option<Duration> {
        let may_wait = std::mem::take(&mut self.may_wait_for_lease);
        let is_ahead = current_incarnation(status).is_some_and(|current| current > self.clock());
        (may_wait && is_ahead).then(|| self.ttl.unwrap_or(DEFAULT_TTL) + ENDS_WITHIN)
    }

    /// What a run that began now would have as its incarnation. Not read from the clock again: that
    /// may have been set meanwhile, on a machine that began with a wrong one.
    fn clock(&self) -> u64 {
        let (then, at) = self.began;
        then.saturating_add(u64::try_from(at.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}
