//! What a scrape says of that which seldom happens: watchers that fall behind, more services than
//! are shown, probes, elections, nodes that disagree.

use std::time::Duration;

use quorate_proto::v1::registry_client::RegistryClient;
use quorate_proto::v1::{
    DeregisterRequest, InstanceOverride, InstanceSpec, RegisterRequest, SetOverrideRequest,
};
use tonic::transport::Endpoint;

use super::calls::{
    Registry, deregister, in_time, named, register, register_many, registration, revision,
    set_weight, spec,
};
use super::failover::seldom_by_silence;
use super::harness::{Cluster, DECODE_MAX, eventually};
use super::metrics::metrics;
use super::mixed;
use super::stream::{Stream, subscribe_to};
use super::targets::{SECOND_MS, Targets, http};
use quorate_node::Tunables;

/// Of a KiB each.
const TEXTS: usize = 4;
/// In one call, each of which is queued for each watcher: 64 would not be.
const CHANGED: usize = 60;
/// A queue takes 1,024 changes, and what is under way before it some hundred.
const CALLS_MAX: usize = 100;
/// Services whose sizes are exported.
const SHOWN: usize = 50;
/// Of a node's answers.
const LATE: Duration = Duration::from_millis(400);
/// Heartbeats within a second and a half: more than a busy machine makes late by itself.
const GIVEN_UP: f64 = 20.0;
/// The shortest that a lease may be.
const TTL_MIN_MS: u64 = 1_000;

async fn of(cluster: &Cluster, id: u64, name: &str) -> f64 {
    let now = metrics(cluster, id).await;
    *now.get(name).unwrap_or_else(|| panic!("{name} in {now:#?}"))
}

/// Over the nodes that run.
async fn sum(cluster: &Cluster, name: &str) -> f64 {
    let mut sum = 0.0;
    for id in cluster.ids() {
        sum += of(cluster, id, name).await;
    }
    sum
}

/// A caller whose streams take little that is not read.
fn narrow(cluster: &Cluster) -> Registry {
    let address = format!("http://{}", cluster.client_address(1));
    let endpoint = Endpoint::from_shared(address).expect("an address");
    let channel = endpoint.initial_stream_window_size(65_535).connect_lazy();
    RegistryClient::new(channel).max_decoding_message_size(DECODE_MAX)
}

