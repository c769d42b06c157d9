//! Registrations: renewing, coming back, giving way, leaving.

use std::time::{Duration, Instant};

use quorate_client::{
    Client, Code, Error, Gone, InstanceBuilder, InstanceStatus, Registration, RegistrationHandle,
    RegistrationState, Update,
};
use quorate_proto::v1::Instance;

use crate::fake::{Fake, Mode, until, within};

/// No call of it is late on a busy machine.
async fn client(fakes: &[Fake]) -> Client {
    client_with(fakes, Duration::from_secs(20), Duration::from_secs(60))
}

/// For what is not answered.
fn hasty(fakes: &[Fake], call_timeout: Duration) -> Client {
    client_with(fakes, Duration::from_millis(200), call_timeout)
}

fn client_with(fakes: &[Fake], attempt_timeout: Duration, call_timeout: Duration) -> Client {
    Client::builder(fakes.iter().map(Fake::address))
        .in_order(true)
        .member_refresh(None)
        .attempt_timeout(attempt_timeout)
        .call_timeout(call_timeout)
        .build()
        .unwrap()
}

fn orders(id: &str) -> InstanceBuilder {
    InstanceBuilder::new("orders", id).endpoint("http", "http://h:1")
}

/// Renews every 30 ms.
fn short_lived(id: &str) -> Registration {
    Registration::new(orders(id)).ttl(Duration::from_millis(90))
}

fn held(fake: &Fake, id: &str) -> Option<Instance> {
    fake.state().instances.get(&("orders".to_owned(), id.to_owned())).cloned()
}

fn is_registered(handle: &RegistrationHandle) -> bool {
    matches!(handle.state(), RegistrationState::Registered(_))
}

#[tokio::test]
async fn a_registration_is_renewed_every_third_of_its_ttl() {
    // S3.2
    let fakes = Fake::cluster(1);
    let client = client(&fakes).await;
    let handle = client.register(short_lived("a")).await.unwrap();
    assert!(is_registered(&handle));
    let begun = Instant::now();
    until("ten renewals", || fakes[0].calls("renew") >= 10).await;
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(240), "no more often than that: {took:?}");
    assert_eq!(fakes[0].calls("register"), 1);

    let half = Registration::new(orders("b")).ttl(Duration::from_secs(3));
    let refused = client.register(half.renew_every(Duration::from_millis(1_501))).await;
    assert!(matches!(refused, Err(Error::InvalidOption { option: "renew_every", .. })));
}

#[tokio::test]
async fn the_granted_ttl_counts() {
    // S2.15
    let fakes = Fake::cluster(1);
    fakes[0].state().granted_ttl_ms = 60;
    let client = client(&fakes).await;
    let _handle = client.register(orders("a")).await.unwrap();
    until("renewals at the granted pace", || fakes[0].calls("renew") >= 5).await;
}

#[tokio::test]
async fn an_unknown_lease_is_registered_again() {
    // S0.5, S1.6
    let fakes = Fake::cluster(1);
    let client = client(&fakes).await;
    let instance = Registration::new(orders("a")).and(orders("b").weight(7));
    let interval = Duration::from_millis(200);
    let handle = client.register(instance.ttl(3 * interval)).await.unwrap();
    let mut state = handle.watch_state();
    for _ in 0..3 {
        fakes[0].state().expire_all();
        until("it is back, whole", || {
            held(&fakes[0], "a").is_some() && held(&fakes[0], "b").is_some_and(|b| b.weight == 7)
        })
        .await;
    }
    within(state.wait_for(|state| matches!(state, RegistrationState::Registered(_))))
        .await
        .unwrap();
}

#[tokio::test]
async fn outages_are_outlasted_without_registering_again() {
    // S1.6, S2.4: a network error is no unknown lease.
    let mut fakes = Fake::cluster(2);
    let client = client(&fakes).await;
    let handle = client.register(short_lived("a")).await.unwrap();
    let mut state = handle.watch_state();
    fakes[0].kill();
    fakes[1].kill();
    let retrying = |state: &RegistrationState| matches!(state, RegistrationState::Retrying { .. });
    let seen = within(state.wait_for(retrying)).await.unwrap().clone();
    let RegistrationState::Retrying { last_error, .. } = seen else { unreachable!() };
    assert!(matches!(last_error, Some(Error::Unreachable { .. })), "{last_error:?}");
    fakes[1].restart();
    within(state.wait_for(|state| matches!(state, RegistrationState::Registered(_))))
        .await
        .unwrap();
    assert_eq!(fakes[1].calls("register"), 1);
}

