//! Balancers over a live view, calls that fail and go on, calls to all.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use quorate_client::{
    Balancer, CallError, Caller, Client, Code, Error, FailMode, Fault, Origin, Policy, Selector,
};
use quorate_proto::v1::{Instance, InstanceStatus, RemoveReason};
use tokio::sync::Barrier;
use tokio::time::timeout;

use crate::fake::{Fake, Mode, until, within};

fn instance(id: &str, zone: &str, weight: u32) -> Instance {
    Instance {
        service: "s".to_owned(),
        id: id.to_owned(),
        zone: zone.to_owned(),
        status: InstanceStatus::Up as i32,
        weight,
        ..Instance::default()
    }
}

/// A balancer over these instances (id, zone, weight), once it sees them.
async fn balancer(fake: &Fake, policy: Policy, all: &[(&str, &str, u32)]) -> Balancer {
    for (id, zone, weight) in all {
        fake.state().put(instance(id, zone, *weight));
    }
    let client = Client::builder([fake.address()]).member_refresh(None).build().unwrap();
    let view = client.discover("s").unwrap();
    until("all are shown", || view.current().len() == all.len()).await;
    Balancer::new(view, policy)
}

fn count(balancer: &Balancer, picks: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..picks {
        *counts.entry(balancer.pick().unwrap().id.clone()).or_default() += 1;
    }
    counts
}

#[tokio::test]
async fn every_policy_keeps_its_proportions_under_sixteen_threads() {
    // S1.16
    let all = [("a", "", 100), ("b", "", 100), ("c", "", 200), ("none", "", 0)];
    for (policy, shares) in [
        (Policy::Random, [0.25, 0.25, 0.5]),
        (Policy::RoundRobin, [1.0 / 3.0; 3]),
        (Policy::WeightedRoundRobin, [0.25, 0.25, 0.5]),
        (Policy::LeastLoaded, [0.25, 0.25, 0.5]),
    ] {
        let fakes = Fake::cluster(1);
        let balancer = balancer(&fakes[0], policy, &all).await;
        let counts: Vec<BTreeMap<String, usize>> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..16).map(|_| scope.spawn(|| count(&balancer, 100_000 / 16))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let of = |id: &str| counts.iter().filter_map(|c| c.get(id)).sum::<usize>() as f64;
        assert_eq!(of("none"), 0.0, "{policy:?}");
        let chi_square: f64 = ["a", "b", "c"]
            .into_iter()
            .zip(shares)
            .map(|(id, share)| (of(id) - share * 100_000.0).powi(2) / (share * 100_000.0))
            .sum();
        match policy {
            // Two degrees of freedom: over 27.6 once in a million times.
            Policy::Random => assert!(chi_square < 27.6, "{policy:?}: {chi_square}"),
            // Turns are exact.
            Policy::RoundRobin | Policy::WeightedRoundRobin => {
                assert!(chi_square < 0.01, "{policy:?}: {chi_square}");
            }
            // By load, which is what the threads have in flight: no instance starves.
            _ => assert!(["a", "b", "c"].iter().all(|id| of(id) > 10_000.0), "{counts:?}"),
        }
        if policy == Policy::LeastLoaded {
            // Nothing is in flight when one thread picks: of two that are drawn, "c", which has the
            // weight; else the first of them. Ten times the standard deviation.
            let of_one = count(&balancer, 100_000);
            let is_near =
                |id: &str, ninths: usize| of_one[id].abs_diff(100_000 * ninths / 9) < 1_500;
            assert!(is_near("a", 2) && is_near("b", 2) && is_near("c", 5), "{of_one:?}");
        }
    }
}

