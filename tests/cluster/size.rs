//! A registry that is as large as its leader lets it become.

use std::collections::BTreeSet;
use std::time::Duration;

use quorate_node::Tunables;
use quorate_proto::v1::{
    InstanceSpec, RegisterRequest, RequestId, TransferLeaderRequest, UpdateRequest,
};
use rustix::fs::statvfs;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use super::calls::{
    Registry, assert_refused, assert_refused_late, deregister, fetch_all, in_time, named,
    registration, renewal, set_weight, spec, with_timeout,
};
use super::harness::Cluster;
use super::metrics::metrics;

const LIMIT: usize = 1024 * 1024;
/// What is registered here is little more than its metadata.
const NOTE_BYTES: usize = 5_000;
const SOME: std::ops::RangeInclusive<usize> = LIMIT / 6_500..=LIMIT / NOTE_BYTES;

fn large(id: &str, note_bytes: usize) -> InstanceSpec {
    let metadata = [("note".to_owned(), "x".repeat(note_bytes))].into();
    InstanceSpec { metadata, ..spec("web", id) }
}

fn noted(id: &str, note_bytes: usize) -> UpdateRequest {
    let metadata = large(id, note_bytes).metadata;
    UpdateRequest {
        instance: Some(named("web", id)),
        metadata: Some(quorate_proto::v1::Metadata { entries: metadata }),
        ..UpdateRequest::default()
    }
}

fn once(number: u64, specs: Vec<InstanceSpec>) -> RegisterRequest {
    let request_id = Some(RequestId { origin: 7, number, ..RequestId::default() });
    RegisterRequest { request_id, ..registration(specs) }
}

/// Registers as many as there is room for: their leases, and the refusal.
async fn fill(registry: &mut Registry, name: &str) -> (Vec<u64>, Status) {
    let mut leases = Vec::new();
    loop {
        let id = format!("{name}{}", leases.len());
        let one = registration(vec![large(&id, NOTE_BYTES)]);
        match registry.register(in_time(one)).await {
            Ok(answer) => leases.push(answer.into_inner().lease_id),
            Err(refused) => return (leases, refused),
        }
        assert!(leases.len() < LIMIT / NOTE_BYTES, "nothing is refused");
    }
}

/// One node whose registry may have this size.
async fn small() -> Cluster {
    let tunables = Tunables { state_bytes_max: LIMIT, ..Tunables::default() };
    Cluster::start_with(1, tunables).await
}

async fn bytes(cluster: &Cluster) -> usize {
    metrics(cluster, 1).await["quorate_state_bytes"] as usize
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_is_full_takes_nothing_more_and_keeps_what_it_has() {
    let tunables = Tunables { state_bytes_max: LIMIT, ..Tunables::default() };
    let cluster = Cluster::start_with(3, tunables).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let mut registry = cluster.registry(follower);
    let first = once(1, vec![large("gone", NOTE_BYTES)]);
    let gone = registry.register(in_time(first.clone())).await.unwrap().into_inner();
    deregister(&mut registry, "web", "gone").await;
    let (leases, refused) = fill(&mut registry, "i").await;
    let limit = format!("state_bytes_max = {LIMIT} on node {leader}");
    let words = ["beyond its limit", &limit];
    assert_refused::<()>(Err(refused), Code::ResourceExhausted, &words);
    assert!(SOME.contains(&leases.len()), "{} are registered", leases.len());
    let now = metrics(&cluster, leader).await;
    assert_eq!(now["quorate_state_bytes_max"], LIMIT as f64);
    let left = LIMIT as f64 - now["quorate_state_bytes"];
    assert!((0.0..2.0 * NOTE_BYTES as f64).contains(&left), "{left} bytes are left");

    // What is there stays: renewed, changed, registered again by another run.
    let renewed = registry.renew(in_time(renewal(leases.iter().copied()))).await.unwrap();
    assert!(renewed.into_inner().unknown_lease_ids.is_empty());
    set_weight(&mut registry, "web", "i0", 7).await;
    let again = RegisterRequest { incarnation: 2, ..registration(vec![large("i1", NOTE_BYTES)]) };
    registry.register(in_time(again)).await.unwrap();
    let answer = registry.update(in_time(noted("i2", 3 * NOTE_BYTES))).await;
    assert_refused(answer, Code::ResourceExhausted, &words);
    // A write that was done is told again what came of it, and no refusal.
    let repeated = registry.register(in_time(first)).await.unwrap().into_inner();
    assert_eq!((repeated.lease_id, repeated.header), (gone.lease_id, gone.header));
    assert_eq!(fetch_all(&mut registry).await.1.len(), leases.len());

    // Smaller ones make room, and so do those that go.
    for id in ["i2", "i3"] {
        registry.update(in_time(noted(id, 10))).await.unwrap();
    }
    assert!(!fill(&mut registry, "after-smaller").await.0.is_empty());
    deregister(&mut registry, "web", "i4").await;
    assert!(!fill(&mut registry, "after-fewer").await.0.is_empty());
}

/// Whoever was deregistered or superseded is told so, and ends: it waits for no room, to take it
/// when nobody remembers any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_registry_refuses_what_is_over_for_that() {
    let cluster = small().await;
    let mut registry = cluster.registry(1);
    fill(&mut registry, "i").await;
    deregister(&mut registry, "web", "i0").await;
    assert!(!fill(&mut registry, "in-its-place").await.0.is_empty());
    let newer = RegisterRequest { incarnation: 2, ..registration(vec![large("i1", NOTE_BYTES)]) };
    registry.register(in_time(newer)).await.unwrap();
    let unknown = RegisterRequest { lease_id: 9, ..registration(vec![large("j", NOTE_BYTES)]) };
    let more = 3 * NOTE_BYTES;
    for (over, code, words) in [
        (registration(vec![large("i0", more)]), Code::FailedPrecondition, "was deregistered"),
        (registration(vec![large("i1", more)]), Code::FailedPrecondition, "newer incarnation, 2"),
        (unknown, Code::NotFound, "lease 9 is unknown"),
        (registration(vec![large("j", more)]), Code::ResourceExhausted, "beyond its limit"),
    ] {
        assert_refused(registry.register(in_time(over)).await, code, &[words]);
    }
}

