//! The one table from errors to gRPC codes.

use std::sync::Arc;

use quorate_proto::ClusterId;
use quorate_proto::trailers;
use quorate_state::Rejection;
use tonic::{Code, Status};

use crate::access::{Denied, Unidentified};
use crate::api::grpc::forwarded::code_of;
use crate::api::grpc::peer_error::PeerError;
use crate::error::{CallError, MembershipError, MoveError, NodeError, with_causes};
use crate::node::succession::Made;
use crate::peers::{SUCCEEDED_AGO, SUCCEEDED_BY};
use crate::types::WireError;

/// A few batches of renewals, a few hundred writes: what waits has gone by then.
const RETRY_AFTER_MS: u64 = 250;

impl From<NodeError> for Status {
    fn from(error: NodeError) -> Self {
        CallError::from(error).into()
    }
}

impl From<Unidentified> for Status {
    fn from(error: Unidentified) -> Self {
        Self::new(Code::Unauthenticated, with_causes(&error))
    }
}

impl From<Denied> for Status {
    fn from(error: Denied) -> Self {
        Self::new(Code::PermissionDenied, with_causes(&error))
    }
}

impl From<CallError> for Status {
    fn from(error: CallError) -> Self {
        let mut status = Self::new(code(&error), with_causes(&error));
        if let CallError::Node(NodeError::Rejected(
            Rejection::NewerIncarnation { current, .. } | Rejection::Deregistered { current, .. },
        )) = &error
        {
            let current = current.0.to_string();
            let value = current.parse().expect("invariant: digits are valid metadata");
            status.metadata_mut().insert(trailers::INCARNATION, value);
        }
        if let CallError::Node(NodeError::Told(told)) = &error {
            for (name, value) in [
                (trailers::INCARNATION, told.incarnation),
                (trailers::RETRY_AFTER_MS, told.retry_after_ms),
            ] {
                if let Some(value) = value {
                    status.metadata_mut().insert(name, value.into());
                }
            }
        }
        if let CallError::AnswersUnderWay { .. }
        | CallError::CallsUnderWay { .. }
        | CallError::NamesWatched { .. }
        | CallError::Arriving { .. }
        | CallError::BackupsUnderWay { .. }
        | CallError::Node(NodeError::Overloaded { .. }) = &error
        {
            status.metadata_mut().insert(trailers::RETRY_AFTER_MS, RETRY_AFTER_MS.into());
        }
        if let CallError::CallsUnderWay { .. }
        | CallError::NamesWatched { .. }
        | CallError::Arriving { .. }
        | CallError::BackupsUnderWay { .. } = &error
        {
            status.metadata_mut().insert(trailers::TRY_ELSEWHERE, 1.into());
        }
        status.set_source(Arc::new(error));
        status
    }
}

impl From<PeerError> for Status {
    fn from(error: PeerError) -> Self {
        let code = match &error {
            // As any call of which a later level is needed.
            PeerError::Unreadable(WireError::Unknown) => Code::FailedPrecondition,
            PeerError::Unreadable(_) | PeerError::Invalid(_) => Code::InvalidArgument,
            PeerError::Stamp(_)
            | PeerError::OtherCluster { .. }
            | PeerError::OtherNode { .. }
            | PeerError::LostDisk { .. }
            | PeerError::NoSender
            | PeerError::Refused { .. } => Code::FailedPrecondition,
            PeerError::OtherSender { .. } => Code::Unauthenticated,
            PeerError::Founding { .. } => Code::Unavailable,
            PeerError::TooManyCalls { .. } => Code::InvalidArgument,
            PeerError::Move(error) => match error {
                MoveError::TooLong { .. } | MoveError::NoAddress { .. } => Code::InvalidArgument,
                MoveError::NotMember { .. } => Code::FailedPrecondition,
            },
            PeerError::Snapshot(_) | PeerError::Registry(_) => Code::DataLoss,
            PeerError::Log(_)
            | PeerError::Receive(_)
            | PeerError::Raft(_)
            | PeerError::Stopped(_)
            | PeerError::Panicked(_) => Code::Internal,
        };
        let mut status = Self::new(code, with_causes(&error));
        if let PeerError::OtherCluster { ours, made: Some((_, Made::Recovered { ago })), .. } =
            &error
        {
            let ago_ms = ago.as_millis() as u64;
            status.metadata_mut().insert(SUCCEEDED_BY, ClusterId::to_wire(*ours).into());
            status.metadata_mut().insert(SUCCEEDED_AGO, ago_ms.into());
        }
        status.set_source(Arc::new(error));
        status
    }
}

/// What is logged of a call whose caller did not wait for the answer: nobody is sent it.
pub(super) fn caller_gone() -> Status {
    Status::cancelled("the caller went away; it may have been done")
}

