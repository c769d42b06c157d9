//! A founder whose disk was lost: whether the others run on or the power failed for all of them, it
//! does not come back under its id, and what was acknowledged stays.

use std::fs;
use std::time::Duration;

use quorate_client::Consistency;
use quorate_proto::v1::ListMembersRequest;

use crate::cluster::{Cluster, LEADER_WITHIN};
use crate::wait::eventually;

/// Every node has reported its addresses to the others, as it does within its first second: from
/// then on it is known.
async fn all_are_known(cluster: &Cluster) {
    for at in 0..3 {
        eventually("all addresses are known", LEADER_WITHIN, || async {
            let answer = cluster.nodes[at].registry().list_members(ListMembersRequest {}).await;
            let members = answer.map_err(|error| error.to_string())?.into_inner().members;
            let known = members.iter().filter(|member| !member.client_address.is_empty()).count();
            if known == 3 { Ok(()) } else { Err(format!("{known} of 3")) }
        })
        .await;
    }
}

async fn refused(cluster: &mut Cluster, at: usize) {
    let node = &mut cluster.nodes[at];
    assert_eq!(node.exit_code(LEADER_WITHIN).await, 4);
    let log = node.log_text();
    for part in ["its disk was lost", "cluster replace 3 NEW"] {
        assert!(log.contains(part), "the log does not say {part:?}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_founder_without_its_disk_is_refused_by_the_others() {
    let mut cluster = Cluster::start(3).await;
    cluster.nodes[0].register("kept", "k", Duration::from_secs(60)).await.unwrap();
    cluster.equal_states().await;
    all_are_known(&cluster).await;
    cluster.nodes[2].kill();
    fs::remove_dir_all(&cluster.nodes[2].data_dir).unwrap();
    cluster.nodes[2].start();
    refused(&mut cluster, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_founder_without_its_disk_is_refused_after_all_were_down() {
    let mut cluster = Cluster::start(3).await;
    cluster.nodes[0].register("kept", "k", Duration::from_secs(60)).await.unwrap();
    cluster.equal_states().await;
    all_are_known(&cluster).await;
    for node in &mut cluster.nodes {
        node.kill();
    }
    fs::remove_dir_all(&cluster.nodes[2].data_dir).unwrap();
    // Alone it takes part in nothing: it cannot know yet.
    cluster.nodes[2].start();
    cluster.nodes[0].start();
    let log = |cluster: &Cluster| cluster.nodes[2].log_text();
    eventually("the founder waits or is refused", LEADER_WITHIN, || async {
        let log = log(&cluster);
        let told = ["it waits for the cluster to be founded", "its disk was lost"];
        if told.iter().any(|told| log.contains(told)) { Ok(()) } else { Err(log) }
    })
    .await;
    assert!(cluster.nodes[0].instances(Consistency::Linearizable).await.is_err(), "no quorum yet");
    cluster.nodes[1].start();
    refused(&mut cluster, 2).await;
    let leader = cluster.leader_among(&[0, 1]).await;
    let kept = cluster.nodes[leader].instances(Consistency::Linearizable).await.unwrap();
    assert_eq!(kept.into_keys().collect::<Vec<_>>(), ["kept/k"]);
}
