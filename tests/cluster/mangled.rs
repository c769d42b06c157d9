//! What nodes sent each other, mangled, and sent again as a member would: whatever the bytes, no
//! node panics, the leader leads on, no log is cut, and all come to the same state.
//!
//! What a member may say, and the others believe, is not sent: Raft trusts its members
//! (docs/security.md, "Out of scope"). A lead in a later term is that, or a call to take a node
//! out.
//!
//! `QUORATE_MANGLED_SECONDS` makes it longer, `QUORATE_MANGLED_SEED` begins elsewhere.

use std::collections::BTreeMap;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream;
use http::uri::PathAndQuery;
use prost::Message as _;
use prost::bytes::Bytes;
use quorate_node::Tunables;
use quorate_proto::peer::v1::leader_call::Call;
use quorate_proto::peer::v1::{
    AppendRequest, Ballot, Forwarded, IdentifyRequest, LeaderCall, LogId, MovedRequest,
    ReadIndexRequest, SnapshotChunk, SucceedRequest, TransferRequest, VoteRequest,
};
use quorate_proto::v1::{StatusRequest, TriggerSnapshotRequest};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::{Instant, timeout};
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::calls::{deregister, fetch_of, in_time, register, register_many, renewal, set_weight};
use super::failover::seldom_by_silence;
use super::founding::from;
use super::harness::{Cluster, eventually};
use super::mixed;
use super::newer::{Newer, Raw, Recorded};
use super::snapshots::same_hashes_by;

const SEED: u64 = 18;
const SECONDS: u64 = 8;
/// Calls that are under way at once.
const AT_ONCE: usize = 16;
/// To mangle a message so that it can be read.
const TRIES: usize = 50;
/// Of each method, at least, however long that takes.
const LEAST: usize = 20;
/// No machine takes longer than that beyond the seconds.
const LATEST: Duration = Duration::from_secs(120);
/// Much longer than a node thinks about a message that it does not take.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);

/// The methods of the service, as the contract has them.
fn methods() -> Vec<&'static str> {
    let contract = include_str!("../../proto/quorate/peer/v1/peer.proto");
    let lines = contract.lines().filter_map(|line| line.trim().strip_prefix("rpc "));
    lines.map(|line| line.split('(').next().expect("a name")).collect()
}

/// What the threads of this test's nodes are called; those of the log and of sled have names of
/// their own.
const THREADS: &str = "mangled";
/// Panics of these nodes, and none of tests.
static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Whether other tests run on a thread of this name, and not this one: on one that libtest named
/// after the test, or of the runtime that `tokio::test` makes.
fn is_of_others(name: &str) -> bool {
    name == "tokio-rt-worker" || (name.starts_with("cluster::") && !name.contains(THREADS))
}

fn count_panics() -> usize {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let of_test = panic.location().is_none_or(|at| at.file().contains("tests/"));
            let of_others = std::thread::current().name().is_some_and(is_of_others);
            PANICS.fetch_add(usize::from(!of_test && !of_others), Ordering::Relaxed);
            before(panic);
        }));
    });
    PANICS.load(Ordering::Relaxed)
}

/// All that nodes say to each other: members and clients come, change and go, the lead passes, and
/// one is so far behind that it is sent a snapshot.
async fn talk(cluster: &mut Cluster) {
    for id in cluster.ids() {
        let mut registry = cluster.registry(id);
        let lease = register(&mut registry, "web", &format!("of-{id}")).await.lease_id;
        registry.renew(in_time(renewal([lease]))).await.expect("a renewal");
        registry.fetch(in_time(fetch_of(&["web"]))).await.expect("a fetch");
        let status = in_time(StatusRequest::default());
        cluster.admin(id).status(status).await.expect("a status");
    }
    let next = mixed::hand_over(cluster).await;
    cluster.settled().await;
    let behind = next % 3 + 1;
    cluster.stop(behind).await;
    let mut registry = cluster.registry(next);
    register_many(&mut registry, "many", 500).await;
    for weight in 0..40 {
        set_weight(&mut registry, "many", "i00042", weight).await;
    }
    deregister(&mut registry, "many", "i00007").await;
    for id in cluster.ids() {
        let snapshot = in_time(TriggerSnapshotRequest {});
        let taken = cluster.admin(id).trigger_snapshot(snapshot).await;
        let index = taken.expect("a snapshot").into_inner().snapshot_index;
        eventually("the log behind it is purged", || async {
            (cluster.own_status(id).await?.members[0].purged_index + 10 >= index).then_some(())
        })
        .await;
    }
    cluster.restart(behind).await;
    cluster.settled().await;
}

