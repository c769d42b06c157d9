//! Registry time as the leader makes it; the only place where a clock is read to decide what a
//! command says.
//!
//! A leader stamps its commands with the clock that it found in the state when its term began, plus
//! its own monotonic time since then. So registry time stands still without a leader, and jumps of
//! the wall clock do not matter. Besides:
//! - It stays within [`AHEAD_MAX`] of what is applied, and within [`UNAPPLIED_MAX`] of the first
//!   command that is not: while nothing commits (no quorum, full or slow disks), it waits.
//! - A gap of more than [`STALL`] between two looks (the ticker looks every [`TICK`]) means that
//!   this process did not run: SIGSTOP, a paused machine. The gap is not counted.
//! - After any of these, and at the beginning of a term, it stands still until the grace that
//!   renewals are owed then is applied: they may be waiting behind whatever held the leader up.

use std::sync::Mutex;
use std::time::Duration;

use quorate_state::Clock;
use tokio::time::Instant;

/// The ticker looks at the clock this often.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// A longer gap between two looks at the clock is a stall: several ticks, well under the smallest
/// TTL (1 s).
const STALL: Duration = Duration::from_millis(400);

/// The clock runs no further ahead of the applied one: twice the idle tick (500 ms), the smallest
/// TTL.
const AHEAD_MAX: Duration = Duration::from_millis(1_000);

/// Nor further on from the first stamp that is not applied yet. Renewals that wait behind a stop of
/// commits get the time of its end, and what is due by then ends before they are looked at. A lease
/// with the smallest TTL was renewed at most a third of that and two windows of 50 ms before the
/// first command that is stopped, so it lasts for 560 ms from there. (What is applied is no measure
/// for this: it may be an idle tick behind when commits stop.)
const UNAPPLIED_MAX: Duration = Duration::from_millis(500);

/// Makes the stamps of one node's commands.
#[derive(Debug, Default)]
pub(crate) struct LeaderClock {
    last: Mutex<Stamp>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Stamp {
    term: u64,
    clock_us: u64,
    taken: Option<Instant>,
    /// Stands still until a grace is applied.
    held: bool,
    /// Since when it stands still.
    still_since: Option<Instant>,
    /// The first and the last one that was given to a command since all were applied.
    unapplied: Option<(Clock, Clock)>,
}

impl LeaderClock {
    /// What time it is for a leader of this term. `applied` is the clock of the state now,
    /// `pending` whether anything in the state ends by it: only then does it matter how far this is
    /// ahead.
    pub(crate) fn read(&self, term: u64, applied: Clock, pending: bool) -> Clock {
        self.read_at(Instant::now(), term, applied, pending)
    }

    fn read_at(&self, now: Instant, term: u64, applied: Clock, pending: bool) -> Clock {
        let mut last = self.last.lock().expect("invariant: nothing panics under this lock");
        let applied_us = applied.0.saturating_mul(1_000);
        let passed = last.taken.map_or(Duration::MAX, |taken| now.saturating_duration_since(taken));
        if last.term != term {
            let (taken, still_since) = (Some(now), Some(now));
            let unapplied = None;
            *last = Stamp { term, clock_us: applied_us, taken, held: true, still_since, unapplied };
            return applied;
        }
        last.unapplied = last.unapplied.filter(|(_, latest)| *latest > applied);
        let wanted_us = last.clock_us.saturating_add(passed.as_micros() as u64);
        let is_beyond = |clock: Clock, max: Duration| {
            wanted_us.saturating_sub(clock.0.saturating_mul(1_000)) > max.as_micros() as u64
        };
        let is_stopped = last.unapplied.is_some_and(|(first, _)| {
            // Of those behind it, some may be applied.
            is_beyond(first.max(applied), UNAPPLIED_MAX)
        });
        let too_far = pending && (is_stopped || is_beyond(applied, AHEAD_MAX));
        if (passed > STALL || too_far) && !last.held {
            (last.held, last.still_since) = (true, last.taken);
        }
        if !last.held {
            last.clock_us = wanted_us;
        }
        last.clock_us = last.clock_us.max(applied_us);
        // A thread that looked later may have come first: its time is counted, and only once.
        last.taken = last.taken.max(Some(now));
        Clock(last.clock_us / 1_000)
    }

    /// The same for a command that is proposed now.
    pub(crate) fn stamp(&self, term: u64, applied: Clock, pending: bool) -> Clock {
        let clock = self.read(term, applied, pending);
        let mut last = self.last.lock().expect("invariant: nothing panics under this lock");
        if last.term == term {
            let (first, latest) = last.unapplied.unwrap_or((clock, clock));
            last.unapplied = Some((first, latest.max(clock)));
        }
        clock
    }

    /// Whether the clock stands still until a grace is applied.
    pub(crate) fn is_held(&self) -> bool {
        self.last.lock().expect("invariant: nothing panics under this lock").held
    }

    /// For how long the clock of a leader of this term has stood still: until a grace is applied,
    /// or since it was last looked at, where that is too long ago.
    pub(crate) fn held(&self, term: u64) -> Duration {
        let last = self.last.lock().expect("invariant: nothing panics under this lock");
        let since = |at: Option<Instant>| at.map_or(Duration::ZERO, |at| at.elapsed());
        let unread = since(last.taken);
        match (last.term == term, last.held) {
            (false, _) => Duration::ZERO,
            (true, true) => since(last.still_since),
            (true, false) if unread > STALL => unread,
            (true, false) => Duration::ZERO,
        }
    }