#[tokio::test]
async fn calls_go_where_fewer_are_in_flight() {
    let fakes = Fake::cluster(1);
    let balancer = balancer(&fakes[0], Policy::LeastLoaded, &[("a", "", 1), ("b", "", 1)]).await;
    let mut held = Vec::new();
    while held.len() < 50 {
        let picked = balancer.pick().unwrap();
        if picked.id == "a" {
            held.push(picked);
        }
    }
    // The counts outlive a change of the view.
    fakes[0].state().put(instance("c", "", 1));
    until("it is shown", || balancer.discovery().current().len() == 3).await;
    let busy = count(&balancer, 3_000);
    assert!(busy["a"] < 600, "only when it is drawn twice: {busy:?}");
    drop(held);
    let idle = count(&balancer, 3_000);
    assert!(idle["a"] > 600, "{idle:?}");
}

#[tokio::test]
async fn calls_go_where_instances_say_that_they_have_less_to_do() {
    // S0.9
    let fakes = Fake::cluster(1);
    let balancer = balancer(&fakes[0], Policy::LeastLoaded, &[("a", "", 1), ("b", "", 1)]).await;
    fakes[0].state().put(Instance { load: 50, ..instance("a", "", 1) });
    until("it is shown", || balancer.discovery().current().get("a").unwrap().load == 50).await;
    // "a" when it is drawn twice, one time in four.
    let loaded = count(&balancer, 4_000);
    assert!((800..1_200).contains(&loaded["a"]), "{loaded:?}");
    // Sixty calls in flight from here are more than the fifty that "a" speaks of.
    let mut held = Vec::new();
    while held.len() < 60 {
        held.extend(Some(balancer.pick().unwrap()).filter(|picked| picked.id == "b"));
    }
    let busy = count(&balancer, 4_000);
    assert!((800..1_200).contains(&busy["b"]), "{busy:?}");
}