/// Changes each of the instances by much.
fn changed(call: usize) -> RegisterRequest {
    let one = |at: usize| {
        let text = |number| (format!("text-{number}"), format!("{call:0>1024}"));
        let metadata = (0..TEXTS).map(text).collect();
        InstanceSpec { metadata, ..spec("web", &format!("i{at}")) }
    };
    registration((0..CHANGED).map(one).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_takes_nothing_is_seen_to_fall_behind() {
    // What is gone from its queue is not in the ring any more.
    let tunables = Tunables { watch_ring: 100, ..Tunables::default() };
    let cluster = Cluster::start_with(1, tunables).await;
    let mut registry = cluster.registry(1);
    let mut stream = Stream::open(&narrow(&cluster), subscribe_to(&["web"])).await.unwrap();
    stream.snapshot().await;
    let (mut queued, mut most) = (0.0_f64, 0.0_f64);
    let (behind, end) = 'calls: {
        for call in 0..CALLS_MAX {
            let changes = registry.register(in_time(changed(call))).await.unwrap().into_inner();
            let now = metrics(&cluster, 1).await;
            if now["quorate_watch_overflows_total"] > 0.0 {
                break 'calls (now, changes.header.unwrap().revision);
            }
            assert_eq!(now["quorate_watches_behind"], 0.0, "it has all of it in its queue");
            queued = queued.max(now["quorate_watch_queued"]);
            // The only watcher's, looked at a moment later.
            most = most.max(now["quorate_watch_queued_most"]);
        }
        panic!("its queue takes more than {queued} changes");
    };
    for waited in [queued, most] {
        assert!(waited > 0.0 && waited <= 1_024.0, "{queued} and {most} waited before it was full");
    }
    for (name, value) in [
        ("quorate_watch_overflows_total", 1.0),
        ("quorate_watches_behind", 1.0),
        ("quorate_watch_queued", 0.0),
        ("quorate_watch_resets_total", 0.0),
        ("quorate_watches", 1.0),
    ] {
        assert_eq!(behind[name], value, "{name}");
    }

    stream.until("a snapshot that says reset", |stream| stream.reset).await;
    stream.reach(end).await;
    assert_eq!(stream.map.len(), CHANGED);
    let now = metrics(&cluster, 1).await;
    assert_eq!(now["quorate_watch_resets_total"], 1.0);
    assert_eq!((now["quorate_watches_behind"], now["quorate_watch_queued"]), (0.0, 0.0));
    drop(stream);
    eventually("it is gone", || async {
        (of(&cluster, 1, "quorate_watches").await == 0.0).then_some(())
    })
    .await;
}

/// The sizes of services that a node exports, by name.
async fn shown(cluster: &Cluster) -> Vec<(String, f64)> {
    let now = metrics(cluster, 1).await;
    let of_service = |(name, size): (String, f64)| {
        let labels =
            name.strip_prefix("quorate_service_instances{namespace=\"default\",service=")?;
        Some((labels.trim_matches(['"', '}']).to_owned(), size))
    };
    now.into_iter().filter_map(of_service).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_largest_services_are_shown_by_name() {
    let cluster = Cluster::start(1).await;
    let mut registry = cluster.registry(1);
    let service = |number: usize| format!("s{number:02}");
    let many = (0..SHOWN + 10).flat_map(|number| {
        let ids = if number < SHOWN { &["a", "b"][..] } else { &["a"] };
        ids.iter().map(move |id| spec(&service(number), id))
    });
    registry.register(in_time(registration(many.collect()))).await.unwrap();
    let first = shown(&cluster).await;
    let largest: Vec<_> = (0..SHOWN).map(|number| (service(number), 2.0)).collect();
    assert_eq!(first, largest);
    assert_eq!(of(&cluster, 1, "quorate_services").await, (SHOWN + 10) as f64);
    assert_eq!(of(&cluster, 1, "quorate_instances").await, (2 * SHOWN + 10) as f64);

    // Another one grows, and takes the place of one that shrinks.
    let grown = service(SHOWN + 3);
    register_many(&mut registry, &grown, 5).await;
    deregister(&mut registry, "s07", "b").await;
    let then = shown(&cluster).await;
    assert_eq!(then.len(), SHOWN);
    assert!(then.contains(&(grown, 6.0)), "{then:?}");
    assert!(then.iter().all(|(name, _)| name != "s07"), "{then:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_and_those_that_are_not_allowed_are_counted() {
    let cluster = Cluster::start_probing(1, "127.0.0.0/8").await;
    let (targets, mut registry) = (Targets::open().await, cluster.registry(1));
    const LEFT_OUT: &str = "quorate_probes_left_out_total";
    for name in ["quorate_probes_total", "quorate_probes_refused_total", LEFT_OUT] {
        assert_eq!(of(&cluster, 1, name).await, 0.0, "{name}");
    }
    let elsewhere = targets.at("10.0.0.1", "web", "elsewhere", http("/", SECOND_MS));
    registry.register(in_time(registration(vec![elsewhere]))).await.unwrap();
    eventually("those that are not allowed are counted", || async {
        (of(&cluster, 1, "quorate_probes_refused_total").await >= 2.0).then_some(())
    })
    .await;
    assert_eq!(of(&cluster, 1, "quorate_probes_total").await, 0.0, "none was made");
    let allowed = targets.instance("web", "allowed", SECOND_MS);
    registry.register(in_time(registration(vec![allowed]))).await.unwrap();
    eventually("those that are made are counted", || async {
        (of(&cluster, 1, "quorate_probes_total").await >= 2.0).then_some(())
    })
    .await;
    assert!(targets.asked("/allowed").len() >= 2, "what is counted was made");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ends_by_the_clock_and_what_an_operator_decided_is_counted() {
    let cluster = Cluster::start(1).await;
    let mut registry = cluster.registry(1);
    assert_eq!(of(&cluster, 1, "quorate_overrides").await, 0.0);
    register(&mut registry, "web", "a").await;
    let before = metrics(&cluster, 1).await;
    assert!(before["quorate_deadlines"] >= before["quorate_leases"], "{before:#?}");
    for id in ["b", "c", "d"] {
        register(&mut registry, "web", id).await;
    }
    let grown = metrics(&cluster, 1).await;
    let more = grown["quorate_deadlines"] - before["quorate_deadlines"];
    assert_eq!((more, grown["quorate_leases"]), (3.0, 4.0), "each of one lease");
    // In the place of each lease there is the memory of an instance, and one of the service.
    let instances = ["a", "b", "c", "d"].map(|id| named("web", id)).into();
    let all = DeregisterRequest { instances, ..DeregisterRequest::default() };
    registry.deregister(in_time(all)).await.unwrap();
    let after = metrics(&cluster, 1).await;
    assert_eq!(after["quorate_leases"], 0.0);
    assert_eq!(after["quorate_deadlines"], grown["quorate_deadlines"] + 1.0);

    let mut decision = InstanceOverride { reason: "it is slow".to_owned(), ..<_>::default() };
    decision.set_status(quorate_client::InstanceStatus::OutOfService);
    let request = SetOverrideRequest {
        service: "web".to_owned(),
        id: "a".to_owned(),
        r#override: Some(decision),
        ..SetOverrideRequest::default()
    };
    cluster.admin(1).set_override(request).await.expect("an override");
    assert_eq!(of(&cluster, 1, "quorate_overrides").await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_by_time_is_counted_once_and_what_leaves_is_not() {
    const EXPIRED: &str = "quorate_expired_instances_total";
    const CHANGES: &str = "quorate_changes_total";
    let mut cluster = Cluster::start(1).await;
    let mut registry = cluster.registry(1);
    let left = register(&mut registry, "web", "left").await;
    assert_eq!(of(&cluster, 1, "quorate_revision").await, revision(left.header) as f64);
    let one = of(&cluster, 1, "quorate_state_bytes").await;
    assert!(one > 0.0, "it takes some memory");
    let gone = deregister(&mut registry, "web", "left").await;
    let ends = ["a", "b"].map(|id| spec("web", id)).to_vec();
    let ends = RegisterRequest { ttl_ms: TTL_MIN_MS, ..registration(ends) };
    registry.register(in_time(ends)).await.unwrap();
    eventually("the others are gone by time", || async {
        (of(&cluster, 1, "quorate_instances").await == 0.0).then_some(())
    })
    .await;
    let now = metrics(&cluster, 1).await;
    assert_eq!(now[EXPIRED], 2.0, "two by time, one by a call");
    assert_eq!(now["quorate_revision"], (gone + 4) as f64, "two come, two go");
    assert!(now["quorate_state_bytes"] < one, "{one} with one instance: {now:#?}");
    assert_eq!(now[CHANGES], 6.0);

    // Its log is applied again, in which all of that stands.
    cluster.stop(1).await;
    cluster.restart(1).await;
    cluster.settled().await;
    let again = metrics(&cluster, 1).await;
    assert_eq!(again["quorate_revision"], now["quorate_revision"]);
    assert_eq!((again[EXPIRED], again[CHANGES]), (0.0, 0.0));
    register(&mut cluster.registry(1), "web", "new").await;
    assert_eq!(of(&cluster, 1, CHANGES).await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_election_is_counted_where_it_began() {
    const ELECTIONS: &str = "quorate_raft_elections_total";
    const CHANGES: &str = "quorate_raft_leader_changes_total";
    let mut cluster = Cluster::start(3).await;
    let first = cluster.leader().await;
    assert!(of(&cluster, first, ELECTIONS).await >= 1.0, "it was elected");
    let others: Vec<_> = cluster.ids().into_iter().filter(|id| *id != first).collect();
    let (mut before, mut seen) = (0.0, Vec::new());
    for id in &others {
        before += of(&cluster, *id, ELECTIONS).await;
        seen.push(of(&cluster, *id, CHANGES).await);
    }
    assert!(seen.iter().all(|changes| *changes >= 1.0), "each has seen the first: {seen:?}");
    cluster.stop(first).await;
    let next = cluster.leader().await;
    for (id, changes) in others.iter().zip(seen) {
        // The node has its new leader in sight just before it counts that.
        eventually("each has seen another leader", || async {
            (of(&cluster, *id, CHANGES).await > changes).then_some(())
        })
        .await;
    }
    assert!(of(&cluster, next, ELECTIONS).await >= 1.0, "node {next} was elected");
    assert!(sum(&cluster, ELECTIONS).await > before, "by an election more");
    for id in others {
        let (elections, term) = (ELECTIONS, "quorate_raft_term");
        let now = metrics(&cluster, id).await;
        assert!(
            now[elections] <= now[term],
            "at most one in a term: {} {}",
            now[elections],
            now[term]
        );
    }
}

/// Longer than the library waits for an answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_answers_heartbeats_late_is_seen() {
    let cluster = Cluster::start_cuttable(3, seldom_by_silence()).await;
    let leader = cluster.leader().await;
    let late = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    let within = format!("quorate_peer_rtt_seconds_bucket{{peer=\"{late}\",le=\"0.05\"}}");
    let all = format!("quorate_peer_rtt_seconds_count{{peer=\"{late}\"}}");
    let longer = || async {
        let now = metrics(&cluster, leader).await;
        Some(now.get(&all)? - now.get(&within)?)
    };
    let before = eventually("heartbeats are timed", longer).await;
    cluster.delay(late, Duration::ZERO, LATE);
    eventually("what is given up counts", || async {
        (longer().await? >= before + GIVEN_UP).then_some(())
    })
    .await;
    let is_leader = of(&cluster, leader, "quorate_raft_is_leader").await;
    assert_eq!(is_leader, 1.0, "the other one answers");
}

/// Each node is given another hash of the others' states than theirs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_says_how_many_members_disagree_with_it() {
    let (cluster, newer) = mixed::start().await;
    let mut registry = cluster.registry(cluster.leader().await);
    register(&mut registry, "web", "a").await;
    // Past the first entry after which a hash is kept.
    for weight in 1..=64 {
        set_weight(&mut registry, "web", "a", weight).await;
    }
    eventually("the others were compared", || async {
        (sum(&cluster, "quorate_states_compared_total").await >= 2.0).then_some(())
    })
    .await;
    assert_eq!(sum(&cluster, "quorate_states_differ").await, 0.0);
    let leader = cluster.leader().await;
    let others: Vec<_> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
    for (hash, differing) in [(Some(7), 2.0), (None, 0.0)] {
        newer.values().for_each(|relay| relay.set_hash(hash));
        eventually("the leader says so", || async {
            (sum(&cluster, "quorate_states_differ").await == differing).then_some(())
        })
        .await;
        // In its status, too, which says which they are.
        eventually("it names them", || async {
            let own = cluster.own_status(leader).await?.condition?.states_differ;
            let named = if differing > 0.0 { &others[..] } else { &[] };
            (own == named).then_some(())
        })
        .await;
    }
}
