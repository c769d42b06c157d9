//! A node on which nothing happens any more: it gives back what a busy minute took, and then stays
//! as it is. The clock of these tests is one that can be let run ahead; so minutes pass in seconds,
//! and the node does in them all that it would do.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_node::{Config, Environment, Io, Server, Start, Tunables};
use quorate_proto::v1::admin_client::AdminClient;
use quorate_proto::v1::registry_client::RegistryClient;
use quorate_proto::v1::{DeregisterRequest, MemberStatus, StatusRequest};
use tokio::sync::oneshot;
use tonic::transport::{Channel, Endpoint};

use super::calls::{named, registration, spec};
use super::harness::eventually;
use super::metrics::get;
use super::ports::free_address;

/// What is kept of the log, whatever happens.
const KEEP_ENTRIES: u64 = 20;
const TURNS: u64 = 60;
const INSTANCES: u64 = 100;
const METADATA_BYTES: usize = 1_000;

const FIVE_MINUTES: Duration = Duration::from_secs(5 * 60);
const MORE: Duration = Duration::from_secs(2 * 60);

/// One node alone, in this thread; no client calls it while time runs ahead.
struct Node {
    address: String,
    http: SocketAddr,
    log_dir: PathBuf,
}

impl Node {
    fn channel(&self) -> Channel {
        Endpoint::new(format!("http://{}", self.address)).unwrap().connect_lazy()
    }

    /// How often the log's file was written anew, and a quiet log was made short.
    async fn made_short(&self) -> [f64; 2] {
        let scraped = get(self.http, "/metrics", None).await.expect("an answer").body;
        let names =
            ["quorate_log_rewrites_total", "quorate_log_compactions_total{reason=\"quiet\"}"];
        names.map(|name| {
            let value = scraped.lines().find_map(|it| it.strip_prefix(name)?.strip_prefix(' '));
            value.expect(name).parse().expect(name)
        })
    }

    async fn status(&self) -> Option<MemberStatus> {
        let request = StatusRequest { local_only: true };
        let status = AdminClient::new(self.channel()).status(request).await.ok()?;
        Some(status.into_inner().members[0].clone())
    }

    /// Time runs ahead; how the node is then.
    async fn after(&self, idle: Duration) -> (MemberStatus, u64) {
        tokio::time::pause();
        tokio::time::sleep(idle).await;
        tokio::time::resume();
        let status = eventually("the status", || self.status()).await;
        (status, file_bytes(&self.log_dir))
    }

    /// Registers and deregisters, so that nothing is left.
    async fn churn(&self) {
        let mut registry = RegistryClient::new(self.channel());
        for turn in 0..TURNS {
            let ids: Vec<String> = (0..INSTANCES).map(|at| format!("i{turn}-{at}")).collect();
            let specs = ids.iter().map(|id| {
                let mut spec = spec("web", id);
                spec.metadata.insert("large".to_owned(), "x".repeat(METADATA_BYTES));
                spec
            });
            registry.register(registration(specs.collect())).await.unwrap();
            let instances = ids.iter().map(|id| named("web", id)).collect();
            let request = DeregisterRequest { instances, ..DeregisterRequest::default() };
            registry.deregister(request).await.unwrap();
        }
    }
}

fn file_bytes(log_dir: &Path) -> u64 {
    std::fs::metadata(log_dir.join("db")).unwrap().len()
}

#[tokio::test]
async fn a_node_gives_back_what_a_busy_minute_took_and_is_flat_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let (listen, peer_listen, http) = (free_address(), free_address(), free_address());
    let tunables = Tunables {
        keep_entries: KEEP_ENTRIES,
        // What is to be seen is what is done where this is not reached.
        snapshot_log_bytes: 1024 * 1024 * 1024,
        ..Tunables::default()
    };
    let config = Config {
        start: Start::Bootstrap([(1, peer_listen.to_string())].into()),
        http_listen: Some(http),
        tunables,
        ..Config::new(1, dir.path().to_owned(), listen, peer_listen)
    };
    // Writes to the disk take no time of that clock.
    let environment = Environment { log_io: Io::Inline, ..Environment::default() };
    let bound = Server::bind_in(config, environment).await.unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(bound.run(async { drop(stopped.await) }));
    let node = Node { address: listen.to_string(), http, log_dir: dir.path().join("log") };
    eventually("it leads", async || node.status().await.filter(|status| status.applied_index > 2))
        .await;

    node.churn().await;
    let busy = node.status().await.unwrap();
    let (busy_bytes, needed_bytes) = (file_bytes(&node.log_dir), 4 * 1024 * 1024);
    assert!(busy_bytes > 2 * needed_bytes, "{busy_bytes} bytes");
    assert_eq!((busy.snapshot_index, busy.purged_index), (0, 0));
    assert_eq!(node.made_short().await, [0.0, 0.0]);

    let (idle, idle_bytes) = node.after(FIVE_MINUTES).await;
    assert!(idle.snapshot_index >= busy.applied_index, "no snapshot: {idle:?}");
    assert!(idle.purged_index + KEEP_ENTRIES >= idle.snapshot_index, "not purged: {idle:?}");
    assert!(idle_bytes <= needed_bytes, "{idle_bytes} bytes, {busy_bytes} before");
    let [rewrites, compactions] = node.made_short().await;
    assert!(rewrites >= 1.0 && compactions >= 1.0, "{rewrites} and {compactions}");

    // Ticks are written, until the service is forgotten, and are not worth another snapshot.
    let (later, later_bytes) = node.after(MORE).await;
    assert_eq!(later.snapshot_index, idle.snapshot_index);
    assert_eq!(later_bytes, idle_bytes);
    assert_eq!(node.made_short().await, [rewrites, compactions]);

    drop(stop);
    running.await.unwrap().unwrap();
}
