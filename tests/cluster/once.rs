//! A write is done once: by a node that hands it in again when another one leads, and by a caller
//! that sends it again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use quorate_proto::v1::watch_response::Kind;
use quorate_proto::v1::{
    DeregisterRequest, InstanceOverride, RegisterRequest, RequestId, SetOverrideRequest,
    TransferLeaderRequest, UpdateRequest, WatchRequest, WatchSubscribe, watch_request,
};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use super::calls::{
    Registry, assert_refused, fetch_all, named, register, registration, set_weight, spec,
};
use super::harness::Cluster;

fn id(number: u64, age_ms: u64) -> Option<RequestId> {
    Some(RequestId { origin: 77, number, done_below: 0, age_ms })
}

fn update(number: u64, age_ms: u64, weight: u32) -> UpdateRequest {
    UpdateRequest {
        instance: Some(named("web", "a")),
        weight: Some(weight),
        request_id: id(number, age_ms),
        ..UpdateRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_is_sent_again_is_answered_as_it_was_on_every_node() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let mut registry = cluster.registry(leader);
    let register_as = |number, age_ms| RegisterRequest {
        incarnation: 0,
        request_id: id(number, age_ms),
        ..registration(vec![spec("web", "a")])
    };
    let first = registry.register(register_as(1, 0)).await.unwrap().into_inner();
    let updated = registry.update(update(2, 0, 7)).await.unwrap().into_inner();
    let removal = |age_ms| DeregisterRequest {
        instances: vec![named("web", "b")],
        request_id: id(3, age_ms),
        ..DeregisterRequest::default()
    };
    register(&mut registry, "web", "b").await;
    let removed = registry.deregister(removal(0)).await.unwrap().into_inner();
    let overridden = |age_ms| SetOverrideRequest {
        service: "web".to_owned(),
        id: "b".to_owned(),
        r#override: Some(InstanceOverride { weight: Some(5), ..<_>::default() }),
        request_id: id(4, age_ms),
        ..SetOverrideRequest::default()
    };
    let mut admin = cluster.admin(leader);
    let set = admin.set_override(overridden(0)).await.unwrap().into_inner();
    let cleared = SetOverrideRequest { r#override: None, request_id: None, ..overridden(0) };
    // Others have written since.
    admin.set_override(cleared).await.unwrap();
    set_weight(&mut registry, "web", "a", 8).await;
    let again = RegisterRequest { incarnation: 2, ..registration(vec![spec("web", "b")]) };
    registry.register(again).await.unwrap();
    // All nodes stop and have only their disks.
    cluster.stop_all().await;
    for node in 1..=3 {
        cluster.restart(node).await;
    }
    cluster.settled().await;
    let revision = fetch_all(&mut cluster.registry(leader)).await.0;
    for node in 1..=3 {
        let mut registry = cluster.registry(node);
        let answer = registry.register(register_as(1, 900)).await.unwrap().into_inner();
        let told = |header: Option<quorate_proto::v1::ResponseHeader>| header.unwrap().revision;
        assert_eq!((answer.incarnation, answer.lease_id), (first.incarnation, first.lease_id));
        assert_eq!(told(answer.header), told(first.header.clone()));
        let answer = registry.update(update(2, 900, 7)).await.unwrap().into_inner();
        assert_eq!(told(answer.header), told(updated.header.clone()));
        let answer = registry.deregister(removal(900)).await.unwrap().into_inner();
        assert_eq!((answer.removed, told(answer.header)), (1, told(removed.header.clone())));
        let mut admin = cluster.admin(node);
        let answer = admin.set_override(overridden(900)).await.unwrap().into_inner();
        assert_eq!(told(answer.header), told(set.header.clone()));
        let (now, map) = fetch_all(&mut registry).await;
        assert_eq!(now, revision, "nothing was done");
        assert_eq!(map[&("web".to_owned(), "b".to_owned())].r#override, None);
        assert_eq!(map[&("web".to_owned(), "a".to_owned())].weight, 8);
        assert!(map.contains_key(&("web".to_owned(), "b".to_owned())));
    }
    let other = cluster.registry(1).update(update(2, 900, 9)).await.unwrap_err();
    assert_eq!(other.code(), Code::InvalidArgument, "{other}");
    assert!(other.message().contains("request_id.number = 2"), "{other}");
}

/// Its origin has said that it waits for no answer to it any more: what came of it is not kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_is_not_known_any_more_may_have_been_done_and_changes_nothing() {
    let cluster = Cluster::start(3).await;
    let mut registry = cluster.registry(cluster.leader().await);
    register(&mut registry, "web", "a").await;
    let over = RequestId { done_below: 9, ..id(9, 0).unwrap() };
    let last = UpdateRequest { request_id: Some(over), ..update(9, 0, 7) };
    registry.update(last).await.unwrap();
    let before = fetch_all(&mut registry).await;
    for node in 1..=3 {
        let (mut registry, mut admin) = (cluster.registry(node), cluster.admin(node));
        let register = RegisterRequest {
            request_id: id(3, 900),
            ..registration(vec![spec("web", "b"), spec("web", "a")])
        };
        let deregister = DeregisterRequest {
            instances: vec![named("web", "a")],
            request_id: id(4, 900),
            ..DeregisterRequest::default()
        };
        let decision = SetOverrideRequest {
            service: "web".to_owned(),
            id: "a".to_owned(),
            r#override: Some(InstanceOverride { weight: Some(5), ..<_>::default() }),
            request_id: id(8, 900),
            ..SetOverrideRequest::default()
        };
        for refused in [
            registry.register(register).await.map(drop),
            registry.deregister(deregister).await.map(drop),
            registry.update(update(5, 900, 9)).await.map(drop),
            admin.set_override(decision).await.map(drop),
        ] {
            let says = ["may have been done", "not known any more"];
            assert_refused(refused, Code::Unavailable, &says);
        }
        assert_eq!(fetch_all(&mut registry).await, before, "node {node} did nothing");
    }
}

/// Sets one weight after the other: how many were acknowledged, and what the others heard.
async fn update_until(
    stop: Arc<AtomicBool>,
    mut registry: Registry,
    instance: usize,
    weights: Arc<AtomicU32>,
) -> (usize, Vec<Status>) {
    let (mut done, mut failed) = (0, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        let request = UpdateRequest {
            instance: Some(named("web", &format!("w{instance}"))),
            weight: Some(weights.fetch_add(1, Ordering::Relaxed)),
            ..UpdateRequest::default()
        };
        match registry.update(request).await {
            Ok(_) => done += 1,
            Err(status) => failed.push(status),
        }
    }
    (done, failed)
}

/// Each weight is set by one call. Many write to the same instance: what is done again shows where
/// others wrote in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn updates_through_followers_are_done_once_while_the_lead_moves() {
    const WRITERS: usize = 48;
    const INSTANCES: usize = 4;
    const TRANSFERS: usize = 16;
    /// Of them, at least.
    const MOVES: usize = 4;
    let cluster = Cluster::start(3).await;
    let mut registry = cluster.registry(1);
    for instance in 0..INSTANCES {
        register(&mut registry, "web", &format!("w{instance}")).await;
    }
    let subscribe = WatchSubscribe { services: vec!["web".to_owned()], ..<_>::default() };
    let kind = Some(watch_request::Kind::Subscribe(subscribe));
    let (requests, receiver) = tokio::sync::mpsc::channel(1);
    requests.send(WatchRequest { kind }).await.unwrap();
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut watch = cluster.registry(1).watch(stream).await.unwrap().into_inner();
    let (stop, weights) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(1_000)));
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (registry, instance) = (cluster.registry(writer as u64 % 3 + 1), writer % INSTANCES);
        writers.spawn(update_until(stop.clone(), registry, instance, weights.clone()));
    }
    let watching = tokio::spawn(async move {
        let (mut seen, mut twice) = (BTreeSet::new(), Vec::new());
        while let Some(message) = watch.message().await.unwrap() {
            let Some(Kind::Delta(delta)) = message.kind else { continue };
            for change in delta.changes {
                let weight = change.instance.unwrap().weight;
                if weight == 1 {
                    return (seen.len(), twice);
                }
                if !seen.insert(weight) {
                    twice.push((change.revision, weight));
                }
            }
        }
        panic!("the watch has ended");
    });
    let (mut before, mut moves) = (None, 0);
    for _ in 0..TRANSFERS {
        let leader = cluster.leader().await;
        moves += usize::from(before.replace(leader).is_some_and(|before| before != leader));
        let next = leader % 3 + 1;
        let request = TransferLeaderRequest { to_id: next };
        // One that is refused (too far behind, not heard of lately) is only one less.
        let _ = cluster.admin(leader).transfer_leader(request).await;
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let (done, failed): (Vec<usize>, Vec<_>) = writers.join_all().await.into_iter().unzip();
    let done: usize = done.into_iter().sum();
    let failed: Vec<Status> = failed.into_iter().flatten().collect();
    set_weight(&mut registry, "web", "w0", 1).await;
    let (seen, twice) = watching.await.unwrap();
    eprintln!("{done} updates acknowledged, {} failed, {seen} seen, {moves} moves", failed.len());
    assert!(moves >= MOVES, "the lead moved {moves} times");
    let refuses =
        |status: &&Status| !matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded);
    assert_eq!(failed.iter().find(refuses).map(Status::to_string), None, "nothing is refused");
    assert!(done > 0 && seen >= done, "{done} acknowledged, {seen} seen");
    assert!(twice.is_empty(), "done twice (revision, weight): {twice:?}");
}
