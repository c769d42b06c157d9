//! Controllers and agents. Agents report to any controller; an operator has any controller push a
//! configuration to every agent that is online, and gets a result for each of them. What an agent
//! has, and what the newest configuration is, stands in their registrations: so all controllers
//! answer alike, and none is special. Ends by itself, and with an error if a report failed, an
//! agent was missed or a controller lost. While `quorate dev` runs:
//!
//!     cargo run --example config_push
//!
//! QUORATE_NODES=host:port,host:port,... names another cluster. Each part has a client of its own,
//! as separate processes would. Killing a node of the registry meanwhile makes no difference.

#![allow(clippy::print_stdout, reason = "an example tells its story")]

#[path = "shared/registry.rs"]
mod registry;
#[path = "shared/text.rs"]
mod text;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::FutureExt;
use quorate_client::{
    Balancer, CallError, Caller, Client, Code, DiscoveryEvent, FailMode, Fault, Instance,
    InstanceBuilder, Instances, Policy, RegistrationHandle,
};
use registry::{PATIENCE, connect, shows};
use text::{Connections, Text};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

const NAMESPACE: &str = "config-push-example";
const REPORT_EVERY: Duration = Duration::from_millis(100);
/// One agent has this long to take a configuration, all attempts together.
const PUSH_WITHIN: Duration = Duration::from_secs(3);
/// A process that leaves serves for this long more, for callers that do not know of it yet.
const GRACE: Duration = Duration::from_millis(500);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    println!("Three controllers start; a push reaches nobody");
    let mut controllers = Vec::new();
    for number in 1..=3 {
        controllers.push(controller(number).await?);
    }
    let client = connect(NAMESPACE).await?;
    let mut operator = Text::new(client.channel("controller")?);
    let nobody = operator.say("push 1 limit=10").await;
    let nobody = nobody.err().context("who has it?")?;
    println!("  {:?}: {}", nobody.code(), nobody.message());
    ensure!(nobody.code() == Code::FailedPrecondition);

    println!("\nSix agents start, and report to any controller");
    let mut agents = BTreeMap::new();
    for number in 1..=6 {
        agents.insert(number, Agent::start(number).await?);
    }
    let view = client.discover("agent")?;
    let mut changes = view.listen();
    shows(&view, |agents| agents.len() == 6).await?;
    all_say(&client, 3, &versions(6, 0)).await?;
    push(&mut operator, "2 limit=20", &[(6, "has it")]).await?;
    shows(&view, |agents| agents.iter().all(|agent| Config::of(agent).version == 2)).await?;

    println!("\nA push meets an agent that is busy, one that refuses, and two that hang");
    let moods = [(3, Mood::BusyOnce), (4, Mood::Refuses), (5, Mood::Hangs), (6, Mood::Hangs)];
    moods.iter().for_each(|(number, mood)| agents[number].set(*mood));
    let begun = Instant::now();
    let counts = [(3, "has it"), (1, "asked 2 times"), (1, "unknown key"), (2, "no answer")];
    push(&mut operator, "3 limit=30", &counts).await?;
    ensure!(begun.elapsed() < PUSH_WITHIN * 2, "all at the same time");
    shows(&view, |agents| having(agents, 3) == 3).await?;

    println!("\nThe three are repaired, and the push is repeated");
    [4, 5, 6].iter().for_each(|number| agents[number].set(Mood::Fine));
    let counts = [(6, "has it"), (1, "agent-4: has it now"), (1, "agent-6: has it now")];
    push(&mut operator, "3 limit=30", &counts).await?;
    let controllers_view = client.discover("controller")?;
    shows(&controllers_view, |all| all.len() == 3 && having(all, 3) == 3).await?;

    println!(
        "\nA controller stops, and an agent starts that was off: a report brings it up to date"
    );
    controllers.remove(0).stop().await?;
    agents.insert(7, Agent::start(7).await?);
    shows(&view, |agents| having(agents, 3) == 7).await?;
    all_say(&client, 2, &versions(7, 3)).await?;
    println!("  both controllers say: {}", versions(7, 3));

    let (mut reports, mut removed) = (0, 0);
    while let Some(event) = changes.next().now_or_never() {
        removed += u32::from(matches!(event, DiscoveryEvent::Removed { .. }));
    }
    for (_, agent) in agents {
        let failed = agent.failed.load(Ordering::Relaxed);
        reports += agent.reported.load(Ordering::Relaxed);
        ensure!(failed == 0, "{failed} reports failed");
        agent.process.stop().await?;
    }
    println!("\n{reports} reports, 0 failed; no agent was taken for offline");
    ensure!(removed == 0, "{removed} agents went, and none had gone");
    for controller in controllers {
        controller.stop().await?;
    }
    Ok(())
}

/// What a controller says of this number of agents.
fn versions(agents: u32, version: u32) -> String {
    let agents = (1..=agents).map(|number| format!("agent-{number}={version}"));
    agents.collect::<Vec<_>>().join(" ")
}

/// How many have this configuration.
fn having(agents: &Instances, version: u32) -> usize {
    agents.iter().filter(|agent| Config::of(agent).version == version).count()
}

