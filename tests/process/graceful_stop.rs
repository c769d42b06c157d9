//! SIGTERM: the leader stops in order while the client crate has calls under way.

use std::time::{Duration, Instant};

use quorate_client::Consistency;
use quorate_proto::v1::ChangeKind;

use crate::cluster::{Cluster, Settings};
use crate::feed::Feed;
use crate::load::{Load, keep};

/// The node's `shutdown_grace_ms`, and a little.
const STOPS_WITHIN: Duration = Duration::from_secs(12);
/// Handing over is to be quicker than an election, which begins after 560 ms of silence at the
/// earliest.
const HANDED_OVER_WITHIN: Duration = Duration::from_millis(1_000);

/// The order that `server.rs` documents, as the log shows it.
const ORDER: [&str; 7] = [
    "not serving",
    "handed the lead over",
    "refusing new calls",
    "calls are done",
    "Raft has stopped",
    "log is closed",
    "node stopped",
];

/// Every node in turn, as in a rolling restart. S0.11, S1.3, S2.13
#[tokio::test(flavor = "multi_thread")]
async fn the_leader_stops_under_load_and_no_call_fails() {
    the_leader_stops_under_load(false).await;
}

/// S0.11, S1.3, S2.13
#[tokio::test(flavor = "multi_thread")]
async fn with_tls_the_leader_stops_under_load_and_no_call_fails() {
    the_leader_stops_under_load(true).await;
}

async fn the_leader_stops_under_load(secured: bool) {
    let mut cluster = Cluster::start_with(3, Settings { secured, ..Settings::default() }).await;
    let client = cluster.client().build().unwrap();
    let _kept = keep(&client, "kept", 10, Duration::from_secs(2)).await;
    for service in ["first", "second", "third"] {
        let leader = cluster.leader().await;
        let survivors = cluster.others(leader);
        let feed = Feed::start(&cluster.nodes[survivors[0]]).await;
        let writes = Load::registering(&client, service, 4);
        let reads = Load::fetching(&client, "kept", 2);
        writes.until_more(100).await;
        let term = cluster.nodes[leader].own_status().await.unwrap().term;

        cluster.nodes[leader].terminate();
        let told = Instant::now();
        let code = cluster.nodes[leader].exit_code(STOPS_WITHIN).await;
        eprintln!(
            "measured: SIGTERM (TLS: {secured}): the leader had stopped after {:?}",
            told.elapsed()
        );
        assert_eq!(code, 0);
        let next = cluster.leader_among(&survivors).await;
        writes.until_more(100).await;
        let (writes, reads) = (writes.finish().await, reads.finish().await);
        let outage = writes.outage(told);
        eprintln!("  writes paused for {outage:?}, reads for {:?}", reads.outage(told));
        writes.assert_no_failure();
        reads.assert_no_failure();
        assert!(outage < HANDED_OVER_WITHIN, "writes paused for {outage:?}");
        let state = cluster.nodes[next].instances(Consistency::Linearizable).await.unwrap();
        writes.assert_all_in(&state, "the next leader");
        let after = cluster.nodes[next].own_status().await.unwrap().term;
        assert_eq!(after, term + 1, "one handing over, and no election besides");
        feed.assert_gapless();
        feed.look(|seen| assert_eq!(seen.of(ChangeKind::Removed, ""), []));
        stopped_in_order(&cluster.nodes[leader].log_text());

        cluster.nodes[leader].start();
        cluster.leader().await;
    }
    let state = cluster.equal_states().await;
    assert_eq!(state.keys().filter(|key| key.starts_with("kept/")).count(), 10);
}

/// The one that would be first choice (both are as far along; the later id counts) stands still:
/// the other gets the lead.
#[tokio::test(flavor = "multi_thread")]
async fn the_lead_goes_to_one_that_answers() {
    let mut cluster = Cluster::start(3).await;
    for turn in 0..2 {
        let leader = cluster.leader().await;
        cluster.equal_states().await;
        let others = cluster.others(leader);
        let (frozen, answers) = (others[1 - turn], others[turn]);
        cluster.nodes[frozen].pause();
        cluster.nodes[leader].terminate();
        assert_eq!(cluster.nodes[leader].exit_code(STOPS_WITHIN).await, 0);
        let log = cluster.nodes[leader].log_text();
        assert!(!log.contains("could not hand the lead over"), "{log}");
        let wanted = format!("handed the lead over to={}", cluster.nodes[answers].id);
        assert!(log.contains(&wanted), "no {wanted:?} in:\n{log}");
        cluster.nodes[frozen].go_on();
        cluster.nodes[leader].start();
        cluster.leader().await;
    }
}

fn stopped_in_order(log: &str) {
    let places: Vec<Option<usize>> = ORDER.iter().map(|step| log.rfind(step)).collect();
    let found: Vec<_> = ORDER.iter().zip(&places).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{found:?} in:\n{log}");
}
