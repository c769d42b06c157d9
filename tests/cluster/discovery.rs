//! Live views of the client crate over real nodes.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_client::{
    Client, Discovery, DiscoveryEvent, Error, FetchOptions, InstanceBuilder, InstanceStatus,
    Selection, Selector, Update, WatchStatus,
};
use tokio::time::timeout;

use super::harness::{Cluster, SOON, eventually};

fn instance(id: &str) -> InstanceBuilder {
    InstanceBuilder::new("web", id).endpoint("http", "http://h:1")
}

/// Views, watches and reads of one client agree on which instances have the tags. // S2.9
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_sees_who_has_the_tags_that_it_asks_for() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let view = client.discover(Selector::service("web").tag("canary")).unwrap();
    let selection = Selection::service("web").tags(["gpu", "canary"]);
    let watch = client.watch(selection.clone());
    let _both = client.register(instance("both").tags(["canary", "gpu"])).await.unwrap();
    let _none = client.register(instance("none")).await.unwrap();
    let _one = client.register(instance("one").tag("canary")).await.unwrap();
    let shown = || view.current().iter().map(|i| i.id.clone()).collect::<Vec<_>>();
    let watched = || watch.snapshot().iter().map(|i| i.id.clone()).collect::<Vec<_>>();
    eventually("the view has both", || async { (shown() == ["both", "one"]).then_some(()) }).await;
    eventually("the watch has one", || async { (watched() == ["both"]).then_some(()) }).await;
    let fetched = client.fetch_with(&FetchOptions::new(selection)).await.unwrap();
    let fetched = fetched.services.unwrap().remove(0).instances;
    assert_eq!(fetched.iter().map(|i| i.id.as_str()).collect::<Vec<_>>(), ["both"]);
    // Another run of the process, without one of them.
    let newer = cluster.client().await;
    let _both = newer.register(instance("both").tag("gpu")).await.unwrap();
    eventually("it left the view", || async { (shown() == ["one"]).then_some(()) }).await;
    eventually("it left the watch", || async { watched().is_empty().then_some(()) }).await;
}

/// Ten thousand changes, views that come in the middle of them, and nodes that are left. // S2.7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_changes_and_every_view_ends_the_same() {
    const WRITERS: u32 = 20;
    const CHANGES: u32 = 500;
    let cluster = Cluster::start(3).await;
    let reader = cluster.client().await;
    let view = reader.discover(Selector::service("web").statuses([])).unwrap();
    let mut listener = view.listen();
    timeout(SOON, view.synced()).await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let client = cluster.client_builder().call_timeout(SOON).build().unwrap();
        writers.spawn(async move { churn(&client, writer, CHANGES).await });
    }
    let mut mirror: BTreeMap<String, u32> = BTreeMap::new();
    let mut late = Vec::new();
    let mut done = 0;
    while done < WRITERS as usize {
        tokio::select! {
            event = listener.next() => note(&mut mirror, event),
            ended = writers.join_next() => {
                ended.unwrap().unwrap();
                done += 1;
                late.push(reader.discover(Selector::service("web").statuses([])).unwrap());
            }
        }
    }
    let all = FetchOptions::new(Selection::service("web"));
    let truth = reader.fetch_with(&all).await.unwrap().services.unwrap().remove(0);
    let truth: BTreeMap<_, _> = truth.instances.into_iter().map(|i| (i.id, i.weight)).collect();
    assert_eq!(truth.len(), WRITERS as usize);
    while mirror != truth {
        let event = timeout(SOON, listener.next()).await.expect("what is missing");
        note(&mut mirror, event);
    }
    for view in late.iter().chain([&view]) {
        eventually("every view is the cluster's", || async {
            let shown: BTreeMap<_, _> =
                view.current().iter().map(|i| (i.id.clone(), i.weight)).collect();
            (shown == truth).then_some(())
        })
        .await;
    }
    assert_eq!(reader.counters().divergences, 0);
}

async fn churn(client: &Client, writer: u32, changes: u32) {
    let id = format!("w{writer}");
    let handle = client.register(instance(&id).weight(0)).await.unwrap();
    for change in 1..changes {
        let status = [InstanceStatus::Up, InstanceStatus::Draining][(change % 2) as usize];
        handle.update(Update::new().weight(change).status(status)).await.unwrap();
    }
    // Left to its lease, which outlives the test.
    drop(handle);
}

