//! Requests that arrive slowly, or never whole.

use std::time::Duration;

use futures_util::stream;
use quorate_proto::v1::{RegisterRequest, RegisterResponse};
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_prost::ProstCodec;

use super::calls::assert_refused;
use super::guarded::Guarded;
use super::harness::{Cluster, SOON};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_does_not_end_is_given_up() {
    let cluster = Cluster::start(1).await;
    let mut raw = Grpc::new(cluster.channel(1));
    raw.ready().await.unwrap();
    let codec = ProstCodec::<RegisterRequest, RegisterResponse>::default();
    let path = PathAndQuery::from_static("/quorate.v1.Registry/Register");
    // Without a deadline.
    let endless = raw.client_streaming(Request::new(stream::pending()), path, codec);
    let ended = timeout(SOON, endless).await.expect("the node gives it up");
    assert_refused(ended, Code::DeadlineExceeded, &["did not arrive", "10 s"]);
}

/// What is open to all takes no more than it can need.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_send_small_messages_only() {
    let guarded = Guarded::start(1, "").await;
    let mut health = HealthClient::new(guarded.cluster.channel(1));
    let mut check = async |len: usize| {
        let mut request = Request::new(HealthCheckRequest { service: "s".repeat(len) });
        request.set_timeout(Duration::from_secs(10));
        health.check(request).await
    };
    assert_refused(check(3 * 1024).await, Code::NotFound, &[]);
    assert_refused(check(5 * 1024).await, Code::OutOfRange, &["4096"]);
}