fn code(error: &CallError) -> Code {
    match error {
        CallError::Invalid(_) => Code::InvalidArgument,
        CallError::TooLarge { .. }
        | CallError::AnswersUnderWay { .. }
        | CallError::CallsUnderWay { .. }
        | CallError::NamesWatched { .. }
        | CallError::Arriving { .. }
        | CallError::BackupsUnderWay { .. } => Code::ResourceExhausted,
        CallError::Late { .. } | CallError::NoSubscription => Code::DeadlineExceeded,
        CallError::Unwritten(_) | CallError::BackupUnconfirmed(_) | CallError::Ended { .. } => {
            Code::Unavailable
        }
        CallError::Panicked(_) | CallError::Backup(_) => Code::Internal,
        CallError::Node(error) => match error {
            NodeError::Rejected(rejection) => match rejection {
                Rejection::UnknownLease(_)
                | Rejection::UnknownInstance(_)
                | Rejection::NoOverride(_) => Code::NotFound,
                Rejection::NewerIncarnation { .. } | Rejection::Deregistered { .. } => {
                    Code::FailedPrecondition
                }
                Rejection::LeaseFull { .. }
                | Rejection::RequestReused { .. }
                | Rejection::NothingToKeep => Code::InvalidArgument,
                Rejection::RequestForgotten => Code::Unavailable,
                Rejection::ForeignLease => Code::PermissionDenied,
                Rejection::TooManyOverrides { .. } | Rejection::TooManyOrigins { .. } => {
                    Code::ResourceExhausted
                }
            },
            NodeError::NoLeader { .. }
            | NodeError::NoAnswer { .. }
            | NodeError::Behind { .. }
            | NodeError::Outdated { .. }
            | NodeError::NotMember { .. }
            | NodeError::NotLeader { .. }
            | NodeError::Founding { .. }
            | NodeError::Recalling { .. }
            | NodeError::RolledBack { .. }
            | NodeError::SnapshotLate { .. }
            | NodeError::Unsettled { .. }
            | NodeError::Stopping { .. }
            | NodeError::PeerUnreachable { .. } => Code::Unavailable,
            NodeError::Ahead { .. } => Code::OutOfRange,
            NodeError::DiskFull { .. }
            | NodeError::StateFull { .. }
            | NodeError::NoRoomForSnapshot { .. }
            | NodeError::Overloaded { .. } => Code::ResourceExhausted,
            NodeError::Level { .. } => Code::FailedPrecondition,
            NodeError::Membership(error) => code_of_change(error),
            NodeError::Fatal { .. } | NodeError::Unexpected { .. } => Code::Internal,
            NodeError::Told(told) => code_of(told),
        },
    }
}

fn code_of_change(error: &MembershipError) -> Code {
    match error {
        MembershipError::Unknown { .. } => Code::NotFound,
        MembershipError::Busy => Code::Aborted,
        MembershipError::NobodyAnswers | MembershipError::NotKnown { .. } => Code::Unavailable,
        MembershipError::TooSlow { .. } => Code::DeadlineExceeded,
        MembershipError::WrongId { .. }
        | MembershipError::NoAnswer { .. }
        | MembershipError::OtherCluster { .. }
        | MembershipError::Founder { .. }
        | MembershipError::OtherLevels { .. }
        | MembershipError::Levels { .. }
        | MembershipError::Taken { .. }
        | MembershipError::WasRemoved { .. }
        | MembershipError::PerhapsRemoved { .. }
        | MembershipError::VotesAlready { .. }
        | MembershipError::NoQuorum { .. }
        | MembershipError::WouldLoseQuorum { .. }
        | MembershipError::LastVoter { .. }
        | MembershipError::NotVoter { .. }
        | MembershipError::Silent { .. }
        | MembershipError::Mute { .. }
        | MembershipError::Unfit { .. }
        | MembershipError::NoOther => Code::FailedPrecondition,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Unanswered;

    /// Clients go on elsewhere after UNAVAILABLE, and wait or give up after RESOURCE_EXHAUSTED: a
    /// row that went to another code would end calls that another node can serve.
    #[test]
    fn what_another_node_may_do_is_unavailable_and_what_none_can_is_exhausted() {
        let node = quorate_log::NodeId::new(1).unwrap();
        let address = "127.0.0.1:1".to_owned();
        for error in [
            NodeError::NoLeader { waited_ms: 5 },
            NodeError::NoAnswer { leader: node, waited_ms: 5 },
            NodeError::NotLeader { node },
            NodeError::NotMember { node },
            NodeError::Founding { node },
            NodeError::Outdated { node, for_ms: 5 },
            NodeError::Recalling { node },
            NodeError::RolledBack { node, acknowledged: 9, term: 1 },
            NodeError::SnapshotLate { waited_ms: 5 },
            NodeError::Unsettled {
                full: Box::new(NodeError::StateFull { node, bytes: 9, limit: 9 }),
            },
            NodeError::Stopping { node },
            NodeError::PeerUnreachable { node, address, why: Unanswered::Late },
            NodeError::Rejected(Rejection::RequestForgotten),
            NodeError::Membership(MembershipError::NobodyAnswers),
            NodeError::Membership(MembershipError::NotKnown {
                why: Box::new(NodeError::Overloaded { waiting: 9 }),
            }),
        ] {
            assert_eq!(Status::from(error.clone()).code(), Code::Unavailable, "{error}");
        }
        for error in [
            NodeError::StateFull { node, bytes: 9, limit: 9 },
            NodeError::DiskFull { node, free_bytes: 1, reserve_bytes: 2, is_at_floor: false },
            NodeError::NoRoomForSnapshot { node, free_bytes: 1, wanted_bytes: 2 },
            NodeError::Overloaded { waiting: 9 },
        ] {
            assert_eq!(Status::from(error.clone()).code(), Code::ResourceExhausted, "{error}");
        }
    }
}
