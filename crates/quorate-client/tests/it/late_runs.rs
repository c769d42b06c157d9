//! Runs that were kept from the registry: what became of their instances meanwhile counts.

use std::time::{Duration, UNIX_EPOCH};

use quorate_client::{
    Client, Code, Error, Gone, InstanceBuilder, InstanceStatus, Registration, RegistrationHandle,
    RegistrationState,
};
use quorate_proto::v1::{Instance, RemoveReason};

use crate::fake::{Fake, Mode, until, until_long, within};

const PATIENT: Duration = Duration::from_secs(20);

/// No call of it is late on a busy machine, unless it is not to be answered.
fn client(fakes: &[Fake], attempt_timeout: Duration) -> Client {
    client_with(fakes, attempt_timeout, Duration::from_secs(60))
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

/// Renews every 30 ms.
fn short_lived() -> Registration {
    of("a")
}

fn of(id: &str) -> Registration {
    let instance = InstanceBuilder::new("orders", id).endpoint("http", "http://h:1");
    Registration::new(instance).ttl(Duration::from_millis(90))
}

fn held(fake: &Fake) -> Option<Instance> {
    fake.state().instances.get(&("orders".to_owned(), "a".to_owned())).cloned()
}

/// The old run could not reach the registry until the new one was there.
#[tokio::test]
async fn a_run_that_comes_late_gives_way_to_a_newer_one() {
    // S0.4
    let fakes = Fake::cluster(2);
    fakes[0].set(Mode::Unavailable);
    let old = client(&fakes[..1], PATIENT).register_in_background(short_lived()).unwrap();
    until("it is tried", || fakes[0].calls("register") >= 1).await;
    let new = client(&fakes[1..], PATIENT).register(short_lived()).await.unwrap();
    fakes[0].set(Mode::Honest);
    let late = within(old.registered()).await;
    assert!(
        matches!(late, Err(Error::Superseded { current: Some(c) }) if c == new.incarnation()),
        "{late:?}"
    );
    let renewed = fakes[0].calls("renewed leases");
    until("the new one goes on", || fakes[0].calls("renewed leases") > renewed + 3).await;
    until("it is registered", || matches!(new.state(), RegistrationState::Registered(_))).await;
    assert_eq!(held(&fakes[0]).unwrap().incarnation, new.incarnation());
}

/// The answer to its registration was lost, and somebody deregistered it since.
#[tokio::test]
async fn a_run_that_was_deregistered_before_it_had_an_answer_stays_away() {
    // S0.7
    let fakes = Fake::cluster(2);
    fakes[0].set(Mode::SwallowAnswers);
    let client_of_first = client(&fakes[..1], Duration::from_millis(200));
    let handle = client_of_first.register_in_background(short_lived()).unwrap();
    until("it is there", || held(&fakes[0]).is_some()).await;
    client(&fakes[1..], PATIENT).deregister("orders", "a").await.unwrap();
    fakes[0].set(Mode::Honest);
    let late = within(handle.registered()).await;
    assert!(matches!(late, Err(Error::Superseded { .. })), "{late:?}");
    assert!(held(&fakes[0]).is_none());
}

const YEAR: u64 = 365 * 86_400_000_000;

fn now() -> u64 {
    UNIX_EPOCH.elapsed().unwrap().as_micros() as u64
}

/// A run whose clock was years ahead holds the instance.
fn held_from_afar(fake: &Fake) -> u64 {
    let incarnation = now() + 5 * YEAR;
    let (service, id) = ("orders".to_owned(), "a".to_owned());
    fake.state().put(Instance { service, id, incarnation, ..Instance::default() });
    incarnation
}

/// Nodes took such a number once. The one above it is refused, and was asked for again for ever.
#[tokio::test]
async fn a_number_that_no_node_takes_is_not_asked_for_again() {
    let fakes = Fake::cluster(1);
    let far = held_from_afar(&fakes[0]);
    fakes[0].state().incarnation_max = Some(now() + YEAR);
    let [first, second, third] = [(); 3].map(|()| client(&fakes, PATIENT));
    let told = within(first.register(short_lived())).await.map(drop).unwrap_err();
    assert!(matches!(told, Error::Superseded { current: Some(it) } if it == far), "{told:?}");
    let before = fakes[0].calls("register");
    let handle = second.register_in_background(short_lived()).unwrap();
    // Its own, the one above, its own, and that again: the other run renews its lease.
    until_long("it asks again", || fakes[0].calls("register") >= before + 5).await;
    let refused = fakes[0].state().refused_incarnations;
    assert_eq!(refused, 2, "one of each");
    let asked = fakes[0].state().registered_at[before + 2..].to_vec();
    let pauses = asked.windows(2).map(|two| two[1] - two[0]);
    assert!(pauses.clone().all(|pause| pause > Duration::from_millis(900)), "{pauses:?}");
    assert!(handle.incarnation() < now() + YEAR);
    // One whose clock is right ends the wait.
    let newer = now();
    let instance = held(&fakes[0]).unwrap();
    fakes[0].state().put(Instance { incarnation: newer, ..instance });
    let told = within(handle.registered()).await.map(drop).unwrap_err();
    assert!(matches!(told, Error::Superseded { current: Some(it) } if it == newer), "{told:?}");
    fakes[0].state().expire_all();
    let handle = within(third.register(short_lived())).await.expect("the other one is gone");
    assert!(handle.incarnation() < now() + YEAR);
}

/// In the background, and it waits for the run that holds the instance.
async fn waiting(fakes: &[Fake], call_timeout: Duration) -> RegistrationHandle {
    held_from_afar(&fakes[0]);
    fakes[0].state().incarnation_max = Some(now() + YEAR);
    let other = InstanceBuilder::new("orders", "b").endpoint("http", "http://h:2");
    let client = client_with(fakes, PATIENT, call_timeout);
    let handle = client.register_in_background(short_lived().and(other)).unwrap();
    // By its own number, by the one above the other's, and by its own again.
    until("it is refused", || fakes[0].calls("register") >= 3).await;
    handle
}

/// Nothing is left of the other run but its lease.
#[tokio::test]
async fn a_lease_of_a_run_from_afar_is_waited_for_in_the_background() {
    let fakes = Fake::cluster(1);
    let handle = waiting(&fakes, PATIENT).await;
    // For longer than its own TTL.
    until_long("it asks again", || fakes[0].calls("register") >= 5).await;
    fakes[0].state().expire_all();
    within(handle.registered()).await.expect("the other one is gone");
    assert!(handle.incarnation() < now() + YEAR);
    assert_eq!(fakes[0].state().instances.len(), 2);
}

/// As by a program that says its load every few seconds.
#[tokio::test]
async fn changes_do_not_end_the_wait_for_a_lease() {
    let fakes = Fake::cluster(1);
    let handle = waiting(&fakes, PATIENT).await;
    for load in 1..=3 {
        let refused = within(handle.set_load(load)).await;
        let expected = Code::FailedPrecondition;
        let is_refused = matches!(refused, Err(Error::Rejected { code, .. }) if code == expected);
        assert!(is_refused, "{refused:?}");
        let state = handle.state();
        assert!(matches!(state, RegistrationState::Retrying { .. }), "{state:?}");
    }
    fakes[0].state().expire_all();
    within(handle.registered()).await.expect("the other one is gone");
    assert_eq!(held(&fakes[0]).unwrap().load, 3);
}

#[tokio::test]
async fn nor_do_changes_that_nobody_answers() {
    let fakes = Fake::cluster(1);
    let handle = waiting(&fakes, Duration::from_secs(2)).await;
    fakes[0].set(Mode::Unavailable);
    let failed = within(handle.set_load(1)).await;
    assert!(matches!(failed, Err(Error::Unreachable { .. })), "{failed:?}");
    let asked = fakes[0].state().registered_at.len();
    fakes[0].set(Mode::Honest);
    until("it is refused again", || fakes[0].state().registered_at.len() >= asked + 2).await;
    fakes[0].state().expire_all();
    within(handle.registered()).await.expect("the other one is gone");
    assert_eq!(held(&fakes[0]).unwrap().load, 1);
}

/// It was made while nobody answered, as by a program that drains, and is right.
#[tokio::test]
async fn a_change_that_waits_outlasts_a_number_that_no_node_takes() {
    let fakes = Fake::cluster(1);
    let far = held_from_afar(&fakes[0]);
    let client = client_with(&fakes, PATIENT, Duration::from_secs(3));
    let handle = client.register(short_lived()).await.unwrap();
    assert_eq!(handle.incarnation(), far + 1);
    fakes[0].set(Mode::Unavailable);
    let failed = within(handle.set_status(InstanceStatus::OutOfService)).await;
    assert!(matches!(failed, Err(Error::Unreachable { .. })), "{failed:?}");
    let max = now() + YEAR;
    fakes[0].state().incarnation_max = Some(max);
    fakes[0].state().expire_all();
    fakes[0].set(Mode::Honest);
    until("it is back", || held(&fakes[0]).is_some()).await;
    let held = held(&fakes[0]).unwrap();
    assert!(held.incarnation <= max, "{}", held.incarnation);
    assert_eq!(held.status(), InstanceStatus::OutOfService);
}

/// The next attempt in the background is far off.
async fn told_to_wait(fake: &Fake) {
    fake.state().retry_after = Duration::from_secs(10);
    fake.set(Mode::Overloaded);
    let asked = fake.calls("register");
    until("it is told", || fake.calls("register") > asked).await;
    fake.set(Mode::Honest);
}

/// It is the change that finds out, before the background does.
#[tokio::test]
async fn a_change_meets_a_number_that_no_node_takes_any_more() {
    let fakes = Fake::cluster(1);
    let far = held_from_afar(&fakes[0]);
    let handle = client(&fakes, PATIENT).register(short_lived()).await.unwrap();
    assert_eq!(handle.incarnation(), far + 1);
    fakes[0].set(Mode::NoRoom);
    fakes[0].state().expire_all();
    let is_lost = || matches!(handle.state(), RegistrationState::Retrying { .. });
    until("its lease is lost", is_lost).await;
    let max = now() + YEAR;
    fakes[0].state().incarnation_max = Some(max);
    told_to_wait(&fakes[0]).await;
    within(handle.set_status(InstanceStatus::OutOfService)).await.expect("by its own number");
    assert_eq!(fakes[0].state().refused_incarnations, 1);
    let held = held(&fakes[0]).unwrap();
    assert!(held.incarnation <= max, "{}", held.incarnation);
    assert_eq!(held.status(), InstanceStatus::OutOfService);
}

/// It is the change that takes the number over, leaves it, and finds the other run's lease.
#[tokio::test]
async fn a_change_before_the_first_registration_waits_for_a_lease() {
    let fakes = Fake::cluster(1);
    fakes[0].set(Mode::Overloaded);
    let handle = client(&fakes, PATIENT).register_in_background(short_lived()).unwrap();
    held_from_afar(&fakes[0]);
    fakes[0].state().incarnation_max = Some(now() + YEAR);
    told_to_wait(&fakes[0]).await;
    let refused = within(handle.set_status(InstanceStatus::OutOfService)).await;
    let expected = Code::FailedPrecondition;
    let is_refused = matches!(refused, Err(Error::Rejected { code, .. }) if code == expected);
    assert!(is_refused, "{refused:?}");
    fakes[0].state().expire_all();
    within(handle.registered()).await.expect("the other one is gone");
    assert_eq!(held(&fakes[0]).unwrap().status(), InstanceStatus::OutOfService);
}

/// Of two, by a number that was taken over, `b` is gone since: no node takes that any more.
async fn half_gone(fakes: &[Fake], call_timeout: Duration) -> RegistrationHandle {
    let far = held_from_afar(&fakes[0]);
    let other = InstanceBuilder::new("orders", "b").endpoint("http", "http://h:2");
    let client = client_with(fakes, PATIENT, call_timeout);
    let handle = client.register(short_lived().and(other)).await.unwrap();
    assert_eq!(handle.incarnation(), far + 1);
    let mut state = fakes[0].state();
    state.remove(&("orders".to_owned(), "b".to_owned()), RemoveReason::Deregistered);
    state.incarnation_max = Some(now() + YEAR);
    drop(state);
    handle
}

/// Its lease lives, and is renewed.
#[tokio::test]
async fn a_number_that_no_node_takes_beside_a_lease_is_said() {
    let fakes = Fake::cluster(1);
    let handle = half_gone(&fakes, Duration::from_secs(2)).await;
    let is_said = || match handle.state() {
        RegistrationState::Retrying { last_error: Some(Error::Rejected { code, .. }), .. } => {
            code == Code::InvalidArgument
        }
        _ => false,
    };
    fakes[0].set(Mode::Unavailable);
    let failed = within(handle.set_status(InstanceStatus::OutOfService)).await;
    assert!(matches!(failed, Err(Error::Unreachable { .. })), "{failed:?}");
    fakes[0].set(Mode::Honest);
    for weight in [7, 8] {
        until("it is said", is_said).await;
        let renewed = fakes[0].calls("renewed leases");
        let mut state = handle.watch_state();
        tokio::select! {
            _ = state.wait_for(|state| matches!(state, RegistrationState::Registered(_))) => {
                panic!("it is not all there");
            }
            () = until("it is renewed", || fakes[0].calls("renewed leases") >= renewed + 5) => {}
        }
        let refused = within(handle.set_weight(weight)).await;
        assert!(matches!(refused, Err(Error::Rejected { .. })), "{refused:?}");
    }
    fakes[0].state().expire_all();
    within(handle.registered()).await.expect("by its own number");
    let held = held(&fakes[0]).unwrap();
    assert_eq!((held.status(), held.weight), (InstanceStatus::OutOfService, 8));
    assert!(held.incarnation < now() + YEAR);
}

#[tokio::test]
async fn what_a_number_that_no_node_takes_has_left_is_deregistered() {
    let fakes = Fake::cluster(1);
    let handle = half_gone(&fakes, PATIENT).await;
    within(handle.deregister()).await.expect("by its lease");
    assert!(fakes[0].state().instances.is_empty());
    assert!(fakes[0].state().leases.is_empty());
    assert!(matches!(handle.state(), RegistrationState::Gone(Gone::Deregistered)));
}

#[tokio::test]
async fn a_number_that_no_node_takes_is_left_to_deregister() {
    let fakes = Fake::cluster(1);
    let far = held_from_afar(&fakes[0]);
    let handle = client(&fakes, PATIENT).register(short_lived()).await.unwrap();
    assert_eq!(handle.incarnation(), far + 1);
    fakes[0].set(Mode::NoRoom);
    fakes[0].state().expire_all();
    let is_lost = || matches!(handle.state(), RegistrationState::Retrying { .. });
    until("its lease is lost", is_lost).await;
    fakes[0].state().incarnation_max = Some(now() + YEAR);
    within(handle.deregister()).await.expect("nothing is there");
    assert!(matches!(handle.state(), RegistrationState::Gone(Gone::Deregistered)));
}

#[tokio::test]
async fn a_number_that_was_taken_over_is_of_one_instance_and_left_with_its_lease() {
    let fakes = Fake::cluster(1);
    let far = held_from_afar(&fakes[0]);
    let client = client(&fakes, PATIENT);
    let handle = client.register(short_lived()).await.unwrap();
    assert_eq!(handle.incarnation(), far + 1);
    let other = client.register(of("b")).await.unwrap();
    assert!(other.incarnation() < now() + YEAR, "this host's clock is right");
    // By an update, nodes take no such number any more.
    let max = now() + YEAR;
    fakes[0].state().incarnation_max = Some(max);
    fakes[0].state().expire_all();
    until("it is back", || held(&fakes[0]).is_some_and(|held| held.incarnation <= max)).await;
    assert_eq!(held(&fakes[0]).unwrap().incarnation, handle.incarnation());
}

/// Each time it has lost its lease when it is refused, as by a cluster that was restored.
#[tokio::test]
async fn a_wrong_change_costs_no_number_that_was_taken_over() {
    let fakes = Fake::cluster(1);
    let far = held_from_afar(&fakes[0]);
    let handle = client(&fakes, PATIENT).register(short_lived()).await.unwrap();
    // Now and then it has registered again before.
    for _ in 0..20 {
        fakes[0].set(Mode::NoRoom);
        fakes[0].state().leases.clear();
        let is_lost = || matches!(handle.state(), RegistrationState::Retrying { .. });
        until("its lease is lost", is_lost).await;
        fakes[0].set(Mode::Honest);
        let wrong = within(handle.set_load(2_000_000)).await;
        assert!(matches!(wrong, Err(Error::Rejected { .. })), "{wrong:?}");
        within(handle.registered()).await.expect("it is registered again");
    }
    assert_eq!(handle.incarnation(), far + 1);
}
