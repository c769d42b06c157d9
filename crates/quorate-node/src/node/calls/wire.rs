//! What only the leader can do, as the contract has it (`peer.proto`), both ways. An operation and
//! a reply stay in the encoding of the log.

use bytes::Bytes;
use prost::Message as _;
use quorate_log::NodeId;
use quorate_proto::peer::v1 as wire;
use quorate_proto::peer::v1::failure::Next;
use quorate_proto::peer::v1::leader_answer::Answer;
use quorate_proto::peer::v1::leader_call::Call;
use quorate_state::{Clock, LeaseId, Op, Request, Revision, Share};

use crate::error::{NodeError, Told};
use crate::node::MemberInfo;
use crate::node::calls::{LeaderAnswer, LeaderCall};
use crate::node::membership::{LeadCall, LevelChange, MembershipCall};
use crate::node::renewals::{Patience, Renewed};
use crate::types::{Member, Outcome, WireError, decode, encode};

/// UNAVAILABLE: the client may ask again, and a write is not done twice.
const UNAVAILABLE: i32 = 14;

pub(in crate::node) fn encode_call(call: &LeaderCall) -> Bytes {
    let call = match call {
        LeaderCall::Propose(op, request) => Call::Write(write_to_wire(op, request)),
        LeaderCall::Renew(leases, patience) => Call::Renew(wire::Renewal {
            lease_ids: leases.iter().map(|lease| lease.0).collect(),
            at_once: *patience == Patience::None,
        }),
        LeaderCall::Membership(call) => membership_to_wire(call),
        LeaderCall::Lead(LeadCall::Successor) => Call::Successor(wire::Successor {}),
        LeaderCall::Lead(LeadCall::Transfer { to }) => {
            Call::HandOver(wire::HandOver { to_id: to.get() })
        }
    };
    wire::LeaderCall { call: Some(call) }.encode_to_vec().into()
}

/// # Errors
/// This release does not know what is called for.
pub(crate) fn read_call(bytes: Bytes) -> Result<LeaderCall, WireError> {
    let call = wire::LeaderCall::decode(bytes)?.call.ok_or(WireError::Unknown)?;
    let membership = match call {
        Call::Write(write) => {
            let (op, request) = write_from_wire(&write)?;
            return Ok(LeaderCall::Propose(op, request));
        }
        Call::Renew(wire::Renewal { lease_ids, at_once }) => {
            let patience = if at_once { Patience::None } else { Patience::Window };
            return Ok(LeaderCall::Renew(leases(lease_ids), patience));
        }
        Call::Successor(wire::Successor {}) => return Ok(LeaderCall::Lead(LeadCall::Successor)),
        Call::HandOver(wire::HandOver { to_id }) => {
            return Ok(LeaderCall::Lead(LeadCall::Transfer { to: node(to_id)? }));
        }
        Call::Add(wire::AddMember { id, peer_address, learner_only, by_itself }) => {
            MembershipCall::Add { id: node(id)?, peer_address, learner_only, by_itself }
        }
        Call::Remove(wire::RemoveMember { id }) => MembershipCall::Remove { id: node(id)? },
        Call::Replace(wire::ReplaceMember { old_id, new_id, peer_address }) => {
            MembershipCall::Replace { old: node(old_id)?, new: node(new_id)?, peer_address }
        }
        Call::Announce(wire::AnnounceMember { id, peer_address, client_address }) => {
            let member = Member { peer_address, client_address };
            MembershipCall::Announce { id: node(id)?, member }
        }
        Call::SetLevel(wire::SetLevel { hold }) => {
            MembershipCall::SetLevel(if hold { LevelChange::Hold } else { LevelChange::Raise })
        }
    };
    Ok(LeaderCall::Membership(membership))
}

/// What a leader answers, but for a failure, which `api/grpc` makes of its error.
pub(crate) fn encode_answer(answer: &LeaderAnswer) -> Bytes {
    let answer = match answer {
        LeaderAnswer::Outcome(Outcome { reply, revision }) => {
            Answer::Written(wire::Written { reply: encode(reply), revision: revision.0 })
        }
        LeaderAnswer::Renewed(Renewed { unknown, revision }) => Answer::Renewed(wire::Renewed {
            unknown_ids: unknown.iter().map(|lease| lease.0).collect(),
            revision: *revision,
        }),
        LeaderAnswer::Members(members) => {
            Answer::Members(wire::Members { members: members.iter().map(member_to_wire).collect() })
        }
        LeaderAnswer::Leader(id) => Answer::NextLeader(wire::NextLeader { id: id.get() }),
    };
    wire::LeaderAnswer { answer: Some(answer) }.encode_to_vec().into()
}