#[tokio::test]
async fn a_hung_node_is_left_before_the_lease_ends() {
    // S1.6
    let fakes = Fake::cluster(2);
    let client = hasty(&fakes, Duration::from_secs(20));
    let ttl = Duration::from_secs(6);
    let _handle = client.register(Registration::new(orders("a")).ttl(ttl)).await.unwrap();
    until("the first renewal", || fakes[0].calls("renew") >= 1).await;
    let begun = Instant::now();
    fakes[0].set(Mode::Hang);
    let renewed = fakes[0].calls("renew");
    // One that hangs, one that does not.
    until("a renewal elsewhere", || fakes[0].calls("renew") >= renewed + 2).await;
    assert!(begun.elapsed() < ttl, "took {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_newer_run_supersedes() {
    // S0.4
    let fakes = Fake::cluster(1);
    let old_process = client(&fakes).await;
    let new_process = client(&fakes).await;
    let old = old_process.register(short_lived("a")).await.unwrap();
    let new = new_process.register(short_lived("a")).await.unwrap();
    assert!(new.incarnation() > old.incarnation());
    let mut state = old.watch_state();
    let superseded = |state: &RegistrationState| matches!(state, RegistrationState::Gone(Gone::Superseded { current }) if *current == Some(new.incarnation()));
    within(state.wait_for(superseded)).await.unwrap();
    assert!(matches!(old.deregister().await, Err(Error::Superseded { .. })));
    assert!(matches!(old.update(Update::new().weight(1)).await, Err(Error::Superseded { .. })));
    let renewed = fakes[0].calls("renew");
    until("the new one goes on", || fakes[0].calls("renew") > renewed + 3).await;
    assert_eq!(held(&fakes[0], "a").unwrap().incarnation, new.incarnation());
    until("it is registered", || is_registered(&new)).await;
}

#[tokio::test]
async fn a_deregistration_by_an_older_run_changes_nothing() {
    // S0.4
    let fakes = Fake::cluster(1);
    let old_process = client(&fakes).await;
    let new_process = client(&fakes).await;
    let old = old_process.register(orders("a")).await.unwrap();
    let new = new_process.register(orders("a")).await.unwrap();
    let refused = old.deregister().await;
    let Err(Error::Superseded { current }) = refused else { panic!("{refused:?}") };
    assert_eq!(current, Some(new.incarnation()));
    assert!(held(&fakes[0], "a").is_some());
}

#[tokio::test]
async fn a_clock_that_went_back_does_not_lock_a_process_out() {
    let fakes = Fake::cluster(1);
    let future = 4_000_000_000_000_000_000;
    let before = Instance {
        service: "orders".to_owned(),
        id: "a".to_owned(),
        incarnation: future,
        ..Instance::default()
    };
    fakes[0].state().put(before.clone());
    let client = client(&fakes).await;
    let handle = client.register(short_lived("a")).await.unwrap();
    assert_eq!(handle.incarnation(), future + 1);

    // Only on the first registration: later, a higher incarnation is a newer run.
    fakes[0].state().expire_all();
    fakes[0].state().put(Instance { incarnation: future + 10, ..before });
    let mut state = handle.watch_state();
    let superseded = |state: &RegistrationState| matches!(state, RegistrationState::Gone(Gone::Superseded { current: Some(c) }) if *c == future + 10);
    within(state.wait_for(superseded)).await.unwrap();
}

#[tokio::test]
async fn start_before_the_registry() {
    // S0.17, S0.6
    let mut fakes = Fake::cluster(1);
    fakes[0].kill();
    let client = hasty(&fakes, Duration::from_secs(1));
    let failed = client.register(orders("a")).await;
    assert!(matches!(failed, Err(Error::Unreachable { .. })), "{failed:?}");
    let handle = client.register_in_background(orders("a")).unwrap();
    assert!(matches!(handle.state(), RegistrationState::Retrying { .. }));
    let mut state = handle.watch_state();
    let failing = |state: &RegistrationState| {
        matches!(state, RegistrationState::Retrying { last_error: Some(_), .. })
    };
    within(state.wait_for(failing)).await.unwrap();
    fakes[0].restart();
    let lease = within(handle.registered()).await.unwrap();
    assert_eq!((lease.id, lease.revision, lease.ttl), (1, 1, Duration::from_secs(15)));
    assert!(held(&fakes[0], "a").is_some());
}

#[tokio::test]
async fn a_refused_registration_is_an_error_and_leaves_no_trace() {
    // S2.2, S4.11
    let fakes = Fake::cluster(1);
    let client = client(&fakes).await;
    for _ in 0..2 {
        let refused = client.register(InstanceBuilder::new("orders", "a")).await;
        let Err(Error::Rejected { code: Code::InvalidArgument, message, .. }) = refused else {
            panic!("{refused:?}");
        };
        assert!(message.contains("endpoints"));
    }
    assert!(fakes[0].state().instances.is_empty());
}

#[tokio::test]
async fn one_client_registers_many_but_none_twice() {
    // S1.4
    let fakes = Fake::cluster(1);
    let client = client(&fakes).await;
    let first = client.register(orders("a")).await.unwrap();
    let _other = client.register(orders("b")).await.unwrap();
    let twice = client.register(orders("a")).await;
    assert!(matches!(twice, Err(Error::AlreadyRegistered { id, .. }) if id == "a"));
    drop(first);
    client.register(orders("a")).await.unwrap();
}

#[tokio::test]
async fn updates_reach_the_registry_and_survive_a_new_lease() {
    // S2.9, S0.9
    let fakes = Fake::cluster(1);
    let client = client(&fakes).await;
    let handle = client.register(short_lived("a").and(orders("b"))).await.unwrap();
    let draining = Update::new().status(InstanceStatus::Draining).weight(3).metadata([("k", "v")]);
    handle.update(draining).await.unwrap();
    handle.set_load(40).await.unwrap();
    handle.update_instance("orders", "b", Update::new().weight(9)).await.unwrap();
    let wrong = handle.update_instance("orders", "c", Update::new().weight(9)).await;
    assert!(matches!(wrong, Err(Error::NoSuchInstance { id, .. }) if id == "c"));
    let expected = |fake: &Fake| {
        let (a, b) = (held(fake, "a"), held(fake, "b"));
        a.is_some_and(|a| (a.status(), a.weight, a.load) == (InstanceStatus::Draining, 3, 40))
            && b.is_some_and(|b| (b.weight, b.load, b.metadata["k"].as_str()) == (9, 40, "v"))
    };
    assert!(expected(&fakes[0]));
    fakes[0].state().expire_all();
    until("what comes back is what was wanted last", || expected(&fakes[0])).await;
}

#[tokio::test]
async fn an_update_that_nobody_answered_is_made_later() {
    let mut fakes = Fake::cluster(1);
    let client = hasty(&fakes, Duration::from_secs(2));
    let handle = client.register(orders("a")).await.unwrap();
    fakes[0].kill();
    let failed = handle.update(Update::new().weight(3)).await;
    assert!(matches!(failed, Err(Error::Unreachable { .. })), "{failed:?}");
    fakes[0].restart();
    until("the update", || held(&fakes[0], "a").is_some_and(|a| a.weight == 3)).await;
}

/// Changes that wait for others have no more time than those.
#[tokio::test]
async fn updates_end_at_their_deadlines_however_many_wait() {
    let fakes = Fake::cluster(1);
    let client = hasty(&fakes, Duration::from_secs(1));
    let handle = client.register(orders("a")).await.unwrap();
    fakes[0].set(Mode::Unavailable);
    let begun = Instant::now();
    let updates = (0..8).map(|load| handle.set_load(load));
    let failed = futures_util::future::join_all(updates).await;
    let took = begun.elapsed();
    assert!(failed.iter().all(|f| matches!(f, Err(Error::Unreachable { .. }))), "{failed:?}");
    assert!(took < Duration::from_secs(4), "took {took:?}");
}

/// The renewals do not stop for a caller that updates all the time.
#[tokio::test]
async fn refused_updates_do_not_put_renewals_off() {
    let fakes = Fake::cluster(1);
    let client = client(&fakes).await;
    // Every half a second: few pauses of a busy machine are long enough for one that was put off.
    let registration = Registration::new(orders("a")).ttl(Duration::from_millis(1_500));
    let handle = client.register(registration).await.unwrap();
    let begun = Instant::now();
    while fakes[0].calls("renew") < 2 {
        assert!(begun.elapsed() < Duration::from_secs(10), "{} renewals", fakes[0].calls("renew"));
        let none = handle.update_instance("orders", "none", Update::new().weight(1)).await;
        assert!(none.is_err());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn register_and_deregister_a_thousand_times() {
    // S1.5, S1.7, S1.8
    let fakes = Fake::cluster(1);
    let client = client(&fakes).await;
    for round in 1..=1_000 {
        let handle = client.register(orders("a")).await.unwrap();
        assert!(held(&fakes[0], "a").is_some());
        within(handle.deregister()).await.unwrap();
        assert!(held(&fakes[0], "a").is_none(), "gone when deregister returns");
        assert!(matches!(within(handle.deregister()).await, Err(Error::AlreadyDeregistered)));
        assert_eq!(fakes[0].calls("deregister"), round, "one call for each handle");
    }
}

/// Deregistrations at every moment of a registration's life: in the middle of renewals, of lost
/// leases, of attempts whose answers are lost. Nothing is ever there again afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_comes_back_after_a_deregistration() {
    // S0.7, S2.16
    let fakes = Fake::cluster(2);
    let client = hasty(&fakes, Duration::from_secs(20));
    let mut ended = Vec::new();
    for round in 0..1_000_u32 {
        let id = format!("i{round}");
        // So short that it renews all the time.
        let registration = Registration::new(orders(&id)).ttl(Duration::from_millis(3));
        let handle = client.register(registration).await.unwrap();
        if round % 3 == 0 {
            fakes[0].state().expire_all();
        }
        if round % 250 == 0 {
            fakes[0].set(Mode::SwallowAnswers);
        }
        for _ in 0..round % 23 {
            tokio::task::yield_now().await;
        }
        if round % 5 == 0 {
            tokio::time::sleep(Duration::from_micros(u64::from(round % 7) * 500)).await;
        }
        within(handle.deregister()).await.unwrap();
        fakes[0].set(Mode::Honest);
        let registers = fakes[0].calls("register");
        ended.push((handle, id, registers));
        assert!(held(&fakes[0], &ended[round as usize].1).is_none());
    }
    // Every handle is still held: all that could come back would have had its time by now.
    let registers = fakes[0].calls("register");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(fakes[0].calls("register"), registers);
    assert!(fakes[0].state().instances.is_empty());
}

#[tokio::test]
async fn a_deregistration_whose_answer_was_lost_is_done() {
    let fakes = Fake::cluster(2);
    let client = hasty(&fakes, Duration::from_secs(20));
    let handle = client.register(orders("a")).await.unwrap();
    fakes[0].set(Mode::SwallowAnswers);
    within(handle.deregister()).await.unwrap();
    assert!(fakes[0].calls("deregister") >= 2, "the second got NOT_FOUND");
    assert!(matches!(handle.state(), RegistrationState::Gone(Gone::Deregistered)));

    fakes[0].set(Mode::Honest);
    let handle = client.register(orders("a")).await.unwrap();
    fakes[0].set(Mode::SwallowAnswers);
    within(client.deregister("orders", "a")).await.unwrap();
    fakes[0].set(Mode::Honest);
    let missing = within(client.deregister("orders", "never")).await;
    assert!(matches!(missing, Err(Error::Rejected { code: Code::NotFound, .. })), "{missing:?}");
    drop(handle);
}

#[tokio::test]
async fn a_failed_deregistration_ends_at_its_deadline_and_renews_no_more() {
    // S1.7, S2.13, S0.7
    let mut fakes = Fake::cluster(1);
    let client = hasty(&fakes, Duration::from_secs(2));
    let handle = client.register(short_lived("a")).await.unwrap();
    fakes[0].kill();
    let begun = Instant::now();
    let failed = within(handle.deregister()).await;
    assert!(matches!(failed, Err(Error::Unreachable { .. })), "{failed:?}");
    assert!(begun.elapsed() < Duration::from_secs(8), "took {:?}", begun.elapsed());
    fakes[0].restart();
    fakes[0].state().expire_all();
    let calls = (fakes[0].calls("renew"), fakes[0].calls("register"));
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert_eq!((fakes[0].calls("renew"), fakes[0].calls("register")), calls, "it is leaving");
    assert!(matches!(handle.update(Update::new()).await, Err(Error::AlreadyDeregistered)));
    within(handle.deregister()).await.unwrap();
    assert!(matches!(within(handle.deregister()).await, Err(Error::AlreadyDeregistered)));
}

/// As at a shutdown: its caller has some time, and goes.
#[tokio::test]
async fn a_deregistration_goes_on_without_its_handle() {
    let fakes = Fake::cluster(1);
    let client = hasty(&fakes, Duration::from_secs(20));
    let handle = client.register(orders("a")).await.unwrap();
    fakes[0].set(Mode::Hang);
    let asked = fakes[0].calls("deregister");
    tokio::select! {
        done = handle.deregister() => panic!("the node hangs: {done:?}"),
        () = until("it is asked", || fakes[0].calls("deregister") > asked) => {}
    }
    drop(handle);
    fakes[0].set(Mode::Honest);
    until("it is gone", || held(&fakes[0], "a").is_none()).await;
}

#[tokio::test]
async fn many_deregister_at_once_and_one_succeeds() {
    // S1.8, S2.13
    let fakes = Fake::cluster(1);
    let client = client(&fakes).await;
    let handle = std::sync::Arc::new(client.register(orders("a")).await.unwrap());
    let all = (0..20).map(|_| {
        let handle = handle.clone();
        tokio::spawn(async move { within(handle.deregister()).await })
    });
    let mut successes = 0;
    for one in all.collect::<Vec<_>>() {
        match one.await.unwrap() {
            Ok(()) => successes += 1,
            Err(error) => assert!(matches!(error, Error::AlreadyDeregistered), "{error}"),
        }
    }
    assert_eq!((successes, fakes[0].calls("deregister")), (1, 1));
}

/// The client has a runtime of its own here, whose tasks can be counted.
#[test]
fn dropped_handles_end_their_tasks() {
    // S0.8
    let fakes = Fake::cluster(2);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let tasks = || runtime.metrics().num_alive_tasks();
    runtime.block_on(async {
        let client = client(&fakes).await;
        // A connection to each node, which stay.
        drop(client.register(orders("warm")).await.unwrap());
        fakes[0].set(Mode::Unavailable);
        client.fetch("orders").await.unwrap();
        fakes[0].set(Mode::Honest);
        let watch = client.watch("orders");
        within(watch.synced()).await.unwrap();
        drop(watch);
        for hung in [false, true] {
            until("the tasks that stay are all there are", || tasks() <= 8).await;
            let before = stable(&tasks).await;
            fakes.iter().for_each(|fake| fake.set(Mode::Honest));
            let handle = client.register(short_lived("a")).await.unwrap();
            let watch = client.watch("orders");
            within(watch.synced()).await.unwrap();
            assert!(tasks() >= before + 2, "they have tasks: {before}, {}", tasks());
            if hung {
                // In the middle of a renewal that is not answered.
                fakes.iter().for_each(|fake| fake.set(Mode::Hang));
                let renewed = fakes[0].calls("renew");
                until("a renewal hangs", || fakes[0].calls("renew") > renewed).await;
            }
            drop((handle, watch));
            until("their tasks are gone", || tasks() <= before).await;
        }
    });
}

/// The number of tasks, once it has stood still for a while (connections end in their own time).
async fn stable(tasks: &impl Fn() -> usize) -> usize {
    let mut last = (tasks(), Instant::now());
    while last.1.elapsed() < Duration::from_millis(50) {
        tokio::time::sleep(Duration::from_millis(2)).await;
        if tasks() != last.0 {
            last = (tasks(), Instant::now());
        }
    }
    last.0
}
