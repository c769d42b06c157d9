//! An instance that stops renewing, in a cluster where nothing else happens.

use std::time::{Duration, Instant};

use quorate_client::{Consistency, RegistrationState};
use quorate_proto::v1::{ChangeKind, RemoveReason};

use crate::cluster::Cluster;
use crate::feed::{Feed, Seen};
use crate::load::keep;
use crate::wait::time_passes;

/// The issue: gone, and watchers told, within the TTL and this.
const LATE_AT_MOST: Duration = Duration::from_millis(500);

/// S0.2, S3.2
#[tokio::test(flavor = "multi_thread")]
async fn what_stops_renewing_is_gone_in_time_and_its_neighbours_stay() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().connect().await.unwrap();
    let neighbours = keep(&client, "pool", 5, Duration::from_secs(2)).await;
    let mut feeds = Vec::new();
    for node in &cluster.nodes {
        feeds.push(Feed::start(node).await);
    }
    // Each with another TTL, on another node, renewed twice before it falls silent.
    let mut silent = Vec::new();
    for (at, ttl_ms) in [1_000, 1_500, 2_000, 2_750, 3_500, 4_000].into_iter().enumerate() {
        let (node, ttl) = (&cluster.nodes[at % 3], Duration::from_millis(ttl_ms));
        let id = format!("silent{at}");
        let lease = node.register("pool", &id, ttl).await.unwrap().lease_id;
        time_passes(ttl / 3).await;
        let sent = Instant::now();
        node.renew(lease).await.unwrap();
        silent.push((format!("pool/{id}"), ttl, sent, Instant::now()));
    }
    let count = silent.len();
    for feed in &feeds {
        let gone = |seen: &Seen| seen.of(ChangeKind::Removed, "pool/").len() >= count;
        feed.until("the end of all that are silent", Duration::from_secs(10), gone).await;
        feed.look(|seen| {
            for (key, ttl, sent, renewed) in &silent {
                let removed = seen.of(ChangeKind::Removed, key);
                let [(at, change)] = &removed[..] else { panic!("{key}: {removed:?}") };
                let (lived, late) = (*at - *sent, (*at - *renewed).saturating_sub(*ttl));
                eprintln!("measured: {key} with TTL {ttl:?}: told {late:?} after its end");
                assert_eq!(change.reason(), RemoveReason::Expired);
                assert!(lived >= *ttl, "{key} ended early, after {lived:?}");
                assert!(late <= LATE_AT_MOST, "{key} ended late by {late:?}");
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
        assert!(matches!(neighbour.state(), RegistrationState::Registered(_)));
    }
}
