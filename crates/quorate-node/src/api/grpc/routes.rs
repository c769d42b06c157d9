//! Which service a client's call is for.

use std::convert::Infallible;
use std::future::Ready;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::{Either, Map};
use http::{Request, Response};
use quorate_proto::encoded::v1::registry_server::RegistryServer;
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

/// The registry's calls go straight to it; the others by the transport's router, which makes each
/// call and each message of a stream a box or two more.
#[derive(Clone)]
pub(crate) struct ClientCalls {
    pub(crate) node: Arc<Node>,
    pub(crate) arriving: Arc<Arriving>,
    pub(crate) registry: Registry,
    pub(crate) others: Routes,
}

impl Service<Request<Body>> for ClientCalls {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<
        Ready<Answer>,
        Either<
            Map<<Registry as Service<Request<Body>>>::Future, InPieces>,
            Map<<Routes as Service<Request<Body>>>::Future, InPieces>,
        >,
    >;

    /// Both are always ready.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // Before its message is read, which may have some MiB.
        if let Err(status) = door::check_known(&self.node, &request) {
            return Either::Left(std::future::ready(Ok(status.into_http())));
        }
        let line = Line::of(request.extensions());
        let streams = door::sends_stream(request.uri().path());
        let request = request.map(|body| self.arriving.bounded(body, line, streams));
        let service = request.uri().path().split('/').nth(1);
        let in_pieces: InPieces = |answer| answer.map(answers::in_pieces).map(watched::paced);
        if service == Some(<Registry as NamedService>::NAME) {
            Either::Right(Either::Left(self.registry.call(request).map(in_pieces)))
        } else {
            Either::Right(Either::Right(self.others.call(request).map(in_pieces)))
        }
    }
}
