//! The Peer service: messages of other nodes, handed to Raft or to the node.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use openraft::Snapshot;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use quorate_log::{Identity, SnapshotFile, SnapshotStore};
use quorate_proto::peer::v1::peer_server::Peer;
use quorate_proto::peer::v1::{
    Forwarded, IdentifyRequest, IdentifyResponse, Payload, Payloads, ReadIndexRequest,
    ReadIndexResponse, SnapshotChunk, StatusRequest,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use crate::forwards::FORWARDED_MAX;
use crate::grpc::{deadline_in, until_stopped};
use crate::node::{LeaderCall, Node};
use crate::peers::{Envelope, is_to_voter};
use crate::raft::runtime::blocking;
use crate::raft::types::{LogStore, SnapshotMeta, TypeConfig, Vote, decode, encode};
use crate::streams::Answers;

/// Handles calls of other nodes.
#[derive(Clone)]
pub(crate) struct PeerService {
    pub(crate) node: Arc<Node>,
    pub(crate) log: LogStore,
    pub(crate) snapshots: Arc<SnapshotStore<TypeConfig>>,
}

type Answer<T> = Result<Response<T>, Status>;
type Append = AppendEntriesRequest<TypeConfig>;

#[tonic::async_trait]
impl Peer for PeerService {
    type AppendStreamStream = Answers<Payload>;
    type ForwardStream = Answers<Payloads>;
    type ReadIndexStream = Answers<ReadIndexResponse>;

    async fn identify(&self, request: Request<IdentifyRequest>) -> Answer<IdentifyResponse> {
        let caller = self.node.member(request.into_inner().id);
        Ok(Response::new(IdentifyResponse {
            knows_caller: caller.is_some_and(|member| !member.client_address.is_empty()),
            cluster_id: self.node.peers.cluster_id(),
            founders: self.node.peers.identity().founders,
            node_id: self.node.id,
            client_address: self.node.me.client_address.clone(),
            peer_address: self.node.me.peer_address.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }

    async fn append(&self, request: Request<Payload>) -> Answer<Payload> {
        self.adopt(request.metadata()).await?;
        let append: Append = read(&request.into_inner())?;
        self.admit(&append)?;
        let answer = self.node.raft.append_entries(append).await.map_err(failed)?;
        Ok(payload(&answer))
    }

    async fn append_stream(
        &self,
        request: Request<Streaming<Payload>>,
    ) -> Answer<Self::AppendStreamStream> {
        self.adopt(request.metadata()).await?;
        let service = self.clone();
        // What cannot be read or taken ends the input, and with it the stream: the leader begins a new one.
        let appends = request
            .into_inner()
            .scan(None, move |leader, payload| std::future::ready(service.take(leader, payload)));
        let answers = self.node.raft.stream_append(appends);
        let answers = answers.map(|answer| match answer {
            Ok(answer) => Ok(Payload { data: encode(&answer) }),
            Err(fatal) => Err(failed(fatal)),
        });
        Ok(Response::new(until_stopped(answers, &self.node).boxed()))
    }

    async fn vote(&self, request: Request<Payload>) -> Answer<Payload> {
        self.check(request.metadata())?;
        let vote: VoteRequest<TypeConfig> = read(&request.into_inner())?;
        Ok(payload(&self.node.raft.vote(vote).await.map_err(failed)?))
    }

    async fn pre_vote(&self, request: Request<Payload>) -> Answer<Payload> {
        self.check(request.metadata())?;
        let vote: VoteRequest<TypeConfig> = read(&request.into_inner())?;
        // Whoever asks misses the leader.
        let followed = self.node.view.borrow_watched().vote;
        self.node.leadership.suspect(followed);
        Ok(payload(&self.node.raft.pre_vote(vote).await.map_err(failed)?))
    }

    async fn transfer_leader(&self, request: Request<Payload>) -> Answer<Payload> {
        self.check(request.metadata())?;
        let transfer: TransferLeaderRequest<TypeConfig> = read(&request.into_inner())?;
        let answer = self.node.raft.handle_transfer_leader(transfer).await.map_err(failed)?;
        Ok(payload(&answer))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotChunk>>,
    ) -> Answer<Payload> {
        self.adopt(request.metadata()).await?;
        let mut chunks = request.into_inner();
        let first = chunks.message().await?.unwrap_or_default();
        let (vote, meta): (Vote, SnapshotMeta) = decode(&first.header).map_err(damaged)?;
        let snapshot = self.receive(chunks).await?;
        let received = snapshot.path().to_owned();
        let snapshot = Snapshot { meta, snapshot };
        let installed = self.node.raft.install_full_snapshot(vote, snapshot).await;
        // Installing renames it; one that was not wanted any more would stay.
        let _ = tokio::fs::remove_file(received).await;
        Ok(payload(&installed.map_err(failed)?))
    }

    async fn forward(&self, request: Request<Streaming<Forwarded>>) -> Answer<Self::ForwardStream> {
        self.check(request.metadata())?;
        let node = self.node.clone();
        Ok(self.answer_each(request.into_inner(), move |message: Forwarded| {
            let node = node.clone();
            async move { execute_all(&node, message).await }
        }))
    }

    async fn read_index(
        &self,
        request: Request<Streaming<ReadIndexRequest>>,
    ) -> Answer<Self::ReadIndexStream> {
        self.check(request.metadata())?;
        let node = self.node.clone();
        Ok(self.answer_each(request.into_inner(), move |question: ReadIndexRequest| {
            let node = node.clone();
            async move {
                let vote = decode(&question.vote).map_err(damaged)?;
                let index = node.read_index_for_peer(question.node_id, vote).await?;
                Ok(ReadIndexResponse { index })
            }
        }))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<Payload> {
        self.check(request.metadata())?;
        Ok(payload(&self.node.own_status()))
    }
}

impl PeerService {
    /// Refuses calls that are meant for another cluster or another node.
    fn check(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let envelope = Envelope::of(metadata);
        let (target, ours) = (envelope.target, self.node.peers.identity());
        if !envelope.is_of_cluster_of(&ours) {
            let (theirs, ours) = (envelope.cluster_id, ours.cluster_id);
            let message = format!("this is a node of cluster {ours:016x}, not of {theirs:016x}");
            return Err(Status::failed_precondition(message));
        }
        if target != self.node.id {
            let message = format!("this is node {}, not node {target}", self.node.id);
            return Err(Status::failed_precondition(message));
        }
        if !self.node.takes_part.load(Ordering::Acquire) {
            let message = format!("node {target} waits to hear from the other founders");
            return Err(Status::unavailable(message));
        }
        if ours.cluster_id == 0 && ours.founders == 0 && is_to_voter(metadata) {
            let message = format!("node {target} is a voter, but its disk was lost: replace it");
            self.node.peers.refused_as_voter(self.node.id);
            return Err(Status::failed_precondition(message));
        }
        Ok(())
    }

    /// A node that is not of a cluster yet becomes one of the cluster whose leader calls it, for good.
    async fn adopt(&self, metadata: &MetadataMap) -> Result<(), Status> {
        self.check(metadata)?;
        let Envelope { cluster_id, founders, .. } = Envelope::of(metadata);
        let known = self.node.peers.identity();
        // A founder waits until the id is applied: until then it may be anybody's.
        if known.cluster_id != 0 || known.founders != 0 {
            return Ok(());
        }
        let identity = Identity { cluster_id, founders, ..known };
        let stamped = self.log.stamp(identity).await;
        stamped.map_err(|error| Status::failed_precondition(error.to_string()))?;
        self.node.peers.set_identity(identity);
        tracing::info!(cluster_id = format!("{cluster_id:016x}"), "this node now belongs to");
        Ok(())
    }

    /// Answers one message after the other. When this node begins to stop, the one that it is at is the last.
    fn answer_each<Q, A, F>(
        &self,
        messages: Streaming<Q>,
        mut answer: impl FnMut(Q) -> F + Send + 'static,
    ) -> Response<Answers<A>>
    where
        Q: Send + 'static,
        F: Future<Output = Result<A, Status>> + Send + 'static,
    {
        let messages = messages.take_until(self.node.stop.clone().cancelled_owned());
        let answers = messages.then(move |message| {
            let answer = message.map(&mut answer);
            async move { answer?.await }
        });
        Response::new(answers.boxed())
    }

    /// The next append of a stream; `leader` is whose the last one was.
    fn take(&self, leader: &mut Option<Vote>, payload: Result<Payload, Status>) -> Option<Append> {
        if payload.is_err()
            && let Some(leader) = leader
        {
            self.node.leadership.suspect(*leader);
        }
        let append = payload.and_then(|payload| read::<Append>(&payload));
        let taken = append.and_then(|append| self.admit(&append).map(|()| append));
        match taken {
            Ok(append) => {
                *leader = Some(append.vote);
                Some(append)
            }
            Err(status) => {
                tracing::debug!(%status, "ending a stream of appends");
                None
            }
        }
    }

    /// Notes how far the leader has committed; refuses entries while there is no room at all for them. Those of a leader that
    /// is short of room itself are few, and have to be committed.
    fn admit(&self, append: &Append) -> Result<(), Status> {
        if !append.entries.is_empty() {
            self.node.disk.check_floor()?;
        }
        // A leader of the past says nothing about how fresh this node is.
        if append.vote >= self.node.view.borrow_watched().vote {
            let committed = append.leader_commit.map_or(0, |log_id| log_id.index());
            self.node.leadership.heard(committed, self.node.applied.position().index);
        }
        Ok(())
    }

    async fn receive(
        &self,
        mut chunks: Streaming<SnapshotChunk>,
    ) -> Result<SnapshotFile<TypeConfig>, Status> {
        let io = |error: quorate_log::SnapshotError| Status::internal(error.to_string());
        let mut receiver = self.snapshots.receive().map_err(io)?;
        while let Some(chunk) = chunks.message().await? {
            self.node.disk.check()?;
            receiver = blocking(move || receiver.write_chunk(&chunk.data).map(|()| receiver))
                .await
                .map_err(|error| Status::internal(error.to_string()))?
                .map_err(io)?;
        }
        blocking(move || receiver.finish())
            .await
            .map_err(|error| Status::internal(error.to_string()))?
            .map_err(|error| Status::data_loss(error.to_string()))
    }
}

async fn execute_all(node: &Node, message: Forwarded) -> Result<Payloads, Status> {
    let Forwarded { data, timeout_ms } = message;
    let deadline = deadline_in(Duration::from_millis(timeout_ms));
    if data.len() > FORWARDED_MAX {
        let message = format!("{} calls in one message, at most {FORWARDED_MAX}", data.len());
        return Err(Status::invalid_argument(message));
    }
    let calls = data.into_iter().map(|data| read::<LeaderCall>(&Payload { data }));
    let calls = calls.collect::<Result<Vec<_>, _>>()?;
    let answers = join_all(calls.into_iter().map(|call| node.execute(call, deadline)));
    let data = answers.await.iter().map(encode).collect();
    Ok(Payloads { data })
}

fn read<T: DeserializeOwned>(payload: &Payload) -> Result<T, Status> {
    decode(&payload.data).map_err(damaged)
}

fn payload<T: Serialize>(message: &T) -> Response<Payload> {
    Response::new(Payload { data: encode(message) })
}

fn damaged(error: impl std::error::Error) -> Status {
    Status::invalid_argument(error.to_string())
}

fn failed(error: impl std::error::Error) -> Status {
    Status::internal(error.to_string())
}
