//! Nodes of two releases in one cluster: each is stopped and started with the other binary, there
//! and back, under load.
//!
//! The older binary is that of `QUORATE_OLD_BINARY` (`.ci/rolling REVISION` builds one and sets
//! it), else a copy of the one that is tested: then this shows what a rolling restart shows.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use quorate_client::Consistency;
use quorate_proto::v1::ChangeKind;

use crate::cli::ask;
use crate::cluster::{Cluster, Settings};
use crate::feed::Feed;
use crate::load::{Load, keep};
use crate::process::THIS_RELEASE;
use crate::wait::eventually;

/// The node's `shutdown_grace_ms`, and a little.
const STOPS_WITHIN: Duration = Duration::from_secs(20);
const SOON: Duration = Duration::from_secs(30);
/// Registrations that are renewed all the time, three times within this. A busy machine may hold a
/// renewal up for seconds.
const KEPT: usize = 20;
const KEPT_TTL: Duration = Duration::from_secs(10);

/// The older binary, in a place of its own.
fn old_binary(dir: &Path) -> PathBuf {
    let given = std::env::var_os("QUORATE_OLD_BINARY").map(PathBuf::from);
    if given.is_none() {
        eprintln!("QUORATE_OLD_BINARY is not set: the other binary is a copy of this one");
    }
    let old = dir.join("quorate-old");
    let from = given.unwrap_or_else(|| THIS_RELEASE.into());
    std::fs::copy(&from, &old).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    old
}

/// What a binary says that it is: `quorate 0.2.0 (3f9c1d2e0 2026-11-28)` is version 0.2.0.
fn version_of(binary: &Path) -> String {
    let output = Command::new(binary).arg("--version").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.split_whitespace().nth(1).unwrap_or_else(|| panic!("{said:?}")).to_owned()
}

/// What each node says it is: its version, and the cluster's level.
async fn versions(cluster: &Cluster) -> Vec<(String, u32)> {
    let mut all = Vec::new();
    for node in &cluster.nodes {
        let status = node.status().await.expect("it answers");
        all.push((status.members[0].version.clone(), status.level));
    }
    all
}

/// Waits until it has all of the log that the others have, and is a voter.
async fn has_caught_up(cluster: &Cluster, at: usize) {
    cluster.leader().await;
    let nodes = cluster.all();
    eventually("all is well again", SOON, async || {
        let shown = ask(&nodes, "cluster status --exit-code").await;
        let mut rest = shown.out.lines();
        let first = rest.next().unwrap_or_default();
        // Two releases are no reason to wait.
        match first.starts_with("OK") || first.contains("different versions") {
            true => Ok(()),
            false => Err(format!("node {}: {first} {}", cluster.nodes[at].id, shown.err)),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_rolls_to_another_release_and_back_under_load() {
    let mut cluster = Cluster::prepare(3, Settings::default()).await;
    let (old, new) = (old_binary(cluster.dir()), PathBuf::from(THIS_RELEASE));
    for node in &mut cluster.nodes {
        node.binary = old.clone();
        node.start();
    }
    cluster.leader().await;
    ask(&cluster.all(), "cluster upgrade hold").await.expect(0);
    let before = versions(&cluster).await;
    let [old_says, new_says] = [&old, &new].map(|binary| version_of(binary));
    let are_told_apart = std::env::var_os("QUORATE_OLD_BINARY").is_none() || old_says != new_says;
    assert!(are_told_apart, "both binaries say that they are {new_says}");
    let level = before[0].1;
    let mut wanted = vec![(old_says.clone(), level); 3];
    assert_eq!(before, wanted, "all begin with the older one");

    let client = cluster.client().build().unwrap();
    let kept = keep(&client, "kept", KEPT, KEPT_TTL).await;
    let writes = Load::registering(&client, "written", 3);
    let reads = Load::fetching(&client, "kept", 2);
    let mut feeds = Vec::new();
    for (binary, says) in [(&new, new_says), (&old, old_says)] {
        for at in 0..3 {
            // One that is on a node which stays.
            let other = cluster.others(at)[0];
            let feed = Feed::start(&cluster.nodes[other]).await;
            cluster.nodes[at].terminate();
            assert_eq!(cluster.nodes[at].exit_code(STOPS_WITHIN).await, 0);
            writes.until_more(20).await;
            cluster.nodes[at].binary = binary.clone();
            cluster.nodes[at].start();
            has_caught_up(&cluster, at).await;
            wanted[at].0.clone_from(&says);
            assert_eq!(versions(&cluster).await, wanted);
            writes.until_more(20).await;
            reads.until_more(20).await;
            feed.assert_gapless();
            feed.look(|seen| assert_eq!(seen.of(ChangeKind::Removed, ""), [], "nothing expires"));
            feeds.push(feed);
        }
        eprintln!("all with {}: {wanted:?}", binary.display());
    }
    assert_eq!(versions(&cluster).await, before, "back, and at the same level");

    let (writes, reads) = (writes.finish().await, reads.finish().await);
    eprintln!(
        "measured: {} registrations, {} fetches, {} renewed leases, 0 failed",
        writes.acks.len(),
        reads.acks.len(),
        kept.len()
    );
    writes.assert_no_failure();
    reads.assert_no_failure();
    let leader = cluster.leader().await;
    let state = cluster.nodes[leader].instances(Consistency::Linearizable).await.unwrap();
    writes.assert_all_in(&state, "the leader");
    assert_eq!(state.keys().filter(|key| key.starts_with("kept/")).count(), KEPT);
    cluster.equal_states().await;
}
