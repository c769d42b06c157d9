//! Calls over many nodes: rotation, members, leaders, typed errors.

use std::time::{Duration, Instant};

use quorate_client::{
    Client, Code, Consistency, Error, FetchOptions, InstanceBuilder, InstanceStatus,
    RegistrationState, Selection,
};
use quorate_proto::v1::Instance;

use crate::fake::{Fake, Mode, until};

fn addresses(fakes: &[Fake]) -> Vec<String> {
    fakes.iter().map(Fake::address).collect()
}

/// Asks the fakes in their order and learns nothing: what a test does decides which node is asked.
async fn client(addresses: Vec<String>) -> Client {
    client_with(addresses, Duration::from_millis(200), Duration::from_secs(2))
}

fn client_with(addresses: Vec<String>, attempt: Duration, call: Duration) -> Client {
    Client::builder(addresses)
        .in_order(true)
        .member_refresh(None)
        .attempt_timeout(attempt)
        .call_timeout(call)
        .build()
        .unwrap()
}

fn orders(id: &str) -> InstanceBuilder {
    InstanceBuilder::new("orders", id).endpoint("http", "http://h:1")
}

#[tokio::test]
async fn no_or_bad_addresses_are_an_error() {
    // S1.1
    let none: [&str; 0] = [];
    assert!(matches!(Client::new(none), Err(Error::NoAddresses)));
    let bad = Client::new(["127.0.0.1:7001", "nonsense"]);
    assert!(matches!(bad, Err(Error::InvalidAddress { address, .. }) if address == "nonsense"));
}

#[test]
fn a_client_needs_a_runtime() {
    assert!(matches!(Client::new(["127.0.0.1:7001"]), Err(Error::NoRuntime)));
}

/// What would be never, or later than clocks count, is refused where it is set: no task trips over
/// it later.
#[tokio::test]
async fn durations_out_of_range_are_an_error() {
    for out in [Duration::ZERO, Duration::from_secs(366 * 86_400), Duration::MAX] {
        let builder = || Client::builder(["a:1"]);
        for (option, builder) in [
            ("call_timeout", builder().call_timeout(out)),
            ("attempt_timeout", builder().attempt_timeout(out)),
            ("watch_idle_timeout", builder().watch_idle_timeout(out)),
            ("leaderless_timeout", builder().leaderless_timeout(out)),
            ("audit_interval", builder().audit_interval(out)),
            ("member_refresh", builder().member_refresh(Some(out))),
        ] {
            let refused = builder.build();
            let Err(Error::InvalidOption { option: named, value, must }) = refused else {
                panic!("{option} = {out:?} is taken");
            };
            assert_eq!((named, value), (option, out));
            assert!(must.contains("10 ms") && must.contains("365 days"), "{must}");
        }
    }
}

#[tokio::test]
async fn a_client_starts_while_the_registry_is_down() {
    // S0.17
    let mut fake = Fake::start();
    fake.kill();
    let client = client(vec![fake.address()]).await;
    let begun = Instant::now();
    let Err(Error::Unreachable { tried, .. }) = client.fetch("orders").await else {
        panic!("there is no node to answer");
    };
    assert_eq!((tried.len(), &tried[0].address), (1, &fake.address()));
    assert!(tried[0].reason.contains("refused"), "says why: {}", tried[0].reason);
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(1_500), "it used its deadline: {took:?}");
    assert!(took < Duration::from_secs(8), "and no more: {took:?}");
    fake.restart();
    let unknown = client.fetch("orders").await;
    assert!(matches!(unknown, Err(Error::UnknownService { .. })), "{unknown:?}");
}

/// Whatever is wrong with the first nodes, the same call succeeds on the last, within its deadline.
#[tokio::test]
async fn a_call_leaves_bad_nodes_within_its_deadline() {
    // S1.3
    for mode in [Mode::Hang, Mode::Unavailable, Mode::Broken, Mode::SwallowAnswers, Mode::Full] {
        let mut fakes = Fake::cluster(4);
        fakes[0].kill();
        fakes[1].set(mode);
        fakes[2].set(mode);
        let (attempt, call) = (Duration::from_millis(200), Duration::from_secs(20));
        let client = client_with(addresses(&fakes), attempt, call);
        let handle = client.register(orders("a")).await.unwrap_or_else(|e| panic!("{mode:?}: {e}"));
        let found = client.fetch("orders").await.unwrap_or_else(|e| panic!("{mode:?}: {e}"));
        assert_eq!(found.instances.len(), 1);
        drop(handle);
    }
}