/// What is proposed and not applied yet counts, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_do_not_make_it_larger_than_it_may_be() {
    let cluster = small().await;
    let mut all = JoinSet::new();
    for at in 0..2 * LIMIT / NOTE_BYTES {
        let mut registry = cluster.registry(1);
        all.spawn(async move {
            let one = registration(vec![large(&format!("i{at}"), NOTE_BYTES)]);
            registry.register(in_time(one)).await
        });
    }
    let mut registered = 0;
    for answer in all.join_all().await {
        match answer {
            Ok(_) => registered += 1,
            refused => drop(assert_refused(refused, Code::ResourceExhausted, &["its limit"])),
        }
    }
    assert_eq!(fetch_all(&mut cluster.registry(1)).await.1.len(), registered);
    let (bytes, least) = (bytes(&cluster).await, LIMIT - 2 * NOTE_BYTES);
    assert!((least..=LIMIT).contains(&bytes), "{registered} take {bytes} bytes");
}

/// Nobody is told that there is no room for what an earlier attempt has done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_at_one_write_need_room_for_one() {
    let tunables = Tunables { state_bytes_max: LIMIT, ..Tunables::default() };
    let cluster = Cluster::start_with(3, tunables).await;
    let half = LIMIT / NOTE_BYTES / 2 + 5;
    let specs: Vec<_> = (0..half).map(|at| large(&format!("i{at}"), NOTE_BYTES)).collect();
    let mut all = JoinSet::new();
    for attempt in 0..24 {
        let (mut registry, attempt) = (cluster.registry(attempt % 3 + 1), once(1, specs.clone()));
        all.spawn(async move { registry.register(in_time(attempt)).await });
    }
    let answers = all.join_all().await.into_iter();
    let leases = answers.map(|answer| answer.expect("it is done").into_inner().lease_id);
    let leases: BTreeSet<_> = leases.collect();
    assert_eq!(leases.len(), 1, "{leases:?}");
    let other = registration(
        specs.into_iter().map(|it| large(&it.id.replace('i', "j"), NOTE_BYTES)).collect(),
    );
    let refused = cluster.registry(1).register(in_time(other)).await;
    assert_refused(refused, Code::ResourceExhausted, &["its limit"]);
}

