//! The Raft library's messages as the contract has them (`peer.proto`), both ways. What the library
//! adds to its types is seen here first: each is taken apart by name.
//!
//! Entries stay in the encoding of the log: they are encoded once, and copied as often as any bytes
//! that are sent.

use bytes::Bytes;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError,
    StreamAppendResult, TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use quorate_log::NodeId;
use quorate_proto::peer::v1 as wire;
use quorate_proto::peer::v1::append_response::Answer as Appended;
use quorate_proto::peer::v1::transfer_response::Answer as Transferred;

use crate::raft::recall::{Promise, Reached, Recalled};
use crate::types::{LogId, TypeConfig, Vote, WireError, decode, encode};

type Append = AppendEntriesRequest<TypeConfig>;

pub(crate) fn vote_to_wire(vote: &Vote) -> wire::Ballot {
    let Vote { leader_id, committed } = *vote;
    wire::Ballot { term: leader_id.term, node_id: leader_id.voted_for.get(), committed }
}

/// # Errors
/// It is not there, or of no node.
pub(crate) fn vote_from_wire(ballot: Option<wire::Ballot>) -> Result<Vote, WireError> {
    let wire::Ballot { term, node_id, committed } = ballot.ok_or(WireError::Lacks("a vote"))?;
    let node = NodeId::new(node_id).ok_or(WireError::Lacks("the node of a vote"))?;
    Ok(match committed {
        true => Vote::new_committed(term, node),
        false => Vote::new(term, node),
    })
}

fn log_id_to_wire(log_id: LogId) -> wire::LogId {
    wire::LogId { term: log_id.committed_leader_id().term, index: log_id.index() }
}

fn log_id_from_wire(log_id: wire::LogId) -> LogId {
    LogId::new(log_id.term.into(), log_id.index)
}

pub(super) fn append_to_wire(append: &Append) -> wire::AppendRequest {
    let AppendEntriesRequest { vote, prev_log_id, entries, leader_commit } = append;
    wire::AppendRequest {
        vote: Some(vote_to_wire(vote)),
        previous: prev_log_id.map(log_id_to_wire),
        committed: leader_commit.map(log_id_to_wire),
        entries: if entries.is_empty() { Bytes::new() } else { encode(entries) },
    }
}

pub(crate) fn append_from_wire(append: wire::AppendRequest) -> Result<Append, WireError> {
    let wire::AppendRequest { vote, previous, committed, entries } = append;
    Ok(AppendEntriesRequest {
        vote: vote_from_wire(vote)?,
        prev_log_id: previous.map(log_id_from_wire),
        entries: if entries.is_empty() { Vec::new() } else { decode(&entries)? },
        leader_commit: committed.map(log_id_from_wire),
    })
}

pub(crate) fn appended_to_wire(answer: &StreamAppendResult<TypeConfig>) -> wire::AppendResponse {
    let answer = match answer {
        Ok(up_to) => {
            Appended::Acknowledged(wire::Acknowledged { up_to: up_to.map(log_id_to_wire) })
        }
        Err(StreamAppendError::Conflict(at)) => Appended::Conflict(log_id_to_wire(*at)),
        Err(StreamAppendError::HigherVote(vote)) => Appended::HigherVote(vote_to_wire(vote)),
    };
    wire::AppendResponse { answer: Some(answer) }
}

pub(super) fn appended_from_wire(
    answer: wire::AppendResponse,
) -> Result<StreamAppendResult<TypeConfig>, WireError> {
    Ok(match answer.answer.ok_or(WireError::Unknown)? {
        Appended::Acknowledged(wire::Acknowledged { up_to }) => Ok(up_to.map(log_id_from_wire)),
        Appended::Conflict(at) => Err(StreamAppendError::Conflict(log_id_from_wire(at))),
        Appended::HigherVote(vote) => {
            Err(StreamAppendError::HigherVote(vote_from_wire(Some(vote))?))
        }
    })
}

/// What a lone append is answered with, in the words of a stream of them.
pub(crate) fn as_on_stream(
    answer: AppendEntriesResponse<TypeConfig>,
    asked: &Asked,
) -> StreamAppendResult<TypeConfig> {
    match (answer, asked.previous) {
        (AppendEntriesResponse::Success, _) => Ok(asked.last),
        (AppendEntriesResponse::PartialSuccess(up_to), _) => Ok(up_to),
        (AppendEntriesResponse::HigherVote(vote), _) => Err(StreamAppendError::HigherVote(vote)),
        (AppendEntriesResponse::Conflict, Some(at)) => Err(StreamAppendError::Conflict(at)),
        // There is nothing before the log that could differ.
        (AppendEntriesResponse::Conflict, None) => Ok(None),
    }
}

/// The other way.
pub(super) fn as_alone(
    answer: StreamAppendResult<TypeConfig>,
    asked: &Asked,
) -> AppendEntriesResponse<TypeConfig> {
    match answer {
        Ok(up_to) if up_to == asked.last => AppendEntriesResponse::Success,
        Ok(up_to) => AppendEntriesResponse::PartialSuccess(up_to),
        Err(StreamAppendError::Conflict(_)) => AppendEntriesResponse::Conflict,
        Err(StreamAppendError::HigherVote(vote)) => AppendEntriesResponse::HigherVote(vote),
    }
}

/// Where an append begins and ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    previous: Option<LogId>,
    last: Option<LogId>,
}

impl Asked {
    pub(crate) fn by(append: &Append) -> Self {
        let previous = append.prev_log_id;
        Self { previous, last: append.entries.last().map(|entry| entry.log_id).or(previous) }
    }
}

