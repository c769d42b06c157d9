//! Waiting for something that is to come, and not for a time.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

/// Something that should come soon has to come within this, on a machine with much else to do.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A probe that has not succeeded is repeated after this.
const PROBE: Duration = Duration::from_millis(15);

/// Repeats a probe until it finds something; fails when that takes too long.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    probe: impl FnMut() -> F,
) -> T {
    within(SOON, what, probe).await
}

/// As [`eventually`], with a deadline of the caller's.
pub(crate) async fn within<T, F: Future<Output = Option<T>>>(
    limit: Duration,
    what: &str,
    mut probe: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        let found = timeout(limit, probe()).await;
        if let Ok(Some(found)) = found {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        sleep(PROBE).await;
    }
}
