//! A cluster of `quorate serve` processes on loopback, each with its data directory and its log in
//! one temporary directory. When a test fails, the end of every node's log is printed and the
//! directory stays.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use quorate_client::{Client, ClientBuilder};
use quorate_proto::v1::admin_client::AdminClient;
use quorate_proto::v1::registry_client::RegistryClient;
use quorate_proto::v1::{
    Consistency, FetchRequest, FetchResponse, Instance, MemberStatus, NodeState, StatusRequest,
    StatusResponse,
};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::Status;
use tonic::transport::Channel;

use crate::link::Link;
use crate::newer::Newer;
use crate::ports::free_port;
use crate::process::{Process, THIS_RELEASE, text_of};
use crate::raw::with_deadline;
use crate::secured::{Secured, plain};
use crate::wait::eventually;

/// Live nodes of all tests together: on two cores, more would measure the machine.
static ROOM: Semaphore = Semaphore::const_new(7);
/// An election takes at most a second or two; a loaded machine may need several.
pub(crate) const LEADER_WITHIN: Duration = Duration::from_secs(30);
/// What one call is given: more than a busy machine makes of an election. How long writes pause is
/// measured by what lies between those that are done, not by calls that fail.
pub(crate) const CALL_WITHIN: Duration = Duration::from_secs(30);
/// All nodes at the same state, once nothing more is written.
const EQUAL_WITHIN: Duration = Duration::from_secs(40);
/// What every node's state is hashed at: the log indexes that this divides.
const HASH_EVERY: u64 = 64;
/// Lines of a node's log that are shown when a test fails.
const TAIL: usize = 60;

/// How a cluster differs from the usual one.
#[derive(Default)]
pub(crate) struct Settings {
    /// The table `[tunables]` of every node's configuration file.
    pub(crate) tunables: String,
    /// The table `[health_checks]`.
    pub(crate) health_checks: String,
    /// Others reach each node over a line that can be cut.
    pub(crate) cuttable: bool,
    /// Data directories that are somewhere else.
    pub(crate) data_dirs: BTreeMap<u64, PathBuf>,
    /// The arguments of the shell's `ulimit` before each node starts, if any.
    pub(crate) ulimit: String,
    /// What stands before the tables in the configuration file of each node.
    pub(crate) head: BTreeMap<u64, String>,
    /// TLS between nodes and to clients, with certificates for all.
    pub(crate) secured: bool,
    /// Each node is reached by a relay that knows what is said ([`Node::relay`]).
    pub(crate) relayed: bool,
}

/// Running nodes, and what they leave on disk.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    pub(crate) secured: Option<Secured>,
    dir: Option<TempDir>,
    _room: SemaphorePermit<'static>,
}

/// One `quorate serve`, running or not.
pub(crate) struct Node {
    pub(crate) id: u64,
    /// Address for clients.
    pub(crate) clients: String,
    pub(crate) data_dir: PathBuf,
    args: Vec<String>,
    log: PathBuf,
    link: Option<Link>,
    relay: Option<Newer>,
    secured: Option<Secured>,
    ulimit: String,
    /// What it is started with.
    pub(crate) binary: PathBuf,
    process: Option<Process>,
}

impl Cluster {
    /// Starts this number of nodes with `--bootstrap` and waits until all of them know the leader.
    pub(crate) async fn start(size: u64) -> Self {
        Self::start_with(size, Settings::default()).await
    }

    pub(crate) async fn start_with(size: u64, settings: Settings) -> Self {
        let mut cluster = Self::prepare(size, settings).await;
        for node in &mut cluster.nodes {
            node.start();
        }
        cluster.leader().await;
        cluster
    }

