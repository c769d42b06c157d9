//! Whether a node may be taken in because it asks for it itself.

use quorate_log::NodeId;
use tokio::time::Instant;

use crate::error::{MembershipError, NodeError};
use crate::node::membership::refused;
use crate::node::{Consistency, Node};

impl Node {
    /// Only while no other change is going on: a node that asks while it is being taken out is
    /// looked at when that is done.
    ///
    /// # Errors
    /// There is no quorum; it asks for itself, and was taken out. Its certificate may be good for
    /// months after that, so then its word does not count: whoever has the right takes it in again.
    pub(super) async fn check_add(
        &self,
        id: NodeId,
        by_itself: bool,
        deadline: Instant,
    ) -> Result<(), NodeError> {
        self.once_heard(|| self.check_quorum()).await?;
        if !by_itself || self.member(id).is_some() {
            return Ok(());
        }
        // A new leader may not have applied yet what an old one has done.
        let (registry, _) = self.read(Consistency::Linearizable, 0, deadline).await?;
        match registry.removed_at(id.get()) {
            Some(revision) => {
                Err(refused(MembershipError::WasRemoved { id, revision: revision.0 }))
            }
            None => Ok(()),
        }
    }
}
