//! All nodes are stopped in any order, and started in any other, beside a crowd of clients: nothing
//! that is registered is gone for a moment.

use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;

use crate::cluster::Cluster;
use crate::crowd::Crowd;

/// Places of nodes.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
/// So many of the six, by chance. `QUORATE_ORDERS=6` tries all, `QUORATE_ORDERS_SEED` the same ones
/// again.
const TRIED: usize = 3;
/// One that stops hands the lead over, and lets calls end.
const STOPS_WITHIN: Duration = Duration::from_secs(30);

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_are_stopped_and_started_in_any_order() {
    let tried = number("QUORATE_ORDERS").map_or(TRIED, |tried| tried as usize);
    let seed = number("QUORATE_ORDERS_SEED").unwrap_or_else(rand::random);
    eprintln!("orders: QUORATE_ORDERS={tried} QUORATE_ORDERS_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (mut stops, mut starts) = (ORDERS, ORDERS);
    stops.shuffle(&mut random);
    starts.shuffle(&mut random);
    let mut cluster = Cluster::start(3).await;
    let crowd = Crowd::gather(&cluster).await;
    assert_eq!(crowd.len(), 200);
    for (stop, start) in stops.into_iter().zip(starts).take(tried) {
        eprintln!("orders: stopped {stop:?}, started {start:?}");
        for at in stop {
            let node = &mut cluster.nodes[at];
            node.terminate();
            assert_eq!(node.exit_code(STOPS_WITHIN).await, 0, "node {}", node.id);
        }
        for at in start {
            cluster.nodes[at].start();
        }
        cluster.leader().await;
        crowd.is_all_there(&cluster.nodes[start[0]]).await;
        crowd.is_alone_with(&cluster.nodes[start[0]]).await;
    }
    crowd.end().await;
}
