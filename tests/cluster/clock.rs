//! When leases end: in time, and never because of an outage. These tests let real time pass,
//! because that is what they are about; how late the machine itself was meanwhile is measured and
//! allowed for.

use std::time::Duration;

use quorate_client::{Consistency, FetchOptions, InstanceBuilder, Registration, RegistrationState};
use quorate_node::Tunables;
use quorate_proto::v1::{ChangeKind, RegisterRequest, RemoveReason};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::calls::{fetch_all, in_time, registration, renewal, spec};
use super::harness::{Cluster, SOON, eventually};
use super::metronome::Metronome;
use super::stream::{Stream, subscribe_to};

/// A busy machine may let a time go by that a test needs; it tries again, so often.
const ROUNDS: usize = 4;

/// The shortest TTL that the registry grants.
const SHORTEST: Duration = Duration::from_secs(1);

/// An idle cluster reports the end of a lease this long after its TTL, at most.
const LATE: Duration = Duration::from_millis(500);

fn lasting(ttl_ms: u64, id: &str) -> RegisterRequest {
    RegisterRequest { ttl_ms, ..registration(vec![spec("web", id)]) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_ends_within_half_a_second_after_its_ttl() {
    let mut late = Vec::new();
    while late.iter().all(|late| *late > Duration::ZERO) {
        assert!(late.len() < ROUNDS, "later than allowed by {late:?}");
        late.push(late_ends().await);
    }
}

/// How much later than allowed the last of some leases has ended. On a busy machine, silence may
/// elect another leader meanwhile, which keeps all leases for longer.
async fn late_ends() -> Duration {
    const TTL_MS: u64 = 1_500;
    let ttl = Duration::from_millis(TTL_MS);
    let cluster = Cluster::start(3).await;
    let metronome = Metronome::start();
    // The cluster is idle: this neighbour is not renewed before all is over.
    let mut registry = cluster.registry(1);
    let neighbour = registry.register(lasting(60_000, "neighbour")).await.unwrap().into_inner();

    let follower = cluster.follower().await;
    let mut stream =
        Stream::open(&cluster.registry(follower), subscribe_to(&["web"])).await.unwrap();
    stream.snapshot().await;
    let mut begun = Vec::new();
    for at in 0..8_u64 {
        let mut registry = cluster.registry(1 + at % 3);
        let before = Instant::now();
        let granted = registry.register(lasting(TTL_MS, &format!("i{at}"))).await.unwrap();
        assert_eq!(granted.into_inner().ttl_ms, TTL_MS);
        begun.push((before, Instant::now()));
        // Spread over the ticks of the leader.
        sleep(Duration::from_millis(83)).await;
    }
    let mut ended = vec![None; begun.len()];
    while ended.iter().any(Option::is_none) {
        let known = stream.changes.len();
        stream.next().await.unwrap();
        let now = Instant::now();
        for change in &stream.changes[known..] {
            if change.kind() == ChangeKind::Removed {
                assert_eq!(change.reason(), RemoveReason::Expired);
                let id = &change.instance.as_ref().unwrap().id;
                ended[id[1..].parse::<usize>().expect("none but these may end")] = Some(now);
            }
        }
    }
    let allowed = ttl + LATE + metronome.lateness();
    let mut late = Duration::ZERO;
    for ((before, after), ended) in begun.into_iter().zip(ended) {
        let ended = ended.unwrap();
        assert!(ended - before >= ttl, "too early: {:?}", ended - before);
        late = late.max((ended - after).saturating_sub(allowed));
    }
    let (_, map) = fetch_all(&mut cluster.registry(follower)).await;
    assert_eq!(map.len(), 1, "the neighbour is untouched");
    let renewed = registry.renew(renewal([neighbour.lease_id])).await.unwrap().into_inner();
    assert!(renewed.unknown_lease_ids.is_empty());
    late
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_keeps_the_shortest_lease_there_is() {
    let cluster = Cluster::start(3).await;
    for round in 1.. {
        let metronome = Metronome::start();
        let is_kept = keeps_the_shortest_lease(&cluster).await;
        // Where the machine lets no renewal come in time, it has ended rightly.
        let was_late = metronome.lateness() > SHORTEST / 3;
        assert!(is_kept || was_late, "it was gone, though nothing was late");
        if is_kept {
            return;
        }
        assert!(round < ROUNDS, "it was gone each time");
    }
}

/// For four TTLs; false: it was gone in between.
async fn keeps_the_shortest_lease(cluster: &Cluster) -> bool {
    let client = cluster.client().await;
    let instance = InstanceBuilder::new("web", "a").endpoint("http", "http://h:1");
    let kept = client.register(Registration::new(instance).ttl(SHORTEST)).await.unwrap();
    let lease = kept.registered().await.unwrap();
    let mut states = kept.watch_state();
    // A renewal may be late and be tried again; the lease stays the same all the while.
    let end = Instant::now() + 4 * SHORTEST;
    let mut is_kept = true;
    while timeout_at(end, states.changed()).await.is_ok() {
        match &*states.borrow_and_update() {
            RegistrationState::Registered(now) => is_kept &= now.id == lease.id,
            RegistrationState::Retrying { .. } => {}
            other => panic!("the registration ended: {other:?}"),
        }
    }
    let revision = fetch_all(&mut cluster.registry(2)).await.0;
    kept.deregister().await.unwrap();
    is_kept && revision == lease.revision
}

/// Whatever was left of a TTL before the outage, a whole one is there after it.
// S4.12
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_all_nodes_expires_nobody() {
    let mut rounds = 0;
    while !is_over_within_a_ttl().await {
        rounds += 1;
        assert!(rounds < ROUNDS, "a TTL has gone by each time");
    }
}

/// An outage that expires nobody; false: a TTL had gone by before it, or before that could be seen,
/// which ends leases rightly.
async fn is_over_within_a_ttl() -> bool {
    const TTL_MS: u64 = 6_000;
    let mut cluster = Cluster::start(3).await;
    let mut registry = cluster.registry(1);
    let mut leases = Vec::new();
    let begun = Instant::now();
    for at in 0..20 {
        let request = in_time(lasting(TTL_MS, &format!("i{at}")));
        leases.push(registry.register(request).await.unwrap().into_inner().lease_id);
    }
    let (before, _) = fetch_all(&mut registry).await;
    sleep(Duration::from_millis(TTL_MS / 2)).await;
    cluster.stop_all().await;
    if begun.elapsed() >= Duration::from_millis(TTL_MS) {
        return false;
    }
    sleep(Duration::from_millis(TTL_MS * 5 / 4)).await;
    let back = Instant::now();
    for node in 1..=3 {
        cluster.restart(node).await;
    }
    cluster.leader().await;
    // Clients that had backed off come late: after more than was left, and less than a TTL.
    sleep(Duration::from_millis(TTL_MS / 2)).await;
    let kept = leases.split_off(10);
    let mut at_three = cluster.registry(3);
    let renewed = at_three.renew(in_time(renewal(kept.clone()))).await;
    let (after, map) = fetch_all(&mut at_three).await;
    if back.elapsed() >= Duration::from_millis(TTL_MS) {
        return false;
    }
    let renewed = renewed.expect("a renewal").into_inner();
    assert!(renewed.unknown_lease_ids.is_empty(), "expired by the outage: {renewed:?}");
    assert_eq!((after, map.len()), (before, 20), "nothing has changed");
    // The others did not come back, and go; the instances that renew stay.
    let limit = Duration::from_millis(TTL_MS) + Duration::from_secs(10);
    let gone = async {
        loop {
            at_three.renew(renewal(kept.clone())).await.expect("renewals");
            let (_, map) = fetch_all(&mut at_three).await;
            assert!(map.len() >= 10, "instances that renew stay");
            if map.len() == 10 {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(limit, gone).await.expect("the dead are gone within TTL + 10 s");
    true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_stands_still_without_a_quorum() {
    // Much longer than a busy machine takes to stop one node.
    const TTL_MS: u64 = 5_000;
    let mut cluster = Cluster::start(3).await;
    let survivor = cluster.follower().await;
    let mut registry = cluster.registry(survivor);
    let lease = registry.register(lasting(TTL_MS, "a")).await.unwrap().into_inner().lease_id;
    for id in (1..=3).filter(|id| *id != survivor) {
        let renewed = registry.renew(in_time(renewal([lease]))).await.expect("a renewal");
        assert_eq!(renewed.into_inner().unknown_lease_ids, [0; 0]);
        cluster.stop(id).await;
    }
    sleep(Duration::from_millis(TTL_MS + 1_000)).await;
    let options = FetchOptions::new("web").consistency(Consistency::Local);
    let client = cluster.client().await;
    let local = client.fetch_with(&options).await.unwrap().services.unwrap();
    assert_eq!(local[0].instances.len(), 1, "no lease expires by a node's own clock");
    let other = (1..=3).find(|id| *id != survivor).unwrap();
    cluster.restart(other).await;
    eventually("the renewal is served again", || async {
        let answer = cluster.registry(survivor).renew(renewal([lease])).await;
        match answer {
            Ok(answer) => {
                assert!(answer.into_inner().unknown_lease_ids.is_empty());
                Some(())
            }
            Err(status) => {
                assert_ne!(status.code(), tonic::Code::NotFound, "expired by the outage");
                None
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_transfers_keep_the_dead_no_longer_than_ten_seconds() {
    // A busy machine renews in time all the same.
    const TTL_MS: u64 = 6_000;
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    let alive = InstanceBuilder::new("web", "alive").endpoint("http", "http://h:1");
    let alive = Registration::new(alive).ttl(Duration::from_millis(TTL_MS));
    let alive = client.register(alive).await.unwrap();
    let lease = alive.registered().await.unwrap();
    cluster.registry(1).register(lasting(TTL_MS, "dead")).await.unwrap();
    let died = Instant::now();
    let mut stream = Stream::open(&cluster.registry(1), subscribe_to(&["web"])).await.unwrap();
    stream.snapshot().await;
    let admin = client.admin();
    for turn in 1..=5_u32 {
        admin.transfer_leader(None).await.expect("a transfer");
        let due = Duration::from_millis(TTL_MS) * turn / 6;
        sleep(due.saturating_sub(died.elapsed())).await;
    }
    // All within the TTL, but for a busy machine.
    let transferred = died.elapsed();
    let gone = stream.until("the end of the dead", |stream| {
        stream.changes.last().is_some_and(|change| change.kind() == ChangeKind::Removed)
    });
    timeout(SOON, gone).await.expect("it ends");
    let took = died.elapsed();
    let last = stream.changes.last().unwrap();
    assert_eq!(last.instance.as_ref().unwrap().id, "dead");
    assert!(took >= Duration::from_millis(TTL_MS), "too early: {took:?}");
    let due = transferred.max(Duration::from_millis(TTL_MS));
    assert!(took <= due + Duration::from_secs(10), "too late: {took:?}, due after {due:?}");
    let now = timeout(SOON, alive.registered()).await.expect("it is renewed");
    assert_eq!(now.unwrap().id, lease.id, "the same all the while");
    assert_eq!(stream.ids(), ["alive"]);
}

/// Less than the TTL: that is what a lease gets when the whole cluster was down.
const GRACE: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_election_gives_a_lease_a_grace_and_no_more() {
    let election_grace_ms = GRACE.as_millis() as u64;
    let cluster =
        Cluster::start_with(3, Tunables { election_grace_ms, ..Tunables::default() }).await;
    let mut rounds = 0;
    while !is_kept_for_a_grace(&cluster).await {
        rounds += 1;
        assert!(rounds < ROUNDS, "the lead moved too late, or the lease ended too late, each time");
    }
}

/// Of a lease that is renewed once before the lead moves; false: that took until it had ended, or
/// it was there for too long.
async fn is_kept_for_a_grace(cluster: &Cluster) -> bool {
    const TTL: Duration = Duration::from_secs(4);
    let metronome = Metronome::start();
    let leader = cluster.leader().await;
    let mut registry = cluster.registry(leader);
    let mut stream = Stream::open(&registry, subscribe_to(&["web"])).await.unwrap();
    stream.snapshot().await;
    let request = RegisterRequest { incarnation: 0, ..lasting(TTL.as_millis() as u64, "a") };
    let lease = registry.register(request).await.unwrap().into_inner().lease_id;
    let before = Instant::now();
    let renewed = registry.renew(renewal([lease])).await.unwrap().into_inner();
    assert!(renewed.unknown_lease_ids.is_empty());
    sleep(TTL * 3 / 4).await;
    let moves = Instant::now();
    cluster.client().await.admin().transfer_leader(None).await.expect("a transfer");
    let took = moves.elapsed();
    let gone = stream.until("the end of the lease", |stream| {
        stream.changes.last().is_some_and(|change| change.kind() == ChangeKind::Removed)
    });
    timeout(SOON, gone).await.expect("it ends");
    let ended = Instant::now();
    assert_eq!(stream.changes.last().unwrap().reason(), RemoveReason::Expired);
    if moves + took > before + TTL {
        return false;
    }
    // A quarter of the TTL was left when the lead moved.
    assert!(ended - moves >= GRACE, "its grace was {:?}", ended - moves);
    ended - moves <= took + GRACE + LATE + metronome.lateness()
}
