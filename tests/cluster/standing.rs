//! What a node says of itself: its place in its cluster, and how it is.

use std::time::Duration;

use quorate_proto::v1::{Condition, Standing, StatusRequest};

use tokio::time::{Instant, sleep};

use super::calls::register;
use super::harness::{Cluster, SOON, eventually};

const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What a node says of itself.
async fn condition(cluster: &Cluster, id: u64) -> Option<Condition> {
    let status = cluster.admin(id).status(StatusRequest { local_only: false }).await;
    status.ok()?.into_inner().condition
}

async fn stands(cluster: &Cluster, id: u64, standing: Standing, words: &[&str]) {
    let mut seen = None;
    let until = Instant::now() + SOON;
    while Instant::now() < until {
        if let Some(found) = condition(cluster, id).await {
            let says = words.iter().all(|word| found.reason.contains(word));
            if found.standing() == standing && says {
                return;
            }
            seen = Some(found);
        }
        sleep(LOOK_EVERY).await;
    }
    panic!("node {id} is not {standing:?} {words:?}: {seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_says_what_its_place_in_the_cluster_is() {
    let mut cluster = Cluster::prepare_founders(3).await;
    cluster.restart(1).await;
    stands(&cluster, 1, Standing::Waiting, &["with nodes 2, 3: start node 2 at "]).await;
    cluster.restart(2).await;
    cluster.restart(3).await;
    for id in 1..=3 {
        stands(&cluster, id, Standing::Member, &[]).await;
    }
    cluster.add_waiting(4).await;
    let add = format!("`quorate cluster add 4 {}`", cluster.peer_address(4));
    stands(&cluster, 4, Standing::Waiting, &[&add]).await;
    let admin = cluster.client().await.admin();
    admin.add_node(4, cluster.peer_address(4), true).await.expect("an observer");
    stands(&cluster, 4, Standing::Member, &[]).await;
    for id in [2, 3] {
        cluster.stop(id).await;
    }
    stands(&cluster, 1, Standing::CutOff, &["no leader in sight"]).await;
    stands(&cluster, 4, Standing::CutOff, &["no leader in sight"]).await;
}

/// There is nobody to take it in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_joins_says_whom_it_asks_and_what_it_was_told() {
    let mut cluster = Cluster::prepare_founders(3).await;
    cluster.restart(1).await;
    let asks = format!("it asks {} to take it in", cluster.client_address(1));
    cluster.add_joining(4, false).await;
    stands(&cluster, 4, Standing::Joining, &[&asks, "no answer yet"]).await;
    cluster.stop(1).await;
    stands(&cluster, 4, Standing::Joining, &[&asks, "told last: "]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_says_how_it_is() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    register(&mut cluster.registry(leader), "web", "a").await;
    let before = condition(&cluster, leader).await.unwrap();
    assert_eq!((before.backup_age_ms, before.snapshot_written_ms), (None, None));
    assert_eq!(before.certificate_ends_in_s, None, "it has none");
    assert!(!before.files_refused && before.open_listeners.is_empty(), "{before:?}");
    assert!(before.disk_reserve_bytes > 0 && before.connections_per_address_max > 0);
    assert!(before.syncs > 0 && before.sync_p99_us > 0, "the log was synced: {before:?}");
    assert!(before.connections >= before.busiest_connections && before.busiest_connections > 0);
    assert_eq!(before.busiest_address, "127.0.0.1");

    let admin = cluster.client().await.admin();
    let mut backup = admin.backup().await.unwrap();
    let taken_by = backup.next().await.unwrap().unwrap().header.unwrap().node_id;
    while backup.next().await.unwrap().is_some() {}
    let after = eventually("the backup is known", || async {
        condition(&cluster, taken_by).await.filter(|found| found.backup_age_ms.is_some())
    })
    .await;
    assert!(after.backup_age_ms.unwrap() < 60_000, "{after:?}");
    assert!(after.snapshot_written_ms.unwrap() > 1_700_000_000_000, "one was built for it");
    // Members tell each other.
    let told: Vec<_> = eventually("all members answer in time", || async {
        let asked = StatusRequest { local_only: false };
        let status = cluster.admin(leader).status(asked).await.ok()?.into_inner();
        let told = status.members.into_iter().map(|member| member.condition);
        let told: Option<Vec<_>> = told.collect();
        Some(told?.iter().map(|it| (it.standing(), it.backup_age_ms.is_some())).collect())
    })
    .await;
    assert!(told.iter().all(|(standing, _)| *standing == Standing::Member), "{told:?}");
    assert_eq!(told.iter().filter(|(_, backup)| *backup).count(), 1, "{told:?}");
    eventually("registry time runs", || async {
        (condition(&cluster, leader).await?.clock_held_ms == 0).then_some(())
    })
    .await;
}
