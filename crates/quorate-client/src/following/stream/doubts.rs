//! What speaks against a node that sends a stream: that it has no leader, or that what it sends is
//! old.

use std::time::Duration;

use tokio::time::Instant;

/// `ResponseHeader.age_ms` of a node that does not know.
pub(super) const UNKNOWN_AGE_MS: u64 = u64::MAX;

/// What speaks against a node.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Doubts {
    pub(super) leaderless_since: Option<Instant>,
    /// Whether the node has a leader, and what it sends is older than a node may be without one.
    pub(super) is_old: bool,
}

impl Doubts {
    /// Judges the node by the age of what it sent. Of one without a leader, another limit decides.
    /// While changes are still on their way, their age may not be known; that of all that the node
    /// has is, or the node has heard of no leader since it started.
    pub(super) fn judge(&mut self, age_ms: u64, is_whole: bool, limit: Duration) {
        let is_old = match age_ms {
            UNKNOWN_AGE_MS => is_whole,
            ms => Duration::from_millis(ms) > limit,
        };
        self.is_old = is_old && self.leaderless_since.is_none();
    }

    /// Whether the node has a leader.
    pub(super) fn led(&mut self, has_leader: bool) {
        self.leaderless_since = match (has_leader, self.leaderless_since) {
            (true, _) => None,
            (false, since) => since.or_else(|| Some(Instant::now())),
        };
        // What it has when there is a leader again is old for a moment, and says nothing.
        self.is_old &= has_leader;
    }
}
