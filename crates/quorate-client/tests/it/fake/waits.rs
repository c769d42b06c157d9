//! Waits for conditions. They count looks, not the time on a clock: a pause of the process, as on a
//! busy machine, costs one look, however long it is.

use std::pin::pin;
use std::time::Duration;

use tokio::time::{sleep, timeout};

/// What is waited for in vain is given up after 5 s, on a machine that is not busy.
const ROUNDS: u32 = 50;
/// Where several nodes have to be asked in vain first, or be waited for.
const ROUNDS_LONG: u32 = 4 * ROUNDS;
const LOOKS_IN_A_ROUND: u32 = 50;
const BETWEEN_LOOKS: Duration = Duration::from_millis(2);
const ROUND: Duration = Duration::from_millis(100);

/// Waits until a condition holds; the test fails with `what` when it does not within 5 s.
pub(crate) async fn until(what: &str, holds: impl FnMut() -> bool) {
    look(ROUNDS, what, holds).await;
}

/// The same with 20 s.
pub(crate) async fn until_long(what: &str, holds: impl FnMut() -> bool) {
    look(ROUNDS_LONG, what, holds).await;
}

/// What comes of a future; the test fails when that takes longer than 5 s.
pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    wait(ROUNDS, future).await
}

/// The same with 20 s.
pub(crate) async fn within_long<F: Future>(future: F) -> F::Output {
    wait(ROUNDS_LONG, future).await
}

async fn look(rounds: u32, what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..rounds * LOOKS_IN_A_ROUND {
        if holds() {
            return;
        }
        sleep(BETWEEN_LOOKS).await;
    }
    panic!("not within {:?}: {what}", rounds * ROUND);
}

async fn wait<F: Future>(rounds: u32, future: F) -> F::Output {
    let mut future = pin!(future);
    for _ in 0..rounds {
        if let Ok(output) = timeout(ROUND, &mut future).await {
            return output;
        }
    }
    panic!("not within {:?}", rounds * ROUND);
}

/// Runs a scenario whose outcome depends on how busy the machine is, some times at most, until one
/// run is as it should be: what a client does wrong, it does wrong each time. `Err`: what that is.
pub(crate) async fn in_one_of(runs: u32, mut run: impl AsyncFnMut() -> Result<(), String>) {
    let mut wrong = Vec::new();
    for _ in 0..runs {
        match run().await {
            Ok(()) => return,
            Err(what) => wrong.push(what),
        }
    }
    panic!("in each of {runs} runs: {wrong:#?}");
}
