//! States in which nodes lead and answer, and refuse writes.

use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;
use tonic::Code;

use super::table::Metrics;
use super::{MIB, REGISTERS_EVERY, SOON, Watched, Where};
use crate::cluster::{Node, Settings};
use crate::small_disk::SmallDisk;
use crate::wait::{eventually, time_passes};

const TTL: Duration = Duration::from_secs(600);

/// A quarter of the reserve.
const FLOOR: u64 = 8 * MIB;

/// A call that is not answered within this waits for its deadline.
const WAITS: Duration = Duration::from_secs(10);

/// A follower that takes entries is never so far behind while they are written one by one.
const BEHIND: f64 = 50.0;

/// The leader's disk fills last, when it has an entry that no follower took: whoever asks hears of
/// the disk, and not at the call's deadline that the leader was late.
#[tokio::test(flavor = "multi_thread")]
async fn disks_at_their_floor_show_everywhere() {
    let disks: Vec<SmallDisk> = (0..3).map_while(|_| SmallDisk::mount(64)).collect();
    if disks.len() < 3 {
        return;
    }
    let tunables = format!("disk_reserve_bytes = {}", 4 * FLOOR);
    let data_dirs = (1..).zip(disks.iter().map(SmallDisk::data_dir)).collect();
    let settings = Settings { tunables, data_dirs, ..Settings::default() };
    let watched = Watched::start(3, settings).await;
    let asked = watched.nodes(&[0, 1, 2]);
    watched.cluster.nodes[0].register("kept", "a", TTL).await.unwrap();
    let leader = watched.cluster.leader().await;
    // What a node gives back makes room.
    let fill = |places: &[usize]| places.iter().for_each(|at| disks[*at].fill_up(FLOOR / 2));
    let followers: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
    let told = async || {
        let call = watched.cluster.nodes[leader].deregister("kept", "b", 0);
        let answer = timeout(WAITS, call).await.ok()?;
        Some(answer.expect_err("it is not registered").message().to_owned())
    };
    let index = async |at: usize, metric| {
        let (_, text) = watched.get(at, "/metrics").await?;
        Some(Metrics::read(&text).of(metric))
    };
    // The first of them stays behind, whatever the others had taken when their disks filled.
    eventually("a follower takes no entry", SOON, async || {
        fill(&followers[..1]);
        told().await.ok_or("no quorum")?;
        let committed = index(leader, "quorate_raft_committed_index").await.ok_or("no metrics")?;
        let applied = index(followers[0], "quorate_raft_applied_index").await.ok_or("none")?;
        if committed > applied + BEHIND { Ok(()) } else { Err("it takes them") }
    })
    .await;
    eventually("no follower takes an entry", SOON, async || {
        fill(&followers);
        told().await.map_or(Ok(()), Err)
    })
    .await;
    eventually("nothing is written", SOON, async || {
        fill(&[0, 1, 2]);
        let told = told().await.unwrap_or_default();
        if told.contains("nothing is written") { Ok(()) } else { Err(told) }
    })
    .await;
    let at = Where { about: leader, scraped: leader, targets: vec![0, 1, 2], asked };
    watched.shows("disk at its floor", at).await;
    disks.iter().for_each(SmallDisk::make_room);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_log_that_cannot_be_written_shows_everywhere() {
    let audit = "[audit]\nfile = \"/dev/full\"\nrequired = true\n";
    let mut watched = Watched::prepare(3, Settings::default()).await;
    let config = watched.cluster.dir().join("node-1.toml");
    add(&config, audit);
    watched.cluster.nodes.iter_mut().for_each(|node| node.start());
    watched.cluster.leader().await;
    let asked = watched.nodes(&[0, 1, 2]);
    // It finds out with the first line.
    let refused = watched.cluster.nodes[0].register("web", "a", TTL).await;
    assert_eq!(refused.expect_err("it has no line").code(), Code::Unavailable);
    let at = Where { about: 0, scraped: 0, targets: vec![0, 1, 2], asked };
    watched.shows("audit log unwritten", at).await;
}

/// As the last table of a node's configuration.
fn add(config: &Path, table: &str) {
    let text = std::fs::read_to_string(config).unwrap();
    std::fs::write(config, format!("{text}\n{table}")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_registry_shows_everywhere() {
    let tunables = format!("state_bytes_max = {MIB}");
    let watched = Watched::start(3, Settings { tunables, ..Settings::default() }).await;
    let asked = watched.nodes(&[0, 1, 2]);
    let leader = watched.cluster.leader().await;
    let node = &watched.cluster.nodes[leader];
    fill(node).await;
    let at = Where { about: leader, scraped: leader, targets: vec![0, 1, 2], asked };
    // Somebody goes on trying.
    let trying = async {
        for at in 0.. {
            let _refused = node.register("many", &format!("more-{at}"), TTL).await;
            time_passes(REGISTERS_EVERY).await;
        }
    };
    tokio::select! {
        () = watched.shows("registry full", at) => {}
        _ = trying => {}
    }
}

/// With instances until the leader takes no more.
async fn fill(leader: &Node) {
    for at in 0..10_000 {
        let refused = leader.register("many", &format!("i-{at}"), TTL).await.err();
        if refused.is_some_and(|status| status.code() == Code::ResourceExhausted) {
            return;
        }
    }
    panic!("it takes all");
}
