//! kill -9: of the leader under load, and of all nodes at once.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use quorate_client::{Consistency, Instance};
use quorate_proto::v1::ChangeKind;

use crate::cluster::{Cluster, LEADER_WITHIN};
use crate::feed::Feed;
use crate::load::{Load, keep};
use crate::metronome::Metronome;
use crate::wait::{eventually, time_passes};

/// Writes are back in less than this after the leader was killed, in most rounds: where two stand
/// for election at once, it takes another one.
const WRITES_BACK_WITHIN: Duration = Duration::from_millis(1_500);
/// As much more as this many calls take, on a busy machine.
const STEPS: u32 = 8;
/// Of leases that are not renewed any more. Longer than a busy machine takes for starting three
/// nodes and reading from each.
const SHORT_TTL: Duration = Duration::from_secs(10);
/// Of leases that are renewed all the time. A busy machine may hold a renewal up for seconds.
const KEPT_TTL: Duration = Duration::from_secs(10);
const KEPT: usize = 20;

/// Three leaders in turn. S0.5, S1.3, S2.7, S3.1
#[tokio::test(flavor = "multi_thread")]
async fn the_leader_is_killed_under_load_and_nothing_acknowledged_is_lost() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().build().unwrap();
    let _kept = keep(&client, "kept", KEPT, KEPT_TTL).await;
    let mut late_rounds = Vec::new();
    for (round, service) in ["first", "second", "third"].into_iter().enumerate() {
        let leader = cluster.leader().await;
        let survivors = cluster.others(leader);
        let metronome = Metronome::start(&cluster, &survivors).await;
        let mut feeds = Vec::new();
        for at in &survivors {
            feeds.push(Feed::start(&cluster.nodes[*at]).await);
        }
        let load = Load::registering(&client, service, 4);
        load.until_more(100).await;

        cluster.nodes[leader].kill();
        let killed = Instant::now();
        load.until_more(200).await;
        if round == 2 {
            // Long enough for a lease whose renewals were lost, in any of the rounds, to run out.
            time_passes((KEPT_TTL * 3 / 2).saturating_sub(killed.elapsed())).await;
        }
        let outcome = load.finish().await;
        let (outage, longest) = (outcome.outage(killed), outcome.longest_call(killed));
        eprintln!("measured: leader killed, round {round}: writes back after {outage:?}");
        eprintln!("  longest call {longest:?}, {} acknowledged", outcome.acks.len());
        outcome.assert_no_failure();
        let late = metronome.slowest();
        let most = WRITES_BACK_WITHIN + STEPS * outcome.pace(killed) + 2 * late;
        if outage >= most {
            late_rounds.push(format!("{outage:?}, not {most:?} ({late:?} late)"));
        }

        for (at, feed) in survivors.iter().zip(&feeds) {
            let node = &cluster.nodes[*at];
            let state = node.instances(Consistency::Linearizable).await.unwrap();
            outcome.assert_all_in(&state, "a surviving node");
            assert_kept(&state);
            let revision = node.its_status().await.revision;
            let all = |seen: &crate::feed::Seen| seen.revision >= revision;
            feed.until("all changes", LEADER_WITHIN, all).await;
            feed.assert_gapless();
            feed.look(|seen| {
                assert_eq!(seen.of(ChangeKind::Removed, ""), [], "nothing was to be removed");
                assert!(seen.view == state, "the watch came to another state than the read");
                assert_ne!(seen.leaders.last().copied(), Some(0), "no leader was named");
            });
        }

        cluster.nodes[leader].start();
        cluster.leader().await;
        let state = cluster.equal_states().await;
        outcome.assert_all_in(&state, "the cluster with the killed node back");
        assert_kept(&state);
    }
    assert!(late_rounds.len() < 2, "writes were back after {late_rounds:?}");
}

