//! Something that listens where a member was, takes all that is sent to it, and answers each
//! message of the Raft library with the same vote. Knows nothing of what a test does with it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{Stream, StreamExt};
use quorate_proto::peer::v1::peer_server::{Peer, PeerServer};
use quorate_proto::peer::v1::{
    Forwarded, IdentifyRequest, IdentifyResponse, MovedRequest, MovedResponse, Payload, Payloads,
    ReadIndexRequest, ReadIndexResponse, RecallRequest, SnapshotChunk, StatusRequest,
    SucceedRequest, SucceedResponse,
};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

pub(crate) struct Impostor {
    asked: Arc<Asked>,
    serving: JoinHandle<()>,
}

#[derive(Default)]
struct Asked {
    appends: AtomicUsize,
    votes: AtomicUsize,
}

#[derive(Clone)]
struct Answering {
    vote: Vec<u8>,
    asked: Arc<Asked>,
}

type Answer<T> = Result<Response<T>, Status>;
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Impostor {
    pub(crate) async fn start(address: &str, vote: &[u8]) -> Self {
        let listener = TcpListener::bind(address).await.expect("the address is free again");
        let asked = Arc::<Asked>::default();
        let answering = Answering { vote: vote.to_vec(), asked: asked.clone() };
        let server = Server::builder().add_service(PeerServer::new(answering));
        let serving = server.serve_with_incoming(TcpListenerStream::new(listener));
        let serving = tokio::spawn(async move { serving.await.expect("it serves") });
        Self { asked, serving }
    }

    /// Appends that it answered.
    pub(crate) fn appends(&self) -> usize {
        self.asked.appends.load(Ordering::Relaxed)
    }

    /// Votes and pre-votes that it answered.
    pub(crate) fn votes(&self) -> usize {
        self.asked.votes.load(Ordering::Relaxed)
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Answering {
    /// `before` and `behind` are what stands around the vote in the answer.
    fn with_vote(&self, before: &[u8], behind: &[u8]) -> Payload {
        Payload { data: [&[1], before, &self.vote, behind].concat().into() }
    }

    /// No vote is granted, and it has no log.
    fn ballot(&self) -> Answer<Payload> {
        self.asked.votes.fetch_add(1, Ordering::Relaxed);
        Ok(Response::new(self.with_vote(&[], &[0, 0])))
    }
}

fn not_here<T>() -> Answer<T> {
    Err(Status::unimplemented("not here"))
}

#[tonic::async_trait]
impl Peer for Answering {
    type AppendStreamStream = Answers<Payload>;
    type ForwardStream = Answers<Payloads>;
    type ReadIndexStream = Answers<ReadIndexResponse>;

    async fn append(&self, _: Request<Payload>) -> Answer<Payload> {
        self.asked.appends.fetch_add(1, Ordering::Relaxed);
        Ok(Response::new(self.with_vote(&[3], &[])))
    }

    async fn append_stream(
        &self,
        request: Request<Streaming<Payload>>,
    ) -> Answer<Self::AppendStreamStream> {
        let answering = self.clone();
        let answers = request.into_inner().map(move |append| {
            append?;
            answering.asked.appends.fetch_add(1, Ordering::Relaxed);
            Ok(answering.with_vote(&[1, 1], &[]))
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn vote(&self, _: Request<Payload>) -> Answer<Payload> {
        self.ballot()
    }

    async fn pre_vote(&self, _: Request<Payload>) -> Answer<Payload> {
        self.ballot()
    }

    async fn install_snapshot(&self, _: Request<Streaming<SnapshotChunk>>) -> Answer<Payload> {
        Ok(Response::new(self.with_vote(&[], &[])))
    }

    async fn identify(&self, _: Request<IdentifyRequest>) -> Answer<IdentifyResponse> {
        not_here()
    }

    async fn transfer_leader(&self, _: Request<Payload>) -> Answer<Payload> {
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

    async fn recall(&self, _: Request<RecallRequest>) -> Answer<Payload> {
        not_here()
    }

    async fn succeed(&self, _: Request<SucceedRequest>) -> Answer<SucceedResponse> {
        not_here()
    }

    async fn status(&self, _: Request<StatusRequest>) -> Answer<Payload> {
        not_here()
    }
}
