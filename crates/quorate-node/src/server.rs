//! Wires a node together and runs it: binds, builds, spawns, stops. Decides nothing else. Every
//! task of a node is spawned here, by [`Bound::run`], but those of connections.
//!
//! Order of stopping, all within `shutdown_grace_ms`: health says "not serving"; a leader hands the
//! lead over; new calls are refused, watch streams end with a status, calls that are under way, by
//! HTTP too, finish; the loops end; Raft stops; the peer listener closes; the log is flushed and
//! closed.

mod grace;
mod listeners;
mod loops;
mod opening;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::Fatal;
use quorate_log::{NodeId, SnapshotStore};
use quorate_proto::ClusterId;
use tokio::sync::{Notify, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::grpc::measured;
use crate::api::grpc::peer::PeerService;
use crate::api::http::{self, Observed};
use crate::audit;
use crate::config::{Config, Dns, HealthChecks, Start};
use crate::error::{RunError, StartError};
use crate::free_space::Disk;
use crate::meters::Meters;
use crate::net::tls::{Security, Tls};
use crate::net::{Environment, Listener};
use crate::node::condition::Vitals;
use crate::node::own_files::OwnFiles;
use crate::node::queues::{Loop, Waiting};
use crate::node::{Node, Parts};
use crate::peers::Peers;
use crate::raft::Raft;
use crate::raft::network::Network;
use crate::raft::recall::Recall;
use crate::raft::state_machine::StateMachine;
use crate::reload::Reload;
use crate::server::grace::Grace;
use crate::server::listeners::{
    client_connections, serve_clients, serve_dns, serve_peers, serve_tools,
};
use crate::server::loops::loops;
use crate::server::opening::{
    Listeners, begin, open, open_access, open_audit, open_tls, raft_config, settle_identity,
    tell_of_start, warn_of_openness,
};
use crate::types::{LogStore, TypeConfig};
use crate::upkeep::health::Prober;

/// Makes nodes.
#[derive(Debug)]
pub struct Server;

/// A node with its listeners bound and its data opened; nothing runs yet.
pub struct Bound {
    node: Arc<Node>,
    log: LogStore,
    snapshots: Arc<SnapshotStore<TypeConfig>>,
    listeners: Listeners,
    health_checks: HealthChecks,
    dns: Dns,
    origins: Vec<String>,
    waiting: Waiting,
    start: Start,
    raft_on: tokio::runtime::Handle,
    tls: Option<Arc<Tls>>,
    reload: Arc<Notify>,
    audit: Option<audit::Writer>,
}

/// Whether a node should be sent calls.
#[derive(Clone)]
pub struct Readiness(Arc<Node>);

impl Readiness {
    /// Why calls should go to another node, and for whom a start waits; nothing: they need not.
    pub fn problems(&self) -> Vec<String> {
        match self.0.waits_for() {
            Some(reason) => vec![format!("it is not in a cluster yet: {reason}")],
            None => http::problems(&self.0, true),
        }
    }
}

impl Server {
    /// Checks the configuration, opens the data, binds the listeners and builds the node.
    ///
    /// # Errors
    /// A bad setting, an address that is taken, or a data directory that is damaged, in use, or
    /// another node's.
    pub async fn bind(config: Config) -> Result<Bound, StartError> {
        Self::bind_in(config, Environment::default()).await
    }

    /// The same in an environment that need not be the real one.
    ///
    /// # Errors
    /// As [`Server::bind`].
    #[inline(never)]
    pub fn bind_in(
        config: Config,
        environment: Environment,
    ) -> BoxFuture<'static, Result<Bound, StartError>> {
        Box::pin(Self::build(config, environment)) // for the reason of `boxed_run`
    }

    async fn build(config: Config, environment: Environment) -> Result<Bound, StartError> {
        config.validate()?;
        let (id, own_files) = (config.node_id()?, OwnFiles::of(&config));
        let Environment { net, log_io, raft_on, reload, levels } = environment;
        let raft_on = raft_on.unwrap_or_else(tokio::runtime::Handle::current);
        let tunables = config.tunables.clone();
        let access = open_access(&config).await?;
        let (audit, writer) = open_audit(&config)?;
        let (log, snapshots) = open(&config.data_dir, log_io).await?;
        let tls = open_tls(&config).await?;
        let identity = settle_identity(id, &config, &log, &snapshots, &net, tls.clone()).await?;
        let listeners = Listeners::bind(&net, &config).await?;
        let me = listeners.member(config.advertise, config.peer_advertise);
        tell_of_start(&config.start, identity, &me.peer_address);
        let meters = Arc::new(Meters::new(measured()));
        let applied = Arc::new(begin(&log, &tunables, &meters).await);
        let connections = Arc::new(Peers::new(identity, net, tls.clone(), levels));
        let disk = Arc::new(Disk::new(id, config.data_dir, tunables.disk_reserve_bytes));
        config.audit.iter().for_each(|of| audit.spares(&disk, &of.file));
        let machine = StateMachine {
            applied: applied.clone(),
            snapshots: snapshots.clone(),
            disk: disk.clone(),
            log: log.clone(),
            peers: connections.clone(),
        };
        let open = listeners.open(tls.is_some(), access.is_checked());
        let recall = Arc::new(Recall::new(id));
        let (peers, learnt) = (connections.clone(), recall.clone());
        let network = Network::new(peers, applied.clone(), learnt, meters.clone());
        let raft = Raft::new(id, raft_config(&tunables)?, network, log.clone(), machine);
        let raft = raft_on.spawn(raft).await.map_err(panicked)?.map_err(failed_in_raft)?;
        let takes_part = raft.is_initialized().await.map_err(failed_in_raft)?
            || !matches!(config.start, Start::Bootstrap(_));
        let (node, waiting) = Node::new(Parts {
            id,
            me,
            levels,
            tunables,
            raft,
            applied,
            peers: connections,
            recall,
            disk,
            access,
            audit,
            meters,
            founders: founders(&config.start),
            takes_part,
            vitals: Vitals::of(&log, &snapshots, &tls, open, asked(&config.start), own_files),
            makes_checks: !config.health_checks.allow.is_empty(),
        });
        let Config { start, health_checks, dns, http_cors_origins: origins, .. } = config;
        Ok(Bound {
            node: Arc::new(node),
            log,
            snapshots,
            listeners,
            health_checks,
            dns,
            origins,
            waiting,
            start,
            raft_on,
            tls,
            reload,
            audit: writer,
        })
    }
}

