//! A leader whose disk is below its reserve, while another voter's is not.

use quorate_node::Tunables;
use quorate_proto::v1::{RemoveNodeRequest, TransferLeaderRequest};
use rustix::fs::statvfs;
use tonic::Code;

use super::calls::{assert_refused, in_time, register, registration, spec};
use super::guarded::{Guarded, ROOT};
use super::harness::{Cluster, eventually};
use super::metrics::{get, metrics};

/// Also where the one without room would have some by the reserve of another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lead_goes_to_the_voter_whose_disk_has_room_and_to_no_other() {
    let mut cluster = Cluster::start(3).await;
    register(&mut cluster.registry(1), "web", "a").await;
    for id in [2, 3] {
        cluster.stop(id).await;
        let free = statvfs(cluster.data_dir(id)).expect("a file system");
        // More than there is, and a quarter of it much less.
        let reserve = 2 * free.f_bavail * free.f_frsize;
        cluster.config_mut(id).tunables.disk_reserve_bytes = reserve;
        cluster.restart(id).await;
        cluster.settled().await;
        let now = metrics(&cluster, id).await;
        assert_eq!(now["quorate_disk_reserve_bytes"], reserve as f64);
        assert_eq!(now["quorate_disk_low"], 1.0);
        let free = now["quorate_disk_free_bytes"];
        assert!(free > 0.0 && free < reserve as f64, "{free}");
    }
    eventually("the one with room leads", || async { (cluster.leader().await == 1).then_some(()) })
        .await;
    for to_id in [2, 3, 0] {
        let transfer = in_time(TransferLeaderRequest { to_id });
        let refused = cluster.admin(1).transfer_leader(transfer).await;
        assert_refused(refused, Code::FailedPrecondition, &["cannot lead now", "its reserve"]);
    }
    // Without the one that has room, one of the others leads.
    cluster.stop(1).await;
    cluster.leader().await;
    cluster.restart(1).await;
    eventually("a leader takes writes", || async {
        let request = registration(vec![spec("web", "b")]);
        cluster.registry(1).register(request).await.ok()
    })
    .await;
    assert_eq!(cluster.leader().await, 1);
}

/// What is reported is known to a majority, whoever dies next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_that_cannot_be_made_known_is_not_reported_as_done() {
    let mut cluster = Cluster::start(1).await;
    cluster.add_waiting(2).await;
    let admin = cluster.client().await.admin();
    admin.add_node(2, cluster.peer_address(2), true).await.expect("a learner");
    cluster.stop(1).await;
    let free = statvfs(cluster.data_dir(1)).expect("a file system");
    // A quarter of it is more than there is.
    cluster.config_mut(1).tunables.disk_reserve_bytes = 8 * free.f_bavail * free.f_frsize;
    cluster.restart(1).await;
    eventually("it leads, and writes nothing", || async {
        let request = in_time(registration(vec![spec("web", "a")]));
        let refused = cluster.registry(1).register(request).await.err()?;
        refused.message().contains("nothing is written until there is room").then_some(())
    })
    .await;
    let remove = async |cluster: &Cluster| {
        cluster.admin(1).remove_node(in_time(RemoveNodeRequest { id: 2 })).await
    };
    for what in ["by this call", "by the one before"] {
        let words = ["the members are changed", "bytes free", "make room there, and call again"];
        assert_refused(remove(&cluster).await, Code::Unavailable, &words);
        assert_eq!(cluster.members(1).await.len(), 1, "{what}");
    }
    cluster.stop(1).await;
    cluster.config_mut(1).tunables.disk_reserve_bytes = Tunables::default().disk_reserve_bytes;
    cluster.restart(1).await;
    cluster.leader_of(&[1]).await;
    assert_refused(remove(&cluster).await, Code::NotFound, &["node 2 is not a member"]);
}

/// Probes have no credential. Numbers, and names of files, are for those who have one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_is_told_in_short_words_why_a_node_is_not_ready() {
    let mut guarded = Guarded::start(1, "").await;
    guarded.cluster.stop(1).await;
    let free = statvfs(guarded.cluster.data_dir(1)).expect("a file system");
    let reserve = 2 * free.f_bavail * free.f_frsize;
    guarded.cluster.config_mut(1).tunables.disk_reserve_bytes = reserve;
    guarded.cluster.restart(1).await;
    let http = guarded.cluster.http_address(1);
    for (token, expected) in [(None, "its disk is full"), (Some(ROOT), "bytes free")] {
        let told = eventually("it has a leader, and no room", || async {
            let answer = get(http, "/readyz", token).await?;
            answer.body.contains("disk").then_some(answer)
        })
        .await;
        assert_eq!(told.status, 503);
        assert!(told.body.contains(expected), "{token:?}: {}", told.body);
        let has_digits = told.body.contains(|c: char| c.is_ascii_digit());
        assert_eq!(has_digits, token.is_some(), "{}", told.body);
    }
}
