//! What a subscription covers, and what a quiet or slow receiver gets.

use std::time::Duration;

use quorate_node::Tunables;
use quorate_proto::v1::watch_request::Kind as Ask;
use quorate_proto::v1::{
    ChangeKind, FetchRequest, InstanceOverride, InstanceSpec, InstanceStatus, RegisterRequest,
    RemoveReason, SetOverrideRequest, UpdateRequest, WatchAck, WatchRequest, WatchSubscribe,
};
use tokio::time::timeout;
use tonic::Code;

use super::calls::{
    Registry, assert_refused, deregister, fetch_all, fetch_of, ids, named, register, registration,
    renewal, set_weight, spec, timed,
};
use super::harness::{Cluster, SOON};
use super::http_api::get;
use super::stream::{Stream, subscribe_to, subscribe_to_prefix};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_subscription_covers_several_services_or_a_prefix_and_nothing_else() {
    // S4.2, S0.16, S2.3
    let cluster = Cluster::start(1).await;
    let mut registry = cluster.registry(1);
    for service in ["api", "api-v2", "web", "db"] {
        register(&mut registry, service, "a").await;
    }
    let mut elsewhere = registration(vec![spec("api", "elsewhere"), spec("web", "elsewhere")]);
    elsewhere.namespace = "staging".to_owned();
    registry.register(elsewhere.clone()).await.unwrap();

    let mut named = Stream::open(&registry, subscribe_to(&["web", "api", "new"])).await.unwrap();
    let mut prefixed = Stream::open(&registry, subscribe_to_prefix("api")).await.unwrap();
    let mut all = Stream::open(&registry, subscribe_to_prefix("")).await.unwrap();
    let subscribe = WatchSubscribe { namespace: "staging".to_owned(), ..subscribe_to_prefix("") };
    let mut staging = Stream::open(&registry, subscribe).await.unwrap();
    for stream in [&mut named, &mut prefixed, &mut all, &mut staging] {
        stream.snapshot().await;
    }
    for service in ["api", "api-v2", "web", "db", "new"] {
        register(&mut registry, service, "b").await;
    }
    let mut gone = deregister(&mut registry, "api-v2", "a").await;
    for (service, id) in [("api-v2", "b"), ("db", "a"), ("web", "a")] {
        gone = deregister(&mut registry, service, id).await;
    }
    elsewhere.instances = vec![spec("api", "later")];
    registry.register(elsewhere).await.unwrap();
    // Sent to all of them, so that what should not come would have come before it.
    register(&mut registry, "api", "end").await;
    let keys = |stream: &Stream| {
        let keys = stream.map.keys().map(|(service, id)| format!("{service}/{id}"));
        keys.collect::<Vec<_>>()
    };
    let ended = |stream: &Stream| stream.changes.last().is_some_and(|last| last.revision > gone);
    for stream in [&mut named, &mut prefixed, &mut all, &mut staging] {
        stream.until("the end", ended).await;
    }
    let has_end = |stream: &Stream| stream.map.keys().any(|(_, id)| id == "end");
    for stream in [&mut named, &mut prefixed, &mut all] {
        stream.until("the last one", has_end).await;
    }
    assert_eq!(keys(&named), ["api/a", "api/b", "api/end", "new/b", "web/b"]);
    assert_eq!(keys(&prefixed), ["api/a", "api/b", "api/end"]);
    assert_eq!(keys(&all), ["api/a", "api/b", "api/end", "db/b", "new/b", "web/b"]);
    assert_eq!(keys(&staging), ["api/elsewhere", "api/later", "web/elsewhere"]);
    assert!(all.changes.iter().all(|c| c.instance.as_ref().unwrap().namespace == "default"));
    let vanished = prefixed.changes.iter().filter(|c| c.kind() == ChangeKind::Removed).count();
    assert_eq!(vanished, 2, "the disappearance of a whole service is reported");
    assert!(
        prefixed.changes.iter().all(|c| {
            c.kind() != ChangeKind::Removed || c.reason() == RemoveReason::Deregistered
        })
    );
}