impl Bound {
    /// Where it listens for clients.
    pub fn client_addr(&self) -> SocketAddr {
        self.listeners.clients.address()
    }

    /// Where it listens for peers.
    pub fn peer_addr(&self) -> SocketAddr {
        self.listeners.peers.address()
    }

    /// Where it listens for operators' tools, if it does.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.listeners.tools.as_ref().map(Listener::address)
    }

    /// Where it answers by DNS, if it does.
    pub fn dns_addr(&self) -> Option<SocketAddr> {
        self.listeners.dns.as_ref().map(|(_, listener)| listener.address())
    }

    /// What says whether it is ready, before and while it runs.
    pub fn readiness(&self) -> Readiness {
        Readiness(self.node.clone())
    }

    /// Runs the node until `stop` resolves or something in it fails, then stops it in order.
    ///
    /// # Errors
    /// What failed, or that stopping took longer than its grace.
    pub async fn run(self, stop: impl Future<Output = ()> + Send) -> Result<(), RunError> {
        self.boxed_run(Box::pin(stop)).await
    }

    /// Boxed and without a type parameter, a node is compiled once, in this crate, not again in
    /// each crate that runs one.
    #[inline(never)]
    fn boxed_run<'a>(self, stop: BoxFuture<'a, ()>) -> BoxFuture<'a, Result<(), RunError>> {
        Box::pin(self.run_until(stop))
    }

    async fn run_until(self, stop: BoxFuture<'_, ()>) -> Result<(), RunError> {
        tracing::info!(
            id = self.node.id().get(),
            cluster_id = format!("{:016x}", ClusterId::to_wire(self.node.peers().cluster_id())),
            clients = %self.client_addr(),
            peers = %self.peer_addr(),
            http = self.http_addr().map(|http| http.to_string()),
            dns = self.dns_addr().map(|dns| dns.to_string()),
            log_entries = self.node.applied().position().index,
            "node starts"
        );
        warn_of_openness(
            self.node.access(),
            self.tls.is_some(),
            self.client_addr(),
            self.peer_addr(),
        );
        let (node, log) = (self.node.clone(), self.log.clone());
        let stops = Stops::default();
        let mut tasks = self.spawn_all(&stops).await;

        let ended = tokio::select! {
            () = stop => Ok(()),
            Some(ended) = tasks.join_next() => Err(RunError::of_task(ended)),
        };
        let grace = Duration::from_millis(node.tunables().shutdown_grace_ms);
        let stopped = tokio::time::timeout(grace, stop_all(&node, log, tasks, stops)).await;
        match (ended, stopped) {
            (Err(error), _) => Err(error),
            (Ok(()), Ok(stopped)) => {
                tracing::info!(id = node.id().get(), "node stopped");
                stopped
            }
            (Ok(()), Err(_elapsed)) => {
                tracing::warn!(
                    id = node.id().get(),
                    "node did not stop in time; leaving all the same"
                );
                Err(RunError::SlowStop { grace })
            }
        }
    }

    async fn spawn_all(self, stops: &Stops) -> JoinSet<Result<(), RunError>> {
        let (node, listeners) = (self.node, self.listeners);
        let mut tasks = JoinSet::new();
        let (health_reporter, health_service) = tonic_health::server::health_reporter();
        let connections = client_connections(&node);
        node.seen().follow(connections.clone());
        let security = Security::clients(self.tls.clone());
        let clients =
            serve_clients(node.clone(), &connections, listeners.clients, security, health_service);
        if let Some(listener) = listeners.tools {
            let (log, tls, connections) = (self.log.clone(), self.tls.clone(), connections.clone());
            let snapshots = self.snapshots.clone();
            let (node, scrapes) = (node.clone(), Arc::new(Semaphore::new(1)));
            let origins = self.origins.into();
            let observed = Observed { node, log, snapshots, tls, connections, scrapes, origins };
            let security = Security::tools(self.tls.clone());
            let (calls, stop) = (stops.http_calls.clone(), stops.loops.clone());
            tasks.spawn(serve_tools(observed, listener, security, calls, stop));
        }
        if let Some(sockets) = listeners.dns
            && let Ok(settings) = quorate_dns::Settings::new(&self.dns.domain)
        {
            let stop = stops.loops.clone();
            tasks.spawn(serve_dns(node.clone(), sockets, self.dns, settings, stop));
        }
        let (done, stop) = (stops.clients_done.clone().drop_guard(), node.stop().clone());
        tasks.spawn(async move {
            let _done = done;
            tokio::select! {
                ended = clients => ended.map_err(RunError::Clients),
                never = connections.watch(stop) => match never {},
            }
        });

        let alone = loops(&node, &self.log, &self.snapshots, self.start);
        let peer_service =
            PeerService { node: node.clone(), log: self.log, snapshots: self.snapshots };
        let tls = self.tls.clone();
        let peers = serve_peers(peer_service, listeners.peers, tls, stops.peers.clone());
        tasks.spawn_on(peers, &self.raft_on);

        if let Some(audit) = self.audit {
            tasks.spawn(audit.run(stops.loops.clone()));
        }
        if self.tls.is_some() || node.access().is_checked() {
            let reload =
                Reload { requested: self.reload, access: node.access().clone(), tls: self.tls };
            tasks.spawn(until(stops.loops.clone(), reload.run()));
        }
        // Not where Raft runs: probes must not keep a heartbeat waiting.
        let prober = Prober::new(node.clone(), self.health_checks.allow);
        tasks.spawn(until(stops.loops.clone(), prober.run()));
        let (beside_raft, beside_calls) = self.waiting.loops(&node);
        tasks.spawn(until(stops.loops.clone(), beside_calls));
        let mut spawn_loop = |running: Loop| {
            tasks.spawn_on(until(stops.loops.clone(), running), &self.raft_on);
        };
        beside_raft.into_iter().for_each(&mut spawn_loop);
        alone.into_iter().for_each(&mut spawn_loop);
        spawn_loop(Box::pin(report_health(node.clone(), health_reporter)));
        spawn_loop(Box::pin(watch_raft(node)));
        tasks
    }
}

