//! Nodes of two releases in one cluster, and its level. The later release is this one, told that it
//! works at one level more.

use std::time::Duration;

use quorate_client::{Admin, Error};
use quorate_node::{Levels, RunError, Tunables};
use quorate_proto::peer::v1::RecallRequest;
use quorate_proto::v1::AddNodeRequest;
use tokio::time::sleep;
use tonic::Code;

use super::calls::in_time;
use super::founding::{from, peer};
use super::harness::{Cluster, eventually};
use super::impostor::Impostor;
use super::load::Load;
use super::strangers::vote;

const LATER: Levels = Levels { min: 1, max: 2 };
/// Not within a test.
const NEVER_BY_ITSELF: u64 = 3_600_000;
const SOON_BY_ITSELF: u64 = 1_000;
/// By then, one that could rise by itself has risen.
const LOOKS: usize = 3;

fn tunables(upgrade_after_ms: u64) -> Tunables {
    Tunables { upgrade_after_ms, ..Tunables::default() }
}

async fn start_with(cluster: &mut Cluster, id: u64, levels: Levels) {
    cluster.stop(id).await;
    cluster.release(id, levels);
    cluster.restart(id).await;
    cluster.settled().await;
}

/// What each node says of the level.
async fn levels(cluster: &Cluster) -> Vec<(u32, bool)> {
    let mut all = Vec::new();
    for id in cluster.ids() {
        let status = cluster.own_status(id).await.expect("it answers");
        all.push((status.level, status.level_held));
    }
    all
}

/// Raises it, or holds it.
async fn upgraded(admin: &Admin, hold: bool) -> (u32, bool) {
    let done = eventually("the level is set", || async { admin.upgrade(hold).await.ok() }).await;
    (done.level, done.held)
}

async fn is_everywhere(cluster: &Cluster, level: u32) {
    eventually("all nodes have the level", || async {
        let all = levels(cluster).await;
        all.iter().all(|it| *it == (level, false)).then_some(())
    })
    .await;
}

/// Three nodes go to the later release, back, and there again, one at a time under load; then the
/// level rises, and there is no way back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_and_a_downgrade_of_all_nodes_fail_no_call() {
    let mut cluster = Cluster::start_with(3, tunables(NEVER_BY_ITSELF)).await;
    let admin = cluster.client().await.admin();
    let load = Load::start(&cluster).await;
    for release in [LATER, Levels::OWN, LATER] {
        for id in 1..=3 {
            start_with(&mut cluster, id, release).await;
            load.goes_on().await;
        }
        assert_eq!(levels(&cluster).await, [(1, false); 3]);
    }
    assert_eq!(upgraded(&admin, false).await, (2, false));
    is_everywhere(&cluster, 2).await;
    load.goes_on().await;

    // Of the earlier release: back with its directory, and new.
    let follower = cluster.follower().await;
    cluster.stop(follower).await;
    cluster.release(follower, Levels::OWN);
    cluster.restart(follower).await;
    let refused = cluster.ended(follower).await;
    assert!(matches!(refused, RunError::Level { level: 2, .. }), "{refused}");
    assert!(refused.needs_operator() && refused.to_string().contains("levels 1 to 1"), "{refused}");
    others_refuse(&cluster, follower).await;
    cluster.release(follower, LATER);
    cluster.restart(follower).await;
    cluster.settled().await;
    for (id, levels, words) in [
        (4, Levels::OWN, "supports levels 1 to 1, and the cluster is at level 2"),
        (5, Levels { min: 3, max: 4 }, "supports levels 3 to 4, and the cluster is at level 2"),
    ] {
        cluster.add_waiting(id).await;
        cluster.stop(id).await;
        cluster.release(id, levels);
        cluster.restart(id).await;
        let peer_address = cluster.peer_address(id).to_owned();
        let request = AddNodeRequest { id, peer_address, learner_only: false };
        // One that does not answer in time is refused by other words.
        eventually(words, || async {
            let adding = cluster.admin(1).add_node(in_time(request.clone())).await;
            let refused = adding.expect_err("it is taken in");
            let is_said = refused.message().contains(words);
            (is_said && refused.code() == Code::FailedPrecondition).then_some(())
        })
        .await;
    }
    load.finish().await;
}

/// On the other side, as long as it has not ended: whatever it sends.
async fn others_refuse(cluster: &Cluster, earlier: u64) {
    let target = cluster.leader().await;
    let status = cluster.own_status(target).await.unwrap();
    let cluster_id = status.header.unwrap().cluster_id;
    let mut peer = peer(cluster, target).await;
    let words = format!(
        "node {earlier} is refused: it supports levels 1 to 1, and the cluster is at level 2"
    );
    for (levels, refusal) in [("1-1", Some(&words)), ("1-2", None), ("2-9", None)] {
        let mut asks = from(RecallRequest {}, cluster_id, earlier, target);
        asks.metadata_mut().insert("quorate-levels", levels.parse().unwrap());
        let answer = peer.recall(asks).await;
        assert_eq!(answer.err().map(|it| it.message().to_owned()).as_ref(), refusal, "{levels}");
    }
}

/// Not while a member works at less, is down, or the level is held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_level_rises_by_itself_when_every_member_works_at_the_next_one() {
    let mut cluster = Cluster::start_with(3, tunables(SOON_BY_ITSELF)).await;
    let admin = cluster.client().await.admin();
    assert_eq!(upgraded(&admin, true).await, (1, true));
    start_with(&mut cluster, 1, LATER).await;
    start_with(&mut cluster, 2, LATER).await;
    // Lets go of it, and raises nothing: node 3 works at level 1.
    assert_eq!(upgraded(&admin, false).await, (1, false));
    cluster.stop(3).await;
    cluster.leader_of(&[1, 2]).await;
    eventually("node 3 does not say which levels", || async {
        let down = admin.upgrade(false).await.expect_err("raised without node 3");
        let Error::Rejected { message, .. } = &down else { return None };
        message.contains("node 3 does not say which levels").then_some(())
    })
    .await;
    // Whoever answers there does not say them either. It is asked once a second, by the leader.
    let silent = Impostor::start(cluster.peer_address(3), vote(u64::MAX, 3, false)).await;
    eventually("the leader looks again and again", || async {
        (silent.identified() > LOOKS).then_some(())
    })
    .await;
    silent.end().await;
    assert_eq!(levels(&cluster).await, [(1, false); 2], "raised without node 3");

    assert_eq!(upgraded(&admin, true).await, (1, true));
    cluster.release(3, LATER);
    cluster.restart(3).await;
    cluster.settled().await;
    sleep(Duration::from_millis(3 * SOON_BY_ITSELF)).await;
    assert_eq!(levels(&cluster).await, [(1, true); 3], "raised although it is held");
    start_with(&mut cluster, 3, Levels::OWN).await;
    upgraded(&admin, false).await;
    start_with(&mut cluster, 3, LATER).await;
    is_everywhere(&cluster, 2).await;
}
