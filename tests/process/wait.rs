//! Waiting for conditions: every wait of these tests has a deadline, and says what it waited for
//! and what it saw last.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// Conditions are looked at this often.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Asks `probe` until it has a value; panics at the deadline with the last reason why it had none.
pub(crate) async fn eventually<T, E: Display>(
    what: &str,
    within: Duration,
    mut probe: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + within;
    loop {
        match probe().await {
            Ok(value) => return value,
            Err(reason) => {
                assert!(Instant::now() < deadline, "{what}: not within {within:?}: {reason}");
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Lets time itself pass, where that is what a test is about.
pub(crate) async fn time_passes(time: Duration) {
    tokio::time::sleep(time).await;
}
