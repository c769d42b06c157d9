//! Waiting for what others are to say.

use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};

/// A wait is this many looks.
const LOOKS: u32 = 20;

/// A wait that is not over because this process stood still: it heard of nobody meanwhile, and a
/// pause of any length is one look.
#[derive(Debug)]
pub(super) struct Looks {
    every: Interval,
    left: u32,
}

impl Looks {
    /// For this long, where nothing stands still.
    pub(super) fn for_about(patience: Duration) -> Self {
        let mut every = interval(patience / LOOKS);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick comes at once.
        Self { every, left: LOOKS + 1 }
    }

    /// Waits for the next look; false: that was the last.
    pub(super) async fn next(&mut self) -> bool {
        self.every.tick().await;
        self.left = self.left.saturating_sub(1);
        self.left > 0
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, advance};

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(1_120);

    #[tokio::test(start_paused = true)]
    async fn a_pause_does_not_use_the_patience_up() {
        let took = async |pause: Duration| {
            let (begun, mut looks) = (Instant::now(), Looks::for_about(PATIENCE));
            assert!(looks.next().await);
            advance(pause).await;
            while looks.next().await {}
            begun.elapsed()
        };
        assert_eq!(took(Duration::ZERO).await, PATIENCE);
        for pause in [PATIENCE, PATIENCE * 9] {
            let rest = took(pause).await - pause;
            assert!(rest >= PATIENCE * 9 / 10, "after {pause:?} it waited {rest:?}");
        }
    }
}
