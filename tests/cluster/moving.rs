//! Nodes that come back under other addresses.

use std::net::TcpListener;

use quorate_proto::peer::v1::RecallRequest;
use tonic::Code;

use super::calls::{assert_refused, fetch_all, register};
use super::founding::{from, peer};
use super::harness::Cluster;

/// All members are found, everything is there, and all of them can be written through.
async fn works_with_all(cluster: &Cluster) {
    cluster.settled().await;
    for id in cluster.ids() {
        register(&mut cluster.registry(id), "web", &format!("after-{id}")).await;
    }
    for id in cluster.ids() {
        let found = fetch_all(&mut cluster.registry(id)).await.1.len();
        assert_eq!(found, 1 + cluster.ids().len(), "at node {id}");
        for member in cluster.members(id).await {
            assert_eq!(member.peer_address, cluster.peer_address(member.id));
        }
    }
}

/// A cluster of which these have moved. Where each of them was before, something listens as long as
/// it lives, and never answers: whoever dials there gets no refusal.
struct Moved {
    cluster: Cluster,
    _silent: Vec<TcpListener>,
}

async fn moved(who: impl FnOnce(u64) -> Vec<u64>) -> Moved {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    register(&mut cluster.registry(leader), "web", "before").await;
    let who = who(leader);
    let mut silent = Vec::new();
    for id in &who {
        cluster.stop(*id).await;
        silent.push(TcpListener::bind(cluster.peer_address(*id)).expect("a port that was left"));
        cluster.move_away(*id);
    }
    if who.len() == 3 {
        cluster.list_anew();
    }
    for id in &who {
        cluster.restart(*id).await;
    }
    Moved { cluster, _silent: silent }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_moves() {
    works_with_all(&moved(|leader| vec![leader]).await.cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_moves() {
    works_with_all(&moved(|leader| vec![1 + leader % 3]).await.cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_three_move_and_a_leader_stays() {
    let others = |leader| (1..=3).filter(|id| *id != leader).collect();
    works_with_all(&moved(others).await.cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_three_move_and_a_follower_stays() {
    works_with_all(&moved(|leader| vec![leader, 1 + leader % 3]).await.cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_three_move_with_a_new_list() {
    works_with_all(&moved(|_| vec![1, 2, 3]).await.cluster).await;
}

/// A machine that listens where another member was is no such member, whoever it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_members_that_change_places_are_not_taken_for_each_other() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let registered = register(&mut cluster.registry(leader), "web", "before").await;
    let cluster_id = registered.header.expect("a header").cluster_id;
    let [one, other] = [1, 2].map(|further| (leader + further - 1) % 3 + 1);
    cluster.stop(one).await;
    cluster.stop(other).await;
    cluster.change_places(one, other);
    cluster.restart(one).await;
    cluster.restart(other).await;
    let meant = from(RecallRequest {}, cluster_id, leader, other);
    let answer = peer(&cluster, one).await.recall(meant).await;
    let why = format!("this is node {one}, not node {other}");
    assert_refused(answer, Code::FailedPrecondition, &[&why]);
    works_with_all(&cluster).await;
}
