//! Views that come and go all the time: the stream that they share is another one each time, and
//! nothing is forgotten with the one before it.

use std::time::Duration;

use quorate_client::{Client, ClientBuilder, Discovery, Selector};
use quorate_proto::v1::Instance;

use crate::fake::{Fake, Mode, aged, snapshot, until, within};

/// No node is left for a silence: what else it is left for is what the tests are about.
fn builder(fakes: &[Fake]) -> ClientBuilder {
    Client::builder(fakes.iter().map(Fake::address))
        .in_order(true)
        .member_refresh(None)
        .watch_idle_timeout(Duration::from_secs(600))
        .attempt_timeout(Duration::from_secs(20))
        .call_timeout(Duration::from_secs(60))
}

fn put(fake: &Fake, id: &str) {
    let (service, id) = ("s".to_owned(), id.to_owned());
    fake.state().put(Instance { service, id, ..Instance::default() });
}

async fn view(client: &Client) -> Discovery {
    let view = client.discover(Selector::service("s").statuses([])).unwrap();
    within(view.synced()).await;
    view
}

/// Views of other services come, until this holds.
async fn while_views_come(client: &Client, what: &str, holds: impl Fn() -> bool) {
    for round in 0..250 {
        if holds() {
            return;
        }
        let _comes_and_goes = client.discover(format!("t{round}").as_str()).unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not while 250 views come and go: {what}");
}

#[tokio::test]
async fn a_node_without_a_leader_is_left() {
    let fakes = Fake::cluster(2);
    put(&fakes[0], "a");
    fakes[0].set(Mode::Leaderless);
    let client = builder(&fakes).leaderless_timeout(Duration::from_millis(300)).build().unwrap();
    let view = view(&client).await;
    let has_left = || fakes[0].state().watchers_of(1) > 0;
    while_views_come(&client, "it is left", has_left).await;
    put(&fakes[0], "b");
    until("the view goes on", || view.current().len() == 2).await;
}

/// What a short stream said of its node, by which the new service was read.
#[tokio::test]
async fn a_node_whose_state_is_old_is_left() {
    let fakes = Fake::cluster(2);
    put(&fakes[0], "a");
    let client = builder(&fakes).build().unwrap();
    let _view = view(&client).await;
    let nothing = snapshot(fakes[0].state().revision, false, true, std::iter::empty());
    let nothing = aged(nothing, Duration::from_secs(3_600));
    fakes[0].state().scripts.push_back(vec![nothing]);
    let _other = client.discover("t").unwrap();
    until("it is left", || fakes[0].state().watchers_of(1) == 1).await;
}

#[tokio::test]
async fn audits_go_on() {
    // S2.6
    let fakes = Fake::cluster(1);
    put(&fakes[0], "a");
    let client = builder(&fakes).audit_interval(Duration::from_millis(200)).build().unwrap();
    let view = view(&client).await;
    let key = ("s".to_owned(), "a".to_owned());
    fakes[0].state().instances.get_mut(&key).unwrap().weight = 9;
    let is_repaired = || view.current().get("a").unwrap().weight == 9;
    while_views_come(&client, "it is repaired", is_repaired).await;
    assert_eq!(client.counters().divergences, 1);
}

/// Each stream needs some time until it brings what was missed.
#[tokio::test]
async fn the_others_go_on() {
    // S1.9, S2.7
    let fakes = Fake::cluster(1);
    put(&fakes[0], "a");
    fakes[0].state().first_word_after = Duration::from_millis(40);
    let client = builder(&fakes).build().unwrap();
    let view = view(&client).await;
    let asked = fakes[0].state().subscriptions.len();
    let is_under_way = || fakes[0].state().subscriptions.len() > asked + 4;
    while_views_come(&client, "streams come and go", is_under_way).await;
    put(&fakes[0], "b");
    while_views_come(&client, "it is shown", || view.current().len() == 2).await;
}

/// Also where it is the only one.
#[tokio::test]
async fn a_view_for_each_call_takes_no_stream_for_each_call() {
    let fakes = Fake::cluster(1);
    put(&fakes[0], "a");
    let client = builder(&fakes).build().unwrap();
    let held = client.discover("held").unwrap();
    within(held.synced()).await;
    for call in 0..20 {
        assert_eq!(view(&client).await.current().len(), 1, "in call {call}");
    }
    drop(held);
    for call in 0..20 {
        assert_eq!(view(&client).await.current().len(), 1, "in call {call}");
    }
    let streams = fakes[0].state().subscriptions.len();
    assert!(streams <= 3, "one, another to read the second service, and one for both: {streams}");
    put(&fakes[0], "b");
    let shown = || client.discover(Selector::service("s").statuses([])).unwrap().current().len();
    until("it is kept current", || shown() == 2).await;
}