fn panicked(source: JoinError) -> StartError {
    StartError::Panicked { source }
}

fn failed_in_raft(source: Fatal<TypeConfig>) -> StartError {
    StartError::Raft { source: Box::new(source) }
}

/// The signals of stopping, besides `Node::stop` for new calls and streams.
#[derive(Debug, Default)]
struct Stops {
    /// The listener for clients has ended, and with it all of its calls.
    clients_done: CancellationToken,
    /// Calls of the API by HTTP that are under way. Its listener goes on, for who asks whether the
    /// node is ready.
    http_calls: TaskTracker,
    /// The loops are to end.
    loops: CancellationToken,
    /// The listener for peers is to end.
    peers: CancellationToken,
}

async fn until(
    stop: CancellationToken,
    running: impl Future<Output = Result<(), RunError>>,
) -> Result<(), RunError> {
    tokio::select! {
        ended = running => ended,
        () = stop.cancelled() => Ok(()),
    }
}

fn founders(start: &Start) -> BTreeSet<NodeId> {
    start.founders().unwrap_or_default().into_keys().collect()
}

/// The nodes that a node asks to take it in.
fn asked(start: &Start) -> String {
    match start {
        Start::Join { nodes, .. } => nodes.join(", "),
        Start::Bootstrap(_) | Start::Wait => String::new(),
    }
}

