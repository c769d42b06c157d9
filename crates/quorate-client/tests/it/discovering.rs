//! Live views: one stream for all, no change missed or seen twice, nothing lost to failures; the
//! cache; the audit.

use std::path::Path;
use std::time::Duration;

use quorate_client::{
    Client, ClientBuilder, Discovery, DiscoveryEvent, Error, Health, Origin, Selector,
};
use quorate_proto::v1::{Instance, InstanceStatus, RemoveReason};

use crate::fake::{Fake, Mode, until, within};

/// Nothing is late on a busy machine.
fn builder(fakes: &[Fake]) -> ClientBuilder {
    Client::builder(fakes.iter().map(Fake::address))
        .in_order(true)
        .member_refresh(None)
        .attempt_timeout(Duration::from_secs(20))
        .call_timeout(Duration::from_secs(60))
}

async fn client(fakes: &[Fake]) -> Client {
    builder(fakes).build().unwrap()
}

/// With a cache, and without patience for a registry that is not there.
fn cached(fakes: &[Fake], dir: &Path) -> Client {
    let builder = builder(fakes).call_timeout(Duration::from_millis(500));
    builder.cache_dir(dir).build().unwrap()
}

fn instance(service: &str, id: &str, weight: u32) -> Instance {
    Instance {
        service: service.to_owned(),
        id: id.to_owned(),
        status: InstanceStatus::Up as i32,
        weight,
        ..Instance::default()
    }
}

fn put(fake: &Fake, service: &str, id: &str, weight: u32) {
    fake.state().put(instance(service, id, weight));
}

fn remove(fake: &Fake, service: &str, id: &str) {
    let key = (service.to_owned(), id.to_owned());
    assert!(fake.state().remove(&key, RemoveReason::Deregistered));
}

fn shown(view: &Discovery) -> Vec<String> {
    view.current().iter().map(|instance| format!("{}{}", instance.id, instance.weight)).collect()
}

#[tokio::test]
async fn a_view_follows_and_an_empty_one_says_why() {
    // S0.10, S1.9, S1.11
    let fakes = Fake::cluster(1);
    let client = client(&fakes).await;
    let mut view = client.discover("s").unwrap();
    assert_eq!(view.current().origin(), Origin::Nowhere);
    assert!(matches!(view.usable_now(), Err(Error::Unreachable { .. })));
    assert!(
        matches!(view.usable().await, Err(Error::UnknownService { service }) if service == "s")
    );
    put(&fakes[0], "s", "a", 1);
    until("it is shown", || shown(&view) == ["a1"]).await;
    assert_eq!(view.usable().await.unwrap().get("a").unwrap().weight, 1);
    assert!(view.age().unwrap() < Duration::from_secs(5));
    let draining = Instance { status: InstanceStatus::Draining as i32, ..instance("s", "a", 1) };
    let all = client.discover(Selector::service("s").statuses([])).unwrap();
    within(all.synced()).await;
    within(view.changed()).await;
    fakes[0].state().put(draining);
    assert!(within(view.changed()).await.is_empty());
    assert!(matches!(view.usable().await, Err(Error::NoInstances { .. })));
    until("a view of all sees it", || shown(&all) == ["a1"]).await;
    for bad in ["", "-s", "s s", &"s".repeat(254)] {
        assert!(matches!(client.discover(bad), Err(Error::InvalidName { .. })), "{bad:?}");
    }
}

