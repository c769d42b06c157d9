//! Leases, incarnations, and what a process or an operator changes: the calls that write.

use quorate_proto::v1::{
    DeregisterRequest, InstanceOverride, InstanceRef, InstanceStatus, Metadata, RegisterRequest,
    SetOverrideRequest, UpdateRequest,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::calls::{
    Registry, assert_refused, deregister, fetch_all, named, register, registration, renewal, spec,
};
use super::harness::{Cluster, SOON};

const TRAILER: &str = "quorate-incarnation";

fn trailer(status: &Status) -> Option<&str> {
    status.metadata().get(TRAILER)?.to_str().ok()
}

fn run(incarnation: u64, service: &str, id: &str) -> RegisterRequest {
    RegisterRequest { incarnation, ..registration(vec![spec(service, id)]) }
}

fn reference(service: &str, id: &str, incarnation: u64) -> InstanceRef {
    InstanceRef { incarnation, ..named(service, id) }
}

fn deregistration(instances: Vec<InstanceRef>) -> DeregisterRequest {
    DeregisterRequest { instances, ..DeregisterRequest::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_lease_is_told_by_itself_or_among_others() {
    let cluster = Cluster::start(3).await;
    for node in cluster.ids() {
        let mut registry = cluster.registry(node);
        let lease = register(&mut registry, "web", &format!("i{node}")).await.lease_id;
        let all_unknown = registry.renew(renewal([77_777, 77_778])).await;
        assert_refused(all_unknown, Code::NotFound, &["77777"]);
        let some = registry.renew(renewal([77_777, lease, 77_778])).await.unwrap().into_inner();
        assert_eq!(some.unknown_lease_ids, [77_777, 77_778]);
        let none = registry.renew(renewal([lease, lease])).await.unwrap().into_inner();
        assert!(none.unknown_lease_ids.is_empty());
        let mut request = run(1, "web", "more");
        request.lease_id = 77_777;
        assert_refused(registry.register(request).await, Code::NotFound, &["77777"]);
        let request = DeregisterRequest { lease_id: 77_777, ..DeregisterRequest::default() };
        assert_refused(registry.deregister(request).await, Code::NotFound, &["77777"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_stream_answers_each_request_and_outlives_leaders() {
    let cluster = Cluster::start(3).await;
    let follower = cluster.follower().await;
    let mut registry = cluster.registry(follower);
    let lease = register(&mut registry, "web", "a").await.lease_id;
    let (asks, requests) = tokio::sync::mpsc::channel(8);
    let answers = registry.renew_stream(ReceiverStream::new(requests)).await.unwrap();
    let mut answers = answers.into_inner();
    let admin = cluster.client().await.admin();
    for turn in 0..6_u64 {
        // Two on their way at once; the answers come in their order. Unknown ones never end the
        // stream.
        asks.send(renewal([lease, 50_000 + turn])).await.unwrap();
        asks.send(renewal([60_000 + turn])).await.unwrap();
        for unknown in [50_000 + turn, 60_000 + turn] {
            let answer = tokio::time::timeout(SOON, answers.message()).await.expect("an answer");
            let answer = answer.unwrap().expect("the stream goes on");
            assert_eq!(answer.unknown_lease_ids, [unknown]);
            assert!(answer.header.is_some());
        }
        if turn % 2 == 1 {
            admin.transfer_leader(None).await.expect("a transfer");
        }
    }
    asks.send(renewal([])).await.unwrap();
    let ended = tokio::time::timeout(SOON, answers.message()).await.expect("an answer");
    assert_refused(ended, Code::InvalidArgument, &["renewals"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_run_changes_nothing_and_learns_the_current_one() {
    // S0.4
    let cluster = Cluster::start(3).await;
    let follower = cluster.follower().await;
    let mut registry = cluster.registry(follower);
    registry.register(run(7, "web", "a")).await.unwrap();
    let before = fetch_all(&mut registry).await;
    let stale_update = UpdateRequest {
        instance: Some(reference("web", "a", 6)),
        weight: Some(1),
        ..UpdateRequest::default()
    };
    let refusals = [
        registry.register(run(6, "web", "a")).await.map(|_| ()),
        registry.deregister(deregistration(vec![reference("web", "a", 6)])).await.map(|_| ()),
        registry.update(stale_update).await.map(|_| ()),
    ];
    for refusal in refusals {
        let status = assert_refused(refusal, Code::FailedPrecondition, &["default/web/a", "7"]);
        assert_eq!(trailer(&status), Some("7"));
    }
    // All or none: the new instance of the same call is not there either.
    let mut both = run(6, "web", "new");
    both.instances.push(spec("web", "a"));
    assert_refused(registry.register(both).await, Code::FailedPrecondition, &["default/web/a"]);
    assert_eq!(fetch_all(&mut registry).await, before);
    // Not set: the server takes the next.
    let next = registry.register(run(0, "web", "a")).await.unwrap().into_inner();
    assert_eq!(next.incarnation, 8);
    let first = registry.register(run(0, "web", "b")).await.unwrap().into_inner();
    assert_eq!(first.incarnation, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_registration_of_a_run_that_left_stays_out() {
    // S0.7, S2.16
    let cluster = Cluster::start(3).await;
    let mut registry = cluster.registry(1);
    registry.register(run(5, "web", "a")).await.unwrap();
    let left = registry.deregister(deregistration(vec![reference("web", "a", 5)])).await.unwrap();
    assert_eq!(left.into_inner().removed, 1);
    for node in cluster.ids() {
        for incarnation in [4, 5] {
            let late = cluster.registry(node).register(run(incarnation, "web", "a")).await;
            let status = assert_refused(late, Code::FailedPrecondition, &["5", "deregistered"]);
            assert_eq!(trailer(&status), Some("5"));
        }
    }
    // One that never arrived, and leaves before it does.
    let early = registry.deregister(deregistration(vec![reference("web", "b", 9)])).await;
    assert_refused(early, Code::NotFound, &["default/web/b"]);
    let late = registry.register(run(9, "web", "b")).await;
    assert_refused(late, Code::FailedPrecondition, &["9"]);
    assert_eq!(fetch_all(&mut registry).await.1.len(), 0);
    // A new run is welcome. S1.5
    registry.register(run(6, "web", "a")).await.unwrap();
    registry.register(run(10, "web", "b")).await.unwrap();
    assert_eq!(fetch_all(&mut registry).await.1.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_lease_keeps_many_instances_and_takes_them_along() {
    let cluster = Cluster::start(3).await;
    let mut registry = cluster.registry(2);
    let mut request = registration(vec![spec("web", "a"), spec("api", "a")]);
    let lease = registry.register(request.clone()).await.unwrap().into_inner().lease_id;
    request.instances = vec![spec("web", "b")];
    request.lease_id = lease;
    assert_eq!(registry.register(request).await.unwrap().into_inner().lease_id, lease);
    let (_, map) = fetch_all(&mut registry).await;
    assert!(map.values().all(|instance| instance.lease_id == lease) && map.len() == 3);

    deregister(&mut registry, "api", "a").await;
    let nothing = registry.deregister(deregistration(vec![named("api", "a")])).await;
    assert_refused(nothing, Code::NotFound, &["default/api/a"]);
    let request = DeregisterRequest { lease_id: lease, ..DeregisterRequest::default() };
    let gone = registry.deregister(request.clone()).await.unwrap().into_inner();
    assert_eq!(gone.removed, 2);
    assert_refused(registry.deregister(request).await, Code::NotFound, &[&lease.to_string()]);
    assert_eq!(fetch_all(&mut registry).await.1.len(), 0);
    let renewed = registry.renew(renewal([lease])).await;
    assert_refused(renewed, Code::NotFound, &[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_changes_what_it_names_and_lasts_until_the_owner_says_otherwise() {
    // S2.9, S0.9
    let cluster = Cluster::start(3).await;
    let mut registry = cluster.registry(3);
    let mut own = spec("web", "a");
    own.metadata.insert("commit".to_owned(), "1".to_owned());
    registry.register(registration(vec![own.clone()])).await.unwrap();
    let find = async |registry: &mut Registry| {
        let (_, map) = fetch_all(registry).await;
        map.into_values().find(|instance| instance.id == "a").expect("it is there")
    };
    let update = UpdateRequest {
        instance: Some(named("web", "a")),
        status: InstanceStatus::Draining.into(),
        ..UpdateRequest::default()
    };
    let one = registry.update(update.clone()).await.unwrap().into_inner().header.unwrap().revision;
    let same = registry.update(update).await.unwrap().into_inner().header.unwrap().revision;
    assert_eq!(one, same, "the same again raises no revision");
    let found = find(&mut registry).await;
    assert_eq!(found.status(), InstanceStatus::Draining);
    assert_eq!((found.weight, found.metadata.len()), (100, 1), "the rest is as it was");
    assert_eq!((found.create_revision, found.modify_revision), (1, one));

    let update = UpdateRequest {
        instance: Some(reference("web", "a", 1)),
        weight: Some(0),
        metadata: Some(Metadata::default()),
        ..UpdateRequest::default()
    };
    registry.update(update).await.unwrap();
    let found = find(&mut registry).await;
    assert_eq!((found.weight, found.metadata.len()), (0, 0));
    assert_eq!(found.status(), InstanceStatus::Draining);

    for unknown in [named("web", "z"), reference("web", "a", 2)] {
        let instance = Some(unknown);
        let update = UpdateRequest { instance, weight: Some(1), ..UpdateRequest::default() };
        assert_refused(registry.update(update).await, Code::NotFound, &["default/web/"]);
    }
    registry.register(registration(vec![own])).await.unwrap();
    let found = find(&mut registry).await;
    assert_eq!((found.weight, found.status(), found.metadata.len()), (100, InstanceStatus::Up, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_override_may_come_first_and_survives_registrations() {
    let cluster = Cluster::start(3).await;
    let follower = cluster.follower().await;
    let (mut registry, mut admin) = (cluster.registry(1), cluster.admin(follower));
    let value = InstanceOverride {
        status: InstanceStatus::OutOfService.into(),
        weight: Some(7),
        reason: "bad disk".to_owned(),
    };
    let mut request = SetOverrideRequest {
        service: "web".to_owned(),
        id: "a".to_owned(),
        r#override: Some(value.clone()),
        ..SetOverrideRequest::default()
    };
    admin.set_override(request.clone()).await.expect("before there is an instance");
    assert_eq!(fetch_all(&mut registry).await.0, 0, "nothing that clients see has changed");
    for incarnation in [1, 2] {
        registry.register(run(incarnation, "web", "a")).await.unwrap();
        let (_, map) = fetch_all(&mut registry).await;
        let found = map.into_values().next().unwrap();
        assert_eq!((found.status(), found.weight), (InstanceStatus::OutOfService, 7));
        assert_eq!((found.incarnation, found.r#override.as_ref()), (incarnation, Some(&value)));
    }
    deregister(&mut registry, "web", "a").await;
    registry.register(run(3, "web", "a")).await.unwrap();
    let update = UpdateRequest {
        instance: Some(named("web", "a")),
        status: InstanceStatus::Draining.into(),
        weight: Some(50),
        ..UpdateRequest::default()
    };
    registry.update(update).await.unwrap();
    let found = fetch_all(&mut registry).await.1.into_values().next().unwrap();
    assert_eq!((found.status(), found.weight), (InstanceStatus::OutOfService, 7), "still");
    // Only the weight, then nothing: what the instance says of itself comes to light again.
    request.r#override = Some(InstanceOverride { weight: Some(7), ..Default::default() });
    admin.set_override(request.clone()).await.unwrap();
    let found = fetch_all(&mut registry).await.1.into_values().next().unwrap();
    assert_eq!((found.status(), found.weight), (InstanceStatus::Draining, 7));
    request.r#override = None;
    let cleared = admin.set_override(request.clone()).await.unwrap().into_inner().header;
    let again = admin.set_override(request).await;
    assert_refused(again, Code::NotFound, &["is not overridden"]);
    let (revision, map) = fetch_all(&mut registry).await;
    assert_eq!(cleared.unwrap().revision, revision, "clearing twice is once");
    let found = map.into_values().next().unwrap();
    assert_eq!((found.status(), found.weight), (InstanceStatus::Draining, 50));
    assert!(found.r#override.is_none());
}
