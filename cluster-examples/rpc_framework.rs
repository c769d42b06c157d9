//! What an RPC framework asks of a registry: servers that start and stop without a failed call,
//! balancers that follow the live view, fail modes, and a restart of everything under load. Ends by
//! itself, and with an error if a call failed that should not have. While `quorate dev` runs:
//!
//!     cargo run --example rpc_framework
//!
//! QUORATE_NODES=host:port,host:port,... names another cluster. Providers and caller have a client
//! each, as they would as processes; killing a node of the registry meanwhile makes no difference.

#![allow(clippy::print_stdout, reason = "an example tells its story")]

#[path = "shared/calls.rs"]
mod calls;
#[path = "shared/registry.rs"]
mod registry;
#[path = "shared/text.rs"]
mod text;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, ensure};
use calls::Calls;
use quorate_client::{
    Balancer, CallError, Caller, Client, Code, Discovery, Error, FailMode, Fault, InstanceBuilder,
    Instances, Policy, Served,
};
use registry::{PATIENCE, connect, shows};
use text::{Connections, Text};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tonic::Status;

const NAMESPACE: &str = "rpc-framework-example";
const SERVICE: &str = "greeter";
/// How a provider says that it is about to stop.
const LEAVING: &str = "going away";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    println!("Three providers start: each binds, serves, and then registers");
    let mut providers = BTreeMap::new();
    for number in 1..=3 {
        providers.insert(number, Provider::start(number).await?);
    }
    let client = connect(NAMESPACE).await?;
    let view = client.discover(SERVICE)?;
    shows(&view, |shown| shown.len() == 3).await?;

    balancers(&view).await?;

    println!("\ngreeter-2 is killed; until its lease ends, the registry has it");
    providers.remove(&2).context("greeter-2")?.ended.abort();
    fail_modes(&view).await?;
    println!("greeter-2 starts again, under its id: the new run takes over at once");
    let before = view.current().get("greeter-2").context("it is still shown")?.incarnation;
    providers.insert(2, Provider::start(2).await?);
    shows(&view, |shown| shown.get("greeter-2").is_some_and(|i| i.incarnation > before)).await?;

    going_away(&view, &providers[&3]).await?;

    println!("\nThe rolling restart begins, under constant calls");
    let calls = call_constantly(&client, &view)?;
    calls.more(50).await?;
    for number in 1..=3 {
        let before = view.current().get(&id(number)).context("it is shown")?.incarnation;
        providers.remove(&number).context("it runs")?.stop().await?;
        shows(&view, |shown| shown.get(&id(number)).is_none()).await?;
        calls.more(50).await?;
        providers.insert(number, Provider::start(number).await?);
        let is_new = |i: &Arc<quorate_client::Instance>| i.incarnation > before;
        shows(&view, |shown| shown.get(&id(number)).is_some_and(is_new)).await?;
        println!("  greeter-{number} runs again");
        calls.more(50).await?;
    }
    let succeeded = calls.end().await?;
    println!("The rolling restart is over: {succeeded} calls, 0 failed");
    for provider in providers.into_values() {
        provider.stop().await?;
    }
    shows(&view, Instances::is_empty).await?;
    match view.usable().await {
        Err(error @ Error::NoInstances { .. }) => println!("\nAfter the last: {error}"),
        other => anyhow::bail!("no instance is left, and the view says {other:?}"),
    }
    Ok(())
}

fn id(number: u32) -> String {
    format!("greeter-{number}")
}

type Ended = Result<Served<Result<(), tonic::transport::Error>>, Error>;

/// A process that serves.
struct Provider {
    /// It answers that it is going away.
    leaving: Arc<AtomicBool>,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Ended>,
}

impl Provider {
    /// What its main function does, with `until_signal()` in place of `until(...)`. Weights are 3
    /// to 2 to 1.
    async fn start(number: u32) -> anyhow::Result<Self> {
        let me = InstanceBuilder::new(SERVICE, id(number)).endpoint("grpc", "http://{addr}");
        let me = me.weight((4 - number) * 100);
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = connect(NAMESPACE).await?.serve(me).until(async {
            let _told_or_dropped = stopped.await;
        });
        let leaving = Arc::<AtomicBool>::default();
        let (asked, leaves) = (Arc::<AtomicU32>::default(), leaving.clone());
        let answer = move |text: String| {
            let (nth, leaves) = (asked.fetch_add(1, Ordering::Relaxed), leaves.clone());
            async move {
                sleep(Duration::from_millis(5)).await; // so that there are calls in flight
                match text.as_str() {
                    _ if leaves.load(Ordering::Relaxed) => Err(Status::unavailable(LEAVING)),
                    "moody" if nth % 2 == 0 => Err(Status::resource_exhausted("not now")),
                    _ => Ok(id(number)),
                }
            }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let run = serving.run(listener, |listener, stop| text::serve(listener, stop, answer));
        Ok(Self { leaving, stop, ended: tokio::spawn(run) })
    }

    /// As by SIGTERM: drains, deregisters, finishes the calls in flight.
    async fn stop(self) -> anyhow::Result<()> {
        ensure!(self.stop.send(()).is_ok(), "a provider has ended by itself");
        let served =
            timeout(PATIENCE, self.ended).await.context("a provider does not stop")???;
        ensure!(matches!(served.output, Some(Ok(()))), "{served}");
        served.deregistered.context("deregistering")
    }
}

/// What an error of a call means. Calls that must not be made twice would be final in more cases.
fn fault(status: Status) -> Fault<Status> {
    match status.code() {
        Code::Unavailable if status.message() == LEAVING => Fault::GoingAway(status),
        Code::Unavailable | Code::ResourceExhausted | Code::Cancelled => Fault::Again(status),
        _ => Fault::Final(status),
    }
}

/// A caller with its connections, and a note of which instances it called.
struct Stub {
    caller: Caller,
    connections: Connections,
    called: Mutex<Vec<String>>,
}

impl Stub {
    fn new(view: &Discovery, policy: Policy, mode: FailMode) -> Self {
        let caller = Caller::new(Balancer::new(view.clone(), policy), mode);
        Self { caller, connections: Connections::default(), called: Mutex::default() }
    }

