//! W6: what a state of many instances costs: memory, disk, copies of it, and the way back after all
//! nodes died.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{LONG_TTL, Setting, verify};
use crate::cluster::Cluster;
use crate::item::Item;
use crate::load::{Paced, latencies_of, paced};
use crate::sample::{Better, MIB, Samples, Variant};
use crate::wire::{Connection, Peer};

const GROUP: &str = "state";
const OTHER: &str = "other";
const OTHERS: u64 = 64;
const INSTANCES: u64 = 100_000;
const INSTANCES_LARGE: u64 = 1_000_000;
const LEASE_SIZE: u64 = 100;
const WRITES_PER_SECOND: f64 = 200.0;
const OPEN_MAX: usize = 32;
const READ_WITHIN: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(2);
/// The memory of an empty cluster is read this long after its start.
const REST: Duration = Duration::from_secs(2);
/// A node is at rest when it holds as much on its disk at this many looks in a row.
const SAME_LOOKS: usize = 4;
const LOOK_EVERY: Duration = Duration::from_millis(500);
const REST_WITHIN: Duration = Duration::from_secs(120);
/// The writer is measured for this long before a copy is made.
const IDLE: Duration = Duration::from_secs(2);

pub(super) async fn run(setting: &Setting<'_>, peer: Peer, samples: &mut Samples) -> Result<()> {
    empty(setting, peer, samples).await?;
    let mut sizes = vec![("100,000", INSTANCES)];
    if setting.large {
        sizes.push(("1,000,000", INSTANCES_LARGE));
    }
    for (name, count) in sizes {
        let count = setting.scaled(count, 1_000).next_multiple_of(LEASE_SIZE);
        for (per_lease, kind) in [(1, "own leases"), (LEASE_SIZE, "100 to a lease")] {
            let mut variant = samples.of("W6", format!("{name}, {kind}"));
            filled(setting, peer, &mut variant, count, per_lease)
                .await
                .with_context(|| format!("{name} instances, {kind}"))?;
        }
    }
    Ok(())
}

async fn empty(setting: &Setting<'_>, peer: Peer, samples: &mut Samples) -> Result<()> {
    let cluster = Cluster::start(peer, setting.programs, setting.dir, setting.keep).await?;
    tokio::time::sleep(REST).await;
    let largest = cluster.memory()?.into_iter().map(|(now, _)| now).max().unwrap_or_default();
    samples.of("W6", "empty").add("memory", "MiB", Better::Lower, largest as f64 / MIB);
    Ok(())
}

async fn filled(
    setting: &Setting<'_>,
    peer: Peer,
    variant: &mut Variant<'_>,
    count: u64,
    per_lease: u64,
) -> Result<()> {
    let (mut cluster, connections) = setting.cluster(peer).await?;
    let others = setting.prepare(&cluster, &connections, OTHER, OTHERS, LONG_TTL).await?;
    if per_lease == 1 {
        setting.prepare(&cluster, &connections, GROUP, count, LONG_TTL).await?;
    } else {
        setting.prepare_shared(&cluster, &connections, GROUP, count, per_lease).await?;
    }
    let leader = cluster.ready().await?;
    cluster.caught_up().await?;
    at_rest(&cluster).await?;
    let memory: Vec<f64> = cluster.memory()?.into_iter().map(|(now, _)| now as f64 / MIB).collect();
    let followers = memory.iter().enumerate().filter(|(at, _)| *at != leader);
    let follower = followers.map(|(_, memory)| *memory).fold(0.0, f64::max);
    variant.add("memory, leader", "MiB", Better::Lower, memory[leader]);
    variant.add("memory, follower", "MiB", Better::Lower, follower);
    let disk = cluster.disk().into_iter().max().unwrap_or_default();
    variant.add("disk", "MiB", Better::Lower, disk as f64 / MIB);

    copies(variant, &cluster, &connections, leader, &others).await?;
    let peak = cluster.memory()?.into_iter().map(|(_, peak)| peak).max().unwrap_or_default();
    variant.add("peak memory", "MiB", Better::Lower, peak as f64 / MIB);

    drop(connections);
    let back = restart(&mut cluster, count).await?;
    variant.add("first read after kill of all", "s", Better::Lower, back.as_secs_f64());
    cluster.ready().await?;
    let connections = cluster.connect(1).await?;
    verify::all_there(&connections, GROUP, count).await
}

