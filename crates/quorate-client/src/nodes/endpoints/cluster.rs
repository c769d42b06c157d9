//! Of which cluster the client is: that of the first answer, until no node is left that may be of
//! it.

use std::time::{Duration, Instant};

use quorate_proto::ClusterId;
use quorate_proto::trailers;
use tokio::sync::watch;
use tonic::Status;

use super::{Address, Endpoints, Inner, Node};

/// A node that failed may still be of the client's cluster for this long after one of that cluster
/// answered last. Longer than an election: a cluster that is only between two leaders must not be
/// left for a stranger.
pub(super) const MAY_RETURN: Duration = Duration::from_secs(5);

impl Endpoints {
    /// The cluster that the client is of; `None` before the first answer.
    pub(crate) fn cluster_id(&self) -> Option<ClusterId> {
        *self.cluster.borrow()
    }

    /// Follows which cluster the client is of.
    pub(crate) fn watch_cluster(&self) -> watch::Receiver<Option<ClusterId>> {
        self.cluster.subscribe()
    }

    /// A node refused: it works.
    ///
    /// # Errors
    /// It says that it is of another cluster, while there may be nodes of the client's own: then
    /// its refusal does not count, and the next node is to be asked.
    pub(crate) fn refused(&self, address: &Address, refusal: &Status) -> Result<(), Status> {
        let mut inner = self.lock();
        if let Some(is) = told_by(refusal) {
            inner.note_cluster(address, is);
            if let Some(ours) = self.cluster_id().filter(|ours| *ours != is) {
                inner.check_left(ours, is)?;
                drop(inner);
                // A refusal does not bring the client to a cluster; an answer of another node may.
                self.failed(address);
                return Ok(());
            }
        }
        if let Some(node) = inner.node_mut(address) {
            node.failed_at = None;
        }
        Ok(())
    }

    /// Notes which cluster a node is of. The client goes over to another one when each node that it
    /// knows has failed or says that it is of another: so it does at once where a cluster was
    /// founded again on the same addresses, and does not waver where two clusters answer. A node
    /// of the old one that still runs has no leader; it keeps no client where most nodes are of one
    /// that has.
    pub(super) fn admit(
        &self,
        inner: &mut Inner,
        address: &Address,
        is: ClusterId,
        has_leader: bool,
    ) -> Result<(), Status> {
        let ours = self.cluster_id();
        inner.note_cluster(address, is);
        if let Some(node) = inner.node_mut(address) {
            node.has_leader = has_leader;
        }
        if ours != Some(is) {
            if let Some(ours) = ours {
                inner.check_left(ours, is)?;
            }
            let of_it = inner.nodes.iter_mut().filter(|node| node.cluster_id == Some(is));
            of_it.for_each(|node| node.failed_at = None);
            (inner.leader, inner.leaderless) = (None, None);
            (inner.members_as_of, inner.changed_at) = (0, 0);
            self.cluster.send_replace(Some(is));
            if let Some(was) = ours {
                self.counts.cluster_changes.one_more();
                tracing::warn!(%was, %is, %address, "another cluster answers: registering and reading anew");
                self.failure.notify_one(); // its members have to be learned
            }
        }
        let now = Instant::now();
        inner.heard = Some(now);
        let since = inner.leaderless.map_or(now, |(since, _)| since);
        inner.leaderless = (!has_leader).then_some((since, now));
        Ok(())
    }
}

impl Inner {
    fn note_cluster(&mut self, address: &Address, is: ClusterId) {
        if let Some(node) = self.node_mut(address) {
            node.cluster_id = Some(is);
        }
    }

    /// # Errors
    /// Some node may be of the client's cluster, so that no other one counts.
    fn check_left(&self, ours: ClusterId, is: ClusterId) -> Result<(), Status> {
        if !self.may_have_nodes_of(ours) || self.was_founded_again(is) {
            return Ok(());
        }
        Err(Status::unavailable(format!(
            "the node is of cluster {is}, and there may still be nodes of {ours}"
        )))
    }

    /// Whether most nodes are of this cluster, which has a leader, and the client's own has none:
    /// for longer than an election takes, by all that its nodes say, and until now.
    fn was_founded_again(&self, is: ClusterId) -> bool {
        let is_led = |node: &&Node| node.cluster_id == Some(is) && node.has_leader;
        let is_most = 2 * self.nodes.iter().filter(is_led).count() > self.nodes.len();
        let is_leaderless = self.leaderless.is_some_and(|(since, last)| {
            since.elapsed() >= MAY_RETURN && last.elapsed() < MAY_RETURN
        });
        is_most && is_leaderless
    }

    /// Whether some node may be of this cluster, which was the client's: one that was not asked
    /// yet, too.
    fn may_have_nodes_of(&self, cluster_id: ClusterId) -> bool {
        let may_return = self.heard.is_some_and(|heard| heard.elapsed() < MAY_RETURN);
        let may_be = |node: &Node| {
            node.cluster_id.is_none_or(|of| of == cluster_id)
                && (node.failed_at.is_none() || may_return)
        };
        self.nodes.iter().any(may_be)
    }
}

/// Of which cluster a node is, by a refusal: it has no header of ours.
fn told_by(refusal: &Status) -> Option<ClusterId> {
    let told = refusal.metadata().get(trailers::CLUSTER)?.to_str().ok()?;
    ClusterId::new(u64::from_str_radix(told, 16).ok()?)
}
