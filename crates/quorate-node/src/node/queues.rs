//! Where calls wait to be done together, and the loops that empty these queues.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use quorate_log::NodeId;
use quorate_state::{LeaseId, Renew};
use tokio::sync::mpsc::{Sender, error::TrySendError};
use tokio::time::{Instant, timeout, timeout_at};

use crate::error::NodeError;
use crate::error::RunError;
use crate::meters::Meters;
use crate::node::Node;
use crate::node::forwards::{Forwards, Messages, forwards};
use crate::node::reads::{ReadIndex, Rounds, read_index};
use crate::node::renewals::{BatchRenewed, Batches, Patience, Renewals, Renewed, renewals};

/// The queues of a node.
#[derive(Debug)]
pub(crate) struct Queues {
    /// Renewals of this node's clients, on their way to the leader.
    edge_renewals: Renewals,
    /// Renewals of all nodes, on their way into the log; used while this node leads.
    pub(super) log_renewals: Renewals,
    /// Calls on their way to the leader, where another node is it.
    pub(crate) forwards: Forwards,
    /// Linearizable reads that wait for a round.
    pub(crate) reads: ReadIndex,
    /// Writes for which this node, as the leader, has no room ([`Node::apply_all`]).
    pub(super) room: ReadIndex,
}

/// Their other ends.
pub(crate) struct Waiting {
    edge: Batches,
    log: Batches,
    forwards: Messages,
    reads: Rounds,
    room: Rounds,
}

pub(crate) type Loop = Pin<Box<dyn Future<Output = Result<(), RunError>> + Send>>;

pub(crate) fn queues(node: NodeId, renew_window: Duration, meters: &Meters) -> (Queues, Waiting) {
    let refused = meters.refused("renewals");
    let (edge_renewals, edge) = renewals(node, renew_window, refused.clone());
    let (log_renewals, log) = renewals(node, renew_window, refused);
    let (forwards, messages) = forwards(node, meters.refused("forwards"));
    let (reads, rounds) = read_index(node, meters.refused("reads"));
    let (room, all_applied) = read_index(node, meters.refused("reads"));
    let queues = Queues { edge_renewals, log_renewals, forwards, reads, room };
    (queues, Waiting { edge, log, forwards: messages, reads: rounds, room: all_applied })
}

/// Puts a call into a queue of this node.
///
/// # Errors
/// [`NodeError::Overloaded`] when too many wait there, which is counted.
pub(super) fn hand_in<T>(
    queue: &Sender<T>,
    call: T,
    node: NodeId,
    refused: &Counter,
) -> Result<(), NodeError> {
    queue.try_send(call).map_err(|error| match error {
        TrySendError::Full(_) => {
            refused.inc();
            NodeError::Overloaded { waiting: queue.max_capacity() }
        }
        TrySendError::Closed(_) => NodeError::Stopping { node },
    })
}

impl Waiting {
    /// The loops that belong where Raft runs, and the one that belongs where the clients' calls are
    /// handled.
    pub(crate) fn loops(self, node: &Arc<Node>) -> ([Loop; 4], Loop) {
        let Self { edge, log, forwards, reads, room } = self;
        let of = node.clone();
        let edge = async move {
            edge.run(|leases, patience| forward_renewals(&of, leases, patience)).await;
            Ok(())
        };
        let of = node.clone();
        let log = async move {
            log.run(|leases, _| of.propose_renewals(leases)).await;
            Ok(())
        };
        let of = node.clone();
        let reads = async move {
            reads.run(|| of.read_index_round()).await;
            Ok(())
        };
        let of = node.clone();
        let room = async move {
            room.run(|| of.apply_all()).await;
            Ok(())
        };
        let of = node.clone();
        let forwards = async move {
            forwards.run(|leader, calls, until| of.forward_all(leader, calls, until)).await;
            Ok(())
        };
        ([Box::pin(edge), Box::pin(log), Box::pin(reads), Box::pin(room)], Box::pin(forwards))
    }
}

