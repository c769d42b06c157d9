//! Renewals of many registrations, over one stream; and how they come back together, but not in one
//! moment.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use quorate_client::{
    Client, ClientBuilder, Code, Error, InstanceBuilder, Registration, RegistrationHandle,
    RegistrationState,
};

use crate::fake::{Fake, Mode, RETRY_AFTER, in_one_of, until, within};

const MANY: usize = 200;

/// No call is late on a busy machine. Renewals may be, which have half an interval.
fn builder(fakes: &[Fake]) -> ClientBuilder {
    Client::builder(fakes.iter().map(Fake::address))
        .in_order(true)
        .member_refresh(None)
        .attempt_timeout(Duration::from_secs(20))
        .call_timeout(Duration::from_secs(60))
}

async fn client(fakes: &[Fake]) -> Client {
    builder(fakes).build().unwrap()
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
    // From when all are there.
    let renewed = || (fakes[0].calls("renewed leases"), fakes[0].calls("renew"));
    let before = renewed();
    until("two renewals of each", || renewed().0 >= before.0 + 2 * MANY).await;
    let (leases, messages) = (renewed().0 - before.0, renewed().1 - before.1);
    assert!(messages * 8 < leases, "{leases} renewals in {messages} messages");
    // On a busy machine one may be late, for which its stream is left.
    let (streams, failed) = (fakes[0].calls("renew stream"), client.counters().renewals_failed);
    assert!(streams as u64 <= 1 + failed, "{streams} streams, {failed} renewals failed");
    assert_eq!(fakes[0].calls("register"), MANY);
    until("all are registered", || all_registered(&handles)).await;
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
        until("all are registered", || all_registered(&handles)).await;
        assert_eq!(fakes[0].calls("register"), MANY, "without registering again");
    }
}

/// Full nodes, or nodes without a quorum, let a change wait for all of the time that it may take;
/// the stream of renewals is served meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_kept_up_while_a_change_waits() {
    // S3.2
    let ttl = Duration::from_millis(900);
    let fakes = Fake::cluster(1);
    let handle = client(&fakes).await.register(instance(0, ttl)).await.unwrap();
    fakes[0].set(Mode::Deaf);
    let change = tokio::spawn(async move { handle.set_load(7).await });
    until("it waits", || fakes[0].calls("register") == 2).await;
    renewed_while_an_attempt_waits(&fakes[0]).await;
    assert_eq!((fakes[0].calls("register"), change.is_finished()), (2, false));
    change.abort();

    // Its caller has given up, and it stays wanted. Each attempt waits for a second.
    let fakes = Fake::cluster(1);
    let (attempt, call) = (Duration::from_secs(1), Duration::from_secs(2));
    let client = builder(&fakes).attempt_timeout(attempt).call_timeout(call).build().unwrap();
    let handle = client.register(instance(0, ttl)).await.unwrap();
    fakes[0].set(Mode::Deaf);
    let failed = within(handle.set_load(7)).await;
    assert!(matches!(failed, Err(Error::Unreachable { .. })), "{failed:?}");
    let attempts = fakes[0].calls("register");
    until("it is tried again", || fakes[0].calls("register") > attempts).await;
    renewed_while_an_attempt_waits(&fakes[0]).await;
    fakes[0].set(Mode::Honest);
    let load = || fakes[0].state().instances.values().next().map(|instance| instance.load);
    until("it is made", || load() == Some(7)).await;
}

/// One of them needs an answer sooner than the node gives any.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_with_time_is_renewed_beside_one_without() {
    // S3.2
    let fakes = Fake::cluster(1);
    let client = client(&fakes).await;
    let second = Duration::from_secs(1);
    let long = instance(1, 20 * second).renew_every(2 * second);
    let long = client.register(long).await.unwrap();
    let short = client.register(instance(0, Duration::from_millis(300))).await.unwrap();
    fakes[0].set(Mode::Slow(Duration::from_millis(300)));
    let RegistrationState::Registered(lease) = long.state() else { panic!("{:?}", long.state()) };
    let renewed = || client.counters().renewals;
    let before = renewed();
    until("the long one is renewed", || renewed() > before).await;
    assert!(fakes[0].state().renewals.contains_key(&lease.id));
    assert!(all_registered(std::slice::from_ref(&long)), "{:?}", long.state());
    assert!(!all_registered(std::slice::from_ref(&short)), "it has no time");
}

