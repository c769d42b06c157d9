//! Whole nodes in this process, on loopback and in a temporary directory: started, stopped,
//! restarted on the same directory and the same ports, cut off from the others.
//!
//! Must not know what a test wants to see. Everything that has to be waited for goes through
//! [`eventually`], which has a deadline and says what did not come.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Once;
use std::time::Duration;

use quorate_client::{Client, ClientBuilder};
use quorate_node::{
    Bound, Config, Environment, HealthChecks, Levels, RunError, Server, Start, Tunables,
};
use quorate_proto::v1::admin_client::AdminClient;
use quorate_proto::v1::registry_client::RegistryClient;
use quorate_proto::v1::{
    ListMembersRequest, Member, MemberRole, NodeState, StatusRequest, StatusResponse,
};
use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

use super::link::Link;
use super::own_thread::OwnThread;
use super::ports::free_address;
pub(crate) use super::waiting::{SOON, eventually, within};

/// Clusters that live at the same time, however many test threads there are.
static LIVE: Semaphore = Semaphore::const_new(3);

/// Messages a test takes in at most: larger than any that a node should send.
pub(crate) const DECODE_MAX: usize = 64 * 1024 * 1024;

/// Nodes of one cluster.
pub(crate) struct Cluster {
    nodes: BTreeMap<u64, Node>,
    dir: TempDir,
    tunables: Tunables,
    health_checks: HealthChecks,
    kind: Kind,
    _live: Option<SemaphorePermit<'static>>,
}

/// What can be done to its nodes, beside stopping them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    /// Cutting them off from the others.
    Cuttable,
    /// Making them stand still, as SIGSTOP would.
    Freezable,
}

struct Node {
    config: Config,
    /// Where clients reach it, also while it is stopped.
    client: String,
    /// Where peers reach it.
    peer: String,
    link: Option<Link>,
    /// For its calls and for Raft, as `quorate serve` has them: else calls starve elections.
    threads: Option<[OwnThread; 2]>,
    levels: Levels,
    running: Option<Running>,
}

struct Running {
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), RunError>>,
}

impl Cluster {
    /// A cluster of the nodes 1 to `size`, founded and settled.
    pub(crate) async fn start(size: u64) -> Self {
        Self::start_with(size, Tunables::default()).await
    }

    pub(crate) async fn start_with(size: u64, tunables: Tunables) -> Self {
        let live = LIVE.acquire().await.expect("invariant: never closed");
        Self::found(1..=size, tunables, Kind::Plain, Some(live)).await
    }

    /// A cluster that makes health checks in these networks.
    pub(crate) async fn start_probing(size: u64, networks: &str) -> Self {
        let live = LIVE.acquire().await.expect("invariant: never closed");
        let allow = networks.parse().expect("networks");
        let health_checks = HealthChecks { allow };
        Self::found_in(1..=size, Tunables::default(), health_checks, Kind::Plain, Some(live)).await
    }

    /// A cluster whose nodes can be cut off from the others.
    pub(crate) async fn start_cuttable(size: u64, tunables: Tunables) -> Self {
        let live = LIVE.acquire().await.expect("invariant: never closed");
        Self::found(1..=size, tunables, Kind::Cuttable, Some(live)).await
    }

    /// A cluster whose nodes can be made to stand still.
    pub(crate) async fn start_freezable(size: u64) -> Self {
        Self::start_freezable_with(size, Tunables::default()).await
    }

    pub(crate) async fn start_freezable_with(size: u64, tunables: Tunables) -> Self {
        let live = LIVE.acquire().await.expect("invariant: never closed");
        Self::found(1..=size, tunables, Kind::Freezable, Some(live)).await
    }

    /// A second cluster within the same test: of one node with this id.
    pub(crate) async fn start_another(id: u64) -> Self {
        Self::found(id..=id, Tunables::default(), Kind::Plain, None).await
    }

    async fn found(
        ids: RangeInclusive<u64>,
        tunables: Tunables,
        kind: Kind,
        live: Option<SemaphorePermit<'static>>,
    ) -> Self {
        Self::found_in(ids, tunables, HealthChecks::default(), kind, live).await
    }

    async fn found_in(
        ids: RangeInclusive<u64>,
        tunables: Tunables,
        health_checks: HealthChecks,
        kind: Kind,
        live: Option<SemaphorePermit<'static>>,
    ) -> Self {
        let mut cluster = Self::prepared(ids.clone(), tunables, health_checks, kind, live).await;
        for id in ids {
            cluster.run(id).await;
        }
        cluster.settled().await;
        cluster
    }

