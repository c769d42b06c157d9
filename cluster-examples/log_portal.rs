//! A portal that requires a grading and a log service, and a grading service that requires the log
//! service. Each says so when it registers, starts whether or not they are there, and learns at
//! once when one comes, changes or goes. Ends by itself, and with an error if a request failed that
//! should not have, or a line was lost. At the end a check finds an archive that hangs. While
//! `quorate dev --health-checks-allow 127.0.0.0/8` runs (or without, and then without the check):
//!
//!     cargo run --example log_portal
//!
//! QUORATE_NODES=host:port,host:port,... names another cluster. Every service has a client of its
//! own, as it would as a process; killing a node of the registry meanwhile makes no difference.

#![allow(clippy::print_stdout, reason = "an example tells its story")]

#[path = "shared/calls.rs"]
mod calls;
#[path = "shared/registry.rs"]
mod registry;
#[path = "shared/text.rs"]
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use calls::Calls;
use futures_util::FutureExt;
use quorate_client::{
    Balancer, CallError, Caller, Client, Code, Discovery, DiscoveryEvent, Error, FailMode, Fault,
    Health, HealthCheck, InstanceBuilder, Listener, Policy, Selector, Served,
};
use registry::{PATIENCE, connect, shows};
use text::{Connections, Text};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

const NAMESPACE: &str = "log-portal-example";
/// Dependants hear of a change by then: mostly within milliseconds, but the registry may be
/// electing a new leader.
const AT_ONCE: Duration = Duration::from_secs(5);
/// The registry makes its first check by then, if it makes any.
const CHECKED_WITHIN: Duration = Duration::from_secs(10);
/// Lines of a service that wait for the log service.
const LINES_MAX: usize = 10_000;

/// What the services keep beyond their runs, as in databases.
#[derive(Default)]
struct Stores {
    grades: Mutex<BTreeMap<String, u32>>,
    /// Lines have numbers, so that one that was sent twice is kept once.
    log: Mutex<BTreeSet<String>>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let stores = Arc::<Stores>::default();
    let client = connect(NAMESPACE).await?;
    println!("The portal starts, before anything that it requires");
    let portal = Service::portal().await?;
    shows(&client.discover("portal")?, |portals| portals.len() == 1).await?;
    let mut browser = Text::new(client.channel("portal")?);
    let refused = browser.say("ann 5").await.err().context("who has answered?")?;
    println!("  {:?}: {}", refused.code(), refused.message());
    ensure!(refused.code() == Code::Unavailable);

    println!("\nThe grading service starts: the portal can do its work; nobody logs it yet");
    let grading = Service::grading(&stores).await?;
    heard(&[&portal], "+ grading-1").await?;
    println!("  {}", enter(&mut browser, "ann 5").await?);

    println!("\nThe log service starts, and gets the lines that have waited for it");
    let log_1 = Service::log("log-1", &stores).await?;
    heard(&[&portal, &grading], "+ log-1").await?;
    logged(&stores, 2).await?;
    let dependents = client.dependents("log").await?;
    let dependents: Vec<_> = dependents.iter().map(|i| i.id.as_str()).collect();
    println!("  what depends on it: {}", dependents.join(", "));
    ensure!(dependents == ["grading-1", "portal-1"]);

    let refused = client.register(InstanceBuilder::new("log", "log-without-endpoint")).await;
    ensure!(matches!(&refused, Err(Error::Rejected { .. })), "{refused:?}");

    println!("\nConstant requests, while services come, change and go");
    let mut calls = Calls::default();
    calls.start(3, move || {
        let mut browser = browser.clone();
        async move { enter(&mut browser, "bob 3").await.map(drop) }
    });
    calls.more(30).await?;
    let log_2 = Service::log("log-2", &stores).await?;
    heard(&[&portal, &grading], "+ log-2").await?;
    calls.more(30).await?;
    log_1.stop().await?;
    heard(&[&portal, &grading], "- log-1").await?;
    calls.more(30).await?;
    println!("  grading-1 is replaced by a new run, which takes over while the old one finishes");
    let replacing = Service::grading(&stores).await?;
    heard(&[&portal], "~ grading-1").await?;
    calls.more(30).await?;
    let replaced = grading.stop().await?;
    ensure!(matches!(replaced.deregistered, Err(Error::Superseded { .. })), "{replaced}");
    calls.more(30).await?;
    let requests = calls.end().await?;
    println!("  {requests} requests, 0 failed");
    logged(&stores, 2 * (requests as usize + 1)).await?;
    println!("  {} lines logged, none lost", 2 * (requests + 1));