#[tokio::test]
async fn a_call_outlasts_a_short_outage() {
    // S1.3: no leader at all for a while, as in an election.
    let fakes = Fake::cluster(3);
    fakes.iter().for_each(|fake| fake.set(Mode::Unavailable));
    let (attempt, call) = (Duration::from_millis(200), Duration::from_secs(20));
    let client = client_with(addresses(&fakes), attempt, call);
    let fetching = tokio::spawn({
        let client = client.clone();
        async move { client.fetch("orders").await }
    });
    until("every node was asked twice", || fakes[0].calls("fetch") >= 6).await;
    fakes.iter().for_each(|fake| fake.set(Mode::Honest));
    assert!(matches!(fetching.await.unwrap(), Err(Error::UnknownService { .. })));
}

#[tokio::test]
async fn an_outage_costs_few_attempts() {
    // S3.8, S2.8
    let fakes = Fake::cluster(1);
    fakes[0].set(Mode::Unavailable);
    let client = client(addresses(&fakes)).await;
    assert!(matches!(client.fetch("orders").await, Err(Error::Unreachable { .. })));
    let attempts = fakes[0].calls("fetch");
    assert!((2..60).contains(&attempts), "{attempts} attempts in 2 s");
}

#[tokio::test]
async fn a_node_broken_for_good_is_an_answer() {
    let fakes = Fake::cluster(2);
    fakes.iter().for_each(|fake| fake.set(Mode::Broken));
    let client = client(addresses(&fakes)).await;
    let refused = client.fetch("orders").await;
    assert!(matches!(refused, Err(Error::Rejected { code: Code::Internal, .. })), "{refused:?}");
}

#[tokio::test]
async fn every_call_has_a_deadline() {
    // S2.14
    let fake = Fake::start();
    let client = Client::new([fake.address()]).unwrap();
    let handle = client.register(orders("a")).await.unwrap();
    client.fetch("orders").await.unwrap();
    client.list_services("", Consistency::Local).await.unwrap();
    client.dependents("orders").await.unwrap();
    client.members().await.unwrap();
    client.update("orders", "a", &quorate_client::Update::new().weight(1)).await.unwrap();
    handle.deregister().await.unwrap();
    assert_eq!(fake.state().without_deadline, Vec::<&str>::new());
}

#[tokio::test]
async fn absence_has_three_names() {
    // S0.10
    let mut fake = Fake::start();
    let client = client(vec![fake.address()]).await;
    let unknown = client.fetch("orders").await.unwrap_err();
    assert!(matches!(&unknown, Error::UnknownService { service } if service == "orders"));

    let draining = orders("a").status(InstanceStatus::Draining);
    let handle = client.register(draining).await.unwrap();
    let none = client.fetch("orders").await.unwrap_err();
    assert!(matches!(&none, Error::NoInstances { service } if service == "orders"), "{none}");
    let all = client.fetch_with(&FetchOptions::new("orders")).await.unwrap();
    assert_eq!(all.services.unwrap()[0].instances.len(), 1, "fetch_with shows all of them");

    fake.kill();
    let down = client.fetch("orders").await.unwrap_err();
    assert!(matches!(down, Error::Unreachable { .. }), "{down}");
    drop(handle);
}

#[tokio::test]
async fn not_modified_is_not_empty() {
    let fake = Fake::start();
    let client = client(vec![fake.address()]).await;
    let _handle = client.register(orders("a")).await.unwrap();
    let options = FetchOptions::new(Selection::service("orders"));
    let first = client.fetch_with(&options).await.unwrap();
    let again = options.not_modified_since(first.header.revision);
    assert_eq!(client.fetch_with(&again).await.unwrap().services, None);
}

#[tokio::test]
async fn services_come_in_pages() {
    let fake = Fake::start();
    let client = client(vec![fake.address()]).await;
    let mut handles = Vec::new();
    for name in ["a", "b", "c", "d", "e"] {
        let instance = InstanceBuilder::new(name, "1").endpoint("http", "http://h:1");
        handles.push(client.register(instance).await.unwrap());
    }
    let all = client.list_services("", Consistency::Linearizable).await.unwrap();
    let names: Vec<_> = all.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c", "d", "e"]);
}

