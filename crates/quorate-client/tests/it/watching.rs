//! Watches: snapshots, gaps, resets, dying nodes, slow readers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use quorate_client::{
    Client, ClientBuilder, Code, Error, RemoveReason, Selection, Selector, View, Watch, WatchEvent,
    WatchStatus,
};
use quorate_proto::v1::{Change, ChangeKind, Instance};
use tokio::time::{sleep, timeout};

use crate::fake::{Fake, Mode, State, delta, leader, snapshot, until, with_header, within};

/// Nothing is late on a busy machine.
fn builder(fakes: &[Fake]) -> ClientBuilder {
    Client::builder(fakes.iter().map(Fake::address))
        .in_order(true)
        .member_refresh(None)
        .attempt_timeout(Duration::from_secs(20))
}

async fn watch(fakes: &[Fake]) -> Watch {
    let watch = builder(fakes).build().unwrap().watch("s");
    within(watch.synced()).await.unwrap();
    watch
}

fn instance(id: &str, weight: u32) -> Instance {
    let (service, id) = ("s".to_owned(), id.to_owned());
    Instance { service, id, weight, ..Instance::default() }
}

fn put(fake: &Fake, id: &str, weight: u32) {
    fake.state().put(instance(id, weight));
}

fn remove(fake: &Fake, id: &str) {
    fake.state().remove(&("s".to_owned(), id.to_owned()), RemoveReason::Deregistered);
}

/// "a1 b2": the instances with their weights.
fn short(view: &View) -> String {
    let words = view.iter().map(|i| format!("{}{}", i.id, i.weight));
    words.collect::<Vec<_>>().join(" ")
}

fn short_state(state: &State) -> String {
    let words = state.instances.values().map(|i| format!("{}{}", i.id, i.weight));
    words.collect::<Vec<_>>().join(" ")
}

async fn next(watch: &mut Watch) -> String {
    match within(watch.next()).await {
        None => "end".to_owned(),
        Some(WatchEvent::Snapshot(view)) => format!("snapshot {}", short(&view)),
        Some(WatchEvent::Reset { cluster_id, .. }) => format!("reset {}", cluster_id.get()),
        Some(WatchEvent::Added(i)) => format!("+{}{}", i.id, i.weight),
        Some(WatchEvent::Modified(i)) => format!("~{}{}", i.id, i.weight),
        Some(WatchEvent::Removed { instance, reason, .. }) => {
            format!("-{} {reason:?}", instance.id)
        }
        Some(other) => panic!("{other:?}"),
    }
}

async fn is_silent(watch: &mut Watch) -> bool {
    timeout(Duration::from_millis(50), watch.next()).await.is_err()
}

#[tokio::test]
async fn a_snapshot_and_then_each_change_once() {
    // S2.7, S2.9, S0.12
    let fakes = Fake::cluster(1);
    put(&fakes[0], "a", 1);
    put(&fakes[0], "b", 1);
    let mut watch = watch(&fakes).await;
    assert_eq!(next(&mut watch).await, "snapshot a1 b1");
    put(&fakes[0], "c", 1);
    assert_eq!(next(&mut watch).await, "+c1");
    put(&fakes[0], "a", 2);
    assert_eq!(next(&mut watch).await, "~a2");
    remove(&fakes[0], "b");
    assert_eq!(next(&mut watch).await, "-b Deregistered");
    assert_eq!(short(&watch.snapshot()), "a2 c1");
    assert!(is_silent(&mut watch).await);
    until("the last revision is acknowledged", || fakes[0].state().acks.last() == Some(&5)).await;
}

#[tokio::test]
async fn changes_wake_those_who_only_look_at_the_view() {
    let fakes = Fake::cluster(1);
    let mut watch = builder(&fakes).build().unwrap().watch(Selection::prefix(""));
    let view = within(watch.changed()).await.unwrap();
    assert!(view.is_synced() && view.is_empty());
    put(&fakes[0], "a", 1);
    assert_eq!(short(&within(watch.changed()).await.unwrap()), "a1");
    assert_eq!(fakes[0].state().subscriptions[0].services.len(), 0);
}