/// Between two attempts a lease would be renewed once.
async fn renewed_while_an_attempt_waits(fake: &Fake) {
    let mut seen = (0, 0);
    until("renewed twice within an attempt", || {
        let (attempts, renewed) = (fake.calls("register"), fake.calls("renewed leases"));
        if attempts != seen.0 {
            seen = (attempts, renewed);
        }
        renewed >= seen.1 + 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_lost_together_come_back_one_after_the_other() {
    // S0.5, S3.8
    let interval = Duration::from_secs(1);
    for clients in [1, MANY] {
        in_one_of(3, async || {
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
            let arrivals = fakes[0].state().registered_at.clone();
            until("all are registered", || all_registered(&handles)).await;
            no_burst(lost, Duration::from_millis(100), MANY, &arrivals)?;
            // Two intervals, and some for a busy machine.
            not_over(took, 2 * interval + Duration::from_millis(500))
        })
        .await;
    }
}

pub(crate) fn not_over(took: Duration, limit: Duration) -> Result<(), String> {
    if took < limit { Ok(()) } else { Err(format!("took {took:?}, and not {limit:?}")) }
}

/// Prints how arrivals spread over steps; an error when half of them came in one.
pub(crate) fn no_burst(
    begun: Instant,
    step: Duration,
    at_least: usize,
    arrivals: &[Instant],
) -> Result<(), String> {
    // As many steps as a busy machine takes.
    let mut histogram = BTreeMap::new();
    for at in arrivals {
        let step = at.duration_since(begun).as_millis() / step.as_millis();
        *histogram.entry(step).or_insert(0_usize) += 1;
    }
    println!("{} arrivals in steps of {step:?}: {histogram:?}", arrivals.len());
    let most = histogram.values().max().copied().unwrap();
    let is_spread = arrivals.len() >= at_least && most <= arrivals.len() / 2;
    if is_spread { Ok(()) } else { Err(format!("a burst: {histogram:?}")) }
}

/// 200 processes, each with a client of its own, whose registry was away for four TTLs. They come
/// back over some hundreds of milliseconds: a process that waits for its turn for a tenth of a
/// second bunches those of that time only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_does_not_line_clients_up() {
    // S3.8
    in_one_of(3, async || {
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
        assert_eq!(fakes[0].calls("register"), MANY, "an outage is no lost lease");
        no_burst(restarted, Duration::from_millis(100), MANY, &fakes[0].state().streams_at)?;
        // Two intervals, and what the machine takes.
        not_over(took, ttl * 2 / 3 + busy)
    })
    .await;
}

/// Each has a node of its own, which is away for long, and later for a moment. After that moment it
/// waits for as long as after a first failure: a tenth of a second, and a tenth more for others.
/// After a long outage it would be an interval.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_that_is_over_makes_no_later_one_longer() {
    // S3.8
    let interval = Duration::from_secs(1);
    in_one_of(3, async || {
        let mut took = Vec::new();
        for one in (0..10).map(|_| tokio::spawn(back_after(interval))).collect::<Vec<_>>() {
            took.push(one.await.unwrap());
        }
        took.sort();
        println!("back after {took:?}");
        not_over(took[5], interval * 3 / 10)
    })
    .await;
}

/// How long a registration takes to be back after a short outage, which came after a long one.
async fn back_after(interval: Duration) -> Duration {
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
}

/// On a busy machine a renewal may be late, which is another failure: then it counts for nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overloaded_node_is_left_alone_for_as_long_as_it_says() {
    for mode in [Mode::Overloaded, Mode::Full] {
        let mut rounds = 0;
        while !is_left_alone(mode).await {
            rounds += 1;
            assert!(rounds < 5, "{mode:?}: a renewal was late in each of {rounds} rounds");
        }
    }
}

/// False: it failed otherwise, too.
async fn is_left_alone(mode: Mode) -> bool {
    let fakes = Fake::cluster(1);
    let client = client(&fakes).await;
    let interval = Duration::from_millis(50);
    let handle = client.register(instance(0, 3 * interval)).await.unwrap();
    until("it renews", || fakes[0].calls("renew") >= 2).await;
    let mut was_late = false;
    let begun = Instant::now();
    fakes[0].set(mode);
    let before = fakes[0].calls("renew");
    for times in [3, 6] {
        until("it comes back", || {
            was_late |= !is_refused(&handle.state());
            fakes[0].calls("renew") >= before + times
        })
        .await;
        let took = begun.elapsed();
        // Before each but the first it waits; one more may have come just before the node was so.
        let least = RETRY_AFTER * (times as u32 - 2);
        assert!(was_late || took >= least, "{mode:?}: {times} times in {took:?}");
    }
    fakes[0].set(Mode::Honest);
    within(handle.registered()).await.unwrap();
    !was_late
}

/// If it is not registered, then since a node refused.
fn is_refused(state: &RegistrationState) -> bool {
    let RegistrationState::Retrying { last_error, .. } = state else { return true };
    match last_error {
        Some(Error::Rejected { code, .. }) => *code == Code::ResourceExhausted,
        Some(Error::Unreachable { tried, .. }) => {
            tried.iter().all(|attempt| attempt.code == Code::ResourceExhausted)
        }
        _ => false,
    }
}

/// When to come back to a full node is for those who have no other; nor does what it serves well
/// bring the renewals back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewals_leave_a_full_node_at_once() {
    // S1.3
    let wait = Duration::from_secs(10);
    let fakes = Fake::cluster(2);
    fakes[0].state().retry_after = wait;
    let client = client(&fakes).await;
    let _handle = client.register(instance(0, Duration::from_secs(3))).await.unwrap();
    let watch = client.watch("s");
    within(watch.synced()).await.unwrap();
    until("it renews", || fakes[0].state().renewals.contains_key(&1)).await;
    // The first one, unless it was late there.
    let full = fakes[0].state().renewals[&1].last().map_or(0, |(node, _)| *node);
    fakes[full].set(Mode::Full);
    let (before, renewed) = (fakes[0].calls("renew"), fakes[0].state().renewals[&1].len());
    until("a refusal", || fakes[0].calls("renew") > before).await;
    let begun = Instant::now();
    until("a renewal elsewhere", || {
        let mut state = fakes[0].state();
        state.bookmark(full, Duration::ZERO);
        state.renewals[&1][renewed..].iter().any(|(node, _)| *node != full)
    })
    .await;
    let took = begun.elapsed();
    assert!(took < wait / 2, "waited for {took:?}");
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
    let after = Duration::from_secs(3);
    let short_outage = handle.on_lost(after);
    fakes[0].kill();
    let retrying = |state: &RegistrationState| matches!(state, RegistrationState::Retrying { .. });
    within(handle.watch_state().wait_for(retrying)).await.unwrap();
    fakes[0].restart();
    within(handle.registered()).await.unwrap();
    let over = tokio::time::timeout(after, short_outage).await;
    assert!(over.is_err(), "it was registered again in time: {over:?}");

    within(handle.registered()).await.unwrap();
    let lost = handle.on_lost(after);
    let begun = Instant::now();
    fakes[0].kill();
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
