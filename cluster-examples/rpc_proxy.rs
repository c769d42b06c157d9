//! A load-balancing gRPC proxy. Workers register with how much they can do at once, and publish how
//! much of that is taken; the proxy passes each call on to the one with most room, says UNAVAILABLE
//! at once when there is none, and drains when it is stopped. Ends by itself, and with an error if
//! a call failed that should not have. While `quorate dev` runs:
//!
//!     cargo run --example rpc_proxy
//!
//! QUORATE_NODES=host:port,host:port,... names another cluster. Workers, proxies and callers have a
//! client each, as they would as processes; killing a node of the registry meanwhile makes no
//! difference.

#![allow(clippy::print_stdout, reason = "an example tells its story")]

#[path = "shared/calls.rs"]
mod calls;
#[path = "shared/registry.rs"]
mod registry;
#[path = "shared/text.rs"]
mod text;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use calls::Calls;
use futures_util::FutureExt;
use quorate_client::{
    Code, Discovery, Error, Instance, InstanceBuilder, InstanceStatus, RegistrationHandle, Served,
};
use registry::{PATIENCE, connect, shows};
use text::{Connections, Text};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;
use tonic::transport::Channel;

const NAMESPACE: &str = "rpc-proxy-example";
/// A worker publishes its load at most this often. (The proxy knows its own calls; this is for the
/// calls of others.)
const PUBLISH_EVERY: Duration = Duration::from_secs(1);
/// A stopped worker goes on for this long after it is deregistered.
const GRACE: Duration = Duration::from_millis(500);
/// How long the proxy looks for a worker with room.
const ROOM_WITHIN: Duration = Duration::from_secs(2);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let first = Proxy::start(1).await?;
    let client = connect(NAMESPACE).await?;
    let proxies = client.discover("proxy")?;
    shows(&proxies, |proxies| proxies.len() == 1).await?;
    let channel = client.channel("proxy")?;
    println!("A proxy without workers");
    nobody(&channel).await?;

    println!("\nThree workers start, for 1, 2 and 4 calls at once");
    let mut workers = Vec::new();
    for slots in [1, 2, 4] {
        workers.push(Worker::start(slots).await?);
    }
    let view = first.workers.clone();
    shows(&view, |workers| workers.len() == 3).await?;
    let shares = shares(&channel, &workers, 7, 40).await?;
    println!("  7 callers, 280 calls, 0 failed: the workers had {shares:?}");
    ensure!(shares[0] < shares[1] && shares[1] < shares[2], "workers with more room do more");

    println!("\nWorker 4 is busy with something else, and publishes that it has no room");
    let busy = workers[2].fill().await?;
    shows(&view, |workers| workers.iter().any(|w| w.id == "worker-4" && w.load == w.weight))
        .await?;
    left_alone(&channel, &workers).await?;
    drop(busy);
    println!("Worker 4 says that it does not serve; it stays registered");
    workers[2].handle.set_status(InstanceStatus::OutOfService).await?;
    shows(&view, |workers| workers.len() == 2).await?;
    left_alone(&channel, &workers).await?;
    workers[2].handle.set_status(InstanceStatus::Up).await?;
    shows(&view, |workers| workers.len() == 3).await?;

    println!("\nConstant calls, and everybody is stopped in turn");
    let (mut calls, text) = (Calls::default(), Text::new(channel.clone()));
    calls.start(3, move || {
        let mut text = text.clone();
        async move {
            text.say("x").await.context("a call failed")?;
            Ok(())
        }
    });
    calls.more(30).await?;
    workers.remove(0).stop().await?;
    println!("  worker 1 has stopped");
    calls.more(30).await?;
    let second = Proxy::start(2).await?;
    shows(&proxies, |proxies| proxies.len() == 2).await?;
    println!("  a second proxy has started");
    calls.more(30).await?;
    println!("  the first one: {}", first.stop().await?);
    calls.more(30).await?;
    println!("  {} calls, 0 failed", calls.end().await?);

    println!("\nThe last workers stop");
    for worker in workers {
        worker.stop().await?;
    }
    nobody(&channel).await?;
    println!("  the second proxy: {}", second.stop().await?);
    Ok(())
}

/// How many calls a worker takes at once, and how many of these places are taken.
struct Room {
    slots: u32,
    load: watch::Sender<u32>,
}