#[tokio::test]
async fn it_goes_on_where_it_was_after_a_node_died() {
    // S0.14, S2.7
    let mut fakes = Fake::cluster(2);
    put(&fakes[0], "a", 1);
    let mut watch = watch(&fakes).await;
    assert_eq!(next(&mut watch).await, "snapshot a1");
    assert_eq!(fakes[1].state().watchers_of(0), 1);
    fakes[0].kill();
    put(&fakes[1], "b", 1);
    remove(&fakes[1], "a");
    assert_eq!(next(&mut watch).await, "+b1");
    assert_eq!(next(&mut watch).await, "-a Deregistered");
    let subscriptions = fakes[1].state().subscriptions.clone();
    let last = subscriptions.last().unwrap();
    assert_eq!((last.from_revision, last.cluster_id), (1, crate::fake::CLUSTER));
    assert!(is_silent(&mut watch).await, "nothing twice");
}

#[tokio::test]
async fn a_reset_tells_the_difference_only() {
    let fakes = Fake::cluster(2);
    for id in ["a", "b", "c"] {
        put(&fakes[0], id, 1);
    }
    let mut watch = watch(&fakes).await;
    assert_eq!(next(&mut watch).await, "snapshot a1 b1 c1");
    fakes[0].state().end_watches();
    {
        let mut state = fakes[0].state();
        state.put(instance("c", 2));
        state.put(instance("d", 1));
        state.remove(&("s".to_owned(), "a".to_owned()), RemoveReason::Expired);
        state.log.clear();
    }
    let told = [next(&mut watch).await, next(&mut watch).await, next(&mut watch).await];
    assert_eq!(told, ["-a Unspecified", "~c2", "+d1"]);
    assert!(is_silent(&mut watch).await, "b did not change");
    assert_eq!(short(&watch.snapshot()), "b1 c2 d1");
}

#[tokio::test]
async fn a_gap_is_repaired_by_subscribing_again() {
    // S4.3
    let fakes = Fake::cluster(1);
    put(&fakes[0], "a", 1);
    let mut watch = watch(&fakes).await;
    assert_eq!(next(&mut watch).await, "snapshot a1");
    // The message of "b" gets lost: the next begins at revision 2, and this watch is at 1.
    let ended = {
        let mut state = fakes[0].state();
        let added = |revision, id: &str| Change {
            revision,
            kind: ChangeKind::Added as i32,
            instance: Some(instance(id, 1)),
            reason: 0,
        };
        state.log.push(added(2, "b"));
        state.log.push(added(3, "c"));
        state.instances.insert(("s".to_owned(), "b".to_owned()), instance("b", 1));
        state.instances.insert(("s".to_owned(), "c".to_owned()), instance("c", 1));
        state.revision = 3;
        state.send_raw(&delta(2, vec![added(3, "c")]));
        state.subscriptions.len()
    };
    assert_eq!(next(&mut watch).await, "+b1");
    assert_eq!(next(&mut watch).await, "+c1");
    let state = fakes[0].state();
    assert_eq!(state.subscriptions.len(), ended + 1);
    assert_eq!(state.subscriptions[ended].from_revision, 1);
}

#[tokio::test]
async fn a_snapshot_that_breaks_off_is_not_shown() {
    // S0.13: half a snapshot is not the truth.
    let fakes = Fake::cluster(1);
    for id in ["a", "b"] {
        put(&fakes[0], id, 1);
    }
    let half = [instance("a", 1)];
    let broken = vec![snapshot(2, false, false, half.iter())];
    fakes[0].state().scripts.push_back(broken);
    let watch = builder(&fakes).build().unwrap().watch("s");
    let follows = || matches!(watch.status(), WatchStatus::Following { .. });
    // What says so comes with the half, which has time to be shown then.
    until("the half is there", follows).await;
    sleep(Duration::from_millis(50)).await;
    assert!(!watch.snapshot().is_synced());
    fakes[0].state().end_watches();
    let view = within(watch.synced()).await.unwrap();
    assert_eq!(short(&view), "a1 b1");
    // The same with a reset in the middle of its life: the old view stays until the new one is
    // whole.
    let broken = vec![snapshot(9, true, false, half.iter())];
    let subscribed = {
        let mut state = fakes[0].state();
        state.scripts.push_back(broken);
        state.end_watches();
        state.subscriptions.len()
    };
    until("it is followed again", || fakes[0].state().subscriptions.len() > subscribed).await;
    until("the half is there", follows).await;
    sleep(Duration::from_millis(50)).await;
    assert_eq!(short(&watch.snapshot()), "a1 b1");
}

