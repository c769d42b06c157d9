//! States in which nodes lead and answer, and refuse writes.

use std::path::Path;
use std::time::Duration;

use tonic::Code;

use super::{MIB, REGISTERS_EVERY, Watched, Where};
use crate::cluster::{Node, Settings};
use crate::wait::time_passes;

const TTL: Duration = Duration::from_secs(600);

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
