//! Reading: what each node answers, how fresh that is, and how long it takes when it cannot.

use std::cell::Cell;
use std::time::Duration;

use quorate_proto::v1::{
    FetchRequest, InstanceStatus, ListDependentsRequest, ListMembersRequest, ListServicesRequest,
    MemberRole, WatchRequest, WatchSubscribe, watch_request,
};
use tokio::time::{Instant, sleep};
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Request};

use super::calls::{
    assert_refused, assert_refused_late, deregister, fetch_all, fetch_of, ids, in_time, local,
    register, registration, set_weight, spec, timed, with_timeout,
};
use super::harness::{Cluster, SOON, eventually};
use super::stream::{self, subscribe_to_prefix};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_is_read_on_every_node_with_its_revision() {
    // S2.5, S3.1
    let cluster = Cluster::start(3).await;
    for turn in 0..30_u64 {
        let id = format!("i{turn:02}");
        let at = 1 + turn % 3;
        let header = register(&mut cluster.registry(at), "web", &id).await.header.unwrap();
        assert_eq!(header.node_id, at);
        for node in cluster.ids() {
            let mut registry = cluster.registry(node);
            let request = FetchRequest { min_revision: header.revision, ..fetch_of(&["web"]) };
            for request in [fetch_of(&["web"]), local(request.clone()), request] {
                let answer = registry.fetch(request).await.unwrap().into_inner();
                assert!(ids(&answer).contains(&id.as_str()), "{id} of {at} at {node}");
                let found = answer.header.unwrap();
                assert!(found.revision >= header.revision);
                assert_eq!((found.node_id, found.cluster_id), (node, header.cluster_id));
            }
        }
    }
    // All answer alike.
    let (revision, map) = fetch_all(&mut cluster.registry(1)).await;
    for node in [2, 3] {
        assert_eq!(fetch_all(&mut cluster.registry(node)).await, (revision, map.clone()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_that_does_not_come_is_told_within_the_deadline() {
    let cluster = Cluster::start(1).await;
    let mut registry = cluster.registry(1);
    register(&mut registry, "web", "a").await;
    let request = FetchRequest { min_revision: 1_000, ..fetch_of(&["web"]) };
    for request in [local(request.clone()), request] {
        let limit = Duration::from_secs(3);
        let fetch = async || registry.clone().fetch(with_timeout(request.clone(), limit)).await;
        let words = ["min_revision", "1000", "revision 1"];
        let took = assert_refused_late(fetch, Code::Unavailable, &words).await;
        assert!(took > limit / 2, "it is waited for: {took:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_that_no_node_can_have_is_refused_at_once() {
    let cluster = Cluster::start(3).await;
    let follower = cluster.follower().await;
    for node in [follower, cluster.leader().await] {
        let mut registry = cluster.registry(node);
        let header = register(&mut registry, "web", "a").await.header.unwrap();
        // A follower may answer for a write before it has applied it.
        let here = FetchRequest { min_revision: header.revision, ..fetch_of(&["web"]) };
        registry.fetch(here).await.unwrap();
        let request = FetchRequest { min_revision: 5_000_000, ..fetch_of(&["web"]) };
        for request in [local(request.clone()), request] {
            let (took, answer) = timed(registry.fetch(in_time(request))).await;
            assert_refused(answer, Code::OutOfRange, &["min_revision is 5000000", "revision 1"]);
            assert!(took < SOON / 2, "not waited for: {took:?}");
        }
        let (took, answer) = timed(registry.watch(from(5_000_000, SOON))).await;
        assert_refused(answer, Code::OutOfRange, &["from_revision is 5000000", "revision 1"]);
        assert!(took < SOON / 2, "not waited for: {took:?}");
        // Nearer ones are waited for, and the refusal names the field.
        let waited = async || registry.clone().watch(from(500_000, Duration::from_secs(3))).await;
        assert_refused_late(waited, Code::Unavailable, &["from_revision is 500000"]).await;
    }
}

/// A subscription that begins there, for which this time is given.
fn from(
    from_revision: u64,
    limit: Duration,
) -> Request<impl Stream<Item = WatchRequest> + Send + 'static> {
    let subscribe = WatchSubscribe { from_revision, ..WatchSubscribe::default() };
    let kind = Some(watch_request::Kind::Subscribe(subscribe));
    let asks = tokio_stream::once(WatchRequest { kind }).chain(tokio_stream::pending());
    with_timeout(asks, limit)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_sent_that_has_not_changed() {
    let cluster = Cluster::start(3).await;
    let follower = cluster.follower().await;
    let mut registry = cluster.registry(follower);
    register(&mut registry, "web", "a").await;
    register(&mut registry, "web", "b").await;
    let since = register(&mut registry, "api", "a").await.header.unwrap().revision;
    let ask =
        |services: &[&str], since| FetchRequest { not_modified_since: since, ..fetch_of(services) };
    let fetch = async |request: FetchRequest| {
        cluster.registry(follower).fetch(request).await.unwrap().into_inner()
    };
    let same = fetch(ask(&["web", "api"], since)).await;
    assert!(same.not_modified && same.services.is_empty());
    assert_eq!(same.header.unwrap().revision, since);
    assert!(!fetch(ask(&["web", "api"], since - 1)).await.not_modified, "api is newer");
    assert!(fetch(ask(&["web"], since - 1)).await.not_modified, "web is not");
    // What comes back to where it was has changed all the same; an unknown service has not changed.
    set_weight(&mut registry, "web", "a", 1).await;
    set_weight(&mut registry, "web", "a", 100).await;
    assert!(!fetch(ask(&["web"], since)).await.not_modified);
    assert!(fetch(ask(&["none"], since)).await.not_modified);
    deregister(&mut registry, "api", "a").await;
    assert!(!fetch(ask(&["api"], since)).await.not_modified, "the last one left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_services_come_in_the_order_asked_and_prefixes_by_name() {
    let cluster = Cluster::start(1).await;
    let mut registry = cluster.registry(1);
    for (service, id) in [("web", "b"), ("web", "a"), ("api", "x"), ("api-2", "y"), ("db", "z")] {
        register(&mut registry, service, id).await;
    }
    let mut draining = spec("web", "c");
    draining.set_status(InstanceStatus::Draining);
    registry.register(registration(vec![draining])).await.unwrap();
    deregister(&mut registry, "db", "z").await;

    let answer = registry.fetch(fetch_of(&["web", "none", "db", "api"])).await.unwrap();
    let answer = answer.into_inner();
    let found: Vec<_> = answer
        .services
        .iter()
        .map(|s| (s.name.as_str(), s.known, s.revision, s.instances.len()))
        .collect();
    // S0.10: unknown is not the same as empty.
    let expected =
        [("web", true, 6, 3), ("none", false, 0, 0), ("db", true, 7, 0), ("api", true, 3, 1)];
    assert_eq!(found, expected);
    assert_eq!(ids(&answer), ["a", "b", "c", "x"], "instances come by id");

    let only_up = FetchRequest { statuses: vec![2], ..fetch_of(&["web", "db"]) };
    let answer = registry.fetch(only_up).await.unwrap().into_inner();
    assert_eq!(ids(&answer), ["a", "b"]);
    let two = FetchRequest { statuses: vec![2, 3], ..fetch_of(&["web"]) };
    assert_eq!(registry.fetch(two).await.unwrap().into_inner().services[0].instances.len(), 3);
    let nobody = FetchRequest { statuses: vec![1], ..fetch_of(&["web"]) };
    let answer = registry.fetch(nobody).await.unwrap().into_inner();
    assert!(answer.services[0].known && answer.services[0].instances.is_empty());

    let prefix = |prefix: &str| FetchRequest { prefix: prefix.to_owned(), ..Default::default() };
    let mut names = Vec::new();
    for text in ["", "api", "api-", "zzz"] {
        let answer = registry.fetch(prefix(text)).await.unwrap().into_inner();
        names.push(answer.services.into_iter().map(|s| s.name).collect::<Vec<_>>());
    }
    assert_eq!(names[0], ["api", "api-2", "db", "web"]);
    assert_eq!(names[1], ["api", "api-2"]);
    assert_eq!(names[2], ["api-2"]);
    assert!(names[3].is_empty());
    // Twice the same name is one service each time, or once: but the order stays.
    let twice = registry.fetch(fetch_of(&["web", "api", "web"])).await.unwrap().into_inner();
    let twice: Vec<_> = twice.services.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(twice, ["web", "api", "web"], "one for each name, in the order asked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_do_not_see_each_other() {
    // S2.3
    let cluster = Cluster::start(1).await;
    let mut registry = cluster.registry(1);
    register(&mut registry, "web", "a").await;
    let mut request = registration(vec![spec("web", "a"), spec("api", "b")]);
    request.namespace = "staging".to_owned();
    registry.register(request).await.unwrap();
    let fetch = |namespace: &str| FetchRequest {
        namespace: namespace.to_owned(),
        ..FetchRequest::default()
    };
    let mut found = Vec::new();
    for namespace in ["", "default", "staging", "other"] {
        let answer = registry.fetch(fetch(namespace)).await.unwrap().into_inner();
        found.push(answer.services.into_iter().map(|s| s.name).collect::<Vec<_>>());
    }
    assert_eq!(found[0], ["web"]);
    assert_eq!(found[1], ["web"], "empty means default");
    assert_eq!(found[2], ["api", "web"]);
    assert!(found[3].is_empty());
    deregister(&mut registry, "web", "a").await;
    assert_eq!(registry.fetch(fetch("staging")).await.unwrap().into_inner().services.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_services_come_in_pages() {
    let cluster = Cluster::start(3).await;
    let follower = cluster.follower().await;
    let mut registry = cluster.registry(follower);
    let specs = (0..250).map(|at| spec(&format!("s{at:03}"), "a")).collect();
    registry.register(registration(specs)).await.unwrap();
    register(&mut registry, "other", "a").await;
    let mut draining = spec("s007", "b");
    draining.set_status(InstanceStatus::Draining);
    registry.register(registration(vec![draining])).await.unwrap();
    let mut request = ListServicesRequest {
        prefix: "s".to_owned(),
        limit: 100,
        ..ListServicesRequest::default()
    };
    let mut pages = Vec::new();
    let mut names = Vec::new();
    loop {
        let page = registry.list_services(request.clone()).await.unwrap().into_inner();
        pages.push(page.services.len());
        for service in &page.services {
            let two = service.name == "s007";
            let counts = (service.instances, service.up, service.usable);
            assert_eq!(counts, (if two { 2 } else { 1 }, 1, 1));
        }
        names.extend(page.services.into_iter().map(|service| service.name));
        if page.next.is_empty() {
            break;
        }
        request.after = page.next;
    }
    assert_eq!(pages, [100, 100, 50]);
    assert_eq!(names, (0..250).map(|at| format!("s{at:03}")).collect::<Vec<_>>());
    // A page that ends with the last name has no next one; no limit is the largest.
    (request.after, request.limit) = ("s149".to_owned(), 100);
    let page = registry.list_services(request.clone()).await.unwrap().into_inner();
    assert_eq!((page.services.len(), page.next.as_str()), (100, ""));
    (request.after, request.limit) = (String::new(), 0);
    let page = registry.list_services(request).await.unwrap().into_inner();
    assert_eq!((page.services.len(), page.next.as_str()), (250, ""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_depends_on_a_service_is_told() {
    // S4.1
    let cluster = Cluster::start(3).await;
    let mut registry = cluster.registry(1);
    let requires = |service: &str, id: &str, requires: &[&str]| {
        let mut spec = spec(service, id);
        spec.requires = requires.iter().map(ToString::to_string).collect();
        spec
    };
    let specs = vec![
        requires("web", "b", &["db", "cache"]),
        requires("web", "a", &["db"]),
        requires("api", "z", &["db"]),
        requires("api", "y", &["cache"]),
    ];
    let revision = registry.register(registration(specs)).await.unwrap().into_inner();
    let ask = |service: &str| ListDependentsRequest {
        service: service.to_owned(),
        min_revision: revision.header.as_ref().unwrap().revision,
        ..ListDependentsRequest::default()
    };
    let found = async |node, service: &str| {
        let answer = cluster.registry(node).list_dependents(ask(service)).await.unwrap();
        let all = answer.into_inner().instances.into_iter();
        all.map(|i| format!("{}/{}", i.service, i.id)).collect::<Vec<_>>()
    };
    for node in cluster.ids() {
        assert_eq!(found(node, "db").await, ["api/z", "web/a", "web/b"]);
        assert_eq!(found(node, "cache").await, ["api/y", "web/b"]);
        assert!(found(node, "web").await.is_empty(), "need not be registered, nor depended on");
    }
    registry.register(registration(vec![requires("web", "b", &["cache"])])).await.unwrap();
    deregister(&mut registry, "api", "z").await;
    assert_eq!(found(1, "db").await, ["web/a"]);
    assert_refused(registry.list_dependents(ask("")).await, Code::InvalidArgument, &["service"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_reads_go_on_without_a_quorum_and_tell_their_age() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
    let (survivor, stopped) = (others[0], others[1]);
    register(&mut cluster.registry(survivor), "web", "a").await;
    eventually("it is fresh, with a leader in sight", || async {
        let answer = cluster.registry(survivor).fetch(local(fetch_of(&["web"]))).await.ok()?;
        (answer.into_inner().header?.age_ms < 1_000).then_some(())
    })
    .await;
    let exact = cluster.registry(survivor).fetch(fetch_of(&["web"])).await.unwrap().into_inner();
    assert_eq!(exact.header.unwrap().age_ms, 0, "a linearizable read has no age");
    cluster.stop(stopped).await;
    cluster.stop(leader).await;

    let mut registry = cluster.registry(survivor);
    let mut last_ms = 0;
    let quickest = Cell::new(SOON);
    eventually("the age grows past two seconds", || async {
        let mut registry = cluster.registry(survivor);
        let (took, answer) = timed(registry.fetch(local(fetch_of(&["web"])))).await;
        let answer = answer.expect("local reads go on").into_inner();
        assert_eq!(ids(&answer), ["a"]);
        quickest.set(quickest.get().min(took));
        (answer.header.unwrap().age_ms > 2_000).then_some(())
    })
    .await;
    assert!(quickest.get() < Duration::from_millis(500), "at once: {quickest:?}");
    for _ in 0..3 {
        let answer = registry.fetch(local(fetch_of(&["web"]))).await.unwrap().into_inner();
        let age_ms = answer.header.unwrap().age_ms;
        assert!(age_ms >= last_ms, "{age_ms} after {last_ms}");
        last_ms = age_ms;
    }
    // Everything else fails in time, and says what is wrong.
    let limit = Duration::from_secs(3);
    let (read, written) = (fetch_of(&["web"]), registration(vec![spec("web", "b")]));
    for _ in 0..2 {
        let fetch = async || registry.clone().fetch(with_timeout(read.clone(), limit)).await;
        let write = async || registry.clone().register(with_timeout(written.clone(), limit)).await;
        let fetched = assert_refused_late(fetch, Code::Unavailable, &[]);
        tokio::join!(fetched, assert_refused_late(write, Code::Unavailable, &[]));
    }
    // Without a deadline of its own, a call gets the node's: 5 s.
    let (took, answer) = timed(registry.fetch(fetch_of(&["web"]))).await;
    assert_refused(answer, Code::Unavailable, &[]);
    assert!((Duration::from_millis(4_500)..SOON).contains(&took), "{took:?}");
    // A restart in a minority: what is on disk is still there to be read, and the node does not
    // know how old it is.
    cluster.stop(survivor).await;
    cluster.restart(survivor).await;
    let answer = eventually("local reads after a restart", || async {
        let answer = cluster.registry(survivor).fetch(local(fetch_of(&["web"]))).await;
        Some(answer.ok()?.into_inner())
    })
    .await;
    assert_eq!(ids(&answer), ["a"]);
    assert_eq!(answer.header.unwrap().age_ms, u64::MAX, "it has heard of no leader yet");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_tells_the_same_members() {
    let cluster = Cluster::start(3).await;
    let first = cluster.members(1).await;
    assert_eq!(first.iter().map(|m| m.id).collect::<Vec<_>>(), [1, 2, 3]);
    for member in &first {
        assert_eq!(member.client_address, cluster.client_address(member.id));
        assert_eq!(member.peer_address, cluster.peer_address(member.id));
        assert_eq!(member.role(), MemberRole::Voter);
    }
    for node in cluster.ids() {
        let mut registry = cluster.registry(node);
        let answer = registry.list_members(ListMembersRequest {}).await.unwrap().into_inner();
        assert_eq!(answer.members, first);
        let header = answer.header.unwrap();
        let leader = cluster.leader().await;
        assert_eq!((header.leader_id, header.node_id), (leader, node));
        assert_eq!(header.leader_address, cluster.client_address(leader));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lagging_node_waits_before_it_answers_from_the_past() {
    let cluster = Cluster::start_cuttable(3, Default::default()).await;
    let leader = cluster.leader().await;
    let lagging = cluster.follower().await;
    let mut at_lagging = cluster.registry(lagging);
    register(&mut at_lagging, "web", "a").await;
    assert_eq!(fetch_all(&mut at_lagging).await.1.len(), 1);
    cluster.cut_off(lagging);
    let header = register(&mut cluster.registry(leader), "web", "b").await.header.unwrap();
    // The node refuses a tenth of this before the caller gives up: half a second, for a busy
    // machine.
    let limit = Duration::from_secs(5);
    let newer = FetchRequest { min_revision: header.revision, ..fetch_of(&["web"]) };
    let refused = [fetch_of(&["web"]), newer.clone(), local(newer)].map(|request| {
        let mut registry = at_lagging.clone();
        async move {
            let answer = registry.fetch(with_timeout(request, limit)).await;
            assert_refused(answer, Code::Unavailable, &[]);
        }
    });
    futures_util::future::join_all(refused).await;
    // A caller that accepts that gets what there is, and how old it may be.
    let answer = at_lagging.fetch(local(fetch_of(&["web"]))).await.unwrap().into_inner();
    assert_eq!(ids(&answer), ["a"]);
    let old = answer.header.unwrap();
    assert!(old.age_ms >= 1_000 && old.revision < header.revision, "{old:?}");
    let mut again = at_lagging.clone();
    let reading = again.fetch(fetch_of(&["web"]));
    let (answer, ()) = tokio::join!(reading, async { cluster.reconnect(lagging) });
    assert_eq!(ids(&answer.unwrap().into_inner()), ["a", "b"]);
}

/// A leader and one follower that agree are a quorum of three, and none of five.
// S3.1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_through_a_follower_take_a_quorum() {
    for size in [3, 5] {
        let mut cluster = Cluster::start_freezable(size).await;
        let leader = cluster.leader().await;
        let mut others = cluster.ids();
        others.retain(|id| *id != leader);
        let mut registry = cluster.registry(others.remove(0));
        let revision = register(&mut registry, "web", "a").await.header.unwrap().revision;
        others.iter().for_each(|id| cluster.freeze(*id));
        let limit = if size == 3 { SOON } else { Duration::from_secs(2) };
        let read = async || registry.clone().fetch(with_timeout(fetch_of(&["web"]), limit)).await;
        match size {
            3 => assert_eq!(read().await.unwrap().into_inner().header.unwrap().revision, revision),
            _ => drop(assert_refused_late(read, Code::Unavailable, &["quorum"]).await),
        }
        others.iter().for_each(|id| cluster.thaw(*id));
        eventually("reads go on", || async { read().await.ok() }).await;
    }
}

/// What a node reads when it goes on again was sent while it stood still: it says nothing of now.
// S3.1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stood_still_tells_no_age_that_is_too_young() {
    let mut cluster = Cluster::start_freezable(3).await;
    let leader = cluster.leader().await;
    let stands = cluster.follower().await;
    let (mut at_leader, at_stands) = (cluster.registry(leader), cluster.registry(stands));
    register(&mut at_leader, "web", "a").await;
    eventually("it learns how fresh it is", || async {
        let answer = at_stands.clone().fetch(local(fetch_of(&["web"]))).await.ok()?.into_inner();
        (answer.header?.age_ms < 1_000).then_some(())
    })
    .await;
    for round in 0..3 {
        cluster.freeze(stands);
        let revision =
            register(&mut at_leader, "web", &format!("b{round}")).await.header.unwrap().revision;
        let acknowledged = Instant::now();
        // Heartbeats wait for it meanwhile.
        sleep(Duration::from_millis(1_500)).await;
        cluster.thaw(stands);
        eventually("it has caught up", || async {
            let asked = acknowledged.elapsed().as_millis() as u64;
            let answer = at_stands.clone().fetch(local(fetch_of(&["web"]))).await.ok()?;
            let header = answer.into_inner().header?;
            let caught_up = header.revision >= revision;
            assert!(caught_up || header.age_ms >= asked, "{asked} ms after it: {header:?}");
            caught_up.then_some(())
        })
        .await;
    }
}

/// What the leader sends takes long, what the follower sends does not: so a message does not show
/// how long it was under way.
// S3.1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_hears_its_leader_late_tells_no_age_that_is_too_young() {
    let cluster = Cluster::start_cuttable(3, Default::default()).await;
    let leader = cluster.leader().await;
    let late = cluster.follower().await;
    let (mut at_leader, mut at_late) = (cluster.registry(leader), cluster.registry(late));
    // With the longer one, no connection lives: its pings are not answered in time.
    for (delay_ms, writes) in [(800, 8), (2_000, 2)] {
        let delay = Duration::from_millis(delay_ms);
        cluster.delay(late, delay, Duration::ZERO);
        cluster.delay(leader, Duration::ZERO, delay);
        let (mut acknowledged, mut last) = (Vec::new(), u64::MAX);
        for write in 0..writes {
            let id = format!("b{delay_ms}-{write}");
            let header = register(&mut at_leader, "web", &id).await.header.unwrap();
            acknowledged.push((header.revision, Instant::now()));
            let next = Instant::now() + Duration::from_millis(700);
            while Instant::now() < next {
                let asked = Instant::now();
                let read = at_late.fetch(local(fetch_of(&["web"]))).await.unwrap().into_inner();
                let watch = stream::Stream::open(&at_late, subscribe_to_prefix(""));
                let mut watch = watch.await.unwrap();
                watch.snapshot().await;
                for header in [read.header.unwrap(), watch.header.unwrap()] {
                    let lacks = |(revision, at): &&(u64, Instant)| {
                        *revision > header.revision && *at < asked
                    };
                    let age = acknowledged.iter().find(lacks).map(|(_, at)| asked - *at);
                    let age_ms = age.unwrap_or_default().as_millis() as u64;
                    assert!(header.age_ms >= age_ms, "at least {age_ms} ms old: {header:?}");
                    last = header.age_ms;
                }
                sleep(Duration::from_millis(20)).await;
            }
        }
        assert!(delay_ms > 800 || last < 4_000, "it learns how fresh it is: {last}");
    }
}
