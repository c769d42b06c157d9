//! How work is brought to a cluster: a fixed number of calls at once, each as soon as the one
//! before is answered, or at a fixed rate. Counts operations, latencies and processor time; knows
//! nothing of what the calls do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;
use tokio::task::JoinSet;

use crate::cluster::Cluster;
use crate::process;

/// Longer latencies count as this one: ten minutes, far beyond every timeout.
const LATENCY_MAX_US: u64 = 600_000_000;

/// A timer may wake this late.
const TIMER_SLACK: Duration = Duration::from_millis(3);

/// Latencies in microseconds, to three digits.
pub(crate) type Latencies = Histogram<u64>;

pub(crate) fn latencies() -> Latencies {
    Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("invariant: these bounds are possible")
}

/// Records a latency. Below a microsecond counts as one.
pub(crate) fn record(latencies: &mut Latencies, elapsed: Duration) {
    latencies.saturating_record(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX).max(1));
}

/// Processor time used by us and by each server.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cpu {
    pub(crate) client: Duration,
    /// In the order of the nodes.
    pub(crate) servers: Vec<Duration>,
}

/// A look at the processor times, to be compared with a later one.
pub(crate) struct CpuMark {
    pids: Vec<u32>,
    at: Cpu,
}

impl CpuMark {
    pub(crate) fn set(cluster: &Cluster) -> Result<Self> {
        Self::of(cluster.pids())
    }

    pub(crate) fn of(pids: Vec<u32>) -> Result<Self> {
        let at = look(&pids)?;
        Ok(Self { pids, at })
    }

    /// What was used since.
    pub(crate) fn used(&self) -> Result<Cpu> {
        let now = look(&self.pids)?;
        let servers = now.servers.iter().zip(&self.at.servers);
        let servers = servers.map(|(now, then)| now.saturating_sub(*then)).collect();
        Ok(Cpu { client: now.client.saturating_sub(self.at.client), servers })
    }
}

fn look(pids: &[u32]) -> Result<Cpu> {
    let servers = pids.iter().map(|pid| process::cpu_time(*pid)).collect::<Result<_>>()?;
    Ok(Cpu { client: process::cpu_time(std::process::id())?, servers })
}

/// What a phase of work came to.
pub(crate) struct Measured {
    pub(crate) operations: u64,
    pub(crate) elapsed: Duration,
    pub(crate) latencies: Latencies,
    pub(crate) cpu: Cpu,
}

impl Measured {
    pub(crate) fn per_second(&self) -> f64 {
        self.operations as f64 / self.elapsed.as_secs_f64()
    }
}

/// When a phase ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Until {
    /// After this many operations.
    Count(u64),
    /// After this much time; what is under way then is still waited for and counted.
    Time(Duration),
}

/// [`closed_loop_of`], the processes being a cluster's.
pub(crate) async fn closed_loop<F>(
    cluster: &Cluster,
    workers: usize,
    until: Until,
    operation: impl Fn(usize, u64) -> F + Clone + Send + 'static,
) -> Result<Measured>
where
    F: Future<Output = Result<()>> + Send,
{
    closed_loop_of(cluster.pids(), workers, until, operation).await
}

/// Keeps this many runs of `operation` under way until the end, and counts the processor time of
/// these processes. It is given the worker's number and the operation's: those that are done are
/// numbered from 0 on, without a gap. The first error ends everything.
pub(crate) async fn closed_loop_of<F>(
    pids: Vec<u32>,
    workers: usize,
    until: Until,
    operation: impl Fn(usize, u64) -> F + Clone + Send + 'static,
) -> Result<Measured>
where
    F: Future<Output = Result<()>> + Send,
{
    let next = Arc::new(AtomicU64::new(0));
    let mark = CpuMark::of(pids)?;
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for worker in 0..workers {
        let (next, operation) = (next.clone(), operation.clone());
        tasks.spawn(async move {
            let mut latencies = latencies();
            loop {
                // Looked at before a number is taken: one that is taken is done.
                let late = matches!(until, Until::Time(time) if begun.elapsed() >= time);
                let number = if late { u64::MAX } else { next.fetch_add(1, Ordering::Relaxed) };
                if late || matches!(until, Until::Count(count) if number >= count) {
                    return Ok::<_, anyhow::Error>(latencies);
                }
                let sent = Instant::now();
                operation(worker, number).await?;
                record(&mut latencies, sent.elapsed());
            }
        });
    }
    let mut all = latencies();
    while let Some(done) = tasks.join_next().await {
        all.add(done??)?;
    }
    let elapsed = begun.elapsed();
    ensure!(!all.is_empty(), "nothing was done");
    Ok(Measured { operations: all.len(), elapsed, latencies: all, cpu: mark.used()? })
}

