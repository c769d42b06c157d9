//! A cluster in which nodes hear what only a later release says: fields, errors and answers that
//! this one does not have.

use std::collections::BTreeMap;

use prost::Message as _;
use quorate_node::{Start, Tunables};
use quorate_proto::peer::v1::leader_answer::Answer;
use quorate_proto::peer::v1::{Failure, LeaderAnswer};
use quorate_proto::v1::TransferLeaderRequest;
use tonic::Code;

use super::calls::{assert_refused, fetch_of, ids, register, registration, spec};
use super::harness::{Cluster, eventually};
use super::load::Load;
use super::newer::Newer;

/// Three nodes, each of which hears the others, and is heard by them, as nodes of a later release.
pub(super) async fn start() -> (Cluster, BTreeMap<u64, Newer>) {
    start_with(&Tunables::default()).await
}

pub(super) async fn start_with(tunables: &Tunables) -> (Cluster, BTreeMap<u64, Newer>) {
    let mut cluster = Cluster::prepare_founders(3).await;
    let mut newer = BTreeMap::new();
    for id in 1..=3 {
        newer.insert(id, Newer::open(cluster.config_mut(id).peer_listen).await);
    }
    let list = |(id, it): (&u64, &Newer)| (*id, it.address().to_string());
    let list: BTreeMap<u64, String> = newer.iter().map(list).collect();
    for id in 1..=3 {
        let config = cluster.config_mut(id);
        config.tunables = tunables.clone();
        config.peer_advertise = Some(list[&id].clone());
        config.start = Start::Bootstrap(list.clone());
    }
    for id in 1..=3 {
        cluster.restart(id).await;
    }
    cluster.settled().await;
    (cluster, newer)
}

/// The leader hands the lead over when it is asked to, though on a busy machine not each time; to
/// whom.
pub(super) async fn hand_over(cluster: &Cluster) -> u64 {
    eventually("another leader", || async {
        let leader = cluster.leader().await;
        let request = TransferLeaderRequest { to_id: 0 };
        let handed = cluster.admin(leader).transfer_leader(request).await;
        let next = cluster.leader().await;
        (handed.is_ok() && next != leader).then_some(next)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_later_release_adds_to_any_message_breaks_nothing() {
    let (mut cluster, newer) = start().await;
    let load = Load::start(&cluster).await;
    load.goes_on().await;
    hand_over(&cluster).await;
    load.goes_on().await;
    for id in 1..=3 {
        cluster.stop(id).await;
        load.goes_on().await;
        cluster.restart(id).await;
        cluster.settled().await;
    }
    load.goes_on().await;
    load.finish().await;
    // Where nobody hands over the lead, who wants to stand asks first.
    cluster.stop_all().await;
    for id in 1..=3 {
        cluster.restart(id).await;
    }
    cluster.settled().await;
    let mut relayed: Vec<String> = newer.values().flat_map(Newer::relayed).collect();
    relayed.sort();
    relayed.dedup();
    for call in [
        "AppendStream",
        "Forward",
        "Identify",
        "PreVote",
        "ReadIndex",
        "Recall",
        "Status",
        "TransferLeader",
        "Vote",
    ] {
        let path = format!("/quorate.peer.v1.Peer/{call}");
        assert!(relayed.contains(&path), "no {call} among {relayed:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_or_an_answer_of_a_later_release_is_told_in_words_and_the_cluster_goes_on() {
    let (cluster, newer) = start().await;
    let leader = cluster.leader().await;
    let mut at_follower = cluster.registry(leader % 3 + 1);
    register(&mut at_follower, "web", "a").await;
    let failure = Failure {
        code: Code::FailedPrecondition.into(),
        message: "the moon is full".to_owned(),
        // What it is to do then is not known here either.
        next: 77,
        ..Failure::default()
    };
    let failure = LeaderAnswer { answer: Some(Answer::Failure(failure)) };
    for (instead, code, why) in [
        (failure.encode_to_vec(), Code::FailedPrecondition, "the moon is full"),
        // An answer under a number that this release does not have.
        (vec![0x98, 0x06, 1], Code::Unavailable, "it cannot be read: peer message holds what"),
    ] {
        newer[&leader].answer(Some(instead.into()));
        let registering = at_follower.register(registration(vec![spec("web", "b")])).await;
        assert_refused(registering, code, &[why]);
    }
    newer[&leader].answer(None);
    register(&mut at_follower, "web", "c").await;
    let found = at_follower.fetch(fetch_of(&["web"])).await.unwrap().into_inner();
    assert_eq!(ids(&found), ["a", "b", "c"], "the leader had done it");
}
