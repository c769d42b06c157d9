//! A service that comes, grows, changes and dies, and a caller that follows it by watch: it never
//! asks twice, and always has the list of instances that can be called. Ends by itself, after about
//! five seconds. While `quorate dev` runs:
//!
//!     cargo run --example follow
//!
//! QUORATE_NODES=host:port,host:port,... names another cluster, QUORATE_CA and so on one with TLS.
//! The two sides have a client each, as they would as two processes; an instance is "killed" by
//! dropping what renews it, which to the registry is the same as kill -9.

#![allow(clippy::print_stdout, reason = "an example tells its story")]

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use quorate_client::{
    Client, InstanceBuilder, InstanceStatus, Registration, RegistrationHandle, Update, View, Watch,
    WatchEvent,
};

const SERVICE: &str = "follow-example";
/// How long an instance outlives its process. Short, so that the story is; 15 s unless set.
const TTL: Duration = Duration::from_secs(2);
/// Each chapter ends by then, or something is wrong.
const PATIENCE: Duration = Duration::from_secs(15);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let client = || match std::env::var_os("QUORATE_NODES") {
        Some(_) => Client::from_env(),
        None => Client::new(["127.0.0.1:7001", "127.0.0.1:7002", "127.0.0.1:7003"]),
    };
    let service = client()?;
    let mut caller = Caller::start(&client()?).await?;

    chapter("The service starts: one instance registers");
    let first = start(&service, 1).await?;
    caller.follow(|callable| callable == ["1"]).await?;

    chapter("It is scaled up: two more");
    let second = start(&service, 2).await?;
    caller.follow(|callable| callable == ["1", "2"]).await?;
    let third = start(&service, 3).await?;
    caller.follow(|callable| callable == ["1", "2", "3"]).await?;

    chapter("Instance 2 is drained: it stays registered, and gets no new calls");
    second.update(Update::new().status(InstanceStatus::Draining)).await?;
    caller.follow(|callable| callable == ["1", "3"]).await?;

    chapter("Instance 2 leaves in an orderly way: gone at once");
    second.deregister().await?;
    caller.follow(|callable| callable == ["1", "3"]).await?;

    chapter("Instance 1 restarts under its id: the new run takes over, one change, no gap");
    drop(first);
    let first = start(&service, 1).await?;
    caller.follow(|callable| callable == ["1", "3"]).await?;

    chapter("Instance 3 is killed: it says nothing, and its lease runs out");
    let killed = Instant::now();
    drop(third);
    caller.follow(|callable| callable == ["1"]).await?;
    println!(
        "  gone {:.1} s after its death, with a TTL of {TTL:?}",
        killed.elapsed().as_secs_f32()
    );

    chapter("The service stops");
    first.deregister().await?;
    caller.follow(|callable| callable.is_empty()).await
}

fn chapter(title: &str) {
    println!("\n{title}");
}

/// What the main function of a process of the service would do.
async fn start(client: &Client, number: u16) -> anyhow::Result<RegistrationHandle> {
    let port = 8080 + number;
    let instance = InstanceBuilder::new(SERVICE, number.to_string())
        .endpoint("http", format!("http://127.0.0.1:{port}"))
        .zone(format!("zone-{}", number % 2));
    let registration = client.register(Registration::new(instance).ttl(TTL)).await;
    let registration = registration.with_context(|| format!("registering instance {number}"))?;
    println!("  service: instance {number} is registered, and renewed in the background");
    Ok(registration)
}

/// A caller of the service.
struct Caller {
    watch: Watch,
}

impl Caller {
    async fn start(client: &Client) -> anyhow::Result<Self> {
        let mut watch = client.watch(SERVICE);
        let first = tokio::time::timeout(PATIENCE, watch.next()).await;
        let first = first.context("no registry answers; is `quorate dev` running?")?;
        ensure!(
            matches!(&first, Some(WatchEvent::Snapshot(view)) if view.is_empty()),
            "{SERVICE} has instances already; wait until the last run's are gone ({TTL:?})"
        );
        println!("The caller follows the service before it is there");
        Ok(Self { watch })
    }

    /// Prints each change, until the instances that can be called are as expected.
    async fn follow(&mut self, expected: impl Fn(&[&str]) -> bool) -> anyhow::Result<()> {
        let story = async {
            loop {
                let event = self.watch.next().await.context("the watch has ended")?;
                let view = self.watch.snapshot();
                let callable = callable(&view);
                println!("  caller:  {}; can be called: {}", told(&event), list(&callable));
                if expected(&callable) {
                    return Ok(());
                }
            }
        };
        tokio::time::timeout(PATIENCE, story).await.context("the caller waits in vain")?
    }
}

fn told(event: &WatchEvent) -> String {
    match event {
        WatchEvent::Snapshot(view) => format!("{} to begin with", view.len()),
        WatchEvent::Reset { cluster_id, .. } => format!("cluster {cluster_id} answers now"),
        WatchEvent::Added(instance) => format!("instance {} is there", instance.id),
        WatchEvent::Modified(instance) => {
            format!("instance {} changed, {:?}", instance.id, instance.status())
        }
        WatchEvent::Removed { instance, reason, .. } => {
            format!("instance {} is gone, {reason:?}", instance.id)
        }
        other => format!("{other:?}"),
    }
}

/// The view is kept up to date by the watch; nothing is asked of the registry here.
fn callable(view: &View) -> Vec<&str> {
    let up = view.iter().filter(|instance| instance.status() == InstanceStatus::Up);
    up.map(|instance| instance.id.as_str()).collect()
}

fn list(ids: &[&str]) -> String {
    if ids.is_empty() { "none".to_owned() } else { ids.join(", ") }
}
