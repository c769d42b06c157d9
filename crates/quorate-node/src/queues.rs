//! Where calls wait to be done together, and the loops that empty these queues.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use quorate_state::LeaseId;
use tokio::time::Instant;

use crate::error::NodeError;
use crate::forwards::{Forwards, Messages, forwards};
use crate::node::Node;
use crate::reads::{ReadIndex, Rounds, read_index};
use crate::renewals::{BatchRenewed, Batches, Patience, Renewals, renewals};
use crate::start_error::RunError;

/// The queues of a node.
#[derive(Debug)]
pub(crate) struct Queues {
    /// Renewals of this node's clients, on their way to the leader.
    pub(crate) edge_renewals: Renewals,
    /// Renewals of all nodes, on their way into the log; used while this node leads.
    pub(crate) log_renewals: Renewals,
    /// Calls on their way to the leader, where another node is it.
    pub(crate) forwards: Forwards,
    /// Linearizable reads that wait for a round.
    pub(crate) reads: ReadIndex,
}

/// Their other ends.
pub(crate) struct Waiting {
    edge: Batches,
    log: Batches,
    forwards: Messages,
    reads: Rounds,
}

pub(crate) type Loop = Pin<Box<dyn Future<Output = Result<(), RunError>> + Send>>;

pub(crate) fn queues(node: u64, renew_window: Duration) -> (Queues, Waiting) {
    let (edge_renewals, edge) = renewals(node, renew_window);
    let (log_renewals, log) = renewals(node, renew_window);
    let (forwards, messages) = forwards(node);
    let (reads, rounds) = read_index(node);
    let queues = Queues { edge_renewals, log_renewals, forwards, reads };
    (queues, Waiting { edge, log, forwards: messages, reads: rounds })
}

impl Waiting {
    /// The loops that belong where Raft runs, and the one that belongs where the clients' calls are handled.
    pub(crate) fn loops(self, node: &Arc<Node>) -> ([Loop; 3], Loop) {
        let Self { edge, log, forwards, reads } = self;
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
        let forwards = async move {
            forwards.run(|leader, calls, until| of.forward_all(leader, calls, until)).await;
            Ok(())
        };
        ([Box::pin(edge), Box::pin(log), Box::pin(reads)], Box::pin(forwards))
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
