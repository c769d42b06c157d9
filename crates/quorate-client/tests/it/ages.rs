//! How old a view is: what its node says of what it sends, for the services that it sends.

use std::time::Duration;

use quorate_client::{Client, ClientBuilder, Discovery, Selector, WatchStatus};
use quorate_proto::v1::Instance;

use crate::fake::{Fake, aged, leader, snapshot, until, within};

const HOUR: Duration = Duration::from_secs(3_600);
const MINUTE: Duration = Duration::from_secs(60);
/// What a node says that does not know.
const UNKNOWN: Duration = Duration::from_millis(u64::MAX);

/// No node is left for being late or silent, also on a busy machine.
fn builder(fakes: &[Fake]) -> ClientBuilder {
    Client::builder(fakes.iter().map(Fake::address))
        .in_order(true)
        .member_refresh(None)
        .attempt_timeout(Duration::from_secs(20))
        .call_timeout(Duration::from_secs(60))
        .watch_idle_timeout(Duration::from_secs(600))
}

fn view(client: &Client) -> Discovery {
    client.discover(Selector::service("s").statuses([])).unwrap()
}

fn put(fake: &Fake, id: &str) {
    let (service, id) = ("s".to_owned(), id.to_owned());
    fake.state().put(Instance { service, id, ..Instance::default() });
}

/// The next stream begins with all that there is, as a node sends it that has heard of nothing for
/// so long.
fn begins_with(fake: &Fake, age: Duration) {
    let mut state = fake.state();
    let all = snapshot(state.revision, false, true, state.instances.values());
    state.scripts.push_back(vec![aged(all, age)]);
}

/// A node that gets no entries still has a leader, and sends its bookmarks.
#[tokio::test]
async fn a_view_is_as_old_as_its_node_says() {
    let fakes = Fake::cluster(1);
    put(&fakes[0], "a");
    begins_with(&fakes[0], HOUR);
    let client = builder(&fakes).build().unwrap();
    let view = view(&client);
    within(view.synced()).await;
    assert!(view.age().unwrap() >= HOUR, "{:?}", view.age());
    for age in [HOUR + MINUTE, HOUR + 2 * MINUTE] {
        let before = fakes[0].state().acks.len();
        fakes[0].state().bookmark(0, age);
        until("it is taken", || fakes[0].state().acks.len() > before).await;
        assert!(view.age().unwrap() >= HOUR, "{:?}", view.age());
    }
    assert_eq!(fakes[0].calls("watch"), 1, "there is no other node to go to");
    assert_eq!(view.current().len(), 1);
    fakes[0].state().bookmark(0, Duration::ZERO);
    until("it is fresh again", || view.age().unwrap() < MINUTE).await;
}

/// Without a leader, cut off, or just started: what a node has then may be any old list. Whoever
/// waits for the first word takes that for what there is.
#[tokio::test]
async fn a_first_word_that_may_be_old_is_not_taken_where_there_is_another_node() {
    for (age, leader_id) in [(HOUR, 1), (UNKNOWN, 1), (Duration::ZERO, 0)] {
        for watches in [false, true] {
            let fakes = Fake::cluster(2);
            put(&fakes[0], "a");
            let mut first = aged(snapshot(0, false, true, [].into_iter()), age);
            first.header.iter_mut().for_each(|header| header.leader_id = leader_id);
            fakes[0].state().scripts.push_back(vec![first]);
            let client = builder(&fakes).build().unwrap();
            let found = if watches {
                within(client.watch("s").synced()).await.unwrap().len()
            } else {
                let view = view(&client);
                within(view.synced()).await;
                assert!(view.age().unwrap() < MINUTE, "{age:?} {leader_id}");
                view.current().len()
            };
            assert_eq!(found, 1, "{age:?} {leader_id} {watches}");
            assert_eq!(fakes[0].calls("watch"), 2, "the second node was asked");
        }
    }
}

/// The node stops getting entries, and says so to all that it serves.
#[tokio::test]
async fn a_node_whose_state_is_old_is_left_for_another() {
    let fakes = Fake::cluster(2);
    put(&fakes[0], "a");
    let client = builder(&fakes).build().unwrap();
    let (view, _watch) = (view(&client), client.watch("s"));
    within(view.synced()).await;
    until("both are there", || fakes[0].state().watchers_of(0) == 2).await;
    fakes[0].state().bookmark(0, Duration::from_secs(1));
    put(&fakes[0], "b");
    until("that is no age", || view.current().len() == 2).await;
    assert_eq!(fakes[0].state().watchers_of(0), 2);
    fakes[0].state().bookmark(0, MINUTE);
    until("both have left", || fakes[0].state().watchers_of(1) == 2).await;
    put(&fakes[0], "c");
    until("it goes on", || view.current().get("c").is_some()).await;
    assert!(view.age().unwrap() < MINUTE, "{:?}", view.age());
}