/// A registration may move an instance to another zone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_enters_and_leaves_what_is_asked_for_by_its_zone() {
    let cluster = Cluster::start(1).await;
    let mut registry = cluster.registry(1);
    let in_zone = |id: &str, zone: &str| {
        registration(vec![InstanceSpec { zone: zone.to_owned(), ..spec("web", id) }])
    };
    for (id, zone) in [("a", "east"), ("b", "west"), ("c", "south"), ("d", "")] {
        registry.register(in_zone(id, zone)).await.unwrap();
    }
    let zones = vec!["east".to_owned(), "west".to_owned()];
    let subscribe = WatchSubscribe { zones: zones.clone(), ..subscribe_to(&["web"]) };
    let mut stream = Stream::open(&registry, subscribe).await.unwrap();
    stream.snapshot().await;
    assert_eq!(stream.ids(), ["a", "b"]);
    let moved = [("c", "east", ChangeKind::Added), ("a", "south", ChangeKind::Removed)];
    for (id, zone, kind) in moved {
        let answer = registry.register(in_zone(id, zone)).await.unwrap().into_inner();
        stream.reach(answer.header.unwrap().revision).await;
        assert_eq!(stream.changes.last().unwrap().kind(), kind, "{id} to {zone}");
        let fetch = FetchRequest { zones: zones.clone(), ..fetch_of(&["web"]) };
        assert_eq!(ids(&registry.fetch(fetch).await.unwrap().into_inner()), stream.ids());
        let path = "/api/v1/namespaces/default/services/web?zone=east&zone=west";
        let by_http = get(cluster.http_address(1), path).await;
        let instances = by_http.body["service"]["instances"].as_array().unwrap();
        let found: Vec<_> = instances.iter().map(|it| it["id"].as_str().unwrap()).collect();
        assert_eq!(found, stream.ids());
    }
    assert_eq!(stream.changes.last().unwrap().reason(), RemoveReason::Filtered);
    for zones in [vec!["a b".to_owned()], vec![String::new()], vec!["z".to_owned(); 33]] {
        let refused = registry.fetch(FetchRequest { zones, ..fetch_of(&["web"]) }).await;
        assert_refused(refused, Code::InvalidArgument, &["zones"]);
    }
}