/// A part of the room, until it is dropped.
struct Taken(Arc<Room>, u32);

impl Room {
    fn take(self: &Arc<Self>, count: u32) -> Option<Taken> {
        let take = |load: &mut u32| {
            let fits = *load + count <= self.slots;
            *load += if fits { count } else { 0 };
            fits
        };
        self.load.send_if_modified(take).then(|| Taken(self.clone(), count))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.load.send_modify(|load| *load -= self.1);
    }
}

/// An instance that does the work.
struct Worker {
    handle: Arc<RegistrationHandle>,
    room: Arc<Room>,
    served: Arc<AtomicU32>,
    stop: oneshot::Sender<()>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    publisher: AbortOnDropHandle<()>,
}

impl Worker {
    /// Binds, serves, registers, and from then on publishes its load.
    async fn start(slots: u32) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let uri = format!("http://{}", listener.local_addr()?);
        let room = Arc::new(Room { slots, load: watch::Sender::new(0) });
        let served = Arc::<AtomicU32>::default();
        let (rooms, counts) = (room.clone(), served.clone());
        let answer = move |text: String| {
            let (room, served) = (rooms.clone(), counts.clone());
            async move {
                let full = || Status::resource_exhausted("no room");
                let _taken = room.take(1).ok_or_else(full)?;
                sleep(Duration::from_millis(20)).await;
                served.fetch_add(1, Ordering::Relaxed);
                Ok(format!("done: {text}"))
            }
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = stopped.map(|_told_or_dropped| ()).boxed();
        let server = tokio::spawn(text::serve(listener, stopped, answer));
        let me = InstanceBuilder::new("worker", format!("worker-{slots}")).endpoint("grpc", uri);
        let handle = connect(NAMESPACE).await?.register(me.weight(slots)).await?;
        let handle = Arc::new(handle);
        let publisher = AbortOnDropHandle::new(tokio::spawn(publish(handle.clone(), room.clone())));
        Ok(Self { handle, room, served, stop, server, publisher })
    }

    /// Takes all of its room, when it is free.
    async fn fill(&self) -> anyhow::Result<Taken> {
        let mut load = self.room.load.subscribe();
        timeout(PATIENCE, load.wait_for(|load| *load == 0)).await??;
        self.room.take(self.room.slots).context("no call is under way now")
    }

    /// Leaves, serves callers that do not know of it yet, and stops when the calls in flight are
    /// done. (`Client::serve` does the same by itself; here the handle is needed for publishing.)
    async fn stop(self) -> anyhow::Result<()> {
        drop(self.publisher);
        self.handle.set_status(InstanceStatus::Draining).await?;
        self.handle.deregister().await?;
        sleep(GRACE).await;
        drop(self.stop);
        timeout(PATIENCE, self.server).await.context("a worker does not stop")???;
        Ok(())
    }
}

/// Reports to the registry how much is taken, when that has changed. An error is none: the change
/// stays wanted, and the handle makes it when the registry can be reached.
async fn publish(handle: Arc<RegistrationHandle>, room: Arc<Room>) {
    let mut load = room.load.subscribe();
    while load.changed().await.is_ok() {
        let newest = *load.borrow_and_update();
        let _made_later = handle.set_load(newest).await;
        sleep(PUBLISH_EVERY).await;
    }
}

type Ended = Result<Served<Result<(), tonic::transport::Error>>, Error>;

/// The proxy's process.
struct Proxy {
    /// What it sees.
    workers: Discovery,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Ended>,
}

impl Proxy {
    async fn start(number: u32) -> anyhow::Result<Self> {
        let client = connect(NAMESPACE).await?;
        let workers = client.discover("worker")?;
        timeout(PATIENCE, workers.synced()).await.context("no registry answers; is it running?")?;
        let router = Arc::new(Router {
            workers: workers.clone(),
            connections: Connections::default(),
            loads: Mutex::default(),
        });
        let answer = move |text| {
            let router = router.clone();
            async move { router.pass_on(text).await }
        };
        let me = InstanceBuilder::new("proxy", format!("proxy-{number}"));
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = client.serve(me.endpoint("grpc", "http://{addr}")).grace(GRACE);
        let serving = serving.until(stopped.map(|_told_or_dropped| ()));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let run = serving.run(listener, |listener, stop| text::serve(listener, stop, answer));
        Ok(Self { workers, stop, ended: tokio::spawn(run) })
    }

