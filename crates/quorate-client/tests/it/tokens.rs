//! The token on every call: where it comes from, what happens when it is not taken any more, and
//! that it is shown nowhere.

use std::time::{Duration, Instant};

use quorate_client::{
    AddressFault, Client, ClientBuilder, Code, Discovery, Error, InstanceBuilder,
    RegistrationState, WatchEvent, WatchStatus,
};
use quorate_proto::v1::{Instance, InstanceStatus};

use crate::fake::{Fake, Mode, until, within};

/// No call is late on a busy machine.
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

fn is_unauthenticated(error: &Error) -> bool {
    matches!(error, Error::Rejected { code: Code::Unauthenticated, .. })
}

fn me() -> quorate_client::Registration {
    let instance = InstanceBuilder::new("s", "me").endpoint("http", "http://h:1");
    quorate_client::Registration::new(instance).ttl(Duration::from_secs(1))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_goes_with_every_call_and_stream() {
    let fakes = Fake::cluster(1);
    fakes[0].state().wanted_token = Some("secret-1");
    let without = builder(&fakes).build().unwrap();
    assert!(is_unauthenticated(&without.fetch("s").await.unwrap_err()));
    assert_eq!(fakes[0].calls("unauthenticated"), 1, "it is not asked again");

    let with = builder(&fakes).token("secret-1");
    assert!(!format!("{with:?}").contains("secret"), "{with:?}");
    let client = with.build().unwrap();
    assert!(!format!("{client:?}").contains("secret"), "{client:?}");
    let handle = client.register(me()).await.unwrap();
    let mut watch = client.watch("s");
    assert!(matches!(within(watch.next()).await, Some(WatchEvent::Snapshot(_))));
    until("it renews", || fakes[0].calls("renew") >= 2).await;
    handle.deregister().await.unwrap();
    assert_eq!(fakes[0].calls("unauthenticated"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_token_in_the_file_is_found_when_the_old_one_is_refused() {
    let fakes = Fake::cluster(1);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "secret-1\n").unwrap();
    fakes[0].state().wanted_token = Some("secret-1");
    let client = builder(&fakes).token_file(&file).build().unwrap();
    put(&fakes[0], "a");
    assert_eq!(client.fetch("s").await.unwrap().instances.len(), 1);
    let mut watch = client.watch("s");
    assert!(matches!(within(watch.next()).await, Some(WatchEvent::Snapshot(_))));
    let handle = client.register(me()).await.unwrap();
    assert!(matches!(within(watch.next()).await, Some(WatchEvent::Added(_))));

    std::fs::write(&file, "secret-2\n").unwrap();
    fakes[0].state().wanted_token = Some("secret-2");
    assert!(client.fetch("s").await.is_ok(), "within the same call");
    // None, if a renewal was refused first.
    assert!(client.counters().retries_token <= 1, "{:?}", client.counters());
    fakes[0].state().end_watches();
    put(&fakes[0], "b");
    assert!(matches!(within(watch.next()).await, Some(WatchEvent::Added(_))));
    let renewed = fakes[0].calls("renew");
    until("it renews", || fakes[0].calls("renew") >= renewed + 2).await;
    until("it is registered", || matches!(handle.state(), RegistrationState::Registered(_))).await;
    assert_eq!(fakes[0].calls("register"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_to_go_on_goes_on_without_a_token_at_a_pace_until_there_is_one() {
    let fakes = Fake::cluster(3);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "secret-1\n").unwrap();
    fakes.iter().for_each(|fake| fake.state().wanted_token = Some("secret-1"));
    let client = builder(&fakes).token_file(&file).build().unwrap();
    let handle = client.register(me()).await.unwrap();
    let background = client
        .register_in_background(InstanceBuilder::new("s", "too").endpoint("http", "http://h:1"))
        .unwrap();
    until("both are there", || fakes[0].state().instances.len() == 2).await;
    let mut watch = client.watch("s");
    let view = client.discover("s").unwrap();
    assert!(matches!(within(watch.next()).await, Some(WatchEvent::Snapshot(_))));
    within(view.synced()).await;

    fakes[0].state().wanted_token = Some("secret-2");
    fakes[0].state().end_watches();
    assert!(is_unauthenticated(&client.fetch("s").await.unwrap_err()));
    let retrying = |state| matches!(state, RegistrationState::Retrying { last_error: Some(error), .. } if is_unauthenticated(&error));
    until("the registration says so", || retrying(handle.state())).await;
    let interrupted = |status| matches!(status, WatchStatus::Interrupted { last_error, .. } if is_unauthenticated(&last_error));
    until("the watch says so", || interrupted(watch.status())).await;
    until("the view says so", || interrupted(view.status())).await;
    let before = fakes[0].calls("unauthenticated");
    let tries = || fakes[0].calls("unauthenticated") - before;
    let begun = Instant::now();
    tokio::time::sleep(Duration::from_secs(3)).await;
    until("they go on", || tries() >= 3).await;
    let tries = tries();
    let took = begun.elapsed();
    let most = 4 * (took.as_secs() as usize + 1);
    assert!(tries <= most, "{tries} tries of four that go on, in {took:?}");

    std::fs::write(&file, "secret-2\n").unwrap();
    put(&fakes[0], "late");
    let added = within(watch.next()).await;
    assert!(matches!(added, Some(WatchEvent::Added(late)) if late.id == "late"));
    until("the registration is back", || {
        [&handle, &background]
            .iter()
            .all(|handle| matches!(handle.state(), RegistrationState::Registered(_)))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_that_is_taken_away_is_waited_for() {
    let fakes = Fake::cluster(2);
    let client = builder(&fakes).build().unwrap();
    put(&fakes[0], "a");
    let mut watch = client.watch("s");
    assert!(matches!(within(watch.next()).await, Some(WatchEvent::Snapshot(_))));
    let handle = client.register(me()).await.unwrap();
    assert!(matches!(within(watch.next()).await, Some(WatchEvent::Added(_))));

    fakes.iter().for_each(|fake| fake.set(Mode::Refusing));
    fakes[0].state().end_watches();
    let denied = |error: &Error| matches!(error, Error::Rejected { code, .. } if *code == Code::PermissionDenied);
    until("the watch says so", || {
        matches!(watch.status(), WatchStatus::Interrupted { last_error, .. } if denied(&last_error))
    })
    .await;
    until("the registration says so", || {
        matches!(handle.state(), RegistrationState::Retrying { last_error: Some(error), .. } if denied(&error))
    })
    .await;
    fakes.iter().for_each(|fake| fake.set(Mode::Honest));
    put(&fakes[0], "b");
    assert!(matches!(within(watch.next()).await, Some(WatchEvent::Added(_))));
    until("it is back", || matches!(handle.state(), RegistrationState::Registered(_))).await;
}

/// All views of a client share a stream, and the registry takes or refuses a list as a whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_that_is_refused_is_no_others_loss() {
    let fakes = Fake::cluster(2);
    let client = builder(&fakes).build().unwrap();
    let put = |service: &str, id: &str| {
        let (service, id) = (service.to_owned(), id.to_owned());
        let status = InstanceStatus::Up as i32;
        fakes[0].state().put(Instance { service, id, status, ..Instance::default() });
    };
    let sees = async |view: &Discovery, id: &str| {
        until(&format!("{id} in {}", view.service()), || view.current().get(id).is_some()).await;
    };
    let denied = |view: &Discovery| matches!(view.status(), WatchStatus::Refused { error: Error::Rejected { code, .. } } if code == Code::PermissionDenied);
    fakes[0].state().denied = vec!["b"];
    let all: Vec<_> = ["a", "b", "c"].map(|service| client.discover(service).unwrap()).into();
    put("a", "a1");
    sees(&all[0], "a1").await;
    until("b is refused", || denied(&all[1])).await;
    assert!(matches!(all[1].usable().await, Err(Error::Rejected { .. })));

    // A right that is lost, and others go on; what was known is shown on.
    put("c", "c1");
    sees(&all[2], "c1").await;
    fakes[0].state().denied = vec!["b", "c"];
    fakes[0].state().end_watches();
    put("a", "a2");
    sees(&all[0], "a2").await;
    until("c is refused", || denied(&all[2])).await;
    assert!(all[2].current().get("c1").is_some());
    let follows = || matches!(all[0].status(), WatchStatus::Following { .. });
    until("the stream of the others is there", follows).await;
    let before = fakes[0].calls("watch");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(fakes[0].calls("watch"), before, "it is quiet");
    // What the node says of the services on the stream is not about the others.
    until("the view that is followed is fresh", || {
        fakes[0].state().bookmark(0, Duration::ZERO);
        fakes[0].state().bookmark(1, Duration::ZERO);
        all[0].age().unwrap() < Duration::from_millis(500)
    })
    .await;
    assert!(all[2].age().unwrap() >= Duration::from_secs(1), "{:?}", all[2].age());
    assert!(all[1].age().is_none() && client.counters().view_age.is_none(), "b never came");

    // Changes of c pass by while a stream for a goes on; with the right back, nothing is missing.
    put("c", "c2");
    put("a", "a3");
    sees(&all[0], "a3").await;
    fakes[0].state().denied = Vec::new();
    let other = client.discover("d").unwrap();
    within(other.synced()).await;
    sees(&all[2], "c2").await;
    put("b", "b1");
    sees(&all[1], "b1").await;
    assert!(!denied(&all[1]) && !denied(&all[2]));
    put("a", "a4");
    sees(&all[0], "a4").await;
}

#[tokio::test]
async fn a_token_does_not_go_to_other_machines_in_the_clear() {
    let refused = |builder: ClientBuilder| builder.build().unwrap_err();
    let elsewhere = || Client::builder(["127.0.0.1:1", "10.0.0.1:1"]).token("secret");
    let error = refused(elsewhere());
    let expected = AddressFault::PlaintextToken;
    assert!(
        matches!(&error, Error::InvalidAddress { address, fault } if address == "10.0.0.1:1" && *fault == expected),
        "{error}"
    );
    assert!(!error.to_string().contains("secret"));
    assert!(elsewhere().allow_plaintext_token(true).build().is_ok());

    // Nor to a member that the client learns of.
    let fakes = Fake::cluster(1);
    let mine = fakes[0].address();
    fakes[0].state().members = vec!["10.0.0.1:1".to_owned(), mine.clone()];
    fakes[0].state().leader_address = "10.0.0.1:1".to_owned();
    let client = builder(&fakes).token("secret").member_refresh(Some(Duration::from_secs(1)));
    let client = client.build().unwrap();
    client.fetch("s").await.unwrap_err();
    until("it has learned", || fakes[0].calls("list members") >= 1).await;
    client.fetch("s").await.unwrap_err();
    assert_eq!(client.addresses(), [mine]);

    let missing = Client::builder(["127.0.0.1:1"]).token_file("/no/such/file").build();
    let error = missing.unwrap_err().to_string();
    assert!(error.starts_with("token: /no/such/file: "), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_of_one_process_share_connections_and_no_rights() {
    let fakes = Fake::cluster(1);
    fakes[0].state().wanted_token = Some("secret-2");
    put(&fakes[0], "a");
    let client = builder(&fakes).token("secret-1").build().unwrap();
    let other = client.with_token("secret-2").unwrap();
    assert!(!format!("{other:?}").contains("secret"), "{other:?}");
    for _ in 0..2 {
        assert!(is_unauthenticated(&client.fetch("s").await.unwrap_err()));
        assert_eq!(other.fetch("s").await.unwrap().instances.len(), 1);
    }
    let view = other.discover("s").unwrap();
    let mut watch = other.watch("s");
    assert!(matches!(within(watch.next()).await, Some(WatchEvent::Snapshot(_))));
    within(view.synced()).await;
    let handle = other.register(me()).await.unwrap();
    let renewed = fakes[0].calls("renew");
    // What was begun goes on without the client that began it, and without the first one.
    drop((client, other));
    until("it renews", || fakes[0].calls("renew") >= renewed + 2).await;
    until("it is registered", || matches!(handle.state(), RegistrationState::Registered(_))).await;
    assert_eq!(fakes[0].calls("unauthenticated"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_callers_token_goes_nowhere_in_the_clear_either() {
    let elsewhere = Client::builder(["127.0.0.1:1", "10.0.0.1:1"]);
    let refused = elsewhere.clone().build().unwrap().with_token("secret").unwrap_err();
    let expected = AddressFault::PlaintextToken;
    assert!(
        matches!(&refused, Error::InvalidAddress { address, fault } if address == "10.0.0.1:1" && *fault == expected),
        "{refused}"
    );
    assert!(!refused.to_string().contains("secret"));
    let allowed = elsewhere.allow_plaintext_token(true).build().unwrap();
    assert!(allowed.with_token("secret").is_ok());
    let error = allowed.with_token("two words").unwrap_err().to_string();
    assert!(error.contains("one word") && !error.contains("two words"), "{error}");

    // Nor to a member that the first client may ask, which has no token: to an address that is this
    // machine's, but does not look like it.
    const ELSEWHERE: &str = "0.0.0.0:1";
    let fakes = Fake::cluster(1);
    let mine = fakes[0].address();
    fakes[0].state().members = vec![ELSEWHERE.to_owned(), mine.clone()];
    let builder = builder(&fakes).member_refresh(Some(Duration::from_secs(60)));
    let client = builder.call_timeout(Duration::from_secs(2)).build().unwrap();
    until("it has learned", || client.addresses().len() == 2).await;
    put(&fakes[0], "a");
    let other = client.with_token("secret").unwrap();
    fakes[0].set(Mode::Unavailable);
    let Error::Unreachable { tried, .. } = other.fetch("s").await.unwrap_err() else {
        panic!("it is reached")
    };
    assert!(tried.iter().all(|attempt| attempt.address == mine), "{tried:?}");
    let Error::Unreachable { tried, .. } = client.fetch("s").await.unwrap_err() else {
        panic!("it is reached")
    };
    assert!(tried.iter().any(|attempt| attempt.address == ELSEWHERE), "{tried:?}");
}