#[tokio::test]
async fn failures_never_shrink_the_view() {
    // S0.13, S3.4
    let mut fakes = Fake::cluster(1);
    put(&fakes[0], "a", 1);
    let hasty = builder(&fakes).attempt_timeout(Duration::from_millis(200));
    let mut watch = hasty.build().unwrap().watch("s");
    assert_eq!(next(&mut watch).await, "snapshot a1");
    let mut status = watch.watch_status();
    let interrupted = |status: &WatchStatus| matches!(status, WatchStatus::Interrupted { .. });
    for mode in [Mode::Unavailable, Mode::Broken, Mode::Hang] {
        fakes[0].set(mode);
        fakes[0].state().end_watches();
        within(status.wait_for(interrupted)).await.unwrap();
        assert_eq!(short(&watch.snapshot()), "a1", "{mode:?}");
        fakes[0].set(Mode::Honest);
        let following = |status: &WatchStatus| matches!(status, WatchStatus::Following { .. });
        within(status.wait_for(following)).await.unwrap();
    }
    fakes[0].kill();
    within(status.wait_for(interrupted)).await.unwrap();
    assert_eq!(short(&watch.snapshot()), "a1");
    assert!(is_silent(&mut watch).await);
}

#[tokio::test]
async fn a_refused_subscription_says_so_and_ends() {
    let fakes = Fake::cluster(1);
    let client = builder(&fakes).build().unwrap();
    let nothing: [&str; 0] = [];
    let mut watch = client.watch(Selection::services(nothing));
    let refused = within(watch.changed()).await;
    assert!(matches!(refused, Err(Error::Rejected { code: Code::InvalidArgument, .. })));
    assert!(matches!(within(watch.synced()).await, Err(Error::Rejected { .. })));
    assert_eq!(next(&mut watch).await, "end");
}

#[tokio::test]
async fn a_node_that_falls_silent_is_left() {
    let fakes = Fake::cluster(2);
    put(&fakes[0], "a", 1);
    let client = builder(&fakes).watch_idle_timeout(Duration::from_secs(1)).build().unwrap();
    let watch = client.watch("s");
    within(watch.synced()).await.unwrap();
    until("it goes to the other", || fakes[0].state().watchers_of(1) == 1).await;
}

/// It lost its leader and found it again: the watch stays. It lost it for good: the watch goes.
#[tokio::test]
async fn a_node_that_loses_its_leader_for_good_is_left() {
    let fakes = Fake::cluster(2);
    put(&fakes[0], "a", 1);
    let leaderless = Duration::from_secs(2);
    let builder = builder(&fakes).watch_idle_timeout(Duration::from_secs(600));
    let watch = builder.leaderless_timeout(leaderless).build().unwrap().watch("s");
    within(watch.synced()).await.unwrap();
    let mut status = watch.watch_status();
    let has = |wanted: bool| move |status: &WatchStatus| matches!(status, WatchStatus::Following { has_leader, .. } if *has_leader == wanted);
    fakes[0].state().send_raw(&leader(0));
    within(status.wait_for(has(false))).await.unwrap();
    fakes[0].state().send_raw(&leader(1));
    within(status.wait_for(has(true))).await.unwrap();
    sleep(leaderless + Duration::from_millis(200)).await;
    assert_eq!(fakes[0].state().subscriptions.len(), 1, "it stays");
    fakes[0].state().send_raw(&leader(0));
    until("it left", || fakes[0].state().subscriptions.len() > 1).await;
}

#[tokio::test]
async fn a_node_without_a_leader_from_the_beginning_is_left() {
    let fakes = Fake::cluster(2);
    put(&fakes[0], "a", 1);
    let script = [with_header(snapshot(1, false, true, [instance("a", 1)].iter()), 0)];
    let builder = builder(&fakes).watch_idle_timeout(Duration::from_secs(600));
    let client = builder.leaderless_timeout(Duration::from_millis(50)).build().unwrap();
    {
        // The fake sends scripts with a leader of its own choice; this one goes as it is.
        let mut state = fakes[0].state();
        state.scripts.push_back(Vec::new());
    }
    let watch = client.watch("s");
    until("it has subscribed", || fakes[0].state().watchers_of(0) == 1).await;
    fakes[0].state().send_raw(&script[0]);
    within(watch.synced()).await.unwrap();
    until("it goes to the other", || fakes[0].state().watchers_of(1) == 1).await;
}

/// A reader that does not read costs the others nothing, and comes to the same end.
#[tokio::test]
async fn a_slow_reader_loses_nothing_but_what_is_outdated() {
    // S2.12
    let fakes = Fake::cluster(1);
    put(&fakes[0], "a", 0);
    let mut watch = watch(&fakes).await;
    assert_eq!(next(&mut watch).await, "snapshot a0");
    for weight in 1..=300 {
        put(&fakes[0], "a", weight);
        put(&fakes[0], "b", weight);
    }
    remove(&fakes[0], "a");
    put(&fakes[0], "passing", 1);
    remove(&fakes[0], "passing");
    let last = fakes[0].state().revision;
    until("the view is up to date", || watch.snapshot().revision() == last).await;
    assert_eq!([next(&mut watch).await, next(&mut watch).await], ["+b300", "-a Deregistered"]);
    assert!(is_silent(&mut watch).await);
}

