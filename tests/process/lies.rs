//! What lies about how much it is, and names that nobody has, by the hundred thousand: a node keeps
//! nothing of them.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use quorate_client::Consistency;
use quorate_proto::v1::{Consistency as WireConsistency, FetchRequest};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::cluster::{Cluster, Node, Settings};
use crate::connections::{PREFACE, SETTINGS};
use crate::floods::{frame, literal};
use crate::ports::free_port;
use crate::unread::resident_mib;
use crate::wait::time_passes;

const SOON: Duration = Duration::from_secs(20);
const TTL: Duration = Duration::from_secs(600);
const INSTANCE: &str = "/api/v1/namespaces/default/services/web/instances/a";
/// Bodies that are waited for at the same time, by each listener.
const HELD: u32 = 100;
/// Of lies, by each listener.
const KINDS: u32 = 4;
/// Of what claims some GiB; what arrives of it is some KiB.
const ROOM_MIB: u64 = 16;
const LOOKED_AT: u32 = 20;
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// One node, and where it listens for HTTP.
async fn listening() -> (Cluster, String) {
    let http = format!("127.0.0.1:{}", free_port());
    let head = [(1, format!("http_listen = \"{http}\"\n"))].into();
    let cluster = Cluster::start_with(1, Settings { head, ..Settings::default() }).await;
    cluster.nodes[0].register("web", "a", TTL).await.unwrap();
    (cluster, http)
}

/// Requests whose bodies are said to be larger than they are, or to have an end.
async fn lie_by_http(http: &str, many: u32) -> Vec<TcpStream> {
    let head = |length: &str| {
        format!(
            "PUT {INSTANCE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{length}\r\n\r\n{{"
        )
    };
    let mut held = Vec::new();
    for at in 0..many {
        let sent = match at % 3 {
            0 => head("Content-Length: 1048576"),
            1 => head("Content-Length: 17179869184"),
            _ => head("Transfer-Encoding: chunked").replace("\r\n{", "\r\nffffffff\r\n{"),
        };
        let mut stream = TcpStream::connect(http).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        held.push(stream);
    }
    // One that does not end is refused once it is more than may be.
    let mut endless = TcpStream::connect(http).await.unwrap();
    endless
        .write_all(head("Transfer-Encoding: chunked").trim_end_matches('{').as_bytes())
        .await
        .unwrap();
    let chunk = [b"10000\r\n", &[b' '; 0x1_0000][..], b"\r\n"].concat();
    let (mut answers, mut chunks) = endless.split();
    let send = async { while chunks.write_all(&chunk).await.is_ok() {} };
    let refused = async {
        let mut status = [0; 12];
        answers.read_exact(&mut status).await.map(|_| status)
    };
    let refused = async {
        tokio::select! {
            () = send => Ok(*b"HTTP/1.1 413"), // closed before it was asked
            status = refused => status,
        }
    };
    let status = timeout(SOON, refused).await.expect("it is refused").unwrap();
    assert_eq!(status, *b"HTTP/1.1 413");
    held
}

const REGISTER: &str = "/quorate.v1.Registry/Register";
/// Of nodes: a call that is one message, and one that is a stream.
const OF_NODES: [&str; 2] = ["/quorate.peer.v1.Peer/Append", "/quorate.peer.v1.Peer/Forward"];

/// Calls of a method whose messages are said to have 16 MiB or 4 GiB, of which a byte comes.
async fn lie_by_grpc(listener: &str, method: &str, many: u32) -> TcpStream {
    let mut bytes = [PREFACE, SETTINGS].concat();
    for at in 0..many {
        let mut block = vec![0x83, 0x86]; // :method POST, :scheme http
        for (name, value) in [
            (":path", method),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ] {
            literal(&mut block, name, value);
        }
        if at % 4 == 0 {
            literal(&mut block, "content-length", "4294967296");
        }
        frame(&mut bytes, 1, 4, 2 * at + 1, &block);
        let claimed: u32 = if at % 2 == 0 { (16 << 20) - 1 } else { u32::MAX };
        let message = [&[0], &claimed.to_be_bytes()[..], b"x"].concat();
        frame(&mut bytes, 0, 0, 2 * at + 1, &message);
    }
    let mut connection = TcpStream::connect(listener).await.unwrap();
    connection.write_all(&bytes).await.unwrap();
    // The node has taken them when it answers a ping that came after them.
    let mut ping = Vec::new();
    frame(&mut ping, 6, 0, 0, b"all this");
    connection.write_all(&ping).await.unwrap();
    let mut answer = Vec::new();
    while !answer.windows(8).any(|part| part == b"all this") {
        let read = timeout(SOON, connection.read_buf(&mut answer)).await.expect("an answer");
        assert!(read.unwrap() > 0, "it closed");
    }
    connection
}

/// CVE-2025-11374, CVE-2025-11375, CVE-2020-7219 (Consul), etcd PR 22161: memory was taken for what
/// a caller said that it would send.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_lie_about_their_length_take_no_memory() {
    let (mut cluster, http) = listening().await;
    let pid = cluster.nodes[0].process().pid();
    let node = &cluster.nodes[0];
    let lie = async |many| {
        let by_http = lie_by_http(&http, many).await;
        let mut by_grpc = vec![lie_by_grpc(&node.clients, REGISTER, many).await];
        for method in OF_NODES {
            by_grpc.push(lie_by_grpc(&node.peers(), method, many).await);
        }
        (by_http, by_grpc)
    };
    // One of each kind, for what a node takes for the first: more would be taken for them already.
    drop(lie(KINDS).await);
    let before = resident_mib(pid);
    let held = lie(HELD).await;
    let mut most = 0;
    for _ in 0..LOOKED_AT {
        most = most.max(resident_mib(pid));
        time_passes(LOOK_EVERY).await;
    }
    eprintln!("measured: {before} MiB, {most} beside {} bodies that lie", 4 * HELD);
    assert!(most <= before + ROOM_MIB, "{before} MiB became {most}");
    assert_eq!(node.instances(Consistency::Linearizable).await.unwrap().len(), 1, "it serves");
    drop(held);
}

