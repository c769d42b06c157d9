//! Watches by the hundred that nobody reads, while what they follow changes: others hardly notice,
//! no lease ends, and what they took is given back.

use std::time::Duration;

use prost::Message;
use quorate_client::Client;
use quorate_proto::v1::watch_request::Kind as Ask;
use quorate_proto::v1::{ChangeKind, InstanceSpec, WatchRequest, WatchResponse, WatchSubscribe};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::cluster::{Cluster, Node};
use crate::connections::PREFACE;
use crate::feed::Feed;
use crate::floods::{Other, frame, literal, p99_of_renewals};
use crate::load::keep;
use crate::raw::registration;
use crate::unread::resident_mib;
use crate::wait::eventually;

/// On connections of their own, of which nothing is read, pings included.
const DEAF: usize = 250;
/// On connections that are read and answer pings; the watches themselves are not.
const IGNORED: usize = 250;
const IGNORED_ON_EACH: usize = 25;
/// A deaf caller's buffer: what the node sends is stuck soon.
const DEAF_BYTES: u32 = 4_096;
const CHANGES_EVERY: Duration = Duration::from_millis(200);
const CHANGED: usize = 20;
/// In one message, which is a large one: there are more watches than places for those.
const CHANGED_AT_ONCE: usize = 5;
/// Of a KiB each: what a deaf or ignored watch may have under way is full within a few seconds.
const TEXTS: usize = 4;
const LONG: Duration = Duration::from_secs(600);
/// A busy machine holds a client up for seconds; a node that is held up for good ends it all the
/// same.
const TTL: Duration = Duration::from_secs(10);
const KEPT: usize = 20;
/// Renewals of others are slower than without by at most this factor, or than those of a node of
/// its own at the same time, or take no longer than [`UNNOTICED`].
const SLOWER_MAX: u32 = 3;
/// As beside floods: a debug build, whose renewals wait for a disk and for others of their kind.
const UNNOTICED: Duration = Duration::from_millis(150);
/// The first ones fill what is under way, by the hundred; and other tests that take both cores end
/// meanwhile. A node that is held up for good fails in all of them.
const ROUNDS: usize = 12;
const OPEN_WITHIN: Duration = Duration::from_secs(20);
const BACK_WITHIN: Duration = Duration::from_secs(60);
/// What sockets, their buffers and the allocator may keep.
const KEPT_MIB: u64 = 16;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const END_HEADERS: u8 = 4;
/// The setting for the window of each stream, and as much as there can be.
const INITIAL_WINDOW_SIZE: [u8; 2] = [0, 4];
const WINDOW_MAX: [u8; 4] = 0x7fff_ffff_u32.to_be_bytes();
/// So much that the connection's window is not over that with what it begins with.
const WINDOW_MORE: [u8; 4] = 0x7fff_0000_u32.to_be_bytes();

fn subscription() -> WatchRequest {
    let services = vec!["churn".to_owned()];
    WatchRequest { kind: Some(Ask::Subscribe(WatchSubscribe { services, ..<_>::default() })) }
}

/// Subscribes with all windows open, and reads nothing: no window keeps the node from sending.
async fn deaf(address: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(DEAF_BYTES).unwrap();
    let mut stream = socket.connect(address.parse().unwrap()).await.unwrap();
    let mut out = PREFACE.to_vec();
    frame(&mut out, SETTINGS, 0, 0, &[&INITIAL_WINDOW_SIZE[..], &WINDOW_MAX].concat());
    frame(&mut out, WINDOW_UPDATE, 0, 0, &WINDOW_MORE);
    let mut block = vec![0x83, 0x86]; // :method POST, :scheme http
    literal(&mut block, ":path", "/quorate.v1.Registry/Watch");
    literal(&mut block, ":authority", "deaf");
    literal(&mut block, "content-type", "application/grpc");
    literal(&mut block, "te", "trailers");
    frame(&mut out, HEADERS, END_HEADERS, 1, &block);
    let message = subscription().encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    frame(&mut out, 0, 0, 1, &[&[0], &length[..], &message].concat());
    stream.write_all(&out).await.unwrap();
    stream
}

type Ignored = (mpsc::Sender<WatchRequest>, Streaming<WatchResponse>);

