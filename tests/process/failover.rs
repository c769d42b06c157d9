//! How long writes and renewals wait when the leader goes: its process dies (kill -9), or it falls
//! silent (SIGSTOP); the same with TLS between nodes and to clients.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use quorate_client::{Consistency, Instance};

use crate::cluster::{Cluster, LEADER_WITHIN, Settings};
use crate::load::{Load, keep};
use crate::wait::{eventually, time_passes};

/// Leaders in turn; the median counts, because one election may be unlucky.
const ROUNDS: usize = 5;

/// With room for a debug build. On a busy machine, the time of [`STEPS`] calls more.
const AFTER_DEATH: Duration = Duration::from_millis(500);
const AFTER_SILENCE: Duration = Duration::from_millis(1_000);
/// Connections that end, votes, syncs, the first entry of a term, and the call itself.
const STEPS: u32 = 8;

/// With these, no silence ends before 3.5 s: what is quicker is not the election timeouts' doing.
const PATIENT: &str = "election_timeout_min_ms = 1500\nelection_timeout_max_ms = 2000";

/// As long as a busy machine may need between two renewals.
const TTL: Duration = Duration::from_secs(10);
const KEPT: usize = 10;

/// S1.3, S0.5
#[tokio::test(flavor = "multi_thread")]
async fn writes_and_renewals_are_back_soon_after_the_leader_died() {
    after_the_leader_died(false).await;
}

/// S1.3, S0.5
#[tokio::test(flavor = "multi_thread")]
async fn writes_and_renewals_are_back_soon_after_the_leader_fell_silent() {
    after_the_leader_fell_silent(false).await;
}

/// S1.3, S0.5
#[tokio::test(flavor = "multi_thread")]
async fn with_tls_writes_and_renewals_are_back_as_soon_after_the_leader_died() {
    after_the_leader_died(true).await;
}

/// S1.3, S0.5
#[tokio::test(flavor = "multi_thread")]
async fn with_tls_writes_and_renewals_are_back_as_soon_after_the_leader_fell_silent() {
    after_the_leader_fell_silent(true).await;
}

async fn after_the_leader_died(secured: bool) {
    let settings = Settings { tunables: PATIENT.to_owned(), secured, ..Settings::default() };
    let mut cluster = Cluster::start_with(3, settings).await;
    let (writes, renewals, steps) = outages(&mut cluster, |cluster, leader, gone| match gone {
        true => cluster.nodes[leader].kill(),
        false => cluster.nodes[leader].start(),
    })
    .await;
    eprintln!(
        "measured: leader killed (TLS: {secured}): writes back after {writes:?}, renewals {renewals:?}"
    );
    let most = AFTER_DEATH + steps;
    assert!(median(&writes) < most, "writes were back after {writes:?}, not {most:?}");
    assert!(median(&renewals) < most, "renewals were back after {renewals:?}, not {most:?}");
}

async fn after_the_leader_fell_silent(secured: bool) {
    let mut cluster = Cluster::start_with(3, Settings { secured, ..Settings::default() }).await;
    let (writes, renewals, steps) = outages(&mut cluster, |cluster, leader, gone| match gone {
        true => cluster.nodes[leader].pause(),
        false => cluster.nodes[leader].go_on(),
    })
    .await;
    eprintln!(
        "measured: leader stopped (TLS: {secured}): writes back after {writes:?}, renewals {renewals:?}"
    );
    let most = AFTER_SILENCE + steps;
    assert!(median(&writes) < most, "writes were back after {writes:?}, not {most:?}");
    assert!(median(&renewals) < most, "renewals were back after {renewals:?}, not {most:?}");
}

/// Takes one leader after the other away and back; the outage of writes (client crate, all nodes)
/// and of renewals (generated stub, a survivor) each time, and what [`STEPS`] calls take on this
/// machine. No lease may be lost meanwhile.
async fn outages(
    cluster: &mut Cluster,
    mut turn: impl FnMut(&mut Cluster, usize, bool),
) -> (Vec<Duration>, Vec<Duration>, Duration) {
    let client = cluster.client().build().unwrap();
    let _kept = keep(&client, "kept", KEPT, TTL).await;
    let before = kept(cluster).await;
    assert_eq!(before.len(), KEPT);
    let (mut writes, mut renewals, mut paces) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let leader = cluster.leader().await;
        let survivors = cluster.others(leader);
        let survivor = &cluster.nodes[survivors[0]];
        // The one that was away catches up first.
        let id = format!("r{round}");
        let lease = eventually("a lease of its own", LEADER_WITHIN, async || {
            survivor.register("renewed", &id, TTL).await
        })
        .await
        .lease_id;
        let renewing = Load::renewing(survivor, lease, 2);
        let writing = Load::registering(&client, "written", 4);
        writing.until_more(50).await;

        let since = Instant::now();
        turn(cluster, leader, true);
        writing.until_more(50).await;
        renewing.until_more(50).await;
        let (written, renewed) = (writing.finish().await, renewing.finish().await);
        written.assert_no_failure();
        renewed.assert_no_failure();
        paces.push(written.pace(since));
        writes.push(written.outage(since));
        renewals.push(renewed.outage(since));
        turn(cluster, leader, false);
    }
    // What was not renewed since the last of them has run out by then.
    time_passes(TTL + TTL / 2).await;
    assert_eq!(kept(cluster).await, before, "leases ended, or were registered again");
    (writes, renewals, STEPS * median(&paces))
}

/// The instances that the client keeps, with their leases.
async fn kept(cluster: &Cluster) -> BTreeMap<String, Instance> {
    let leader = cluster.leader().await;
    let mut all = cluster.nodes[leader].instances(Consistency::Linearizable).await.unwrap();
    all.retain(|key, _| key.starts_with("kept/"));
    all
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times[times.len() / 2]
}
