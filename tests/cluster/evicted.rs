//! A node that was taken out, or never was in, and goes on as if it led or stood for election; and
//! nodes that only look like one to those that are behind.

use quorate_proto::peer::v1::{Forwarded, TransferRequest};
use tonic::{Code, Status};

use super::calls::{assert_refused, fetch_all, register};
use super::failover::seldom_by_silence;
use super::founding::{from, peer};
use super::harness::{Cluster, eventually};
use super::strangers::{append, backup, ballot, log_id, snapshot, vote};

/// A removal is everywhere.
async fn out_of_all(cluster: &Cluster, id: u64) {
    for other in cluster.ids().into_iter().filter(|other| *other != id) {
        eventually("every node has the removal", || async {
            (!cluster.voters(other).await.contains(&id)).then_some(())
        })
        .await;
    }
}

/// Says to a node all that a leader or a candidate says, of a later term, as a node that is out or
/// was never in.
async fn disturb(
    cluster: &Cluster,
    cluster_id: u64,
    [gone, target]: [u64; 2],
    why: &str,
    file: &[u8],
) {
    let assert_out = |answer: Result<(), Status>| {
        let why = format!("node {gone} is refused: {why}");
        assert_refused(answer, Code::FailedPrecondition, &[&why]);
    };
    let status = cluster.own_status(target).await.unwrap();
    let (term, applied) = (status.header.unwrap().term, status.members[0].applied_index);
    let mut peer = peer(cluster, target).await;
    let (leads, last) = (vote(term + 1, gone, true), Some(log_id(term, applied)));
    let entry = log_id(term + 1, applied + 1);
    for append in [append(leads, last, &[]), append(leads, last, &[entry])] {
        let sent = from(append.clone(), cluster_id, gone, target);
        assert_out(peer.append(sent).await.map(drop));
        let sent = from(tokio_stream::once(append), cluster_id, gone, target);
        let answers = peer.append_stream(sent).await.expect("a stream");
        let answer = answers.into_inner().message().await;
        assert_eq!(answer.expect("it ends"), None, "it is not answered");
    }
    // Of a log that is longer than any.
    let far = Some(log_id(term + 1, applied + 1_000));
    let stands = ballot(vote(term + 1, gone, false), far);
    let ballot = || from(stands, cluster_id, gone, target);
    assert_out(peer.vote(ballot()).await.map(drop));
    assert_out(peer.pre_vote(ballot()).await.map(drop));
    let sent = from(tokio_stream::iter(snapshot(leads, file)), cluster_id, gone, target);
    assert_out(peer.install_snapshot(sent).await.map(drop));
    let transfer = TransferRequest { leader: Some(leads), to_id: target, last: far };
    let refused = peer.transfer_leader(from(transfer, cluster_id, gone, target)).await;
    let why = format!("node {gone} is refused: it is no member");
    assert_refused(refused, Code::FailedPrecondition, &[&why]);
    let messages = tokio_stream::once(Forwarded { calls: Vec::new(), timeout_ms: 1_000 });
    let refused = match peer.forward(from(messages, cluster_id, gone, target)).await {
        Ok(answers) => answers.into_inner().message().await.map(drop),
        Err(status) => Err(status),
    };
    assert_refused(refused, Code::FailedPrecondition, &[&why]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_an_evicted_node_nor_a_stranger_ends_a_lead_or_overwrites_anything() {
    let mut cluster = Cluster::start_with(4, seldom_by_silence()).await;
    let registered = register(&mut cluster.registry(1), "web", "a").await;
    let cluster_id = registered.header.expect("a header").cluster_id;
    let (leader, gone) = (cluster.leader().await, cluster.follower().await);
    let file = backup(&cluster, leader).await;
    cluster.client().await.admin().remove_node(gone).await.expect("a removal");
    cluster.stop(gone).await;
    out_of_all(&cluster, gone).await;
    let term = cluster.own_status(leader).await.unwrap().header.unwrap().term;
    for target in cluster.ids() {
        let why = "it was taken out of this cluster";
        disturb(&cluster, cluster_id, [gone, target], why, &file).await;
        let why = "it is no member of this cluster";
        disturb(&cluster, cluster_id, [99, target], why, &file).await;
    }
    for id in cluster.ids() {
        let header = cluster.own_status(id).await.unwrap().header.unwrap();
        assert_eq!((header.term, header.leader_id), (term, leader), "the leader and its term stay");
        register(&mut cluster.registry(id), "web", &format!("from-{id}")).await;
    }
    assert_eq!(fetch_all(&mut cluster.registry(leader)).await.1.len(), 4);
}

/// Its membership has none of those that lead now, nor has it ever heard of them. Those that it
/// knows are gone, or one was taken out before the leader came, and runs on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_behind_follows_leaders_that_it_does_not_know() {
    let of_gone = follows_unknown_leaders(false);
    let beside_one_that_is_out = follows_unknown_leaders(true);
    tokio::join!(of_gone, beside_one_that_is_out);
}

async fn follows_unknown_leaders(runs_on: bool) {
    let mut cluster = Cluster::start(3).await;
    register(&mut cluster.registry(1), "web", "a").await;
    cluster.stop(3).await;
    for (old, new, voters) in [(1, 4, [1, 2]), (2, 5, [2, 4])] {
        cluster.leader_of(&voters).await;
        cluster.add_waiting(new).await;
        let admin = cluster.client().await.admin();
        admin.replace_node(old, new, cluster.peer_address(new)).await.expect("a replacement");
        if !(runs_on && old == 1) {
            cluster.stop(old).await;
        }
    }
    let leader = cluster.leader_of(&[4, 5]).await;
    if leader != 5 {
        let admin = cluster.client().await.admin();
        assert_eq!(admin.transfer_leader(Some(5)).await.expect("another leader"), 5);
    }
    register(&mut cluster.registry(4), "web", "b").await;
    cluster.restart(3).await;
    eventually("node 3 has caught up", || async {
        let leader = cluster.own_status(3).await?.header?.leader_id;
        ([4, 5].contains(&leader) && cluster.voters(3).await == [3, 4, 5]).then_some(())
    })
    .await;
    assert_eq!(fetch_all(&mut cluster.registry(3)).await.1.len(), 2);
}

/// An admin may take the same id in again. A node that has seen it go, but not come back, finds it
/// leading.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_behind_follows_one_that_was_taken_in_again() {
    let mut cluster = Cluster::start(3).await;
    cluster.add_waiting(4).await;
    let admin = cluster.client().await.admin();
    admin.add_node(4, cluster.peer_address(4), false).await.expect("an addition");
    admin.remove_node(4).await.expect("a removal");
    out_of_all(&cluster, 4).await;
    cluster.stop(4).await;
    cluster.stop(3).await;
    cluster.wipe(4);
    cluster.restart(4).await;
    cluster.leader_of(&[1, 2]).await;
    let admin = cluster.client().await.admin();
    admin.add_node(4, cluster.peer_address(4), false).await.expect("an addition");
    assert_eq!(admin.transfer_leader(Some(4)).await.expect("another leader"), 4);
    register(&mut cluster.registry(4), "web", "a").await;
    cluster.restart(3).await;
    eventually("node 3 has caught up", || async {
        let leader = cluster.own_status(3).await?.header?.leader_id;
        (leader == 4 && cluster.voters(3).await == [1, 2, 3, 4]).then_some(())
    })
    .await;
    assert_eq!(fetch_all(&mut cluster.registry(3)).await.1.len(), 1);
}
