//! A gRPC probe: `grpc.health.v1.Health/Check` on a fresh connection, without TLS.

use std::io;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::transport::{Endpoint, Uri};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::probe::Failure;

/// An answer holds one number.
const ANSWER_MAX: usize = 4_096;

/// Passes with SERVING. `host` is what the URI names, with its port.
pub(super) async fn probe(stream: TcpStream, host: &str, service: &str) -> Result<(), Failure> {
    let endpoint =
        Endpoint::from_shared(format!("http://{host}")).map_err(|_| Failure::NoAddress)?;
    // The connection that was made to an allowed address, and never another one.
    let mut stream = Some(stream);
    let connector = tower::service_fn(move |_: Uri| {
        let stream = stream.take().map(TokioIo::new);
        async move { stream.ok_or(io::Error::from(io::ErrorKind::NotConnected)) }
    });
    let channel = endpoint.connect_with_connector(connector).await;
    let channel = channel.map_err(|error| Failure::NoGrpc(error.to_string()))?;
    let mut client = HealthClient::new(channel).max_decoding_message_size(ANSWER_MAX);
    let request = HealthCheckRequest { service: service.to_owned() };
    match client.check(request).await {
        Ok(answer) if answer.get_ref().status() == ServingStatus::Serving => Ok(()),
        Ok(answer) => Err(Failure::GrpcStatus(answer.get_ref().status().as_str_name())),
        Err(status) => Err(Failure::NoGrpc(status.message().to_owned())),
    }
}
