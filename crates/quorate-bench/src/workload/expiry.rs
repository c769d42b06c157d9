//! W7: many leases stop being renewed at once. When the last instance is gone for a watcher, and
//! what a writer that has nothing to do with it feels.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;

use super::{LONG_TTL, Setting, renew};
use crate::item::Item;
use crate::load::{Latencies, Paced, latencies_of, paced};
use crate::sample::{Better, Samples};
use crate::wire::{Connection, Peer, WatchStream};

/// What ends.
const ENDING: &str = "ending";
const LEASES: u64 = 20_000;
/// Long enough to register them all on either peer.
const TTL: Duration = Duration::from_secs(20);
/// What the unrelated writer changes.
const OTHER: &str = "other";
const OTHERS: u64 = 64;
const WRITES_PER_SECOND: f64 = 200.0;
/// Writes under way at once; fewer than there are instances.
const OPEN_MAX: usize = 32;
/// How long the writer is measured before anything ends, and where there is no end to wait for, at
/// least.
const IDLE: Duration = Duration::from_secs(5);
/// The writer's second phase begins this long before the first deadline.
const LEAD: Duration = Duration::from_millis(200);
/// More than the slowest peer takes.
const ALL_GONE_WITHIN: Duration = Duration::from_secs(180);

pub(super) async fn run(setting: &Setting<'_>, peer: Peer, samples: &mut Samples) -> Result<()> {
    let count = setting.scaled(LEASES, renew::STREAMS as u64);
    let (cluster, connections) = setting.cluster(peer).await?;
    let others = setting.prepare(&cluster, &connections, OTHER, OTHERS, LONG_TTL).await?;
    let leases = setting.prepare(&cluster, &connections, ENDING, count, TTL).await?;
    // Not the leader's or a follower's watcher: one on each node, and the last of them counts.
    let mut watchers = JoinSet::new();
    for connection in cluster.connect(1).await? {
        let stream = connection.watch(ENDING).await?;
        watchers.spawn(until_all_are_gone(stream, count));
    }
    let first_sent = Instant::now();
    renew_once(&connections, &leases).await?;
    let last_answered = Instant::now();

    let idle_until = last_answered + IDLE;
    let idle = write(&connections, &others, 0, || Instant::now() >= idle_until).await?;
    tokio::time::sleep_until((first_sent + TTL - LEAD).into()).await;
    ensure!(watchers.try_join_next().is_none(), "leases ended before their time");
    let gone = Arc::new(AtomicBool::new(false));
    let (over, at_least) = (gone.clone(), first_sent + TTL + IDLE / 5);
    let over = move || over.load(Ordering::Relaxed) && Instant::now() >= at_least;
    let writing = write(&connections, &others, 1 << 32, over);
    let watching = async {
        let (mut first, mut last) = (None, last_answered);
        while let Some(seen) = watchers.join_next().await {
            let seen = seen.context("a watcher failed").and_then(|seen| seen);
            // The writer is to end whatever happened.
            gone.store(seen.is_err() || watchers.is_empty(), Ordering::Relaxed);
            let (begun, ended) = seen?;
            first = Some(first.map_or(begun, |first: Instant| first.min(begun)));
            last = last.max(ended);
        }
        Ok::<_, anyhow::Error>((first.context("no watcher")?, last))
    };
    let (meanwhile, seen) = tokio::join!(writing, watching);
    let (meanwhile, (first, last)) = (meanwhile?, seen?);
    // The server's clock of a lease starts no earlier than the renewal was sent.
    ensure!(first >= first_sent + TTL, "a lease ended before its time");
    let left = connections[0].count(ENDING).await?;
    ensure!(left == 0, "{left} instances are still there");
    ensure!(connections[0].count(OTHER).await? == OTHERS, "live leases ended");

    let mut variant = samples.of("W7", "20,000 leases end");
    let spread = (last_answered - first_sent).as_secs_f64();
    variant.add("deadlines fall within", "s", Better::Neither, spread);
    let after = last.saturating_duration_since(last_answered + TTL);
    variant.add("last removal", "s", Better::Lower, after.as_secs_f64());
    let rate = count as f64 / (last - first).as_secs_f64().max(0.001);
    variant.add("removals", "1/s", Better::Higher, rate);
    // A write beside leases that are there yet, or are all gone, says nothing.
    let meanwhile: Vec<&Paced> =
        meanwhile.iter().filter(|write| (first..=last).contains(&write.from)).collect();
    ensure!(!meanwhile.is_empty(), "nothing was written while leases ended");
    let (idle, writes) = (latencies_of(&idle), meanwhile.len() as f64);
    let meanwhile = latencies_of(meanwhile);
    let ms = |latencies: &Latencies, quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
    variant.add("writes meanwhile", "writes", Better::Neither, writes);
    variant.add("writer p50, idle", "ms", Better::Lower, ms(&idle, 0.5));
    variant.add("writer p50, meanwhile", "ms", Better::Lower, ms(&meanwhile, 0.5));
    variant.add("writer p99, idle", "ms", Better::Lower, ms(&idle, 0.99));
    variant.add("writer p99, meanwhile", "ms", Better::Lower, ms(&meanwhile, 0.99));
    let growth = |quantile| ms(&meanwhile, quantile) / ms(&idle, quantile);
    variant.add("writer p50, growth", "x", Better::Lower, growth(0.5));
    variant.add("writer p99, growth", "x", Better::Lower, growth(0.99));
    Ok(())
}

/// Renews every lease once, as fast as the peer can: so that all deadlines fall together.
async fn renew_once(connections: &[Connection], leases: &[u64]) -> Result<()> {
    const BULK: usize = 10_000;
    const WINDOW: usize = 32;
    if let Connection::Quorate(quorate) = &connections[0] {
        for some in leases.chunks(BULK) {
            quorate.renew(some).await?;
        }
        return Ok(());
    }
    let mut tasks = JoinSet::new();
    for at in 0..renew::STREAMS {
        let connection = connections[at % connections.len()].clone();
        let own: VecDeque<u64> = leases.iter().copied().skip(at).step_by(renew::STREAMS).collect();
        tasks.spawn(async move {
            let Some(first) = own.front() else { return Ok(()) };
            let mut stream = connection.renew_stream(*first).await?;
            let mut open = 0;
            for lease in own.iter().skip(1) {
                if open == WINDOW {
                    stream.answer().await?;
                    open -= 1;
                }
                stream.send(*lease).await?;
                open += 1;
            }
            for _ in 0..open {
                stream.answer().await?;
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
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

/// When the first and the last of this many removals arrived.
async fn until_all_are_gone(mut stream: WatchStream, count: u64) -> Result<(Instant, Instant)> {
    let (mut removed, mut first) = (0, None);
    let mut events = Vec::new();
    while removed < count {
        let next = tokio::time::timeout(ALL_GONE_WITHIN, stream.next(&mut events)).await;
        next.with_context(|| format!("{removed} of {count} were removed"))??;
        let gone = events.drain(..).filter(|event| event.stamp.is_none()).count();
        removed += gone as u64;
        if gone > 0 {
            first.get_or_insert_with(Instant::now);
        }
    }
    Ok((first.context("nothing to end")?, Instant::now()))
}
