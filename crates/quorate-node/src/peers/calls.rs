//! What this node asks of others, in types of ours: the contract's messages are made and read here,
//! those of Raft in `raft/network`, calls of the leader in `node/calls`. Knows no node and no
//! registry.

use std::error::Error as _;
use std::future::Future;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use quorate_log::NodeId;
use quorate_proto::ClusterId;
use quorate_proto::peer::v1::{
    Ballot, Forwarded, IdentifyRequest, MovedRequest, ReadIndexRequest, RecallRequest, Recalled,
    StatusRequest, SucceedRequest,
};
use quorate_proto::v1::admin_client::AdminClient;
use quorate_proto::v1::registry_client::RegistryClient;
use quorate_proto::v1::{AddNodeRequest, ListMembersRequest, MemberRole};
use quorate_state::Levels;
use tokio::time::timeout;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Response, Status};

use crate::peers::{Lane, Peers, SUCCEEDED_AGO, SUCCEEDED_BY, words};

/// What a node says of itself and of the node that asks.
#[derive(Debug, Clone)]
pub(crate) struct Identified {
    pub(crate) node_id: u64,
    /// `None`: of none yet.
    pub(crate) cluster_id: Option<ClusterId>,
    pub(crate) founders: Option<NonZeroU64>,
    /// Where clients reach it.
    pub(crate) client_address: String,
    /// Its cluster is founded, and it is a member.
    pub(crate) founded: bool,
    pub(crate) leads: bool,
    /// The node that asks is a member, as far as it knows ...
    pub(crate) counts_caller: bool,
    /// ... and has reported its addresses.
    pub(crate) knows_caller: bool,
    /// Where clients reach the members.
    pub(crate) member_addresses: Vec<String>,
    /// What it knows of the node that asks.
    pub(crate) recalled: Option<Recalled>,
    /// The log index of a membership with the node that is asked about; 0: it has none.
    pub(crate) in_as_of: u64,
    /// The log index of a membership without that node; 0: it has none.
    pub(crate) out_as_of: u64,
    /// It has heard a leader lately, or leads.
    pub(crate) hears_leader: bool,
    /// It was taken out itself.
    pub(crate) removed: bool,
    /// The levels of a cluster that its release works at.
    pub(crate) levels: Levels,
}

impl Peers {
    /// Asks the node at an address who it is, and what it knows of `asker`.
    ///
    /// # Errors
    /// It did not answer.
    pub(crate) async fn identify(
        &self,
        node: NodeId,
        address: &str,
        asker: Option<NodeId>,
        within: Duration,
    ) -> Result<Identified, Status> {
        let mut client = self.client(node, address, Lane::Control)?;
        let message = IdentifyRequest { id: asker.map_or(0, NodeId::get) };
        let request = self.request(node, message, Some(within));
        let answer = in_time(within, client.identify(request)).await?;
        Ok(Identified {
            node_id: answer.node_id,
            cluster_id: ClusterId::new(answer.cluster_id),
            founders: NonZeroU64::new(answer.founders),
            client_address: answer.client_address,
            founded: answer.founded,
            leads: answer.leads,
            counts_caller: answer.counts_caller,
            knows_caller: answer.knows_caller,
            member_addresses: answer.member_addresses,
            recalled: answer.recalled,
            in_as_of: answer.in_as_of,
            out_as_of: answer.out_as_of,
            hears_leader: answer.hears_leader,
            removed: answer.removed,
            levels: Levels { min: answer.level_min, max: answer.level_max },
        })
    }

    /// Has the leader do encoded calls, all of them in one message; its encoded answers.
    ///
    /// # Errors
    /// It did not answer. It may have done them.
    pub(crate) async fn forward(
        &self,
        leader: NodeId,
        address: &str,
        calls: Vec<Bytes>,
        within: Duration,
    ) -> Result<Vec<Bytes>, Status> {
        let mut client = self.client(leader, address, Lane::Forward)?;
        let message = Forwarded { calls, timeout_ms: within.as_millis() as u64 };
        let answer = self.forwards.ask(leader, address, message, async |messages| {
            let answers = client.forward(self.request(leader, messages, None)).await?;
            Ok(answers.into_inner().boxed())
        });
        Ok(answer.await?.answers)
    }

    /// Asks the leader for the index that reads have to wait for; `vote`: this node's own.
    ///
    /// # Errors
    /// It did not answer, or does not lead.
    pub(crate) async fn read_index(
        &self,
        leader: NodeId,
        address: &str,
        vote: Ballot,
    ) -> Result<u64, Status> {
        let mut client = self.client(leader, address, Lane::Control)?;
        let question =
            ReadIndexRequest { node_id: self.identity().node_id.get(), vote: Some(vote) };
        let answer = self.reads.ask(leader, address, question, async |questions| {
            let answers = client.read_index(self.request(leader, questions, None)).await?;
            Ok(answers.into_inner().boxed())
        });
        Ok(answer.await?.index)
    }

    /// A node's own part of the status, encoded.
    ///
    /// # Errors
    /// It did not answer.
    pub(crate) async fn status(
        &self,
        node: NodeId,
        address: &str,
        within: Duration,
    ) -> Result<Bytes, Status> {
        let mut client = self.client(node, address, Lane::Control)?;
        let request = self.request(node, StatusRequest {}, Some(within));
        Ok(in_time(within, client.status(request)).await?.report)
    }