/// All that the node sends a view is old, while something else of the client is served well by it:
/// the view does not come back to it.
#[tokio::test]
async fn a_node_that_serves_others_well_is_left_too() {
    let fakes = Fake::cluster(2);
    put(&fakes[0], "a");
    let client = builder(&fakes).build().unwrap();
    let _watch = client.watch("s");
    until("it is followed", || fakes[0].state().watchers_of(0) == 1).await;
    begins_with(&fakes[0], HOUR);
    let view = view(&client);
    until("the view has left", || {
        fakes[0].state().bookmark(0, Duration::ZERO);
        fakes[0].state().watchers_of(1) == 1
    })
    .await;
    until("the watch stays, and nothing else", || fakes[0].state().watchers_of(0) == 1).await;
    put(&fakes[0], "b");
    until("it goes on", || view.current().get("b").is_some()).await;
    assert!(view.age().unwrap() < MINUTE, "{:?}", view.age());

    // The one that serves the watch is the client's again, and still not one for the views.
    let heard = fakes[0].state().acks.len();
    fakes[0].state().bookmark(0, Duration::ZERO);
    until("the watch hears it", || fakes[0].state().acks.len() > heard).await;
    let other = client.discover(Selector::service("t").statuses([])).unwrap();
    within(other.synced()).await;
    let (service, id) = ("t".to_owned(), "a".to_owned());
    fakes[0].state().put(Instance { service, id, ..Instance::default() });
    until("all go on", || other.current().len() == 1).await;
    until("one stream is left at each", || {
        let state = fakes[0].state();
        (state.watchers_of(0), state.watchers_of(1)) == (1, 1)
    })
    .await;
}

/// Where no node has anything newer, there is nothing to be gained: an old view is better than
/// none.
#[tokio::test]
async fn with_all_nodes_old_a_view_stays() {
    let fakes = Fake::cluster(2);
    put(&fakes[0], "a");
    (0..100).for_each(|_| begins_with(&fakes[0], HOUR));
    let client = builder(&fakes).build().unwrap();
    let view = view(&client);
    within(view.synced()).await;
    until("each was asked", || fakes[0].calls("watch") == 2).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(fakes[0].calls("watch"), 2, "each was asked once");
    assert_eq!(view.current().len(), 1);
    assert!(view.age().unwrap() >= HOUR);
    assert!(matches!(view.status(), WatchStatus::Following { .. }), "{:?}", view.status());
}

/// The same where others of the client are served well by both, so that none seems to fail.
#[tokio::test]
async fn with_all_nodes_old_a_first_word_comes_from_the_last_of_them() {
    let fakes = Fake::cluster(2);
    put(&fakes[0], "a");
    let client = builder(&fakes).build().unwrap();
    let _watch = client.watch("s");
    until("it is followed", || fakes[0].state().watchers_of(0) == 1).await;
    begins_with(&fakes[0], HOUR);
    let _other = client.watch("s");
    until("so is the other", || fakes[0].state().watchers_of(1) == 1).await;
    (0..100).for_each(|_| begins_with(&fakes[0], HOUR));
    let view = view(&client);
    until("a first word", || {
        (0..2).for_each(|node| fakes[0].state().bookmark(node, Duration::ZERO));
        view.current().len() == 1
    })
    .await;
}

/// After an outage, what a node has is old when it has a leader again, and for a moment only.
#[tokio::test]
async fn a_node_that_has_a_leader_again_is_not_left() {
    let fakes = Fake::cluster(2);
    put(&fakes[0], "a");
    // Longer than it is without one, and shorter than a minute, which is old then.
    let builder = builder(&fakes).leaderless_timeout(Duration::from_secs(20));
    let client = builder.build().unwrap();
    let view = view(&client);
    within(view.synced()).await;
    fakes[0].state().send_raw(&leader(0));
    let has_leader = || matches!(view.status(), WatchStatus::Following { has_leader: true, .. });
    until("it has none", || !has_leader()).await;
    fakes[0].state().bookmark(0, MINUTE);
    fakes[0].state().send_raw(&aged(leader(1), MINUTE));
    until("it has one", has_leader).await;
    put(&fakes[0], "b");
    until("it goes on", || view.current().len() == 2).await;
    assert_eq!((fakes[0].calls("watch"), fakes[0].state().watchers_of(0)), (1, 1));
}
