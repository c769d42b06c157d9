//! W6: what a state of many instances costs: memory, disk, copies of it, and the way back after all
//! nodes died.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::time::timeout;

use super::{LONG_TTL, Setting, verify};
use crate::certs::Address;
use crate::cluster::Cluster;
use crate::item::{Item, VALUE_BYTES};
use crate::load::{Paced, latencies_of, paced};
use crate::process::Memory;
use crate::sample::{Better, MIB, Samples, Variant};
use crate::wire::{Connection, Counted, Peer};

const GROUP: &str = "state";
const OTHER: &str = "other";
const OTHERS: u64 = 64;
const INSTANCES: u64 = 100_000;
const INSTANCES_LARGE: u64 = 1_000_000;
const LEASE_SIZE: u64 = 100;
const WRITES_PER_SECOND: f64 = 200.0;
const OPEN_MAX: usize = 32;
const READ_WITHIN: Duration = Duration::from_secs(120);
/// A node that has not answered by then may have no leader yet: the next one is asked.
const PAGE_WITHIN: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(2);
/// Nodes are at rest when they have held as much on their disks for this many seconds.
const REST: f64 = 15.0;
const LOOK_EVERY: Duration = Duration::from_millis(500);
const REST_WITHIN: Duration = Duration::from_secs(120);
/// The writer is measured for this long before a copy is made.
const IDLE: Duration = Duration::from_secs(2);

pub(super) async fn run(setting: &Setting<'_>, peer: Peer, samples: &mut Samples) -> Result<()> {
    let empty_disk = empty(setting, peer, samples).await?;
    let mut sizes = vec![("100,000", INSTANCES)];
    if setting.large {
        sizes.push(("1,000,000", INSTANCES_LARGE));
    }
    for (name, count) in sizes {
        let count = setting.scaled(count, 1_000).next_multiple_of(LEASE_SIZE);
        for (per_lease, kind) in [(1, "own leases"), (LEASE_SIZE, "100 to a lease")] {
            let mut variant = samples.of("W6", format!("{name}, {kind}"));
            filled(setting, peer, &mut variant, (count, per_lease), empty_disk)
                .await
                .with_context(|| format!("{name} instances, {kind}"))?;
        }
    }
    Ok(())
}

/// A cluster without any instance: its memory and disk, of the largest node; the latter in MiB.
async fn empty(setting: &Setting<'_>, peer: Peer, samples: &mut Samples) -> Result<f64> {
    let cluster = Cluster::start(peer, setting.programs, setting.dir, setting.keep).await?;
    at_rest(setting, &cluster).await?;
    let nodes = cluster.memory()?;
    let resident = largest(nodes.iter().map(|memory| memory.resident));
    let anonymous = largest(nodes.iter().map(|memory| memory.anonymous));
    let disk = largest(cluster.disk());
    let mut variant = samples.of("W6", "empty");
    variant.add("memory", "MiB", Better::Lower, resident);
    variant.add("RssAnon", "MiB", Better::Lower, anonymous);
    variant.add("disk", "MiB", Better::Neither, disk);
    Ok(disk)
}

/// In MiB.
fn largest(bytes: impl IntoIterator<Item = u64>) -> f64 {
    bytes.into_iter().max().unwrap_or_default() as f64 / MIB
}

async fn filled(
    setting: &Setting<'_>,
    peer: Peer,
    variant: &mut Variant<'_>,
    (count, per_lease): (u64, u64),
    empty_disk: f64,
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
    at_rest(setting, &cluster).await?;
    memory(variant, &cluster.memory()?, leader);
    let disk = largest(cluster.disk());
    variant.add("disk", "MiB", Better::Neither, disk);
    // What either peer lays out for its log before anything is written says nothing of a state.
    variant.add("disk, growth", "MiB", Better::Lower, disk - empty_disk);

    copies(variant, &cluster, &connections, leader, &others).await?;
    let peak = largest(cluster.memory()?.into_iter().map(|memory| memory.peak));
    variant.worst("peak memory", "MiB", Better::Lower, peak);

    drop(connections);
    let back = restart(&mut cluster, count).await?;
    variant.add("all read after kill of all", "s", Better::Lower, back.as_secs_f64());
    cluster.ready().await?;
    let connections = cluster.connect(1).await?;
    verify::all_there(&connections, GROUP, count).await
}