/// Has a controller push, and counts the agents whose result says so.
async fn push(operator: &mut Text, config: &str, expected: &[(usize, &str)]) -> anyhow::Result<()> {
    let results = operator.say(format!("push {config}")).await?;
    results.lines().for_each(|line| println!("  {line}"));
    for (count, text) in expected {
        let found = results.lines().filter(|line| line.contains(text)).count();
        ensure!(found == *count, "{found} times \"{text}\", expected {count}");
    }
    Ok(())
}

/// Waits until there are `count` controllers and each of them says this.
async fn all_say(client: &Client, count: usize, expected: &str) -> anyhow::Result<()> {
    let (view, connections) = (client.discover("controller")?, Connections::default());
    shows(&view, |controllers| controllers.len() == count).await?;
    let wait = async {
        for controller in view.current().iter() {
            while connections.to(controller)?.say("status").await? != expected {
                sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    };
    timeout(PATIENCE, wait).await.with_context(|| format!("not all say {expected}"))?
}

/// What is pushed.
#[derive(Debug, Clone, Default)]
struct Config {
    version: u32,
    text: String,
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.version, self.text)
    }
}

impl Config {
    fn parse(text: &str) -> Option<Self> {
        let (version, text) = text.split_once(' ')?;
        Some(Self { version: version.parse().ok()?, text: text.to_owned() })
    }

    /// What a controller or an agent has.
    fn of(instance: &Instance) -> Self {
        instance.metadata.get("config").and_then(|text| Self::parse(text)).unwrap_or_default()
    }
}

/// What both kinds of processes do: serve, and publish the configuration that they have.
struct Process {
    handle: Arc<RegistrationHandle>,
    stop: oneshot::Sender<()>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    /// What it does beside.
    tasks: Vec<AbortOnDropHandle<()>>,
}

/// Takes over what is newer.
fn take(config: &watch::Sender<Config>, other: Config) {
    config.send_if_modified(|config| {
        let newer = other.version > config.version;
        if newer {
            *config = other;
        }
        newer
    });
}

impl Process {
    async fn start<A, F>(
        client: &Client,
        instance: InstanceBuilder,
        config: &watch::Sender<Config>,
        answer: A,
    ) -> anyhow::Result<Self>
    where
        A: Fn(String) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<String, Status>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let uri = format!("http://{}", listener.local_addr()?);
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = stopped.map(|_told_or_dropped| ()).boxed();
        let server = tokio::spawn(text::serve(listener, stopped, answer));
        let handle = Arc::new(client.register(instance.endpoint("grpc", uri)).await?);
        let (publishes, mut news) = (handle.clone(), config.subscribe());
        let publish = async move {
            while news.changed().await.is_ok() {
                let entry = news.borrow_and_update().to_string();
                // An error is none: the handle makes the change when the registry can be reached.
                let _made_later = publishes.set_metadata([("config", entry)]).await;
            }
        };
        let tasks = vec![AbortOnDropHandle::new(tokio::spawn(publish))];
        Ok(Self { handle, stop, server, tasks })
    }

    fn also(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.push(AbortOnDropHandle::new(tokio::spawn(task)));
    }

    /// Leaves, serves callers that do not know of it yet, and stops when the calls in flight are
    /// done.
    async fn stop(self) -> anyhow::Result<()> {
        drop(self.tasks);
        self.handle.deregister().await?;
        sleep(GRACE).await;
        drop(self.stop);
        Ok(timeout(PATIENCE, self.server).await.context("a server does not stop")???)
    }
}

/// A controller: takes reports, pushes, says which agent has what; and takes over what another
/// controller has pushed.
async fn controller(number: u32) -> anyhow::Result<Process> {
    let client = connect(NAMESPACE).await?;
    let config = Arc::new(watch::Sender::new(Config::default()));
    let agents = client.discover("agent")?;
    timeout(PATIENCE, agents.synced()).await.context("no registry answers; is it running?")?;
    let balancer = Balancer::new(agents, Policy::RoundRobin);
    let agents = Caller::new(balancer, FailMode::Retry(3)).deadline(PUSH_WITHIN);
    let shared = Arc::new((agents, Connections::default(), config.clone()));
    let answer = move |text: String| {
        let shared = shared.clone();
        async move {
            let (agents, connections, config) = &*shared;
            match text.split_once(' ').unwrap_or((&text, "")) {
                ("report", _agent) => Ok(config.borrow().to_string()),
                ("push", pushed) => {
                    let pushed = Config::parse(pushed);
                    let pushed = pushed.ok_or_else(|| Status::invalid_argument("VERSION TEXT"))?;
                    let results = push_to_all(agents, connections, &pushed).await?;
                    take(config, pushed);
                    Ok(results)
                }
                _ => {
                    let agents = agents.balancer().discovery().current();
                    let has = |agent: &Arc<Instance>| {
                        format!("{}={}", agent.id, Config::of(agent).version)
                    };
                    Ok(agents.iter().map(has).collect::<Vec<_>>().join(" "))
                }
            }
        }
    };
    let me = InstanceBuilder::new("controller", format!("controller-{number}"));
    let mut process = Process::start(&client, me, &config, answer).await?;
    let mut others = client.discover("controller")?.listen();
    process.also(async move {
        loop {
            if let DiscoveryEvent::Added(other) | DiscoveryEvent::Updated(other) =
                others.next().await
            {
                take(&config, Config::of(&other));
            }
        }
    });
    Ok(process)
}

