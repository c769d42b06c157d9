//! Changes of a registration that are refused, or not answered: the registration itself lives on.

use std::time::{Duration, Instant};

use quorate_client::{
    Client, Code, Error, Gone, InstanceBuilder, InstanceStatus, Registration, RegistrationHandle,
    RegistrationState, Update,
};
use quorate_proto::v1::Instance;
use tokio::time::timeout;

use crate::fake::{Fake, Mode, until, within};

const CALL_TIMEOUT: Duration = Duration::from_secs(3);

async fn client(fakes: &[Fake]) -> Client {
    client_with(fakes, Duration::from_millis(200), CALL_TIMEOUT)
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

/// Renews every 0.8 s.
fn orders() -> Registration {
    let instance = InstanceBuilder::new("orders", "a").endpoint("http", "http://h:1");
    Registration::new(instance).ttl(Duration::from_millis(2_400))
}

fn held_now(fake: &Fake) -> Option<Instance> {
    fake.state().instances.get(&("orders".to_owned(), "a".to_owned())).cloned()
}

fn held(fake: &Fake) -> Instance {
    held_now(fake).expect("it is registered")
}

fn lease_id(handle: &RegistrationHandle) -> Option<u64> {
    match handle.state() {
        RegistrationState::Registered(lease) => Some(lease.id),
        _ => None,
    }
}

/// Waits until a lease was renewed twice.
async fn renewals_go_on(fake: &Fake, lease: u64) {
    let renewals = || fake.state().renewals.get(&lease).map_or(0, Vec::len);
    let before = renewals();
    until("renewals go on", || renewals() >= before + 2).await;
}

fn assert_no_room<T: std::fmt::Debug>(refused: Result<T, Error>) {
    let expected = Code::ResourceExhausted;
    assert!(
        matches!(refused, Err(Error::Rejected { code, .. }) if code == expected),
        "{refused:?}"
    );
}

/// What no node takes was wanted while none could say so: it stands in the way of nothing.
#[tokio::test]
async fn a_wrong_update_in_an_outage_is_given_up_after_it() {
    // S3.2
    let fakes = Fake::cluster(1);
    let client = client(&fakes).await;
    let handle = client.register(orders()).await.unwrap();
    within(handle.set_load(1)).await.unwrap();
    fakes[0].set(Mode::Unavailable);
    let unreachable = within(handle.set_load(1_000_001)).await;
    assert!(matches!(unreachable, Err(Error::Unreachable { .. })), "{unreachable:?}");
    fakes[0].state().expire_all();
    fakes[0].set(Mode::Honest);
    until("it is back", || held_now(&fakes[0]).is_some_and(|held| held.load == 1)).await;
    within(handle.set_load(2)).await.unwrap();
    assert_eq!(held(&fakes[0]).load, 2);
}

/// What is wrong is no reason to give up what is right: a process that drains stays so.
#[tokio::test]
async fn a_wrong_update_in_an_outage_takes_no_right_one_with_it() {
    let fakes = Fake::cluster(1);
    // No answer is so late that it is asked for twice.
    let client = client_with(&fakes, Duration::from_secs(20), CALL_TIMEOUT);
    let handle = client.register(orders()).await.unwrap();
    fakes[0].set(Mode::Unavailable);
    let waiting = Update::new().status(InstanceStatus::OutOfService).weight(7);
    for update in [waiting, Update::new().load(1_000_001), Update::new().metadata([("a", "b")])] {
        let unreachable = within(handle.update(update)).await;
        assert!(matches!(unreachable, Err(Error::Unreachable { .. })), "{unreachable:?}");
    }
    fakes[0].set(Mode::Honest);
    let out = InstanceStatus::OutOfService as i32;
    let is_right = |held: &Instance| {
        held.status == out && held.weight == 7 && held.load == 0 && held.metadata.contains_key("a")
    };
    until("all but that are made", || held_now(&fakes[0]).is_some_and(|held| is_right(&held)))
        .await;
    let asked = fakes[0].calls("register");
    let RegistrationState::Registered(lease) = handle.state() else { panic!("{handle:?}") };
    renewals_go_on(&fakes[0], lease.id).await;
    assert_eq!(fakes[0].calls("register"), asked, "that is all");
}

/// Also where a change that comes meanwhile is made first.
#[tokio::test]
async fn what_waited_beside_a_wrong_update_is_made_after_the_next() {
    let fakes = Fake::cluster(1);
    let client = client(&fakes).await;
    let handle = client.register(orders()).await.unwrap();
    fakes[0].set(Mode::Unavailable);
    for update in [Update::new().weight(7), Update::new().load(1_000_001)] {
        let unreachable = within(handle.update(update)).await;
        assert!(matches!(unreachable, Err(Error::Unreachable { .. })), "{unreachable:?}");
    }
    // Until then nothing is tried in the background.
    fakes[0].state().retry_after = Duration::from_secs(10);
    fakes[0].set(Mode::Overloaded);
    let asked = fakes[0].calls("register");
    until("it is told to wait", || fakes[0].calls("register") > asked).await;
    fakes[0].set(Mode::Honest);
    within(handle.set_status(InstanceStatus::OutOfService)).await.expect("it is right");
    let out = InstanceStatus::OutOfService as i32;
    let is_right = |held: &Instance| held.status == out && held.weight == 7;
    until("what waited is made", || held_now(&fakes[0]).is_some_and(|held| is_right(&held))).await;
    assert_eq!(held(&fakes[0]).load, 0);
}

/// As it was to begin with, it is right.
#[tokio::test]
async fn nor_does_one_keep_a_registration_away_that_was_never_there() {
    let fakes = Fake::cluster(1);
    let client = client(&fakes).await;
    fakes[0].set(Mode::Unavailable);
    let handle = client.register_in_background(orders()).unwrap();
    let unreachable = within(handle.set_load(1_000_001)).await;
    assert!(matches!(unreachable, Err(Error::Unreachable { .. })), "{unreachable:?}");
    fakes[0].set(Mode::Honest);
    within(handle.registered()).await.unwrap();
    assert_eq!(held(&fakes[0]).load, 0);
    assert_eq!(client.counters().reregistrations, 0);
}

/// The next one may come before the attempt that finds that out.
#[tokio::test]
async fn a_wrong_update_in_an_outage_is_no_reason_to_refuse_the_next() {
    let fakes = Fake::cluster(1);
    let client = client(&fakes).await;
    let handle = client.register(orders()).await.unwrap();
    fakes[0].set(Mode::Unavailable);
    let unreachable = within(handle.set_load(1_000_001)).await;
    assert!(matches!(unreachable, Err(Error::Unreachable { .. })), "{unreachable:?}");
    // Until then nothing is tried in the background.
    fakes[0].state().retry_after = Duration::from_secs(10);
    fakes[0].set(Mode::Overloaded);
    let asked = fakes[0].calls("register");
    until("it is told to wait", || fakes[0].calls("register") > asked).await;
    fakes[0].set(Mode::Honest);
    within(handle.set_weight(7)).await.expect("it is right");
    assert_eq!((held(&fakes[0]).weight, held(&fakes[0]).load), (7, 0));
    // A wrong one after it is refused for itself.
    fakes[0].set(Mode::Unavailable);
    let unreachable = within(handle.set_weight(8)).await;
    assert!(matches!(unreachable, Err(Error::Unreachable { .. })), "{unreachable:?}");
    fakes[0].set(Mode::Overloaded);
    let asked = fakes[0].calls("register");
    until("it is told to wait", || fakes[0].calls("register") > asked).await;
    fakes[0].set(Mode::Honest);
    let wrong = within(handle.set_load(1_000_001)).await;
    assert!(matches!(wrong, Err(Error::Rejected { .. })), "{wrong:?}");
    within(handle.set_load(9)).await.unwrap();
    assert_eq!((held(&fakes[0]).weight, held(&fakes[0]).load), (8, 9));
}

#[tokio::test]
async fn a_refused_update_costs_no_lease() {
    // S0.9, S3.2
    let fakes = Fake::cluster(1);
    let client = client_with(&fakes, Duration::from_secs(20), Duration::from_secs(60));
    let handle = client.register(orders()).await.unwrap();
    let lease = lease_id(&handle).unwrap();
    let mut state = handle.watch_state();
    state.mark_unchanged();
    fakes[0].set(Mode::NoRoom);
    for load in 1..=3 {
        assert_no_room(within(handle.set_load(load)).await);
        renewals_go_on(&fakes[0], lease).await;
    }
    // On a busy machine a renewal may be late, which is another matter.
    let is_as_before = !state.has_changed().unwrap() || client.counters().renewals_failed > 0;
    assert!(is_as_before, "it is as registered as before: {:?}", handle.state());
    // Nothing was done, so there is nothing to undo.
    assert_eq!((fakes[0].calls("register"), held(&fakes[0]).load), (4, 0));
    fakes[0].set(Mode::Honest);
    within(handle.set_load(4)).await.unwrap();
    assert_eq!(held(&fakes[0]).load, 4);
    until("it is registered", || lease_id(&handle) == Some(lease)).await;
    assert_eq!(client.counters().reregistrations, 0);
}

#[tokio::test]
async fn a_refused_update_that_was_made_all_the_same_is_undone() {
    // S0.9, S2.9
    let fakes = Fake::cluster(2);
    let client = client(&fakes).await;
    let handle = client.register(orders()).await.unwrap();
    fakes[0].set(Mode::SwallowAnswers);
    fakes[1].set(Mode::Overloaded);
    let refused = within(handle.set_status(InstanceStatus::OutOfService)).await;
    let refused_for = Code::ResourceExhausted;
    assert!(matches!(refused, Err(Error::Rejected { code, .. }) if code == refused_for));
    let status = || held(&fakes[0]).status();
    assert_eq!(status(), InstanceStatus::OutOfService, "the answer was lost, not the change");
    fakes.iter().for_each(|fake| fake.set(Mode::Honest));
    until("it is as it was", || status() == InstanceStatus::Up).await;
    until("and is kept", || lease_id(&handle).is_some()).await;
}

/// An attempt that got no answer may still be on its way, and be done when there is room again.
#[tokio::test]
async fn want_of_room_says_nothing_of_an_attempt_before_it() {
    let mut fakes = Fake::cluster(2);
    // Each call by a client of its own, which knows of no node that it has failed.
    let refused = async |fakes: &[Fake], attempt_timeout, call_timeout| {
        let client = || client_with(fakes, attempt_timeout, call_timeout);
        let change = Update::new().load(7);
        let update = client().update("orders", "a", &change).await;
        let deregister = client().deregister("orders", "a").await;
        let register = client().register(orders()).await.map(drop);
        [update, deregister, register].map(|refused| refused.unwrap_err())
    };
    fakes[0].set(Mode::Hang);
    fakes[1].set(Mode::Overloaded);
    for error in within(refused(&fakes, Duration::from_millis(200), CALL_TIMEOUT)).await {
        let said = error.to_string();
        assert!(matches!(error, Error::Unreachable { within: None, .. }), "{said}");
        for words in ["no node could do it", "no answer within", "too many calls wait"] {
            assert!(said.contains(words), "{words:?}: {said}");
        }
    }
    // The node that was asked first is not there: nothing is on its way. No answer of the other one
    // is late on a busy machine.
    fakes[0].kill();
    let (patient, long) = (Duration::from_secs(20), Duration::from_secs(60));
    for error in within(refused(&fakes, patient, long)).await {
        let said = error.to_string();
        assert!(matches!(error, Error::Rejected { code: Code::ResourceExhausted, .. }), "{said}");
    }
}

/// Nor one that has to be undone, as soon as there is room for that.
#[tokio::test]
async fn what_cannot_be_undone_yet_costs_no_lease() {
    // S0.9, S3.2
    let fakes = Fake::cluster(2);
    let client = client(&fakes).await;
    let handle = client.register(orders()).await.unwrap();
    let lease = lease_id(&handle).unwrap();
    fakes[0].set(Mode::SwallowAnswers);
    fakes[1].set(Mode::NoRoom);
    assert_no_room(within(handle.set_load(7)).await);
    assert_eq!(held(&fakes[0]).load, 7, "the answer was lost, not the change");
    fakes[0].set(Mode::NoRoom);
    let registers = fakes[0].calls("register");
    until("it tries", || fakes[0].calls("register") >= registers + 3).await;
    renewals_go_on(&fakes[0], lease).await;
    until("it is registered", || lease_id(&handle) == Some(lease)).await;
    assert_eq!(held(&fakes[0]).load, 7);
    fakes.iter().for_each(|fake| fake.set(Mode::Honest));
    until("it is as it was", || held(&fakes[0]).load == 0).await;
    // An answer may be late on a busy machine; then it asks once more.
    let mut registers = 0;
    for _ in 0..5 {
        if fakes[0].calls("register") == registers {
            return;
        }
        registers = fakes[0].calls("register");
        renewals_go_on(&fakes[0], lease).await;
    }
    panic!("it goes on registering: {registers} times");
}

/// Nor one that nobody answered, and that is made as soon as there is room for it.
#[tokio::test]
async fn what_cannot_be_made_yet_costs_no_lease() {
    // S0.9, S3.2
    let fakes = Fake::cluster(1);
    let client = client(&fakes).await;
    let handle = client.register(orders()).await.unwrap();
    let lease = lease_id(&handle).unwrap();
    fakes[0].set(Mode::Unavailable);
    let failed = within(handle.set_load(7)).await;
    assert!(matches!(failed, Err(Error::Unreachable { .. })), "{failed:?}");
    fakes[0].set(Mode::NoRoom);
    let registers = fakes[0].calls("register");
    until("it tries", || fakes[0].calls("register") >= registers + 3).await;
    renewals_go_on(&fakes[0], lease).await;
    until("it is registered", || lease_id(&handle) == Some(lease)).await;
    // The next one is refused, which gives up no other.
    assert_no_room(within(handle.set_weight(9)).await);
    fakes[0].set(Mode::Honest);
    until("it is made", || held(&fakes[0]).load == 7).await;
    assert_eq!((held(&fakes[0]).weight, held(&fakes[0]).lease_id), (100, lease));
}

/// A newer run is noticed by the attempt to make the change, however well the lease is.
#[tokio::test]
async fn what_cannot_be_made_since_a_newer_run_is_there_ends_the_registration() {
    // S0.4
    let fakes = Fake::cluster(1);
    let client = client(&fakes).await;
    let handle = client.register(orders()).await.unwrap();
    fakes[0].set(Mode::Unavailable);
    let failed = within(handle.set_load(7)).await;
    assert!(matches!(failed, Err(Error::Unreachable { .. })), "{failed:?}");
    let newer = Instance { incarnation: u64::MAX, ..held(&fakes[0]) };
    fakes[0].state().put(newer);
    fakes[0].set(Mode::Honest);
    let mut state = handle.watch_state();
    let superseded = |state: &RegistrationState| {
        matches!(state, RegistrationState::Gone(Gone::Superseded { current: Some(u64::MAX) }))
    };
    within(state.wait_for(superseded)).await.unwrap();
    assert_eq!(held(&fakes[0]).load, 0);
}

#[tokio::test]
async fn a_deregistration_waits_for_no_update() {
    // S1.7
    let fakes = Fake::cluster(1);
    let client = client(&fakes).await;
    let handle = std::sync::Arc::new(client.register(orders()).await.unwrap());
    fakes[0].set(Mode::Hang);
    let updates = (0..20).map(|load| {
        let handle = handle.clone();
        tokio::spawn(async move { handle.set_load(load).await })
    });
    let updates: Vec<_> = updates.collect();
    until("one is under way", || fakes[0].calls("register") > 1).await;
    let begun = Instant::now();
    let failed = within(handle.deregister()).await;
    let took = begun.elapsed();
    let Err(Error::Unreachable { tried, .. }) = failed else { panic!("{failed:?}") };
    assert!(!tried.is_empty() && fakes[0].calls("deregister") > 0, "it was not tried");
    assert!(took < CALL_TIMEOUT + Duration::from_millis(2_500), "took {took:?}");
    for update in updates {
        let refused = within(update).await.unwrap();
        assert!(matches!(refused, Err(Error::AlreadyDeregistered)), "{refused:?}");
    }
    fakes[0].set(Mode::Honest);
    within(handle.deregister()).await.unwrap();
    assert_eq!(fakes[0].state().instances.len(), 0);
}

#[tokio::test]
async fn an_update_that_its_caller_gave_up_before_it_began_is_not_made() {
    let fakes = Fake::cluster(1);
    let client = client(&fakes).await;
    let handle = std::sync::Arc::new(client.register(orders()).await.unwrap());
    fakes[0].set(Mode::Hang);
    let first = tokio::spawn({
        let handle = handle.clone();
        async move { handle.set_load(1).await }
    });
    until("the first is under way", || fakes[0].calls("register") > 1).await;
    let given_up = timeout(Duration::from_millis(20), handle.set_load(2)).await;
    assert!(given_up.is_err(), "{given_up:?}");
    fakes[0].set(Mode::Honest);
    within(first).await.unwrap().unwrap();
    within(handle.set_weight(9)).await.unwrap();
    assert_eq!((held(&fakes[0]).load, held(&fakes[0]).weight), (1, 9));
}
