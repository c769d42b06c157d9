//! Renewals of many registrations, over one stream; and how they come back together, but not in one
//! moment.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use quorate_client::{
    Client, Error, InstanceBuilder, Registration, RegistrationHandle, RegistrationState,
};

use crate::fake::{Fake, Mode, RETRY_AFTER, until, within};

const MANY: usize = 200;

async fn client(fakes: &[Fake]) -> Client {
    Client::builder(fakes.iter().map(Fake::address))
        .in_order(true)
        .member_refresh(None)
        .attempt_timeout(Duration::from_millis(300))
        .call_timeout(Duration::from_secs(2))
        .build()
        .unwrap()
}

fn instance(number: usize, ttl: Duration) -> Registration {
    let id = format!("i{number}");
    Registration::new(InstanceBuilder::new("s", id).endpoint("http", "http://h:1")).ttl(ttl)
}

async fn many(client: &Client, ttl: Duration) -> Vec<RegistrationHandle> {
    let mut handles = Vec::new();
    for number in 0..MANY {
        handles.push(client.register(instance(number, ttl)).await.unwrap());
    }
    handles
}

fn all_registered(handles: &[RegistrationHandle]) -> bool {
    handles.iter().all(|handle| matches!(handle.state(), RegistrationState::Registered(_)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_registrations_share_few_messages() {
    // S3.2
    let fakes = Fake::cluster(1);
    let client = client(&fakes).await;
    let handles = many(&client, Duration::from_secs(3)).await;
    until("four renewals of each", || fakes[0].calls("renewed leases") >= 4 * MANY).await;
    let (leases, messages) = (fakes[0].calls("renewed leases"), fakes[0].calls("renew"));
    assert!(messages * 8 < leases, "{leases} renewals in {messages} messages");
    assert_eq!((fakes[0].calls("renew stream"), fakes[0].calls("register")), (1, MANY));
    assert!(all_registered(&handles));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_fails_goes_on_at_another_node() {
    // S1.3, S1.6
    for silent in [false, true] {
        let mut fakes = Fake::cluster(2);
        let client = client(&fakes).await;
        let handles = many(&client, Duration::from_secs(2)).await;
        until("they renew", || fakes[0].calls("renewed leases") >= MANY).await;
        if silent {
            fakes[0].set(Mode::Hang);
        } else {
            fakes[0].kill();
        }
        let streams = fakes[0].calls("renew stream");
        let renewed = fakes[0].calls("renewed leases");
        until("all go on", || fakes[0].calls("renewed leases") >= renewed + 2 * MANY).await;
        assert!(fakes[0].calls("renew stream") > streams, "over another stream");
        assert!(all_registered(&handles), "unnoticed");
        assert_eq!(fakes[0].calls("register"), MANY);
    }
}

/// Full nodes, or nodes without a quorum, let a change wait for all of the time that it may take;
/// the stream of renewals is served meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_kept_up_while_a_change_waits() {
    // S3.2
    let fakes = Fake::cluster(1);
    let client = Client::builder([fakes[0].address()])
        .member_refresh(None)
        .attempt_timeout(Duration::from_secs(1))
        .call_timeout(Duration::from_secs(2))
        .build()
        .unwrap();
    let ttl = Duration::from_millis(900);
    let handle = client.register(instance(0, ttl)).await.unwrap();
    fakes[0].set(Mode::Deaf);
    let failed = within(handle.set_load(7)).await;
    assert!(matches!(failed, Err(Error::Unreachable { .. })), "{failed:?}");
    // It stays wanted. Each attempt waits for a second.
    let attempts = fakes[0].calls("register");
    until("two attempts more", || fakes[0].calls("register") >= attempts + 3).await;
    fakes[0].set(Mode::Honest);
    let load = || fakes[0].state().instances.values().next().map(|instance| instance.load);
    until("it is made", || load() == Some(7)).await;
    let renewals = fakes[0].state().renewals.remove(&1).unwrap_or_default();
    let gap = |of: &[(usize, Instant)]| of[1].1.duration_since(of[0].1);
    let longest = renewals.windows(2).map(gap).max();
    assert!(renewals.len() >= 6, "{} renewals", renewals.len());
    assert!(longest < Some(ttl), "not renewed for {longest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_lost_together_come_back_one_after_the_other() {
    // S0.5, S3.8
    let interval = Duration::from_secs(1);
    for clients in [1, MANY] {
        let fakes = Fake::cluster(1);
        let mut handles = Vec::new();
        if clients == 1 {
            handles = many(&client(&fakes).await, 3 * interval).await;
        } else {
            for number in 0..clients {
                let client = client(&fakes).await;
                handles.push(client.register(instance(number, 3 * interval)).await.unwrap());
            }
        }
        fakes[0].state().registered_at.clear();
        fakes[0].state().expire_all();
        let lost = Instant::now();
        until("all are back", || fakes[0].state().instances.len() == MANY).await;
        let took = lost.elapsed();
        // Two intervals, and some for a busy machine.
        assert!(took < 2 * interval + Duration::from_millis(500), "took {took:?}");
        no_burst(lost, Duration::from_millis(100), MANY, &fakes[0].state().registered_at);
        within(async {
            while !all_registered(&handles) {
                tokio::task::yield_now().await
            }
        })
        .await;
    }
}

/// Prints how arrivals spread over steps; fails when half of them came in one.
pub(crate) fn no_burst(begun: Instant, step: Duration, at_least: usize, arrivals: &[Instant]) {
    // As many steps as a busy machine takes.
    let mut histogram = BTreeMap::new();
    for at in arrivals {
        let step = at.duration_since(begun).as_millis() / step.as_millis();
        *histogram.entry(step).or_insert(0_usize) += 1;
    }
    println!("{} arrivals in steps of {step:?}: {histogram:?}", arrivals.len());
    let most = histogram.values().max().copied().unwrap();
    assert!(arrivals.len() >= at_least && most <= arrivals.len() / 2, "a burst: {histogram:?}");
}

/// 200 processes, each with a client of its own, whose registry was away for four TTLs. They come
/// back over some hundreds of milliseconds: a process that waits for its turn for a tenth of a
/// second bunches those of that time only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_does_not_line_clients_up() {
    // S3.8
    let mut fakes = Fake::cluster(1);
    let ttl = Duration::from_millis(1_500);
    let (mut clients, mut handles) = (Vec::new(), Vec::new());
    let begun = Instant::now();
    for number in 0..MANY {
        let client = client(&fakes).await;
        handles.push(client.register(instance(number, ttl)).await.unwrap());
        clients.push(client);
    }
    // What a busy machine takes for as many clients, one after the other.
    let busy = begun.elapsed().max(Duration::from_millis(700));
    fakes[0].kill();
    tokio::time::sleep(4 * ttl).await;
    fakes[0].state().streams_at.clear();
    let restarted = Instant::now();
    fakes[0].restart();
    until("all are back", || all_registered(&handles)).await;
    let took = restarted.elapsed();
    // Two intervals, and what the machine takes.
    assert!(took < ttl * 2 / 3 + busy, "took {took:?}, with {busy:?} for the machine");
    no_burst(restarted, Duration::from_millis(100), MANY, &fakes[0].state().streams_at);
    assert_eq!(fakes[0].calls("register"), MANY, "an outage is no lost lease");
}

/// Each has a node of its own, which is away for long, and later for a moment. After that moment it
/// waits for as long as after a first failure.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_that_is_over_makes_no_later_one_longer() {
    // S3.8
    let interval = Duration::from_secs(1);
    let back = (0..10).map(|_| {
        tokio::spawn(async move {
            let fakes = Fake::cluster(1);
            let client = client(&fakes).await;
            let handle = client.register(instance(0, 3 * interval)).await.unwrap();
            let mut state = handle.watch_state();
            let is_retrying =
                |state: &RegistrationState| matches!(state, RegistrationState::Retrying { .. });
            for long in [true, false] {
                fakes[0].set(Mode::Unavailable);
                within(state.wait_for(is_retrying)).await.unwrap();
                let failed = fakes[0].calls("renew");
                until("it fails", || !long || fakes[0].calls("renew") >= failed + 5).await;
                fakes[0].set(Mode::Honest);
                let begun = Instant::now();
                within(handle.registered()).await.unwrap();
                if !long {
                    return begun.elapsed();
                }
            }
            unreachable!()
        })
    });
    let mut took = Vec::new();
    for one in back.collect::<Vec<_>>() {
        took.push(one.await.unwrap());
    }
    took.sort();
    println!("back after {took:?}");
    assert!(took[5] < interval * 2 / 5, "half of them at most after {:?}", took[5]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overloaded_node_is_left_alone_for_as_long_as_it_says() {
    for mode in [Mode::Overloaded, Mode::Full] {
        let fakes = Fake::cluster(1);
        let client = client(&fakes).await;
        let interval = Duration::from_millis(50);
        let handle = client.register(instance(0, 3 * interval)).await.unwrap();
        until("it renews", || fakes[0].calls("renew") >= 2).await;
        fakes[0].set(mode);
        let before = fakes[0].calls("renew");
        until("the first refusal", || fakes[0].calls("renew") > before).await;
        let begun = Instant::now();
        until("one more", || fakes[0].calls("renew") > before + 1).await;
        let took = begun.elapsed();
        assert!(took >= RETRY_AFTER / 2, "{mode:?}: came back after {took:?}");
        until("four more", || fakes[0].calls("renew") > before + 4).await;
        let took = begun.elapsed();
        assert!(took >= 3 * RETRY_AFTER, "{mode:?}: four times in {took:?}");
        fakes[0].set(Mode::Honest);
        within(handle.registered()).await.unwrap();
    }
}

/// When to come back to a full node is for those who have no other; nor does what it serves well
/// bring the renewals back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewals_leave_a_full_node_at_once() {
    // S1.3
    let fakes = Fake::cluster(2);
    let client = client(&fakes).await;
    let _handle = client.register(instance(0, Duration::from_millis(600))).await.unwrap();
    let watch = client.watch("s");
    within(watch.synced()).await.unwrap();
    until("it renews", || fakes[0].calls("renew") >= 2).await;
    fakes[0].set(Mode::Full);
    let before = fakes[0].calls("renew");
    until("a refusal", || fakes[0].calls("renew") > before).await;
    let begun = Instant::now();
    until("a renewal elsewhere", || {
        let mut state = fakes[0].state();
        state.bookmark(0, Duration::ZERO);
        state.renewals[&1].iter().any(|(node, _)| *node == 1)
    })
    .await;
    let took = begun.elapsed();
    assert!(took < RETRY_AFTER, "waited for {took:?}");
}

/// Whatever is to be registered: the attempts on a registry that is down are few, and go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_is_down_is_asked_seldom() {
    // S2.8, S3.8
    let fakes = Fake::cluster(1);
    let client = client(&fakes).await;
    let handles = many(&client, Duration::from_secs(15)).await;
    fakes[0].set(Mode::Unavailable);
    fakes[0].state().expire_all();
    let others: Vec<_> = (MANY..MANY + 20)
        .map(|number| client.register_in_background(instance(number, Duration::from_secs(15))))
        .collect();
    // The first waits are short; what counts is the pace after some seconds.
    let attempts = || fakes[0].calls("register") + fakes[0].calls("renew");
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = attempts();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let a_second = (attempts() - before) / 3;
    println!("{a_second} attempts a second of 220 registrations");
    assert!((1..=60).contains(&a_second), "{a_second} attempts a second");
    assert_eq!(others.len(), 20);
    drop(handles);
}

#[tokio::test]
async fn a_process_that_cannot_be_registered_may_decide_to_die() {
    // S2.4
    let mut fakes = Fake::cluster(1);
    let client = client(&fakes).await;
    let handle = client.register(instance(0, Duration::from_millis(150))).await.unwrap();
    let after = Duration::from_millis(400);
    let short_outage = handle.on_lost(after);
    fakes[0].kill();
    let retrying = |state: &RegistrationState| matches!(state, RegistrationState::Retrying { .. });
    within(handle.watch_state().wait_for(retrying)).await.unwrap();
    fakes[0].restart();
    within(handle.registered()).await.unwrap();
    let over = tokio::time::timeout(after, short_outage).await;
    assert!(over.is_err(), "it was registered again in time: {over:?}");

    let lost = handle.on_lost(after);
    fakes[0].kill();
    let begun = Instant::now();
    let error = within(lost).await;
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(begun.elapsed() >= after, "only after {:?}", begun.elapsed());
    let never = tokio::time::timeout(Duration::from_millis(20), handle.on_lost(Duration::MAX));
    assert!(never.await.is_err());
    // It goes on all the same.
    fakes[0].restart();
    within(handle.registered()).await.unwrap();

    let superseded = handle.on_lost(Duration::from_secs(3_600));
    let newer = self::client(&fakes).await;
    let _newer = newer.register(instance(0, Duration::from_millis(150))).await.unwrap();
    assert!(matches!(within(superseded).await, Error::Superseded { .. }));
}
