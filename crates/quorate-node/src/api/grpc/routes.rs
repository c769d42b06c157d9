//! Which service a client's call is for. Each answer says of which cluster the node is, a refusal
//! too: by that, clients whose credentials are not known here learn that it is not their cluster's.

use std::convert::Infallible;
use std::future::Ready;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use futures_util::FutureExt;
use futures_util::future::{Either, Map};
use http::{HeaderName, HeaderValue, Request, Response};
use quorate_proto::ClusterId;
use quorate_proto::encoded::v1::registry_server::RegistryServer;
use quorate_proto::trailers;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tower::Service;

use crate::api::grpc::door;
use crate::api::grpc::registry::RegistryService;
use crate::net::answers;
use crate::net::arriving::Arriving;
use crate::net::connections::Line;
use crate::net::watched;
use crate::node::Node;

type Registry = RegistryServer<RegistryService>;
type Answer = Result<Response<Body>, Infallible>;
type InPieces = fn(Answer) -> Answer;

const CLUSTER: HeaderName = HeaderName::from_static(trailers::CLUSTER);

/// The registry's calls go straight to it; the others by the transport's router, which makes each
/// call and each message of a stream a box or two more.
#[derive(Clone)]
pub(crate) struct ClientCalls {
    pub(crate) node: Arc<Node>,
    pub(crate) arriving: Arc<Arriving>,
    pub(crate) registry: Registry,
    pub(crate) others: Routes,
    /// Empty until the node knows it for good.
    pub(crate) cluster: Arc<OnceLock<HeaderValue>>,
}

impl ClientCalls {
    fn cluster(&self) -> Option<HeaderValue> {
        if self.cluster.get().is_none() && self.node.is_founded() {
            let id = format!("{:016x}", ClusterId::to_wire(self.node.peers().cluster_id()));
            let id = HeaderValue::try_from(id).expect("invariant: hex digits are a valid header");
            let _another_call_was_faster = self.cluster.set(id);
        }
        self.cluster.get().cloned()
    }
}

impl Service<Request<Body>> for ClientCalls {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = OfCluster<
        Either<
            Ready<Answer>,
            Either<
                Map<<Registry as Service<Request<Body>>>::Future, InPieces>,
                Map<<Routes as Service<Request<Body>>>::Future, InPieces>,
            >,
        >,
    >;

    /// Both are always ready.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let cluster = self.cluster();
        // Before its message is read, which may have some MiB.
        if let Err(status) = door::check_known(&self.node, &request) {
            let refused = Either::Left(std::future::ready(Ok(status.into_http())));
            return OfCluster { answer: refused, cluster };
        }
        let line = Line::of(request.extensions());
        let streams = door::sends_stream(request.uri().path());
        let request = request.map(|body| self.arriving.bounded(body, line, streams));
        let service = request.uri().path().split('/').nth(1);
        let in_pieces: InPieces = |answer| answer.map(answers::in_pieces).map(watched::paced);
        let answer = if service == Some(<Registry as NamedService>::NAME) {
            Either::Left(self.registry.call(request).map(in_pieces))
        } else {
            Either::Right(self.others.call(request).map(in_pieces))
        };
        OfCluster { answer: Either::Right(answer), cluster }
    }
}

/// The answer to a call, to be, and which cluster it is of.
pub(crate) struct OfCluster<F> {
    answer: F,
    cluster: Option<HeaderValue>,
}

impl<F: Future<Output = Answer> + Unpin> Future for OfCluster<F> {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        let mut answer = ready!(Pin::new(&mut self.answer).poll(cx))?;
        if let Some(cluster) = self.cluster.take() {
            answer.headers_mut().insert(CLUSTER, cluster);
        }
        Poll::Ready(Ok(answer))
    }
}
