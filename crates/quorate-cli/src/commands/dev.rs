//! `dev`: a whole cluster in this process, on loopback, to try things out.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_client::{Client, Consistency};
use quorate_node::{Bound, Config, HealthChecks, RunError, Server, Start, Tunables};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::args::DevArgs;
use crate::failure::Failure;
use crate::failure::{chain, not_started};
use crate::signals::Stop;
use crate::{descriptors, logging, output};

/// From a node's port for clients to its port for peers.
const PEER_PORT_OFFSET: u16 = 100;
/// A cluster on one machine that has no leader by then never will.
const LEADER_WITHIN: Duration = Duration::from_secs(30);
/// What is logged unless QUORATE_LOG says otherwise: the addresses and commands should stay in sight, and nodes that all
/// stop at once complain about each other.
const LOG: &str = "warn,openraft=off,quorate_node::server=error";
/// Nodes that all stop at once cannot hand the lead over; they need not be given time to try. What was acknowledged is on
/// the disk already.
const SHUTDOWN_GRACE_MS: u64 = 1_000;

pub(crate) async fn run(args: DevArgs) -> Result<(), Failure> {
    logging::start(LOG, args.log.log_format);
    let mut stop = Stop::listen()?;
    let data = Data::new(args.data_dir)?;
    let addresses = addresses(args.listen, args.nodes)?;
    let mut nodes: Vec<Bound> = Vec::new();
    let health_checks = HealthChecks { allow: args.health_checks_allow.unwrap_or_default() };
    for mut config in configs(&addresses, data.path(), &health_checks) {
        descriptors::share(&mut config.tunables, addresses.len());
        nodes.push(Server::bind(config).await.map_err(not_started)?);
    }
    let clients: Vec<String> = nodes.iter().map(|node| node.client_addr().to_string()).collect();
    let (stop_all, stopping) = watch::channel(false);
    let mut running = JoinSet::new();
    for node in nodes {
        running.spawn(node.run(stopped(stopping.clone())));
    }
    let ended = tokio::select! {
        ready = ready(&clients, &data, &mut stop) => ready,
        Some(ended) = running.join_next() => Err(node_ended(ended)),
    };
    let _receivers_may_be_gone = stop_all.send(true);
    let mut result = ended;
    while let Some(ended) = running.join_next().await {
        match ended {
            Ok(Ok(()) | Err(RunError::SlowStop { .. })) => {}
            failed => result = result.and(Err(node_ended(failed))),
        }
    }
    result
}

/// Waits for the leader, says what there is, and waits for the end.
async fn ready(clients: &[String], data: &Data, stop: &mut Stop) -> Result<(), Failure> {
    let client = Client::builder(clients.iter().cloned())
        .call_timeout(LEADER_WITHIN)
        .attempt_timeout(Duration::from_secs(1))
        .member_refresh(None)
        .connect()
        .await?;
    tokio::select! {
        answer = client.list_services("", Consistency::Linearizable) => { answer?; }
        () = stop.requested() => return Ok(()),
    }
    output::line(&welcome(clients, data))?;
    stop.requested().await;
    output::note("stopping");
    Ok(())
}

fn welcome(clients: &[String], data: &Data) -> String {
    let mut text = String::from("Quorate is ready.\n\n");
    for (at, address) in clients.iter().enumerate() {
        text.push_str(&format!("  node {}   {address}\n", at + 1));
    }
    let kept = match data {
        Data::Kept(path) => format!("kept in {}", path.display()),
        Data::Temporary(directory) => {
            format!("in {}, removed at the end", directory.path().display())
        }
    };
    text.push_str(&format!("  data     {kept}\n\nTo try, in another terminal:\n\n"));
    let nodes = clients.join(",");
    if nodes != "127.0.0.1:7001,127.0.0.1:7002,127.0.0.1:7003" {
        text.push_str(&format!("  export QUORATE_NODES={nodes}\n"));
    }
    for command in [
        "quorate watch orders",
        "quorate register orders orders-1 --endpoint http=http://127.0.0.1:8080",
        "quorate fetch orders",
        "quorate cluster status",
    ] {
        text.push_str(&format!("  {command}\n"));
    }
    text.push_str("\nCtrl-C stops all nodes.");
    text
}

