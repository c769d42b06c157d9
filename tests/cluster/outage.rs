//! The whole registry is down for much longer than the leases live, and returns: what its users see
//! of that.

use std::collections::BTreeSet;
use std::time::Duration;

use quorate_client::{
    InstanceBuilder, Lease, Registration, RegistrationHandle, RegistrationState, Selection, Watch,
    WatchEvent,
};
use tokio::time::{Instant, sleep, timeout};

use super::harness::{Cluster, SOON, eventually};

const SERVICES_MAX: usize = 100;
/// As many as a machine takes within this, if those are fewer: the load is one that it can carry.
const ARRIVING: Duration = Duration::from_secs(10);
const SERVICES_MIN: usize = 20;
/// Of the callers' services, too.
const LAST: &str = "s-last";
/// Five times the shortest that the registry grants: 100 clients and three nodes share a debug
/// process here, which on a busy machine does not come round to all of them within a second.
const TTL: Duration = Duration::from_secs(5);
const OUTAGE: Duration = TTL.saturating_mul(4);

/// Waits until the registry has confirmed it again; when that was.
async fn confirmed(handle: &RegistrationHandle) -> (Instant, Lease) {
    let mut state = handle.watch_state();
    let registered = |state: &RegistrationState| matches!(state, RegistrationState::Registered(_));
    let waited = timeout(SOON, state.wait_for(registered)).await;
    let state = waited.expect("registered again").expect("its task lives").clone();
    let RegistrationState::Registered(lease) = state else { unreachable!() };
    (Instant::now(), lease)
}

/// Registers a service by each of many clients, or of as many as the machine takes.
async fn arrive(cluster: &Cluster) -> Vec<RegistrationHandle> {
    let mut handles = Vec::new();
    let begun = Instant::now();
    for number in 0..SERVICES_MAX {
        if number >= SERVICES_MIN && begun.elapsed() > ARRIVING {
            break;
        }
        // The first calls of so many wait for each other.
        let client = cluster.client_builder().call_timeout(SOON).build().unwrap();
        let instance =
            InstanceBuilder::new(format!("s{number}"), "a").endpoint("http", "http://h:1");
        handles.push(client.register(Registration::new(instance).ttl(TTL)).await.unwrap());
    }
    handles
}

/// Many processes with a service each, each with a client of its own.
// S4.12, S2.4, S0.13, S3.4, S3.8
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_back_after_an_outage_of_four_ttls() {
    let mut cluster = Cluster::start(3).await;
    let begun = Instant::now();
    let handles = arrive(&cluster).await;
    let services = handles.len();
    let arriving = begun.elapsed();
    let caller = cluster.client().await;
    let watch = caller.watch(Selection::prefix("s"));
    let reading = tokio::spawn(read_along(caller.watch(Selection::prefix("s"))));
    assert_eq!(watch.synced().await.unwrap().len(), services);
    let mut before = Vec::new();
    for handle in &handles {
        before.push(confirmed(handle).await.1);
    }

    cluster.stop_all().await;
    let down = Instant::now();
    eventually("all notice", || async {
        let retrying = |handle: &RegistrationHandle| {
            matches!(handle.state(), RegistrationState::Retrying { .. })
        };
        handles.iter().all(retrying).then_some(())
    })
    .await;
    sleep((down + OUTAGE).saturating_duration_since(Instant::now())).await;
    assert_eq!(watch.snapshot().len(), services, "callers still have them");

    let restarting = Instant::now();
    for id in 1..=3 {
        cluster.restart(id).await;
    }
    cluster.leader().await;
    let serving = Instant::now();
    // What a busy machine takes for as many clients, one after the other, and for three nodes.
    let busy = arriving.max(serving - restarting).max(TTL * 2 / 3);
    let (mut arrivals, mut kept) = (Vec::new(), 0);
    let all = futures_util::future::join_all(handles.iter().map(confirmed)).await;
    for ((at, lease), before) in all.into_iter().zip(before) {
        // On a machine so busy that a TTL has gone by since, it has ended rightly.
        if at.saturating_duration_since(serving) < TTL {
            assert_eq!(lease.id, before.id, "nothing ended because of the outage");
            kept += 1;
        }
        arrivals.push(at);
    }
    assert!(kept > services / 2, "{kept} of {services} were back within a TTL");
    // Answers, not requests: what came before there was a leader is answered together. (How
    // requests spread is tested in the client's own tests, which see them arrive.)
    let mut histogram = [0_usize; 20];
    for at in &arrivals {
        histogram[(at.duration_since(restarting).as_millis() as usize / 100).min(19)] += 1;
    }
    let last = arrivals.iter().max().unwrap().saturating_duration_since(serving);
    eprintln!("all {services} back {last:?} after a leader was seen");
    eprintln!("from the restart on, in steps of 100 ms: {histogram:?}");
    // Two renew intervals; and what the machine takes for so many clients and three nodes in one
    // debug process.
    assert!(last < TTL * 2 / 3 + busy, "the last was back after {last:?}, with {busy:?}");

    // Made after all the others: the watch has them once it has this one.
    let last = InstanceBuilder::new(LAST, "a").endpoint("http", "http://h:1");
    let _last = caller.register(last).await.unwrap();
    let told = timeout(SOON, reading).await.expect("the last one arrives").expect("no panic");
    assert_eq!(told.len(), services + 1, "a caller learns of each");
    eventually("the view has it too", || async {
        (watch.snapshot().len() == services + 1).then_some(())
    })
    .await;
}

/// Reads a watch until it reports the last service: the services that it reported. No instance is
/// ever reported gone, nor reported twice.
async fn read_along(mut watch: Watch) -> BTreeSet<String> {
    let mut told = BTreeSet::new();
    while !told.contains(LAST) {
        match watch.next().await.expect("a watch goes on for ever") {
            WatchEvent::Snapshot(view) => {
                assert!(told.is_empty(), "only one snapshot");
                told.extend(view.iter().map(|instance| instance.service.clone()));
            }
            WatchEvent::Added(instance) => {
                assert!(told.insert(instance.service.clone()), "reported twice: {instance:?}");
            }
            WatchEvent::Modified(_) | WatchEvent::Reset { .. } => {}
            other => panic!("a caller sees less: {other:?}"),
        }
    }
    told
}
