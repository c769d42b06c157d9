//! What a watch takes once it has what it follows, however large that was.

use std::time::Duration;

use quorate_proto::v1::watch_request::Kind as Ask;
use quorate_proto::v1::watch_response::Kind;
use quorate_proto::v1::{InstanceSpec, WatchRequest, WatchResponse, WatchSubscribe};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::cluster::{Cluster, Node};
use crate::raw::registration;
use crate::unread::resident_mib;
use crate::wait::eventually;

/// Of a KiB each: a snapshot has a message of 256 KiB.
const INSTANCES: usize = 400;
const TOGETHER: usize = 100;
const WATCHES: usize = 400;
const ON_EACH: usize = 20;
const LONG: Duration = Duration::from_secs(600);
/// Ten seconds until the allocator gives pages back.
const BACK_WITHIN: Duration = Duration::from_secs(60);
/// Of each watch, with its connection; and what the allocator may keep in all.
const KEPT_KIB: u64 = 40;
const KEPT_MIB: u64 = 16;

type Following = (mpsc::Sender<WatchRequest>, Streaming<WatchResponse>);

/// Watches, of which each has read its snapshot.
async fn follow(node: &Node, watches: usize) -> Vec<Following> {
    let mut opening = JoinSet::new();
    for _ in 0..watches / ON_EACH {
        let registry = node.registry();
        for _ in 0..ON_EACH {
            let mut registry = registry.clone();
            opening.spawn(async move {
                let (asks, requests) = mpsc::channel(1);
                let services = vec!["large".to_owned()];
                let subscribe = WatchSubscribe { services, ..<_>::default() };
                let subscribe = WatchRequest { kind: Some(Ask::Subscribe(subscribe)) };
                asks.send(subscribe).await.unwrap();
                let answers = registry.watch(ReceiverStream::new(requests)).await;
                let (mut answers, mut instances) = (answers.unwrap().into_inner(), 0);
                loop {
                    let message = answers.message().await.unwrap().expect("it goes on");
                    let Some(Kind::Snapshot(part)) = message.kind else { panic!("a snapshot") };
                    let of = part.services.iter().map(|service| service.instances.len());
                    instances += of.sum::<usize>();
                    if part.last {
                        assert_eq!(instances, INSTANCES);
                        return (asks, answers);
                    }
                }
            });
        }
    }
    opening.join_all().await
}

/// It kept the memory of its largest message as long as it lasted.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn watches_that_have_their_snapshot_keep_no_memory_of_it() {
    let mut cluster = Cluster::start(1).await;
    let pid = cluster.nodes[0].process().pid();
    let node = &cluster.nodes[0];
    for first in (0..INSTANCES).step_by(TOGETHER) {
        let mut request = registration("large", "", LONG, 0);
        let one = request.instances.remove(0);
        let metadata = [("text".to_owned(), "x".repeat(1_000))];
        let instance = |at| InstanceSpec {
            id: format!("i{at}"),
            metadata: metadata.clone().into(),
            ..one.clone()
        };
        request.instances = (first..first + TOGETHER).map(instance).collect();
        node.registry().register(request).await.unwrap();
    }
    drop(follow(node, ON_EACH).await);
    let before = resident_mib(pid);
    let _following = follow(node, WATCHES).await;
    eprintln!("measured: {} MiB with {WATCHES} watches, {before} before", resident_mib(pid));
    let most = before + KEPT_MIB + KEPT_KIB * WATCHES as u64 / 1_024;
    eventually("they take little", BACK_WITHIN, async || match resident_mib(pid) {
        now if now <= most => {
            eprintln!("measured: {now} MiB once they are idle");
            Ok(())
        }
        now => Err(format!("{now} MiB, {before} before")),
    })
    .await;
}