fn memory(variant: &mut Variant<'_>, nodes: &[Memory], leader: usize) {
    let (resident, anonymous) = (|node: &Memory| node.resident, |node: &Memory| node.anonymous);
    let followers = || nodes.iter().enumerate().filter(|(at, _)| *at != leader).map(|(_, it)| it);
    for (metric, mib) in [
        ("memory, leader", largest([resident(&nodes[leader])])),
        ("memory, follower", largest(followers().map(resident))),
        ("RssAnon, leader", largest([anonymous(&nodes[leader])])),
        ("RssAnon, follower", largest(followers().map(anonymous))),
    ] {
        variant.add(metric, "MiB", Better::Lower, mib);
    }
}

/// Waits until no node works on its files any more: a copy that was begun while the state grew has
/// the size of the state, and goes on after the last write.
async fn at_rest(setting: &Setting<'_>, cluster: &Cluster) -> Result<()> {
    let begun = Instant::now();
    let (mut held, mut since) = (cluster.disk(), Instant::now());
    while since.elapsed() < setting.seconds(REST) {
        anyhow::ensure!(begun.elapsed() < REST_WITHIN, "the nodes go on writing: {held:?} bytes");
        tokio::time::sleep(LOOK_EVERY).await;
        let now = cluster.disk();
        if now != held {
            (held, since) = (now, Instant::now());
        }
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
    variant.worst("slowest write, idle", "ms", Better::Lower, slowest(&writes)?);
    let (writes, took) = writing_while(connections, others, 1 << 32, async {
        on_leader.backup().await.map(|bytes| bytes as f64)
    })
    .await?;
    variant.add("backup", "s", Better::Lower, took.0.as_secs_f64());
    variant.add("backup size", "MiB", Better::Neither, took.1 / MIB);
    variant.worst("slowest write, backup", "ms", Better::Lower, slowest(&writes)?);
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
        variant.worst("slowest write, snapshot", "ms", Better::Lower, slowest(&writes)?);
    }
    Ok(())
}

/// In milliseconds.
fn slowest(writes: &[Paced]) -> Result<f64> {
    anyhow::ensure!(!writes.is_empty(), "nothing was written meanwhile");
    Ok(latencies_of(writes).max() as f64 / 1000.0)
}

/// Writes until `work` is done; the writes' latencies, how long the work took, and its result.
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

/// kill -9 of all, start of all; until any node has answered linearizable reads with everything.
async fn restart(cluster: &mut Cluster, count: u64) -> Result<Duration> {
    let begun = Instant::now();
    cluster.nodes.iter_mut().for_each(crate::cluster::Node::kill);
    for node in &mut cluster.nodes {
        node.start()?;
    }
    loop {
        for node in &cluster.nodes {
            if let Ok(found) = read_all(cluster.peer, &node.address).await {
                let all = usize::try_from(count)?;
                let all = Counted { instances: all, value_bytes: all * VALUE_BYTES };
                anyhow::ensure!(found == all, "{found:?} of {count} are back");
                return Ok(begun.elapsed());
            }
        }
        anyhow::ensure!(begun.elapsed() < READ_WITHIN, "no node answers a read again");
        tokio::time::sleep(POLL).await;
    }
}

/// Reads all instances, page by page.
async fn read_all(peer: Peer, node: &Address) -> Result<Counted> {
    let mut all = Counted { instances: 0, value_bytes: 0 };
    let connection = timeout(PAGE_WITHIN, Connection::open(peer, node)).await??;
    let mut after = None;
    loop {
        let (page, next) = timeout(PAGE_WITHIN, connection.page(GROUP, after)).await??;
        all.instances += page.instances;
        all.value_bytes += page.value_bytes;
        if next.is_none() {
            return Ok(all);
        }
        after = next;
    }
}
