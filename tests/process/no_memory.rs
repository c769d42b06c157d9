//! A node that gets no memory, or no thread, ends: it does not linger and answer nothing.

use std::time::Duration;

use quorate_client::Consistency;
use quorate_proto::v1::{FetchRequest, RegisterRequest};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::task::JoinSet;

use crate::cluster::{Cluster, Node, Settings};
use crate::raw::spec;
use crate::wait::eventually;

const ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// Longer than any start takes.
const DECIDED_WITHIN: Duration = Duration::from_secs(40);

/// Address space, MiB: more than a node takes to serve. What it takes grows with its threads, and
/// so with the cores.
const MIB_MAX: u64 = 8_000;
const SERVED_MIN: u32 = 3;

/// With so little address space (MiB) that it is missing here or there: wherever that is, the node
/// serves or ends, and never asks an operator to remove sound files.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_memory_serves_or_ends() {
    let (mut served, mut ended) = (0, 0);
    for mib in (100..=MIB_MAX).step_by(25) {
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
        let log = node.log_text();
        assert!(!log.contains("is damaged"), "with {mib} MiB: {log}");
        if serves {
            served += 1
        } else {
            ended += 1
        }
        // From where it serves now and then to where it does each time.
        if served == SERVED_MIN {
            break;
        }
    }
    eprintln!("measured: {ended} ended before {served} had served");
    assert!(ended > 0, "no limit was too low to start");
    assert_eq!(served, SERVED_MIN, "no limit was high enough to serve");
}

/// Address space (MiB) that is left to a node that serves.
const ROOMS: [u64; 3] = [0, 8, 48];
const BATCH: usize = 500;
const METADATA_BYTES: usize = 1_000;
/// More than fits in any of the rooms.
const BATCHES: usize = 200;
const READERS: usize = 20;

/// Of the allocator, and of the operating system.
const REASONS: [&str; 2] = ["memory allocation of", "Cannot allocate memory"];

/// Memory runs out while a node serves: it goes on, or ends with its reason, and everything that it
/// acknowledged is there when it starts again.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_memory_runs_out_serves_or_ends_with_its_reason() {
    let mut ended = 0;
    for room in ROOMS {
        let mut cluster = Cluster::start(1).await;
        let node = &mut cluster.nodes[0];
        node.register_within("some", "a", DECIDED_WITHIN).await.unwrap();
        leave(node.process().pid(), room);
        let acknowledged = fill(node).await;
        let what = format!("with {room} MiB left, an answer or the end");
        let serves = eventually(&what, DECIDED_WITHIN, async || {
            if node.process().ended().is_some() {
                return Ok(false);
            }
            node.register_within("some", "a", ANSWERS_WITHIN).await.map(|_| true)
        })
        .await;
        eprintln!("measured: {room} MiB left: {acknowledged} batches, then it serves: {serves}");
        if !serves {
            ended += 1;
            let log = node.log_text();
            assert!(REASONS.iter().any(|reason| log.contains(reason)), "no reason: {log}");
        }
        node.kill();
        node.start();
        let found = eventually("it is back", DECIDED_WITHIN, async || {
            node.instances(Consistency::Linearizable).await
        })
        .await;
        let kept = found.keys().filter(|key| key.starts_with("many/")).count();
        assert!(kept >= acknowledged * BATCH, "{kept} of {acknowledged} batches");
    }
    assert!(ended > 0, "memory never ran out");
}

/// From now on, this process gets so much more address space than it has.
fn leave(pid: i32, room_mib: u64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).expect("its size");
    let size_kib: u64 = size.trim().trim_end_matches(" kB").parse().unwrap();
    let most = Some(size_kib * 1_024 + room_mib * 1024 * 1024);
    let limit = Rlimit { current: most, maximum: most };
    prlimit(Pid::from_raw(pid), Resource::As, limit).unwrap();
}

/// Registers until that fails, beside readers of everything; how many batches were acknowledged.
async fn fill(node: &Node) -> usize {
    let mut readers = JoinSet::new();
    for _ in 0..READERS {
        let mut registry = node.registry();
        readers
            .spawn(async move { while registry.fetch(FetchRequest::default()).await.is_ok() {} });
    }
    let mut registry = node.registry();
    for batch in 0..BATCHES {
        let instances = (0..BATCH).map(|at| {
            let mut spec = spec("many", &format!("i{batch}-{at}"));
            spec.metadata.insert("large".to_owned(), "x".repeat(METADATA_BYTES));
            spec
        });
        let instances = instances.collect();
        let request = RegisterRequest { instances, ttl_ms: 600_000, ..<_>::default() };
        if registry.register(request).await.is_err() {
            return batch;
        }
    }
    BATCHES
}