    for service in [&portal, &replacing] {
        let heard = service.heard.borrow();
        ensure!(
            !heard.iter().any(|change| change.contains("without")),
            "a refusal leaves no trace"
        );
    }
    ensure!(!portal.heard.borrow().contains(&"- grading-1".to_owned()), "it was never gone");
    checked(&client).await?;
    for service in [portal, replacing, log_2] {
        service.stop().await?.deregistered?;
    }
    println!("\nAll services have stopped");
    Ok(())
}

/// An instance that says nothing when it stops working: the registry finds out, and its callers
/// learn it.
async fn checked(client: &Client) -> anyhow::Result<()> {
    println!("\nThe archive declares an active check, and stops listening without a word");
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let check = HealthCheck::tcp().every(Duration::from_secs(1)).failures_before_critical(2);
    let me =
        InstanceBuilder::new("archive", "archive-1").endpoint("tcp", format!("tcp://{address}"));
    let registration = client.register(me.check(check)).await?;
    let whose = |healths: &[Health]| {
        client.discover(Selector::service("archive").healths(healths.iter().copied()))
    };
    let (passing, any) = (whose(&[Health::Passing])?, whose(&[])?);
    if timeout(CHECKED_WITHIN, shows(&passing, |archives| archives.len() == 1)).await.is_err() {
        println!("  the nodes make no checks; they do with --health-checks-allow 127.0.0.0/8");
        return Ok(registration.deregister().await?);
    }
    println!("  archive-1 passes");
    drop(listener);
    let callable = client.discover("archive")?;
    shows(&callable, |archives| archives.is_empty()).await?;
    ensure!(any.current().len() == 1, "a failed check removes nobody");
    println!("  it fails: callers leave it out, and it stays registered");
    let _listener = TcpListener::bind(address).await?;
    shows(&callable, |archives| archives.len() == 1).await?;
    println!("  it passes again, by the same registration");
    Ok(registration.deregister().await?)
}

/// Enters a grade at the portal.
async fn enter(browser: &mut Text, grade: &str) -> anyhow::Result<String> {
    browser.say(grade).await.context("the portal cannot")
}

/// Waits until these services have heard of a change, which is to be soon.
async fn heard(services: &[&Service], change: &str) -> anyhow::Result<()> {
    let begun = Instant::now();
    for service in services {
        let mut heard = service.heard.subscribe();
        let heard = heard.wait_for(|heard| heard.iter().any(|heard| heard == change));
        let in_time = timeout(AT_ONCE, heard).await;
        in_time.with_context(|| format!("{} has not heard: {change}", service.id))??;
    }
    let ids: Vec<_> = services.iter().map(|service| service.id).collect();
    println!("  {change}: heard by {} {} ms later", ids.join(", "), begun.elapsed().as_millis());
    Ok(())
}

