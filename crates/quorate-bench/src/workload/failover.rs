//! W5: the leader dies or falls silent under writes. How long until a write and a renewal that are
//! sent afterwards are acknowledged, and whether live leases stay.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::{LONG_TTL, Setting};
use crate::certs::Address;
use crate::cluster::{Cluster, NODES};
use crate::item::Item;
use crate::sample::{Better, Samples};
use crate::wire::{Connection, Peer};

/// Leases that are kept alive meanwhile, with this TTL.
const KEPT: &str = "kept";
const LEASES: u64 = 1_000;
const TTL: Duration = Duration::from_secs(10);
/// The clients that renew them.
const KEEPERS: u64 = 16;
/// What the writers change.
const WRITTEN: &str = "written";
const WRITERS: u64 = 8;
const ROUNDS: u64 = 10;
/// Between attempts at each surviving node.
const ATTEMPT_EVERY: Duration = Duration::from_millis(5);
/// An attempt without an answer is given up: it may hang for as long as the leader is gone, and so
/// may all that are sent meanwhile.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(200);
/// Six times what is sent to two nodes within that.
const ATTEMPTS_OPEN_MAX: usize = 500;
/// The clients of the leases wait as long as clients do.
const RENEWED_WITHIN: Duration = Duration::from_secs(1);
const RECOVERED_WITHIN: Duration = Duration::from_secs(60);
/// A cluster whose nodes just came back is left alone for this long.
const SETTLE: Duration = Duration::from_millis(1500);

/// How the leader goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// kill -9: its connections close.
    Death,
    /// SIGSTOP: its connections stay open, nothing comes.
    Silence,
}

pub(super) async fn run(setting: &Setting<'_>, peer: Peer, samples: &mut Samples) -> Result<()> {
    for (fault, name) in [(Fault::Death, "kill -9"), (Fault::Silence, "SIGSTOP")] {
        let rounds = setting.scaled(ROUNDS, 2);
        let (mut cluster, connections) = setting.cluster(peer).await?;
        let leases = setting.prepare(&cluster, &connections, KEPT, LEASES, TTL).await?;
        let written =
            setting.prepare(&cluster, &connections, WRITTEN, WRITERS + 1, LONG_TTL).await?;
        let kept: Arc<AtomicU64> = Arc::default();
        let leases: Arc<[u64]> = leases.into();
        let mut keepers = keep(&cluster, &leases, &kept);
        let (mut writes, mut renewals) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            let (write, renewal) = one(&mut cluster, fault, &leases, &written)
                .await
                .with_context(|| format!("{name}, round {}", round + 1))?;
            writes.push(write);
            renewals.push(renewal);
        }
        keepers.shutdown().await;
        let left = cluster.connect(1).await?[0].count(KEPT).await?;
        ensure!(kept.load(Ordering::Relaxed) > 0, "nothing was renewed");
        let mut variant = samples.of("W5", name);
        for (what, slowest, mut times) in [
            ("first write", "first write, slowest", writes),
            ("first renewal", "first renewal, slowest", renewals),
        ] {
            times.sort();
            let middle = times[times.len() / 2];
            variant.add(what, "s", Better::Lower, middle.as_secs_f64());
            let last = times[times.len() - 1];
            variant.worst(slowest, "s", Better::Lower, last.as_secs_f64());
        }
        variant.worst("false expiries", "leases", Better::Neither, (LEASES - left) as f64);
    }
    Ok(())
}

/// One fault: the times to the first acknowledged write and renewal that were sent after it.
async fn one(
    cluster: &mut Cluster,
    fault: Fault,
    leases: &[u64],
    written: &[u64],
) -> Result<(Duration, Duration)> {
    let leader = cluster.ready().await?;
    cluster.caught_up().await?;
    tokio::time::sleep(SETTLE).await;
    let mut survivors = Vec::new();
    for at in (0..NODES).filter(|at| *at != leader) {
        survivors.push(Connection::open(cluster.peer, &cluster.nodes[at].address).await?);
    }
    let load = under_writes(&survivors, written);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let begun = Instant::now();
    match fault {
        Fault::Death => cluster.nodes[leader].kill(),
        Fault::Silence => cluster.nodes[leader].pause()?,
    }
    let own = WRITERS;
    let write = first(&survivors, |connection, attempt| {
        let lease = written[own as usize];
        async move { connection.change(&Item::new(WRITTEN, own, attempt), lease).await }
    });
    let renewal = first(&survivors, |connection, attempt| {
        let lease = leases[attempt as usize % leases.len()];
        async move { connection.renew(lease).await }
    });
    let (write, renewal) = tokio::join!(write, renewal);
    let times = (write? - begun, renewal? - begun);
    load.into_iter().for_each(|writer| writer.abort());
    match fault {
        Fault::Death => cluster.nodes[leader].start()?,
        Fault::Silence => cluster.nodes[leader].go_on()?,
    }
    cluster.ready().await?;
    Ok(times)
}