#[tokio::test]
async fn what_fails_its_checks_is_left_out_until_it_passes_again() {
    // S4.9
    let fakes = Fake::cluster(1);
    let client = client(&fakes).await;
    put(&fakes[0], "s", "a", 1);
    put(&fakes[0], "s", "b", 1);
    let view = client.discover("s").unwrap();
    let all = client.discover(Selector::service("s").healths([])).unwrap();
    until("both are shown", || shown(&view).len() == 2 && shown(&all).len() == 2).await;
    let mut listener = view.listen();
    for id in ["a", "b"] {
        let event = within(listener.next()).await;
        assert!(matches!(&event, DiscoveryEvent::Added(i) if i.id == id), "{event:?}");
    }
    let found = |id, health| Instance { health: health as i32, ..instance("s", id, 1) };
    fakes[0].state().put(found("a", Health::Critical));
    let event = within(listener.next()).await;
    assert!(matches!(&event, DiscoveryEvent::Removed { instance, .. } if instance.id == "a"));
    assert_eq!((shown(&view), shown(&all).len()), (vec!["b1".to_owned()], 2));
    let fetched = client.fetch("s").await.unwrap();
    assert_eq!(fetched.instances.iter().map(|i| i.id.as_str()).collect::<Vec<_>>(), ["b"]);

    fakes[0].state().put(found("b", Health::Critical));
    until("none is left", || view.current().is_empty()).await;
    assert!(matches!(view.usable().await, Err(Error::NoInstances { .. })));
    assert!(matches!(client.fetch("s").await, Err(Error::NoInstances { .. })));
    fakes[0].state().put(found("a", Health::Passing));
    until("it is back", || shown(&view) == ["a1"]).await;
}

#[tokio::test]
async fn views_share_a_stream_and_a_new_one_interrupts_nobody() {
    // S2.7, S4.2
    let fakes = Fake::cluster(1);
    put(&fakes[0], "s", "a", 0);
    let client = client(&fakes).await;
    let first = client.discover("s").unwrap();
    let mut listener = first.listen();
    within(first.synced()).await;
    let mut others = Vec::new();
    for round in 1..=20_u32 {
        // Changes before, while and after a service is added: each is seen once.
        put(&fakes[0], "s", "a", round * 2 - 1);
        put(&fakes[0], &format!("t{round}"), "x", round);
        others.push(client.discover(format!("t{round}").as_str()).unwrap());
        put(&fakes[0], "s", "a", round * 2);
        let added = &others[others.len() - 1];
        until("it is shown", || shown(added) == [format!("x{round}")]).await;
        if round == 10 {
            fakes[0].state().end_watches();
        }
    }
    until("the first is up to date", || shown(&first) == ["a40"]).await;
    let mut told = Vec::new();
    while told.last() != Some(&40) {
        match within(listener.next()).await {
            DiscoveryEvent::Added(a) | DiscoveryEvent::Updated(a) => told.push(a.weight),
            other => panic!("{other:?}"),
        }
    }
    assert!(told.is_sorted_by(|a, b| a < b), "in order, none twice: {told:?}");
    until("one stream is left for 21 services", || fakes[0].state().watchers_of(0) == 1).await;
    drop((first, listener, others, client));
    until("the stream ends with the client and its views", || fakes[0].state().watchers_of(0) == 0)
        .await;
}

/// A view that takes another one's place is filled, whatever arrives for that one meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_that_replaces_another_is_whole() {
    // S2.7, S0.13
    let fakes = Fake::cluster(1);
    let name = |round: u32| format!("s{round}");
    for round in 0..=150 {
        (0..3).for_each(|id| put(&fakes[0], &name(round), &format!("i{id}"), 1));
    }
    let client = client(&fakes).await;
    let mut view = client.discover(name(0).as_str()).unwrap();
    within(view.synced()).await;
    for round in 1..=150_u32 {
        let (old, new) = (&*name(round - 1), &*name(round));
        for weight in 0..5 {
            put(&fakes[0], old, "i0", round * 10 + weight);
        }
        view = client.discover(new).unwrap();
        for weight in 5..10 {
            put(&fakes[0], old, "i0", round * 10 + weight);
            put(&fakes[0], new, "i0", round * 10 + weight);
            tokio::task::yield_now().await;
        }
        let shown = within(view.usable()).await.unwrap();
        assert_eq!(shown.len(), 3, "{new} in round {round}: {shown:?}");
    }
}

