//! Memory that a flood of calls took, and whether a node has given it back soon after.

use std::time::Duration;

use quorate_proto::v1::watch_request::Kind as Ask;
use quorate_proto::v1::{FetchRequest, RegisterRequest, WatchRequest, WatchSubscribe};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use crate::cluster::{Cluster, Node, Settings};
use crate::raw::spec;
use crate::unread::{ask, resident_mib};
use crate::wait::eventually;

const INSTANCES: usize = 10_000;
const CONNECTIONS: usize = 10;
const STREAMS_ON_EACH: usize = 1_500;
const UNREAD_ON_EACH: usize = 20;
const TTL_MS: u64 = 600_000;
/// Ten seconds until the allocator gives pages back, of connections that end at once.
const BACK_WITHIN: Duration = Duration::from_secs(60);

/// After a flood of streams, and one of answers that are not read, a node is back within 1.5 times
/// what it had before them.
#[tokio::test(flavor = "multi_thread")]
async fn memory_that_floods_took_is_given_back() {
    // A busy machine takes long for all those streams at once.
    let tunables = "request_timeout_ms = 60000".to_owned();
    let mut cluster = Cluster::start_with(1, Settings { tunables, ..Settings::default() }).await;
    let pid = cluster.nodes[0].process().pid();
    let node = &cluster.nodes[0];
    fill(node).await;
    // As much as the state needs, with what its registration took and the node still keeps.
    let needed = resident_mib(pid);

    let open = open_streams(node).await;
    let taken = resident_mib(pid);
    assert!(taken > most(needed), "{taken} MiB with the streams, {needed} before: no flood");
    drop(open);
    back(pid, needed, "streams").await;

    let mut unread = Vec::new();
    for _ in 0..CONNECTIONS {
        let channel = node.channel();
        let asked = (0..UNREAD_ON_EACH).map(|_| ask(&channel));
        unread.push(futures_util::future::join_all(asked).await);
    }
    let taken = resident_mib(pid);
    assert!(taken > most(needed), "{taken} MiB with the answers, {needed} before: no flood");
    drop(unread);
    back(pid, needed, "answers").await;
}

/// What a node may have after a flood whose state needs this much, MiB.
fn most(needed: u64) -> u64 {
    needed * 3 / 2
}

async fn back(pid: i32, needed: u64, flood: &str) {
    let most = most(needed);
    let what = format!("{most} MiB after {flood}");
    let now = eventually(&what, BACK_WITHIN, async || match resident_mib(pid) {
        now if now <= most => Ok(now),
        now => Err(format!("{now} MiB, {needed} before")),
    })
    .await;
    eprintln!("measured: {now} MiB after {flood}, {needed} before");
}

async fn fill(node: &Node) {
    let mut registry = node.registry();
    for many in 0..INSTANCES / 1_000 {
        let instances = (0..1_000).map(|at| spec("many", &format!("i{many}-{at}"))).collect();
        let request = RegisterRequest { instances, ttl_ms: TTL_MS, ..RegisterRequest::default() };
        registry.register(request).await.unwrap();
    }
    registry.fetch(FetchRequest::default()).await.unwrap();
}

/// Watches of a service that is not there.
async fn open_streams(node: &Node) -> Vec<impl Sized + use<>> {
    let mut opening = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let registry = node.registry();
        for _ in 0..STREAMS_ON_EACH {
            let mut registry = registry.clone();
            opening.spawn(async move {
                let (asks, requests) = mpsc::channel(1);
                let nothing = vec!["nothing".to_owned()];
                let ask = WatchSubscribe { services: nothing, ..WatchSubscribe::default() };
                asks.send(WatchRequest { kind: Some(Ask::Subscribe(ask)) }).await.unwrap();
                (asks, registry.watch(ReceiverStream::new(requests)).await.unwrap())
            });
        }
    }
    opening.join_all().await
}
