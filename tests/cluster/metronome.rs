//! How late this process is woken: what a loaded machine adds to everything.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

const BEAT: Duration = Duration::from_millis(10);
/// Beats that are less late are not remembered one by one.
const REMEMBERED: Duration = Duration::from_millis(50);
/// A task that is woken together with a beat comes a little before it, or after.
const TOGETHER: Duration = Duration::from_millis(50);

#[derive(Default)]
struct Beats {
    latest: Duration,
    /// When those that are remembered were due, and when they came.
    late: Vec<(Instant, Instant)>,
}

/// Beats until it is dropped.
pub(crate) struct Metronome {
    beats: Arc<Mutex<Beats>>,
    beating: JoinHandle<()>,
}

impl Metronome {
    pub(crate) fn start() -> Self {
        let beats = Arc::<Mutex<Beats>>::default();
        let shared = beats.clone();
        let beating = tokio::spawn(async move {
            loop {
                let due = Instant::now() + BEAT;
                sleep(BEAT).await;
                let (came, mut beats) = (Instant::now(), shared.lock().unwrap());
                let late = came - due;
                beats.latest = beats.latest.max(late);
                if late >= REMEMBERED {
                    beats.late.push((due, came));
                }
            }
        });
        Self { beats, beating }
    }

    /// The largest delay so far; a task passes several such points on its way.
    pub(crate) fn lateness(&self) -> Duration {
        4 * self.beats.lock().unwrap().latest
    }

    /// Whether it was so late at once, at some time between these.
    pub(crate) fn was_late(&self, by: Duration, from: Instant, to: Instant) -> bool {
        assert!(by >= REMEMBERED, "{by:?}: not remembered");
        let beats = self.beats.lock().unwrap();
        let overlaps = |(due, came): &(Instant, Instant)| {
            *came - *due >= by && *due <= to + TOGETHER && *came + TOGETHER >= from
        };
        beats.late.iter().any(overlaps)
    }
}

impl Drop for Metronome {
    fn drop(&mut self) {
        self.beating.abort();
    }
}
