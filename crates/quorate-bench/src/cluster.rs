//! Three nodes of one peer as child processes on loopback, each with its data and its log below one
//! directory. Every setting is the peer's default; both wait for their disks before they
//! acknowledge.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::certs::{Address, Certs};
use crate::ports::free_port;
use crate::process::{self, Memory, Process};
use crate::programs::Etcd;
use crate::wire::{Connection, NodeView, Peer};
use crate::{disk, output};

pub(crate) const NODES: usize = 3;
/// All nodes are up and know one leader.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Between two looks.
const POLL: Duration = Duration::from_millis(10);
/// What the logs of either peer say of a port that another process has, in small letters.
const PORT_TAKEN: &str = "address already in use";
/// How much of a node's log is shown when it does not come up.
const TAIL_LINES: usize = 15;

/// The servers' programs, and what they show each other.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub(crate) quorate: PathBuf,
    /// None: only Quorate is measured.
    pub(crate) etcd: Option<Etcd>,
    /// None: nobody speaks TLS.
    pub(crate) certs: Option<Certs>,
}

/// Three server processes. Dropped, its processes and data are gone.
pub(crate) struct Cluster {
    pub(crate) peer: Peer,
    pub(crate) nodes: Vec<Node>,
    dir: PathBuf,
    keep: bool,
}

/// One server process, running or not.
pub(crate) struct Node {
    /// Its address for clients.
    pub(crate) address: Address,
    /// Its address for HTTP; an old etcd's is the one for clients.
    pub(crate) http: String,
    pub(crate) data_dir: PathBuf,
    program: PathBuf,
    args: Vec<String>,
    log: PathBuf,
    process: Option<Process>,
}

impl Cluster {
    /// Starts three nodes below `base` and waits until all of them see one leader.
    /// With `keep`, data and logs stay.
    pub(crate) async fn start(
        peer: Peer,
        programs: &Programs,
        base: &Path,
        keep: bool,
    ) -> Result<Self> {
        match Self::start_once(peer, programs, base, keep).await {
            // Somebody took one between our look and the start.
            Err(error) if format!("{error:#}").to_lowercase().contains(PORT_TAKEN) => {
                output::note(&format!("{}: {PORT_TAKEN}; once more", peer.name()));
                Self::start_once(peer, programs, base, keep).await
            }
            done => done,
        }
    }

    async fn start_once(peer: Peer, programs: &Programs, base: &Path, keep: bool) -> Result<Self> {
        static STARTED: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = STARTED.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let dir = base.join(format!("{}-{number}", peer.name()));
        std::fs::create_dir_all(&dir)?;
        let ports = (0..NODES).map(|_| Ok((free_port()?, free_port()?, free_port()?)));
        let ports = ports.collect::<Result<Vec<_>>>()?;
        let node = |at| Node::new(peer, at, &ports, programs, &dir);
        let nodes = (0..NODES).map(node).collect();
        let mut cluster = Self { peer, nodes, dir, keep };
        for node in &mut cluster.nodes {
            node.start()?;
        }
        cluster.ready().await?;
        Ok(cluster)
    }

    /// Waits until all nodes that run see the same leader, which runs; its place.
    pub(crate) async fn ready(&mut self) -> Result<usize> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            match self.find_leader().await {
                Ok(place) => return Ok(place),
                Err(error) if Instant::now() > deadline => {
                    let logs: Vec<String> = self.nodes.iter().map(Node::log_tail).collect();
                    return Err(error.context(format!(
                        "{} is not ready after {READY_WITHIN:?}; logs:\n{}",
                        self.peer.name(),
                        logs.join("\n")
                    )));
                }
                Err(_) => tokio::time::sleep(POLL).await,
            }
            let ended = self.nodes.iter_mut().position(Node::ended_by_itself);
            if let Some(node) = ended.map(|at| &self.nodes[at]) {
                bail!("{} ended by itself; its log:\n{}", node.program.display(), node.log_tail());
            }
        }
    }

    async fn find_leader(&self) -> Result<usize> {
        let mut seen = Vec::new();
        for (place, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.runs()) {
            seen.push((place, node.view(self.peer).await?));
        }
        let leader = seen.first().and_then(|(_, view)| view.leader_id);
        let leader = leader.filter(|id| seen.iter().all(|(_, view)| view.leader_id == Some(*id)));
        let place = leader.and_then(|id| seen.iter().find(|(_, view)| view.own_id == id.get()));
        place.map(|(place, _)| *place).with_context(|| format!("no agreed leader: {seen:?}"))
    }

    /// Waits until every running node has applied what the furthest had applied when this was
    /// called.
    pub(crate) async fn caught_up(&self) -> Result<()> {
        let mut furthest = 0;
        for node in self.nodes.iter().filter(|node| node.runs()) {
            furthest = node.view(self.peer).await?.applied.max(furthest);
        }
        let deadline = Instant::now() + READY_WITHIN;
        for node in self.nodes.iter().filter(|node| node.runs()) {
            while node.view(self.peer).await?.applied < furthest {
                anyhow::ensure!(Instant::now() < deadline, "a node does not catch up");
                tokio::time::sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// New connections, this many to each node, ordered round the nodes: each run of three goes to
    /// three nodes.
    pub(crate) async fn connect(&self, per_node: usize) -> Result<Vec<Connection>> {
        let mut connections = Vec::new();
        for _ in 0..per_node {
            for node in &self.nodes {
                connections.push(Connection::open(self.peer, &node.address).await?);
            }
        }
        Ok(connections)
    }

    /// The processes of the nodes that run.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.nodes.iter().filter_map(Node::pid).collect()
    }

    pub(crate) fn memory(&self) -> Result<Vec<Memory>> {
        self.pids().into_iter().map(process::memory).collect()
    }

    /// What each node's data occupies on the disk, in bytes.
    pub(crate) fn disk(&self) -> Vec<u64> {
        self.nodes.iter().map(|node| disk::used(&node.data_dir)).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.kill();
        }
        if !self.keep {
            let _nothing_to_do = std::fs::remove_dir_all(&self.dir);
        }
    }
}

