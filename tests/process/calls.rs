//! Idle connections, and more calls than a node may have under way.

use std::time::{Duration, Instant};

use quorate_client::Consistency;
use quorate_proto::v1::registry_client::RegistryClient;
use quorate_proto::v1::watch_request::Kind as Ask;
use quorate_proto::v1::{LeaseRenewal, RenewRequest, WatchRequest, WatchResponse, WatchSubscribe};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use crate::cluster::{Cluster, Node, Settings};
use crate::connections::{PREFACE, SETTINGS};
use crate::wait::{eventually, time_passes};

const IDLE: Duration = Duration::from_secs(2);
/// Looked at once a second, and a little.
const ENDED_WITHIN: Duration = Duration::from_secs(6);
const TTL: Duration = Duration::from_secs(60);
const CALLS: usize = 64;
const SETTINGS_FRAME: u8 = 4;
const PING_FRAME: u8 = 6;
const GOAWAY_FRAME: u8 = 7;
const ACK: u8 = 1;

/// A client that greets, answers all that has to be answered, and never calls: for how long it was
/// left in peace, and the reasons of the GOAWAY frames before the end.
async fn never_calls(address: &str) -> (Duration, Vec<u32>) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&[PREFACE, SETTINGS].concat()).await.unwrap();
    let (since, mut first, mut reasons) = (Instant::now(), None, Vec::new());
    let mut head = [0; 9];
    while stream.read_exact(&mut head).await.is_ok() {
        let [high, middle, low, kind, flags, ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, high, middle, low]) as usize];
        stream.read_exact(&mut payload).await.unwrap();
        match kind {
            SETTINGS_FRAME if flags & ACK == 0 => {
                stream.write_all(&[0, 0, 0, SETTINGS_FRAME, ACK, 0, 0, 0, 0]).await.unwrap();
            }
            PING_FRAME if flags & ACK == 0 => {
                let answer = [&[0, 0, 8, PING_FRAME, ACK, 0, 0, 0, 0], &payload[..]].concat();
                stream.write_all(&answer).await.unwrap();
            }
            GOAWAY_FRAME => {
                first.get_or_insert_with(|| since.elapsed());
                reasons.push(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
            }
            _ => {}
        }
    }
    (first.unwrap_or_default(), reasons)
}

type Watch = (mpsc::Sender<WatchRequest>, Streaming<WatchResponse>);

async fn watch(node: &Node) -> Result<Watch, Status> {
    watch_over(node.registry()).await
}

async fn watch_over(mut registry: RegistryClient<Channel>) -> Result<Watch, Status> {
    let (asks, requests) = mpsc::channel(1);
    let ask = Ask::Subscribe(WatchSubscribe::default());
    asks.send(WatchRequest { kind: Some(ask) }).await.unwrap();
    let answers = registry.watch(ReceiverStream::new(requests)).await?;
    Ok((asks, answers.into_inner()))
}

/// A connection that answers pings but has had no call for long gets a GOAWAY. Clients that call
/// meanwhile, or now and then, notice nothing.
#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_are_told_to_go_and_calls_do_not_fail() {
    let tunables = format!("connection_idle_ms = {}", IDLE.as_millis());
    let cluster = Cluster::start_with(1, Settings { tunables, ..Settings::default() }).await;
    let node = &cluster.nodes[0];
    node.register("before", "a", TTL).await.unwrap();
    let (_asks, mut watched) = watch(node).await.unwrap();
    // Calls from then on when the connection ends: one each 20 ms around it. A call that finds it
    // closing was not sent, and the client crate sends it on another; a bare channel of tonic's may
    // return that error.
    let mut callers = JoinSet::new();
    for pause in (0..32).map(|at| IDLE + Duration::from_millis(20 * at)) {
        let client = cluster.client().build().unwrap();
        callers.spawn(async move {
            for _ in 0..3 {
                client.fetch("before").await?;
                time_passes(pause).await;
            }
            Ok::<_, quorate_client::Error>(())
        });
    }
    for address in [&node.clients, &node.peers()] {
        let ended = tokio::time::timeout(ENDED_WITHIN, never_calls(address)).await;
        let (left_in_peace, reasons) = ended.expect("an idle connection ends");
        assert!(left_in_peace >= IDLE, "GOAWAY after {left_in_peace:?}");
        assert!(!reasons.is_empty() && reasons.iter().all(|reason| *reason == 0), "{reasons:?}");
    }
    while let Some(called) = callers.join_next().await {
        called.unwrap().expect("a call finds another connection");
    }
    node.register("after", "b", TTL).await.unwrap();
    eventually("the watch goes on", ENDED_WITHIN, async || {
        let message = watched.message().await.expect("a connection with a stream stays");
        let text = format!("{message:?}");
        if text.contains("\"after\"") { Ok(()) } else { Err(text) }
    })
    .await;
}

