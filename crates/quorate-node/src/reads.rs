//! Linearizable reads (ReadIndex, Raft thesis section 6.4): one round trip to a quorum confirms many reads at once.
//!
//! A round may answer every read that began before the round did. Reads queue on one lock; whoever gets it looks whether
//! a round that began after its own arrival has finished meanwhile, and runs one otherwise.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};

use openraft::ReadPolicy;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::RaftError;
use quorate_proto::peer::v1::ReadIndexRequest;
use quorate_state::Registry;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout, timeout_at};

use crate::applied::Position;
use crate::error::NodeError;
use crate::node::{Consistency, Node, unreachable};
use crate::peers::Lane;

/// Shares rounds between reads.
#[derive(Debug, Default)]
pub(crate) struct ReadIndex {
    started: AtomicU64,
    last: Mutex<Option<Finished>>,
}

#[derive(Debug)]
struct Finished {
    round: u64,
    index: Result<u64, NodeError>,
}

impl ReadIndex {
    /// A log index that a read which begins now has to wait for; `round` finds one.
    ///
    /// # Errors
    /// Those of the round, for all who waited for it.
    pub(crate) async fn confirm(
        &self,
        round: impl Future<Output = Result<u64, NodeError>>,
    ) -> Result<u64, NodeError> {
        let arrived = self.started.load(Ordering::SeqCst);
        let mut last = self.last.lock().await;
        if let Some(finished) = last.as_ref().filter(|finished| finished.round > arrived) {
            return finished.index.clone();
        }
        let number = self.started.fetch_add(1, Ordering::SeqCst) + 1;
        let index = round.await;
        *last = Some(Finished { round: number, index: index.clone() });
        index
    }
}

impl Node {
    /// A copy of the registry to read from.
    ///
    /// # Errors
    /// No quorum within the deadline (linearizable), or this node is not as far as `min_revision`.
    pub(crate) async fn read(
        &self,
        consistency: Consistency,
        min_revision: u64,
        deadline: Instant,
    ) -> Result<Registry, NodeError> {
        if consistency == Consistency::Linearizable {
            let index = self.read_index(deadline).await?;
            self.await_applied(deadline, |position| position.index >= index).await?;
        }
        self.check_member()?;
        let waited = self.await_applied(deadline, |position| position.revision >= min_revision);
        waited.await.map_err(|_| NodeError::Behind {
            applied: self.applied.position().revision,
            wanted: min_revision,
        })?;
        Ok(self.applied.registry())
    }

    /// Whether this node is a member as of what it has applied; one that is not yet, or no more, has no list to answer with.
    ///
    /// # Errors
    /// [`NodeError::NotMember`].
    pub(crate) fn check_member(&self) -> Result<(), NodeError> {
        let state = self.applied.lock();
        match state.membership.get_node(&self.id) {
            Some(_) if !self.leadership.is_removed() => Ok(()),
            _ => Err(NodeError::NotMember { node: self.id }),
        }
    }

    /// How old what this node has may be, in ms; the maximum: it has never heard of a leader.
    pub(crate) fn age_ms(&self) -> u64 {
        let heard = self.leadership.age(self.applied.position().index);
        // A leader hears of nobody; what it has was current when its quorum last acknowledged it, also when that is lost.
        let leads = self.view.borrow_watched().state.is_leader();
        let acked = leads.then(|| self.quorum_silence());
        let age = heard.into_iter().chain(acked).min();
        age.map_or(u64::MAX, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
    }

    /// Waits until this node has applied something.
    ///
    /// # Errors
    /// Why it has not by the deadline.
    pub(crate) async fn await_applied(
        &self,
        deadline: Instant,
        reached: impl FnMut(&Position) -> bool,
    ) -> Result<(), NodeError> {
        let since = Instant::now();
        let mut positions = self.applied.positions();
        let waited = tokio::select! {
            waited = timeout_at(deadline, positions.wait_for(reached)) => waited,
            () = self.stop.cancelled() => return Err(NodeError::Stopping { node: self.id }),
        };
        match waited {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(NodeError::Stopping { node: self.id }),
            Err(_elapsed) => Err(self.late(since)),
        }
    }

    /// The index that a linearizable read which begins now has to wait for.
    async fn read_index(&self, deadline: Instant) -> Result<u64, NodeError> {
        let since = Instant::now();
        loop {
            if self.stop.is_cancelled() {
                return Err(NodeError::Stopping { node: self.id });
            }
            let leader = self.current_leader();
            match timeout_at(deadline, self.reads.confirm(self.read_index_round())).await {
                Err(_elapsed) => return Err(self.late(since)),
                Ok(Err(error)) if error.may_pass() => {}
                Ok(index) => return index,
            }
            if !self.pause(leader, deadline).await {
                return Err(self.late(since));
            }
        }
    }

    /// One round with whoever leads when it begins; ends when that changes.
    async fn read_index_round(&self) -> Result<u64, NodeError> {
        let Some(leader) = self.current_leader() else {
            return Err(NodeError::NotLeader { node: 0 });
        };
        let round = async {
            match leader == self.id {
                true => self.read_index_here().await,
                false => self.read_index_at(leader).await,
            }
        };
        tokio::select! {
            index = round => index,
            // A leader that has just lost the lead may never answer.
            () = self.leader_is_other_than(Some(leader)) => {
                Err(NodeError::NotLeader { node: leader })
            }
        }
    }

    async fn read_index_at(&self, leader: u64) -> Result<u64, NodeError> {
        // Bounded, so that a leader that hangs does not hold up the reads that wait for this round.
        let patience = self.silence_max();
        let request = self.peers.request(leader, ReadIndexRequest {}, Some(patience));
        let (address, mut client) = self.peer_client(leader, Lane::Control)?;
        match timeout(patience, client.read_index(request)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner().index),
            Ok(Err(status)) => Err(unreachable(leader, address, status.message())),
            Err(elapsed) => Err(unreachable(leader, address, &elapsed.to_string())),
        }
    }

    /// The index that a read has to wait for, confirmed by a quorum; only while this node leads.
    async fn read_index_here(&self) -> Result<u64, NodeError> {
        match self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => Ok(linearizer.read_log_id().index()),
            Err(RaftError::Fatal(fatal)) => Err(self.fatal(&fatal)),
            Err(RaftError::APIError(_)) => Err(NodeError::NotLeader { node: self.id }),
        }
    }

    /// The index for another node's reads: shares rounds with this node's own.
    ///
    /// # Errors
    /// [`NodeError::NotLeader`] if this node does not lead.
    pub(crate) async fn read_index_for_peer(&self) -> Result<u64, NodeError> {
        if !self.leads() {
            return Err(NodeError::NotLeader { node: self.id });
        }
        self.reads.confirm(self.read_index_round()).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn reads_that_wait_share_one_later_round() {
        let reads = Arc::new(ReadIndex::default());
        let rounds = Arc::new(AtomicU64::new(0));
        let mut running = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let (reads, rounds) = (reads.clone(), rounds.clone());
            running.spawn(async move {
                let round = async {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    Ok(rounds.fetch_add(1, Ordering::SeqCst) + 1)
                };
                reads.confirm(round).await
            });
        }
        let indexes: Vec<_> = running.join_all().await.into_iter().map(Result::unwrap).collect();
        assert_eq!(rounds.load(Ordering::SeqCst), 2, "the first one, and one for all that waited");
        assert_eq!(indexes.iter().filter(|index| **index == 2).count(), 99);
    }
}