/// Keeps trying on all connections; when the first attempt was acknowledged. Never stops sending
/// meanwhile: what is told would be later than what happened.
async fn first<C, F>(connections: &[C], attempt: impl Fn(C, u64) -> F) -> Result<Instant>
where
    C: Clone,
    F: Future<Output = Result<()>> + Send + 'static,
{
    let mut open = JoinSet::new();
    let mut tick = tokio::time::interval(ATTEMPT_EVERY);
    let deadline = Instant::now() + RECOVERED_WITHIN;
    let mut number = 0;
    loop {
        tokio::select! {
            Some(done) = open.join_next(), if !open.is_empty() => {
                if let Ok(Some(when)) = done {
                    return Ok(when);
                }
            }
            _ = tick.tick() => {
                ensure!(Instant::now() < deadline, "nothing is acknowledged any more");
                ensure!(open.len() < ATTEMPTS_OPEN_MAX, "the driver is behind with its attempts");
                for connection in connections {
                    let called = attempt(connection.clone(), number);
                    open.spawn(async move {
                        let done = tokio::time::timeout(ATTEMPT_TIMEOUT, called).await;
                        matches!(done, Ok(Ok(()))).then(Instant::now)
                    });
                    number += 1;
                }
            }
        }
    }
}

/// Writers that go on over every error.
fn under_writes(connections: &[Connection], leases: &[u64]) -> Vec<AbortHandle> {
    let spawn = |writer: u64| {
        let connection = connections[writer as usize % connections.len()].clone();
        let lease = leases[writer as usize];
        let write = async move {
            for stamp in 0.. {
                let item = Item::new(WRITTEN, writer, stamp);
                let written =
                    tokio::time::timeout(ATTEMPT_TIMEOUT, connection.change(&item, lease));
                if !matches!(written.await, Ok(Ok(()))) {
                    tokio::time::sleep(ATTEMPT_EVERY).await;
                }
            }
        };
        tokio::spawn(write).abort_handle()
    };
    (0..WRITERS).map(spawn).collect()
}

/// Renews every lease three times a TTL, by whichever node answers.
fn keep(cluster: &Cluster, leases: &Arc<[u64]>, kept: &Arc<AtomicU64>) -> JoinSet<()> {
    let mut keepers = JoinSet::new();
    let addresses: Vec<Address> = cluster.nodes.iter().map(|node| node.address.clone()).collect();
    for keeper in 0..KEEPERS {
        let own: Vec<u64> =
            leases.iter().copied().skip(keeper as usize).step_by(KEEPERS as usize).collect();
        keepers.spawn(keep_some(cluster.peer, addresses.clone(), own, kept.clone()));
    }
    keepers
}

async fn keep_some(peer: Peer, addresses: Vec<Address>, leases: Vec<u64>, kept: Arc<AtomicU64>) {
    let mut connection: Option<Connection> = None;
    let mut node = leases.len();
    let mut tick = tokio::time::interval(TTL / 3 / u32::try_from(leases.len()).unwrap_or(1));
    for lease in leases.iter().cycle() {
        tick.tick().await;
        // One that is gone must not keep the others from being renewed.
        let give_up = Instant::now() + TTL / 3;
        while Instant::now() < give_up {
            let open = match &connection {
                Some(open) => open.clone(),
                None => match Connection::open(peer, &addresses[node % addresses.len()]).await {
                    Ok(open) => connection.insert(open).clone(),
                    Err(_) => {
                        node += 1;
                        tokio::time::sleep(ATTEMPT_EVERY).await;
                        continue;
                    }
                },
            };
            match tokio::time::timeout(RENEWED_WITHIN, open.renew(*lease)).await {
                Ok(Ok(())) => {
                    kept.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                _ => {
                    connection = None;
                    node += 1;
                    tokio::time::sleep(ATTEMPT_EVERY).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is sent before a moment hangs for ever, as on a node whose leader is gone; what is sent
    /// from then on is acknowledged.
    async fn told(moment: Duration) -> Duration {
        let begun = Instant::now();
        let attempt = move |(), _| async move {
            if begun.elapsed() < moment {
                std::future::pending::<()>().await;
            }
            Ok(())
        };
        first(&[(), ()], attempt).await.unwrap() - begun
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_acknowledgement_is_told_when_it_comes() {
        for ms in [0, 3, 190, 500, 1_245, 1_300, 1_990, 2_100, 3_700, 12_345] {
            let moment = Duration::from_millis(ms);
            let told = told(moment).await;
            let late = told.checked_sub(moment).expect("nothing is acknowledged before");
            assert!(late <= Duration::from_millis(10), "{moment:?} is told as {told:?}");
        }
    }
}
