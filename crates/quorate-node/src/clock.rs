//! Registry time as the leader makes it; the only place where a clock is read to decide what a command says.
//!
//! A leader stamps its commands with the clock that it found in the state when its term began, plus its own monotonic
//! time since then. So registry time stands still without a leader, and jumps of the wall clock do not matter.
//!
//! It also stands still while the leader does: the ticker looks at the clock at least every [`TICK`], so a gap of more
//! than [`STALL`] means that this process did not run (SIGSTOP, a paused machine, a stuck disk). What passed meanwhile
//! beyond that is not counted, because renewals may be waiting behind it. And it stands still without a quorum: what
//! passes after the last word of a quorum is not counted either.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quorate_state::Clock;
use tokio::time::Instant;

/// The ticker looks at the clock this often.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// A longer gap between two looks at the clock is a stall: several ticks, well under the smallest TTL (1 s).
const STALL: Duration = Duration::from_millis(400);

/// Makes the stamps of one node's commands.
#[derive(Debug, Default)]
pub(crate) struct LeaderClock {
    last: Mutex<Option<Stamp>>,
    stalled: AtomicBool,
}

#[derive(Debug, Clone, Copy)]
struct Stamp {
    term: u64,
    clock_us: u64,
    taken: Instant,
}

impl LeaderClock {
    /// What time it is for a leader of this term. `applied` is the clock of the state now, `silence` how long ago a
    /// quorum acknowledged this leader.
    pub(crate) fn read(&self, term: u64, applied: Clock, silence: Duration) -> Clock {
        let now = Instant::now();
        let mut last = self.last.lock().expect("invariant: nothing panics under this lock");
        let applied_us = applied.0.saturating_mul(1_000);
        let clock_us = match *last {
            Some(stamp) if stamp.term == term => {
                let passed = now.saturating_duration_since(stamp.taken);
                let silent = silence.saturating_sub(STALL);
                if passed > STALL || !silent.is_zero() {
                    self.stalled.store(true, Ordering::Relaxed);
                }
                let counted = passed.saturating_sub(silent).min(STALL);
                (stamp.clock_us + counted.as_micros() as u64).max(applied_us)
            }
            _ => applied_us,
        };
        *last = Some(Stamp { term, clock_us, taken: now });
        Clock(clock_us / 1_000)
    }

    /// Whether this process did not run, or had no quorum, for a while since this was last asked.
    pub(crate) fn take_stall(&self) -> bool {
        self.stalled.swap(false, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACKED: Duration = Duration::ZERO;

    async fn pass(ms: u64) {
        tokio::time::advance(Duration::from_millis(ms)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn counts_its_own_time_from_the_applied_clock() {
        let clock = LeaderClock::default();
        assert_eq!(clock.read(1, Clock(5_000), ACKED), Clock(5_000));
        pass(250).await;
        assert_eq!(clock.read(1, Clock(5_000), ACKED), Clock(5_250));
        assert!(!clock.take_stall());
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_term_begins_at_the_applied_clock() {
        let clock = LeaderClock::default();
        clock.read(1, Clock(0), ACKED);
        pass(300).await;
        assert_eq!(clock.read(3, Clock(100), ACKED), Clock(100));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stall_is_told_once_and_not_counted() {
        let clock = LeaderClock::default();
        clock.read(1, Clock(0), ACKED);
        pass(15_000).await;
        assert_eq!(clock.read(1, Clock(0), ACKED), Clock(400));
        assert!(clock.take_stall());
        assert!(!clock.take_stall());
    }

    #[tokio::test(start_paused = true)]
    async fn time_without_a_quorum_is_not_counted() {
        let clock = LeaderClock::default();
        clock.read(1, Clock(0), ACKED);
        for silence_ms in (100..60_000).step_by(100) {
            pass(100).await;
            clock.read(1, Clock(0), Duration::from_millis(silence_ms));
        }
        let after = clock.read(1, Clock(0), Duration::from_secs(60));
        assert!(after <= Clock(400), "{after:?}");
        assert!(clock.take_stall());
    }

    #[tokio::test(start_paused = true)]
    async fn never_behind_the_applied_clock() {
        let clock = LeaderClock::default();
        clock.read(1, Clock(0), ACKED);
        assert_eq!(clock.read(1, Clock(9_000), ACKED), Clock(9_000));
    }
}
