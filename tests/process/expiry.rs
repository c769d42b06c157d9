//! Instances that stop renewing: a few in a cluster where nothing else happens, and thousands at
//! once.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use quorate_client::Consistency;
use quorate_proto::v1::{ChangeKind, LeaseRenewal, RemoveReason, RenewRequest};

use crate::cluster::{Cluster, Node};
use crate::feed::{Feed, Seen};
use crate::load::{Load, keep};
use crate::metronome::Metronome;
use crate::wait::time_passes;

/// The issue: gone, and reported to watchers, within the TTL and this.
const LATE_AT_MOST: Duration = Duration::from_millis(500);
/// And so many times what the machine was late: the leader wakes up, two disks write what it
/// proposes, and a node tells it.
const BEATS: u32 = 4;
/// And the node's `election_grace_ms`, where a leader was held up, or elected.
const GRACE: Duration = Duration::from_secs(3);
const GONE_WITHIN: Duration = Duration::from_secs(30);
/// As long as a busy machine may need between two renewals.
const NEIGHBOURS_TTL: Duration = Duration::from_secs(10);

/// S0.2, S3.2
#[tokio::test(flavor = "multi_thread")]
async fn what_stops_renewing_is_gone_in_time_and_its_neighbours_stay() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().build().unwrap();
    let neighbours = keep(&client, "pool", 5, NEIGHBOURS_TTL).await;
    let metronome = Metronome::start(&cluster, &cluster.running()).await;
    let mut feeds = Vec::new();
    for node in &cluster.nodes {
        feeds.push(Feed::start(node).await);
    }
    let before = graces(&cluster);
    // Each with another TTL, on another node, renewed once before it falls silent.
    let mut silent = Vec::new();
    for (at, ttl_ms) in [4_000, 4_350, 4_700, 5_100, 5_550, 6_000].into_iter().enumerate() {
        let (node, ttl) = (&cluster.nodes[at % 3], Duration::from_millis(ttl_ms));
        let id = format!("silent{at}");
        let lease = node.register("pool", &id, ttl).await.unwrap().lease_id;
        time_passes(ttl / 8).await;
        let sent = Instant::now();
        node.renew(lease).await.unwrap();
        silent.push((format!("pool/{id}"), ttl, sent, Instant::now()));
    }
    let count = silent.len();
    for feed in &feeds {
        let gone = |seen: &Seen| seen.of(ChangeKind::Removed, "pool/").len() >= count;
        feed.until("the end of all that are silent", GONE_WITHIN, gone).await;
        let late = metronome.slowest();
        let grace = if graces(&cluster) > before { GRACE } else { Duration::ZERO };
        let at_most = LATE_AT_MOST + BEATS * late + grace;
        eprintln!("measured: the machine was {late:?} late, leases had a grace of {grace:?}");
        feed.look(|seen| {
            for (key, ttl, sent, renewed) in &silent {
                let removed = seen.of(ChangeKind::Removed, key);
                let [(at, change)] = &removed[..] else { panic!("{key}: {removed:?}") };
                let (lived, late) = (*at - *sent, (*at - *renewed).saturating_sub(*ttl));
                eprintln!("measured: {key} with TTL {ttl:?}: reported {late:?} after its end");
                assert_eq!(change.reason(), RemoveReason::Expired);
                assert!(lived >= *ttl, "{key} ended early, after {lived:?}");
                assert!(late <= at_most, "{key} ended late by {late:?}, not {at_most:?}");
            }
            assert_eq!(seen.of(ChangeKind::Removed, "pool/").len(), count, "neighbours went too");
            assert_eq!(seen.of(ChangeKind::Modified, "pool/"), [], "neighbours were touched");
        });
        feed.assert_gapless();
    }
    for node in &cluster.nodes {
        let left = node.instances(Consistency::Linearizable).await.unwrap();
        let left: Vec<_> = left.into_keys().collect();
        assert_eq!(left, ["pool/k0", "pool/k1", "pool/k2", "pool/k3", "pool/k4"]);
    }
    for neighbour in &neighbours {
        let renewed = tokio::time::timeout(GONE_WITHIN, neighbour.registered()).await;
        renewed.expect("it is renewed").unwrap();
    }
}

