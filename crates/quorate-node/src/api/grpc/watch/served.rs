//! How long a node serves watches: until it stops, or nothing new will come here for long.

use std::time::Duration;

use quorate_log::NodeId;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::error::NodeError;
use crate::node::Node;
use crate::node::leadership::Leadership;
use crate::runtime::random;

/// A watcher whose node has no leader learns so (`leader_id` 0) and may go elsewhere. One that has
/// not by then is sent away: a caller with the bare stub may know nothing of it.
const LEADERLESS_FOR: Duration = Duration::from_secs(60);
/// If this node is no member any more, and never will have a leader, it is sent away after this.
const REMOVED_FOR: Duration = Duration::from_secs(10);

/// A node may have a leader and get nothing from it: its disk has no room, say, or it catches up.
/// What it has is better than nothing, so a watcher is told how old it is, and sent away when that
/// is so long, and it was here for so long; up to half as long again, so that not all go at once.
const OLD_FOR: Duration = Duration::from_secs(10);

/// Waits until what this node has is old, though it has a leader; `fresh_at` as by [`Node`].
async fn old(
    leadership: &Leadership,
    fresh_at: impl Fn() -> Option<Instant>,
    node: NodeId,
) -> NodeError {
    let limit = OLD_FOR + OLD_FOR.mul_f64(random() as f64 / u64::MAX as f64 / 2.0);
    let mut leader = leadership.views();
    loop {
        // Its sender is this node's: it does not end before.
        let _ = leader.wait_for(Option::is_some).await;
        // What it has is as old as its last leader: that is no fault of this one.
        let led = Instant::now();
        let old = async {
            loop {
                let since = fresh_at().max(Some(led)).unwrap_or(led);
                if since.elapsed() >= limit {
                    return since.elapsed().as_millis() as u64;
                }
                sleep_until(since + limit).await;
            }
        };
        tokio::select! {
            for_ms = old => return NodeError::Outdated { node, for_ms },
            _ = leader.wait_for(Option::is_none) => {}
        }
    }
}

/// Waits until nothing new will come here for long: this node was taken out, or has no leader.
async fn lost(leadership: &Leadership, node: NodeId) -> NodeError {
    let removed = async {
        loop {
            leadership.removed().await;
            sleep(REMOVED_FOR).await;
            if leadership.is_removed() {
                return NodeError::NotMember { node };
            }
        }
    };
    let leaderless = async {
        let mut leader = leadership.views();
        loop {
            // Its sender is this node's: it does not end before.
            let _ = leader.wait_for(Option::is_none).await;
            let since = Instant::now();
            if timeout(LEADERLESS_FOR, leader.wait_for(Option::is_some)).await.is_err() {
                return NodeError::NoLeader { waited_ms: since.elapsed().as_millis() as u64 };
            }
        }
    };
    tokio::select! {
        error = removed => error,
        error = leaderless => error,
    }
}

/// Waits until this node serves no watch any more: it stops, or nothing new will come here; why.
pub(super) async fn no_longer_serves(node: &Node) -> NodeError {
    tokio::select! {
        () = node.stop().cancelled() => NodeError::Stopping { node: node.id() },
        error = nothing_comes(node) => error,
    }
}

/// Waits until nothing new will come here for long, and who waits for it is to go elsewhere; why.
pub(in crate::api) async fn nothing_comes(node: &Node) -> NodeError {
    tokio::select! {
        error = lost(node.leadership(), node.id()) => error,
        error = old(node.leadership(), || node.fresh_at(), node.id()) => error,
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_watch_ends_after_a_minute_without_a_leader_and_not_before() {
        let leadership = Leadership::new();
        let mut lost = pin!(lost(&leadership, NodeId::new(1).unwrap()));
        let mut goes_on = async |time| timeout(time, &mut lost).await.err();
        let (nearly, hour) = (LEADERLESS_FOR - Duration::from_millis(1), LEADERLESS_FOR * 60);
        assert!(goes_on(nearly).await.is_some(), "none has led yet");
        leadership.set_leader(NodeId::new(2));
        assert!(goes_on(hour).await.is_some(), "it is led");
        leadership.set_leader(None);
        assert!(goes_on(nearly).await.is_some(), "one may be elected yet");
        leadership.set_leader(NodeId::new(3));
        assert!(goes_on(hour).await.is_some(), "one was, in time");
        leadership.set_leader(None);
        assert!(goes_on(nearly).await.is_some());
        let ended = timeout(Duration::from_millis(1), &mut lost).await;
        assert!(matches!(ended, Ok(NodeError::NoLeader { waited_ms: 60_000 })), "{ended:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_ends_where_its_node_has_a_leader_and_gets_nothing_from_it() {
        let leadership = Leadership::new();
        let fresh_at = std::cell::Cell::new(None);
        let node = NodeId::new(1).unwrap();
        let mut ends = pin!(old(&leadership, || fresh_at.get(), node));
        let mut goes_on = async |time| timeout(time, &mut ends).await.err();
        let (hour, second) = (OLD_FOR * 360, Duration::from_secs(1));
        assert!(goes_on(hour).await.is_some(), "an old list is better than none");
        leadership.set_leader(NodeId::new(2));
        assert!(goes_on(OLD_FOR - second).await.is_some(), "it was led a moment ago");
        for _ in 0..1_000 {
            fresh_at.set(Some(Instant::now() - second));
            assert!(goes_on(5 * second).await.is_some(), "it is as new as can be");
        }
        leadership.set_leader(None);
        assert!(goes_on(hour).await.is_some(), "another limit decides");
        leadership.set_leader(NodeId::new(3));
        assert!(goes_on(OLD_FOR - second).await.is_some(), "its new leader will tell it");
        let ended = timeout(OLD_FOR / 2 + second, &mut ends).await;
        let Ok(NodeError::Outdated { for_ms, .. }) = ended else { panic!("{ended:?}") };
        assert!((10_000..=15_000).contains(&for_ms), "{for_ms}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_ends_where_its_node_stays_removed() {
        let leadership = Leadership::new();
        leadership.set_leader(NodeId::new(2));
        let mut lost = pin!(lost(&leadership, NodeId::new(1).unwrap()));
        leadership.set_removed(true);
        assert!(timeout(REMOVED_FOR / 2, &mut lost).await.is_err(), "it may join again");
        leadership.set_removed(false);
        assert!(timeout(REMOVED_FOR * 10, &mut lost).await.is_err(), "it did");
        leadership.set_removed(true);
        let ended = timeout(REMOVED_FOR, &mut lost).await;
        assert!(matches!(ended, Ok(NodeError::NotMember { .. })), "{ended:?}");
    }
}
