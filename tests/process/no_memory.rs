//! A node that gets no memory, or no thread, ends: it does not linger and answer nothing.

use std::time::Duration;

use crate::cluster::{Cluster, Settings};
use crate::wait::eventually;

const ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// Longer than any start takes.
const DECIDED_WITHIN: Duration = Duration::from_secs(15);

/// With so little address space (MiB) that it is missing here or there: wherever that is, the node
/// serves or ends, and never asks an operator to remove sound files.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_memory_serves_or_ends() {
    let (mut served, mut ended) = (0, 0);
    for mib in (100..=420).step_by(20) {
        let settings = Settings { ulimit: format!("-v {}", mib * 1_024), ..Settings::default() };
        let mut cluster = Cluster::prepare(1, settings).await;
        let node = &mut cluster.nodes[0];
        node.start();
        let what = format!("with {mib} MiB, an answer or the end");
        let serves = eventually(&what, DECIDED_WITHIN, async || {
            if node.process().ended().is_some() {
                return Ok(false);
            }
            node.register_within("some", "a", ANSWERS_WITHIN).await.map(|_| true)
        })
        .await;
        if serves {
            served += 1
        } else {
            ended += 1
        }
        let log = node.log_text();
        assert!(!log.contains("is damaged"), "with {mib} MiB: {log}");
    }
    eprintln!("measured: {served} served, {ended} ended");
    assert!(ended > 0, "no limit was too low to start");
}