/// How often leases had a grace, as the nodes say.
fn graces(cluster: &Cluster) -> usize {
    let told = ["leases get a grace", "this node leads"];
    let logs: Vec<String> = cluster.nodes.iter().map(Node::log_text).collect();
    logs.iter().flat_map(|log| told.map(|words| log.matches(words).count())).sum()
}

/// More than end in one command, on machines of any speed.
const CROWD: usize = 3_000;
const CROWD_TTL: Duration = Duration::from_secs(10);
/// The last ends no later than this, and so many times what a write takes before: a crowd ends in
/// twelve commands, one after the other.
const CROWD_LATE: Duration = Duration::from_secs(1);
const CROWD_PACES: u32 = 40;

/// All of them fall silent at the same moment, while another client goes on writing. S0.2
#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_that_stops_renewing_is_gone_in_time_and_holds_nobody_up() {
    let cluster = Cluster::start(3).await;
    let node = &cluster.nodes[0];
    let feed = Feed::start(&cluster.nodes[cluster.others(cluster.leader().await)[0]]).await;
    let mut leases = Vec::new();
    for part in 0..CROWD / 100 {
        let register = (0..100).map(|at| {
            let id = format!("c{part}-{at}");
            async move { node.register("crowd", &id, CROWD_TTL).await.unwrap().lease_id }
        });
        leases.extend(join_all(register).await);
        // The leases of before stay alive while the rest register, however long that takes.
        renew_all(node, &leases).await;
    }
    // Asks no nodes: that they are held up by this is what must not be.
    let metronome = Metronome::start(&cluster, &[]).await;
    let writes = Load::registering(&cluster.client().build().unwrap(), "writer", 2);
    let before = graces(&cluster);
    let sent = Instant::now();
    renew_all(node, &leases).await;
    let ends = Instant::now() + CROWD_TTL;

    let gone = |seen: &Seen| seen.of(ChangeKind::Removed, "crowd/").len() >= CROWD;
    feed.until("the end of the crowd", CROWD_TTL + GONE_WITHIN, gone).await;
    let writes = writes.finish().await;
    writes.assert_no_failure();
    feed.look(|seen| {
        let removed = seen.of(ChangeKind::Removed, "crowd/");
        let times = || removed.iter().map(|(at, _)| *at);
        let (first, last) = (times().min().unwrap(), times().max().unwrap());
        let late = last.saturating_duration_since(ends);
        let begun = first - Duration::from_millis(50);
        let (longest, pace) = (writes.longest_call(begun), writes.pace(begun));
        let grace = if graces(&cluster) > before { GRACE } else { Duration::ZERO };
        let bound = CROWD_LATE + CROWD_PACES * pace + BEATS * metronome.slowest() + grace;
        eprintln!("measured: {CROWD} leases: the last reported {late:?} after its end");
        eprintln!(
            "  {:?} after the first; longest write {longest:?}, {pace:?} before",
            last - first
        );
        assert_eq!(removed.len(), CROWD);
        assert!(first - sent >= CROWD_TTL, "the first ended early");
        assert!(late <= bound, "the last ended late by {late:?}");
        assert!(longest <= bound, "a write took {longest:?}");
    });
    feed.assert_gapless();
}

async fn renew_all(node: &Node, leases: &[u64]) {
    let renewals = leases.iter().map(|lease_id| LeaseRenewal { lease_id: *lease_id }).collect();
    let request = RenewRequest { renewals, ..RenewRequest::default() };
    let renewed = node.registry().renew(request).await.unwrap().into_inner();
    assert_eq!(renewed.unknown_lease_ids, [0_u64; 0]);
}
