//! A cluster has an identity of its own, drawn when it is founded; nobody founds a second one beside it.

use super::calls::register;
use super::harness::Cluster;

/// Which cluster a registration was done in, and the id of its lease.
async fn registered(cluster: &Cluster) -> (u64, u64) {
    let answer = register(&mut cluster.registry(1), "web", "a").await;
    (answer.header.expect("a header").cluster_id, answer.lease_id)
}

/// Everything is lost, and the same nodes found a cluster on the same addresses again.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cluster_founded_again_on_the_same_addresses_is_another_one() {
    let mut cluster = Cluster::start(3).await;
    let before = registered(&cluster).await;
    cluster.stop_all().await;
    for id in 1..=3 {
        cluster.wipe(id);
    }
    for id in 1..=3 {
        cluster.restart(id).await;
    }
    cluster.settled().await;
    let after = registered(&cluster).await;
    assert_ne!(before.0, after.0, "each founding draws an id");
    assert_ne!(before.1 >> 32, after.1 >> 32, "ids of leases do not meet");

    // All nodes are of that one, and stay so.
    cluster.stop_all().await;
    for id in 1..=3 {
        cluster.restart(id).await;
    }
    cluster.settled().await;
    for id in 1..=3 {
        let status = cluster.own_status(id).await.expect("a status");
        assert_eq!(status.header.expect("a header").cluster_id, after.0, "node {id}");
    }
}
