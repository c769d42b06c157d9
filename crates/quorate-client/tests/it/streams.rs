//! What the stream of a watch and that of live views have in common: one way to open, judge, leave
//! and resume it.

use std::time::{Duration, Instant};

use quorate_client::{Client, ClientBuilder, Code, Discovery, Error, Selector, Watch, WatchStatus};
use quorate_proto::v1::{Change, ChangeKind, Instance, RemoveReason, WatchResponse};

use crate::fake::{CLUSTER, Fake, Mode, delta, leader, snapshot, until, within};

/// Between two streams, however they ended.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);

/// Nothing is late on a busy machine.
fn builder(fakes: &[Fake]) -> ClientBuilder {
    Client::builder(fakes.iter().map(Fake::address))
        .in_order(true)
        .member_refresh(None)
        .attempt_timeout(Duration::from_secs(20))
        .call_timeout(Duration::from_secs(60))
}

fn all() -> Selector {
    Selector::service("s").statuses([])
}

/// One of the two that have a stream.
enum Reader {
    Watch(Watch),
    View(Discovery),
}

impl Reader {
    /// A watch of a service, and a view of it.
    fn both(client: &Client) -> [Self; 2] {
        [Self::Watch(client.watch("s")), Self::View(client.discover(all()).unwrap())]
    }

    /// Each of the two with nodes of its own, which were prepared before. The client is not held.
    fn each(
        nodes: usize,
        prepare: impl Fn(&Fake),
        build: impl Fn(ClientBuilder) -> ClientBuilder,
    ) -> impl Iterator<Item = (Vec<Fake>, Self)> {
        (0..2).map(move |at| {
            let fakes = Fake::cluster(nodes);
            prepare(&fakes[0]);
            let client = build(builder(&fakes)).build().unwrap();
            let reader = match at {
                0 => Self::Watch(client.watch("s")),
                _ => Self::View(client.discover(all()).unwrap()),
            };
            (fakes, reader)
        })
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Watch(_) => "a watch",
            Self::View(_) => "a view",
        }
    }

    /// "a1 b2": the instances with their weights.
    fn shown(&self) -> String {
        let word = |instance: &Instance| format!("{}{}", instance.id, instance.weight);
        let words: Vec<String> = match self {
            Self::Watch(watch) => watch.snapshot().iter().map(|i| word(i)).collect(),
            Self::View(view) => view.current().iter().map(|i| word(i)).collect(),
        };
        words.join(" ")
    }

    fn status(&self) -> WatchStatus {
        match self {
            Self::Watch(watch) => watch.status(),
            Self::View(view) => view.status(),
        }
    }

    async fn shows(&self, wanted: &str) {
        until(&format!("{} shows {wanted}", self.name()), || self.shown() == wanted).await;
    }
}

fn instance(id: &str, weight: u32) -> Instance {
    let (service, id) = ("s".to_owned(), id.to_owned());
    Instance { service, id, weight, ..Instance::default() }
}

fn put_a(fake: &Fake) {
    fake.state().put(instance("a", 1));
}

/// It is not known which cluster's revisions such a stream counts in.
#[tokio::test]
async fn a_stream_that_does_not_say_of_which_cluster_it_is_is_left() {
    // S2.7
    let prepare = |fake: &Fake| {
        put_a(fake);
        fake.state().scripts.push_back(Vec::new());
    };
    for (fakes, reader) in Reader::each(1, prepare, |builder| builder) {
        let fake = &fakes[0];
        until("it has subscribed", || fake.state().watchers_of(0) == 1).await;
        fake.state().send_raw(&snapshot(9, false, true, [instance("ghost", 9)].iter()));
        reader.shows("a1").await;
        assert_eq!(fake.state().subscriptions.len(), 2, "{}", reader.name());
    }
}

#[tokio::test]
async fn a_refused_subscription_is_not_asked_for_again_and_again() {
    let fakes = Fake::cluster(2);
    fakes.iter().for_each(|fake| fake.set(Mode::Refusing));
    put_a(&fakes[0]);
    let client = builder(&fakes).build().unwrap();
    let [watch, view] = Reader::both(&client);
    for reader in [&watch, &view] {
        let refused = || match reader.status() {
            WatchStatus::Refused { error } => Some(error),
            _ => None,
        };
        until(&format!("{} is refused", reader.name()), || refused().is_some()).await;
        let is_reason = matches!(refused(), Some(Error::Rejected { code, .. }) if code == Code::PermissionDenied);
        assert!(is_reason, "{:?}", refused());
    }
    let (Reader::Watch(mut watch), Reader::View(view)) = (watch, view) else { panic!("in order") };
    assert!(within(watch.next()).await.is_none(), "it has stopped");
    // After a failure, the first pauses are of 100 ms at most.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(fakes[0].calls("watch"), 2, "each was refused once");
    assert!(matches!(view.usable().await, Err(Error::Rejected { .. })));

    // Other services are another subscription, and a node that refused has not failed.
    fakes.iter().for_each(|fake| fake.set(Mode::Honest));
    let other = client.discover("t").unwrap();
    within(other.synced()).await;
    assert_eq!(Reader::View(view).shown(), "a1");
    until("both are on one stream", || fakes[0].state().watchers_of(0) == 1).await;
}

