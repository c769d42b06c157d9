//! Streams of events by HTTP: a thousand of them, and some that nobody reads.

use std::net::SocketAddr;
use std::time::Duration;

use quorate_node::Tunables;
use quorate_proto::v1::{Metadata, UpdateRequest};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::calls::{Registry, named, register, set_weight};
use super::harness::{Cluster, SOON, within};
use super::http_watch::{Events, WATCH};

const WATCHERS: usize = 1_000;
const CHANGES: u32 = 60;
const EVERY: Duration = Duration::from_millis(50);

/// Their ends here and at the node.
fn raise_limit_of_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).unwrap();
}

/// The revisions of the changes in the data of an event: read without making a value of it, which
/// costs a debug build more than the node's work.
fn revisions(data: &str) -> Vec<u64> {
    let (_, changes) = data.split_once("\"changes\":").expect("a change");
    let each = changes.split("{\"revision\":\"").skip(1);
    each.map(|rest| rest.split('"').next().unwrap().parse().unwrap()).collect()
}

/// Follows up to this revision; every change came, in order, once.
async fn follow(mut events: Events, from: u64, to: u64) {
    let mut next = from + 1;
    let mut name = String::new();
    while next <= to {
        let line = events.line().await.expect("it goes on");
        match line.split_once(": ") {
            Some(("event", event)) => name = event.to_owned(),
            Some(("data", data)) if name == "change" => {
                for revision in revisions(data) {
                    assert_eq!(revision, next, "{data}");
                    next += 1;
                }
            }
            Some(("data", data)) => assert!(["leader", "snapshot"].contains(&&*name), "{data}"),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_streams_get_every_change_in_order() {
    raise_limit_of_descriptors();
    // As a node is without anything set.
    let cluster = Cluster::start(1).await;
    cluster.leader().await;
    let mut registry = cluster.registry(1);
    let begun = register(&mut registry, "web", "a").await;
    let from = begun.header.unwrap().revision;
    let to = from + u64::from(CHANGES);
    let (http, mut watchers) = (cluster.http_address(1), JoinSet::new());
    for _ in 0..WATCHERS {
        let mut events = Events::open(http, WATCH, "").await;
        assert_eq!(events.of_service().await.0, "snapshot");
        watchers.spawn(follow(events, from, to));
    }
    let mut due = tokio::time::interval(EVERY);
    for weight in 1..=CHANGES {
        due.tick().await;
        set_weight(&mut registry, "web", "a", 200 + weight).await;
    }
    while let Some(followed) = watchers.join_next().await {
        followed.unwrap();
    }
}

/// Its node gives a stream up that takes nothing, after its deadline and a grace, 5 s each.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(40);

async fn change(registry: &mut Registry, number: u32) {
    // 30 KB of JSON.
    let text = format!("{number:08}{}", "\"".repeat(15_000));
    let request = UpdateRequest {
        instance: Some(named("web", "a")),
        metadata: Some(Metadata { entries: [("text".to_owned(), text)].into() }),
        ..UpdateRequest::default()
    };
    registry.update(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_nobody_reads_ends_and_is_told_what_it_missed() {
    // Four places for an address.
    let tunables = Tunables { http_connections_max: 8, watch_ring: 4, ..Tunables::default() };
    let cluster = Cluster::start_with(1, tunables).await;
    cluster.leader().await;
    let mut registry = cluster.registry(1);
    register(&mut registry, "web", "a").await;
    let (http, mut deaf) = (cluster.http_address(1), Vec::new());
    for _ in 0..4 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        let stream = socket.connect(http).await.unwrap();
        let mut events = Events::on(stream, WATCH, "").await;
        assert_eq!(events.of_service().await.0, "snapshot");
        deaf.push(events);
    }
    let has_place = async || {
        let mut stream = TcpStream::connect(http).await.ok()?;
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").await.ok()?;
        let mut answer = [0; 15];
        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut answer).await.ok()?;
        (&answer == b"HTTP/1.0 200 OK").then_some(())
    };
    assert_eq!(has_place().await, None, "the places of the address are taken");
    let mut number = 0;
    let probe = || {
        number += 1;
        let mut registry = registry.clone();
        async move {
            change(&mut registry, number).await;
            has_place().await
        }
    };
    within(GIVEN_UP_WITHIN, "places are free again", probe).await;
    let id = deaf[0].id.clone();
    let resume = format!("Last-Event-ID: {id}\r\n");
    let mut again = Events::open(http, WATCH, &resume).await;
    let (name, data) = again.of_service().await;
    assert_eq!(name, "reset", "what it missed is not there any more: {data}");
    assert_eq!(data["services"][0]["instances"][0]["id"], "a", "{data}");
}

/// A connection from this address of the machine.
async fn from(address: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((address, 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_and_waiting_reads_leave_places_for_the_rest() {
    // Three quarters of the places, and half of them for an address.
    let tunables = Tunables { http_connections_max: 8, ..Tunables::default() };
    let cluster = Cluster::start_with(1, tunables).await;
    cluster.leader().await;
    register(&mut cluster.registry(1), "web", "a").await;
    let http = cluster.http_address(1);
    let (one, other) = ([127, 0, 0, 1], [127, 0, 0, 2]);
    let mut streams = Vec::new();
    for address in [one, one, one, other, other, other] {
        streams.push(Events::on(from(address, http).await, WATCH, "").await);
    }
    // The place of a connection is free a moment after its end is seen: `None`.
    let try_to_ask = async |path: &str| {
        let mut stream = from(other, http).await;
        let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        let read = timeout(SOON, stream.read_to_string(&mut answer)).await;
        read.unwrap_or_else(|_| panic!("{path}: {answer}")).ok()?;
        Some(answer).filter(|answer| !answer.is_empty())
    };
    let ask = async |path: &str| within(SOON, "it has a place", || try_to_ask(path)).await;
    let web = "/api/v1/namespaces/default/services/web";
    let now = ask(web).await;
    assert!(now.starts_with("HTTP/1.0 200 "), "{now}");
    let (_, rest) = now.split_once("\"index\":\"").unwrap();
    let index = rest.split('"').next().unwrap();
    for path in [WATCH, &format!("{web}?index={index}&wait=1s")] {
        let refused = ask(path).await;
        assert!(refused.starts_with("HTTP/1.0 429 "), "{refused}");
        for said in ["application/problem+json", "retry-after: 1", "RESOURCE_EXHAUSTED"] {
            assert!(refused.contains(said), "{path}: {refused}");
        }
        assert!(refused.contains("\"limit\":\"at most 6 streams"), "{path}: {refused}");
    }
    drop(streams.pop());
    let again = async || {
        ask(&format!("{web}?index={index}&wait=1ms")).await.contains(" 200 ").then_some(())
    };
    within(SOON, "its place is free again", again).await;
}
