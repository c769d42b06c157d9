//! A change of the members that stays open between its two steps: both halves are members, and
//! nothing is done without a majority of each.

use std::time::Duration;

use quorate_node::Tunables;
use quorate_proto::peer::v1::VoteResponse;
use quorate_proto::v1::{RemoveNodeRequest, ReplaceNodeRequest};
use tonic::{Code, Status};

use super::calls::{
    assert_refused, assert_refused_late, register, registration, spec, with_timeout,
};
use super::founding::{from, peer};
use super::harness::{Cluster, SOON, eventually};
use super::strangers::{ballot, vote};

/// What cannot be done is waited for so long.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a node answers is so long on its way that the leader is dead by then.
const LATE: Duration = Duration::from_secs(10);

/// What a node says to one that would stand in the next term with an empty log. (A vote is not
/// asked for: from then on, the others know that node at that term, which it has not seen.)
async fn stands(
    cluster: &Cluster,
    cluster_id: u64,
    id: u64,
    target: u64,
) -> Result<VoteResponse, Status> {
    let term = cluster.own_status(target).await.unwrap().header.unwrap().term;
    let ballot = from(ballot(vote(term + 1, id, false), None), cluster_id, id, target);
    Ok(peer(cluster, target).await.pre_vote(ballot).await?.into_inner())
}

async fn is_not_written(cluster: &Cluster, id: &str) {
    let write = async || {
        let request = with_timeout(registration(vec![spec("web", id)]), PATIENCE);
        cluster.registry(1).register(request).await
    };
    assert_refused_late(write, Code::Unavailable, &[]).await;
}

async fn is_busy(cluster: &Cluster, id: u64) {
    let more = async || {
        let request = with_timeout(RemoveNodeRequest { id: 2 }, PATIENCE);
        cluster.admin(id).remove_node(request).await
    };
    let words = ["another membership change is going on"];
    assert_refused_late(more, Code::Aborted, &words).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_change_is_open_both_halves_are_members_and_count() {
    let mut cluster = Cluster::start_cuttable(3, Tunables::default()).await;
    let registered = register(&mut cluster.registry(1), "web", "a").await;
    let cluster_id = registered.header.expect("a header").cluster_id;
    cluster.add_waiting(4).await;
    let (admin, address) = (cluster.client().await.admin(), cluster.peer_address(4).to_owned());
    admin.add_node(4, &address, true).await.expect("a learner");
    cluster.stop(2).await;

    // It begins while node 3 counts as alive, which does not hear of it; node 4 has to answer
    // first. On a busy machine that may be too late, or another node may lead: it is refused then,
    // and nothing was begun.
    let open = [1, 2, 3, 4];
    let replacing = loop {
        while cluster.leader().await != 1 {
            let _another_look = admin.transfer_leader(Some(1)).await;
        }
        register(&mut cluster.registry(1), "web", "b").await;
        cluster.cut_off(3);
        let (admin, address) = (admin.clone(), address.clone());
        let replacing = tokio::spawn(async move { admin.replace_node(3, 4, &address).await });
        while cluster.voters(1).await != open && !replacing.is_finished() {
            tokio::task::yield_now().await;
        }
        if cluster.voters(1).await == open {
            break replacing;
        }
        replacing.await.unwrap().expect_err("nothing was begun");
        cluster.reconnect(3);
    };
    cluster.cut_off(4);

    for id in [2, 3, 4] {
        let answer = stands(&cluster, cluster_id, id, 1).await;
        let answer = answer.unwrap_or_else(|status| panic!("node {id}: {status}"));
        assert!(!answer.granted, "its log is empty");
    }
    let refused = stands(&cluster, cluster_id, 99, 1).await;
    assert_refused(refused, Code::FailedPrecondition, &["node 99 is refused: it is no voter"]);
    is_not_written(&cluster, "c").await;
    // Two of the three that are to be, but one of the three that were.
    cluster.reconnect(4);
    eventually("node 4 has heard of it", || async {
        (cluster.voters(4).await == open).then_some(())
    })
    .await;
    is_not_written(&cluster, "d").await;
    assert_eq!(cluster.voters(1).await, open, "it is not done");
    // By the leader, and by one that asks it.
    for id in [1, 4] {
        is_busy(&cluster, id).await;
    }

    cluster.reconnect(3);
    replacing.await.unwrap().ok();
    cluster.restart(2).await;
    for id in [1, 2, 4] {
        eventually("the change is done", || async {
            (cluster.voters(id).await == [1, 2, 4]).then_some(())
        })
        .await;
        register(&mut cluster.registry(id), "web", &format!("from-{id}")).await;
    }
    let refused = stands(&cluster, cluster_id, 3, 1).await;
    assert_refused(refused, Code::FailedPrecondition, &["node 3 is refused"]);
}

/// What Raft makes of a change that begins while another one is open is not what it would be of
/// all who vote then: [2, 4] and [1, 2] were to be majorities here, of which node 1 is dead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_undoes_an_open_change_does_not_lose_the_live_majority() {
    let mut cluster = Cluster::start_cuttable(3, Tunables::default()).await;
    cluster.add_waiting(4).await;
    let (admin, address) = (cluster.client().await.admin(), cluster.peer_address(4).to_owned());
    admin.add_node(4, &address, true).await.expect("a learner");
    if cluster.leader().await != 1 {
        admin.transfer_leader(Some(1)).await.expect("a transfer");
    }

    // Node 2 has it in its log, and node 1 dies before it knows that.
    let open = [1, 2, 3, 4];
    let at_leader = cluster.admin(1);
    let request = ReplaceNodeRequest { old_id: 3, new_id: 4, peer_address: address };
    let replacing = loop {
        register(&mut cluster.registry(1), "web", "a").await;
        cluster.delay(2, Duration::ZERO, LATE);
        cluster.cut_off(3);
        let (mut admin, request) = (at_leader.clone(), request.clone());
        let replacing = tokio::spawn(async move { admin.replace_node(request).await });
        while cluster.voters(2).await != open && !replacing.is_finished() {
            tokio::task::yield_now().await;
        }
        if cluster.voters(2).await == open {
            break replacing;
        }
        // Too late, on a busy machine: they did not count as alive any more.
        let refused = replacing.await.unwrap();
        assert_refused(refused, Code::FailedPrecondition, &[]);
        cluster.delay(2, Duration::ZERO, Duration::ZERO);
        cluster.reconnect(3);
    };
    cluster.cut_off(4);
    cluster.stop(1).await;
    replacing.abort();
    let mut at_next = cluster.admin(2);
    let undoing = with_timeout(RemoveNodeRequest { id: 4 }, SOON);
    let undoing = tokio::spawn(async move { at_next.remove_node(undoing).await });
    cluster.delay(2, Duration::ZERO, Duration::ZERO);
    for id in [3, 4] {
        cluster.reconnect(id);
    }
    let refused = undoing.await.unwrap().expect_err("it would lose the majority");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    // Where the machine is busy, it has not heard those again that were cut off.
    let why = ["without node 4, only 1 of 2 voters", "only 1 of 3 voters can be reached"];
    assert!(why.iter().any(|why| refused.message().contains(why)), "{refused}");
    assert_eq!(cluster.voters(2).await, [1, 2, 4], "the open change is done");
    register(&mut cluster.registry(2), "web", "b").await;
}