#[tokio::test]
async fn a_listener_that_reads_along_is_told_the_exact_history() {
    // S2.12, S4.3
    let fakes = Fake::cluster(2);
    let client = client(&fakes).await;
    let view = client.discover("s").unwrap();
    within(view.synced()).await;
    let mut listener = view.listen();
    for round in 0..300_u32 {
        let id = ["a", "b", "c"][(round % 3) as usize];
        match round % 9 {
            6..=8 => remove(&fakes[0], "s", id),
            _ => put(&fakes[0], "s", id, round),
        }
        let told = match within(listener.next()).await {
            DiscoveryEvent::Added(i) => format!("+{}{}", i.id, i.weight),
            DiscoveryEvent::Updated(i) => format!("~{}{}", i.id, i.weight),
            DiscoveryEvent::Removed { instance, reason } => {
                assert_eq!(reason, RemoveReason::Deregistered);
                format!("-{}", instance.id)
            }
            other => panic!("{other:?}"),
        };
        let expected = match round % 9 {
            0..=2 => format!("+{id}{round}"),
            3..=5 => format!("~{id}{round}"),
            _ => format!("-{id}"),
        };
        assert_eq!(told, expected, "round {round}");
        if round % 50 == 49 {
            fakes[0].state().end_watches();
        }
    }
}

#[tokio::test]
async fn failures_never_make_a_view_smaller() {
    // S0.13, S0.14, S3.4, S1.12
    let mut fakes = Fake::cluster(2);
    put(&fakes[0], "s", "a", 1);
    let client = client(&fakes).await;
    let view = client.discover("s").unwrap();
    within(view.synced()).await;
    let mut listener = view.listen();
    for round in 2..20_u32 {
        let node = (round % 2) as usize;
        match round % 3 {
            0 => fakes[node].kill(),
            1 => fakes[node].set(Mode::Unavailable),
            _ => fakes[node].set(Mode::Broken),
        }
        fakes[0].state().end_watches();
        assert_eq!(shown(&view), [format!("a{}", round - 1)], "what was known stays");
        put(&fakes[1], "s", "a", round);
        until("it goes on at the other node", || shown(&view) == [format!("a{round}")]).await;
        fakes[node].restart();
    }
    fakes.iter_mut().for_each(Fake::kill);
    let age = || view.age().unwrap();
    until("its age grows", || age() > Duration::from_millis(100)).await;
    assert_eq!(shown(&view), ["a19"]);
    assert_eq!(view.usable().await.unwrap().len(), 1);
    // Nor for a moment: there were far fewer changes than a listener keeps one by one.
    let mut told = Vec::new();
    while told.last() != Some(&19) {
        match within(listener.next()).await {
            DiscoveryEvent::Added(a) if told.is_empty() => told.push(a.weight),
            DiscoveryEvent::Updated(a) => told.push(a.weight),
            other => panic!("after {told:?}: {other:?}"),
        }
    }
    assert_eq!(told, (1..20).collect::<Vec<_>>());
}