async fn ignored(node: &Node) -> Vec<Ignored> {
    let mut opening = JoinSet::new();
    for _ in 0..IGNORED / IGNORED_ON_EACH {
        let registry = node.registry();
        for _ in 0..IGNORED_ON_EACH {
            let mut registry = registry.clone();
            opening.spawn(async move {
                let (asks, requests) = mpsc::channel(1);
                asks.send(subscription()).await.unwrap();
                (asks, registry.watch(ReceiverStream::new(requests)).await.unwrap().into_inner())
            });
        }
    }
    opening.join_all().await
}

/// Changes some instances of the service after the other, until it is ended.
fn churn(node: &Node, tasks: &mut JoinSet<()>) -> AbortHandle {
    let mut registry = node.registry();
    tasks.spawn(async move {
        let mut tick = tokio::time::interval(CHANGES_EVERY);
        for change in 0_usize.. {
            tick.tick().await;
            let mut request = registration("churn", "", LONG, 0);
            let one = request.instances.remove(0);
            let text = |at| (format!("text-{at}"), format!("{change:0>1024}"));
            let changed = (0..CHANGED_AT_ONCE).map(|at| InstanceSpec {
                id: format!("c{}", (change * CHANGED_AT_ONCE + at) % CHANGED),
                metadata: (0..TEXTS).map(text).collect(),
                ..one.clone()
            });
            request.instances = changed.collect();
            registry.register(request).await.expect("others are served");
        }
    })
}

fn descriptors(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn watches_that_nobody_reads_hold_up_nobody_and_leave_nothing() {
    let (mut cluster, other) = (Cluster::start(1).await, Other::start().await);
    let pid = cluster.nodes[0].process().pid();
    let node = &cluster.nodes[0];
    let client: Client = cluster.client().build().unwrap();
    let _kept = keep(&client, "kept", KEPT, TTL).await;
    let feed = Feed::start(node).await;
    let lease = node.register("renewed", "a", LONG).await.unwrap().lease_id;
    let mut tasks = JoinSet::new();
    let churning = churn(node, &mut tasks);
    p99_of_renewals(node, lease).await;
    let alone = p99_of_renewals(node, lease).await;
    let (before, open_before) = (resident_mib(pid), descriptors(pid));

    let ignored = ignored(node).await;
    let mut deaf_ones = Vec::new();
    for _ in 0..DEAF {
        deaf_ones.push(deaf(&node.clients).await);
    }
    eventually("all are open", OPEN_WITHIN, async || match descriptors(pid) {
        now if now >= open_before + DEAF => Ok(()),
        now => Err(format!("{now} descriptors, {open_before} before")),
    })
    .await;
    let mut rounds = Vec::new();
    let passed = loop {
        let seen = feed.look(|seen| seen.changes.len());
        let (beside, elsewhere) = tokio::join!(p99_of_renewals(node, lease), other.p99());
        let changes = feed.look(|seen| seen.changes.len()) - seen;
        let taken = resident_mib(pid);
        eprintln!(
            "measured: renewals p99 {alone:?} without, {elsewhere:?} elsewhere, {beside:?} beside {IGNORED} \
             ignored and {DEAF} deaf watches and {changes} changes; {taken} MiB, {before} before"
        );
        let faults = feed.look(|seen| seen.faults.clone());
        assert!(changes > 0, "a watcher that reads sees changes: {faults:?}");
        rounds.push((elsewhere, beside));
        if beside <= UNNOTICED.max(alone.max(elsewhere) * SLOWER_MAX) {
            break true;
        }
        if rounds.len() == ROUNDS {
            break false;
        }
    };
    assert!(
        passed,
        "p99 {alone:?} without; elsewhere, and beside watches that nobody reads: {rounds:?}"
    );
    churning.abort();
    while let Some(ended) = tasks.join_next().await {
        assert!(ended.is_err_and(|error| error.is_cancelled()), "changes went on until then");
    }
    assert_eq!(ignored.len() + deaf_ones.len(), IGNORED + DEAF, "nothing was given up until here");
    drop((ignored, deaf_ones));
    feed.look(|seen| assert_eq!(seen.of(ChangeKind::Removed, ""), [], "no lease ended"));
    feed.assert_gapless();
    let most = before * 3 / 2 + KEPT_MIB;
    let now = eventually("the memory is given back", BACK_WITHIN, async || {
        match (resident_mib(pid), descriptors(pid)) {
            (mib, open) if mib <= most && open < open_before + 10 => Ok(mib),
            (mib, open) => Err(format!("{mib} MiB and {open} files, {before} and {open_before}")),
        }
    })
    .await;
    eprintln!("measured: {now} MiB after them, {before} before");
}
