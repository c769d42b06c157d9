//! W4: watches. How long a change takes to a watcher, and how many events arrive at full speed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;

use super::{LONG_TTL, Setting};
use crate::cluster::Cluster;
use crate::item::{Item, SERVICE_SIZE};
use crate::load::{Cpu, CpuMark, Latencies, Until, closed_loop, latencies, paced, record};
use crate::sample::{Better, Samples};
use crate::wire::{Connection, Event, Json, Peer, WatchStream};

const GROUP: &str = "watch";
/// The instances that change, in turn.
const INSTANCES: u64 = SERVICE_SIZE;
const SECONDS: f64 = 10.0;
/// Changes under way at once when they come at a rate. Fewer than instances, so that no two are of
/// one instance.
const OPEN_MAX: usize = 64;
const WRITERS: usize = 16;
/// Watches that are opened at once.
const OPENING: usize = 32;
/// After the last change, every watcher has the last state of everything.
const COMPLETE_WITHIN: Duration = Duration::from_secs(120);
/// Instances are registered with stamp 0. A change to what is there already would be none.
const FIRST_STAMP: u64 = INSTANCES;
/// From when changes count, by their stamps modulo this: more than are ever under way.
const SENT_MAX: usize = 1 << 22;

/// The number of watchers, and how fast things change.
pub(super) struct Shape {
    pub(super) name: &'static str,
    pub(super) watchers: usize,
    pub(super) connections: usize,
    /// None: as fast as the writers can.
    pub(super) per_second: Option<f64>,
    /// Watchers have HTTP, and each a connection of its own.
    pub(super) http: bool,
}

pub(super) const fn shape(
    name: &'static str,
    watchers: usize,
    connections: usize,
    per_second: Option<f64>,
) -> Shape {
    Shape { name, watchers, connections, per_second, http: false }
}

const SHAPES: [Shape; 6] = [
    shape("200/s to 1", 1, 1, Some(200.0)),
    shape("20/s to 1,000, own conns", 1000, 1000, Some(20.0)),
    shape("200/s to 1,000, own conns", 1000, 1000, Some(200.0)),
    shape("full to 1", 1, 1, None),
    shape("full to 1,000, 30 conns", 1000, 30, None),
    shape("full to 1,000, own conns", 1000, 1000, None),
];

impl Shape {
    pub(super) const fn by_http(
        name: &'static str,
        watchers: usize,
        per_second: Option<f64>,
    ) -> Self {
        Self { http: true, ..shape(name, watchers, watchers, per_second) }
    }

    /// The number of watchers makes the shape, so it shrinks last.
    pub(super) fn scaled(&self, scale: f64) -> Self {
        let few = |count: usize| ((count as f64 * scale * 10.0) as usize).clamp(1, count);
        let (watchers, connections) = (few(self.watchers), few(self.connections));
        Self { watchers, connections, ..*self }
    }
}

/// What one watcher saw.
struct Seen {
    /// From when a change was due, or was sent at full speed, to its arrival.
    latencies: Latencies,
    /// Events that arrived while changes were made.
    in_time: u64,
    /// All events of the changes that are measured.
    events: u64,
    last: Instant,
}

/// What writers and watchers share.
struct Feed {
    begun: Instant,
    /// From when a change's latency counts, in microseconds since `begun`.
    sent: Vec<AtomicU64>,
    /// When the changes that are measured end, in microseconds since `begun`.
    deadline: AtomicU64,
    /// Changes with stamps from here on only end the watches.
    ended_by: AtomicU64,
}

/// What came of it.
pub(super) struct Driven {
    all: Seen,
    changes: u64,
    /// How long changes were made.
    written: Duration,
    /// Until the last watcher had the last of them.
    until_last: Duration,
    cpu: Cpu,
}

pub(super) async fn run(setting: &Setting<'_>, peer: Peer, samples: &mut Samples) -> Result<()> {
    for shape in &SHAPES {
        one(setting, peer, shape, samples).await.with_context(|| shape.name.to_owned())?;
    }
    Ok(())
}

async fn one(
    setting: &Setting<'_>,
    peer: Peer,
    shape: &Shape,
    samples: &mut Samples,
) -> Result<()> {
    let shape = &shape.scaled(setting.scale);
    let (cluster, connections) = setting.cluster(peer).await?;
    let leases = prepare(setting, &cluster, &connections).await?;
    let time = setting.seconds(SECONDS);
    let driven = drive(&cluster, &connections, shape, &leases, time).await?;
    add(samples, "W4", shape, &driven);
    Ok(())
}

/// Registers what is to change; the leases.
pub(super) async fn prepare(
    setting: &Setting<'_>,
    cluster: &Cluster,
    connections: &[Connection],
) -> Result<Arc<[u64]>> {
    let leases = setting.prepare(cluster, connections, GROUP, INSTANCES, LONG_TTL).await?;
    Ok(leases.into())
}

