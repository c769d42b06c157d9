//! How the quorum stands, as this node sees it: as leader, which voters answer it.

use std::time::Duration;

use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver as _;

use crate::node::Node;

/// The voters, and how far this node is from a majority of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quorum {
    pub(crate) voters: usize,
    pub(crate) is_voter: bool,
    /// Of a leader: the voters, itself among them, that answered it within the longest silence that
    /// no follower takes for its end. Of others: 0.
    pub(crate) reachable: usize,
    /// The last index that is committed, as far as this node knows.
    pub(crate) committed: u64,
    /// Since this node heard of its leader, or, as leader, of a majority; `None`: never.
    pub(crate) silence: Option<Duration>,
}

impl Node {
    pub(crate) fn quorum(&self) -> Quorum {
        let (leads, within) = (self.leads(), self.silence_max());
        let metrics = self.metrics.borrow_watched();
        let voters: Vec<_> = metrics.membership_config.voter_ids().collect();
        let is_voter = voters.contains(&self.id);
        let heard = metrics.heartbeat.iter().flatten().filter(|(id, at)| {
            let answers = at.as_ref().is_some_and(|at| at.elapsed() <= within);
            **id != self.id && voters.contains(id) && answers
        });
        let reachable = if leads { heard.count() + usize::from(is_voter) } else { 0 };
        let committed = metrics.cluster_committed.as_ref().map_or(0, |id| id.index());
        let silence = match leads {
            true if voters.len() == usize::from(is_voter) => Some(Duration::ZERO),
            true => metrics.last_quorum_acked.as_ref().map(|acked| acked.elapsed()),
            false => self.leadership.silence(),
        };
        let committed = committed.max(self.leadership.committed());
        Quorum { voters: voters.len(), is_voter, reachable, committed, silence }
    }
}
