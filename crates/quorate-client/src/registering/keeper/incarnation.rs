//! The incarnation that a registration asks for: this host's clock, unless a run before it was
//! ahead of that.

use std::sync::atomic::Ordering;
use std::time::Duration;

use quorate_proto::limits::TTL_MAX_MS;
use tokio::time::Instant;
use tonic::Status;

use super::Keeper;
use crate::error::current_incarnation;
use crate::nodes::retry::{is_wrong, rights_pause};
use crate::registering::registrar::DEFAULT_TTL;

/// A run that was deregistered is remembered for two minutes (`incarnation` in registry.proto). By
/// the registry's time, which stands still without a leader: the rest is for that.
const REMEMBERED: Duration = Duration::from_secs(130);

/// A lease ends a TTL after its last renewal, and the other run's TTL is most likely this one's.
/// The second TTL is for one that was longer before, and for the grace after elections (3 s each).
const TTLS: u32 = 2;

/// A run whose clock is ahead, and whose number no node lets this one go above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OlderRun {
    /// None is known of.
    Unknown,
    /// The number above its own was left. It may hold an instance all the same.
    Left,
    /// It holds one, and is waited for until then: it may be over, and its lease not yet.
    Holds { until: Instant },
}

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
        self.older_run = OlderRun::Left;
        true
    }

    /// The wait before the next attempt, where an older run is waited for; `None`: this one gives
    /// way. To a newer run, whose incarnation this host's clock has come to, it does at once. Its
    /// own number is a lower one: asking displaces nobody, however often.
    pub(super) fn wait_for_older_run(&mut self, status: &Status) -> Option<Duration> {
        let until = match self.older_run {
            OlderRun::Unknown => return None,
            OlderRun::Left => Instant::now() + self.longest_wait(),
            OlderRun::Holds { until } => until,
        };
        self.older_run = OlderRun::Holds { until };
        let is_ahead = current_incarnation(status).is_some_and(|current| current > self.clock());
        let waits = is_ahead && Instant::now() < until;
        waits.then(|| rights_pause(self.rounds.wait_whole_round()))
    }

    /// While no node answers, no lease ends either: it is waited for anew.
    pub(super) fn hears_nothing_of_older_run(&mut self) {
        if let OlderRun::Holds { .. } = self.older_run {
            self.older_run = OlderRun::Left;
        }
    }

    fn longest_wait(&self) -> Duration {
        let ttl = self.ttl.unwrap_or(DEFAULT_TTL).min(Duration::from_millis(TTL_MAX_MS));
        (ttl * TTLS).max(REMEMBERED)
    }

    /// What a run that began now would have as its incarnation. Not read from the clock again: that
    /// may have been set meanwhile, on a machine that began with a wrong one.
    fn clock(&self) -> u64 {
        let (then, at) = self.began;
        then.saturating_add(u64::try_from(at.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use quorate_proto::trailers;
    use tokio::sync::watch;
    use tokio::time::advance;

    use super::*;
    use crate::core::Core;
    use crate::nodes::call::Failure;
    use crate::registering::handle::{Gone, RegistrationState};
    use crate::registering::keeper::Next;
    use crate::registering::registrar::Registrar;
    use crate::types::{InstanceBuilder, Registration};

    const SECOND: Duration = Duration::from_secs(1);
    const YEAR: u64 = 365 * 86_400_000_000;

    fn held_by(incarnation: u64) -> Failure {
        let mut status = Status::failed_precondition("another run holds it");
        status.metadata_mut().insert(trailers::INCARNATION, incarnation.into());
        Failure::answered("register", status)
    }

    /// A run that has left the number above another's, and that one.
    fn left(ttl: Duration) -> (Keeper, watch::Receiver<RegistrationState>, u64) {
        let registrar = Registrar::new(Arc::new(Core::for_tests()));
        let instance = InstanceBuilder::new("s", "a").endpoint("http", "http://h:1");
        let registration = Registration::new(instance).ttl(ttl);
        let (mut keeper, state) = registrar.prepare(registration).unwrap();
        let far = keeper.incarnation() + 5 * YEAR;
        assert_eq!(keeper.registration_failed(held_by(far)), Next::Keep);
        assert_eq!(keeper.incarnation(), far + 1);
        let wrong = Status::invalid_argument("incarnation = 9: must be at most 8");
        assert_eq!(keeper.registration_failed(Failure::answered("register", wrong)), Next::Keep);
        assert!(keeper.incarnation() < far);
        (keeper, state, far)
    }

    /// A lease of its TTL, and longer than what was deregistered is remembered.
    #[tokio::test(start_paused = true)]
    async fn an_older_run_is_waited_for_as_long_as_it_may_be_there() {
        let day = 86_400 * SECOND;
        let rows = [(15 * SECOND, 130 * SECOND), (100 * SECOND, 200 * SECOND), (day, 2 * day)];
        for (ttl, longest) in rows {
            let (mut keeper, state, far) = left(ttl);
            // Nobody answers meanwhile, which is no part of the wait.
            advance(2 * longest).await;
            let begun = Instant::now();
            while keeper.registration_failed(held_by(far)) == Next::Keep {
                let wait = keeper.register_at.unwrap() - Instant::now();
                assert!((SECOND..=2 * SECOND).contains(&wait), "{wait:?}");
                assert!(begun.elapsed() < longest, "it goes on for ever");
                advance(wait).await;
            }
            let waited = begun.elapsed();
            assert!((longest..=longest + 2 * SECOND).contains(&waited), "{waited:?}");
            let current = Some(far);
            let RegistrationState::Gone(gone) = *state.borrow() else { panic!("it goes on") };
            assert_eq!(gone, Gone::Superseded { current });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_no_part_of_the_wait_for_an_older_run() {
        let (mut keeper, _state, far) = left(15 * SECOND);
        assert_eq!(keeper.registration_failed(held_by(far)), Next::Keep);
        for _ in 0..2 {
            advance(100 * SECOND).await;
            let nobody = Failure::answered("register", Status::unavailable("no leader"));
            assert_eq!(keeper.registration_failed(nobody), Next::Keep);
        }
        assert_eq!(keeper.registration_failed(held_by(far)), Next::Keep, "its lease is as before");
        advance(131 * SECOND).await;
        assert_eq!(keeper.registration_failed(held_by(far)), Next::Stop);
    }

    #[tokio::test(start_paused = true)]
    async fn a_newer_run_is_given_way_to_at_once() {
        let (mut keeper, _state, far) = left(15 * SECOND);
        assert_eq!(keeper.registration_failed(held_by(far)), Next::Keep);
        let newer = keeper.incarnation() + 1;
        advance(SECOND).await;
        assert_eq!(keeper.registration_failed(held_by(newer)), Next::Stop);
    }
}
