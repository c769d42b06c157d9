//! The Peer service: messages of other nodes, handed to Raft or to the node.

use std::future::Future;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use openraft::Snapshot;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendError, VoteRequest, VoteResponse,
};
use openraft::vote::RaftLeaderId as _;
use prost::Message as _;
use quorate_log::{Identity, NodeId, SnapshotFile, SnapshotStore};
use quorate_proto::ClusterId;
use quorate_proto::peer::v1 as wire;
use quorate_proto::peer::v1::peer_server::Peer;
use quorate_proto::peer::v1::{
    AppendRequest, AppendResponse, ForwardAnswers, Forwarded, IdentifyRequest, IdentifyResponse,
    MovedRequest, MovedResponse, ReadIndexRequest, ReadIndexResponse, RecallRequest, SnapshotChunk,
    StatusReport, StatusRequest, SucceedRequest, SucceedResponse,
};
use quorate_state::Levels;
use tokio::sync::oneshot;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use crate::api::grpc::forwarded::execute_all;
use crate::api::grpc::guard::{check_same, check_still_member, refused};
use crate::api::grpc::peer_door::{PeerCall, PeerMethod, sender};
use crate::api::grpc::peer_error::PeerError;
use crate::api::grpc::until_stopped;
use crate::node::Node;
use crate::node::succession::Claim;
use crate::peers::streams::Answers;
use crate::peers::{Envelope, is_to_voter};
use crate::raft::committed::Reach;
use crate::raft::network::messages::{self, Asked};
use crate::runtime::blocking;
use crate::types::{LogStore, TypeConfig, Vote};
use crate::wall;

/// Handles calls of other nodes.
#[derive(Clone)]
pub(crate) struct PeerService {
    pub(crate) node: Arc<Node>,
    pub(crate) log: LogStore,
    pub(crate) snapshots: Arc<SnapshotStore<TypeConfig>>,
}

type Answer<T> = Result<Response<T>, Status>;
pub(super) type Append = AppendEntriesRequest<TypeConfig>;
pub(super) type Ballot = VoteRequest<TypeConfig>;

#[tonic::async_trait]
impl Peer for PeerService {
    type AppendStreamStream = Answers<AppendResponse>;
    type ForwardStream = Answers<ForwardAnswers>;
    type ReadIndexStream = Answers<ReadIndexResponse>;

    async fn identify(&self, request: Request<IdentifyRequest>) -> Answer<IdentifyResponse> {
        let id = NodeId::new(self.enter(PeerMethod::Identify, request).await?.message.id);
        let node = &self.node;
        let caller = id.and_then(|id| node.member(id));
        let word = id.and_then(|id| node.word_on(id));
        let as_of = |member| word.filter(|it| it.is_member == member).map_or(0, |it| it.as_of);
        let (in_as_of, out_as_of) = (as_of(true), as_of(false));
        let recalled = node.recall().recalled(&self.log, id).await.map_err(PeerError::from)?;
        Ok(Response::new(IdentifyResponse {
            founded: node.is_founded() && node.member(node.id()).is_some(),
            counts_caller: caller.is_some(),
            leads: node.leads() && node.leadership().leader() == Some(node.id()),
            member_addresses: node.client_addresses(),
            knows_caller: caller.is_some_and(|member| !member.client_address.is_empty()),
            cluster_id: ClusterId::to_wire(self.node.peers().cluster_id()),
            founders: self.node.peers().identity().founders.map_or(0, NonZeroU64::get),
            node_id: self.node.id().get(),
            client_address: self.node.me().client_address.clone(),
            peer_address: self.node.me().peer_address.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            recalled: Some(messages::recalled_to_wire(&recalled)),
            out_as_of,
            in_as_of,
            level_min: node.levels().min,
            level_max: node.levels().max,
            hears_leader: node.hears_leader(),
            removed: node.leadership().is_removed(),
        }))
    }

    async fn append(&self, request: Request<AppendRequest>) -> Answer<AppendResponse> {
        let call = self.enter(PeerMethod::Append, request).await?;
        let sender = call.sender()?;
        let append = messages::append_from_wire(call.message).map_err(PeerError::from)?;
        self.check_append(sender, &append).await?;
        let asked = Asked::by(&append);
        let answer = match self.admit(sender, &append).await? {
            Some(later) => Err(StreamAppendError::HigherVote(later)),
            None => {
                let answer = self.node.raft().append_entries(append).await;
                messages::as_on_stream(answer.map_err(PeerError::from)?, &asked)
            }
        };
        Ok(Response::new(messages::appended_to_wire(&answer)))
    }