/// The cache says what there was, and a list that was empty says nothing of who is there now.
#[tokio::test]
async fn an_empty_list_from_the_cache_is_no_answer() {
    // S0.10, S3.4
    let dir = tempfile::tempdir().unwrap();
    let mut fakes = Fake::cluster(1);
    put(&fakes[0], "s", "a", 1);
    let before = cached(&fakes, dir.path());
    let view = before.discover("s").unwrap();
    let file = dir.path().join("default/s.cache");
    until("it is written", || file.exists()).await;
    let full = std::fs::read(&file).unwrap();
    remove(&fakes[0], "s", "a");
    until("it is written again", || std::fs::read(&file).unwrap() != full).await;
    drop((view, before));
    fakes[0].kill();

    let during = cached(&fakes, dir.path());
    let view = during.discover("s").unwrap();
    assert_eq!(within(view.synced()).await.origin(), Origin::Cache);
    for answer in [view.usable().await, view.usable_now()] {
        assert!(matches!(answer, Err(Error::Unreachable { .. })), "{answer:?}");
    }
    fakes[0].restart();
    put(&fakes[0], "s", "b", 2);
    until("the registry's word", || shown(&view) == ["b2"]).await;
    assert_eq!(view.usable().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_start_without_the_registry_begins_with_the_cache() {
    // S0.17
    let dir = tempfile::tempdir().unwrap();
    let mut fakes = Fake::cluster(1);
    put(&fakes[0], "s", "a", 1);
    let before = cached(&fakes, dir.path());
    let view = before.discover("s").unwrap();
    within(view.synced()).await;
    let file = dir.path().join("default/s.cache");
    until("it is written", || file.exists()).await;
    drop((view, before));
    fakes[0].kill();

    let during = cached(&fakes, dir.path());
    let view = during.discover("s").unwrap();
    let mut listener = view.listen();
    let instances = within(view.usable()).await.unwrap();
    assert_eq!((instances.origin(), shown(&view)), (Origin::Cache, vec!["a1".to_owned()]));
    assert!(view.age().is_none(), "the registry has not been reached");
    assert!(matches!(within(listener.next()).await, DiscoveryEvent::Added(_)));
    fakes[0].restart();
    put(&fakes[0], "s", "b", 2);
    until("the registry's word", || shown(&view) == ["a1", "b2"]).await;
    assert_eq!(view.current().origin(), Origin::Registry);
    let told = within(listener.next()).await;
    assert!(matches!(&told, DiscoveryEvent::Added(b) if b.id == "b"), "only what is new: {told:?}");
    drop((view, listener, during));
    fakes[0].kill();

    std::fs::write(&file, b"QRTCACH1 but then nonsense").unwrap();
    let after = cached(&fakes, dir.path());
    let view = after.discover("s").unwrap();
    assert!(matches!(within(view.usable()).await, Err(Error::Unreachable { .. })));
    assert_eq!(after.counters().bad_cache_files, 1);
}

#[tokio::test]
async fn views_go_on_while_an_audit_waits() {
    // S2.6
    let fakes = Fake::cluster(1);
    put(&fakes[0], "s", "a", 1);
    // Each attempt of the audit hangs for this long.
    let builder = builder(&fakes).attempt_timeout(Duration::from_millis(200));
    let client = builder.audit_interval(Duration::from_millis(20)).build().unwrap();
    let view = client.discover("s").unwrap();
    within(view.synced()).await;
    until("some audits", || fakes[0].calls("fetch") >= 3).await;
    // The stream that is there goes on.
    fakes[0].set(Mode::Hang);
    let asked = fakes[0].calls("fetch");
    until("the audit hangs", || fakes[0].calls("fetch") > asked + 1).await;
    put(&fakes[0], "s", "a", 2);
    until("the change is shown", || shown(&view) == ["a2"]).await;
    let added = client.discover("t").unwrap();
    fakes[0].set(Mode::Honest);
    within(added.synced()).await;
    assert_eq!(client.counters().divergences, 0);
}

#[tokio::test]
async fn the_audit_finds_and_repairs_a_difference() {
    // S2.6
    let fakes = Fake::cluster(1);
    put(&fakes[0], "s", "a", 1);
    let client = builder(&fakes).audit_interval(Duration::from_millis(50)).build().unwrap();
    let view = client.discover("s").unwrap();
    within(view.synced()).await;
    until("some audits", || fakes[0].calls("fetch") >= 3).await;
    assert_eq!(client.counters().divergences, 0, "no false alarm");
    // A change that no watcher is sent.
    let key = ("s".to_owned(), "a".to_owned());
    fakes[0].state().instances.get_mut(&key).unwrap().weight = 9;
    until("it is repaired", || shown(&view) == ["a9"]).await;
    assert_eq!(client.counters().divergences, 1);
}

#[tokio::test]
async fn the_audit_reads_in_pages_what_one_answer_cannot_hold() {
    // S2.6
    let fakes = Fake::cluster(1);
    for (service, id) in [("s", "a"), ("s", "b"), ("s", "c"), ("t", "a")] {
        put(&fakes[0], service, id, 1);
    }
    fakes[0].state().page_of = 2;
    let client = builder(&fakes).audit_interval(Duration::from_millis(50)).build().unwrap();
    let (view, other) = (client.discover("s").unwrap(), client.discover("t").unwrap());
    within(view.synced()).await;
    within(other.synced()).await;
    until("some audits", || fakes[0].calls("fetch") >= 9).await;
    assert_eq!(client.counters().divergences, 0, "no false alarm");
    let key = ("s".to_owned(), "c".to_owned());
    fakes[0].state().instances.get_mut(&key).unwrap().weight = 9;
    until("it is repaired", || shown(&view) == ["a1", "b1", "c9"]).await;
    assert_eq!(client.counters().divergences, 1);
}
