//! An error of the leader is told to a client of another node as to one of the leader's own.

use std::collections::BTreeMap;

use quorate_state::{Incarnation, InstanceId, InstanceKey, Namespace, Rejection, ServiceName};

use super::*;
use crate::error::MembershipError;
use crate::node::calls::wire::read_answer;

fn id(number: u64) -> NodeId {
    NodeId::new(number).unwrap()
}

fn key() -> InstanceKey {
    let service = quorate_state::ServiceKey {
        namespace: Namespace::new("namespace", "default").unwrap(),
        name: ServiceName::new("service", "web").unwrap(),
    };
    InstanceKey { service, id: InstanceId::new("id", "a").unwrap() }
}

fn not_known(why: NodeError) -> NodeError {
    NodeError::Membership(MembershipError::NotKnown { why: Box::new(why) })
}

/// What a client gets: the code, the words, and what stands beside them.
fn seen(error: NodeError) -> (i32, String, BTreeMap<String, String>) {
    let status = Status::from(error);
    let metadata = status.metadata().clone().into_headers();
    let beside = metadata
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    (status.code().into(), status.message().to_owned(), beside)
}

#[test]
fn a_client_of_another_node_sees_what_one_of_the_leader_sees() {
    let node = id(1);
    let current = Incarnation(7);
    for (error, again, late) in [
        (NodeError::NotLeader { node }, true, false),
        (NodeError::Founding { node }, true, false),
        (NodeError::Membership(MembershipError::Busy), true, false),
        (NodeError::Membership(MembershipError::NobodyAnswers), true, false),
        (not_known(NodeError::NotLeader { node }), true, false),
        (not_known(NodeError::NoAnswer { leader: node, waited_ms: 5 }), true, false),
        (not_known(NodeError::Overloaded { waiting: 9 }), true, false),
        (
            not_known(NodeError::DiskFull {
                node,
                free_bytes: 1,
                reserve_bytes: 2,
                is_at_floor: true,
            }),
            false,
            false,
        ),
        (NodeError::Stopping { node }, true, false),
        (
            NodeError::Fatal { node, reason: Box::new(openraft::errors::Fatal::Panicked) },
            true,
            false,
        ),
        (NodeError::NoAnswer { leader: node, waited_ms: 5 }, false, true),
        (NodeError::NoLeader { waited_ms: 5 }, false, true),
        (NodeError::Overloaded { waiting: 9 }, false, false),
        (NodeError::Level { needed: 2, level: 1 }, false, false),
        (
            NodeError::DiskFull { node, free_bytes: 1, reserve_bytes: 2, is_at_floor: false },
            false,
            false,
        ),
        (
            NodeError::Unsettled {
                full: Box::new(NodeError::StateFull { node, bytes: 9, limit: 9 }),
            },
            false,
            false,
        ),
        (NodeError::StateFull { node, bytes: 9, limit: 9 }, false, false),
        (NodeError::Rejected(Rejection::RequestForgotten), false, false),
        (NodeError::Rejected(Rejection::NewerIncarnation { key: key(), current }), false, false),
        (NodeError::Membership(MembershipError::Unknown { id: id(9) }), false, false),
        (NodeError::Unexpected { node, what: "a bug".to_owned() }, false, false),
    ] {
        let answer = Answer::Failure(failure_of(error.clone()));
        let bytes = LeaderAnswer { answer: Some(answer) }.encode_to_vec();
        let told = read_answer(node, bytes.into()).unwrap_err();
        assert_eq!((told.may_pass(), told.is_late()), (again, late), "{error}");
        assert_eq!(told.is_busy(), error.is_busy(), "{error}");
        assert_eq!(told.unknown_node(), error.unknown_node(), "{error}");
        assert_eq!(seen(told), seen(error));
    }
}

/// A code that is none of gRPC's, and OK, which no failure is.
#[test]
fn a_failure_is_an_error_whatever_its_code() {
    for code in [0, 99, -1] {
        let failure = Failure { code, message: "no".to_owned(), ..Failure::default() };
        let answer = LeaderAnswer { answer: Some(Answer::Failure(failure)) };
        let told = read_answer(id(1), answer.encode_to_vec().into()).unwrap_err();
        let (code, message, _) = seen(told);
        assert_eq!((code, message.as_str()), (Code::Internal.into(), "no"));
    }
}
