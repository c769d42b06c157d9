//! Callers that ask for much and do not read it: what is kept for them is bounded, and ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quorate_client::Consistency;
use quorate_proto::v1::{FetchRequest, FetchResponse, RegisterRequest};
use tokio::task::JoinSet;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::cluster::{Cluster, Node, Settings};
use crate::floods::Other;
use crate::raw::spec;
use crate::wait::eventually;

/// An answer is a good half of what a connection may have, and three are most of what a node may.
const PER_CONNECTION: usize = 8 << 20;
const IN_ALL: usize = 18 << 20;
const UNREAD_ANSWERS: usize = 3;
/// They stand until a fourth has been asked for, also on a slow machine.
const THEY_STAND: Duration = Duration::from_secs(20);
const INSTANCES: usize = 4_000;
const ASKED_AT_ONCE: usize = 40;
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// It takes a debug build half a second to encode this many.
const MANY: usize = 20_000;
const SMALL_READS: u32 = 400;
const SMALL_READ_EVERY: Duration = Duration::from_millis(10);
const UNREAD_CONNECTIONS: usize = 24;
const UNREAD_ON_EACH: usize = 10;
const UNREAD_FOR: Duration = Duration::from_secs(8);
/// This many are given before the others are given up, also on a slow machine.
const GIVEN_MIN: usize = 2;
/// As many answers as a node encodes at the same time.
const ENCODED_AT_ONCE: usize = 2;
/// Small reads are slower by at most this factor, or take no longer than [`UNNOTICED`].
const SLOWER_MAX: u32 = 3;
const UNNOTICED: Duration = Duration::from_millis(50);
/// Five seconds after the deadline, and a little.
const ENDED_WITHIN: Duration = Duration::from_secs(35);

/// Asks for everything; its answer is read no further than to its headers.
pub(crate) async fn ask(channel: &Channel) -> Result<Response<Streaming<FetchResponse>>, Status> {
    ask_within(channel, CALL_TIMEOUT).await
}

async fn ask_within(
    channel: &Channel,
    within: Duration,
) -> Result<Response<Streaming<FetchResponse>>, Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut request = Request::new(FetchRequest::default());
    request.set_timeout(within);
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

    // Each connection with as many answers unread as it may have.
    let (begun, mut unread) = (Instant::now(), Vec::new());
    for _ in 0..UNREAD_ANSWERS {
        let channel = node.channel();
        let (mut given, mut refused) = (Vec::new(), Vec::new());
        let asked = (0..ASKED_AT_ONCE).map(|_| ask_within(&channel, THEY_STAND));
        for answer in futures_util::future::join_all(asked).await {
            match answer {
                Ok(answer) => given.push(answer),
                Err(status) => refused.push(status),
            }
        }
        assert_eq!(given.len(), 1, "answers of over 5 MB are kept: {refused:?}");
        for status in &refused {
            assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
            assert!(status.message().contains("bytes of answers are under way"), "{status}");
            assert!(status.metadata().contains_key("retry-after-ms"), "{status:?}");
        }
        unread.push((channel, given));
    }
    let fourth = ask_within(&node.channel(), THEY_STAND).await;
    let Err(refused) = fourth else { panic!("a fourth, {:?} after the first", begun.elapsed()) };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("at this node"), "{refused}");
    let grown = resident_mib(pid).saturating_sub(before);
    assert!(grown < 100, "{grown} MiB are kept for answers of 18");
    let since = Instant::now();
    registry.fetch(small()).await.expect("small answers are given");
    eprintln!("measured: a small answer beside unread ones took {:?}", since.elapsed());

    eventually("room for a large answer", ENDED_WITHIN, async || {
        node.instances(Consistency::Linearizable).await
    })
    .await;
    assert_eq!(unread.len(), UNREAD_ANSWERS, "nothing was read or given up until here");
}

fn small() -> FetchRequest {
    FetchRequest { services: vec!["one".to_owned()], ..FetchRequest::default() }
}

/// What all but 1 % of small reads take at most. They begin at fixed times, also while others wait:
/// a node that stands still holds all up that come meanwhile.
async fn p99_of_small_reads(node: &Node) -> Duration {
    let (registry, mut reads) = (node.registry(), JoinSet::new());
    let begun = Instant::now();
    for at in 0..SMALL_READS {
        let due = begun + SMALL_READ_EVERY * at;
        tokio::time::sleep_until(due.into()).await;
        let mut registry = registry.clone();
        reads.spawn(async move {
            registry.fetch(small()).await.expect("small answers are given");
            due.elapsed()
        });
    }
    let mut took = reads.join_all().await;
    took.sort_unstable();
    took[took.len() - 1 - took.len() / 100]
}

/// A thread that works until this is dropped.
pub(crate) struct Busy(Arc<AtomicBool>);

impl Busy {
    pub(crate) fn begin() -> Self {
        let works = Arc::new(AtomicBool::new(true));
        let until = works.clone();
        std::thread::spawn(move || {
            while until.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        Self(works)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// The yardstick is what the same reads take just before, beside threads that are as busy as the
/// threads that encode: cores are no part of the question. The machine may have much else to do in
/// any one moment: a node of its own is measured at the same time, and the best of three rounds
/// counts.
#[tokio::test(flavor = "multi_thread")]
async fn small_reads_keep_their_pace_beside_answers_that_nobody_reads() {
    let (cluster, other) = (Cluster::start(1).await, Other::start().await);
    let node = &cluster.nodes[0];
    for part in 0..MANY / 1_000 {
        let instances = (0..1_000).map(|at| spec("many", &format!("i{part}-{at}"))).collect();
        let request = RegisterRequest { instances, ttl_ms: 600_000, ..RegisterRequest::default() };
        node.registry().register(request).await.unwrap();
    }
    node.register("one", "a", Duration::from_secs(600)).await.unwrap();
    let mut rounds = Vec::new();
    for _ in 0..3 {
        let alone = {
            let _busy = (0..ENCODED_AT_ONCE).map(|_| Busy::begin()).collect::<Vec<_>>();
            p99_of_small_reads(node).await
        };
        let channels: Vec<Channel> = (0..UNREAD_CONNECTIONS).map(|_| node.channel()).collect();
        let asked = channels
            .iter()
            .flat_map(|channel| (0..UNREAD_ON_EACH).map(|_| ask_within(channel, UNREAD_FOR)));
        let (answers, beside, elsewhere) = tokio::join!(
            futures_util::future::join_all(asked),
            p99_of_small_reads(node),
            p99_of_small_reads(other.node())
        );
        let given = answers.iter().filter(|answer| answer.is_ok()).count();
        eprintln!(
            "measured: p99 {alone:?} alone, {beside:?} beside {given} unread answers, {elsewhere:?} elsewhere"
        );
        assert!(given >= GIVEN_MIN, "{given} answers wait for a reader");
        rounds.push((alone, beside, elsewhere));
        // What is still being encoded for the last round is no yardstick.
        let yardstick = rounds.iter().map(|(alone, ..)| *alone).min().unwrap_or_default();
        if beside <= UNNOTICED.max(yardstick.max(elsewhere) * SLOWER_MAX) {
            return;
        }
    }
    panic!("p99 alone, beside unread answers, and elsewhere: {rounds:?}");
}

/// What a process has in memory.
pub(crate) fn resident_mib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib / 1_024
}
