//! Callers that ask for much and do not read it: what is kept for them is bounded, and ends.

use std::time::{Duration, Instant};

use quorate_client::Consistency;
use quorate_proto::v1::{FetchRequest, FetchResponse, RegisterRequest};
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::cluster::{Cluster, Settings};
use crate::raw::spec;
use crate::wait::eventually;

/// An answer is a good half of what a connection may have.
const PER_CONNECTION: usize = 8 << 20;
const IN_ALL: usize = 16 << 20;
const INSTANCES: usize = 4_000;
const ASKED_AT_ONCE: usize = 40;
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// Five seconds after the deadline, and a little.
const ENDED_WITHIN: Duration = Duration::from_secs(15);

/// Asks for everything; its answer is read no further than to its headers.
pub(crate) async fn ask(channel: &Channel) -> Result<Response<Streaming<FetchResponse>>, Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut request = Request::new(FetchRequest::default());
    request.set_timeout(CALL_TIMEOUT);
    let path = http::uri::PathAndQuery::from_static("/quorate.v1.Registry/Fetch");
    let codec = ProstCodec::<FetchRequest, FetchResponse>::default();
    grpc.server_streaming(request, path, codec).await
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_reads_are_bounded_and_end() {
    let tunables = format!(
        "answers_bytes_max = {IN_ALL}\nanswers_per_connection_bytes_max = {PER_CONNECTION}"
    );
    let mut cluster = Cluster::start_with(1, Settings { tunables, ..Settings::default() }).await;
    let pid = cluster.nodes[0].process().pid();
    let node = &cluster.nodes[0];
    let mut registry = node.registry();
    for many in 0..INSTANCES / 1_000 {
        let mut instances = Vec::new();
        for at in 0..1_000 {
            let mut instance = spec("many", &format!("i{many}-{at}"));
            instance.metadata = [("text".to_owned(), "x".repeat(1_200))].into();
            instances.push(instance);
        }
        let request = RegisterRequest { instances, ttl_ms: 600_000, ..RegisterRequest::default() };
        registry.register(request).await.unwrap();
    }
    node.register("one", "a", Duration::from_secs(600)).await.unwrap();
    let before = resident_mib(pid);

    // Three connections, with as many answers unread as they may have.
    let mut unread = Vec::new();
    for _ in 0..3 {
        let channel = node.channel();
        let (mut given, mut refused) = (Vec::new(), Vec::new());
        let asked = (0..ASKED_AT_ONCE).map(|_| ask(&channel));
        for answer in futures_util::future::join_all(asked).await {
            match answer {
                Ok(answer) => given.push(answer),
                Err(status) => refused.push(status),
            }
        }
        assert!(given.len() <= 1, "{} answers of over 5 MB are kept", given.len());
        for status in &refused {
            assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
            assert!(status.message().contains("bytes of answers are under way"), "{status}");
            assert!(status.metadata().contains_key("retry-after-ms"), "{status:?}");
        }
        unread.push((channel, given));
    }
    let grown = resident_mib(pid).saturating_sub(before);
    assert!(grown < 100, "{grown} MiB are kept for answers of 16");
    let small = FetchRequest { services: vec!["one".to_owned()], ..FetchRequest::default() };
    let since = Instant::now();
    registry.fetch(small).await.expect("small answers are given");
    eprintln!("measured: a small answer beside unread ones took {:?}", since.elapsed());

    eventually("room for a large answer", ENDED_WITHIN, async || {
        node.instances(Consistency::Linearizable).await
    })
    .await;
    assert_eq!(unread.len(), 3, "nobody has read or given up anything until here");
}

/// What a process has in memory.
pub(crate) fn resident_mib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib / 1_024
}