    /// Founders of which none was started yet.
    pub(crate) async fn prepare_founders(size: u64) -> Self {
        let live = LIVE.acquire().await.expect("invariant: never closed");
        let (tunables, health_checks) = (Tunables::default(), HealthChecks::default());
        Self::prepared(1..=size, tunables, health_checks, Kind::Plain, Some(live)).await
    }

    async fn prepared(
        ids: RangeInclusive<u64>,
        tunables: Tunables,
        health_checks: HealthChecks,
        kind: Kind,
        live: Option<SemaphorePermit<'static>>,
    ) -> Self {
        log_if_asked();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let nodes = BTreeMap::new();
        let mut cluster = Self { nodes, dir, tunables, health_checks, kind, _live: live };
        for id in ids {
            cluster.prepare(id, Start::Wait).await;
        }
        cluster.list_anew();
        cluster
    }

    /// What a stopped node is started with.
    pub(crate) fn config_mut(&mut self, id: u64) -> &mut Config {
        let node = self.node_mut(id);
        assert!(node.running.is_none(), "node {id} runs");
        &mut node.config
    }

    /// Starts one more node that waits to be taken in.
    pub(crate) async fn add_waiting(&mut self, id: u64) {
        self.prepare(id, Start::Wait).await;
        self.run(id).await;
    }

    /// Starts one more node that asks the others to take it in.
    pub(crate) async fn add_joining(&mut self, id: u64, observer: bool) {
        let nodes = self.addresses();
        self.prepare(id, Start::Join { nodes, observer }).await;
        self.run(id).await;
    }

    async fn prepare(&mut self, id: u64, start: Start) {
        let (listen, peer_listen) = (free_address(), free_address());
        let link = match self.kind {
            Kind::Cuttable => Some(Link::open(peer_listen).await),
            Kind::Plain | Kind::Freezable => None,
        };
        let threads = || [OwnThread::start(), OwnThread::start()];
        let threads = (self.kind == Kind::Freezable).then(threads);
        let peer = link.as_ref().map_or(peer_listen, Link::address).to_string();
        let config = Config {
            peer_advertise: Some(peer.clone()),
            start,
            health_checks: self.health_checks.clone(),
            cluster_name: quorate_node::CLUSTER_NAME.to_owned(),
            access: None,
            audit: None,
            http_listen: Some(free_address()),
            tunables: self.tunables.clone(),
            ..Config::new(id, self.dir.path().join(id.to_string()), listen, peer_listen)
        };
        let (client, levels, running) = (listen.to_string(), Levels::OWN, None);
        let node = Node { config, client, peer, link, threads, levels, running };
        assert!(self.nodes.insert(id, node).is_none(), "node {id} is there");
    }

    async fn run(&mut self, id: u64) {
        let node = self.node_mut(id);
        assert!(node.running.is_none(), "node {id} runs already");
        let (on, raft_on) = match &node.threads {
            Some([calls, raft]) => (calls.handle(), Some(raft.handle())),
            None => (Handle::current(), None),
        };
        let environment = Environment { raft_on, levels: node.levels, ..Environment::default() };
        let bound = on.spawn(Server::bind_in(node.config.clone(), environment)).await;
        let bound: Bound = bound
            .expect("no panic")
            .unwrap_or_else(|error| panic!("node {id} does not start: {error:?}"));
        assert_eq!(bound.client_addr(), node.config.listen);
        let (stop, stopped) = oneshot::channel::<()>();
        // A cluster that is dropped stops its nodes too.
        let stopped = async { drop(stopped.await) };
        node.running = Some(Running { stop, ended: on.spawn(bound.run(stopped)) });
    }

    /// Stops a node in order and checks that it went well.
    pub(crate) async fn stop(&mut self, id: u64) {
        let running = self.node_mut(id).running.take();
        let Running { stop, ended } = running.unwrap_or_else(|| panic!("node {id} does not run"));
        let _ = stop.send(());
        let ended = timeout(SOON, ended).await;
        let ended = ended.unwrap_or_else(|_| panic!("node {id} does not stop"));
        let ended = ended.unwrap_or_else(|error| panic!("node {id} panicked: {error}"));
        ended.unwrap_or_else(|error| panic!("node {id} stopped with an error: {error:?}"));
    }

    /// Waits until a node has stopped by itself; why.
    pub(crate) async fn ended(&mut self, id: u64) -> RunError {
        let running = self.node_mut(id).running.take().expect("it was started");
        let ended = timeout(SOON, running.ended).await;
        let ended = ended.unwrap_or_else(|_| panic!("node {id} goes on")).expect("no panic");
        ended.expect_err("it stopped by itself")
    }