    async fn append_stream(
        &self,
        request: Request<Streaming<AppendRequest>>,
    ) -> Answer<Self::AppendStreamStream> {
        let call = self.enter(PeerMethod::AppendStream, request).await?;
        let sender = call.sender()?;
        // What cannot be read or taken ends the input, and with it the stream, and so does the age
        // of its connection: the leader begins a new one.
        let (tell_later, told_later) = oneshot::channel();
        let begun = (self.clone(), call.message, None, tell_later);
        let appends =
            stream::unfold(begun, move |(service, mut sent, leader, tell_later)| async move {
                match service.take(sender, leader, sent.next().await?).await {
                    Ok(append) => {
                        let leader = Some(append.vote);
                        Some((append, (service, sent, leader, tell_later)))
                    }
                    Err(later) => {
                        // Nobody hears it where the stream has ended.
                        let _unheard = later.map(|later| tell_later.send(later));
                        None
                    }
                }
            });
        let appends = appends.take_until(call.leaving.cancelled_owned()).boxed();
        let later = stream::once(told_later).filter_map(|told| {
            let later = told.ok().map(|later| Ok(Err(StreamAppendError::HigherVote(later))));
            std::future::ready(later)
        });
        let answers = self.node.raft().stream_append(appends).chain(later);
        let answers = answers.map(|answer| match answer {
            Ok(answer) => Ok(messages::appended_to_wire(&answer)),
            Err(fatal) => Err(PeerError::from(fatal).into()),
        });
        Ok(Response::new(until_stopped(answers, &self.node).boxed()))
    }

    async fn vote(&self, request: Request<wire::VoteRequest>) -> Answer<wire::VoteResponse> {
        let call = self.enter(PeerMethod::Vote, request).await?;
        let (sender, vote) = self.ballot(call).await?;
        let term = vote.vote.leader_id().term();
        self.node.recall().check_candidate(term, vote.last_log_id).await?;
        // It has given its own vote.
        self.node.recall().note(sender, term, None);
        let answer = self.node.raft().vote(vote).await.map_err(PeerError::from)?;
        Ok(Response::new(messages::voted_to_wire(&answer)))
    }

    async fn pre_vote(&self, request: Request<wire::VoteRequest>) -> Answer<wire::VoteResponse> {
        let call = self.enter(PeerMethod::PreVote, request).await?;
        let (sender, vote) = self.ballot(call).await?;
        // Of any term, since nothing is granted: a candidate whose term is too low for a vote
        // raises it only by standing.
        self.node.recall().check_stands(vote.last_log_id).await?;
        // A node that asks misses the leader.
        let followed = self.node.view().borrow_watched().vote;
        self.node.leadership().suspect(followed);
        if let Some(last) = self.goes_before(sender, &vote).await? {
            let answer = VoteResponse::new(followed, last, false);
            return Ok(Response::new(messages::voted_to_wire(&answer)));
        }
        let answer = self.node.raft().pre_vote(vote).await.map_err(PeerError::from)?;
        Ok(Response::new(messages::voted_to_wire(&answer)))
    }

    async fn transfer_leader(
        &self,
        request: Request<wire::TransferRequest>,
    ) -> Answer<wire::TransferResponse> {
        let call = self.enter(PeerMethod::TransferLeader, request).await?;
        let sender = call.sender()?;
        let transfer = messages::transfer_from_wire(call.message).map_err(PeerError::from)?;
        self.check_claim(sender, transfer.from_leader())?;
        self.node.recall().check_leader(transfer.from_leader().leader_id().term()).await?;
        let answer =
            self.node.raft().handle_transfer_leader(transfer).await.map_err(PeerError::from)?;
        Ok(Response::new(messages::transferred_to_wire(&answer)))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotChunk>>,
    ) -> Answer<wire::SnapshotResponse> {
        let call = self.enter(PeerMethod::InstallSnapshot, request).await?;
        let (envelope, mut chunks) = (call.envelope, call.message);
        let first = chunks.message().await?.unwrap_or_default();
        let vote = messages::vote_from_wire(first.vote).map_err(PeerError::from)?;
        self.check_leader(sender(&envelope)?, &vote).await?;
        if let Some(later) = self.node.recall().later_vote(vote.leader_id().term()).await? {
            let answer = SnapshotResponse::new(later);
            return Ok(Response::new(messages::installed_to_wire(&answer)));
        }
        let snapshot = self.receive(chunks).await?;
        let reach = self.check_snapshot(envelope, &vote, &snapshot).await;
        if !matches!(reach, Ok(Reach::Further)) {
            let has_it = SnapshotResponse::new(vote);
            return reach.map(|_covered| Response::new(messages::installed_to_wire(&has_it)));
        }
        let snapshot = Snapshot { meta: snapshot.meta().clone(), snapshot };
        let installed = self.node.raft().install_full_snapshot(vote, snapshot).await;
        let answer = installed.map_err(PeerError::from)?;
        Ok(Response::new(messages::installed_to_wire(&answer)))
    }