/// The answer of a leader to one call.
///
/// # Errors
/// The leader's; or it answers what this release does not know, so that nobody can say what came of
/// the call.
pub(crate) fn read_answer(leader: NodeId, bytes: Bytes) -> Result<LeaderAnswer, NodeError> {
    let answer = wire::LeaderAnswer::decode(bytes).map_err(WireError::from);
    match answer.and_then(answer_from_wire) {
        Ok(answer) => answer,
        Err(error) => {
            let message = format!("node {leader} has answered, and it cannot be read: {error}");
            Err(NodeError::Told(Box::new(Told::new(UNAVAILABLE, message))))
        }
    }
}

fn answer_from_wire(
    answer: wire::LeaderAnswer,
) -> Result<Result<LeaderAnswer, NodeError>, WireError> {
    Ok(Ok(match answer.answer.ok_or(WireError::Unknown)? {
        Answer::Written(wire::Written { reply, revision }) => {
            LeaderAnswer::Outcome(Outcome { reply: decode(&reply)?, revision: Revision(revision) })
        }
        Answer::Renewed(wire::Renewed { unknown_ids, revision }) => {
            LeaderAnswer::Renewed(Renewed { unknown: leases(unknown_ids), revision })
        }
        Answer::Members(wire::Members { members }) => {
            let members = members.into_iter().map(member_from_wire).collect::<Result<_, _>>()?;
            LeaderAnswer::Members(members)
        }
        Answer::NextLeader(wire::NextLeader { id }) => LeaderAnswer::Leader(node(id)?),
        Answer::Failure(failure) => return Ok(Err(NodeError::Told(Box::new(told(failure))))),
    }))
}

fn told(failure: wire::Failure) -> Told {
    // What a later release may want done is not known here: its client is told.
    let (again, late) = match failure.next() {
        Next::Unspecified => (false, false),
        Next::Again => (true, false),
        Next::Late => (false, true),
    };
    let wire::Failure { code, message, unknown_id, incarnation, retry_after_ms, .. } = failure;
    let unknown = NodeId::new(unknown_id);
    Told { again, late, unknown, incarnation, retry_after_ms, ..Told::new(code, message) }
}

fn write_to_wire(op: &Op, request: &Request) -> wire::Write {
    let Request { origin, number, done_below, since, digest, share } = *request;
    let (since_ms, share) = (since.0, u32::from(share.0));
    wire::Write { op: encode(op), origin, number, done_below, since_ms, digest, share }
}

fn write_from_wire(write: &wire::Write) -> Result<(Op, Request), WireError> {
    let wire::Write { op, origin, number, done_below, since_ms, digest, share } = write;
    let share = Share(u16::try_from(*share).map_err(|_| WireError::Unknown)?);
    let (origin, number, done_below, digest) = (*origin, *number, *done_below, *digest);
    let since = Clock(*since_ms);
    Ok((decode(op)?, Request { origin, number, done_below, since, digest, share }))
}

fn membership_to_wire(call: &MembershipCall) -> Call {
    match call.clone() {
        MembershipCall::Add { id, peer_address, learner_only, by_itself } => {
            Call::Add(wire::AddMember { id: id.get(), peer_address, learner_only, by_itself })
        }
        MembershipCall::Remove { id } => Call::Remove(wire::RemoveMember { id: id.get() }),
        MembershipCall::Replace { old, new, peer_address } => {
            let (old_id, new_id) = (old.get(), new.get());
            Call::Replace(wire::ReplaceMember { old_id, new_id, peer_address })
        }
        MembershipCall::Announce { id, member: Member { peer_address, client_address } } => {
            Call::Announce(wire::AnnounceMember { id: id.get(), peer_address, client_address })
        }
        MembershipCall::SetLevel(change) => {
            Call::SetLevel(wire::SetLevel { hold: change == LevelChange::Hold })
        }
    }
}

fn member_to_wire(info: &MemberInfo) -> wire::ClusterMember {
    let MemberInfo { id, member: Member { peer_address, client_address }, voter } = info.clone();
    wire::ClusterMember { id: id.get(), peer_address, client_address, voter }
}

fn member_from_wire(member: wire::ClusterMember) -> Result<MemberInfo, WireError> {
    let wire::ClusterMember { id, peer_address, client_address, voter } = member;
    Ok(MemberInfo { id: node(id)?, member: Member { peer_address, client_address }, voter })
}

fn node(id: u64) -> Result<NodeId, WireError> {
    NodeId::new(id).ok_or(WireError::Lacks("a node's id"))
}

fn leases(ids: Vec<u64>) -> Vec<LeaseId> {
    ids.into_iter().map(LeaseId).collect()
}

#[cfg(test)]
mod tests;
