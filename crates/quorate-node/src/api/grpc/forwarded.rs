//! Calls that another node hands on to this one, because it leads. Each is read, checked and
//! refused by itself: others that came in the same message are no part of what is wrong with it.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use prost::Message as _;
use quorate_log::NodeId;
use quorate_proto::peer::v1::failure::Next;
use quorate_proto::peer::v1::leader_answer::Answer;
use quorate_proto::peer::v1::{Failure, ForwardAnswers, Forwarded, LeaderAnswer};
use quorate_proto::trailers;
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::api::grpc::door::deadline_in;
use crate::api::grpc::guard::{check_forwarded, check_still_member};
use crate::api::grpc::peer_error::PeerError;
use crate::api::incarnations;
use crate::error::{CallError, NodeError, Told};
use crate::node::Node;
use crate::node::calls::wire::{encode_answer, read_call};
use crate::node::calls::{self, LeaderCall};
use crate::node::forwards::FORWARDED_MAX;

/// # Errors
/// The sender is no member, or hands on more than it may.
pub(super) async fn execute_all(
    node: &Node,
    sender: NodeId,
    message: Forwarded,
) -> Result<ForwardAnswers, Status> {
    let Forwarded { calls, timeout_ms } = message;
    let deadline = deadline_in(Duration::from_millis(timeout_ms));
    if calls.len() > FORWARDED_MAX {
        return Err(PeerError::TooManyCalls { calls: calls.len() }.into());
    }
    check_still_member(node, sender)?;
    let answers = calls.into_iter().map(|call| execute(node, sender, call, deadline));
    Ok(ForwardAnswers { answers: join_all(answers).await })
}

async fn execute(node: &Node, sender: NodeId, call: Bytes, deadline: Instant) -> Bytes {
    let call = read_call(call).map_err(|error| PeerError::from(error).into());
    let call = call.and_then(|call| check_forwarded(sender, &call).map(|()| call));
    let failure = match call {
        Ok(call) => match lead(node, call, deadline).await {
            Ok(answer) => return encode_answer(&answer),
            Err(failure) => failure,
        },
        Err(refused) => failure(&refused),
    };
    LeaderAnswer { answer: Some(Answer::Failure(failure)) }.encode_to_vec().into()
}

/// As leader: who does not lead, or knows less than the sender, is not to judge what runs there
/// are.
async fn lead(
    node: &Node,
    call: LeaderCall,
    deadline: Instant,
) -> Result<calls::LeaderAnswer, Failure> {
    if let LeaderCall::Propose(op, _) = &call {
        node.check_leads().map_err(failure_of)?;
        let check = || incarnations::check_forwarded(op, incarnations::held(node));
        incarnations::check_entering(node, deadline, check).await.map_err(|error| match error {
            CallError::Node(error) => failure_of(error),
            CallError::Invalid(invalid) => failure(&PeerError::from(invalid).into()),
            other => failure(&other.into()),
        })?;
    }
    node.execute(call, deadline).await.map_err(failure_of)
}

fn failure_of(error: NodeError) -> Failure {
    let next = match &error {
        error if error.may_pass_elsewhere() => Next::Again,
        error if error.is_late() => Next::Late,
        _ => Next::Unspecified,
    };
    let unknown_id = error.unknown_node().map_or(0, NodeId::get);
    Failure { next: next.into(), unknown_id, ..failure(&error.into()) }
}

/// For the client that has called the other node.
fn failure(status: &Status) -> Failure {
    let number = |name| status.metadata().get(name)?.to_str().ok()?.parse().ok();
    Failure {
        code: status.code().into(),
        message: status.message().to_owned(),
        next: Next::Unspecified.into(),
        unknown_id: 0,
        incarnation: number(trailers::INCARNATION),
        retry_after_ms: number(trailers::RETRY_AFTER_MS),
    }
}

/// What a client is told. It is an error, whatever code the leader has for it.
pub(super) fn code_of(told: &Told) -> Code {
    match Code::from_i32(told.code) {
        Code::Ok | Code::Unknown => Code::Internal,
        code => code,
    }
}

#[cfg(test)]
mod tests;
