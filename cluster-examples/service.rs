//! A whole service, to begin one of your own with: it finds the registry by its environment,
//! registers under an id of its own, and on SIGTERM or Ctrl-C it drains, is deregistered, and
//! finishes its calls. While `quorate dev` runs:
//!
//!     QUORATE_NODES=127.0.0.1:7001,7002,7003 cargo run --example service
//!
//! QUORATE_CA and so on lead to a cluster with TLS. What it serves is gRPC's health; yours comes
//! beside.

#![allow(clippy::print_stdout, reason = "an example says what it does")]

use quorate_client::{Client, InstanceBuilder, Registration};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let client = Client::from_env()?;
    // Two processes never have the same id, and the next run of this one has another.
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let id = format!("{host}-{}", std::process::id());
    // Bound before it is registered; {addr} is what it is bound to. Where callers are on other
    // machines, bind an address that they reach.
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let me = InstanceBuilder::new("hello", &id).endpoint("grpc", "http://{addr}");
    println!("{id} serves at {}", listener.local_addr()?);

    let (_reporter, health) = tonic_health::server::health_reporter();
    let serving = client.serve(Registration::new(me)).until_signal();
    let served = serving.run(listener, |listener, stop| {
        let server = Server::builder().add_service(health);
        server.serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop)
    });
    println!("{}", served.await?);
    Ok(())
}