/// Resolves when all are to stop, also when nobody is left to say so.
async fn stopped(mut stopping: watch::Receiver<bool>) {
    let _sender_gone = stopping.wait_for(|stop| *stop).await;
}

fn node_ended(ended: Result<Result<(), RunError>, tokio::task::JoinError>) -> Failure {
    match ended {
        Ok(Ok(())) => Failure::failed("a node ended by itself"),
        Ok(Err(error)) => Failure::failed(format!("a node failed: {:#}", chain(error))),
        Err(error) => Failure::failed(format!("a node panicked: {:#}", chain(error))),
    }
}

/// Where the nodes keep their data.
enum Data {
    Kept(PathBuf),
    /// Removed when it is dropped.
    Temporary(TempDir),
}

impl Data {
    fn new(kept: Option<PathBuf>) -> Result<Self, Failure> {
        if let Some(path) = kept {
            return Ok(Self::Kept(path));
        }
        let made = tempfile::Builder::new().prefix("quorate-dev-").tempdir();
        let made = made.map_err(|error| {
            Failure::failed(format!(
                "cannot make a temporary directory: {error}\n  next: use --data-dir"
            ))
        })?;
        Ok(Self::Temporary(made))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(directory) => directory.path(),
        }
    }
}

/// Each node's addresses for clients and for peers.
fn addresses(first: SocketAddr, nodes: u16) -> Result<Vec<(SocketAddr, SocketAddr)>, Failure> {
    if first.port() == 0 {
        return free_addresses(first, nodes);
    }
    let with_port = |port: u16| SocketAddr::new(first.ip(), port);
    let pair = |at: u16| {
        let client = first.port().checked_add(at)?;
        Some((with_port(client), with_port(client.checked_add(PEER_PORT_OFFSET)?)))
    };
    let all: Option<Vec<_>> = (0..nodes).map(pair).collect();
    all.ok_or_else(|| {
        let needed = PEER_PORT_OFFSET + nodes;
        Failure::usage(format!("--listen {first}: there are not {needed} ports from there on"))
    })
}

/// The nodes have to know each other's addresses before they listen, so free ports are found, given back, and taken again.
fn free_addresses(first: SocketAddr, nodes: u16) -> Result<Vec<(SocketAddr, SocketAddr)>, Failure> {
    let found: std::io::Result<Vec<TcpListener>> =
        (0..2 * nodes).map(|_| TcpListener::bind(first)).collect();
    let found = found.and_then(|listeners| listeners.iter().map(TcpListener::local_addr).collect());
    let found: Vec<SocketAddr> =
        found.map_err(|error| Failure::failed(format!("cannot listen on {first}: {error}")))?;
    Ok(found.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

fn configs(
    addresses: &[(SocketAddr, SocketAddr)],
    data: &Path,
    health_checks: &HealthChecks,
) -> Vec<Config> {
    let ids = || (1_u64..).zip(addresses);
    let members: BTreeMap<u64, String> =
        ids().map(|(id, (_, peer))| (id, peer.to_string())).collect();
    let config = |(id, (client, peer)): (u64, &(SocketAddr, SocketAddr))| Config {
        id,
        data_dir: data.join(format!("node-{id}")),
        listen: *client,
        peer_listen: *peer,
        advertise: None,
        peer_advertise: None,
        start: Start::Bootstrap(members.clone()),
        health_checks: health_checks.clone(),
        tunables: Tunables { shutdown_grace_ms: SHUTDOWN_GRACE_MS, ..Tunables::default() },
    };
    ids().map(config).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_follow_each_other() {
        let all = addresses("127.0.0.1:7001".parse().unwrap(), 3).unwrap();
        let ports: Vec<_> = all.iter().map(|(client, peer)| (client.port(), peer.port())).collect();
        assert_eq!(ports, [(7001, 7101), (7002, 7102), (7003, 7103)]);
        assert!(addresses("127.0.0.1:65500".parse().unwrap(), 3).is_err());
        let free = addresses("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        let mut ports: Vec<_> = free.iter().flat_map(|(c, p)| [c.port(), p.port()]).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 6);
    }
}