    /// Tells a node where this one is now, and learns where others are.
    ///
    /// # Errors
    /// It did not answer.
    pub(crate) async fn moved(
        &self,
        node: NodeId,
        address: &str,
        peer_address: String,
        within: Duration,
    ) -> Result<Vec<(NodeId, String)>, Status> {
        let mut client = self.client(node, address, Lane::Control)?;
        let message = MovedRequest { node_id: self.identity().node_id.get(), peer_address };
        let request = self.request(node, message, Some(within));
        let answer = in_time(within, client.moved(request)).await?;
        let known = |(id, address)| NodeId::new(id).map(|id| (id, address));
        Ok(answer.moved.into_iter().filter_map(known).collect())
    }

    /// What a node knows of what this one had promised.
    ///
    /// # Errors
    /// It did not answer, or [its cluster has another successor](succeeded_by).
    pub(crate) async fn recall(
        &self,
        node: NodeId,
        address: &str,
        within: Duration,
    ) -> Result<Recalled, Status> {
        let mut client = self.client(node, address, Lane::Control)?;
        let request = self.request(node, RecallRequest {}, Some(within));
        in_time(within, client.recall(request)).await
    }

    /// Tells a node that an operator has made this cluster from the cluster `of`, `ago` or earlier;
    /// true: it was of that one, and ends; false: it is of this one.
    ///
    /// # Errors
    /// It did not answer, or goes on.
    pub(crate) async fn succeed(
        &self,
        node: NodeId,
        address: &str,
        of: ClusterId,
        ago: Duration,
        within: Duration,
    ) -> Result<bool, Status> {
        let mut client = self.client(node, address, Lane::Control)?;
        let (cluster_id, ago_ms) = (ClusterId::to_wire(Some(of)), ago.as_millis() as u64);
        let message = SucceedRequest { cluster_id, ago_ms };
        let request = self.request(node, message, Some(within));
        Ok(in_time(within, client.succeed(request)).await?.ends)
    }

    /// Whether a node, at the address where clients reach it, lists another as a voter. A learner
    /// has no vote to forget, and may be one that was taken in but never reached.
    ///
    /// # Errors
    /// It did not answer.
    pub(crate) async fn lists_as_voter(
        &self,
        at: &Endpoint,
        id: NodeId,
        within: Duration,
    ) -> Result<bool, Status> {
        let mut client = RegistryClient::new(self.connect(at));
        let request = with_timeout(ListMembersRequest {}, within);
        let members = in_time(within, client.list_members(request)).await?.members;
        let voter = i32::from(MemberRole::Voter);
        Ok(members.iter().any(|member| member.id == id.get() && member.role == voter))
    }

    /// Asks a node, at the address where clients reach it, to take this one in.
    ///
    /// # Errors
    /// It was refused, or not answered.
    pub(crate) async fn ask_to_be_taken_in(
        &self,
        at: &Endpoint,
        peer_address: String,
        learner_only: bool,
        within: Duration,
    ) -> Result<(), Status> {
        let mut client = AdminClient::new(self.connect(at));
        let id = self.identity().node_id.get();
        let request = AddNodeRequest { id, peer_address, learner_only };
        client.add_node(with_timeout(request, within)).await.map(drop)
    }
}

/// The cluster in which a node is now that refuses a call of its old one, if that is why, and how
/// long ago it was made, at least. Releases that do not say how long ago also say it where their
/// cluster was restored from a backup: what they say is passed over.
pub(crate) fn succeeded_by(refusal: &Status) -> Option<(ClusterId, Duration)> {
    let told = |name| refusal.metadata().get(name)?.to_str().ok()?.parse().ok();
    let (by, ago_ms) = (told(SUCCEEDED_BY)?, told(SUCCEEDED_AGO)?);
    Some((ClusterId::new(by)?, Duration::from_millis(ago_ms)))
}

fn with_timeout<T>(message: T, within: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(within);
    request
}

async fn in_time<T>(
    within: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    let late = || Status::deadline_exceeded(format!("no answer within {} ms", within.as_millis()));
    let answer = timeout(within, call).await.map_err(|_elapsed| late())?;
    Ok(answer.map_err(in_words)?.into_inner())
}

/// Beside words for what the transport says: something listens there, and takes no such call.
#[derive(Debug, thiserror::Error)]
#[error("something else listens there")]
struct Listens;

/// Whether something answered or listens where a call failed: there is nothing to start there.
pub(crate) fn listens_there(refusal: &Status) -> bool {
    match refusal.source() {
        Some(source) => source.is::<Listens>(),
        None => !matches!(refusal.code(), Code::DeadlineExceeded | Code::Unavailable),
    }
}

/// What the transport answers of itself may have no words, or those of a library.
fn in_words(status: Status) -> Status {
    let listens = |words: String| {
        let mut told = Status::new(status.code(), words);
        told.set_source(Arc::new(Listens));
        told
    };
    match (words::of(&status), status.code(), status.message()) {
        (Some(words), ..) => listens(words),
        (None, Code::Unimplemented, "") => listens(
            "what listens there is not for other nodes (--peer-listen), perhaps for clients"
                .to_owned(),
        ),
        (None, code, "") => Status::new(code, code.description()),
        _ => status,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use rustls::InvalidMessage;

    use super::*;

    #[test]
    fn where_something_listens_there_is_nothing_to_start() {
        let silent = io::Error::from(io::ErrorKind::ConnectionRefused);
        let plain = InvalidMessage::InvalidContentType;
        let plain = io::Error::new(io::ErrorKind::InvalidData, rustls::Error::from(plain));
        for (status, listens) in [
            (Status::from_error(Box::new(silent)), false),
            (Status::deadline_exceeded("no answer within 500 ms"), false),
            (Status::from_error(Box::new(plain)), true),
            (Status::unimplemented(""), true),
            (Status::permission_denied("it wants a certificate"), true),
        ] {
            let told = in_words(status);
            assert_eq!(listens_there(&told), listens, "{told}");
            assert!(!told.message().is_empty());
        }
    }
}
