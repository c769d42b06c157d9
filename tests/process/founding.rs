//! kill -9 of founders while they found their cluster: it has one id, whatever each of them had on
//! disk.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use quorate_client::Consistency;

use crate::cluster::{Cluster, LEADER_WITHIN, Settings};
use crate::wait::{eventually, time_passes};

/// A node's log line once it has the id on its disk.
const FOUNDED: &str = "the cluster is founded cluster_id=";

/// When a founder is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// This long after all were started.
    After(Duration),
    /// When one of them has stamped its directory: the entry is committed, and the others may not
    /// know.
    OneIsStamped,
}

/// All ids that the nodes of this cluster have stamped, in all of their runs.
fn stamped(cluster: &Cluster) -> BTreeSet<String> {
    let of = |log: &str| -> Vec<String> {
        let told = log.split(FOUNDED).skip(1);
        told.map(|rest| rest.chars().take(16).collect()).collect()
    };
    cluster.nodes.iter().flat_map(|node| of(&node.log_text())).collect()
}

/// The cluster ids in the nodes' answers, once each has answered with one.
async fn told(cluster: &Cluster) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for node in &cluster.nodes {
        let id = eventually("the node's cluster", LEADER_WITHIN, || async {
            let answer = node.fetch_all(Consistency::Linearizable).await;
            let header = answer.map_err(|status| status.to_string())?.header.unwrap_or_default();
            if header.cluster_id == 0 { Err("none".to_owned()) } else { Ok(header.cluster_id) }
        });
        all.insert(format!("{:016x}", id.await));
    }
    all
}

async fn reached(cluster: &Cluster, moment: Moment) {
    match moment {
        Moment::After(pause) => time_passes(pause).await,
        Moment::OneIsStamped => {
            let begun = Instant::now();
            while stamped(cluster).is_empty() {
                assert!(begun.elapsed() < LEADER_WITHIN, "nothing is founded");
                time_passes(Duration::from_millis(1)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn founders_that_are_killed_while_they_found_have_one_cluster() {
    let after = |ms| Moment::After(Duration::from_millis(ms));
    for (moment, killed) in [
        (Moment::OneIsStamped, &[0, 1, 2][..]),
        (Moment::OneIsStamped, &[0]),
        (Moment::OneIsStamped, &[1, 2]),
        (after(60), &[0, 1]),
        (after(120), &[0]),
        (after(160), &[0, 1, 2]),
        (after(200), &[0, 2]),
        (after(260), &[0, 1, 2]),
    ] {
        let mut cluster = Cluster::prepare(3, Settings::default()).await;
        cluster.nodes.iter_mut().for_each(|node| node.start());
        for _ in 0..2 {
            reached(&cluster, moment).await;
            killed.iter().for_each(|at| cluster.nodes[*at].kill());
            killed.iter().for_each(|at| cluster.nodes[*at].start());
        }
        let one = told(&cluster).await;
        assert_eq!(one.len(), 1, "{moment:?} {killed:?}: clusters {one:?}");
        let kept = cluster.nodes[0].register("kept", "k", Duration::from_secs(60)).await;
        kept.unwrap();
        // And so it stays, also where a directory was stamped only now.
        cluster.nodes.iter_mut().for_each(|node| node.kill());
        cluster.nodes.iter_mut().for_each(|node| node.start());
        assert_eq!(told(&cluster).await, one, "{moment:?} {killed:?}");
        assert_eq!(stamped(&cluster), one, "{moment:?} {killed:?}");
        let found = cluster.nodes[2].instances(Consistency::Linearizable).await.unwrap();
        assert_eq!(found.into_keys().collect::<Vec<_>>(), ["kept/k"]);
    }
}
