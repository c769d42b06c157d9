//! Something that listens where a member was, takes all that is sent to it, and answers each
//! message of the Raft library with the same vote. Knows nothing of what a test does with it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{Stream, StreamExt};
use quorate_proto::peer::v1::peer_server::{Peer, PeerServer};
use quorate_proto::peer::v1::{
    AppendRequest, AppendResponse, Ballot, ForwardAnswers, Forwarded, IdentifyRequest,
    IdentifyResponse, MovedRequest, MovedResponse, ReadIndexRequest, ReadIndexResponse,
    RecallRequest, Recalled, SnapshotChunk, SnapshotResponse, StatusReport, StatusRequest,
    SucceedRequest, SucceedResponse, TransferRequest, TransferResponse, VoteRequest, VoteResponse,
    append_response,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use super::own_thread::OwnThread;
use super::waiting::eventually;

pub(crate) struct Impostor {
    asked: Arc<Asked>,
    address: String,
    /// With it, the connections end that it was given.
    _serving: OwnThread,
}

#[derive(Default)]
struct Asked {
    appends: AtomicUsize,
    votes: AtomicUsize,
    identified: AtomicUsize,
}

#[derive(Clone)]
struct Answering {
    vote: Ballot,
    asked: Arc<Asked>,
}

type Answer<T> = Result<Response<T>, Status>;
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Impostor {
    pub(crate) async fn start(address: &str, vote: Ballot) -> Self {
        let (serving, address) = (OwnThread::start(), address.to_owned());
        let listening = serving.handle().spawn(TcpListener::bind(address.clone()));
        let listener = listening.await.expect("no panic").expect("the address is free again");
        let asked = Arc::<Asked>::default();
        let answering = Answering { vote, asked: asked.clone() };
        let server = Server::builder().add_service(PeerServer::new(answering));
        let serves = server.serve_with_incoming(TcpListenerStream::new(listener));
        serving.handle().spawn(async move { serves.await.expect("it serves") });
        Self { asked, address, _serving: serving }
    }

    /// Appends that it answered.
    pub(crate) fn appends(&self) -> usize {
        self.asked.appends.load(Ordering::Relaxed)
    }

    /// Votes and pre-votes that it answered.
    pub(crate) fn votes(&self) -> usize {
        self.asked.votes.load(Ordering::Relaxed)
    }

    /// How often it was asked who it is, which it does not say.
    pub(crate) fn identified(&self) -> usize {
        self.asked.identified.load(Ordering::Relaxed)
    }

    /// Its address is free again.
    pub(crate) async fn end(self) {
        let address = self.address.clone();
        drop(self);
        eventually("its listener is gone", || async { TcpListener::bind(&address).await.ok() })
            .await;
    }
}

impl Answering {
    /// No vote is granted, and it has no log.
    fn ballot(&self) -> Answer<VoteResponse> {
        self.asked.votes.fetch_add(1, Ordering::Relaxed);
        let vote = Some(self.vote);
        Ok(Response::new(VoteResponse { vote, ..VoteResponse::default() }))
    }

    fn refuse(&self) -> AppendResponse {
        self.asked.appends.fetch_add(1, Ordering::Relaxed);
        AppendResponse { answer: Some(append_response::Answer::HigherVote(self.vote)) }
    }
}

fn not_here<T>() -> Answer<T> {
    Err(Status::unimplemented("not here"))
}

#[tonic::async_trait]
impl Peer for Answering {
    type AppendStreamStream = Answers<AppendResponse>;
    type ForwardStream = Answers<ForwardAnswers>;
    type ReadIndexStream = Answers<ReadIndexResponse>;

    async fn append(&self, _: Request<AppendRequest>) -> Answer<AppendResponse> {
        Ok(Response::new(self.refuse()))
    }

    async fn append_stream(
        &self,
        request: Request<Streaming<AppendRequest>>,
    ) -> Answer<Self::AppendStreamStream> {
        let answering = self.clone();
        let answers = request.into_inner().map(move |append| {
            append?;
            Ok(answering.refuse())
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn vote(&self, _: Request<VoteRequest>) -> Answer<VoteResponse> {
        self.ballot()
    }

    async fn pre_vote(&self, _: Request<VoteRequest>) -> Answer<VoteResponse> {
        self.ballot()
    }

    async fn install_snapshot(
        &self,
        _: Request<Streaming<SnapshotChunk>>,
    ) -> Answer<SnapshotResponse> {
        Ok(Response::new(SnapshotResponse { vote: Some(self.vote) }))
    }

    async fn identify(&self, _: Request<IdentifyRequest>) -> Answer<IdentifyResponse> {
        self.asked.identified.fetch_add(1, Ordering::Relaxed);
        not_here()
    }

    async fn transfer_leader(&self, _: Request<TransferRequest>) -> Answer<TransferResponse> {
        not_here()
    }

    async fn forward(&self, _: Request<Streaming<Forwarded>>) -> Answer<Self::ForwardStream> {
        not_here()
    }

    async fn read_index(
        &self,
        _: Request<Streaming<ReadIndexRequest>>,
    ) -> Answer<Self::ReadIndexStream> {
        not_here()
    }

    async fn moved(&self, _: Request<MovedRequest>) -> Answer<MovedResponse> {
        not_here()
    }

    async fn recall(&self, _: Request<RecallRequest>) -> Answer<Recalled> {
        not_here()
    }

    async fn succeed(&self, _: Request<SucceedRequest>) -> Answer<SucceedResponse> {
        not_here()
    }

    async fn status(&self, _: Request<StatusRequest>) -> Answer<StatusReport> {
        not_here()
    }
}