/// What was sent, and what of its kind is seldom sent: of each method some calls.
fn corpus(newer: &BTreeMap<u64, Newer>, known: &Known) -> Recorded {
    let mut calls = Recorded::new();
    for (path, recorded) in newer.values().flat_map(Newer::recorded) {
        let method = path.rsplit('/').next().expect("a method");
        let recorded = recorded.into_iter().filter(|call| !call.is_empty());
        calls.entry(method.to_owned()).or_default().extend(recorded);
    }
    // Streams that last: each message for itself is one that may be sent.
    for method in ["AppendStream", "Forward", "ReadIndex"] {
        let single = calls.get(method).into_iter().flatten().flatten();
        let single: Vec<_> = single.map(|message| vec![message.clone()]).collect();
        calls.insert(method.to_owned(), single);
    }
    for (method, as_of) in [("Append", "AppendStream"), ("PreVote", "Vote")] {
        if let Some(of_same) = calls.get(as_of).cloned() {
            calls.insert(method.to_owned(), of_same);
        }
    }
    let moved = |node_id| MovedRequest { node_id, peer_address: format!("127.0.0.1:7{node_id}01") };
    let moved = (1..=3).map(|id| vec![Bytes::from(moved(id).encode_to_vec())]);
    calls.insert("Moved".to_owned(), moved.collect());
    let succeeds = SucceedRequest { cluster_id: known.cluster_id ^ 1, ago_ms: 1_000 };
    calls.insert("Succeed".to_owned(), vec![vec![succeeds.encode_to_vec().into()]]);
    calls
}

/// What they say while they talk, by each method. The snapshot may be on its way yet.
async fn recorded(cluster: &mut Cluster, newer: &BTreeMap<u64, Newer>) -> (Known, Recorded) {
    talk(cluster).await;
    let (cluster, methods) = (&*cluster, methods());
    eventually("each method was called", || async {
        let known = Known::of(cluster).await;
        let calls = corpus(newer, &known);
        let was_called = |method: &&str| calls.get(*method).is_some_and(|calls| !calls.is_empty());
        methods.iter().all(was_called).then_some((known, calls))
    })
    .await
}

/// Where the cluster is while nothing else is done.
struct Known {
    cluster_id: u64,
    leader: u64,
    term: u64,
    /// The last entry of each node.
    last: BTreeMap<u64, u64>,
}

impl Known {
    async fn of(cluster: &Cluster) -> Self {
        let leader = cluster.leader().await;
        let status = |id| eventually("a status", move || cluster.own_status(id));
        let header = status(leader).await.header.expect("a header");
        let mut last = BTreeMap::new();
        for id in cluster.ids() {
            last.insert(id, status(id).await.members[0].last_log_index);
        }
        Self { cluster_id: header.cluster_id, leader, term: header.term, last }
    }

    /// Whether it says that its sender leads, or stands to lead, now or later.
    fn leads(&self, vote: Option<Ballot>, sender: u64) -> bool {
        let claim = |vote: Ballot| {
            let of_now = vote.term == self.term && sender == self.leader;
            vote.node_id == sender && (vote.term > self.term || of_now)
        };
        vote.is_some_and(claim)
    }

    /// Whether it leaves what is there as it is, if it is the leader's: entries that were sent, or
    /// none, behind one that all have, or that none can have.
    fn changes_nothing(&self, append: &AppendRequest, calls: &Recorded) -> bool {
        let sent = calls["AppendStream"].iter().flatten();
        let mut sent = sent.map(|sent| AppendRequest::decode(sent.clone()).expect("an append"));
        let least = *self.last.values().min().expect("a node");
        let there = |at: &LogId| at.index <= least || at.index > least + 1_000_000;
        append.vote.is_some_and(|vote| vote.term == self.term)
            && append.previous.as_ref().is_none_or(there)
            && (append.entries.is_empty() || sent.any(|sent| sent.entries == append.entries))
    }