/// What ended a stream that brought something is a new failure: nothing has to be waited for but
/// the shortest pause.
#[tokio::test]
async fn after_a_stream_that_brought_something_the_next_is_opened_soon() {
    // S0.14, S3.8
    for (fakes, reader) in Reader::each(1, put_a, |builder| builder) {
        let fake = &fakes[0];
        let begun = Instant::now();
        for round in 2..=40 {
            fake.state().put(instance("a", round));
            reader.shows(&format!("a{round}")).await;
            fake.state().end_watches();
        }
        let took = begun.elapsed();
        let streams = fake.state().subscriptions.len() as u32;
        assert!((streams - 1) * SHORTEST_PAUSE <= took, "{streams} streams in {took:?}");
        // With the pauses of a node that fails again and again, it would take half a minute.
        assert!(took < Duration::from_secs(20), "{}: {took:?}", reader.name());
    }
}

/// What a client does beside reading is no sign of life of the node that it reads from.
#[tokio::test]
async fn a_node_that_falls_silent_is_left_though_audits_go_on() {
    let build = |builder: ClientBuilder| {
        builder
            .audit_interval(Duration::from_millis(20))
            .watch_idle_timeout(Duration::from_millis(400))
    };
    for (fakes, reader) in Reader::each(2, put_a, build) {
        until(&format!("{} has left it", reader.name()), || fakes[0].state().watchers_of(1) > 0)
            .await;
    }
}

#[tokio::test]
async fn changes_of_another_cluster_do_not_follow_on_what_is_known() {
    for (fakes, reader) in Reader::each(1, put_a, |builder| builder) {
        let fake = &fakes[0];
        reader.shows("a1").await;
        {
            let mut state = fake.state();
            state.found_again(CLUSTER + 1);
            state.put(instance("b", 2));
            // As if it followed on revision 1, which is another one here.
            state.scripts.push_back(vec![delta(1, Vec::new())]);
            state.end_watches();
        }
        reader.shows("b2").await;
    }
}

#[tokio::test]
async fn the_nodes_are_kept_up_to_date_for_as_long_as_something_is_followed() {
    // S0.14
    let build = |builder: ClientBuilder| builder.member_refresh(Some(Duration::from_millis(50)));
    for (fakes, reader) in Reader::each(1, put_a, build) {
        reader.shows("a1").await;
        let asked = fakes[0].calls("list members");
        let goes_on = || fakes[0].calls("list members") > asked + 1;
        until(&format!("{} learns the members", reader.name()), goes_on).await;
    }
}

/// A slow receiver is sent the latest change of each instance, in several messages: one that is
/// gone may come in one before that which took its place.
#[tokio::test]
async fn changes_that_break_off_are_not_shown() {
    let prepare = |fake: &Fake| {
        put_a(fake);
        let all = snapshot(1, false, true, [instance("a", 1)].iter());
        let (kind, instance) = (ChangeKind::Removed as i32, Some(instance("a", 1)));
        let gone = vec![Change { revision: 3, kind, instance, reason: 0 }];
        let part = WatchResponse { revision: 1, ..delta(1, gone) };
        fake.state().scripts.push_back(vec![all, part, leader(0)]);
    };
    for (fakes, reader) in Reader::each(1, prepare, |builder| builder) {
        // What says so comes after the part.
        let has_none =
            || matches!(reader.status(), WatchStatus::Following { has_leader: false, .. });
        until(&format!("{} has the part", reader.name()), has_none).await;
        assert_eq!(reader.shown(), "a1", "{}", reader.name());
        {
            let mut state = fakes[0].state();
            state.put(instance("b", 2));
            state.remove(&("s".to_owned(), "a".to_owned()), RemoveReason::Deregistered);
            state.end_watches();
        }
        reader.shows("b2").await;
        assert_eq!(fakes[0].state().subscriptions[1].from_revision, 1, "{}", reader.name());
    }
}