    async fn say(&self, text: &str) -> Result<String, CallError<Status>> {
        let say = async |instance: Arc<quorate_client::Instance>| {
            self.called.lock().expect("no panic").push(instance.id.clone());
            self.connections.to(&instance)?.say(text).await.map_err(fault)
        };
        self.caller.call(say).await
    }

    /// How often each was called since the last time this was asked.
    fn shares(&self) -> BTreeMap<String, u32> {
        let called = std::mem::take(&mut *self.called.lock().expect("no panic"));
        let mut shares = BTreeMap::new();
        called.into_iter().for_each(|id| *shares.entry(id).or_default() += 1);
        shares
    }
}

async fn balancers(view: &Discovery) -> anyhow::Result<()> {
    println!("\nBalancers: 60 calls each, with weights 3 to 2 to 1");
    for (policy, exact) in [
        (Policy::Random, None),
        (Policy::RoundRobin, Some([20, 20, 20])),
        (Policy::WeightedRoundRobin, Some([30, 20, 10])),
        (Policy::LeastLoaded, None),
    ] {
        let stub = Stub::new(view, policy, FailMode::FailFast);
        for _ in 0..60 {
            stub.say("hello").await?;
        }
        let shares: Vec<u32> = stub.shares().into_values().collect();
        println!("  {policy:?}: {shares:?}");
        ensure!(exact.is_none_or(|exact| shares == exact), "expected {exact:?}");
        ensure!(shares.len() > 1 && shares.iter().sum::<u32>() == 60, "several share the calls");
    }
    Ok(())
}

/// With one of three providers dead, but not known to be.
async fn fail_modes(view: &Discovery) -> anyhow::Result<()> {
    for (mode, fails) in [(FailMode::FailFast, 10), (FailMode::Failover(2), 0)] {
        let stub = Stub::new(view, Policy::RoundRobin, mode);
        let mut failed = 0;
        for _ in 0..30 {
            match stub.say("hello").await {
                Ok(_) => {}
                Err(CallError::Failed { tried, .. }) if tried == ["greeter-2"] => failed += 1,
                Err(error) => return Err(error.into()),
            }
        }
        println!("  {mode:?}: 30 calls, {failed} failed");
        ensure!(failed == fails, "expected {fails}; called: {:?}", stub.shares());
    }
    // Providers that refuse every second call, and a caller that asks the same one again.
    let stub = Stub::new(view, Policy::RoundRobin, FailMode::Retry(1));
    let moody = stub.caller.balancer().pick_except(&["greeter-2".to_owned()])?.id.clone();
    for _ in 0..6 {
        let answered = stub.say("moody").await;
        let called: Vec<String> = stub.shares().into_keys().collect();
        ensure!(called.len() == 1, "a retry stays with its instance: {called:?}");
        ensure!(called == ["greeter-2"] || answered.is_ok(), "{moody} was moody: {answered:?}");
    }
    println!("  Retry(1): calls refused once succeed, on the same instance");
    Ok(())
}

/// A provider that says so is skipped before the registry knows.
async fn going_away(view: &Discovery, leaver: &Provider) -> anyhow::Result<()> {
    leaver.leaving.store(true, Ordering::Relaxed);
    let stub = Stub::new(view, Policy::RoundRobin, FailMode::Failover(1));
    for _ in 0..30 {
        stub.say("hello").await?;
    }
    let shares = stub.shares();
    println!("\ngreeter-3 answers that it is going away: of 30 calls, it gets {}", shares[&id(3)]);
    ensure!(shares[&id(3)] == 1, "the first answer is enough: {shares:?}");
    leaver.leaving.store(false, Ordering::Relaxed);
    Ok(())
}

/// Four callers by the channel that a generated client would have, two by a fail mode.
fn call_constantly(client: &Client, view: &Discovery) -> anyhow::Result<Calls> {
    let mut calls = Calls::default();
    let channel = Text::new(client.channel(SERVICE)?);
    calls.start(4, move || {
        let mut channel = channel.clone();
        async move {
            channel.say("hello").await.context("a call by the channel failed")?;
            Ok(())
        }
    });
    let stub = Arc::new(Stub::new(view, Policy::LeastLoaded, FailMode::Failover(2)));
    calls.start(2, move || {
        let stub = stub.clone();
        async move {
            stub.say("hello").await.context("a call by the caller failed")?;
            Ok(())
        }
    });
    Ok(calls)
}
