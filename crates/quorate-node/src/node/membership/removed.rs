//! Whether a node may be taken in because it asks for it itself.

use quorate_log::NodeId;
use quorate_state::Removal;
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
        match registry.removal_of(id.get()) {
            Some(removal) => Err(refused(refusal(id, removal))),
            None => Ok(()),
        }
    }
}

fn refusal(id: NodeId, removal: Removal) -> MembershipError {
    match removal {
        Removal::At(revision) => MembershipError::WasRemoved { id, revision: revision.0 },
        Removal::Perhaps => MembershipError::PerhapsRemoved { id },
    }
}

#[cfg(test)]
mod tests {
    use quorate_state::Revision;

    use super::*;

    #[test]
    fn a_node_of_which_it_is_not_known_is_not_said_to_have_been_taken_out() {
        let told = |removal| refusal(NodeId::new(7).unwrap(), removal).to_string();
        let sure = told(Removal::At(Revision(9)));
        assert!(sure.starts_with("node 7 was taken out of the cluster at revision 9"), "{sure}");
        let unsure = told(Removal::Perhaps);
        assert!(unsure.starts_with("whether node 7 was taken out"), "{unsure}");
        for told in [sure, unsure] {
            assert!(told.contains("`quorate cluster add 7 ADDRESS`"), "{told}");
        }
    }
}