    /// As by SIGTERM.
    async fn stop(self) -> anyhow::Result<String> {
        drop(self.stop);
        let served = timeout(PATIENCE, self.ended).await.context("a proxy does not stop")???;
        ensure!(matches!(served.output, Some(Ok(()))) && served.deregistered.is_ok(), "{served}");
        Ok(served.to_string())
    }
}

/// Passes calls on to workers.
struct Router {
    workers: Discovery,
    connections: Connections,
    loads: Mutex<HashMap<String, Load>>,
}

/// What is known of a worker's load.
#[derive(Default)]
struct Load {
    /// Calls from here.
    in_flight: u32,
    /// What it published last, without the calls from here; and when that was.
    others: u32,
    published: u64,
}

/// A call that is passed on, until it is dropped.
struct InFlight<'a>(&'a Router, String);

impl Router {
    /// A call that is refused for want of room goes to another worker, as long as there is time.
    async fn pass_on(&self, text: String) -> Result<String, Status> {
        let deadline = Instant::now() + ROOM_WITHIN;
        let mut full = Vec::new();
        loop {
            let (worker, _in_flight) = self.choose(&full)?;
            match self.connections.to(&worker)?.say(text.clone()).await {
                Err(status)
                    if status.code() == Code::ResourceExhausted && Instant::now() < deadline =>
                {
                    full.push(worker.id.clone());
                    sleep(Duration::from_millis(5)).await;
                }
                answer => return answer,
            }
        }
    }

    /// The worker with most room, of the ones that were not full, if there are such.
    fn choose(&self, full: &[String]) -> Result<(Arc<Instance>, InFlight<'_>), Status> {
        let none = |error: Error| Status::unavailable(error.to_string());
        let workers = self.workers.usable_now().map_err(none)?;
        let mut loads = self.loads();
        let room = |worker: &&Arc<Instance>| {
            let load = loads.entry(worker.id.clone()).or_default();
            if load.published != worker.modify_revision {
                load.published = worker.modify_revision;
                load.others = worker.load.saturating_sub(load.in_flight);
            }
            let left = i64::from(worker.weight) - i64::from(load.others + load.in_flight);
            (!full.contains(&worker.id), left)
        };
        let worker = workers.iter().max_by_key(room).expect("invariant: usable is not empty");
        loads.entry(worker.id.clone()).or_default().in_flight += 1;
        Ok((worker.clone(), InFlight(self, worker.id.clone())))
    }

    fn loads(&self) -> MutexGuard<'_, HashMap<String, Load>> {
        self.loads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.loads().entry(self.1.clone()).or_default().in_flight -= 1;
    }
}

/// A call that no worker can answer is refused at once, and the refusal says why.
async fn nobody(channel: &Channel) -> anyhow::Result<()> {
    let begun = Instant::now();
    let Err(status) = Text::new(channel.clone()).say("x").await else {
        anyhow::bail!("who has answered?");
    };
    println!("  {:?}: {}", status.code(), status.message());
    ensure!(status.code() == Code::Unavailable && begun.elapsed() < Duration::from_secs(3));
    Ok(())
}

/// Makes `calls` calls from each of `callers` callers; how many calls each worker had.
async fn shares(
    channel: &Channel,
    workers: &[Worker],
    callers: usize,
    calls: usize,
) -> anyhow::Result<Vec<u32>> {
    let served = || workers.iter().map(|worker| worker.served.load(Ordering::Relaxed));
    let before: Vec<u32> = served().collect();
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let mut text = Text::new(channel.clone());
        tasks.spawn(async move {
            for _ in 0..calls {
                text.say("x").await?;
            }
            Ok::<_, Status>(())
        });
    }
    for ended in tasks.join_all().await {
        ended?;
    }
    Ok(served().zip(before).map(|(after, before)| after - before).collect())
}

/// Calls go to the first two workers, and none to the third.
async fn left_alone(channel: &Channel, workers: &[Worker]) -> anyhow::Result<()> {
    let shares = shares(channel, workers, 3, 10).await?;
    println!("  3 callers, 30 calls, 0 failed: the workers had {shares:?}");
    ensure!(shares[2] == 0, "it should not be called");
    Ok(())
}