/// One operation of those that come at a rate.
pub(crate) struct Paced {
    /// When it was due.
    pub(crate) from: Instant,
    /// From then until it was answered.
    pub(crate) took: Duration,
}

/// The latencies of these.
pub(crate) fn latencies_of<'a>(all: impl IntoIterator<Item = &'a Paced>) -> Latencies {
    let mut latencies = latencies();
    all.into_iter().for_each(|paced| record(&mut latencies, paced.took));
    latencies
}

/// Runs `operation` at a fixed rate until `over`, whether earlier ones are answered or not, up to
/// `open_max` at once. It is given its number, from 0 on, and from when its latency counts: from
/// when it was due where it was late by more than timers are, so that a stall is not hidden by what
/// could not be sent during it.
pub(crate) async fn paced<F>(
    per_second: f64,
    over: impl Fn() -> bool,
    open_max: usize,
    operation: impl Fn(u64, Instant) -> F,
) -> Result<Vec<Paced>>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let begun = Instant::now();
    let mut all = Vec::new();
    let mut open: JoinSet<Result<Paced>> = JoinSet::new();
    for number in 0.. {
        let due = begun + Duration::from_secs_f64(number as f64 / per_second);
        tokio::time::sleep_until(due.into()).await;
        if over() {
            break;
        }
        if open.len() >= open_max
            && let Some(done) = open.join_next().await
        {
            all.push(done??);
        }
        while let Some(done) = open.try_join_next() {
            all.push(done??);
        }
        let late = due.elapsed();
        let from = if late > TIMER_SLACK { due } else { due + late };
        let called = operation(number, from);
        open.spawn(async move {
            called.await?;
            Ok(Paced { from, took: from.elapsed() })
        });
    }
    while let Some(done) = open.join_next().await {
        all.push(done??);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn what_is_done_within_a_time_is_numbered_without_a_gap() {
        let done: Arc<std::sync::Mutex<Vec<u64>>> = Arc::default();
        let own = done.clone();
        let operation = move |_, number| {
            let done = own.clone();
            async move {
                done.lock().unwrap().push(number);
                tokio::task::yield_now().await;
                Ok(())
            }
        };
        let until = Until::Time(Duration::from_millis(50));
        let measured = closed_loop_of(Vec::new(), 64, until, operation).await.unwrap();
        let mut done = std::mem::take(&mut *done.lock().unwrap());
        done.sort_unstable();
        assert!(done.iter().copied().eq(0..measured.operations), "{done:?}");
    }

    #[tokio::test]
    async fn what_waits_for_its_turn_counts_from_when_it_was_due() {
        // One at a time, each of 20 ms, at 100 a second: the tenth waits for nine before it.
        let begun = Instant::now();
        let over = || begun.elapsed() >= Duration::from_millis(100);
        let told = std::sync::Mutex::new(Vec::new());
        let operation = |_, from: Instant| {
            told.lock().unwrap().push(from);
            tokio::time::sleep(Duration::from_millis(20)).map(Ok)
        };
        let all = paced(100.0, over, 1, operation).await.unwrap();
        let from: Vec<Instant> = all.iter().map(|paced| paced.from).collect();
        assert_eq!(*told.lock().unwrap(), from, "both count from the same moment");
        for (number, paced) in (0..).zip(&all) {
            let waits = Duration::from_millis(10) * number;
            assert!(paced.from >= begun + waits && paced.from <= from[0] + waits + TIMER_SLACK);
            assert!(paced.took + TIMER_SLACK >= Duration::from_millis(20) + waits);
        }
    }
}