#[tokio::test]
async fn the_snapshot_event_is_the_newest_and_no_event_repeats_it() {
    let fakes = Fake::cluster(1);
    put(&fakes[0], "a", 1);
    let mut watch = watch(&fakes).await;
    put(&fakes[0], "b", 1);
    until("b is seen", || watch.snapshot().len() == 2).await;
    assert_eq!(next(&mut watch).await, "snapshot a1 b1");
    assert!(is_silent(&mut watch).await);
}

/// The node that is watched dies again and again; after each death the client converges, and its
/// events add up to the truth, with none twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_deaths() {
    // S0.14, S2.7
    let mut fakes = Fake::cluster(3);
    put(&fakes[0], "a", 0);
    let mut watch = watch(&fakes).await;
    let mut told = BTreeMap::from([("a".to_owned(), 0)]);
    assert_eq!(next(&mut watch).await, "snapshot a0");
    for death in 1..=100_u32 {
        let watched = |fakes: &[Fake]| {
            let state = fakes[0].state();
            (0..3).find(|node| state.watchers_of(*node) > 0)
        };
        until("it follows somewhere", || watched(&fakes).is_some()).await;
        if let Some(node) = watched(&fakes) {
            fakes[node].restart();
        }
        put(&fakes[0], &format!("i{}", death % 7), death);
        if death % 4 == 0 {
            remove(&fakes[0], &format!("i{}", (death + 3) % 7));
        }
        if death % 10 == 0 {
            fakes[0].state().log.clear();
        }
        let truth = fakes[0].state().revision;
        until("the view is up to date", || watch.snapshot().revision() >= truth).await;
        assert_eq!(short(&watch.snapshot()), short_state(&fakes[0].state()), "death {death}");
        while let Ok(Some(event)) = timeout(Duration::ZERO, watch.next()).await {
            match event {
                WatchEvent::Added(i) => assert!(told.insert(i.id.clone(), i.weight).is_none()),
                WatchEvent::Modified(i) => assert_ne!(told.insert(i.id.clone(), i.weight), None),
                WatchEvent::Removed { instance, .. } => {
                    assert!(told.remove(&instance.id).is_some());
                }
                other => panic!("{other:?}"),
            }
        }
        let told = told.iter().map(|(id, weight)| format!("{id}{weight}"));
        assert_eq!(told.collect::<Vec<_>>().join(" "), short(&watch.snapshot()));
    }
}

#[tokio::test]
async fn an_outage_costs_few_subscriptions() {
    // S2.8, S3.8
    let fakes = Fake::cluster(1);
    put(&fakes[0], "a", 1);
    let _watch = watch(&fakes).await;
    // A node that accepts every subscription and ends it at once.
    let begun = Instant::now();
    let subscriptions = || fakes[0].state().subscriptions.len();
    until("it subscribes again", || {
        fakes[0].state().end_watches();
        begun.elapsed() >= Duration::from_secs(1) && subscriptions() >= 2
    })
    .await;
    let (subscriptions, took) = (subscriptions(), begun.elapsed());
    assert!(subscriptions < 25, "{subscriptions} subscriptions in {took:?}");
}

#[tokio::test]
async fn a_registry_that_lost_its_state_is_read_anew() {
    let fakes = Fake::cluster(1);
    fakes[0].state().revision = 2_000_000;
    put(&fakes[0], "a", 1);
    let client = builder(&fakes).build().unwrap();
    let (mut watch, view) =
        (client.watch("s"), client.discover(Selector::service("s").statuses([])).unwrap());
    assert_eq!(next(&mut watch).await, "snapshot a1");
    within(view.synced()).await;
    {
        // As after a restore of a backup: the same cluster, and it is not as far.
        let mut state = fakes[0].state();
        state.revision = 0;
        state.instances.clear();
        state.log.clear();
        state.put(instance("b", 2));
        state.end_watches();
    }
    assert_eq!(next(&mut watch).await, "-a Unspecified");
    assert_eq!(next(&mut watch).await, "+b2");
    until("the view shows it", || view.current().iter().map(|i| i.id.as_str()).eq(["b"])).await;
    put(&fakes[0], "b", 3);
    assert_eq!(next(&mut watch).await, "~b3");
}