/// In the order of services and ids, which is not that of "service/id".
#[tokio::test]
async fn dependents_are_read_page_by_page() {
    let fake = Fake::start();
    let names = [("a", "1"), ("a", "2"), ("a-b", "1"), ("a-b", "2"), ("c", "1")];
    for (service, id) in names {
        let (service, id) = (service.to_owned(), id.to_owned());
        let requires = vec!["db".to_owned()];
        fake.state().put(Instance { service, id, requires, ..Instance::default() });
    }
    let all = client(vec![fake.address()]).await.dependents("db").await.unwrap();
    let found: Vec<_> = all.iter().map(|it| (it.service.as_str(), it.id.as_str())).collect();
    assert_eq!(found, names);
}

#[tokio::test]
async fn members_are_learned_and_an_empty_answer_is_ignored() {
    // S1.2, S0.13
    let mut fakes = Fake::cluster(3);
    let all = addresses(&fakes);
    fakes[0].state().members = all.clone();
    let client = Client::builder([fakes[0].address()])
        .member_refresh(Some(Duration::from_millis(20)))
        .attempt_timeout(Duration::from_millis(200))
        .build()
        .unwrap();
    until("all members are known", || client.addresses() == all).await;

    fakes[0].state().members = vec![all[1].clone(), all[2].clone()];
    let behind = [all[1].clone(), all[2].clone(), all[0].clone()];
    until("the seed stands behind the members", || client.addresses() == behind).await;

    fakes[0].state().members.clear();
    let asked = fakes[0].calls("list members");
    until("empty answers arrive", || fakes[0].calls("list members") > asked + 2).await;
    assert_eq!(client.addresses(), behind);

    // The members die; the seed serves as the last resort.
    fakes[1].kill();
    fakes[2].kill();
    assert!(matches!(client.fetch("orders").await, Err(Error::UnknownService { .. })));
    assert_eq!(client.addresses(), behind);
}

#[tokio::test]
async fn writes_go_to_the_leader_and_leave_it_when_it_hangs() {
    let fakes = Fake::cluster(2);
    // Of its own registry: what arrives there arrives nowhere else.
    let leader = Fake::start();
    fakes[0].state().leader_address = leader.address();
    // A node is late after long, on a busy machine too.
    let (attempt, call) = (Duration::from_secs(2), Duration::from_secs(20));
    let client = client_with(addresses(&fakes), attempt, call);
    let _first = client.register(orders("a")).await.unwrap();
    let _second = client.register(orders("b")).await.unwrap();
    assert_eq!((fakes[0].calls("register"), leader.calls("register")), (1, 1));
    client.fetch("orders").await.unwrap();
    assert_eq!((fakes[0].calls("fetch"), leader.calls("fetch")), (1, 0), "reads stay");

    leader.set(Mode::Hang);
    let _third = client.register(orders("c")).await.unwrap();
    assert_eq!((fakes[0].calls("register"), leader.calls("register")), (2, 2));
    let _fourth = client.register(orders("d")).await.unwrap();
    let calls = (fakes[0].calls("register"), leader.calls("register"));
    assert_eq!(calls, (3, 2), "the hung leader is left alone");
}

/// What cannot be used is not made, and what was not made does not stand in the way.
#[tokio::test]
async fn there_is_an_error_or_something_that_works() {
    // S3.6
    let mut fakes = Fake::cluster(1);
    let half = Client::new([fakes[0].address(), "nonsense".to_owned()]);
    assert!(matches!(half, Err(Error::InvalidAddress { .. })), "{half:?}");
    fakes[0].kill();
    let client = Client::builder(addresses(&fakes))
        .member_refresh(None)
        .call_timeout(Duration::from_secs(2))
        .build()
        .unwrap();
    for bad in ["", "a b"] {
        assert!(matches!(client.discover(bad), Err(Error::InvalidName { .. })));
        assert!(matches!(client.channel(bad), Err(Error::InvalidName { .. })));
    }
    let down = client.register(orders("a")).await;
    assert!(matches!(down, Err(Error::Unreachable { .. })), "{down:?}");
    fakes[0].restart();
    let refused = client.register(InstanceBuilder::new("orders", "a")).await;
    assert!(matches!(refused, Err(Error::Rejected { .. })), "{refused:?}");
    assert!(fakes[0].state().instances.is_empty(), "no trace of either");
    let made = client.register(orders("a")).await.unwrap();
    assert!(matches!(made.state(), RegistrationState::Registered(_)));
    made.set_weight(7).await.unwrap();
    made.deregister().await.unwrap();
}