/// Opens the watches, makes the changes, and waits until every watcher has the last state.
pub(super) async fn drive(
    cluster: &Cluster,
    connections: &[Connection],
    shape: &Shape,
    leases: &Arc<[u64]>,
    time: Duration,
) -> Result<Driven> {
    let feed = Arc::new(Feed::new(u64::MAX));
    let mut watchers = watch(cluster, shape, &feed).await?;
    feed.deadline.store(feed.now() + u64::try_from(time.as_micros())?, Ordering::Relaxed);
    let (mark, begun) = (CpuMark::set(cluster)?, Instant::now());
    let changes = write(cluster, connections, shape, &feed, leases).await?;
    let (cpu, written) = (mark.used()?, begun.elapsed());
    let end = FIRST_STAMP + changes;
    feed.ended_by.store(end, Ordering::Relaxed);
    for stamp in end..end + INSTANCES {
        change(connections, &feed, leases, stamp, Instant::now()).await?;
    }
    let mut all = Seen { latencies: latencies(), in_time: 0, events: 0, last: begun };
    while let Some(seen) = watchers.join_next().await {
        let seen = seen??;
        all.latencies.add(seen.latencies)?;
        (all.in_time, all.events) = (all.in_time + seen.in_time, all.events + seen.events);
        all.last = all.last.max(seen.last);
    }
    ensure!(changes > 0 && all.events > 0, "nothing was seen");
    let until_last = (all.last - begun).max(written);
    Ok(Driven { all, changes, written, until_last, cpu })
}

/// Makes so many changes, and then opens a stream by HTTP that is told all of them; how long that
/// took.
pub(super) async fn replay(
    cluster: &Cluster,
    connections: &[Connection],
    leases: &Arc<[u64]>,
    changes: u64,
) -> Result<Duration> {
    let end = FIRST_STAMP + changes;
    let feed = Arc::new(Feed::new(end));
    let (all, own, leases) = (connections.to_vec(), feed.clone(), leases.clone());
    closed_loop(cluster, WRITERS, Until::Count(changes + INSTANCES), move |_, number| {
        let (all, feed, leases) = (all.clone(), own.clone(), leases.clone());
        async move { change(&all, &feed, &leases, FIRST_STAMP + number, Instant::now()).await }
    })
    .await?;
    cluster.caught_up().await?;
    let begun = Instant::now();
    let stream = Json::open(cluster.peer, &cluster.nodes[0].http).await?.replay(GROUP).await?;
    let seen = follow(WatchStream::Lines(stream), feed).await?;
    // Those that registered the instances come before them.
    let whole = changes + INSTANCES;
    ensure!(seen.events == whole, "{} of {whole} changes came", seen.events);
    Ok(seen.last - begun)
}

impl Driven {
    /// That arrived while changes were made.
    pub(super) fn events_per_second(&self) -> f64 {
        self.all.in_time as f64 / self.written.as_secs_f64()
    }

    /// Processor time of all servers for each event that arrived while changes were made, in
    /// microseconds.
    pub(super) fn server_cpu_each_us(&self) -> f64 {
        let servers: Duration = self.cpu.servers.iter().sum();
        servers.as_secs_f64() * 1e6 / self.all.in_time.max(1) as f64
    }
}

pub(super) fn add(samples: &mut Samples, workload: &'static str, shape: &Shape, driven: &Driven) {
    let mut variant = samples.of(workload, shape.name);
    let (all, written) = (&driven.all, driven.written.as_secs_f64());
    let changes = driven.changes as f64;
    if shape.per_second.is_some() {
        variant.latencies(&all.latencies);
        // Until the last watcher had the last one: a rate that is not carried shows here.
        let carried = changes / driven.until_last.as_secs_f64();
        variant.add("changes carried", "1/s", Better::Neither, carried);
    } else {
        variant.add("events", "1/s", Better::Higher, driven.events_per_second());
        variant.add("changes", "1/s", Better::Neither, changes / written);
        variant.latencies(&all.latencies);
    }
    let share = all.events as f64 / (changes * shape.watchers as f64) * 100.0;
    variant.add("changes seen one by one", "%", Better::Neither, share);
    variant.add("server cpu each", "us", Better::Lower, driven.server_cpu_each_us());
    let share = driven.cpu.client.as_secs_f64() / written * 100.0;
    variant.add("client cpu", "% of a core", Better::Neither, share);
}

