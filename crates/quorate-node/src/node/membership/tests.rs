//! What errors of a change of the members become.

use openraft::errors::{ForwardToLeader, NodeNotFound, Operation};

use super::*;

fn node(id: u64) -> NodeId {
    NodeId::new(id).unwrap()
}

#[test]
fn a_learner_that_cannot_be_reset_leaves_the_node_taking_part() {
    let lost = AllowNextRevertError::ForwardToLeader(ForwardToLeader::empty());
    let error = revert_error(node(1), &lost);
    assert_eq!(error, NodeError::NotLeader { node: node(1) });
    assert!(error.may_pass(), "nobody looks for the next leader");

    let operation = Operation::AllowNextRevert;
    let unknown = AllowNextRevertError::NodeNotFound(NodeNotFound::new(node(4), operation));
    let error = revert_error(node(1), &unknown);
    assert_eq!(error, refused(MembershipError::Unknown { id: node(4) }));
}
