//! How old what this node has may be: counted from when its leader, sure of its lead, said how far
//! it had committed.

use std::convert::Infallible;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::vote::RaftLeaderId as _;
use quorate_state::Registry;
use tokio::time::{Instant, timeout};

use crate::node::Node;
use crate::node::leadership::Moment;

/// A question for how fresh this node is may take this long: an answer that was long on its way
/// still says its age.
const FRESHNESS_PATIENCE: Duration = Duration::from_secs(10);

/// A node whose state is older than this is not caught up, or far from its leader, ms: longer than
/// an election takes. What it knows nothing of may be there by now.
pub(crate) const CURRENT_MS: u64 = 5_000;

impl Node {
    /// How old what this node has may be, in ms; the maximum: it does not know.
    pub(crate) fn age_ms(&self) -> u64 {
        age_ms(self.fresh_at())
    }

    /// Whether its cluster is so old that what is not in this registry is nowhere. One that was
    /// founded just now may replace another, whose services are still on their way here. The
    /// registry's clock stands still where nothing is registered: then it counts for how long this
    /// node has been in the cluster.
    pub(crate) fn is_settled(&self, registry: &Registry) -> bool {
        let after_ms = self.tunables.deny_after_ms;
        registry.clock().0 >= after_ms
            || self.leadership.inside_for() >= Duration::from_millis(after_ms)
    }

    /// A moment before which everything that was acknowledged is in what this node has; `None`: it
    /// knows of none.
    pub(crate) fn fresh_at(&self) -> Option<Instant> {
        let confirmed = self.leadership.fresh_at(self.applied.position().index);
        confirmed.max(self.led_at())
    }

    /// That moment, with the revision that this node has. The revision is read last: what is
    /// applied in between makes it no less.
    pub(crate) fn moment(&self) -> Moment {
        let at = self.fresh_at();
        Moment { at, revision: self.applied.position().revision }
    }

    /// The same as of a heartbeat ago, or a little longer.
    pub(crate) fn last_moment(&self) -> Moment {
        self.leadership.moment()
    }

    /// That moment, as far as this node knows it from its own lead; `None`: it does not lead, or
    /// has not applied all of its predecessors' entries.
    ///
    /// When a quorum acknowledged a message, no other node led at the moment when it was sent: what
    /// had been acknowledged by then was by this leader, which applies before it acknowledges, or
    /// by the leaders before it.
    fn led_at(&self) -> Option<Instant> {
        let settled = {
            let metrics = self.metrics.borrow_watched();
            let own = metrics.vote.leader_id().to_committed();
            let applied = metrics.last_applied.as_ref();
            metrics.state.is_leader() && applied.is_some_and(|at| *at.committed_leader_id() == own)
        };
        let now = Instant::now();
        settled.then(|| self.quorum_silence()).and_then(|silence| now.checked_sub(silence))
    }

    /// Asks the leader how far it has committed, sure of its lead, and notes down when this was
    /// asked. A leader that is no more does not answer: its answer takes a vote of this node's for
    /// it, read after that moment, that is a quorum with its own, or a round of heartbeats that
    /// began later.
    async fn ask_how_fresh(&self) {
        let asked = Instant::now();
        if let Some(led_at) = self.led_at() {
            // Kept for when it leads no more.
            self.leadership.confirmed(0, led_at, self.applied.position().index);
            return;
        }
        let Some(leader) = self.current_leader().filter(|leader| *leader != self.id) else {
            return;
        };
        // Members refuse a node that was taken out.
        if self.leadership.is_removed() {
            return;
        }
        let answer = tokio::select! {
            answer = self.read_index_at(leader, FRESHNESS_PATIENCE) => answer,
            () = self.leader_is_other_than(Some(leader)) => return,
        };
        match answer {
            Ok(index) => {
                self.leadership.confirmed(index, asked, self.applied.position().index);
            }
            Err(error) => tracing::trace!(%error, "the leader did not say how far it is"),
        }
    }

    /// Keeps asking, once in a heartbeat, and at once when another node leads. Messages that were
    /// merely read prove no age: they may have waited while this node stood still. Not covered: a
    /// machine whose monotonic clock stands still with it (a paused VM).
    pub(crate) async fn stay_fresh(&self) -> Infallible {
        let every = Duration::from_millis(self.tunables.heartbeat_ms);
        loop {
            let leader = self.current_leader();
            self.ask_how_fresh().await;
            self.leadership.set_moment(self.moment());
            let _ = timeout(every, self.leader_is_other_than(leader)).await;
        }
    }
}

/// The age to report of a state that has everything from before this moment: rounded up, since it
/// is "at most".
pub(crate) fn age_ms(fresh_at: Option<Instant>) -> u64 {
    let ms = |at: Instant| u64::try_from(at.elapsed().as_micros().div_ceil(1_000));
    fresh_at.and_then(|at| ms(at).ok()).unwrap_or(u64::MAX)
}