/// Only a registration changes tags. Fetch and Watch agree on which instances have them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_enters_and_leaves_what_is_asked_for_by_its_tags() {
    // S2.9
    let cluster = Cluster::start(1).await;
    let mut registry = cluster.registry(1);
    let owned = |tags: &[&str]| tags.iter().map(|tag| (*tag).to_owned()).collect::<Vec<_>>();
    let tagged = |id: &str, tags: &[&str]| {
        registration(vec![InstanceSpec { tags: owned(tags), ..spec("web", id) }])
    };
    registry.register(tagged("both", &["gpu", "canary", "gpu"])).await.unwrap();
    registry.register(tagged("one", &["canary"])).await.unwrap();
    registry.register(tagged("none", &[])).await.unwrap();
    let wanted = owned(&["canary", "gpu"]);
    let subscribe = WatchSubscribe { tags: wanted.clone(), ..subscribe_to(&["web"]) };
    let mut stream = Stream::open(&registry, subscribe).await.unwrap();
    stream.snapshot().await;
    assert_eq!(stream.ids(), ["both"]);
    assert_eq!(stream.map[&("web".to_owned(), "both".to_owned())].tags, ["canary", "gpu"]);
    let steps = [
        ("one", &["canary", "gpu", "arm"][..], Some(ChangeKind::Added)),
        ("none", &["gpu"], None),
        ("one", &["canary", "gpu"], Some(ChangeKind::Modified)),
        ("both", &["gpu"], Some(ChangeKind::Removed)),
    ];
    for (id, tags, kind) in steps {
        let answer = registry.register(tagged(id, tags)).await.unwrap().into_inner();
        let end = answer.header.unwrap().revision;
        if let Some(kind) = kind {
            stream.reach(end).await;
            let last = stream.changes.last().unwrap();
            assert_eq!((last.revision, last.kind()), (end, kind), "{id} {tags:?}");
            assert_eq!(last.instance.as_ref().unwrap().tags.len(), tags.len());
        }
        for limit in [0, 10] {
            let fetch = FetchRequest { tags: wanted.clone(), limit, ..fetch_of(&["web"]) };
            let found = registry.fetch(fetch).await.unwrap().into_inner();
            assert_eq!(ids(&found), stream.ids(), "in pages of {limit}");
        }
        // Services that are asked for whole are kept encoded: neither is given what was made for
        // the other.
        let whole = registry.fetch(fetch_of(&["web"])).await.unwrap().into_inner();
        assert_eq!(ids(&whole).len(), 3);
    }
    assert_eq!(stream.changes.last().unwrap().reason(), RemoveReason::Filtered);
    assert_eq!(stream.changes.len(), 3, "of the others nothing is sent");
    // An update leaves them.
    let end = set_weight(&mut registry, "web", "one", 7).await;
    stream.reach(end).await;
    assert_eq!(stream.ids(), ["one"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_enters_and_leaves_a_watch_by_its_effective_status() {
    // S2.9
    let cluster = Cluster::start(1).await;
    let (mut registry, mut admin) = (cluster.registry(1), cluster.admin(1));
    register(&mut registry, "web", "up").await;
    let mut starting = spec("web", "starting");
    starting.set_status(InstanceStatus::Starting);
    registry.register(registration(vec![starting])).await.unwrap();
    let mut subscribe = subscribe_to(&["web"]);
    subscribe.statuses = vec![InstanceStatus::Up.into()];
    let mut stream = Stream::open(&registry, subscribe).await.unwrap();
    stream.snapshot().await;
    assert_eq!(stream.ids(), ["up"]);

    let set = |status: InstanceStatus| UpdateRequest {
        instance: Some(named("web", "starting")),
        status: status.into(),
        ..UpdateRequest::default()
    };
    let steps = [
        (InstanceStatus::Up, Some(ChangeKind::Added)),
        (InstanceStatus::Draining, Some(ChangeKind::Removed)),
        (InstanceStatus::OutOfService, None),
        (InstanceStatus::Up, Some(ChangeKind::Added)),
    ];
    for (status, kind) in steps {
        let end = registry.update(set(status)).await.unwrap().into_inner().header.unwrap().revision;
        if let Some(kind) = kind {
            stream.reach(end).await;
            let last = stream.changes.last().unwrap();
            assert_eq!((last.revision, last.kind()), (end, kind), "{status:?}");
            if kind == ChangeKind::Removed {
                assert_eq!(last.reason(), RemoveReason::Filtered);
                assert_eq!(last.instance.as_ref().unwrap().status(), status);
            }
        }
    }
    let before = stream.changes.len();
    // What an operator says counts, as does its end.
    let decision =
        InstanceOverride { status: InstanceStatus::OutOfService.into(), ..Default::default() };
    let mut request = SetOverrideRequest {
        service: "web".to_owned(),
        id: "up".to_owned(),
        r#override: Some(decision),
        ..SetOverrideRequest::default()
    };
    admin.set_override(request.clone()).await.unwrap();
    stream.until("it leaves", |stream| stream.changes.len() > before).await;
    assert_eq!(stream.ids(), ["starting"]);
    request.r#override = None;
    let end = admin.set_override(request).await.unwrap().into_inner().header.unwrap().revision;
    stream.reach(end).await;
    assert_eq!(stream.ids(), ["starting", "up"]);
    let end = set_weight(&mut registry, "web", "up", 3).await;
    stream.reach(end).await;
    assert_eq!(stream.changes.last().unwrap().kind(), ChangeKind::Modified);
    let end = deregister(&mut registry, "web", "up").await;
    stream.reach(end).await;
    assert_eq!(stream.changes.last().unwrap().reason(), RemoveReason::Deregistered);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changes_nothing_wakes_nobody_and_bookmarks_move_the_position() {
    let tunables = Tunables { bookmark_ms: 200, ..Tunables::default() };
    let cluster = Cluster::start_with(1, tunables).await;
    let mut registry = cluster.registry(1);
    let first = register(&mut registry, "web", "a").await;
    let begin = first.header.as_ref().unwrap().revision;
    let mut stream = Stream::open(&registry, subscribe_to(&["web"])).await.unwrap();
    stream.snapshot().await;
    for _ in 0..5 {
        let again = register(&mut registry, "web", "a").await;
        assert_eq!(again.header.as_ref().unwrap().revision, begin, "no revision is raised");
        assert_eq!((again.lease_id, again.incarnation), (first.lease_id, first.incarnation));
        registry.renew(renewal([first.lease_id])).await.unwrap();
        set_weight(&mut registry, "web", "a", 100).await;
    }
    stream.until("two bookmarks", |stream| stream.bookmarks >= 2).await;
    assert_eq!((stream.deltas, stream.position), (0, begin), "no watcher was woken");

    // A bookmark stands for changes of what is not covered: a quiet receiver does not fall behind.
    let end = register(&mut registry, "other", "x").await.header.unwrap().revision;
    assert_eq!(end, begin + 1, "an idempotent call has no revision, so this one has the next");
    stream.reach(end).await;
    assert_eq!(stream.deltas, 0);
    let (took, ()) = timed(stream.until("three more", |stream| stream.bookmarks >= 6)).await;
    assert!(took < Duration::from_secs(5), "bookmarks keep their pace: {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_process_is_one_modification() {
    // S0.2, S0.3, S4.10
    let cluster = Cluster::start(3).await;
    let mut registry = cluster.registry(2);
    let first = register(&mut registry, "web", "a").await;
    let mut stream = Stream::open(&registry, subscribe_to(&["web"])).await.unwrap();
    stream.snapshot().await;
    stream.begin_after(first.header.as_ref().unwrap().revision).await;
    let again = RegisterRequest { incarnation: 2, ..registration(vec![spec("web", "a")]) };
    let again = registry.register(again).await.unwrap().into_inner();
    assert_ne!(again.lease_id, first.lease_id);
    stream.reach(again.header.unwrap().revision).await;
    assert_eq!(stream.kinds(), [ChangeKind::Modified]);
    let instance = stream.changes[0].instance.as_ref().unwrap();
    assert_eq!((instance.incarnation, instance.lease_id), (2, again.lease_id));
    assert_eq!(instance.create_revision, first.header.unwrap().revision);
    // The old lease is gone with what it kept; ending it ends nothing of the new one.
    let renewed = registry.renew(renewal([first.lease_id])).await;
    assert_refused(renewed, Code::NotFound, &[&first.lease_id.to_string()]);
    assert_eq!(fetch_all(&mut registry).await.1.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acks_are_taken_and_a_second_subscription_is_refused() {
    let cluster = Cluster::start(1).await;
    let mut registry = cluster.registry(1);
    let mut stream = Stream::open(&registry, subscribe_to(&["web"])).await.unwrap();
    stream.snapshot().await;
    for at in 0..20 {
        let id = format!("i{at}");
        let end = register(&mut registry, "web", &id).await.header.unwrap().revision;
        stream.reach(end).await;
        stream.ack().await;
    }
    // An ack of what was never sent does no harm either.
    stream.ask(Ask::Ack(WatchAck { revision: u64::MAX })).await;
    let end = register(&mut registry, "web", "last").await.header.unwrap().revision;
    stream.reach(end).await;
    stream.ask(Ask::Subscribe(subscribe_to(&["other"]))).await;
    let status = stream.end().await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains("subscribe"), "{status:?}");

    for first in [Some(Ask::Ack(WatchAck { revision: 1 })), None] {
        let refused = open_with(&mut registry, first).await;
        assert_refused(refused, Code::InvalidArgument, &["first message"]);
    }
}

/// What a subscription has stays as long as it does.
#[tokio::test]
async fn no_part_of_a_subscription_is_without_a_limit() {
    let cluster = Cluster::start(1).await;
    let mut registry = cluster.registry(1);
    let long = "a".repeat(254);
    let web = || subscribe_to(&["web"]);
    let many = vec!["web"; 1_001];
    for (subscribe, field) in [
        (WatchSubscribe { statuses: vec![2; 17], ..web() }, "statuses"),
        (WatchSubscribe { tags: vec!["t".to_owned(); 33], ..web() }, "tags"),
        (WatchSubscribe { zones: vec!["z".to_owned(); 33], ..web() }, "zones"),
        (WatchSubscribe { prefix: long.clone(), ..web() }, "prefix"),
        (WatchSubscribe { namespace: long, ..web() }, "namespace"),
        (subscribe_to(&many), "services"),
    ] {
        let refused = open_with(&mut registry, Some(Ask::Subscribe(subscribe))).await;
        assert_refused(refused, Code::InvalidArgument, &[field]);
    }
    let huge = WatchSubscribe { statuses: vec![2; 5 << 20], ..web() };
    let refused = open_with(&mut registry, Some(Ask::Subscribe(huge))).await;
    assert_refused(refused, Code::ResourceExhausted, &["the request"]);
}

async fn open_with(registry: &mut Registry, kind: Option<Ask>) -> Result<(), tonic::Status> {
    let requests = tokio_stream::iter([WatchRequest { kind }]);
    registry.watch(requests).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_half_closes_goes_on_receiving() {
    let cluster = Cluster::start(1).await;
    let mut registry = cluster.registry(1);
    let kind = Some(Ask::Subscribe(subscribe_to(&["web"])));
    let requests = tokio_stream::iter([WatchRequest { kind }]);
    let mut messages = registry.watch(requests).await.unwrap().into_inner();
    messages.message().await.unwrap().expect("a snapshot");
    register(&mut registry, "web", "a").await;
    let change = timeout(SOON, messages.message()).await.expect("a change").unwrap();
    assert!(change.is_some(), "the end of the asks is not the end of the watch");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_watcher_gets_the_latest_state_and_slows_nobody() {
    const INSTANCES: u32 = 40;
    const ROUNDS: u32 = 150;
    let cluster = Cluster::start(3).await;
    let follower = cluster.follower().await;
    let mut registry = cluster.registry(follower);
    // Large, so that what the transport buffers holds only a few of them.
    let fat = |at: u32, round: u32| {
        let mut spec = spec("web", &format!("i{at:02}"));
        spec.weight = Some(round);
        spec.metadata.insert("blob".to_owned(), "x".repeat(8_000));
        spec
    };
    let register_all = |round| registration((0..INSTANCES).map(|at| fat(at, round)).collect());
    let begin =
        registry.register(register_all(0)).await.unwrap().into_inner().header.unwrap().revision;
    let mut slow = Stream::open(&cluster.registry(follower), subscribe_to(&["web"])).await.unwrap();
    let mut quick =
        Stream::open(&cluster.registry(follower), subscribe_to(&["web"])).await.unwrap();
    slow.begin_after(begin).await;
    quick.begin_after(begin).await;
    let parts = slow.snapshots;
    let mut end = 0;
    for round in 1..=ROUNDS {
        // One instance comes and goes again in every round: a watcher that was not reading never
        // hears of it.
        register(&mut registry, "web", &format!("brief-{round}")).await;
        deregister(&mut registry, "web", &format!("brief-{round}")).await;
        let answer = registry.register(register_all(round)).await.unwrap().into_inner();
        end = answer.header.unwrap().revision;
        // Others are not held up: this one has everything while the slow one has not read a word.
        quick.reach(end).await;
    }
    let changes = u64::from(ROUNDS * (INSTANCES + 2));
    assert_eq!(end, begin + changes);
    assert_eq!(quick.revisions(), (begin + 1..=end).collect::<Vec<_>>());
    slow.reach(end).await;
    assert_eq!(slow.snapshots, parts, "coalesced, not begun anew");
    assert_eq!(slow.map, quick.map, "and it comes to the same end");
    assert_eq!(slow.map, fetch_all(&mut registry).await.1);
    let told = slow.changes.len() as u64;
    assert!(told < changes / 2, "{told} of {changes} changes were sent: nothing was coalesced");
    // From now on it is as good as any.
    let end = set_weight(&mut registry, "web", "i00", 7_777).await;
    slow.reach(end).await;
    assert_eq!(slow.revisions().last(), Some(&end));
}