fn assert_kept(state: &BTreeMap<String, Instance>) {
    let kept = state.keys().filter(|key| key.starts_with("kept/")).count();
    assert_eq!(kept, KEPT, "of the instances that are renewed");
}

/// The outage is longer than the leases; some of them are renewed afterwards, some are not. S4.12,
/// S0.5, S1.6
#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_are_killed_under_load_and_everything_is_back() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().build().unwrap();
    let _kept = keep(&client, "kept", KEPT, KEPT_TTL).await;
    let load = Load::registering(&client, "stream", 4);
    load.until_more(200).await;
    for at in 0..KEPT {
        let node = &cluster.nodes[at % 3];
        node.register("short", &format!("s{at}"), SHORT_TTL).await.unwrap();
    }
    // So that a whole TTL from the restart on is more than what they have left.
    time_passes(SHORT_TTL / 2).await;
    for node in &mut cluster.nodes {
        node.kill();
    }
    load.stop();
    time_passes(SHORT_TTL * 3 / 2).await;

    for node in &mut cluster.nodes {
        node.start();
    }
    let restarted = Instant::now();
    cluster.leader().await;
    let led = restarted.elapsed();
    let feed = Feed::start(&cluster.nodes[0]).await;
    let outcome = load.finish().await;
    for node in &cluster.nodes {
        // The first read that is served has everything.
        let state = node.instances(Consistency::Linearizable).await.unwrap();
        outcome.assert_all_in(&state, "a restarted node");
        assert_kept(&state);
        let short = state.keys().filter(|key| key.starts_with("short/")).count();
        // On a machine so busy that a TTL went by since, they are gone rightly.
        if restarted.elapsed() < SHORT_TTL {
            assert_eq!(short, KEPT, "node {}: expired by the outage", node.id);
        }
    }
    let read = restarted.elapsed();
    eprintln!("measured: all killed: a leader {led:?} after the restart, all read after {read:?}");

    // A client that does not come back goes, but gets a whole TTL for coming back.
    let gone = |seen: &crate::feed::Seen| seen.of(ChangeKind::Removed, "short/").len() == KEPT;
    feed.until("the end of what is not renewed", SHORT_TTL + LEADER_WITHIN, gone).await;
    let state = cluster.equal_states().await;
    outcome.assert_all_in(&state, "all nodes");
    assert_kept(&state);
    feed.assert_gapless();
    feed.look(|seen| {
        assert_eq!(seen.of(ChangeKind::Removed, "kept/"), []);
        assert_eq!(seen.of(ChangeKind::Removed, "stream/"), []);
        let removed = seen.of(ChangeKind::Removed, "short/");
        let times: Vec<_> = removed.iter().map(|(at, _)| *at - restarted).collect();
        let (first, last) = (times.iter().min().unwrap(), times.iter().max().unwrap());
        eprintln!(
            "measured: all killed: not renewed, gone {first:?} to {last:?} after the restart"
        );
        assert!(*first >= SHORT_TTL, "less than a TTL of grace after the restart: {first:?}");
    });
}

/// The leader is back before the others miss it: what it answers first has everything that was
/// acknowledged. S4.12, S3.1
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_back_at_once_answers_nothing_old() {
    let mut cluster = Cluster::start(3).await;
    for round in 1..=4 {
        let leader = cluster.leader().await;
        for write in 0..5 {
            let id = format!("r{round}-{write}");
            cluster.nodes[leader].register("kept", &id, Duration::from_secs(60)).await.unwrap();
        }
        cluster.nodes[leader].kill();
        let killed = Instant::now();
        cluster.nodes[leader].start();
        let node = &cluster.nodes[leader];
        let first = eventually("a linearizable read", LEADER_WITHIN, async || {
            node.instances(Consistency::Linearizable).await
        })
        .await;
        eprintln!("measured: leader back at once, first read after {:?}", killed.elapsed());
        assert_eq!(first.len(), round * 5, "acknowledged writes are missing in {first:?}");
    }
    cluster.equal_states().await;
}
