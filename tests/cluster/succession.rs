//! Who can end a node by saying that its cluster has a successor: messages written by hand, and
//! nodes that were restored or recovered beside a majority that runs.

use std::time::Duration;

use quorate_node::NodeId;
use quorate_node::rescue::{self, Backup, Remains};
use quorate_proto::peer::v1::{RecallRequest, SucceedRequest};
use quorate_proto::v1::{BackupRequest, RemoveNodeRequest, StatusRequest};
use tokio::time::Instant;
use tonic::{Code, Request, Status};

use super::calls::{assert_refused, register};
use super::founding::{from, peer};
use super::harness::{Cluster, eventually};

/// Metadata of a refusal.
const SUCCEEDED_BY: &str = "quorate-succeeded-by";
const SUCCEEDED_AGO: &str = "quorate-succeeded-ago-ms";

const LONG_AGO: u64 = 24 * 60 * 60 * 1_000;

/// The cluster `by` was made from the cluster `of`.
fn claim(by: u64, of: u64, ago_ms: u64, sender: u64) -> Request<SucceedRequest> {
    from(SucceedRequest { cluster_id: of, ago_ms }, by, sender, 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_stranger_ends_a_node_and_no_recovery_beside_it() {
    let mut cluster = Cluster::start(3).await;
    let ours = register(&mut cluster.registry(1), "web", "a").await.header.unwrap().cluster_id;
    let mut peer = peer(&cluster, 1).await;
    for (call, why) in [
        (claim(7, ours ^ 1, LONG_AGO, 4), "of another cluster than this"),
        (claim(7, 0, LONG_AGO, 4), "of another cluster than this"),
        (claim(0, ours, LONG_AGO, 4), "it is of no cluster"),
        (claim(7, ours, 0, 4), "it ran already"),
    ] {
        assert_refused(peer.succeed(call).await, Code::FailedPrecondition, &["node 4", why]);
    }
    let nobody = Request::new(SucceedRequest { cluster_id: ours, ago_ms: LONG_AGO });
    assert_refused(peer.succeed(nobody).await, Code::FailedPrecondition, &["which node sent it"]);
    let own = peer.succeed(claim(ours, 7, LONG_AGO, 2)).await.expect("it is of that cluster");
    assert!(!own.into_inner().ends);

    cluster.admin(1).remove_node(RemoveNodeRequest { id: 3 }).await.expect("a removal");
    eventually("node 1 knows that", || async { (cluster.voters(1).await == [1, 2]).then_some(()) })
        .await;
    let call = claim(7, ours, LONG_AGO, 3);
    let why = ["node 3", "it was taken out of this cluster"];
    assert_refused(peer.succeed(call).await, Code::FailedPrecondition, &why);
    register(&mut cluster.registry(1), "web", "b").await;
    // It has no certificate, and is not found where a member was.
    for sender in [2, 4] {
        let why = ["this cluster has a leader"];
        let call = claim(7, ours, LONG_AGO, sender);
        assert_refused(peer.succeed(call).await, Code::FailedPrecondition, &why);
    }
    register(&mut cluster.registry(1), "web", "c").await;

    // Between two leaders, too. Where nobody leads for long, nothing speaks against it.
    cluster.stop(2).await;
    eventually("node 1 sees no leader", || async {
        (cluster.own_status(1).await?.header?.leader_id == 0).then_some(())
    })
    .await;
    let call = claim(7, ours, LONG_AGO, 4);
    assert_refused(peer.succeed(call).await, Code::FailedPrecondition, &["or lost it just now"]);
    let told = eventually("nobody has led for long", || {
        let mut peer = peer.clone();
        async move { peer.succeed(claim(7, ours, LONG_AGO, 4)).await.ok() }
    })
    .await;
    assert!(told.into_inner().ends);
    let why = cluster.ended(1).await.to_string();
    let expected = "has made cluster 0000000000000007 from that, in which node 4 is now";
    assert!(why.contains(expected), "{why}");
}

/// Three nodes of which the third is stopped. The others have been started again since, so that it
/// never answered them what they had promised: they ask for that once a second.
async fn two_that_miss_the_third() -> (Cluster, u64) {
    let mut cluster = Cluster::start(3).await;
    let ours = register(&mut cluster.registry(1), "web", "a").await.header.unwrap().cluster_id;
    cluster.stop(3).await;
    for id in [1, 2] {
        cluster.stop(id).await;
        cluster.restart(id).await;
        cluster.settled().await;
    }
    (cluster, ours)
}

/// Longer than it takes these nodes to ask twice.
async fn all_go_on(cluster: &Cluster, nodes: &[u64]) {
    let (mut at, until) = (0, Instant::now() + Duration::from_millis(2_500));
    while Instant::now() < until {
        for node in nodes {
            at += 1;
            register(&mut cluster.registry(*node), "web", &format!("i{at}")).await;
        }
    }
}

/// Why node 3, which is of another cluster now, does not tell node 1 what it had promised.
async fn recall_refused(cluster: &Cluster, ours: u64) -> Status {
    let call = from(RecallRequest {}, ours, 1, 3);
    peer(cluster, 3).await.recall(call).await.expect_err("it is of another cluster")
}

/// Why node 3 says nothing of itself, as node 1 has it.
async fn unreachable(cluster: &Cluster) -> String {
    eventually("node 3 has refused node 1", || async {
        let status = cluster.admin(1).status(StatusRequest { local_only: false }).await.ok()?;
        let members = status.into_inner().members;
        let third =
            members.into_iter().find(|it| it.member.as_ref().is_some_and(|it| it.id == 3))?;
        Some(third.error).filter(|error| error.contains("this is a node of cluster"))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_node_ends_nobody() {
    let (mut cluster, ours) = two_that_miss_the_third().await;
    let mut chunks = cluster.admin(1).backup(BackupRequest::default()).await.unwrap().into_inner();
    let mut file = Vec::new();
    while let Some(chunk) = chunks.message().await.unwrap() {
        file.extend(chunk.data);
    }
    cluster.wipe(3);
    let dir = cluster.data_dir(3).to_owned();
    let path = dir.with_extension("backup");
    std::fs::write(&path, file).unwrap();
    let backup = Backup::read(&path).unwrap();
    let theirs = rescue::restore(&backup, &dir, NodeId::new(3).unwrap()).await.unwrap().cluster_id;
    cluster.restart(3).await;

    let why = unreachable(&cluster).await;
    all_go_on(&cluster, &[1, 2]).await;
    let made = format!("this is a node of cluster {theirs}, which was made from {ours:016x}");
    assert!(why.contains(&made) && why.contains("replace"), "{why}");
    // One that starts now goes on, too.
    cluster.stop(2).await;
    cluster.restart(2).await;
    cluster.leader_of(&[1, 2]).await;
    all_go_on(&cluster, &[1, 2]).await;
    let refused = recall_refused(&cluster, ours).await;
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    for name in [SUCCEEDED_BY, SUCCEEDED_AGO] {
        assert!(refused.metadata().get(name).is_none(), "{refused:?}");
    }
    // Their end was in order.
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovered_node_ends_those_that_start_later_and_no_others() {
    let (mut cluster, ours) = two_that_miss_the_third().await;
    let dir = cluster.data_dir(3).to_owned();
    let scratch = tempfile::tempdir().unwrap();
    let remains = Remains::of(&dir, scratch.path()).await.unwrap();
    let theirs = rescue::recover(&remains).await.unwrap().cluster_id;
    drop(remains);
    cluster.restart(3).await;
    unreachable(&cluster).await;
    let refused = recall_refused(&cluster, ours).await;
    let told = |name| refused.metadata().get(name)?.to_str().ok()?.parse::<u64>().ok();
    let by = u64::from_str_radix(&theirs.to_string(), 16).unwrap();
    assert_eq!(told(SUCCEEDED_BY), Some(by), "{refused:?}");
    assert!(told(SUCCEEDED_AGO).is_some_and(|ago| ago < 60_000), "{refused:?}");
    all_go_on(&cluster, &[1, 2]).await;

    // Nobody tells it so: where it is now, only node 1 knows. It asks.
    cluster.stop(2).await;
    cluster.move_away(2);
    cluster.restart(2).await;
    let why = cluster.ended(2).await.to_string();
    let made = format!("has made cluster {theirs} from that, in which node 3 is now");
    assert!(why.contains(&made) && !why.contains("restore"), "{why}");
    assert!(cluster.own_status(1).await.is_some());
    cluster.stop_all().await;
}