    async fn forward(&self, request: Request<Streaming<Forwarded>>) -> Answer<Self::ForwardStream> {
        let call = self.enter(PeerMethod::Forward, request).await?;
        let (sender, node) = (call.sender()?, self.node.clone());
        Ok(self.answer_each(call, move |message: Forwarded| {
            let node = node.clone();
            async move { execute_all(&node, sender, message).await }
        }))
    }

    async fn read_index(
        &self,
        request: Request<Streaming<ReadIndexRequest>>,
    ) -> Answer<Self::ReadIndexStream> {
        let call = self.enter(PeerMethod::ReadIndex, request).await?;
        let (sender, node) = (call.sender()?, self.node.clone());
        Ok(self.answer_each(call, move |question: ReadIndexRequest| {
            let node = node.clone();
            async move {
                check_still_member(&node, sender)?;
                let vote = messages::vote_from_wire(question.vote).map_err(PeerError::from)?;
                let index = node.read_index_for_peer(sender, vote).await?;
                Ok(ReadIndexResponse { index })
            }
        }))
    }

    async fn moved(&self, request: Request<MovedRequest>) -> Answer<MovedResponse> {
        let call = self.enter(PeerMethod::Moved, request).await?;
        let (sender, MovedRequest { node_id, peer_address }) = (call.sender()?, call.message);
        check_same(sender, node_id)?;
        let moved = self.node.take_move(sender, &peer_address).map_err(PeerError::from)?;
        let moved = moved.into_iter();
        Ok(Response::new(MovedResponse { moved: moved.map(|(id, at)| (id.get(), at)).collect() }))
    }

    async fn recall(&self, request: Request<RecallRequest>) -> Answer<wire::Recalled> {
        let sender = self.enter(PeerMethod::Recall, request).await?.sender()?;
        let recalled = self.node.recall().recalled(&self.log, Some(sender)).await;
        Ok(Response::new(messages::recalled_to_wire(&recalled.map_err(PeerError::from)?)))
    }

    async fn succeed(&self, request: Request<SucceedRequest>) -> Answer<SucceedResponse> {
        let call = self.enter(PeerMethod::Succeed, request).await?;
        let (told_by, by, is_proved) = (call.sender()?, call.envelope.cluster_id, call.is_proved);
        let SucceedRequest { cluster_id, ago_ms } = call.message;
        let (of, ago) = (ClusterId::new(cluster_id), Duration::from_millis(ago_ms));
        let heard = self.node.hear_succession(Claim { told_by, by, of, ago, is_proved }).await;
        let ends = heard.map_err(|why| refused(told_by, why))?;
        Ok(Response::new(SucceedResponse { ends }))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusReport> {
        self.enter(PeerMethod::Status, request).await?;
        let report = self.node.own_report().await;
        Ok(Response::new(StatusReport { report: report.encode_to_vec().into() }))
    }
}

impl PeerService {
    async fn ballot(&self, call: PeerCall<wire::VoteRequest>) -> Result<(NodeId, Ballot), Status> {
        let sender = call.sender()?;
        let ballot = messages::ballot_from_wire(call.message).map_err(PeerError::from)?;
        self.check_candidate(sender, &ballot).await?;
        Ok((sender, ballot))
    }

    /// Refuses calls that are meant for another cluster or another node.
    pub(super) fn check(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let envelope = Envelope::of(metadata);
        let (ours, target) = (self.node.peers().identity(), self.node.id());
        if !envelope.is_of_cluster_of(&ours) {
            let (ours, theirs) = (ours.cluster_id.map(ClusterId::from), envelope.cluster_id);
            let is_meant = envelope.target == Some(target);
            let made = is_meant.then(|| self.node.made_from(theirs, wall::since_1970())).flatten();
            let made = made.map(|made| (target, made));
            return Err(PeerError::OtherCluster { ours, theirs, made }.into());
        }
        if envelope.target != Some(target) {
            return Err(PeerError::OtherNode { node: target, meant: envelope.target }.into());
        }
        if !self.node.takes_part() {
            return Err(PeerError::Founding { node: target }.into());
        }
        if ours.cluster_id.is_none() && ours.founders.is_none() && is_to_voter(metadata) {
            self.node.peers().refused_as_voter(target);
            return Err(PeerError::LostDisk { node: target }.into());
        }
        self.check_levels(&envelope)
    }