impl Node {
    /// Renews leases with the next batch, and with later ones until the deadline: a batch has less
    /// time than a caller may have, and another caller's may be spent when this one joins it.
    ///
    /// # Errors
    /// Why it could not be done in time.
    pub(crate) async fn renew(
        &self,
        leases: Vec<LeaseId>,
        patience: Patience,
        deadline: Instant,
    ) -> Result<Renewed, NodeError> {
        let since = Instant::now();
        loop {
            if self.leadership.is_removed() {
                return Err(NodeError::NotMember { node: self.id });
            }
            let leader = self.current_leader();
            let batch = self.renew_with_next(leases.clone(), patience);
            let done = tokio::select! {
                biased; // an answer that is there counts
                done = timeout_at(deadline, batch) => done,
                // A leader that takes itself out never hears of what it proposes after that.
                () = self.leadership.removed() => continue,
            };
            match done {
                Err(_elapsed) => return Err(self.late(since)),
                Ok(Err(error)) if error.may_pass() || error.is_late() => {}
                Ok(renewed) => return renewed,
            }
            if !self.pause(leader, deadline).await {
                return Err(self.late(since));
            }
        }
    }

    async fn renew_with_next(
        &self,
        leases: Vec<LeaseId>,
        patience: Patience,
    ) -> Result<Renewed, NodeError> {
        if self.leads() {
            match self.queues.log_renewals.submit(leases.clone(), patience).await {
                Err(NodeError::NotLeader { .. }) => {}
                done => return done,
            }
        }
        self.queues.edge_renewals.submit(leases, patience).await
    }

    /// Renews leases at the leader.
    async fn renew_batch(
        &self,
        leases: Vec<LeaseId>,
        patience: Patience,
        deadline: Instant,
    ) -> Result<Renewed, NodeError> {
        self.on_leader((leases, patience), deadline, &mut 0).await
    }

    /// Proposes one entry with many renewals; only while this node leads.
    async fn propose_renewals(&self, leases: Vec<LeaseId>) -> Result<BatchRenewed, NodeError> {
        let since = Instant::now();
        self.meters.renewals.observe(leases.len() as f64);
        let proposed = self.propose_here(Renew(leases).into(), None);
        let proposed = timeout(self.tunables.request_timeout(), proposed).await;
        let outcome = proposed.map_err(|_| self.late(since))??;
        let (unknown, revision) = self.answer_to::<Renew>(outcome)?;
        let unknown = Arc::new(unknown.into_iter().collect());
        Ok(BatchRenewed { unknown, revision: revision.0 })
    }
}

async fn forward_renewals(
    node: &Node,
    leases: Vec<LeaseId>,
    patience: Patience,
) -> Result<BatchRenewed, NodeError> {
    let deadline = Instant::now() + node.tunables.request_timeout();
    let renewed = node.renew_batch(leases, patience, deadline).await?;
    let unknown = Arc::new(renewed.unknown.into_iter().collect());
    Ok(BatchRenewed { unknown, revision: renewed.revision })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Bound;

    const ENDS_WITHIN: Duration = Duration::from_secs(20);
    /// Longer than the test waits.
    const PATIENCE: Duration = Duration::from_secs(600);

    /// A node of which nothing runs: no batch is ever sent.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn renewals_end_where_their_node_was_removed_or_is() {
        let dir = tempfile::tempdir().unwrap();
        let bound = Bound::waiting(dir.path()).await;
        let node = bound.node();
        let renew = || {
            let node = node.clone();
            let renewed = async move {
                node.renew(vec![LeaseId(7)], Patience::None, Instant::now() + PATIENCE).await
            };
            tokio::spawn(timeout(ENDS_WITHIN, renewed))
        };
        let is_refused = |ended: Result<Result<_, NodeError>, _>, what: &str| match ended {
            Ok(Err(NodeError::NotMember { node })) => assert_eq!(node.get(), 1, "{what}"),
            other => panic!("{what}: {other:?}"),
        };
        let waits = renew();
        timeout(ENDS_WITHIN, async {
            while node.queues.edge_renewals.waiting() == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("it waits in the queue");
        assert!(!waits.is_finished());
        node.leadership.set_removed(true);
        is_refused(waits.await.unwrap(), "removed while it waits");
        is_refused(renew().await.unwrap(), "removed before");
        assert_eq!(node.queues.edge_renewals.waiting(), 1, "the second was not handed in");
        node.leadership.set_removed(false);
        let again = renew();
        timeout(ENDS_WITHIN, async {
            while node.queues.edge_renewals.waiting() < 2 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("a member again, it renews");
        again.abort();
    }
}