    /// Whether the sender may say this, and is believed.
    fn is_believed(&self, method: &str, call: &[Bytes], sender: u64, calls: &Recorded) -> bool {
        let stands = |message: &Bytes| {
            VoteRequest::decode(message.clone()).is_ok_and(|it| self.leads(it.vote, sender))
        };
        let appends = |message: &Bytes| {
            AppendRequest::decode(message.clone())
                .is_ok_and(|it| self.leads(it.vote, sender) && !self.changes_nothing(&it, calls))
        };
        let hands_over = |message: &Bytes| {
            TransferRequest::decode(message.clone()).is_ok_and(|it| self.leads(it.leader, sender))
        };
        let moves = |message: &Bytes| {
            MovedRequest::decode(message.clone()).is_ok_and(|it| it.node_id == sender)
        };
        let succeeds = |message: &Bytes| {
            SucceedRequest::decode(message.clone()).is_ok_and(|it| it.cluster_id == self.cluster_id)
        };
        let installs = |message: &Bytes| {
            let vote = SnapshotChunk::decode(message.clone()).ok().and_then(|chunk| chunk.vote);
            vote.is_some_and(|vote| vote.node_id == sender && vote.term > self.term)
        };
        match method {
            "Vote" | "PreVote" => call.iter().any(stands),
            "Append" | "AppendStream" => call.iter().any(appends),
            "TransferLeader" => call.iter().any(hands_over),
            "InstallSnapshot" => call.first().is_some_and(installs),
            "Moved" => call.iter().any(moves),
            "Succeed" => call.iter().any(succeeds),
            "Forward" => call.iter().any(|message| changes_members(message, sender)),
            _ => false,
        }
    }
}

/// Whether one of the calls in it is the sender's to make, and changes who the members are, where
/// they are, or who of them leads.
fn changes_members(message: &Bytes, sender: u64) -> bool {
    let Ok(forwarded) = Forwarded::decode(message.clone()) else { return false };
    let mut calls = forwarded.calls.into_iter().filter_map(|call| LeaderCall::decode(call).ok());
    calls.any(|call| match call.call {
        Some(Call::Announce(told)) => told.id == sender,
        Some(Call::Write(_) | Call::Renew(_) | Call::Successor(_)) | None => false,
        Some(_) => true,
    })
}

/// Whether it is a message of this method still, whatever stands in it.
fn is_read(method: &str, message: &Bytes) -> bool {
    let message = message.clone();
    match method {
        "Vote" | "PreVote" => VoteRequest::decode(message).is_ok(),
        "Append" | "AppendStream" => AppendRequest::decode(message).is_ok(),
        "TransferLeader" => TransferRequest::decode(message).is_ok(),
        "InstallSnapshot" => SnapshotChunk::decode(message).is_ok(),
        "Moved" => MovedRequest::decode(message).is_ok(),
        "Succeed" => SucceedRequest::decode(message).is_ok(),
        "ReadIndex" => ReadIndexRequest::decode(message).is_ok(),
        "Identify" => IdentifyRequest::decode(message).is_ok(),
        "Forward" => Forwarded::decode(message).is_ok_and(|forwarded| {
            forwarded.calls.into_iter().all(|call| LeaderCall::decode(call).is_ok())
        }),
        _ => true,
    }
}

/// Some bytes are others, are missing, or are there twice, or there are more.
fn mangle(rng: &mut StdRng, message: &Bytes, other: &Bytes) -> Bytes {
    let mut bytes = message.to_vec();
    for _ in 0..rng.random_range(1..=3) {
        let at = rng.random_range(0..=bytes.len());
        let end = (at + rng.random_range(1..=8)).min(bytes.len());
        match rng.random_range(0..8) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let twice = bytes[at..end].to_vec();
                drop(bytes.splice(at..at, twice));
            }
            3 => {
                let more: Vec<u8> = (0..rng.random_range(1..=10)).map(|_| rng.random()).collect();
                drop(bytes.splice(at..at, more));
            }
            4 => {
                let from = rng.random_range(0..=other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            kind if at < bytes.len() => {
                bytes[at] = match kind {
                    5 => bytes[at] ^ (1 << rng.random_range(0..8)),
                    6 => *[0, 1, 0x7f, 0x80, 0xff].choose(rng).expect("some"),
                    _ => rng.random(),
                };
            }
            _ => bytes.push(rng.random()),
        }
    }
    bytes.into()
}

