//! What errors say of time: "within" only of time that has passed. What failed sooner has a reason.

use std::time::{Duration, Instant};

use quorate_client::{
    Balancer, CallError, Caller, Client, Discovery, Error, FailMode, Fault, InstanceBuilder,
    Policy, Registration, RegistrationState, WatchStatus,
};
use quorate_proto::v1::{Instance, InstanceStatus};

use crate::fake::{Fake, Mode, until, within};

/// What one attempt may take, where no node answers.
const ATTEMPT: Duration = Duration::from_millis(200);
const CALL: Duration = Duration::from_millis(600);
/// Longer than each test.
const LONG: Duration = Duration::from_secs(60);

fn client(fake: &Fake, attempt: Duration, call: Duration) -> Client {
    let builder = Client::builder([fake.address()]).member_refresh(None);
    builder.attempt_timeout(attempt).call_timeout(call).build().unwrap()
}

/// Says that the node refused the connection, and nothing of time.
fn is_told_at_once(error: &Error) {
    let Error::Unreachable { within, tried, .. } = error else { panic!("{error:?}") };
    assert_eq!((*within, tried.len()), (None, 1), "{error}");
    let said = error.to_string();
    assert!(said.contains("refused") && !said.contains("within"), "{said}");
}

async fn first_failure(client: &Client) -> Error {
    let instance = InstanceBuilder::new("orders", "a").endpoint("http", "http://h:1");
    let handle = client.register_in_background(instance).unwrap();
    let mut state = handle.watch_state();
    let failing = |state: &RegistrationState| {
        matches!(state, RegistrationState::Retrying { last_error: Some(_), .. })
    };
    let seen = within(state.wait_for(failing)).await.unwrap().clone();
    let RegistrationState::Retrying { last_error: Some(error), .. } = seen else { unreachable!() };
    error
}

#[tokio::test]
async fn a_registration_that_is_refused_at_once_is_not_told_as_silence() {
    let mut fake = Fake::start();
    fake.set(Mode::Hang);
    let error = first_failure(&client(&fake, ATTEMPT, LONG)).await;
    assert!(matches!(error, Error::Unreachable { within: Some(ATTEMPT), .. }), "{error:?}");
    assert!(error.to_string().contains("no answer from the registry within 200ms"), "{error}");
    fake.kill();
    is_told_at_once(&first_failure(&client(&fake, LONG, LONG)).await);
}

#[tokio::test]
async fn so_are_renewals_watches_and_backups() {
    let mut fake = Fake::start();
    let registering = client(&fake, LONG, LONG);
    let instance = InstanceBuilder::new("orders", "a").endpoint("http", "http://h:1");
    let registration = Registration::new(instance).ttl(Duration::from_secs(60));
    let registration = registration.renew_every(Duration::from_millis(300));
    let handle = registering.register(registration).await.unwrap();
    let mut state = handle.watch_state();
    fake.kill();
    let retrying = |state: &RegistrationState| matches!(state, RegistrationState::Retrying { .. });
    let seen = within(state.wait_for(retrying)).await.unwrap().clone();
    let RegistrationState::Retrying { last_error: Some(error), .. } = seen else { unreachable!() };
    let Error::Unreachable { within: None, .. } = error else { panic!("{error:?}") };
    assert!(!error.to_string().contains("within"), "{error}");

    let client = client(&fake, LONG, LONG);
    let watch = client.watch("orders");
    until("it is interrupted", || matches!(watch.status(), WatchStatus::Interrupted { .. })).await;
    let WatchStatus::Interrupted { last_error, .. } = watch.status() else { unreachable!() };
    is_told_at_once(&last_error);
    is_told_at_once(&within(client.admin().backup()).await.unwrap_err());
}

/// A view that was waited for says how long; a look at it does not.
#[tokio::test]
async fn a_view_tells_how_long_it_was_waited_for() {
    let mut fake = Fake::start();
    fake.kill();
    let client = client(&fake, LONG, CALL);
    let view = client.discover("orders").unwrap();
    let look = |view: &Discovery| view.usable_now().unwrap_err();
    let Error::Unreachable { within: None, .. } = look(&view) else { panic!("{:?}", look(&view)) };
    until("it is interrupted", || matches!(view.status(), WatchStatus::Interrupted { .. })).await;
    is_told_at_once(&look(&view));
    let begun = Instant::now();
    let waited = within(view.usable()).await.unwrap_err();
    assert!(begun.elapsed() >= CALL);
    assert!(matches!(waited, Error::Unreachable { within: Some(CALL), .. }), "{waited:?}");
    assert!(waited.to_string().contains("within 600ms"), "{waited}");
}

/// It is told what it came to, where there is no time for another attempt.
#[tokio::test]
async fn a_call_that_failed_each_time_is_not_told_as_silence() {
    let fake = Fake::start();
    let (service, id) = ("s".to_owned(), "a".to_owned());
    let status = InstanceStatus::Up as i32;
    fake.state().put(Instance { service, id, status, weight: 1, ..Instance::default() });
    let client = client(&fake, LONG, LONG);
    let view = client.discover("s").unwrap();
    within(view.usable()).await.unwrap();
    let caller = Caller::new(Balancer::new(view, Policy::Random), FailMode::Retry(u32::MAX));
    let caller = caller.deadline(Duration::from_millis(300));
    let again = || Err::<(), _>(Fault::Again(std::fmt::Error));
    let failed = within(caller.call(async |_| again())).await;
    assert!(matches!(failed, Err(CallError::Failed { .. })), "{failed:?}");
    let all = within(caller.call_all(async |_| again())).await.unwrap();
    assert!(matches!(all[0].1, Err(CallError::Failed { .. })), "{:?}", all[0].1);
}