/// As an application would, which trusts every event.
fn note(mirror: &mut BTreeMap<String, u32>, event: DiscoveryEvent) {
    match event {
        DiscoveryEvent::Added(i) => assert!(mirror.insert(i.id.clone(), i.weight).is_none()),
        DiscoveryEvent::Updated(i) => {
            let before = mirror.insert(i.id.clone(), i.weight);
            assert!(before.is_some_and(|before| before < i.weight), "in order, none twice");
        }
        DiscoveryEvent::Removed { instance, .. } => {
            assert!(mirror.remove(&instance.id).is_some());
        }
        other => panic!("{other:?}"),
    }
}

/// Loads reach callers, from the registration on, through every way to change an instance.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loads_are_seen_by_callers() {
    // S0.9
    let cluster = Cluster::start(3).await;
    let (owner, caller) = (cluster.client().await, cluster.client().await);
    let view = caller.discover("web").unwrap();
    let shows = |load: u32| {
        let view = &view;
        eventually("the load is shown", move || async move {
            view.current().get("a").is_some_and(|a| a.load == load).then_some(())
        })
    };
    let handle = owner.register(instance("a").load(7)).await.unwrap();
    shows(7).await;
    handle.set_load(1_000_000).await.unwrap();
    shows(1_000_000).await;
    let too_much = handle.set_load(1_000_001).await;
    assert!(matches!(too_much, Err(Error::Rejected { .. })), "{too_much:?}");
    owner.update("web", "a", &Update::new().load(3)).await.unwrap();
    shows(3).await;
    handle.set_weight(5).await.unwrap();
    let a = view.current().get("a").cloned().unwrap();
    assert!(a.load == 3 || a.load == 1_000_000, "never none: {}", a.load);
    handle.set_load(0).await.unwrap();
    shows(0).await;
    handle.deregister().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_do_not_see_each_other() {
    // S2.3
    let cluster = Cluster::start(1).await;
    let here = cluster.client().await;
    let there = cluster.client_builder().namespace("there").build().unwrap();
    let views = [
        here.discover("web").unwrap(),
        here.discover(Selector::service("web").namespace("there")).unwrap(),
        there.discover("web").unwrap(),
    ];
    for view in &views {
        timeout(SOON, view.synced()).await.unwrap();
    }
    let _a = here.register(instance("a")).await.unwrap();
    let _b = there.register(instance("b")).await.unwrap();
    for (view, expected) in views.iter().zip(["a", "b", "b"]) {
        eventually("what is of its namespace", || async {
            let ids: Vec<_> = view.current().iter().map(|i| i.id.clone()).collect();
            (ids == [expected]).then_some(())
        })
        .await;
    }
}

/// A node is added while a service changes: some views follow there from then on, and none misses a
/// change or gets one twice. // S1.2, S2.7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_move_to_a_node_that_is_added() {
    const VIEWS: usize = 40;
    let mut cluster = Cluster::start(3).await;
    let owner = cluster.client().await;
    let handle = owner.register(instance("a").weight(1)).await.unwrap();
    let mut views = Vec::new();
    for _ in 0..VIEWS {
        let builder = cluster.client_builder().member_refresh(Some(Duration::from_millis(300)));
        let client = builder.build().unwrap();
        let view = client.discover("web").unwrap();
        timeout(SOON, view.synced()).await.unwrap();
        let listener = view.listen();
        views.push((view, listener, client));
    }
    cluster.add_joining(4, false).await;
    let new = cluster.client_address(4).to_owned();
    let mut weight = 1;
    // One in 100,000 times, no view moves.
    while !views.iter().any(|(view, ..)| is_at(view, &new)) {
        weight += 1;
        assert!(weight < 1_000, "no view moves to {new}");
        handle.set_weight(weight).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    handle.set_weight(weight + 1).await.unwrap();
    for (view, listener, client) in &mut views {
        let mut expected = 1;
        while expected <= weight + 1 {
            match timeout(SOON, listener.next()).await.expect("a change is missing") {
                DiscoveryEvent::Added(i) | DiscoveryEvent::Updated(i) => {
                    assert_eq!(i.weight, expected, "in order, none twice");
                }
                other => panic!("{other:?}"),
            }
            expected += 1;
        }
        eventually("it follows a node", || async {
            matches!(view.status(), WatchStatus::Following { .. }).then_some(())
        })
        .await;
        assert_eq!(client.counters().divergences, 0);
    }
}

fn is_at(view: &Discovery, node: &str) -> bool {
    matches!(view.status(), WatchStatus::Following { address, .. } if address == node)
}
