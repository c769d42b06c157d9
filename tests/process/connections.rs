//! Strangers that take what a node has: connections by the hundred, connections that say nothing,
//! clients that stand still.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use prost::Message as _;
use quorate_client::Consistency;
use quorate_proto::v1::watch_request::Kind;
use quorate_proto::v1::{WatchRequest, WatchSubscribe};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::cluster::{Cluster, Node, Settings};
use crate::ports::free_port;
use crate::wait::{eventually, time_passes};

/// A node gives a new connection 10 s to say something.
const SILENCE_ENDS_WITHIN: Duration = Duration::from_secs(25);
/// And 30 s to send the headers of a request by HTTP.
const HALF_SENT_ENDS_WITHIN: Duration = Duration::from_secs(50);
/// One second without an answer, and what a busy machine adds.
const STOPS_WITHIN: Duration = Duration::from_secs(10);
const SOON: Duration = Duration::from_secs(20);
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// An empty SETTINGS frame.
pub(crate) const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
const TTL: Duration = Duration::from_secs(60);

/// A connection from 127.0.0.2, which is another address than that of the tests' clients.
async fn stranger(address: &str) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::new(127, 0, 0, 2), 0).into())?;
    socket.connect(address.parse().unwrap()).await
}

/// Whether it was closed from the other side.
async fn is_closed(stream: &mut TcpStream) -> Result<(), &'static str> {
    let mut bytes = [0; 1_024];
    let read = async { while !matches!(stream.read(&mut bytes).await, Ok(0) | Err(_)) {} };
    tokio::time::timeout(Duration::from_millis(1), read).await.map_err(|_| "it is open")
}

fn count(log: &str, words: &str) -> usize {
    log.matches(words).count()
}

/// With 256 descriptors, 356 idle connections: clients from elsewhere are served, snapshots are
/// written, nothing ends.
#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_do_not_take_all_descriptors() {
    let tunables = "snapshot_every = 200\nkeep_entries = 20".to_owned();
    let settings = Settings { tunables, ulimit: "-n 256".to_owned(), ..Settings::default() };
    let mut cluster = Cluster::start_with(1, settings).await;
    let node = &cluster.nodes[0];
    let mut idle = Vec::new();
    for _ in 0..356 {
        let mut stream = stranger(&node.clients).await.unwrap();
        // Some are closed already.
        let _refused = stream.write_all(&[PREFACE, SETTINGS].concat()).await;
        idle.push(stream);
    }
    let mut registry = node.registry();
    for at in 0..500 {
        let request = crate::raw::registration("kept", &format!("i{at}"), TTL, 0);
        registry.register(request).await.expect("a client from elsewhere is served");
    }
    let status = node.its_status().await;
    assert!(status.snapshot_index >= 200, "a snapshot was written: {status:?}");
    let mut refused = 0;
    for stream in &mut idle {
        refused += usize::from(is_closed(stream).await.is_ok());
    }
    assert!(refused >= 356 - 128, "only {refused} were refused");
    let log = node.log_text();
    assert_eq!(count(&log, "too many connections"), 1, "logged once a minute: {log}");
    assert!(cluster.nodes[0].process().ended().is_none(), "the node survives");
}

/// RUSTSEC-2024-0376 (tonic): an error of accept ended the server. No descriptor is left at all:
/// the node waits for one without turning in circles, and goes on.
#[tokio::test(flavor = "multi_thread")]
async fn without_descriptors_a_node_waits_for_some() {
    let mut cluster = Cluster::start(1).await;
    let node = &mut cluster.nodes[0];
    let pid = node.process().pid();
    limit(pid, Resource::Nofile, Some(3));
    let mut waiting = TcpStream::connect(&node.clients).await.unwrap();
    eventually("the node notices", SOON, async || {
        match count(&node.log_text(), "cannot accept connections") {
            0 => Err("nothing in its log"),
            _ => Ok(()),
        }
    })
    .await;
    let before = cpu_time(pid);
    time_passes(Duration::from_secs(2)).await;
    let spent = cpu_time(pid) - before;
    assert!(spent < Duration::from_millis(500), "it spent {spent:?} in two seconds");
    assert_eq!(count(&node.log_text(), "cannot accept connections"), 1, "logged once a minute");
    limit(pid, Resource::Nofile, Some(1_024));
    node.register("after", "a", TTL).await.expect("it goes on");
    waiting.write_all(&[PREFACE, SETTINGS].concat()).await.unwrap();
    let mut answer = [0; 9];
    let answered = tokio::time::timeout(SOON, waiting.read_exact(&mut answer));
    answered.await.expect("a connection that waited is served").unwrap();
}