async fn stop_all(
    node: &Node,
    log: LogStore,
    mut tasks: JoinSet<Result<(), RunError>>,
    stops: Stops,
) -> Result<(), RunError> {
    node.leadership().set_stopping();
    tracing::info!("stopping: not serving any more");
    let total = Duration::from_millis(node.tunables().shutdown_grace_ms);
    let grace = Grace::of(total, node.silence_max());
    hand_over(node, &grace).await;
    tracing::info!("refusing new calls; watch streams end, calls under way finish");
    node.stop().cancel();
    stops.http_calls.close();
    let done = async {
        stops.clients_done.cancelled().await;
        stops.http_calls.wait().await;
    };
    match tokio::time::timeout(grace.calls, done).await {
        Ok(()) => tracing::info!("calls are done"),
        Err(_elapsed) => tracing::warn!("calls did not end in time; going on without them"),
    }
    stops.loops.cancel();
    let raft = node.raft().shutdown().await;
    tracing::info!("Raft has stopped");
    stops.peers.cancel();
    let rest = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(grace.last_tasks, rest).await.is_err() {
        tasks.shutdown().await;
    }
    let closed = tokio::task::spawn_blocking(move || log.close()).await;
    closed
        .map_err(|panicked| RunError::of_task(Err(panicked)))?
        .map_err(|source| RunError::Log { source })?;
    tracing::info!("the log is closed");
    raft.map_err(|error| RunError::Raft { source: error.into() })
}

/// A leader hands the lead to a voter that answers, if there is one.
async fn hand_over(node: &Node, grace: &Grace) {
    if !node.leads() {
        return;
    }
    let next = match node.successor_at_stop(grace.successor).await {
        Ok(next) => next,
        Err(error) => return tracing::info!(%error, "nobody to hand the lead to"),
    };
    let deadline = Instant::now() + grace.transfer;
    match node.transfer(next, deadline).await {
        Ok(()) => tracing::info!(to = next.get(), "handed the lead over"),
        Err(error) => tracing::info!(%error, "not handed the lead over; those that run elect"),
    }
}

/// Says "serving" while this node has a leader in sight and takes writes; of its disk, by a name of
/// its own, while that has room.
async fn report_health(
    node: Arc<Node>,
    mut reporter: tonic_health::server::HealthReporter,
) -> Result<(), RunError> {
    const SERVICES: [&str; 3] = ["", "quorate.v1.Registry", "quorate.v1.Admin"];
    const DISK: &str = "quorate.disk";
    /// The audit log is looked at this often: it has nobody to tell.
    const LOOK_EVERY: Duration = Duration::from_secs(1);
    let (mut leaders, mut disk) = (node.leadership().views(), node.disk().follow());
    let mut told = None;
    let status = |serving| match serving {
        true => tonic_health::ServingStatus::Serving,
        false => tonic_health::ServingStatus::NotServing,
    };
    while !node.stop().is_cancelled() {
        let is_led = leaders.borrow_and_update().is_some();
        let has_room = !*disk.borrow_and_update();
        let now = (is_led && node.write_obstacle().is_none(), has_room);
        // Who follows it hears of changes only.
        if told.replace(now) != Some(now) {
            for service in SERVICES {
                reporter.set_service_status(service, status(now.0)).await;
            }
            reporter.set_service_status(DISK, status(has_room)).await;
        }
        let news = async {
            tokio::select! {
                _ = leaders.changed() => {}
                _ = disk.changed() => {}
                () = node.stop().cancelled() => {}
            }
        };
        // Late or not, it looks again.
        let _ = tokio::time::timeout(LOOK_EVERY, news).await;
    }
    // Ends the streams of clients that follow it, which would hold the listener up.
    for service in SERVICES.into_iter().chain([DISK]) {
        reporter.clear_service_status(service).await;
    }
    std::future::pending().await
}

/// Ends when the Raft library stops by itself, which it does when its storage fails.
async fn watch_raft(node: Arc<Node>) -> Result<(), RunError> {
    // Changes seldom, unlike the metrics that hold the reason, and is closed when the library ends.
    let mut view = node.view().clone();
    while view.changed().await.is_ok() {}
    Err(match &node.metrics().borrow_watched().running_state {
        Err(fatal) => RunError::Raft { source: fatal.clone().into() },
        Ok(()) => RunError::Ended,
    })
}

#[cfg(test)]
mod tests;
