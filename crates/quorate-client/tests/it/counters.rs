//! What a client counts: each counter moves when its thing happens, and not before.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_client::{Client, ClientBuilder, Counters, InstanceBuilder, Registration};
use quorate_proto::v1::{Instance, InstanceStatus};

use crate::fake::{Fake, Mode, until, within};

/// Nothing is late on a busy machine.
fn builder(fakes: &[Fake]) -> ClientBuilder {
    Client::builder(fakes.iter().map(Fake::address))
        .in_order(true)
        .member_refresh(None)
        .attempt_timeout(Duration::from_secs(20))
        .call_timeout(Duration::from_secs(60))
}

fn put(fake: &Fake, id: &str) {
    let (service, id) = ("s".to_owned(), id.to_owned());
    let status = InstanceStatus::Up as i32;
    fake.state().put(Instance { service, id, status, ..Instance::default() });
}

fn registration(ttl: Duration) -> Registration {
    Registration::new(InstanceBuilder::new("s", "me").endpoint("http", "http://h:1")).ttl(ttl)
}

/// The counters that are not 0.
fn moved(counters: Counters) -> BTreeMap<&'static str, u64> {
    counters.all().filter(|(_, count)| *count > 0).collect()
}

/// Those that have moved since: all of them, and none of them by less.
fn since(before: Counters, after: Counters) -> BTreeMap<&'static str, u64> {
    let (before, after) = (before.all(), after.all());
    let more = before.zip(after).map(|((name, before), (_, after))| (name, after - before));
    more.filter(|(_, more)| *more > 0).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_and_why_they_were_tried_again_are_counted() {
    let mut fakes = Fake::cluster(2);
    put(&fakes[0], "a");
    let client = builder(&fakes).build().unwrap();
    assert_eq!(moved(client.counters()), BTreeMap::new());
    client.fetch("s").await.unwrap();
    assert_eq!(moved(client.counters()), [("calls", 1)].into());

    let step = |before| since(before, client.counters());
    let before = client.counters();
    fakes[0].set(Mode::Unavailable);
    client.fetch("s").await.unwrap();
    assert_eq!(step(before), [("calls", 1), ("retries_unavailable", 1), ("rotations", 1)].into());
    let before = client.counters();
    fakes[0].set(Mode::Honest);
    fakes[1].set(Mode::Broken);
    client.fetch("s").await.unwrap();
    assert_eq!(step(before), [("calls", 1), ("retries_other", 1), ("rotations", 1)].into());
    let before = client.counters();
    fakes[0].set(Mode::Refusing);
    client.fetch("s").await.unwrap_err();
    assert_eq!(step(before), [("calls", 1), ("calls_failed", 1)].into());

    // On a busy machine the other node may be late, too.
    fakes[0].set(Mode::Hang);
    fakes[1].set(Mode::Honest);
    let hasty = builder(&fakes).attempt_timeout(Duration::from_millis(300)).build().unwrap();
    hasty.fetch("s").await.unwrap();
    let counts = hasty.counters();
    assert_eq!((counts.calls, counts.calls_failed), (1, 0));
    assert!(counts.retries_late >= 1 && counts.rotations >= 1, "{counts:?}");

    fakes.iter_mut().for_each(Fake::kill);
    let in_vain = builder(&fakes).call_timeout(Duration::from_secs(2)).build().unwrap();
    in_vain.fetch("s").await.unwrap_err();
    let counts = in_vain.counters();
    assert_eq!((counts.calls, counts.calls_failed), (1, 1));
    assert!(counts.retries_unavailable >= 2, "both, and again: {counts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_token_is_one_retry() {
    let fakes = Fake::cluster(1);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "secret-1\n").unwrap();
    fakes[0].state().wanted_token = Some("secret-1");
    put(&fakes[0], "a");
    let client = builder(&fakes).token_file(&file).build().unwrap();
    client.fetch("s").await.unwrap();
    std::fs::write(&file, "secret-2\n").unwrap();
    fakes[0].state().wanted_token = Some("secret-2");
    client.fetch("s").await.unwrap();
    assert_eq!(moved(client.counters()), [("calls", 2), ("retries_token", 1)].into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registrations_renewals_and_what_became_of_leases_are_counted() {
    let mut fakes = Fake::cluster(1);
    let client = builder(&fakes).build().unwrap();
    let handle = client.register(registration(Duration::from_millis(600))).await.unwrap();
    until("it renews", || client.counters().renewals >= 2).await;
    let counters = client.counters();
    assert_eq!((counters.registrations, counters.reregistrations), (1, 0));
    assert_eq!(counters.leases_lost, 0);
    handle.set_weight(7).await.unwrap();
    let counters = client.counters();
    assert_eq!((counters.registrations, counters.reregistrations), (2, 0), "it was there");

    fakes[0].state().expire_all();
    until("it is back", || client.counters().reregistrations == 1).await;
    assert_eq!((client.counters().registrations, client.counters().leases_lost), (3, 1));
    fakes[0].kill();
    until("a renewal fails", || client.counters().renewals_failed >= 1).await;
    fakes[0].state().found_again(8);
    fakes[0].restart();
    until("it is with the other one", || client.counters().reregistrations == 2).await;
    assert_eq!(client.counters().cluster_changes, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_and_how_they_went_on_are_counted() {
    let fakes = Fake::cluster(1);
    put(&fakes[0], "a");
    let client = builder(&fakes).build().unwrap();
    assert_eq!(client.counters().view_age, None, "no view");
    let view = client.discover("s").unwrap();
    within(view.synced()).await;
    let counters = client.counters();
    assert_eq!(moved(counters), [("streams", 1)].into());
    assert!(counters.view_age.unwrap() < Duration::from_secs(60), "{counters:?}");

    fakes[0].state().end_watches();
    until("it goes on", || client.counters().streams_resumed == 1).await;
    let expected = [("streams", 1), ("streams_interrupted", 1), ("streams_resumed", 1)];
    assert_eq!(since(counters, client.counters()), expected.into());
    // What came meanwhile cannot be had any more.
    fakes[0].state().log.clear();
    put(&fakes[0], "b");
    fakes[0].state().log.clear();
    fakes[0].state().end_watches();
    until("it begins anew", || client.counters().resets == 1).await;
    assert_eq!((client.counters().streams, client.counters().streams_interrupted), (3, 2));
    assert_eq!(client.counters().streams_resumed, 1);
    drop(view);
    until("no view is left", || client.counters().view_age.is_none()).await;
}

/// A connection that comes to its end in good order is no fault of its node: calls that meet the
/// end are made again, and the client stays with the node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_meets_the_end_of_its_connection_is_made_again_and_nobody_is_blamed() {
    // Each with a registry, and a count, of its own.
    let mut fakes = [Fake::cluster(1), Fake::cluster(1)].map(|mut fakes| fakes.remove(0));
    put(&fakes[0], "a");
    fakes[0].end_connections_at(Duration::from_millis(200));
    // Time enough that no attempt is late on a busy machine.
    let wait = Duration::from_secs(20);
    let client = builder(&fakes).attempt_timeout(wait).call_timeout(wait * 2).build().unwrap();
    let callers = (0..16).map(|_| {
        let client = client.clone();
        tokio::spawn(async move {
            let begun = std::time::Instant::now();
            while begun.elapsed() < Duration::from_secs(60) && client.counters().retries_other < 3 {
                client.fetch("s").await.unwrap();
            }
        })
    });
    futures_util::future::try_join_all(callers).await.unwrap();
    let counts = moved(client.counters());
    assert!(counts.contains_key("retries_other"), "no call met an end: {counts:?}");
    assert_eq!(counts.get("rotations"), None, "{counts:?}");
    assert_eq!(counts.get("calls_failed"), None, "{counts:?}");
    assert_eq!(fakes[1].calls("fetch"), 0, "{counts:?}");
}