/// Waits until no node works on its files any more: a copy that was begun while the state grew has
/// the size of the state, and goes on after the last write.
async fn at_rest(cluster: &Cluster) -> Result<()> {
    let begun = Instant::now();
    let (mut held, mut same) = (cluster.disk(), 0);
    while same < SAME_LOOKS {
        anyhow::ensure!(begun.elapsed() < REST_WITHIN, "the nodes go on writing: {held:?} bytes");
        tokio::time::sleep(LOOK_EVERY).await;
        let now = cluster.disk();
        same = if now == held { same + 1 } else { 0 };
        held = now;
    }
    Ok(())
}

/// How long copies of the state take, and the slowest write meanwhile.
async fn copies(
    variant: &mut Variant<'_>,
    cluster: &Cluster,
    connections: &[Connection],
    leader: usize,
    others: &[u64],
) -> Result<()> {
    let address = &cluster.nodes[leader].address;
    let on_leader = Connection::open(cluster.peer, address).await?;
    let idle = Instant::now() + IDLE;
    let writes = write(connections, others, 0, || Instant::now() >= idle).await?;
    variant.add("slowest write, idle", "ms", Better::Lower, latencies_of(&writes).max() as f64 / 1000.0);
    let (writes, took) = writing_while(connections, others, 1 << 32, async {
        on_leader.backup().await.map(|bytes| bytes as f64)
    })
    .await?;
    variant.add("backup", "s", Better::Lower, took.0.as_secs_f64());
    variant.add("backup size", "MiB", Better::Neither, took.1 / MIB);
    variant.add("slowest write, backup", "ms", Better::Lower, latencies_of(&writes).max() as f64 / 1000.0);
    let snapshot = async {
        match on_leader.snapshot().await {
            Some(done) => done.map(|()| 1.0),
            None => Ok(0.0),
        }
    };
    let (writes, (took, done)) = writing_while(connections, others, 1 << 33, snapshot).await?;
    // etcd builds its own when it likes; there is no call for it.
    if done > 0.0 {
        variant.add("snapshot", "s", Better::Lower, took.as_secs_f64());
        variant.add("slowest write, snapshot", "ms", Better::Lower, latencies_of(&writes).max() as f64 / 1000.0);
    }
    Ok(())
}

/// Writes until `work` is done; the writes, how long the work took, and its result.
async fn writing_while(
    connections: &[Connection],
    leases: &[u64],
    stamps_from: u64,
    work: impl Future<Output = Result<f64>>,
) -> Result<(Vec<Paced>, (Duration, f64))> {
    let done = Arc::new(AtomicBool::new(false));
    let over = done.clone();
    let writing = write(connections, leases, stamps_from, move || over.load(Ordering::Relaxed));
    let working = async {
        let begun = Instant::now();
        let result = work.await;
        done.store(true, Ordering::Relaxed);
        result.map(|result| (begun.elapsed(), result))
    };
    let (writes, worked) = tokio::join!(writing, working);
    Ok((writes?, worked?))
}

async fn write(
    connections: &[Connection],
    leases: &[u64],
    stamps_from: u64,
    over: impl Fn() -> bool,
) -> Result<Vec<Paced>> {
    paced(WRITES_PER_SECOND, over, OPEN_MAX, |number, _| {
        let at = number % OTHERS;
        let connection = connections[at as usize % connections.len()].clone();
        let lease = leases[at as usize];
        let item = Item::new(OTHER, at, stamps_from + number);
        async move { connection.change(&item, lease).await }
    })
    .await
}

/// kill -9 of all, start of all; until any node answers a linearizable read with everything.
async fn restart(cluster: &mut Cluster, count: u64) -> Result<Duration> {
    let begun = Instant::now();
    cluster.nodes.iter_mut().for_each(crate::cluster::Node::kill);
    for node in &mut cluster.nodes {
        node.start()?;
    }
    let peer = cluster.peer;
    loop {
        for node in &cluster.nodes {
            let read = async { Connection::open(peer, &node.address).await?.count(GROUP).await };
            let read = tokio::time::timeout(Duration::from_secs(1), read).await;
            if let Ok(Ok(found)) = read {
                anyhow::ensure!(found == count, "{found} of {count} are back");
                return Ok(begun.elapsed());
            }
        }
        anyhow::ensure!(begun.elapsed() < READ_WITHIN, "no node answers a read again");
        tokio::time::sleep(POLL).await;
    }
}