/// Opens the watches, spread over connections and those over the nodes.
async fn watch(
    cluster: &Cluster,
    shape: &Shape,
    feed: &Arc<Feed>,
) -> Result<JoinSet<Result<Seen>>> {
    let mut connections = Vec::new();
    let node = |at: usize| &cluster.nodes[at % cluster.nodes.len()];
    for at in (0..shape.connections).filter(|_| !shape.http) {
        connections.push(Connection::open(cluster.peer, &node(at).address).await?);
    }
    let (mut opening, mut opened) = (JoinSet::new(), Vec::new());
    for at in 0..shape.watchers {
        if opening.len() >= OPENING {
            opened.extend(opening.join_next().await);
        }
        if shape.http {
            let connection = Json::open(cluster.peer, &node(at).http).await?;
            opening.spawn(async move { Ok(WatchStream::Lines(connection.watch(GROUP).await?)) });
        } else {
            let connection = connections[at % connections.len()].clone();
            opening.spawn(async move { connection.watch(GROUP).await });
        }
    }
    while let Some(stream) = opening.join_next().await {
        opened.push(stream);
    }
    let mut watchers = JoinSet::new();
    for stream in opened {
        watchers.spawn(follow(stream??, feed.clone()));
    }
    Ok(watchers)
}

/// Makes changes until the deadline; how many.
async fn write(
    cluster: &Cluster,
    connections: &[Connection],
    shape: &Shape,
    feed: &Arc<Feed>,
    leases: &Arc<[u64]>,
) -> Result<u64> {
    let (all, own, leases) = (connections.to_vec(), feed.clone(), leases.clone());
    let write = move |number: u64, from: Instant| {
        let (all, feed, leases) = (all.clone(), own.clone(), leases.clone());
        async move { change(&all, &feed, &leases, FIRST_STAMP + number, from).await }
    };
    match shape.per_second {
        Some(rate) => {
            let over = || feed.now() >= feed.deadline.load(Ordering::Relaxed);
            Ok(paced(rate, over, OPEN_MAX, write).await?.len() as u64)
        }
        None => {
            let left = feed.deadline.load(Ordering::Relaxed).saturating_sub(feed.now());
            let until = Until::Time(Duration::from_micros(left));
            let written = closed_loop(cluster, WRITERS, until, move |_, number| {
                write(number, Instant::now())
            })
            .await?;
            Ok(written.operations)
        }
    }
}

/// Makes a change; watchers count its latency from `from`.
async fn change(
    connections: &[Connection],
    feed: &Feed,
    leases: &[u64],
    stamp: u64,
    from: Instant,
) -> Result<()> {
    let number = stamp % INSTANCES;
    let item = Item::new(GROUP, number, stamp);
    feed.sent[stamp as usize % SENT_MAX].store(feed.at(from), Ordering::Relaxed);
    // The same instance always by the same connection: its changes come in order.
    connections[number as usize % connections.len()].change(&item, leases[number as usize]).await
}

impl Feed {
    fn new(ended_by: u64) -> Self {
        Self {
            begun: Instant::now(),
            sent: (0..SENT_MAX).map(|_| AtomicU64::new(0)).collect(),
            deadline: AtomicU64::new(u64::MAX),
            ended_by: AtomicU64::new(ended_by),
        }
    }

    fn now(&self) -> u64 {
        self.at(Instant::now())
    }

    fn at(&self, moment: Instant) -> u64 {
        moment.saturating_duration_since(self.begun).as_micros() as u64
    }
}

/// Follows until it has the last change of every instance.
async fn follow(mut stream: WatchStream, feed: Arc<Feed>) -> Result<Seen> {
    let mut seen = Seen { latencies: latencies(), in_time: 0, events: 0, last: Instant::now() };
    let mut view = vec![0; INSTANCES as usize];
    let mut events: Vec<Event> = Vec::new();
    loop {
        let next = tokio::time::timeout(COMPLETE_WITHIN, stream.next(&mut events));
        next.await.context("a watcher did not get the last changes")??;
        let (now, deadline) = (feed.now(), feed.deadline.load(Ordering::Relaxed));
        let ended_by = feed.ended_by.load(Ordering::Relaxed);
        for event in events.drain(..) {
            let stamp = event.stamp.context("nothing is removed here")?;
            let last = &mut view[event.number as usize];
            ensure!(stamp >= *last, "a watcher got older states after newer ones");
            *last = stamp;
            if stamp < ended_by {
                seen.events += 1;
                seen.in_time += u64::from(now <= deadline);
                seen.last = Instant::now();
                let sent = feed.sent[stamp as usize % SENT_MAX].load(Ordering::Relaxed);
                record(&mut seen.latencies, Duration::from_micros(now.saturating_sub(sent)));
            }
        }
        if ended_by != u64::MAX && view.iter().all(|stamp| *stamp >= ended_by) {
            return Ok(seen);
        }
    }
}
