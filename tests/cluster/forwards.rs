//! Calls through a follower: which nodes they wait for, and which not.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use quorate_node::Tunables;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::calls::{Registry, deregister, register, registration, renewal, spec, with_timeout};
use super::harness::{Cluster, SOON};

/// More than the messages that are under way at once hold.
const WAITING: usize = 1_500;

/// Calls that have to wait until connections to the frozen node end, one message after the other,
/// are 3 s late.
const AFTER_ELECTION: Duration = Duration::from_millis(1_500);

/// Of a call that has to be done, however busy the machine is: what is measured is not when it
/// gives up.
const PATIENCE: Duration = SOON.saturating_mul(3);

/// Leaders that freeze: on a busy machine something else may take long after one of them.
const FROZEN: usize = 3;

const WRITERS: u64 = 16;
/// In some of these something else may take long.
const ROUNDS: usize = 9;

/// S1.3, S0.5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_that_wait_for_a_frozen_leader_go_on_with_the_next() {
    let mut cluster = Cluster::start_freezable(3).await;
    let mut late = Vec::new();
    while late.iter().all(|late| *late > AFTER_ELECTION) {
        assert!(late.len() < FROZEN, "later than the election: {late:?}");
        late.push(late_after_election(&mut cluster).await);
        cluster.settled().await;
    }
}

/// A leader freezes; how much later than the election, and a write at the next leader, is the first
/// call done that waits at the other follower.
async fn late_after_election(cluster: &mut Cluster) -> Duration {
    let leader = cluster.leader().await;
    let lease = register(&mut cluster.registry(leader), "kept", "a").await.lease_id;
    // Both, since either may be the next.
    let followers: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
    for id in &followers {
        register(&mut cluster.registry(leader), "left", &id.to_string()).await;
    }
    let callers = followers.iter().map(|id| (*id, cluster.registry(*id))).collect::<Vec<_>>();

    cluster.freeze(leader);
    let frozen = Instant::now();
    let calls = callers.iter().map(|(id, registry)| async move {
        let writes = join_all((0..WAITING).map(|at| write(registry.clone(), *id, at as u64)));
        let (mut leaving, left) = (registry.clone(), id.to_string());
        let leaves = deregister(&mut leaving, "left", &left);
        let renews = renew(registry.clone(), lease);
        let (renewed, mut written, _) = tokio::join!(renews, writes, leaves);
        written.sort();
        (renewed, written)
    });
    // What a busy machine makes of a write that has to wait for no other node: the others may be as
    // late.
    let elected = async {
        let (next, elected) = (cluster.leader_of(&followers).await, Instant::now());
        (next, elected, write(cluster.registry(next), 0, 0).await - elected)
    };
    let (mut answered, (next, elected, at_leader)) = tokio::join!(join_all(calls), elected);
    let (renewed, written) = answered.remove(usize::from(followers[0] == next));
    let since = |at: Instant| at.saturating_duration_since(frozen);
    let (first, last) = (since(written[0]), since(written[WAITING - 1]));
    let (elected, renewed) = (since(elected), since(renewed));
    eprintln!(
        "measured: leader frozen: elected {elected:?}, through the other follower: first write {first:?}, last of \
         {WAITING} {last:?}, renewed {renewed:?}; a write at the leader {at_leader:?}"
    );
    cluster.thaw(leader);
    first.max(renewed).saturating_sub(elected + at_leader)
}

/// A batch of renewals has less time than a caller may have, whose renewal then goes with a later
/// batch.
// S1.3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_waits_for_a_leader_as_long_as_its_caller_does() {
    let tunables = Tunables { request_timeout_ms: 300, ..Tunables::default() };
    let mut cluster = Cluster::start_freezable_with(3, tunables).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let lease = register(&mut cluster.registry(leader), "kept", "a").await.lease_id;
    let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != follower).collect();
    others.iter().for_each(|id| cluster.freeze(*id));
    let renews = tokio::spawn(renew(cluster.registry(follower), lease));
    // Several batches end without a leader.
    sleep(Duration::from_millis(1_500)).await;
    assert!(!renews.is_finished(), "it cannot have been renewed");
    others.iter().for_each(|id| cluster.thaw(*id));
    renews.await.expect("it is renewed when there is a leader again");
}

/// Renewals may be held back to be sent with others; the writes of the same moment are not held
/// back with them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewals_hold_up_no_writes() {
    let window = Duration::from_millis(300);
    let tunables = Tunables { renew_window_ms: 300, ..Tunables::default() };
    let cluster = Cluster::start_with(3, tunables).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let lease = register(&mut cluster.registry(leader), "kept", "a").await.lease_id;
    let slowest = Arc::new(Mutex::new(Duration::ZERO));
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (registry, slowest) = (cluster.registry(follower), slowest.clone());
        writers.spawn(async move {
            for at in 0.. {
                let begun = Instant::now();
                let written = write(registry.clone(), writer, at % 10).await;
                let mut slowest = slowest.lock().expect("no panic under this lock");
                *slowest = (*slowest).max(written - begun);
            }
        });
    }
    let since_then = || std::mem::take(&mut *slowest.lock().expect("no panic under this lock"));
    let (mut alone, mut beside, mut longest) = (Vec::new(), Vec::new(), Duration::ZERO);
    for _ in 0..ROUNDS {
        since_then();
        sleep(window).await;
        alone.push(since_then());
        // The leader's window begins.
        renew(cluster.registry(leader), lease).await;
        since_then();
        let begun = Instant::now();
        longest = longest.max(renew(cluster.registry(follower), lease).await - begun);
        // What was answered together with it counts here.
        sleep(window / 4).await;
        beside.push(since_then());
    }
    drop(writers);
    assert!(longest > window / 2, "renewals are held back: {longest:?}");
    alone.sort();
    beside.sort();
    eprintln!(
        "measured: the slowest writes in {window:?}: {alone:?}, while a renewal waits: {beside:?}"
    );
    // A busy machine is slow with all of them.
    let limit = (window / 2).max(2 * alone[ROUNDS / 2]);
    assert!(beside[ROUNDS / 2] < limit, "{beside:?}");
}

async fn write(mut registry: Registry, node: u64, at: u64) -> Instant {
    let request = registration(vec![spec("web", &format!("{node}-{at}"))]);
    registry.register(with_timeout(request, PATIENCE)).await.expect("a registration");
    Instant::now()
}

async fn renew(mut registry: Registry, lease: u64) -> Instant {
    let renewed = registry.renew(with_timeout(renewal([lease]), PATIENCE)).await;
    assert_eq!(renewed.expect("a renewal").into_inner().unknown_lease_ids, [0; 0]);
    Instant::now()
}