pub(super) fn ballot_to_wire(ballot: &VoteRequest<TypeConfig>) -> wire::VoteRequest {
    let VoteRequest { vote, last_log_id, leadership_transfer } = ballot;
    let (vote, last) = (Some(vote_to_wire(vote)), last_log_id.map(log_id_to_wire));
    wire::VoteRequest { vote, last, is_transfer: *leadership_transfer }
}

pub(crate) fn ballot_from_wire(
    ballot: wire::VoteRequest,
) -> Result<VoteRequest<TypeConfig>, WireError> {
    let wire::VoteRequest { vote, last, is_transfer } = ballot;
    let (vote, last_log_id) = (vote_from_wire(vote)?, last.map(log_id_from_wire));
    Ok(VoteRequest { vote, last_log_id, leadership_transfer: is_transfer })
}

pub(crate) fn voted_to_wire(answer: &VoteResponse<TypeConfig>) -> wire::VoteResponse {
    let VoteResponse { vote, vote_granted, last_log_id } = answer;
    let (vote, last) = (Some(vote_to_wire(vote)), last_log_id.map(log_id_to_wire));
    wire::VoteResponse { vote, granted: *vote_granted, last }
}

pub(super) fn voted_from_wire(
    answer: wire::VoteResponse,
) -> Result<VoteResponse<TypeConfig>, WireError> {
    let wire::VoteResponse { vote, granted, last } = answer;
    Ok(VoteResponse::new(vote_from_wire(vote)?, last.map(log_id_from_wire), granted))
}

pub(super) fn transfer_to_wire(
    transfer: &TransferLeaderRequest<TypeConfig>,
) -> wire::TransferRequest {
    wire::TransferRequest {
        leader: Some(vote_to_wire(transfer.from_leader())),
        to_id: transfer.to_node_id().get(),
        last: transfer.last_log_id().copied().map(log_id_to_wire),
    }
}

pub(crate) fn transfer_from_wire(
    transfer: wire::TransferRequest,
) -> Result<TransferLeaderRequest<TypeConfig>, WireError> {
    let wire::TransferRequest { leader, to_id, last } = transfer;
    let to = NodeId::new(to_id).ok_or(WireError::Lacks("the node that is to lead"))?;
    Ok(TransferLeaderRequest::new(vote_from_wire(leader)?, to, last.map(log_id_from_wire)))
}

pub(crate) fn transferred_to_wire(
    answer: &TransferLeaderResponse<TypeConfig>,
) -> wire::TransferResponse {
    let answer = match answer {
        Ok(()) => Transferred::Taken(wire::TransferTaken {}),
        Err(TransferLeaderError::VoteChanged { expected, actual }) => {
            let [expected, actual] = [expected, actual].map(|vote| Some(vote_to_wire(vote)));
            Transferred::VoteChanged(wire::TransferVoteChanged { expected, actual })
        }
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
            let [expected, actual] = [expected, actual].map(|at| at.map(log_id_to_wire));
            Transferred::NotFlushed(wire::TransferNotFlushed { expected, actual })
        }
    };
    wire::TransferResponse { answer: Some(answer) }
}

pub(super) fn transferred_from_wire(
    answer: wire::TransferResponse,
) -> Result<TransferLeaderResponse<TypeConfig>, WireError> {
    Ok(match answer.answer.ok_or(WireError::Unknown)? {
        Transferred::Taken(wire::TransferTaken {}) => Ok(()),
        Transferred::VoteChanged(wire::TransferVoteChanged { expected, actual }) => {
            let (expected, actual) = (vote_from_wire(expected)?, vote_from_wire(actual)?);
            Err(TransferLeaderError::VoteChanged { expected, actual })
        }
        Transferred::NotFlushed(wire::TransferNotFlushed { expected, actual }) => {
            let [expected, actual] = [expected, actual].map(|at| at.map(log_id_from_wire));
            Err(TransferLeaderError::LogNotFlushed { expected, actual })
        }
    })
}

pub(crate) fn installed_to_wire(answer: &SnapshotResponse<TypeConfig>) -> wire::SnapshotResponse {
    let SnapshotResponse { vote } = answer;
    wire::SnapshotResponse { vote: Some(vote_to_wire(vote)) }
}

pub(super) fn installed_from_wire(
    answer: wire::SnapshotResponse,
) -> Result<SnapshotResponse<TypeConfig>, WireError> {
    Ok(SnapshotResponse::new(vote_from_wire(answer.vote)?))
}

pub(crate) fn recalled_to_wire(recalled: &Recalled) -> wire::Recalled {
    let Recalled { reached: Reached { term, last }, promise } = *recalled;
    let Promise { term: promised, in_term, last: furthest } = promise;
    let promise = wire::Promise {
        term: promised,
        in_term: in_term.map(log_id_to_wire),
        last: furthest.map(log_id_to_wire),
    };
    wire::Recalled { term, last: last.map(log_id_to_wire), promise: Some(promise) }
}

pub(crate) fn recalled_from_wire(recalled: wire::Recalled) -> Recalled {
    let wire::Recalled { term, last, promise } = recalled;
    let wire::Promise { term: promised, in_term, last: furthest } = promise.unwrap_or_default();
    let promise = Promise {
        term: promised,
        in_term: in_term.map(log_id_from_wire),
        last: furthest.map(log_id_from_wire),
    };
    Recalled { reached: Reached { term, last: last.map(log_id_from_wire) }, promise }
}

#[cfg(test)]
mod tests;
