//! Runs that were kept from the registry: what became of their instances meanwhile counts.

use std::time::Duration;

use quorate_client::{Client, Error, InstanceBuilder, Registration, RegistrationState};
use quorate_proto::v1::Instance;

use crate::fake::{Fake, Mode, until, within};

const PATIENT: Duration = Duration::from_secs(20);

/// No call of it is late on a busy machine, unless it is not to be answered.
fn client(fakes: &[Fake], attempt_timeout: Duration) -> Client {
    Client::builder(fakes.iter().map(Fake::address))
        .in_order(true)
        .member_refresh(None)
        .attempt_timeout(attempt_timeout)
        .call_timeout(Duration::from_secs(60))
        .build()
        .unwrap()
}

/// Renews every 30 ms.
fn short_lived() -> Registration {
    let instance = InstanceBuilder::new("orders", "a").endpoint("http", "http://h:1");
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
