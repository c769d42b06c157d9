//! Tells a supervisor how the node is, by systemd's protocol (sd_notify(3), which others speak,
//! too): when it is ready, what it waits for, that it lives, that it stops. Without a supervisor
//! (`NOTIFY_SOCKET` is not set) it only logs what a start waits for.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use quorate_node::Readiness;
use sd_notify::NotifyState;
use tokio::runtime::Handle;
use tokio::time::sleep;

/// The node is looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// What a start waits for is logged after this long, since founders are started one by one ...
const SAY_AFTER: Duration = Duration::from_secs(5);
/// ... and again this often. Nothing else says it.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Follows a node for as long as it runs; `raft` runs its Raft.
pub(crate) async fn follow(node: Readiness, raft: Handle) -> Infallible {
    match sd_notify::watchdog_enabled() {
        Some(within) => tokio::join!(report(node), live(raft, within / 2, pinged)).0,
        None => report(node).await,
    }
}

/// The node begins to stop.
pub(crate) fn stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

async fn report(node: Readiness) -> Infallible {
    let mut started = false;
    let mut told = None;
    let mut say_at = Instant::now() + SAY_AFTER;
    loop {
        let problems = node.problems();
        let status = match problems.is_empty() {
            true => "ready".to_owned(),
            false => format!("not ready: {}", problems.join("; ")),
        };
        if !started && !problems.is_empty() && say_at <= Instant::now() {
            say_at = Instant::now() + SAY_EVERY;
            tracing::info!("{status}");
        }
        if !started && problems.is_empty() {
            started = true;
            notify(&[NotifyState::Ready]);
        }
        if told.as_ref() != Some(&status) {
            notify(&[NotifyState::Status(&status)]);
            told = Some(status);
        }
        sleep(LOOK_EVERY).await;
    }
}

fn pinged() {
    notify(&[NotifyState::Watchdog]);
}

/// Pings for as long as the threads of Raft and of this task do what they are given.
async fn live(raft: Handle, every: Duration, ping: impl Fn()) -> Infallible {
    loop {
        if raft.spawn(async {}).await.is_ok() {
            ping();
        }
        sleep(every).await;
    }
}

/// A supervisor that does not listen is no reason to fail.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the supervisor was not told");
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::task::Poll;

    use tokio::runtime::Builder;

    use super::*;

    /// Pings of a node whose Raft is run by `raft`, by when it has been asked for the 100th time.
    async fn pings(raft: Handle) -> u32 {
        let (pings, mut asked) = (Cell::new(0), 0);
        let mut living = Box::pin(live(raft, Duration::ZERO, || pings.set(pings.get() + 1)));
        poll_fn(|context| {
            let _never = living.as_mut().poll(context);
            asked += 1;
            context.waker().wake_by_ref();
            if asked < 100 { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
        pings.get()
    }

    #[tokio::test]
    async fn a_node_whose_raft_hangs_is_not_said_to_live() {
        assert!(pings(Handle::current()).await > 0, "what is spawned here runs in between");
        // Nobody runs what is spawned there.
        let hangs = Builder::new_current_thread().build().unwrap();
        assert_eq!(pings(hangs.handle().clone()).await, 0);
        hangs.shutdown_background();
    }
}
