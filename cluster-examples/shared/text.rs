//! The gRPC that the examples speak: `examples.Text/Say`, a string there and a string back
//! (`google.protobuf.StringValue`). In a service of your own, a .proto and its generated code take
//! the place of this file. Knows nothing of the registry.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use quorate_client::{Instance, Stop};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::server::NamedService;
use tonic::transport::{Channel, Endpoint, Error, Server};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// No call is without a deadline.
const CALL_WITHIN: Duration = Duration::from_secs(5);

/// The client.
#[derive(Debug, Clone)]
pub(crate) struct Text(tonic::client::Grpc<Channel>);

impl Text {
    pub(crate) fn new(channel: Channel) -> Self {
        Self(tonic::client::Grpc::new(channel))
    }

    pub(crate) async fn say(&mut self, text: impl Into<String>) -> Result<String, Status> {
        let mut request = Request::new(text.into());
        request.set_timeout(CALL_WITHIN);
        let ready = self.0.ready().await;
        ready.map_err(|error| Status::unavailable(format!("{error:?}")))?;
        let path = PathAndQuery::from_static("/examples.Text/Say");
        let answer = self.0.unary(request, path, ProstCodec::<String, String>::default()).await;
        answer.map(Response::into_inner)
    }
}

/// Connections to instances, one for each address that was ever called.
#[derive(Debug, Default)]
pub(crate) struct Connections(Mutex<HashMap<String, Channel>>);

impl Connections {
    /// The client of this instance and no other; it connects with the first call.
    pub(crate) fn to(&self, instance: &Instance) -> Result<Text, Status> {
        let uri = instance.endpoints.get("grpc");
        let uri = uri.ok_or_else(|| Status::internal("the instance has no endpoint \"grpc\""))?;
        let mut connections = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = connections.get(uri) {
            return Ok(Text::new(channel.clone()));
        }
        let endpoint = Endpoint::from_shared(uri.clone());
        let endpoint = endpoint.map_err(|error| Status::internal(error.to_string()))?;
        let channel = endpoint.connect_timeout(Duration::from_secs(1)).connect_lazy();
        connections.insert(uri.clone(), channel.clone());
        Ok(Text::new(channel))
    }
}

/// The server: answers each text with what `answer` makes of it, until `stop`, and finishes the
/// calls in flight.
pub(crate) fn serve<A, F>(
    listener: TcpListener,
    stop: Stop,
    answer: A,
) -> impl Future<Output = Result<(), Error>>
where
    A: Fn(String) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<String, Status>> + Send + 'static,
{
    let incoming = TcpListenerStream::new(listener);
    Server::builder().add_service(Service(answer)).serve_with_incoming_shutdown(incoming, stop)
}

#[derive(Clone)]
struct Service<A>(A);

impl<A> NamedService for Service<A> {
    const NAME: &'static str = "examples.Text";
}

impl<A, F> tower::Service<http::Request<Body>> for Service<A>
where
    A: Fn(String) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<String, Status>> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answer = self.0.clone();
        let say = tower::service_fn(move |request: Request<String>| {
            answer(request.into_inner()).map(|answer| answer.map(Response::new))
        });
        async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<String, String>::default());
            Ok(grpc.unary(say, request).await)
        }
        .boxed()
    }
}
