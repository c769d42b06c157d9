//! Two processes with one id, as a leader sees them: each reports its own address, again and again,
//! as soon as the membership has the other's. A node that moved reports once.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use quorate_log::NodeId;
use tokio::time::Instant;

/// A node that goes back to where it came from within this, is two. To move there and back, an
/// operator takes longer.
const BACK_WITHIN: Duration = Duration::from_secs(30);

/// Where nodes reported that they were before, and when they left.
#[derive(Debug, Default)]
pub(crate) struct Twins(Mutex<BTreeMap<NodeId, (String, Instant)>>);

impl Twins {
    /// A node has moved; true: it goes back to where it was a moment ago.
    pub(super) fn moved(&self, id: NodeId, from: &str, to: &str) -> bool {
        let mut left = self.0.lock().expect("invariant: nothing panics under this lock");
        left.retain(|_, (_, at)| at.elapsed() < BACK_WITHIN);
        let before = left.insert(id, (from.to_owned(), Instant::now()));
        before.is_some_and(|(before, _)| before == to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_node_that_moves_is_one_and_one_that_goes_to_and_fro_is_two() {
        let (twins, id) = (Twins::default(), NodeId::new(1).unwrap());
        assert!(!twins.moved(id, "a:1", "b:1"));
        assert!(!twins.moved(id, "b:1", "c:1"), "it moves on");
        assert!(twins.moved(id, "c:1", "b:1"));
        assert!(!twins.moved(NodeId::new(2).unwrap(), "b:1", "c:1"), "another node");
        tokio::time::advance(BACK_WITHIN).await;
        assert!(!twins.moved(id, "b:1", "c:1"), "moved back by hand");
    }
}