    /// A node whose release does not work at the cluster's level ends when it has seen that
    /// (`upkeep/upgrade.rs`). Until then, and while it does not, nobody takes anything from it.
    fn check_levels(&self, envelope: &Envelope) -> Result<(), Status> {
        let (Some(sender), Some(levels)) = (envelope.sender, envelope.levels) else {
            return Ok(());
        };
        let level = self.node.level().number;
        if !self.node.is_founded() || levels.contains(level) {
            return Ok(());
        }
        let Levels { min, max } = levels;
        let why = format!("it supports levels {min} to {max}, and the cluster is at level {level}");
        if self.node.member(sender).is_some() {
            self.node.peers().refused_release(sender, &why);
        }
        Err(refused(sender, &why))
    }

    /// A node that is not of a cluster yet becomes one of the cluster whose leader calls it, for
    /// good.
    pub(super) async fn adopt(&self, metadata: &MetadataMap) -> Result<(), Status> {
        self.check(metadata)?;
        let Envelope { cluster_id, founders, .. } = Envelope::of(metadata);
        let known = self.node.peers().identity();
        // A founder waits until the id is applied: until then the id may be any
        // cluster's.
        if known.cluster_id.is_some() || known.founders.is_some() {
            return Ok(());
        }
        let identity = Identity { cluster_id: cluster_id.map(NonZeroU64::from), founders, ..known };
        let stamped = self.log.stamp(identity).await;
        stamped.map_err(PeerError::from)?;
        self.node.peers().set_identity(identity);
        let cluster_id = format!("{:016x}", ClusterId::to_wire(cluster_id));
        tracing::info!(cluster_id, "this node now belongs to");
        Ok(())
    }

    /// Answers one message after the other. When this node begins to stop, the one that it is at is
    /// the last.
    fn answer_each<Q, A, F>(
        &self,
        call: PeerCall<Streaming<Q>>,
        mut answer: impl FnMut(Q) -> F + Send + 'static,
    ) -> Response<Answers<A>>
    where
        Q: Send + 'static,
        F: Future<Output = Result<A, Status>> + Send + 'static,
    {
        let (stop, leaving) = (self.node.stop().clone(), call.leaving);
        let end = async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = leaving.cancelled() => {}
            }
        };
        let messages = call.message.take_until(Box::pin(end));
        let answers = messages.then(move |message| {
            let answer = message.map(&mut answer);
            async move { answer?.await }
        });
        Response::new(answers.boxed())
    }

    /// The next append of a stream; `leader` sent the last one.
    ///
    /// # Errors
    /// It is not taken; by the later vote, if this node has given one.
    async fn take(
        &self,
        sender: NodeId,
        leader: Option<Vote>,
        sent: Result<AppendRequest, Status>,
    ) -> Result<Append, Option<Vote>> {
        if sent.is_err()
            && let Some(leader) = leader
        {
            self.node.leadership().suspect(leader);
        }
        let taken = async {
            let append = messages::append_from_wire(sent?).map_err(PeerError::from)?;
            self.check_append(sender, &append).await?;
            let later = self.admit(sender, &append).await?;
            Ok::<_, Status>(later.map_or(Ok(append), Err))
        };
        match taken.await {
            Ok(taken) => taken.map_err(Some),
            Err(status) => {
                tracing::debug!(%status, "ending a stream of appends");
                Err(None)
            }
        }
    }

    /// Notes that there is a leader; refuses entries while there is no room at all for them. The
    /// entries of a leader that is short of room itself are few, and have to be committed. A vote:
    /// of a later term than the leader's, for the answer.
    async fn admit(&self, sender: NodeId, append: &Append) -> Result<Option<Vote>, Status> {
        let term = append.vote.leader_id().term();
        if let Some(later) = self.node.recall().later_vote(term).await? {
            return Ok(Some(later));
        }
        if !append.entries.is_empty() {
            self.node.disk().check_floor()?;
        }
        // A leader of the past leads no node.
        if append.vote >= self.node.view().borrow_watched().vote {
            let committed = append.leader_commit.map_or(0, |log_id| log_id.index());
            self.node.leadership().heard(term, committed);
            self.node.recall().note(sender, term, append.leader_commit);
        }
        Ok(None)
    }

    async fn receive(
        &self,
        mut chunks: Streaming<SnapshotChunk>,
    ) -> Result<SnapshotFile<TypeConfig>, Status> {
        let snapshots = self.snapshots.clone();
        let receiver = blocking(move || snapshots.receive()).await.map_err(PeerError::from)?;
        let mut receiver = receiver.map_err(PeerError::Receive)?;
        while let Some(chunk) = chunks.message().await? {
            self.node.disk().check()?;
            receiver = blocking(move || receiver.write_chunk(&chunk.data).map(|()| receiver))
                .await
                .map_err(PeerError::from)?
                .map_err(PeerError::Receive)?;
        }
        let received = blocking(move || receiver.finish()).await.map_err(PeerError::from)?;
        Ok(received.map_err(PeerError::Snapshot)?)
    }
}
