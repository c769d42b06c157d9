//! A leader that has asked another node to lead takes no writes and sends no heartbeats, so that
//! the other has all of its log and wins. Where nobody comes to lead (the one that was asked is cut
//! off from the others, say), it goes on. The library has no call for that: once it has begun, it
//! waits for ever.
//!
//! So this node steps down by a vote for the other one in the next term, and stands for election in
//! the term after that. The vote is on disk before anything else happens, as for a candidate that
//! asks; only whoever asks for it is ever told of it, and then has the log for it. If the other one
//! does win that term, or anyone else leads by then, nothing comes of this.

use std::sync::Arc;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::raft::VoteRequest;
use tokio::time::timeout_at;

use crate::error::RunError;
use crate::node::Node;
use crate::node::leadership::Handed;
use crate::raft::committed::last_log_id;
use crate::types::{LogStore, Vote};

pub(crate) async fn run(node: Arc<Node>, log: LogStore) -> Result<(), RunError> {
    let mut handed = node.leadership().handed();
    while handed.changed().await.is_ok() {
        let Some(last) = *handed.borrow_and_update() else { continue };
        let taken = timeout_at(last.since + node.taken_within(), leads_no_more(&node, last.term));
        // One that stops leaves it to the others: without heartbeats, they elect.
        if taken.await.is_err() && !node.leadership().is_stopping() {
            lead_again(&node, &log, last).await;
        }
    }
    std::future::pending().await
}

async fn leads_no_more(node: &Node, term: u64) {
    let mut view = node.view().clone();
    loop {
        let still_leads = {
            let view = view.borrow_watched();
            view.state.is_leader() && view.vote.leader_id().term == term
        };
        if !still_leads || view.changed().await.is_err() {
            return;
        }
    }
}

async fn lead_again(node: &Node, log: &LogStore, Handed { to, term, .. }: Handed) {
    tracing::warn!(
        to = to.get(),
        "it was asked to lead, and does not: this node stands for election"
    );
    node.leadership().set_untaken(to);
    // The log has failed, and with it soon the node.
    let Ok(last_log_id) = last_log_id(log).await else { return };
    let vote = Vote::new(term + 1, to);
    // As the other one would ask: the lease of this leader does not hold.
    let ballot = VoteRequest { vote, last_log_id, leadership_transfer: true };
    let _told_by_its_end = node.raft().vote(ballot).await;
    let _told_by_its_end = node.raft().trigger().elect(true).await;
}