/// A call of any method is a stream of messages, as far as the transport knows.
async fn send(
    node: Channel,
    method: &str,
    call: Vec<Bytes>,
    [cluster_id, sender, target]: [u64; 3],
) -> Result<(), Status> {
    let path = format!("/quorate.peer.v1.Peer/{method}").parse::<PathAndQuery>().expect("a path");
    let mut caller = Grpc::new(node);
    caller.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut request = from(stream::iter(call), cluster_id, sender, target);
    request.set_timeout(ANSWERED_WITHIN);
    let answered = async {
        let mut answers = caller.streaming(request, path, Raw).await?.into_inner();
        while answers.message().await?.is_some() {}
        Ok(())
    };
    let late = || Status::deadline_exceeded("no answer");
    timeout(2 * ANSWERED_WITHIN, answered).await.unwrap_or_else(|_| Err(late()))
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// How often each method was answered how.
type Answered = BTreeMap<(&'static str, String), usize>;

fn times(answered: &Answered, method: &str) -> usize {
    answered.iter().filter(|((of, _), _)| *of == method).map(|(_, times)| times).sum()
}

/// Sends mangled calls for a while, and some of each method.
async fn mangled(cluster: &Cluster, known: &Known, calls: &Recorded) -> Answered {
    let (seed, seconds) =
        (number("QUORATE_MANGLED_SEED", SEED), number("QUORATE_MANGLED_SECONDS", SECONDS));
    let mut rng = StdRng::seed_from_u64(seed);
    let nodes = cluster.ids().into_iter().map(|id| {
        let endpoint = Endpoint::from_shared(format!("http://{}", cluster.peer_address(id)));
        (id, endpoint.expect("an address").connect_lazy())
    });
    let nodes: BTreeMap<u64, Channel> = nodes.collect();
    let (mut answered, methods, begun) = (Answered::new(), methods(), Instant::now());
    let seconds = Duration::from_secs(seconds);
    let is_rare = |answered: &Answered, method: &&str| times(answered, method) < LEAST;
    while begun.elapsed() < seconds || methods.iter().any(|method| is_rare(&answered, method)) {
        assert!(begun.elapsed() < seconds + LATEST, "not {LEAST} of each: {answered:?}");
        let mut together = Vec::new();
        while together.len() < AT_ONCE {
            let method = *methods.choose(&mut rng).expect("some");
            let recorded = &calls[method];
            let mut call = recorded.choose(&mut rng).expect("some").clone();
            let other = recorded.choose(&mut rng).expect("some").choose(&mut rng).expect("some");
            let at = rng.random_range(0..call.len());
            // Most are to get further than the first look at them.
            let tries = if rng.random_range(0..4) == 0 { 1 } else { TRIES };
            let mut mangled = (0..tries).map(|_| mangle(&mut rng, &call[at], other));
            let first = mangled.next().expect("one");
            call[at] = match is_read(method, &first) {
                true => first,
                false => mangled.find(|mangled| is_read(method, mangled)).unwrap_or(first),
            };
            let target = rng.random_range(1..=3);
            let sender = (target + rng.random_range(0..2)) % 3 + 1;
            if known.is_believed(method, &call, sender, calls) {
                continue;
            }
            let sent =
                send(nodes[&target].clone(), method, call, [known.cluster_id, sender, target]);
            together.push(async move { (method, sent.await) });
        }
        for (method, answer) in join_all(together).await {
            let code = answer.map_or_else(|status| status.code(), |()| Code::Ok);
            *answered.entry((method, format!("{code:?}"))).or_default() += 1;
        }
    }
    eprintln!("measured: seed {seed}, {:?}: {answered:?}", begun.elapsed());
    answered
}

/// On threads of its own name.
#[test]
fn no_bytes_of_a_peer_do_harm() {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).thread_name(THREADS).enable_all().build();
    runtime.expect("a runtime").block_on(sends_mangled_bytes());
}

async fn sends_mangled_bytes() {
    let tunables = Tunables { snapshot_every: 100, keep_entries: 5, ..seldom_by_silence() };
    let (mut cluster, newer) = mixed::start_with(&tunables).await;
    let (known, calls) = recorded(&mut cluster, &newer).await;

    let panics = count_panics();
    let answered = mangled(&cluster, &known, &calls).await;
    let taken = answered.keys().filter(|(_, code)| code == "Ok").count();
    assert!(taken > 3, "some are taken: {answered:?}");
    assert_eq!(count_panics(), panics, "panics");
    let after = Known::of(&cluster).await;
    assert_eq!((after.term, after.leader), (known.term, known.leader), "the leader leads on");
    for (id, last) in &known.last {
        assert!(after.last[id] >= *last, "node {id}: its log was cut at {}", after.last[id]);
        register(&mut cluster.registry(*id), "after", &format!("of-{id}")).await;
    }
    same_hashes_by(&cluster, "after", "of-1").await;
    // What is on their disks can be read, too.
    cluster.stop_all().await;
    for id in 1..=3 {
        cluster.restart(id).await;
    }
    cluster.settled().await;
    same_hashes_by(&cluster, "after", "of-1").await;
    assert_eq!(count_panics(), panics, "panics");
}