/// A line for each agent, also if others failed.
async fn push_to_all(
    agents: &Caller,
    connections: &Connections,
    config: &Config,
) -> Result<String, Status> {
    let fault = |status: Status| match status.code() {
        Code::Unavailable | Code::ResourceExhausted => Fault::Again(status),
        _ => Fault::Final(status),
    };
    let call = async |agent: Arc<Instance>| {
        if Config::of(&agent).version >= config.version {
            return Ok("has it already".to_owned());
        }
        connections.to(&agent)?.say(config.to_string()).await.map_err(fault)
    };
    let results = agents.call_all(call).await;
    let nobody = |error| Status::failed_precondition(format!("no agent is online: {error}"));
    let line = |(agent, result): (Arc<Instance>, Result<String, CallError<Status>>)| {
        let told = match result {
            Ok(told) => told,
            Err(CallError::Failed { last, .. }) => format!("{:?}, {}", last.code(), last.message()),
            Err(error) => error.to_string(),
        };
        format!("{}: {told}", agent.id)
    };
    Ok(results.map_err(nobody)?.into_iter().map(line).collect::<Vec<_>>().join("\n"))
}

/// How an agent takes what is pushed.
#[derive(Debug, Clone, Copy)]
enum Mood {
    Fine,
    BusyOnce,
    Refuses,
    Hangs,
}

/// An agent: takes configurations, and reports.
struct Agent {
    process: Process,
    mood: Arc<Mutex<Mood>>,
    reported: Arc<AtomicU32>,
    failed: Arc<AtomicU32>,
}

impl Agent {
    async fn start(number: u32) -> anyhow::Result<Self> {
        let client = connect(NAMESPACE).await?;
        let config = Arc::new(watch::Sender::new(Config::default()));
        let (mood, asked) = (Arc::new(Mutex::new(Mood::Fine)), Arc::<AtomicU32>::default());
        let shared = Arc::new((config.clone(), mood.clone(), asked));
        let answer = move |text: String| {
            let shared = shared.clone();
            async move {
                let (config, mood, asked) = &*shared;
                let asked_now = asked.fetch_add(1, Ordering::Relaxed) + 1;
                let now = std::mem::replace(&mut *lock(mood), Mood::Fine);
                match now {
                    Mood::BusyOnce => return Err(Status::resource_exhausted("busy")),
                    Mood::Fine => {}
                    Mood::Refuses | Mood::Hangs => *lock(mood) = now,
                }
                match now {
                    Mood::Refuses => return Err(Status::invalid_argument("unknown key")),
                    Mood::Hangs => std::future::pending().await,
                    _ => {}
                }
                let new = Config::parse(&text);
                take(config, new.ok_or_else(|| Status::invalid_argument("VERSION TEXT"))?);
                asked.store(0, Ordering::Relaxed);
                let times = if asked_now > 1 { ", asked 2 times" } else { "" };
                Ok(format!("has it now{times}"))
            }
        };
        let id = format!("agent-{number}");
        let me = InstanceBuilder::new("agent", &id);
        let mut process = Process::start(&client, me, &config, answer).await?;
        let (reported, failed) = (Arc::<AtomicU32>::default(), Arc::<AtomicU32>::default());
        let balancer = Balancer::new(client.discover("controller")?, Policy::RoundRobin);
        let controllers = Caller::new(balancer, FailMode::Failover(2));
        process.also(report(id, controllers, config, (reported.clone(), failed.clone())));
        Ok(Self { process, mood, reported, failed })
    }

    fn set(&self, mood: Mood) {
        *lock(&self.mood) = mood;
    }
}

fn lock(mood: &Mutex<Mood>) -> std::sync::MutexGuard<'_, Mood> {
    mood.lock().unwrap_or_else(PoisonError::into_inner)
}

/// To any controller, which answers with the newest configuration: for agents that have none yet.
async fn report(
    id: String,
    controllers: Caller,
    config: Arc<watch::Sender<Config>>,
    (reported, failed): (Arc<AtomicU32>, Arc<AtomicU32>),
) {
    let connections = Connections::default();
    controllers.balancer().discovery().synced().await;
    loop {
        let call = async |controller: Arc<Instance>| {
            Ok(connections.to(&controller)?.say(format!("report {id}")).await?)
        };
        match controllers.call(call).await {
            Ok(newest) => {
                reported.fetch_add(1, Ordering::Relaxed);
                if config.borrow().version == 0 {
                    take(&config, Config::parse(&newest).unwrap_or_default());
                }
            }
            Err(_error) => drop(failed.fetch_add(1, Ordering::Relaxed)),
        }
        sleep(REPORT_EVERY).await;
    }
}