/// No listener keeps a connection that says nothing, or half of what it should begin with. A half
/// request by HTTP has more time: its headers may come in many parts.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_end() {
    let http = format!("127.0.0.1:{}", free_port());
    let head = BTreeMap::from([(1, format!("http_listen = '{http}'"))]);
    let cluster = Cluster::start_with(1, Settings { head, ..Settings::default() }).await;
    let node = &cluster.nodes[0];
    let mut half_sent = TcpStream::connect(&http).await.unwrap();
    half_sent.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Half: ").await.unwrap();
    let half_sent_since = Instant::now();
    let mut silent = vec![TcpStream::connect(&http).await.unwrap()];
    for address in [node.clients.clone(), node.peers()] {
        for words in [&b""[..], &PREFACE[..12]] {
            let mut stream = TcpStream::connect(&address).await.unwrap();
            stream.write_all(words).await.unwrap();
            silent.push(stream);
        }
    }
    let mut greeted = TcpStream::connect(&node.clients).await.unwrap();
    greeted.write_all(&[PREFACE, SETTINGS].concat()).await.unwrap();
    let since = Instant::now();
    for stream in &mut silent {
        let left = SILENCE_ENDS_WITHIN.saturating_sub(since.elapsed());
        eventually("the end of a silent connection", left, async || is_closed(stream).await).await;
    }
    assert!(is_closed(&mut greeted).await.is_err(), "a connection that greeted may be idle");
    let left = HALF_SENT_ENDS_WITHIN.saturating_sub(half_sent_since.elapsed());
    eventually("the end of half a request", left, async || is_closed(&mut half_sent).await).await;
}

/// SIGTERM while some say nothing, and one has a call under way and stands still.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_the_silent() {
    let mut cluster = Cluster::start(1).await;
    let node = &mut cluster.nodes[0];
    let mut silent = Vec::new();
    for words in [&b""[..], &PREFACE[..12], &[PREFACE, SETTINGS].concat()] {
        for address in [node.clients.clone(), node.peers()] {
            let mut stream = TcpStream::connect(&address).await.unwrap();
            stream.write_all(words).await.unwrap();
            silent.push(stream);
        }
    }
    // One has a Watch under way, and reads nothing.
    let mut frozen = TcpStream::connect(&node.clients).await.unwrap();
    frozen.write_all(&[PREFACE, SETTINGS, &watch()].concat()).await.unwrap();
    // They have arrived when this one, which came after them, is answered.
    node.instances(Consistency::Linearizable).await.unwrap();
    let told = Instant::now();
    node.terminate();
    assert_eq!(node.exit_code(SOON).await, 0);
    let took = told.elapsed();
    assert!(took < STOPS_WITHIN, "the stop took {took:?}: {}", node.log_text());
    assert!(node.log_text().contains("calls are done"), "{}", node.log_text());
}

/// A call of Watch that has begun, byte by byte: the headers, of which the node remembers none, and
/// a message that subscribes to the service "a".
fn watch() -> Vec<u8> {
    // ":method: POST" and ":scheme: http", from the static table.
    let mut block = vec![0x83, 0x86];
    for (name, value) in [
        (":path", "/quorate.v1.Registry/Watch"),
        (":authority", "a"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        block.extend([0, name.len() as u8]);
        block.extend(name.as_bytes());
        block.push(value.len() as u8);
        block.extend(value.as_bytes());
    }
    let frame = |kind: u8, flags: u8, payload: &[u8]| {
        [&[0, 0, payload.len() as u8, kind, flags, 0, 0, 0, 1], payload].concat()
    };
    let subscribe = WatchSubscribe { services: vec!["a".to_owned()], ..<_>::default() };
    let message = WatchRequest { kind: Some(Kind::Subscribe(subscribe)) }.encode_to_vec();
    let message = [&[0, 0, 0, 0, message.len() as u8], &message[..]].concat();
    // HEADERS, with all of them, and DATA, which does not end the stream.
    [frame(1, 4, &block), frame(0, 0, &message)].concat()
}

/// A node raises the limit that a shell gives it as far as the system lets it.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_raises_its_soft_limit_of_descriptors() {
    let hard = rustix::process::getrlimit(Resource::Nofile).maximum;
    let settings = Settings { ulimit: "-Sn 256".to_owned(), ..Settings::default() };
    let mut cluster = Cluster::start_with(1, settings).await;
    let pid = Pid::from_raw(cluster.nodes[0].process().pid()).unwrap();
    let unchanged = Rlimit { current: Some(256), maximum: hard };
    // Sets it, and tells what it was.
    let was = prlimit(Some(pid), Resource::Nofile, unchanged).unwrap();
    assert!(was.current.is_none_or(|soft| soft > 256), "{was:?}, of {hard:?}");
}

fn limit(pid: i32, resource: Resource, current: Option<u64>) {
    let pid = Pid::from_raw(pid).unwrap();
    let before = rustix::process::getrlimit(resource);
    prlimit(Some(pid), resource, Rlimit { current, maximum: before.maximum }).unwrap();
}

/// User and system time of a process.
fn cpu_time(pid: i32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().map(|at| fields[*at].parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 1_000 / rustix::param::clock_ticks_per_second())
}

impl Node {
    /// Its address for peers.
    pub(crate) fn peers(&self) -> String {
        let args = self.args();
        let at = args.iter().position(|arg| arg == "--peer-listen").unwrap();
        args[at + 1].clone()
    }
}
