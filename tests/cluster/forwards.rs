//! Calls through a follower whose leader stands still: they go on with the next leader, however many wait.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::calls::{Registry, deregister, register, registration, renewal, spec, with_timeout};
use super::harness::{Cluster, SOON};

/// More than the messages that are under way at once hold.
const WAITING: usize = 1_500;

/// From the moment that the follower knows the next leader, with room for a debug build on a busy machine: an attempt that
/// had to wait for the end of a connection (1 s at least) would not come in time.
const AFTER_ELECTION: Duration = Duration::from_millis(800);

/// S1.3, S0.5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_that_wait_for_a_frozen_leader_go_on_with_the_next() {
    let mut cluster = Cluster::start_freezable(3).await;
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
        let writes = join_all((0..WAITING).map(|at| write(registry.clone(), *id, at)));
        let (mut leaving, left) = (registry.clone(), id.to_string());
        let leaves = deregister(&mut leaving, "left", &left);
        let renews = renew(registry.clone(), lease);
        let (renewed, mut written, _) = tokio::join!(renews, writes, leaves);
        written.sort();
        (renewed, written)
    });
    let elected = cluster.leader_of(&followers);
    let elected = async { (elected.await, Instant::now()) };
    let (mut answered, (next, elected)) = tokio::join!(join_all(calls), elected);
    let (renewed, written) = answered.remove(usize::from(followers[0] == next));
    let since = |at: Instant| at.saturating_duration_since(frozen);
    let (first, last) = (since(written[0]), since(written[WAITING - 1]));
    let (elected, renewed) = (since(elected), since(renewed));
    eprintln!(
        "measured: leader frozen: elected {elected:?}, through the other follower: first write {first:?}, last of \
         {WAITING} {last:?}, renewed {renewed:?}"
    );
    assert!(first < elected + AFTER_ELECTION, "first write");
    assert!(renewed < elected + AFTER_ELECTION, "renewed");
    cluster.thaw(leader);
}

async fn write(mut registry: Registry, node: u64, at: usize) -> Instant {
    let request = registration(vec![spec("web", &format!("{node}-{at}"))]);
    registry.register(with_timeout(request, SOON)).await.expect("a registration");
    Instant::now()
}

async fn renew(mut registry: Registry, lease: u64) -> Instant {
    let renewed = registry.renew(with_timeout(renewal([lease]), SOON)).await;
    assert_eq!(renewed.expect("a renewal").into_inner().unknown_lease_ids, [0; 0]);
    Instant::now()
}