    /// A cluster of which no node runs yet.
    pub(crate) async fn prepare(size: u64, settings: Settings) -> Self {
        let room = ROOM.acquire_many(u32::try_from(size).unwrap()).await.unwrap();
        let dir = tempfile::Builder::new().prefix("quorate-process-").tempdir().unwrap();
        let places: Vec<(u64, u16, u16)> =
            (1..=size).map(|id| (id, free_port(), free_port())).collect();
        let secured = match settings.secured {
            true => Some(Secured::make(dir.path().join("certs"), size).await),
            false => None,
        };
        let mut links = BTreeMap::new();
        if settings.cuttable {
            for (id, _, peers) in &places {
                links.insert(*id, Link::open(([127, 0, 0, 1], *peers).into()).await);
            }
        }
        let mut relays = BTreeMap::new();
        if settings.relayed {
            for (id, _, peers) in &places {
                relays.insert(*id, Newer::open(([127, 0, 0, 1], *peers).into()).await);
            }
        }
        let reached = |id: u64, peers: u16| {
            let by = links.get(&id).map(Link::address).or(relays.get(&id).map(Newer::address));
            by.unwrap_or(([127, 0, 0, 1], peers).into()).to_string()
        };
        let founders: Vec<String> =
            places.iter().map(|(id, _, peers)| format!("{id}={}", reached(*id, *peers))).collect();
        let nodes = places.iter().map(|&(id, clients, peers)| {
            let advertised = reached(id, peers);
            let data_dir = settings.data_dirs.get(&id).cloned();
            let data_dir = data_dir.unwrap_or_else(|| dir.path().join(format!("data-{id}")));
            let config = dir.path().join(format!("node-{id}.toml"));
            let (health_checks, tunables) = (&settings.health_checks, &settings.tunables);
            let head = settings.head.get(&id).map_or("", String::as_str);
            let tls = secured.as_ref().map(|secured| secured.table(id)).unwrap_or_default();
            let text =
                format!("{head}\n{tls}[health_checks]\n{health_checks}\n[tunables]\n{tunables}");
            std::fs::write(&config, text).unwrap();
            let mut node =
                Node::new(id, clients, peers, data_dir, &founders.join(","), &config, dir.path());
            node.args.extend(["--peer-advertise".to_owned(), advertised]);
            node.ulimit = settings.ulimit.clone();
            node.secured = secured.clone();
            node
        });
        let mut nodes: Vec<Node> = nodes.collect();
        for node in &mut nodes {
            node.link = links.remove(&node.id);
            node.relay = relays.remove(&node.id);
        }
        Self { nodes, secured, dir: Some(dir), _room: room }
    }

    /// One more machine, with addresses of its own and nothing on its disk: once it is started, it
    /// waits to be taken in. Its place.
    pub(crate) async fn add_new(&mut self, id: u64) -> usize {
        let config = self.dir().join(format!("node-{id}.toml"));
        let mut tls = String::new();
        if let Some(secured) = &self.secured {
            secured.certs(&format!("node {id}")).await;
            tls = secured.table(id);
        }
        std::fs::write(&config, tls).unwrap();
        let data_dir = self.dir().join(format!("data-{id}"));
        let (clients, peers) = (free_port(), free_port());
        let mut node = Node::new(id, clients, peers, data_dir, "", &config, self.dir());
        node.args.extend(["--peer-advertise".to_owned(), format!("127.0.0.1:{peers}")]);
        node.found_nothing();
        node.secured = self.secured.clone();
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.as_ref().expect("is there until the end").path()
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.clients.clone()).collect()
    }

    /// The nodes as `--nodes` wants them.
    pub(crate) fn all(&self) -> String {
        self.addresses().join(",")
    }

    /// The client crate, given all addresses.
    pub(crate) fn client(&self) -> ClientBuilder {
        let client = Client::builder(self.addresses()).call_timeout(CALL_WITHIN);
        match &self.secured {
            Some(secured) => client.tls(secured.tls()),
            None => client,
        }
    }

    /// The places (not the ids) of the nodes that run.
    pub(crate) fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|at| self.nodes[*at].process.is_some()).collect()
    }

    pub(crate) fn others(&self, at: usize) -> Vec<usize> {
        (0..self.nodes.len()).filter(|other| *other != at).collect()
    }

    /// Waits until all running nodes see the same leader, which is one of them; its place.
    pub(crate) async fn leader(&self) -> usize {
        self.leader_among(&self.running()).await
    }

    /// The same, asking only these.
    pub(crate) async fn leader_among(&self, asked: &[usize]) -> usize {
        eventually("one leader", LEADER_WITHIN, || self.find_leader(asked)).await
    }

    async fn find_leader(&self, asked: &[usize]) -> Result<usize, String> {
        let mut leaders = Vec::new();
        for at in asked {
            let status = self.nodes[*at].status().await.map_err(|status| status.to_string())?;
            let header = status.header.unwrap_or_default();
            if header.cluster_id == 0 {
                return Err(format!("node {}: the cluster is being founded", header.node_id));
            }
            let leads = status.members.iter().any(|member| {
                member.state() == NodeState::Leader
                    && member.member.as_ref().is_some_and(|info| info.id == header.node_id)
            });
            if leads != (header.leader_id == header.node_id) {
                return Err(format!("node {} is between two states", header.node_id));
            }
            leaders.push(header.leader_id);
        }
        let leader = leaders[0];
        let place = asked.iter().copied().find(|at| self.nodes[*at].id == leader);
        match place {
            Some(at) if leaders.iter().all(|other| *other == leader) => Ok(at),
            _ => Err(format!("leaders as nodes see them: {leaders:?}")),
        }
    }

    /// Waits until all running nodes have the same state, by their hashes at an index after now and
    /// by their local reads; that state.
    pub(crate) async fn equal_states(&self) -> BTreeMap<String, Instance> {
        let running = self.running();
        let client = self.client().build().unwrap();
        let first = &self.nodes[running[0]];
        let before = first.its_status().await.applied_index;
        let mark = before.next_multiple_of(HASH_EVERY).max(HASH_EVERY);
        let deadline = Instant::now() + EQUAL_WITHIN;
        while first.its_status().await.last_log_index < mark {
            assert!(Instant::now() < deadline, "the log does not grow to {mark}");
            // Writes that change nothing (no such instance is there) still go through the log.
            let filler = |_| {
                let client = client.clone();
                tokio::spawn(async move { client.deregister("filler", "none").await })
            };
            for refused in (0..64).map(filler).collect::<Vec<_>>() {
                let _not_found = refused.await.unwrap();
            }
        }
        eventually("equal hashes", EQUAL_WITHIN, || self.compare_hashes(&running, mark)).await;
        let mut states = Vec::new();
        for at in running {
            states.push((at, self.nodes[at].instances(Consistency::Linearizable).await.unwrap()));
        }
        for (at, state) in &states {
            assert!(*state == states[0].1, "nodes {at} and {} differ", states[0].0);
        }
        states.swap_remove(0).1
    }

    async fn compare_hashes(&self, running: &[usize], mark: u64) -> Result<(), String> {
        let mut hashes = Vec::new();
        for at in running {
            let own = self.nodes[*at].own_status().await.map_err(|status| status.to_string())?;
            hashes.push((own.state_hash_index, own.state_hash));
        }
        let (index, _) = hashes[0];
        if index < mark || hashes.iter().any(|(other, _)| *other != index) {
            return Err(format!("not at the same index yet: {hashes:x?}"));
        }
        assert!(hashes.iter().all(|hash| *hash == hashes[0]), "nodes disagree: {hashes:x?}");
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for node in &self.nodes {
            let log = text_of(&node.log);
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(TAIL)..];
            eprintln!("--- node {}, the end of its log:\n{}", node.id, tail.join("\n"));
        }
        if let Some(dir) = self.dir.take() {
            eprintln!("--- data and logs stay in {}", dir.keep().display());
        }
    }
}

