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

/// 3 is to be replaced by 4.
#[test]
fn while_a_change_is_open_each_half_needs_a_live_majority() {
    let halves = [[1, 2, 3], [1, 2, 4]].map(|half| half.map(node).into());
    for (alive, expected) in [
        (&[1, 2][..], None),
        (&[2, 3, 4], None),
        (&[1, 3, 4], None),
        (&[1, 3], Some((1, 3, 2))),
        (&[2, 4], Some((1, 3, 2))),
        (&[3, 4], Some((1, 3, 2))),
        (&[], Some((0, 3, 2))),
    ] {
        let checked = check_halves(&halves, |voter| alive.contains(&voter.get()));
        let expected = expected.map(|(alive, voters, needed)| MembershipError::NoQuorum {
            alive,
            voters,
            needed,
        });
        assert_eq!(checked.err(), expected, "{alive:?} are alive");
    }
    let all = [[1, 2, 3, 4, 5].map(node).into()];
    assert_eq!(check_halves(&all, |voter| voter.get() <= 3), Ok(()));
}
