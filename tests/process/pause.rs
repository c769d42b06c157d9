//! SIGSTOP: the leader stands still for longer than the leases live, while the others take over,
//! and then goes on. And what its callers have on their connections when it goes on.

use std::time::{Duration, Instant};

use quorate_proto::v1::watch_request::Kind as Ask;
use quorate_proto::v1::watch_response::Kind;
use quorate_proto::v1::{ChangeKind, FetchRequest, WatchRequest, WatchSubscribe};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;

use crate::cluster::{Cluster, LEADER_WITHIN, Settings};
use crate::feed::{Feed, Seen};
use crate::load::{Load, keep};
use crate::wait::time_passes;

/// What a process with some hundred of them under way gives up at once.
const GIVEN_UP: usize = 250;
const PATIENCE: Duration = Duration::from_millis(300);
const STOPPED: Duration = Duration::from_secs(15);
/// Shorter than that, and as long as a busy machine may need between two renewals.
const TTL: Duration = Duration::from_secs(10);
/// No silence ends before 3.5 s: a machine that holds the new leader up for less makes no election.
const SLOW_ELECTIONS: &str = "election_timeout_min_ms = 1500\nelection_timeout_max_ms = 2000";
const KEPT: usize = 30;

/// S0.5, S1.3, S2.7
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stood_still_costs_no_live_lease() {
    a_leader_stands_still(false).await;
}

/// S0.5, S1.3, S2.7
#[tokio::test(flavor = "multi_thread")]
async fn with_tls_a_leader_that_stood_still_costs_no_live_lease() {
    a_leader_stands_still(true).await;
}

async fn a_leader_stands_still(secured: bool) {
    let settings = Settings { tunables: SLOW_ELECTIONS.to_owned(), secured, ..Settings::default() };
    let mut cluster = Cluster::start_with(3, settings).await;
    let client = cluster.client().build().unwrap();
    let kept = keep(&client, "kept", KEPT, TTL).await;
    let leader = cluster.leader().await;
    let survivors = cluster.others(leader);
    let feed = Feed::start(&cluster.nodes[survivors[0]]).await;
    let load = Load::registering(&client, "stream", 2);
    load.until_more(50).await;

    cluster.nodes[leader].pause();
    let paused = Instant::now();
    let next = cluster.leader_among(&survivors).await;
    eprintln!(
        "measured: leader stopped (TLS: {secured}): the next one leads after {:?}",
        paused.elapsed()
    );
    load.until_more(50).await;
    let outcome = load.finish().await;
    eprintln!("measured: leader stopped: writes back after {:?}", outcome.outage(paused));
    outcome.assert_no_failure();
    time_passes(STOPPED.saturating_sub(paused.elapsed())).await;
    let term = cluster.nodes[next].its_status().await.term;

    cluster.nodes[leader].go_on();
    let again = Load::registering(&client, "after", 2);
    // What the old leader believes, and leases that it may believe to be over, come out within a
    // TTL.
    again.until_more(50).await;
    time_passes(TTL + Duration::from_secs(1)).await;
    let after = again.finish().await;
    after.assert_no_failure();
    let led_by = cluster.leader().await;
    let state = cluster.equal_states().await;
    outcome.assert_all_in(&state, "all nodes");
    after.assert_all_in(&state, "all nodes");
    assert_eq!(state.keys().filter(|key| key.starts_with("kept/")).count(), KEPT);

    let own = cluster.nodes[led_by].its_status().await;
    assert_eq!((led_by, own.term), (next, term), "the returning node caused an election");
    let all = |seen: &Seen| seen.revision >= own.revision;
    feed.until("all changes", LEADER_WITHIN, all).await;
    feed.assert_gapless();
    feed.look(|seen| assert_eq!(seen.of(ChangeKind::Removed, ""), [], "live leases were lost"));
    drop(kept);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_were_given_up_while_a_node_stood_still_end_no_connection() {
    let mut cluster = Cluster::start(1).await;
    let client = cluster.client().build().unwrap();
    let _kept = keep(&client, "web", 1, TTL).await;
    let registry = cluster.nodes[0].registry();
    let (asks, requests) = mpsc::channel(1);
    let services = vec!["web".to_owned()];
    let subscribe = WatchSubscribe { services, ..WatchSubscribe::default() };
    asks.send(WatchRequest { kind: Some(Ask::Subscribe(subscribe)) }).await.unwrap();
    let stream = registry.clone().watch(ReceiverStream::new(requests)).await.unwrap();
    let mut stream = stream.into_inner();
    stream.message().await.unwrap().expect("it begins");

    cluster.nodes[0].pause();
    let mut calls = JoinSet::new();
    for _ in 0..GIVEN_UP {
        let mut registry = registry.clone();
        let request = FetchRequest { services: vec!["web".to_owned()], ..FetchRequest::default() };
        calls.spawn(async move {
            let mut request = Request::new(request);
            request.set_timeout(PATIENCE);
            registry.fetch(request).await
        });
    }
    let answers = calls.join_all().await;
    assert!(answers.iter().all(Result::is_err), "the node stands still");
    cluster.nodes[0].go_on();

    cluster.nodes[0].register("web", "a", TTL).await.unwrap();
    loop {
        let told = stream.message().await.expect("the connection has not ended");
        if matches!(told.expect("the watch goes on").kind, Some(Kind::Delta(_))) {
            break;
        }
    }
}