#[tokio::test]
async fn calls_stay_in_their_zone_while_it_can_carry_them() {
    let fakes = Fake::cluster(1);
    let all = [("near", "z1", 100), ("far1", "z2", 100), ("far2", "z2", 100)];
    let balancer = balancer(&fakes[0], Policy::RoundRobin, &all).await.zone("z1");
    // Its share of 300 would be 150: it carries two thirds of that.
    let counts = count(&balancer, 9_000);
    assert!((5_400..6_600).contains(&counts["near"]), "{counts:?}");
    fakes[0].state().put(instance("near", "z1", 200));
    until("it grew", || balancer.discovery().current().get("near").unwrap().weight == 200).await;
    assert_eq!(count(&balancer, 300)["near"], 300);
    fakes[0].state().remove(&("s".to_owned(), "near".to_owned()), RemoveReason::Expired);
    until("it is gone", || balancer.discovery().current().len() == 2).await;
    assert_eq!(count(&balancer, 300)["far1"], 150);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_balancer_follows_from_one_to_three_to_one_under_load() {
    // S1.10, S0.15
    let fakes = Fake::cluster(1);
    let balancer = Arc::new(balancer(&fakes[0], Policy::RoundRobin, &[("a", "", 1)]).await);
    let calling = balancer.clone();
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let load = tokio::spawn(async move {
        while stopped.try_recv().is_err() {
            calling.pick().unwrap();
            tokio::task::yield_now().await;
        }
    });
    fakes[0].state().put(instance("b", "", 1));
    fakes[0].state().put(instance("c", "", 1));
    until("all three get calls", || count(&balancer, 9).len() == 3).await;
    for gone in ["a", "b"] {
        fakes[0].state().remove(&("s".to_owned(), gone.to_owned()), RemoveReason::Deregistered);
    }
    until("the view has one", || balancer.discovery().current().len() == 1).await;
    assert_eq!(count(&balancer, 9), BTreeMap::from([("c".to_owned(), 9)]));
    stop.send(()).unwrap();
    load.await.unwrap();
}

#[tokio::test]
async fn who_goes_away_gets_no_more_calls_until_it_changes() {
    // S1.15
    let fakes = Fake::cluster(1);
    let balancer = balancer(&fakes[0], Policy::RoundRobin, &[("a", "", 1), ("b", "", 1)]).await;
    let a = balancer.discovery().current().get("a").unwrap().clone();
    balancer.go_away(&a);
    assert_eq!(count(&balancer, 9), BTreeMap::from([("b".to_owned(), 9)]));
    let b = balancer.discovery().current().get("b").unwrap().clone();
    balancer.go_away(&b);
    assert!(matches!(balancer.pick(), Err(Error::NoInstances { .. })));
    fakes[0].state().put(instance("a", "", 7));
    until("it is back", || balancer.pick().is_ok_and(|picked| picked.weight == 7)).await;
    // A call that began before that ends after it.
    let back = balancer.discovery().current().get("a").unwrap().clone();
    balancer.go_away(&back);
    balancer.go_away(&a);
    assert!(matches!(balancer.pick(), Err(Error::NoInstances { .. })));
    let nobody = balancer.discovery().clone();
    fakes[0].state().expire_all();
    until("all are gone", || nobody.current().is_empty()).await;
    assert!(matches!(balancer.pick(), Err(Error::NoInstances { .. })));
}

#[derive(Debug, thiserror::Error)]
#[error("no")]
struct No;

struct Fails;

impl Fails {
    async fn each_time(&self, caller: &Caller, text: &str) -> Result<(), CallError<No>> {
        let call = async |_instance| self.once(text).await.map_err(Fault::Again);
        caller.call(call).await
    }

    async fn once(&self, _text: &str) -> Result<(), No> {
        tokio::task::yield_now().await;
        Err(No)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_calls_go_on_as_the_mode_says() {
    // S1.17
    let fakes = Fake::cluster(1);
    let all = [("a", "", 1), ("b", "", 1), ("c", "", 1)];
    let balancer = Arc::new(balancer(&fakes[0], Policy::Random, &all).await);
    let caller = |mode| Caller::new(balancer.clone(), mode).deadline(Duration::from_secs(60));
    for _ in 0..20 {
        // In a task of its own, as servers do it, and with something lent to the call.
        let failover = caller(FailMode::Failover(2));
        let fails = Arc::new(Fails);
        let failed = tokio::spawn(async move { fails.each_time(&failover, "text").await });
        let Err(CallError::Failed { mut tried, .. }) = failed.await.unwrap() else { panic!() };
        tried.sort();
        assert_eq!(tried, ["a", "b", "c"], "another instance each time");
    }
    let failed = caller(FailMode::Retry(2)).call(async |_| Err::<(), _>(Fault::Again(No))).await;
    let Err(CallError::Failed { tried, .. }) = failed else { panic!("{failed:?}") };
    assert!(tried.len() == 3 && tried.iter().all(|id| *id == tried[0]), "{tried:?}");
    let failed = caller(FailMode::FailFast).call(async |_| Err::<(), _>(Fault::Again(No))).await;
    assert!(matches!(failed, Err(CallError::Failed { tried, .. }) if tried.len() == 1));
    let fatal = caller(FailMode::Failover(9)).call(async |_| Err::<(), _>(Fault::Final(No))).await;
    assert!(matches!(fatal, Err(CallError::Failed { tried, .. }) if tried.len() == 1));

    let attempts = AtomicUsize::new(0);
    let failover = caller(FailMode::Failover(1));
    let second = failover.call(async |instance| match attempts.fetch_add(1, Ordering::Relaxed) {
        0 => Err(Fault::GoingAway(No)),
        _ => Ok(instance.id.clone()),
    });
    let id = second.await.unwrap();
    assert_eq!(count(&balancer, 300).len(), 2, "one of three goes away");
    assert!(count(&balancer, 300).contains_key(&id));

    let hangs = caller(FailMode::Failover(9)).deadline(Duration::from_millis(50));
    let late = within(hangs.call(async |_| std::future::pending::<Result<(), Fault<No>>>().await));
    assert!(matches!(late.await, Err(CallError::Deadline { tried, .. }) if tried.len() == 1));
}

/// The calls of one that fails are spread over all others.
#[tokio::test]
async fn failover_overloads_no_neighbour() {
    // S1.17
    let all = [("a", "", 1), ("b", "", 1), ("c", "", 1), ("d", "", 1), ("e", "", 1)];
    for policy in
        [Policy::Random, Policy::RoundRobin, Policy::WeightedRoundRobin, Policy::LeastLoaded]
    {
        let fakes = Fake::cluster(1);
        let caller = Caller::new(balancer(&fakes[0], policy, &all).await, FailMode::Failover(1));
        let mut answered = BTreeMap::<String, f64>::new();
        for _ in 0..4_000 {
            let call = async |instance: Arc<Instance>| match instance.id.as_str() {
                "b" => Err(Fault::Again(No)),
                id => Ok(id.to_owned()),
            };
            *answered.entry(caller.call(call).await.unwrap()).or_default() += 1.0;
        }
        let even = answered.values().all(|calls| (850.0..1_150.0).contains(calls));
        assert!(answered.len() == 4 && even, "{policy:?}: {answered:?}");
    }
}

/// Where two are left to choose from, the policy goes on counting.
#[tokio::test]
async fn failover_keeps_weights_and_loads() {
    // S1.17, S1.16
    let all = [("a", "", 100), ("b", "", 100), ("c", "", 900)];
    for policy in [Policy::Random, Policy::WeightedRoundRobin, Policy::LeastLoaded] {
        let fakes = Fake::cluster(1);
        let balancer = balancer(&fakes[0], policy, &all).await;
        let mut picks = BTreeMap::<String, usize>::new();
        for _ in 0..4_000 {
            let picked = balancer.pick_except(&["a".to_owned()]).unwrap();
            *picks.entry(picked.id.clone()).or_default() += 1;
        }
        let of_b = picks["b"];
        let expected = match policy {
            // When it is drawn twice.
            Policy::LeastLoaded => 700..1_300,
            _ => 300..600,
        };
        assert!(expected.contains(&of_b) && !picks.contains_key("a"), "{policy:?}: {picks:?}");
    }
}

#[tokio::test]
async fn a_deadline_may_be_never() {
    let fakes = Fake::cluster(1);
    let balancer = balancer(&fakes[0], Policy::Random, &[("a", "", 1)]).await;
    let caller = Caller::new(balancer, FailMode::Retry(1)).deadline(Duration::MAX);
    let called = caller.call(async |_| Ok::<_, Fault<No>>(7)).await;
    assert!(matches!(called, Ok(7)));
    let all = within(caller.call_all(async |_| Ok::<_, Fault<No>>(7))).await.unwrap();
    assert!(matches!(all[0].1, Ok(7)));
}

#[tokio::test]
async fn a_call_to_all_tells_what_came_of_each() {
    // S3.5
    let fakes = Fake::cluster(1);
    let all = [("fails", "", 1), ("hangs", "", 1), ("once", "", 1), ("well", "", 1)];
    let balancer = balancer(&fakes[0], Policy::RoundRobin, &all).await;
    // Long enough for a busy machine; the one that hangs takes all of it.
    let caller = Caller::new(balancer, FailMode::Retry(1)).deadline(Duration::from_secs(2));
    let called = Mutex::new(BTreeSet::new());
    let at_the_same_time = Barrier::new(all.len());
    let results = caller.call_all(async |instance| {
        let is_first = called.lock().unwrap().insert(instance.id.clone());
        if is_first {
            at_the_same_time.wait().await;
        }
        match instance.id.as_str() {
            "fails" => Err(Fault::Again(No)),
            "hangs" => std::future::pending().await,
            "once" if is_first => Err(Fault::Again(No)),
            _ => Ok(instance.weight),
        }
    });
    let results = within(results).await.unwrap();
    let ids: Vec<_> = results.iter().map(|(instance, _)| instance.id.as_str()).collect();
    assert_eq!(ids, ["fails", "hangs", "once", "well"]);
    assert!(matches!(results[0].1, Err(CallError::Failed { .. })));
    assert!(matches!(results[1].1, Err(CallError::Deadline { .. })));
    assert!(matches!((&results[2].1, &results[3].1), (Ok(1), Ok(1))));

    let client = Client::builder([fakes[0].address()]).member_refresh(None).build().unwrap();
    let nobody = client.discover(Selector::service("nobody")).unwrap();
    let caller = Caller::new(Balancer::new(nobody, Policy::Random), FailMode::FailFast);
    let none = within(caller.call_all(async |_| Ok::<(), Fault<No>>(()))).await;
    assert!(matches!(none, Err(Error::UnknownService { .. })), "no agent online is an error");
}

/// An instance that takes connections and closes them at once: its channel keeps trying, and not as
/// fast as it can.
#[tokio::test]
async fn a_channel_does_not_hammer_on_what_hangs_up() {
    // S3.8
    let fakes = Fake::cluster(1);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    let accepted = Arc::new(AtomicUsize::new(0));
    let counted = accepted.clone();
    let hangs_up = tokio::spawn(async move {
        while let Ok((_closed_at_once, _from)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    let endpoints = [("grpc".to_owned(), uri)].into();
    fakes[0].state().put(Instance { endpoints, ..instance("a", "", 1) });
    let client = Client::builder([fakes[0].address()]).member_refresh(None).build().unwrap();
    let channel = client.channel("s").unwrap();
    until("it keeps trying", || accepted.load(Ordering::Relaxed) >= 4).await;
    let before = accepted.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let in_two_seconds = accepted.load(Ordering::Relaxed) - before;
    assert!(in_two_seconds <= 20, "{in_two_seconds} connections in 2 s");
    drop(channel);
    // One attempt may be under way; after that, none in longer than any pause between two.
    let nobody_tries = async {
        let mut before = usize::MAX;
        while accepted.load(Ordering::Relaxed) != before {
            before = accepted.load(Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
    };
    let stopped = timeout(Duration::from_secs(20), nobody_tries).await;
    stopped.expect("no attempts for a channel that is gone");
    hangs_up.abort();
}

#[tokio::test]
async fn a_first_call_waits_for_the_first_view_within_its_deadline() {
    let fake = Fake::start();
    fake.state().put(instance("a", "", 100));
    let client = Client::builder([fake.address()]).member_refresh(None).build().unwrap();
    let caller = |client: &Client, service: &str, deadline: Duration| {
        let balancer = Balancer::new(client.discover(service).unwrap(), Policy::RoundRobin);
        Caller::new(balancer, FailMode::FailFast).deadline(deadline)
    };
    let (long, short) = (Duration::from_secs(60), Duration::from_millis(600));
    let patient = caller(&client, "s", long);
    let called = within(patient.call(async |one| Ok::<_, Fault<Error>>(one.id.clone()))).await;
    assert_eq!(called.unwrap(), "a");
    let patient = caller(&client, "s", long);
    let all = within(patient.call_all(async |one| Ok::<_, Fault<Error>>(one.id.clone()))).await;
    assert_eq!(all.unwrap().len(), 1);

    // An empty service is an error at once; one of which nothing is known, at the deadline.
    let none = caller(&client, "none", long);
    let called = within(none.call(async |_| Ok::<_, Fault<Error>>(()))).await;
    let is_told = matches!(&called, Err(CallError::NoInstance(Error::UnknownService { .. })));
    assert!(is_told, "{called:?}");
    fake.set(Mode::Hang);
    let client = Client::builder([fake.address()]).member_refresh(None).build().unwrap();
    let begun = Instant::now();
    let called = caller(&client, "s", short).call(async |_| Ok::<_, Fault<Error>>(())).await;
    let took = begun.elapsed();
    assert!((Duration::from_millis(550)..Duration::from_secs(10)).contains(&took), "{took:?}");
    let Err(CallError::NoInstance(Error::Unreachable { within, .. })) = called else {
        panic!("{called:?}")
    };
    assert_eq!(within, Some(short));
    let hasty = caller(&client, "s", short);
    let begun = Instant::now();
    assert!(hasty.call_all(async |_| Ok::<_, Fault<Error>>(())).await.is_err());
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

/// Not when there was time enough for an answer.
#[tokio::test]
async fn a_service_that_is_refused_is_an_error_at_once() {
    let fake = Fake::start();
    fake.state().denied.push("s");
    let view = || {
        let client = Client::builder([fake.address()]).member_refresh(None);
        let client = client.call_timeout(Duration::from_secs(60)).build().unwrap();
        let allowed = client.discover("t").unwrap();
        (client.discover("s").unwrap(), allowed)
    };
    let is_told =
        |error: &Error| matches!(error, Error::Rejected { code: Code::PermissionDenied, .. });
    let (refused, allowed) = view();
    let error = within(refused.usable()).await.unwrap_err();
    assert!(is_told(&error), "{error:?}");
    let error = within(allowed.usable()).await.unwrap_err();
    assert!(matches!(error, Error::UnknownService { .. }), "{error:?}");

    let caller = || {
        let balancer = Balancer::new(view().0, Policy::RoundRobin);
        Caller::new(balancer, FailMode::FailFast).deadline(Duration::from_secs(60))
    };
    let caller_of_one = caller();
    let called = within(caller_of_one.call(async |_| Ok::<_, Fault<Error>>(()))).await;
    let Err(CallError::NoInstance(error)) = called else { panic!("{called:?}") };
    assert!(is_told(&error), "{error:?}");
    let caller_of_all = caller();
    let called = within(caller_of_all.call_all(async |_| Ok::<_, Fault<Error>>(()))).await;
    assert!(is_told(called.as_ref().unwrap_err()), "{called:?}");
}

/// Each asks with a view of its own, beside one that stays: also right after the last one was told.
#[tokio::test]
async fn a_service_that_is_refused_is_refused_to_each_who_asks() {
    let fake = Fake::start();
    fake.state().denied.push("s");
    let client = Client::builder([fake.address()]).member_refresh(None);
    let client = client.call_timeout(Duration::from_secs(60)).build().unwrap();
    let allowed = client.discover("t").unwrap();
    within(allowed.synced()).await;
    for asked in 0..10 {
        let refused = client.discover("s").unwrap();
        let error = within(refused.usable()).await.unwrap_err();
        assert!(matches!(error, Error::Rejected { .. }), "{asked}: {error:?}");
    }
    assert_eq!(allowed.current().len(), 0);
}

/// It says nothing of who is there now.
#[tokio::test]
async fn a_first_call_waits_where_the_cached_list_is_empty() {
    // S0.17
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::start();
    let cached = || {
        let client = Client::builder([fake.address()]).member_refresh(None);
        client.cache_dir(dir.path()).build().unwrap()
    };
    let before = cached();
    let view = before.discover("s").unwrap();
    let file = dir.path().join("default/s.cache");
    until("it is written", || file.exists()).await;
    drop((view, before));
    fake.state().put(instance("a", "", 100));
    fake.set(Mode::Hang);
    let after = cached();
    let balancer = Balancer::new(after.discover("s").unwrap(), Policy::RoundRobin);
    assert_eq!(within(balancer.discovery().synced()).await.origin(), Origin::Cache);
    let caller = Caller::new(balancer, FailMode::FailFast).deadline(Duration::from_secs(60));
    let mut call = pin!(caller.call(async |one| Ok::<_, Fault<Error>>(one.id.clone())));
    assert!(timeout(Duration::from_millis(50), &mut call).await.is_err(), "it waits");
    fake.set(Mode::Honest);
    assert_eq!(within(call).await.unwrap(), "a");
}