/// In the log, what was done before is small, and what cannot be done is not there.
async fn assert_repetitions_are_small(cluster: &Cluster, done: RegisterRequest, lease_id: u64) {
    let mut registry = cluster.registry(1);
    let log = async || {
        fetch_all(&mut cluster.registry(1)).await;
        metrics(cluster, 1).await["quorate_log_entry_bytes_total"]
    };
    let before = log().await;
    let again = registry.register(in_time(done)).await.unwrap().into_inner();
    assert_eq!(again.lease_id, lease_id);
    let other = once(1, vec![large("another", NOTE_BYTES)]);
    let refused = registry.register(in_time(other)).await;
    assert_refused(refused, Code::InvalidArgument, &["request_id.number = 1"]);
    let more = log().await - before;
    assert!(more < NOTE_BYTES as f64, "{more} bytes");
    let new = once(2, vec![large("new", 2 * NOTE_BYTES)]);
    assert_refused(registry.register(in_time(new)).await, Code::ResourceExhausted, &[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_done_before_takes_no_room_again() {
    let mut cluster = small().await;
    let mut registry = cluster.registry(1);
    let done = once(1, vec![large("done", NOTE_BYTES)]);
    let lease = registry.register(in_time(done.clone())).await.unwrap().into_inner().lease_id;
    // It would make it larger again.
    registry.update(in_time(noted("done", 10))).await.unwrap();
    fill(&mut registry, "i").await;
    assert_repetitions_are_small(&cluster, done.clone(), lease).await;

    cluster.stop(1).await;
    let free = statvfs(cluster.data_dir(1)).expect("a file system");
    let tunables = &mut cluster.config_mut(1).tunables;
    // More than there is, and a quarter of it much less.
    tunables.disk_reserve_bytes = 2 * free.f_bavail * free.f_frsize;
    tunables.state_bytes_max = 2 * LIMIT;
    cluster.restart(1).await;
    cluster.settled().await;
    assert_repetitions_are_small(&cluster, done, lease).await;
}

/// A process that is started again has its place, also where it has left in order and another took
/// its room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_deregistered_may_come_back() {
    let cluster = small().await;
    let mut registry = cluster.registry(1);
    fill(&mut registry, "i").await;
    for at in 0..20 {
        deregister(&mut registry, "web", &format!("i{at}")).await;
    }
    let (others, _) = fill(&mut registry, "in-their-place").await;
    assert!(others.len() >= 19, "{others:?}");
    // In one call with one that is there.
    let next = |id: &str| {
        let both = registration(vec![large("i30", NOTE_BYTES), large(id, NOTE_BYTES)]);
        RegisterRequest { incarnation: 2, ..both }
    };
    let mut back = 0;
    let refused = loop {
        match registry.register(in_time(next(&format!("i{back}")))).await {
            Ok(_) => back += 1,
            Err(refused) => break refused,
        }
    };
    assert_refused::<()>(Err(refused), Code::ResourceExhausted, &["beyond its limit"]);
    let bytes = bytes(&cluster).await;
    assert!(back > 0 && bytes > LIMIT && bytes <= LIMIT / 20 * 21, "{back} came back: {bytes}");
    assert_refused(registry.register(in_time(next("new"))).await, Code::ResourceExhausted, &[]);
}

/// Each node answers what was done as it was done, whoever led then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_leader_knows_what_was_done_before_it_refuses_for_want_of_room() {
    let tunables = Tunables { state_bytes_max: LIMIT, ..Tunables::default() };
    let cluster = Cluster::start_with(3, tunables).await;
    let leader = cluster.leader().await;
    let mut registry = cluster.registry(leader);
    let done = once(1, vec![large("done", NOTE_BYTES)]);
    let lease = registry.register(in_time(done.clone())).await.unwrap().into_inner().lease_id;
    registry.update(in_time(noted("done", 10))).await.unwrap();
    fill(&mut registry, "i").await;
    let to_id = leader % 3 + 1;
    let transfer = in_time(TransferLeaderRequest { to_id });
    cluster.admin(leader).transfer_leader(transfer).await.unwrap();
    for node in 1..=3 {
        let mut registry = cluster.registry(node);
        let again = registry.register(in_time(done.clone())).await.unwrap().into_inner();
        assert_eq!(again.lease_id, lease);
        let new = once(10 + node, vec![large("new", 2 * NOTE_BYTES)]);
        assert_refused(registry.register(in_time(new)).await, Code::ResourceExhausted, &[]);
    }
}

/// Where others may lead by now, they may have room, and have done the write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_without_a_quorum_does_not_say_that_there_is_no_room() {
    const PATIENCE: Duration = Duration::from_secs(2);
    let tunables = Tunables { state_bytes_max: LIMIT, ..Tunables::default() };
    let mut cluster = Cluster::start_freezable_with(3, tunables).await;
    let leader = cluster.leader().await;
    fill(&mut cluster.registry(leader), "i").await;
    let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
    others.iter().for_each(|id| cluster.freeze(*id));
    let new = once(2, vec![large("new", 2 * NOTE_BYTES)]);
    let register =
        async || cluster.registry(leader).register(with_timeout(new.clone(), PATIENCE)).await;
    assert_refused_late(register, Code::Unavailable, &["no quorum"]).await;
    others.iter().for_each(|id| cluster.thaw(*id));
    let refused = cluster.registry(leader).register(in_time(new)).await;
    assert_refused(refused, Code::ResourceExhausted, &["beyond its limit"]);
}
