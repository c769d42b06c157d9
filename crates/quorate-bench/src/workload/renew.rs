//! W2: renewals of live leases, one lease a message, over streams that are spread over the nodes;
//! or all at the leader, which etcd's other nodes ask by a call of HTTP for each renewal.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::task::JoinSet;

use super::{LONG_TTL, Setting, verify};
use crate::cluster::Cluster;
use crate::load::{CpuMark, Latencies, Measured, latencies, record};
use crate::sample::Samples;
use crate::wire::{Connection, Peer, RenewStream};

const GROUP: &str = "renew";
const LEASES: u64 = 20_000;
pub(super) const STREAMS: usize = 64;
/// Messages of one stream that wait for their answers.
const WINDOWS: [usize; 2] = [1, 32];
const SECONDS: f64 = 8.0;

pub(super) async fn run(setting: &Setting<'_>, peer: Peer, samples: &mut Samples) -> Result<()> {
    let count = setting.scaled(LEASES, STREAMS as u64 * 4);
    let (mut cluster, connections) = setting.cluster(peer).await?;
    let leases = setting.prepare(&cluster, &connections, GROUP, count, LONG_TTL).await?;
    let leader = cluster.ready().await?;
    let mut at_leader = Vec::new();
    for _ in 0..connections.len() {
        at_leader.push(Connection::open(peer, &cluster.nodes[leader].address).await?);
    }
    let time = setting.seconds(SECONDS);
    for (connections, which) in [(&connections, ""), (&at_leader, ", leader")] {
        for window in WINDOWS {
            let measured = phase(&cluster, connections, &leases, window, time).await?;
            samples.of("W2", format!("window {window}{which}")).phase("renewals", &measured);
        }
    }
    ensure!(cluster.ready().await? == leader, "another node leads");
    verify::all_there(&connections, GROUP, count).await
}

/// Renews round these leases for a time, over all streams.
pub(super) async fn phase(
    cluster: &Cluster,
    connections: &[Connection],
    leases: &[u64],
    window: usize,
    time: Duration,
) -> Result<Measured> {
    let mut tasks = JoinSet::new();
    let streams = open(connections, leases).await?;
    let mark = CpuMark::set(cluster)?;
    let begun = Instant::now();
    for (at, stream) in streams.into_iter().enumerate() {
        let own: Vec<u64> = leases.iter().copied().skip(at).step_by(STREAMS).collect();
        tasks.spawn(keep_renewing(stream, own, window, begun + time));
    }
    let mut all = latencies();
    while let Some(done) = tasks.join_next().await {
        all.add(done??)?;
    }
    let elapsed = begun.elapsed();
    ensure!(!all.is_empty(), "nothing was renewed");
    Ok(Measured { operations: all.len(), elapsed, latencies: all, cpu: mark.used()? })
}

async fn open(connections: &[Connection], leases: &[u64]) -> Result<Vec<RenewStream>> {
    let mut streams = Vec::new();
    for at in 0..STREAMS {
        streams.push(connections[at % connections.len()].renew_stream(leases[at]).await?);
    }
    Ok(streams)
}

/// Renews round the leases, with this many messages under way, until the deadline; then waits for
/// what is under way. Each answer is checked: a lease that is gone is an error.
async fn keep_renewing(
    mut stream: RenewStream,
    leases: Vec<u64>,
    window: usize,
    deadline: Instant,
) -> Result<Latencies> {
    let mut all = latencies();
    let mut sent: VecDeque<Instant> = VecDeque::with_capacity(window);
    let mut next = leases.iter().cycle();
    loop {
        let over = Instant::now() >= deadline;
        while !over && sent.len() < window {
            let Some(lease) = next.next() else { break };
            sent.push_back(Instant::now());
            stream.send(*lease).await?;
        }
        let Some(oldest) = sent.pop_front() else { return Ok(all) };
        tokio::time::timeout(ANSWER_WITHIN, stream.answer()).await??;
        record(&mut all, oldest.elapsed());
    }
}

/// Far more than any answer takes on a cluster that works.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