impl Node {
    fn new(
        id: u64,
        clients: u16,
        peers: u16,
        data_dir: PathBuf,
        founders: &str,
        config: &Path,
        dir: &Path,
    ) -> Self {
        let (clients, peers) = (format!("127.0.0.1:{clients}"), format!("127.0.0.1:{peers}"));
        let args = [
            ("--id", id.to_string()),
            ("--data-dir", data_dir.display().to_string()),
            ("--listen", clients.clone()),
            ("--peer-listen", peers),
            ("--bootstrap", founders.to_owned()),
            ("--config", config.display().to_string()),
        ];
        let flags = args.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
        let args = std::iter::once("serve".to_owned()).chain(flags).collect();
        let log = dir.join(format!("node-{id}.log"));
        let (link, relay, secured, ulimit) = (None, None, None, String::new());
        let binary = THIS_RELEASE.into();
        let process = None;
        Self { id, clients, data_dir, args, log, link, relay, secured, ulimit, binary, process }
    }

    /// Where other nodes reach it.
    pub(crate) fn peer_address(&self) -> String {
        let at = self.args.iter().rposition(|arg| arg == "--peer-advertise").expect("it is given");
        self.args[at + 1].clone()
    }

    /// The arguments that it is started with.
    pub(crate) fn args(&self) -> &[String] {
        &self.args
    }

    pub(crate) fn start(&mut self) {
        assert!(self.process.is_none(), "node {} runs", self.id);
        self.process = Some(match self.ulimit.as_str() {
            "" => Process::start_as(&self.binary, &self.args, &self.log, &self.log),
            ulimit => Process::start_limited(ulimit, &self.args, &self.log),
        });
    }

    /// As `start`, by a supervisor that sets these variables.
    pub(crate) fn start_supervised(&mut self, variables: &[(&str, String)]) {
        assert!(self.process.is_none(), "node {} runs", self.id);
        self.process = Some(Process::start_supervised(variables, &self.args, &self.log));
    }