/// Waits until there are this many lines.
async fn logged(stores: &Stores, lines: usize) -> anyhow::Result<()> {
    let wait = async {
        while lock(&stores.log).len() < lines {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let late = || format!("{} lines, expected {lines}", lock(&stores.log).len());
    timeout(PATIENCE, wait).await.with_context(late)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Output = Result<(), tonic::transport::Error>;

/// The process of a service.
struct Service {
    id: &'static str,
    /// Changes of what it requires, in short.
    heard: Arc<watch::Sender<Vec<String>>>,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<Served<Output>, Error>>,
    _following: Vec<AbortOnDropHandle<()>>,
}

impl Service {
    async fn log(id: &'static str, stores: &Arc<Stores>) -> anyhow::Result<Self> {
        let stores = stores.clone();
        let answer = move |line: String| {
            lock(&stores.log).insert(line);
            std::future::ready(Ok(String::new()))
        };
        Self::start(&connect(NAMESPACE).await?, "log", id, &[], answer).await
    }

    async fn grading(stores: &Arc<Stores>) -> anyhow::Result<Self> {
        let (client, stores) = (connect(NAMESPACE).await?, stores.clone());
        let log = Log::of(&client, "grading-1")?;
        let answer = move |text: String| {
            let (stores, log) = (stores.clone(), log.clone());
            async move {
                let (name, grade) = text.split_once(' ').unwrap_or((&text, ""));
                let grade = grade.parse().map_err(|_| Status::invalid_argument("NAME GRADE"))?;
                lock(&stores.grades).insert(name.to_owned(), grade);
                log.line(format!("{name} has {grade}")).await?;
                Ok(format!("{name} has {grade}"))
            }
        };
        Self::start(&client, "grading", "grading-1", &["log"], answer).await
    }

    async fn portal() -> anyhow::Result<Self> {
        let client = connect(NAMESPACE).await?;
        let log = Log::of(&client, "portal-1")?;
        let gradings = Arc::new(Stub::new(client.discover("grading")?));
        let answer = move |text: String| {
            let (gradings, log) = (gradings.clone(), log.clone());
            async move {
                let entered = gradings.say(&text).await.map_err(|error| match error {
                    CallError::NoInstance(error) => Status::unavailable(error.to_string()),
                    CallError::Failed { last, .. } => last,
                    late => Status::deadline_exceeded(late.to_string()),
                })?;
                log.line("a page was shown".to_owned()).await?;
                Ok(entered)
            }
        };
        Self::start(&client, "portal", "portal-1", &["grading", "log"], answer).await
    }

    async fn start<A, F>(
        client: &Client,
        service: &str,
        id: &'static str,
        requires: &[&str],
        answer: A,
    ) -> anyhow::Result<Self>
    where
        A: Fn(String) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<String, Status>> + Send + 'static,
    {
        let me = InstanceBuilder::new(service, id).endpoint("grpc", "http://{addr}");
        let me = requires.iter().fold(me, |me, required| me.requires(*required));
        let heard = Arc::<watch::Sender<Vec<String>>>::default();
        let mut following = Vec::new();
        for required in requires {
            let view = client.discover(*required)?;
            let synced = timeout(PATIENCE, view.synced()).await;
            synced.context("no registry answers; is it running?")?;
            let following_one = tokio::spawn(follow(id, view.listen(), heard.clone()));
            following.push(AbortOnDropHandle::new(following_one));
        }
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = client.serve(me).until(stopped.map(|_told_or_dropped| ()));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let run = serving.run(listener, |listener, stop| text::serve(listener, stop, answer));
        Ok(Self { id, heard, stop, ended: tokio::spawn(run), _following: following })
    }

    /// As by SIGTERM.
    async fn stop(self) -> anyhow::Result<Served<Output>> {
        drop(self.stop);
        let served =
            timeout(PATIENCE, self.ended).await.context("a service does not stop")???;
        ensure!(matches!(served.output, Some(Ok(()))), "{served}");
        Ok(served)
    }
}

/// What comes, changes and goes of something that a service requires. (All views of a client share
/// one stream.)
async fn follow(id: &str, mut changes: Listener, heard: Arc<watch::Sender<Vec<String>>>) {
    let mut revisions = BTreeMap::new();
    loop {
        let (change, instance) = match changes.next().await {
            DiscoveryEvent::Added(instance) => ("+", instance),
            DiscoveryEvent::Updated(instance) => ("~", instance),
            DiscoveryEvent::Removed { instance, .. } => ("-", instance),
            _ => continue,
        };
        let revision = instance.modify_revision;
        let before = revisions.insert(instance.id.clone(), revision).unwrap_or(0);
        let is_next = revision > before || change == "-" && revision == before;
        assert!(is_next, "{id} hears of {instance:?} after revision {before}");
        heard.send_modify(|heard| heard.push(format!("{change} {}", instance.id)));
    }
}

/// Calls any instance of a service.
struct Stub {
    caller: Caller,
    connections: Connections,
}

impl Stub {
    fn new(view: Discovery) -> Self {
        let caller = Caller::new(Balancer::new(view, Policy::RoundRobin), FailMode::Failover(2));
        Self { caller, connections: Connections::default() }
    }

    async fn say(&self, text: &str) -> Result<String, CallError<Status>> {
        let call = async |instance: Arc<quorate_client::Instance>| {
            self.connections.to(&instance)?.say(text).await.map_err(Fault::Again)
        };
        self.caller.call(call).await
    }
}

/// The way to the log service, whether it is there or not.
#[derive(Clone)]
struct Log {
    id: &'static str,
    lines: mpsc::Sender<String>,
}

impl Log {
    fn of(client: &Client, id: &'static str) -> anyhow::Result<Self> {
        let (lines, waiting) = mpsc::channel(LINES_MAX);
        tokio::spawn(deliver(client.discover("log")?, waiting));
        Ok(Self { id, lines })
    }

    async fn line(&self, text: String) -> Result<(), Status> {
        static NUMBERS: AtomicU32 = AtomicU32::new(0);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let sent = self.lines.send(format!("{number} {}: {text}", self.id)).await;
        sent.map_err(|_closed| Status::internal("lines are not delivered any more"))
    }
}

/// One line after the other, each until it was taken; while there is no log service, until one
/// comes. Ends when the service has ended and all is delivered.
async fn deliver(mut view: Discovery, mut lines: mpsc::Receiver<String>) {
    let logs = Stub::new(view.clone());
    while let Some(line) = lines.recv().await {
        while let Err(error) = logs.say(&line).await {
            match error {
                CallError::NoInstance(_) => drop(view.changed().await),
                _ => sleep(Duration::from_millis(50)).await,
            }
        }
    }
}