const SEED: u64 = 0x6e61_6d65;
/// Requests on one connection, one behind the other.
const PIPELINED: usize = 50;
/// Names in one request: as many as its head has room for.
const TOGETHER: usize = 75;
const ASKED_FOR: Duration = Duration::from_millis(1_000);
/// Names in one fetch.
const FETCHED_TOGETHER: usize = 1_000;
/// So many names are asked for at least, by fetches and by watches, whatever the machine can do. If
/// they were kept, their 192 letters alone would take 6 MiB. `QUORATE_NAMES`: so many, by each way.
const ASKED_MIN: usize = 30_000;
const KEPT_MIB: u64 = 2;

fn name(rng: &mut StdRng) -> String {
    (0..6).map(|_| format!("{:032x}", rng.random::<u128>())).collect()
}

async fn ask_by_path(http: &str, rng: &mut StdRng, least: usize) -> usize {
    let (until, mut asked) = (Instant::now() + ASKED_FOR, 0);
    let mut stream = TcpStream::connect(http).await.unwrap();
    while Instant::now() < until || asked < least {
        let mut requests = String::new();
        for _ in 0..PIPELINED {
            let path = format!("/api/v1/namespaces/default/services/{}", name(rng));
            write!(requests, "GET {path}?consistency=local HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .unwrap();
        }
        stream.write_all(requests.as_bytes()).await.unwrap();
        let (mut answers, head) = (Vec::new(), b"HTTP/1.1 200 ");
        while answers.windows(head.len()).filter(|part| part == head).count() < PIPELINED {
            let read = timeout(SOON, stream.read_buf(&mut answers)).await.expect("an answer");
            assert!(read.unwrap() > 0, "{}", String::from_utf8_lossy(&answers));
        }
        asked += PIPELINED;
    }
    asked
}

/// Fetches many names at once, until this many are asked for.
async fn ask_by_fetches(node: &Node, rng: &mut StdRng, least: usize) -> usize {
    let (mut registry, mut asked) = (node.registry(), 0);
    while asked < least {
        let services = (0..FETCHED_TOGETHER).map(|_| name(rng)).collect();
        let consistency = WireConsistency::Local.into();
        let request = FetchRequest { services, consistency, ..FetchRequest::default() };
        let answer = registry.fetch(request).await.expect("an answer").into_inner();
        assert!(answer.services.iter().all(|service| service.instances.is_empty()));
        asked += FETCHED_TOGETHER;
    }
    asked
}

/// Follows many names at once, and goes away, until this many are asked for.
async fn ask_by_watches(http: &str, rng: &mut StdRng, least: usize) -> usize {
    let (until, mut asked) = (Instant::now() + ASKED_FOR, 0);
    while Instant::now() < until || asked < least {
        let names: Vec<_> = (0..TOGETHER).map(|_| format!("service={}", name(rng))).collect();
        let path = format!("/api/v1/namespaces/default/watch?{}", names.join("&"));
        let mut stream = TcpStream::connect(http).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut status = [0; 12];
        timeout(SOON, stream.read_exact(&mut status)).await.expect("an answer").unwrap();
        assert_eq!(status, *b"HTTP/1.1 200");
        asked += TOGETHER;
    }
    asked
}

/// How many samples the metrics have.
async fn samples(http: &str) -> usize {
    let mut stream = TcpStream::connect(http).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut text = String::new();
    timeout(SOON, stream.read_to_string(&mut text)).await.expect("metrics").unwrap();
    text.lines().filter(|line| line.starts_with("quorate_")).count()
}

/// CVE-2020-13250 (Consul): a cache by HTTP and DNS that grew with what was asked for. A million:
/// `QUORATE_NAMES=1000000`; by DNS, tests/dns/run asks for as many.
#[tokio::test(flavor = "multi_thread")]
async fn names_that_nobody_has_are_not_kept() {
    let (mut cluster, http) = listening().await;
    let pid = cluster.nodes[0].process().pid();
    let mut rng = StdRng::seed_from_u64(SEED);
    let many = std::env::var("QUORATE_NAMES").ok().map(|many| many.parse::<usize>().unwrap());
    let (by_path_least, least) = (many.unwrap_or(0), many.unwrap_or(ASKED_MIN));
    let (mut asked, mut before) = (0, (0, 0));
    // The first time is for what a node takes for such requests at all.
    for _ in 0..2 {
        before = (resident_mib(pid), samples(&http).await);
        let by_path = ask_by_path(&http, &mut rng, by_path_least).await;
        let by_fetch = ask_by_fetches(&cluster.nodes[0], &mut rng, least).await;
        let by_watch = ask_by_watches(&http, &mut rng, least).await;
        asked = by_path + by_fetch + by_watch;
        eprintln!(
            "measured: {by_path} names by path, {by_fetch} by fetches, {by_watch} by watches"
        );
    }
    let after = (resident_mib(pid), samples(&http).await);
    eprintln!("measured: {asked} names; {before:?} MiB and samples before, {after:?} after");
    assert!(after.0 <= before.0 + KEPT_MIB, "{} MiB became {}", before.0, after.0);
    assert_eq!(after.1, before.1, "nor are there more metrics");
}