/// Streams on several connections count together; what is under way goes on, and a place that is
/// given back is taken again.
#[tokio::test(flavor = "multi_thread")]
async fn calls_above_the_bound_are_refused_and_streams_under_way_go_on() {
    let tunables = format!("calls_max = {CALLS}");
    let cluster = Cluster::start_with(1, Settings { tunables, ..Settings::default() }).await;
    let node = &cluster.nodes[0];
    let lease_id = node.register("held", "a", TTL).await.unwrap().lease_id;
    let (renewals, requests) = mpsc::channel(1);
    let renewal = RenewRequest { renewals: vec![LeaseRenewal { lease_id }], ..<_>::default() };
    renewals.send(renewal.clone()).await.unwrap();
    let answers = node.registry().renew_stream(ReceiverStream::new(requests)).await;
    let mut renewed = answers.unwrap().into_inner();
    renewed.message().await.unwrap().expect("a renewal is answered");

    let mut watches = Vec::new();
    let refused = loop {
        match watch(node).await {
            Ok(watch) => watches.push(watch),
            Err(status) => break status,
        }
        assert!(watches.len() < CALLS, "more than {CALLS} streams");
    };
    assert_eq!(watches.len(), CALLS - 1, "and the stream of renewals");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("64 calls and streams are under way"), "{refused}");
    assert!(refused.metadata().contains_key("retry-after-ms"), "{refused:?}");
    let status = node.instances(Consistency::Local).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "a call is one, too: {status}");
    assert_eq!(node.log_text().matches("too many calls").count(), 1, "logged once a minute");

    renewals.send(renewal).await.unwrap();
    renewed.message().await.unwrap().expect("streams under way go on");
    watches.pop();
    eventually("a place that was given back", ENDED_WITHIN, async || {
        node.register("late", "b", TTL).await
    })
    .await;
}

/// One address takes as many places as it may have, whatever the number of its connections; other
/// addresses are served meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn one_address_does_not_take_all_places() {
    let tunables = format!("calls_per_address_max = {CALLS}");
    let cluster = Cluster::start_with(1, Settings { tunables, ..Settings::default() }).await;
    let node = &cluster.nodes[0];
    node.register("before", "a", TTL).await.unwrap();
    let mut watches = Vec::new();
    let refused = loop {
        match watch(node).await {
            Ok(watch) => watches.push(watch),
            Err(status) => break status,
        }
        assert!(watches.len() <= CALLS, "more than {CALLS} streams");
    };
    // The calls that waited for a leader may just be ending.
    assert!(watches.len() > CALLS / 2, "{} streams, then {refused}", watches.len());
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("64 calls and streams are under way from this address"));
    assert!(refused.metadata().contains_key("retry-after-ms"), "{refused:?}");

    let elsewhere = Endpoint::from_shared(format!("http://{}", node.clients)).unwrap();
    let elsewhere = elsewhere.local_address(Some([127, 0, 0, 2].into())).connect().await.unwrap();
    let (_asks, mut watched) = watch_over(RegistryClient::new(elsewhere)).await.unwrap();
    watched.message().await.unwrap().expect("another address is served");

    watches.truncate(CALLS / 2);
    eventually("places that were given back", ENDED_WITHIN, async || {
        node.register("late", "b", TTL).await
    })
    .await;
}