    /// A stopped node loses its data directory.
    pub(crate) fn wipe(&mut self, id: u64) {
        let node = self.node(id);
        assert!(node.running.is_none(), "node {id} runs");
        std::fs::remove_dir_all(&node.config.data_dir).expect("a data directory");
    }

    /// Where a stopped node has its data.
    pub(crate) fn data_dir(&self, id: u64) -> &Path {
        assert!(self.node(id).running.is_none(), "node {id} runs");
        &self.node(id).config.data_dir
    }

    /// What a stopped node is started with works at these levels, as another release would.
    pub(crate) fn release(&mut self, id: u64, levels: Levels) {
        self.node_mut(id).levels = levels;
    }

    /// Starts a stopped node again, on its directory and its ports.
    pub(crate) async fn restart(&mut self, id: u64) {
        self.run(id).await;
    }

    /// A stopped node gets other ports; it finds the others by what it has, unless it is given a
    /// new list.
    pub(crate) fn move_away(&mut self, id: u64) {
        self.listen_at(id, free_address(), free_address());
    }

    fn listen_at(&mut self, id: u64, listen: SocketAddr, peer_listen: SocketAddr) {
        let node = self.node_mut(id);
        assert!(node.running.is_none() && node.link.is_none(), "node {id} cannot move");
        (node.client, node.peer) = (listen.to_string(), peer_listen.to_string());
        (node.config.listen, node.config.peer_listen) = (listen, peer_listen);
        node.config.peer_advertise = Some(node.peer.clone());
    }

    /// Each of two stopped nodes will listen where the other did.
    pub(crate) fn change_places(&mut self, one: u64, other: u64) {
        let [(a, a_peer), (b, b_peer)] =
            [one, other].map(|id| (self.node(id).config.listen, self.node(id).config.peer_listen));
        self.listen_at(one, b, b_peer);
        self.listen_at(other, a, a_peer);
    }

    /// The bootstrap list of all nodes is written anew, with where they are now.
    pub(crate) fn list_anew(&mut self) {
        let list: BTreeMap<u64, String> =
            self.nodes.iter().map(|(id, node)| (*id, node.peer.clone())).collect();
        for node in self.nodes.values_mut() {
            node.config.start = Start::Bootstrap(list.clone());
        }
    }

    /// Stops nodes at the same time.
    pub(crate) async fn stop_all(&mut self) {
        let running = self.nodes.iter_mut();
        let running = running.filter_map(|(id, node)| Some((*id, node.running.take()?)));
        let running: Vec<_> = running.collect();
        let mut ending = Vec::new();
        for (id, Running { stop, ended }) in running {
            let _ = stop.send(());
            ending.push((id, ended));
        }
        for (id, ended) in ending {
            let ended = timeout(SOON, ended).await.expect("it stops").expect("no panic");
            ended.unwrap_or_else(|error| panic!("node {id}: {error:?}"));
        }
    }

    /// No node reaches this node's peer address any more; it still reaches the others.
    pub(crate) fn cut_off(&self, id: u64) {
        self.node(id).link.as_ref().expect("a cuttable cluster").set_open(false);
    }

    /// The same after so long.
    pub(crate) fn cut_off_after(&self, id: u64, time: Duration) {
        self.node(id).link.as_ref().expect("a cuttable cluster").cut_after(time);
    }

    pub(crate) fn reconnect(&self, id: u64) {
        self.node(id).link.as_ref().expect("a cuttable cluster").set_open(true);
    }

    /// How often others have asked for a connection to this node.
    pub(crate) fn dialled(&self, id: u64) -> u64 {
        self.node(id).link.as_ref().expect("a cuttable cluster").dialled()
    }

    /// What the others send to this node takes `there` from now on, and what it answers them
    /// `back`.
    pub(crate) fn delay(&self, id: u64, there: Duration, back: Duration) {
        self.node(id).link.as_ref().expect("a cuttable cluster").set_delays(there, back);
    }

    /// This node stands still until it is thawed: its sockets take what fits and answer nothing.
    pub(crate) fn freeze(&mut self, id: u64) {
        self.threads(id).iter_mut().for_each(OwnThread::freeze);
    }

    /// This node stands still for so long.
    pub(crate) fn freeze_for(&mut self, id: u64, time: Duration) {
        self.threads(id).iter().for_each(|thread| thread.freeze_for(time));
    }

    pub(crate) fn thaw(&mut self, id: u64) {
        self.threads(id).iter_mut().for_each(OwnThread::thaw);
    }