    /// Another machine at the same addresses: it has an id of its own and nothing on its disk, and
    /// waits to be taken in.
    pub(crate) fn become_new(&mut self, id: u64) {
        assert!(self.process.is_none(), "node {} runs", self.id);
        self.id = id;
        self.data_dir.set_file_name(format!("data-{id}"));
        let values =
            [("--id", id.to_string()), ("--data-dir", self.data_dir.display().to_string())];
        for (flag, value) in values {
            let at = self.args.iter().position(|arg| arg == flag).expect("it is given");
            self.args[at + 1] = value;
        }
        self.found_nothing();
    }

    /// It is started without founders.
    fn found_nothing(&mut self) {
        if let Some(at) = self.args.iter().position(|arg| arg == "--bootstrap") {
            self.args.drain(at..at + 2);
        }
    }

    /// Once it is started, it asks this node to be taken in.
    pub(crate) fn asks(&mut self, address: &str) {
        self.args.extend(["--join".to_owned(), address.to_owned()]);
    }

    pub(crate) fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the node runs")
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        self.process().kill();
        self.process = None;
    }

    /// Waits for the end of a node that was asked to stop or that stops by itself.
    pub(crate) async fn exit_code(&mut self, within: Duration) -> i32 {
        let code = self.process().exit_code(within).await;
        self.process = None;
        code
    }

    /// SIGTERM.
    pub(crate) fn terminate(&mut self) {
        self.process().signal(Signal::TERM);
    }

    /// The others do not reach it any more; it still reaches them.
    pub(crate) fn cut_off(&self) {
        self.link.as_ref().expect("a cuttable cluster").set_open(false);
    }

    pub(crate) fn reconnect(&self) {
        self.link.as_ref().expect("a cuttable cluster").set_open(true);
    }

    pub(crate) fn relay(&self) -> &Newer {
        self.relay.as_ref().expect("a relayed cluster")
    }

    /// SIGSTOP.
    pub(crate) fn pause(&mut self) {
        self.process().pause();
    }

    pub(crate) fn go_on(&mut self) {
        self.process().signal(Signal::CONT);
    }

    /// Everything that it has logged, over all of its runs.
    pub(crate) fn log_text(&self) -> String {
        text_of(&self.log)
    }

    /// A connection to this node and no other.
    pub(crate) fn channel(&self) -> Channel {
        match &self.secured {
            Some(secured) => secured.channel(&self.clients),
            None => plain(&self.clients).connect_lazy(),
        }
    }

    /// The generated stub on this node.
    pub(crate) fn registry(&self) -> RegistryClient<Channel> {
        RegistryClient::new(self.channel()).max_decoding_message_size(64 * 1024 * 1024)
    }

    /// What it says of itself, without asking others.
    pub(crate) async fn status(&self) -> Result<StatusResponse, Status> {
        let request = with_deadline(StatusRequest { local_only: true }, Duration::from_secs(2));
        Ok(AdminClient::new(self.channel()).status(request).await?.into_inner())
    }

    pub(crate) async fn own_status(&self) -> Result<MemberStatus, Status> {
        let members = self.status().await?.members;
        members.into_iter().next().ok_or_else(|| Status::unavailable("is no member yet"))
    }

    /// The same, as soon as it answers: a busy machine may hold it up for seconds.
    pub(crate) async fn its_status(&self) -> MemberStatus {
        let what = format!("what node {} says of itself", self.id);
        eventually(&what, LEADER_WITHIN, async || self.own_status().await).await
    }

    /// Everything in the default namespace as this node has it.
    pub(crate) async fn fetch_all(
        &self,
        consistency: Consistency,
    ) -> Result<FetchResponse, Status> {
        let request = FetchRequest { consistency: consistency as i32, ..FetchRequest::default() };
        let request = with_deadline(request, CALL_WITHIN);
        Ok(self.registry().fetch(request).await?.into_inner())
    }

    /// The instances of that, by "service/id".
    pub(crate) async fn instances(
        &self,
        consistency: Consistency,
    ) -> Result<BTreeMap<String, Instance>, Status> {
        let services = self.fetch_all(consistency).await?.services;
        let all = services.into_iter().flat_map(|service| service.instances);
        Ok(all.map(|instance| (key(&instance), instance)).collect())
    }
}

/// "service/id".
pub(crate) fn key(instance: &Instance) -> String {
    format!("{}/{}", instance.service, instance.id)
}
