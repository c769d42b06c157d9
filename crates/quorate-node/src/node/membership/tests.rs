//! What errors of a change of the members become.

use openraft::errors::{ForwardToLeader, NodeNotFound, Operation};

use super::*;

#[test]
fn a_learner_that_cannot_be_reset_leaves_the_node_taking_part() {
    let lost = AllowNextRevertError::ForwardToLeader(ForwardToLeader::empty());
    let error = revert_error(1, &lost);
    assert_eq!(error, NodeError::NotLeader { node: 1 });
    assert!(error.may_pass(), "nobody looks for the next leader");

    let operation = Operation::AllowNextRevert;
    let unknown = AllowNextRevertError::NodeNotFound(NodeNotFound::new(4, operation));
    assert_eq!(revert_error(1, &unknown), refused(MembershipError::Unknown { id: 4 }));
}
