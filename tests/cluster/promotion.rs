//! A learner that is to vote while it is down: the cluster goes on without it.

use quorate_proto::v1::{AddNodeRequest, ReplaceNodeRequest};
use tonic::Code;

use super::calls::{assert_refused, fetch_of, ids, in_time, local, register};
use super::harness::{Cluster, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_that_is_dead_does_not_become_a_voter() {
    let mut cluster = Cluster::start(1).await;
    register(&mut cluster.registry(1), "web", "a").await;
    cluster.add_waiting(2).await;
    let peer_address = cluster.peer_address(2).to_owned();
    let add = |learner_only| {
        in_time(AddNodeRequest { id: 2, peer_address: peer_address.clone(), learner_only })
    };
    let mut admin = cluster.admin(1);
    admin.add_node(add(true)).await.expect("a learner");
    eventually("it has the log", || async {
        let answer = cluster.registry(2).fetch(local(fetch_of(&["web"]))).await.ok()?.into_inner();
        (ids(&answer) == ["a"]).then_some(())
    })
    .await;
    cluster.stop(2).await;

    let words = ["node 2 does not answer at", &peer_address, "start it first"];
    let refused = admin.add_node(add(false)).await;
    assert_refused(refused, Code::FailedPrecondition, &words);
    let replace = ReplaceNodeRequest { old_id: 1, new_id: 2, peer_address: peer_address.clone() };
    let refused = admin.replace_node(in_time(replace)).await;
    assert_refused(refused, Code::FailedPrecondition, &words);
    assert_eq!(cluster.voters(1).await, [1]);
    register(&mut cluster.registry(1), "web", "b").await;
    admin.add_node(add(true)).await.expect("it is a learner already");

    cluster.restart(2).await;
    admin.add_node(add(false)).await.expect("it votes");
    assert_eq!(cluster.voters(1).await, [1, 2]);
    register(&mut cluster.registry(2), "web", "c").await;
}

/// It has lost what the leader knows it to have had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_that_was_emptied_becomes_a_voter_with_the_log() {
    let mut cluster = Cluster::start(1).await;
    register(&mut cluster.registry(1), "web", "a").await;
    cluster.add_waiting(2).await;
    let admin = cluster.client().await.admin();
    let address = cluster.peer_address(2).to_owned();
    admin.add_node(2, &address, true).await.expect("a learner");
    cluster.stop(2).await;
    cluster.wipe(2);
    cluster.restart(2).await;
    admin.add_node(2, &address, false).await.expect("it votes");
    register(&mut cluster.registry(1), "web", "b").await;
    let answer = cluster.registry(2).fetch(in_time(fetch_of(&["web"]))).await.expect("a read");
    assert_eq!(ids(&answer.into_inner()), ["a", "b"]);
}