    fn threads(&mut self, id: u64) -> &mut [OwnThread; 2] {
        self.node_mut(id).threads.as_mut().expect("a freezable cluster")
    }

    fn node(&self, id: u64) -> &Node {
        self.nodes.get(&id).unwrap_or_else(|| panic!("there is no node {id}"))
    }

    fn node_mut(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).unwrap_or_else(|| panic!("there is no node {id}"))
    }

    /// The nodes that run.
    pub(crate) fn ids(&self) -> Vec<u64> {
        let running = self.nodes.iter().filter(|(_, node)| node.running.is_some());
        running.map(|(id, _)| *id).collect()
    }

    /// Where clients reach the nodes that run.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.ids().into_iter().map(|id| self.node(id).client.clone()).collect()
    }

    pub(crate) fn client_address(&self, id: u64) -> &str {
        &self.node(id).client
    }

    pub(crate) fn http_address(&self, id: u64) -> SocketAddr {
        self.node(id).config.http_listen.expect("every node has one")
    }
    pub(crate) fn peer_address(&self, id: u64) -> &str {
        &self.node(id).peer
    }

    /// A connection to one node, and to no other.
    pub(crate) fn channel(&self, id: u64) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.node(id).client));
        endpoint.expect("an address").tcp_nodelay(true).connect_lazy()
    }

    pub(crate) fn registry(&self, id: u64) -> RegistryClient<Channel> {
        RegistryClient::new(self.channel(id))
            .max_decoding_message_size(DECODE_MAX)
            .max_encoding_message_size(DECODE_MAX)
    }

    pub(crate) fn admin(&self, id: u64) -> AdminClient<Channel> {
        AdminClient::new(self.channel(id))
    }

    /// The client crate over all nodes that run now.
    pub(crate) fn client_builder(&self) -> ClientBuilder {
        Client::builder(self.addresses())
    }

    /// One whose calls have as long as a busy machine may take.
    pub(crate) async fn client(&self) -> Client {
        self.client_builder().call_timeout(SOON).build().expect("a client")
    }

    /// What one node says of itself.
    pub(crate) async fn own_status(&self, id: u64) -> Option<StatusResponse> {
        let request = StatusRequest { local_only: true };
        Some(self.admin(id).status(request).await.ok()?.into_inner())
    }

    /// The node that leads, once the others that run agree.
    pub(crate) async fn leader(&self) -> u64 {
        let ids = self.ids();
        self.leader_of(&ids).await
    }

    /// The node that leads, as these nodes see it.
    pub(crate) async fn leader_of(&self, ids: &[u64]) -> u64 {
        eventually("a leader that all follow", || async {
            let mut leads = None;
            let mut followed = Vec::new();
            for id in ids {
                let status = self.own_status(*id).await?;
                followed.push(status.header?.leader_id);
                if status.members.first()?.state() == NodeState::Leader {
                    leads = Some(*id);
                }
            }
            let leads = leads?;
            followed.iter().all(|leader| *leader == leads).then_some(leads)
        })
        .await
    }

    /// Another node than the leader.
    pub(crate) async fn follower(&self) -> u64 {
        let leader = self.leader().await;
        self.ids().into_iter().find(|id| *id != leader).expect("more than one node")
    }

    /// The members as a node has them.
    pub(crate) async fn members(&self, id: u64) -> Vec<Member> {
        let answer = self.registry(id).list_members(ListMembersRequest {}).await;
        answer.expect("the members").into_inner().members
    }

    /// The voters as a node has them.
    pub(crate) async fn voters(&self, id: u64) -> Vec<u64> {
        let members = self.members(id).await.into_iter();
        members.filter(|m| m.role() == MemberRole::Voter).map(|m| m.id).collect()
    }

    /// Waits until the nodes that run know all members with their addresses, and the leader.
    pub(crate) async fn settled(&self) {
        for id in self.ids() {
            eventually("every node knows every member's address", || async {
                let answer = self.registry(id).list_members(ListMembersRequest {}).await.ok()?;
                let members = answer.into_inner().members;
                let known = |id: &u64| {
                    let known = members.iter().find(|member| member.id == *id);
                    known.is_some_and(|known| known.client_address == self.node(*id).client)
                };
                self.ids().iter().all(known).then_some(())
            })
            .await;
        }
        self.leader().await;
    }
}

/// `QUORATE_TEST_LOG=info` (or finer) shows what the nodes say.
fn log_if_asked() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Ok(filter) = std::env::var("QUORATE_TEST_LOG") {
            let filter = tracing_subscriber::EnvFilter::new(filter);
            tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().init();
        }
    });
}
