//! A live view whose node dies again and again.

use std::time::{Duration, Instant};

use quorate_client::{
    Discovery, DiscoveryEvent, FetchOptions, InstanceBuilder, Listener, Registration, Selection,
    WatchStatus,
};
use tokio::time::timeout;

use crate::cluster::Cluster;
use crate::wait::eventually;

const PATIENCE: Duration = Duration::from_secs(20);

fn instance(id: &str) -> InstanceBuilder {
    InstanceBuilder::new("web", id).endpoint("http", "http://h:1")
}

/// The next changes, in short.
async fn told(listener: &mut Listener, count: usize) -> Vec<String> {
    let mut told = Vec::new();
    for _ in 0..count {
        let next = timeout(PATIENCE, listener.next()).await;
        told.push(match next.unwrap_or_else(|_| panic!("no change came after {told:?}")) {
            DiscoveryEvent::Added(i) => format!("+{}{}", i.id, i.weight),
            DiscoveryEvent::Updated(i) => format!("~{}{}", i.id, i.weight),
            DiscoveryEvent::Removed { instance, .. } => format!("-{}", instance.id),
            other => panic!("{other:?}"),
        });
    }
    told
}

/// The place of the node that sends the changes.
async fn followed(view: &Discovery, cluster: &Cluster) -> usize {
    eventually("a node that sends changes", PATIENCE, async || match view.status() {
        WatchStatus::Following { address, has_leader: true } => {
            let at = cluster.nodes.iter().position(|node| node.clients == address);
            at.ok_or(format!("{address} is none of ours"))
        }
        status => Err(format!("{status:?}")),
    })
    .await
}

/// kill -9 of the node that a view follows, a hundred times, while instances come, change and go.
#[tokio::test(flavor = "multi_thread")]
async fn the_followed_node_dies_a_hundred_times() {
    // S0.14, S2.7, S4.3
    let mut cluster = Cluster::start(3).await;
    let writer = cluster.client().build().unwrap();
    let reader = cluster.client().build().unwrap();
    let view = reader.discover("web").unwrap();
    let mut listener = view.listen();
    timeout(PATIENCE, view.synced()).await.unwrap();
    // From revision 0 there is no going on at another node: a watch begins with a snapshot there,
    // and the history before it is not sent.
    let lease = Registration::new(instance("first").weight(1)).ttl(Duration::from_secs(600));
    drop(writer.register(lease).await.unwrap());
    assert_eq!(told(&mut listener, 1).await, ["+first1"]);
    let mut killed = [0; 3];
    let begun = Instant::now();
    for round in 0..100_u32 {
        let at = followed(&view, &cluster).await;
        let id = format!("i{round}");
        let handle = writer.register(instance(&id).weight(round)).await.unwrap();
        cluster.nodes[at].kill();
        killed[at] += 1;
        handle.set_weight(round + 1_000).await.unwrap();
        handle.deregister().await.unwrap();
        let stays = format!("s{round}");
        let lease = Registration::new(instance(&stays).weight(1)).ttl(Duration::from_secs(600));
        drop(writer.register(lease).await.unwrap());
        let history = [
            format!("+{id}{round}"),
            format!("~{id}{}", round + 1_000),
            format!("-{id}"),
            format!("+{stays}1"),
        ];
        assert_eq!(told(&mut listener, 4).await, history, "round {round}: the exact history");
        cluster.nodes[at].start();
        let all = FetchOptions::new(Selection::service("web"));
        let truth = writer.fetch_with(&all).await.unwrap().services.unwrap().remove(0).instances;
        let shown = view.current();
        assert_eq!(truth.len(), shown.len(), "round {round}");
        assert!(truth.iter().zip(shown.iter()).all(|(truth, shown)| *truth == **shown));
    }
    eprintln!("measured: 100 kills of {killed:?} in {:?}", begun.elapsed());
    assert_eq!(reader.counters().divergences, 0);
}