impl Node {
    fn new(
        peer: Peer,
        at: usize,
        ports: &[(u16, u16, u16)],
        programs: &Programs,
        dir: &Path,
    ) -> Self {
        let certs = programs.certs.as_ref().filter(|_| peer != Peer::Plain);
        let etcd = programs.etcd.as_ref().filter(|_| peer == Peer::Etcd);
        let address = |port: u16| format!("127.0.0.1:{port}");
        let (clients, peers) = (address(ports[at].0), address(ports[at].1));
        // Where one port is for both, etcd's gRPC goes through Go's server of HTTP under TLS.
        let http_apart = etcd.is_none_or(|etcd| etcd.http_apart);
        let http = if http_apart { address(ports[at].2) } else { clients.clone() };
        let data_dir = dir.join(format!("data-{}", at + 1));
        let data = data_dir.display().to_string();
        let scheme = if certs.is_some() { "https" } else { "http" };
        let url = |address: &str| format!("{scheme}://{address}");
        let founders = |separator: &str, named: &dyn Fn(usize, String) -> String| {
            let all =
                ports.iter().enumerate().map(|(at, (_, port, _))| named(at + 1, address(*port)));
            all.collect::<Vec<_>>().join(separator)
        };
        let mut args = match etcd {
            None => vec![
                "serve".to_owned(),
                format!("--id={}", at + 1),
                format!("--data-dir={data}"),
                format!("--listen={clients}"),
                format!("--peer-listen={peers}"),
                format!("--http-listen={http}"),
                format!("--bootstrap={}", founders(",", &|id, peer| format!("{id}={peer}"))),
            ],
            Some(_) => vec![
                format!("--name=n{}", at + 1),
                format!("--data-dir={data}"),
                format!("--listen-client-urls={}", url(&clients)),
                format!("--advertise-client-urls={}", url(&clients)),
                format!("--listen-peer-urls={}", url(&peers)),
                format!("--initial-advertise-peer-urls={}", url(&peers)),
                format!(
                    "--initial-cluster={}",
                    founders(",", &|id, peer| format!("n{id}={}", url(&peer)))
                ),
            ],
        };
        if etcd.is_some() && http_apart {
            args.push(format!("--listen-client-http-urls={}", url(&http)));
        }
        args.extend(certs.into_iter().flat_map(|certs| tls(peer, certs, at + 1)));
        let program = etcd.map_or(&programs.quorate, |etcd| &etcd.path).clone();
        let log = dir.join(format!("node-{}.log", at + 1));
        let address = Address { text: clients, certs: certs.cloned() };
        Self { address, http, data_dir, program, args, log, process: None }
    }

    /// Starts it, for the first time or again.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.process = Some(Process::start(&self.program, &self.args, &self.log)?);
        Ok(())
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// SIGSTOP: it stands still, its connections stay open.
    pub(crate) fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT.
    pub(crate) fn go_on(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        self.process.as_ref().context("the node does not run")?.signal(signal)
    }

    pub(crate) fn runs(&self) -> bool {
        self.process.is_some()
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    fn ended_by_itself(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| !process.runs())
    }

    async fn view(&self, peer: Peer) -> Result<NodeView> {
        Connection::open(peer, &self.address).await?.view().await
    }

    fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

/// What a node is told of TLS: everybody shows a certificate, clients and nodes.
fn tls(peer: Peer, certs: &Certs, id: usize) -> Vec<String> {
    let (ca, (cert, key)) = (certs.ca(), certs.node(id));
    match peer {
        Peer::Quorate | Peer::Plain => vec![
            format!("--tls-ca={ca}"),
            format!("--tls-cert={cert}"),
            format!("--tls-key={key}"),
            "--tls-clients=required".to_owned(),
        ],
        Peer::Etcd => vec![
            format!("--trusted-ca-file={ca}"),
            format!("--cert-file={cert}"),
            format!("--key-file={key}"),
            "--client-cert-auth".to_owned(),
            format!("--peer-trusted-ca-file={ca}"),
            format!("--peer-cert-file={cert}"),
            format!("--peer-key-file={key}"),
            "--peer-client-cert-auth".to_owned(),
        ],
    }
}