    /// The grace is applied: time goes on from now.
    pub(crate) fn release(&self, term: u64) {
        let mut last = self.last.lock().expect("invariant: nothing panics under this lock");
        if last.term == term {
            (last.held, last.still_since) = (false, None);
            last.taken = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pass(ms: u64) {
        tokio::time::advance(Duration::from_millis(ms)).await;
    }

    /// The clock of a leader that has given its first grace.
    fn running(applied: Clock) -> LeaderClock {
        let clock = LeaderClock::default();
        assert_eq!(clock.read(1, applied, true), applied);
        assert!(clock.is_held());
        clock.release(1);
        clock
    }

    #[tokio::test(start_paused = true)]
    async fn counts_its_own_time_from_the_applied_clock() {
        let clock = running(Clock(5_000));
        pass(250).await;
        assert_eq!(clock.read(1, Clock(5_000), true), Clock(5_250));
        assert!(!clock.is_held());
    }

    /// The first waits for the lock, or for a processor, between its look and the lock.
    #[tokio::test(start_paused = true)]
    async fn of_two_threads_that_look_at_once_the_time_is_counted_once() {
        let clock = running(Clock(0));
        let first = Instant::now();
        pass(100).await;
        assert_eq!(clock.read(1, Clock(0), true), Clock(100));
        assert_eq!(clock.read_at(first, 1, Clock(0), true), Clock(100));
        pass(50).await;
        assert_eq!(clock.read(1, Clock(0), true), Clock(150));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_term_begins_at_the_applied_clock_and_waits_for_its_grace() {
        let clock = running(Clock(0));
        pass(300).await;
        assert_eq!(clock.read(3, Clock(100), true), Clock(100));
        pass(300).await;
        assert_eq!(clock.read(3, Clock(100), true), Clock(100));
        clock.release(1);
        assert!(clock.is_held(), "that was the grace of another term");
        clock.release(3);
        pass(300).await;
        assert_eq!(clock.read(3, Clock(100), true), Clock(400));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stall_is_not_counted_and_waits_for_a_grace() {
        let clock = running(Clock(0));
        pass(15_000).await;
        assert_eq!(clock.read(1, Clock(0), true), Clock(0));
        pass(100).await;
        assert_eq!(clock.read(1, Clock(0), true), Clock(0));
        clock.release(1);
        pass(100).await;
        assert_eq!(clock.read(1, Clock(0), true), Clock(100));
    }

    #[tokio::test(start_paused = true)]
    async fn waits_while_nothing_is_applied() {
        let clock = running(Clock(0));
        for _ in 0..600 {
            pass(100).await;
            clock.read(1, Clock(0), true);
        }
        assert_eq!(clock.read(1, Clock(0), true), Clock(1_000));
        assert!(clock.is_held());
    }

    /// A lease of 1 s that was renewed 383 ms before commits stopped is renewed next when they go
    /// on, after 0.9 s.
    #[tokio::test(start_paused = true)]
    async fn waits_sooner_while_a_command_is_not_applied() {
        let clock = running(Clock(0));
        for _ in 0..3 {
            pass(100).await;
            clock.read(1, Clock(0), true);
        }
        pass(83).await;
        assert_eq!(clock.stamp(1, Clock(0), true), Clock(383));
        for _ in 0..9 {
            pass(100).await;
            clock.stamp(1, Clock(0), true);
        }
        assert!(clock.is_held());
        let stopped = clock.stamp(1, Clock(0), true);
        assert!(Clock(800) < stopped && stopped <= Clock(883), "{stopped:?}");
        clock.release(1);
        pass(100).await;
        assert_eq!(clock.read(1, stopped, true), Clock(stopped.0 + 100), "all is applied");
    }

    /// Slow commits, each of which takes 400 ms, one behind the other; then one with nothing behind
    /// it, and the idle tick.
    #[tokio::test(start_paused = true)]
    async fn goes_on_while_commands_are_applied() {
        let clock = running(Clock(0));
        let mut now = 0;
        for _ in 0..30 {
            pass(100).await;
            now += 100;
            let applied = Clock(u64::saturating_sub(now, 400));
            assert_eq!(clock.stamp(1, applied, true), Clock(now));
        }
        let applied = Clock(now);
        for _ in 0..9 {
            pass(100).await;
            now += 100;
            assert_eq!(clock.read(1, applied, true), Clock(now));
        }
        assert!(!clock.is_held());
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_told_for_how_long_the_clock_stands_still() {
        let clock = running(Clock(0));
        pass(300).await;
        assert_eq!(clock.held(1), Duration::ZERO);
        pass(200).await;
        assert_eq!(clock.held(1), Duration::from_millis(500), "nobody looks at it");
        assert_eq!(clock.held(2), Duration::ZERO, "of another term");
        clock.read(1, Clock(0), true);
        pass(100).await;
        clock.read(1, Clock(0), true);
        assert_eq!(clock.held(1), Duration::from_millis(600), "until a grace is applied");
        clock.release(1);
        assert_eq!(clock.held(1), Duration::ZERO);
        clock.read(2, Clock(0), true);
        pass(100).await;
        assert_eq!(clock.held(2), Duration::from_millis(100), "a new term waits for its grace");
    }

    #[tokio::test(start_paused = true)]
    async fn runs_on_while_nothing_can_end() {
        let clock = running(Clock(0));
        for _ in 0..600 {
            pass(100).await;
            clock.read(1, Clock(0), false);
        }
        assert!(!clock.is_held());
    }

    #[tokio::test(start_paused = true)]
    async fn never_behind_the_applied_clock() {
        let clock = running(Clock(0));
        assert_eq!(clock.read(1, Clock(9_000), true), Clock(9_000));
    }
}
