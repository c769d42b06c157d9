//! The end of a node whose cluster an operator has made another one from (`quorate recover`): it
//! learns that from nodes of the new one, unasked (`upkeep/succession.rs`) or when it asks
//! (`upkeep/recall.rs`).
//!
//! One that ran already when that was done goes on, as far as clocks are right
//! (`upkeep/succession.rs`): whoever recovers beside a running majority, or tries it out on a copy,
//! has two clusters, and the majority goes on. So does each of two clusters that were made of the
//! same one: nobody knows which is wanted, and the log of each says so.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quorate_log::NodeId;
use quorate_proto::ClusterId;
use quorate_state::Predecessor;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::error::RunError;
use crate::node::Node;

/// How long a node has to answer that is looked for where it was.
const ANSWER_WITHIN: Duration = Duration::from_millis(250);

/// A node that is told for so long that its own cluster was taken over by another has a rival. A
/// successor of its own cluster says that, too, and ends it within that, or is told of itself.
const RIVAL_AFTER: Duration = Duration::from_secs(2);

/// What a node of another cluster says: that this was made from the cluster `of`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claim {
    pub(crate) told_by: NodeId,
    pub(crate) by: Option<ClusterId>,
    pub(crate) of: Option<ClusterId>,
    /// How long ago, at least.
    pub(crate) ago: Duration,
    /// That it is this node that says so is sure: by its certificate, or since it was called.
    pub(crate) is_proved: bool,
}

/// How this node's cluster was made from another one.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Made {
    /// From a backup (`quorate restore`): that one may run on, and rightly.
    Restored,
    /// From what was left of it (`quorate recover`), so long ago, at least.
    Recovered { ago: Duration },
}

/// What this node has heard.
#[derive(Debug, Default)]
pub(super) struct Succession {
    /// Since when this node knows what its cluster was made from.
    known_since: OnceLock<Instant>,
    /// The new cluster, and the node of it that said so.
    by: watch::Sender<Option<(NodeId, ClusterId)>>,
    /// Since when this node hears that another cluster was made from the same one as its own.
    rival_since: OnceLock<Instant>,
    /// The log says that there are two clusters.
    has_warned: AtomicBool,
}

impl Node {
    /// Whether and how this node's cluster was made from that one; `wall`: now, since 1970.
    pub(crate) fn made_from(&self, other: Option<ClusterId>, wall: Duration) -> Option<Made> {
        let state = self.applied.lock();
        let mut before = state.registry.predecessors().iter();
        let old = before.find(|old| Some(ClusterId::from(old.cluster_id)) == other)?;
        Some(match old.left.is_empty() {
            true => Made::Restored,
            false => Made::Recovered { ago: self.made_ago(old, wall) },
        })
    }

    /// How long ago this node's cluster was made from that one, at least; `wall`: now, since 1970.
    pub(crate) fn made_ago(&self, old: &Predecessor, wall: Duration) -> Duration {
        let known = self.succession.known_since.get_or_init(Instant::now).elapsed();
        wall.saturating_sub(Duration::from_millis(old.wall_ms)).max(known)
    }

    /// Takes a claim; true: this node ends. False: it is of the new cluster itself.
    ///
    /// # Errors
    /// Why it goes on.
    pub(crate) async fn hear_succession(&self, claim: Claim) -> Result<bool, &'static str> {
        let ours = self.peers.cluster_id();
        let Some(by) = claim.by else { return Err("it is of no cluster") };
        if ours == claim.by {
            return Ok(false);
        }
        if ours.is_none() || ours != claim.of {
            self.hear_of_rival(claim, by);
            return Err("it speaks of another cluster than this node's");
        }
        if self.has_taken_out(claim.told_by) && self.member(claim.told_by).is_none() {
            return Err(self.why_out(claim.told_by));
        }
        if self.started.elapsed() >= claim.ago {
            if !self.succession.has_warned.swap(true, Ordering::Relaxed) {
                tracing::error!(
                    told_by = claim.told_by.get(),
                    %by,
                    "an operator has made another cluster from this one while this node ran: there are two; stop the nodes of one of them"
                );
            }
            return Err("it ran already when another cluster was made from its own");
        }
        // Whoever reaches this listener can say so where nodes have no certificates. A cluster that
        // has a leader is not ended by that, nor one that is between two. One that has had none
        // since this node started is the case that this is for: nodes that come back.
        let lost_for = self.leadership.lost_for();
        let is_led = self.leadership.leader().is_some()
            || lost_for.is_some_and(|lost_for| lost_for < self.alone_after());
        let is_sure = claim.is_proved || !is_led;
        if !is_sure && !self.finds_at_its_place(claim.told_by, by).await {
            return Err("this cluster has a leader, or lost it just now, and the node was not \
                        found where it was");
        }
        self.succession.by.send_replace(Some((claim.told_by, by)));
        Ok(true)
    }

    /// Where two clusters were made from one, each from another node's directory or backup, each
    /// has what the other lacks.
    fn hear_of_rival(&self, claim: Claim, by: ClusterId) {
        let is_before = |old: &Predecessor| Some(ClusterId::from(old.cluster_id)) == claim.of;
        if !self.applied.lock().registry.predecessors().iter().any(is_before) {
            return;
        }
        let since = self.succession.rival_since.get_or_init(Instant::now);
        if since.elapsed() >= RIVAL_AFTER
            && !self.succession.has_warned.swap(true, Ordering::Relaxed)
        {
            let of = claim.of.map(|of| of.to_string());
            tracing::error!(
                told_by = claim.told_by.get(),
                %by,
                of,
                "two clusters were made from one, by `recover` or `restore`: this one, and another; neither has what is written to the other: decide which goes on, and stop all nodes of the other (docs/operations.md#two-clusters-of-one)"
            );
        }
    }

    /// Whether a member of this cluster is of that one now.
    async fn finds_at_its_place(&self, id: NodeId, by: ClusterId) -> bool {
        let Some(member) = self.member(id) else { return false };
        let address = self.peers.book.address(id, &member.peer_address);
        let answer = self.peers.identify(id, &address, None, ANSWER_WITHIN).await;
        answer.is_ok_and(|it| it.cluster_id == Some(by) && it.node_id == id.get())
    }

    /// Returns when another cluster has taken the place of this node's.
    pub(crate) async fn once_succeeded(&self) -> RunError {
        let mut heard = self.succession.by.subscribe();
        loop {
            if let Some((told_by, by)) = *heard.borrow_and_update() {
                return self.is_succeeded(told_by, by);
            }
            if heard.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    pub(crate) fn is_succeeded(&self, told_by: NodeId, by: ClusterId) -> RunError {
        RunError::Succeeded { id: self.id, cluster_id: self.peers.cluster_id(), told_by, by }
    }
}
