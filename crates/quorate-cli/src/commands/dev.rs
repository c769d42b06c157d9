//! `dev`: a whole cluster on this machine, on loopback, to try things out. Each node is a process
//! of its own, so that one can be killed (`dev/node.rs`).

mod node;
mod secure;

use std::ffi::OsString;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use clap::ValueEnum;
use quorate_client::{Client, Consistency};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use self::node::Node;
use self::secure::Secure;
use crate::args::DevArgs;
use crate::commands::cluster::status::is_settled;
use crate::commands::cluster::verdict::leader;
use crate::failure::Failure;
use crate::signals::Stop;
use crate::{logging, output};

/// From a node's port for clients to its port for peers.
const PEER_PORT_OFFSET: u16 = 100;
/// To its port for HTTP.
const HTTP_PORT_OFFSET: u16 = 200;
/// And for DNS.
const DNS_PORT_OFFSET: u16 = 300;
/// A cluster on one machine that has no leader by then never will.
const LEADER_WITHIN: Duration = Duration::from_secs(30);
/// Once there is a leader, the others have followed it and told their addresses by then, or it is
/// ready without them.
const SETTLED_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Ports that are in use for longer are somebody else's.
const FREE_WITHIN: Duration = Duration::from_secs(2);

pub(crate) async fn run(args: DevArgs) -> Result<(), Failure> {
    logging::start(logging::DEV, args.log.log_format).map_err(Failure::usage)?;
    let mut stop = Stop::listen()?;
    if !args.secure && !args.listen.ip().is_loopback() {
        return Err(Failure::usage(format!(
            "--listen {}: other machines reach that, and anybody there could read and change everything; add --secure",
            args.listen
        )));
    }
    let addresses = addresses(args.listen, args.nodes)?;
    are_free(&addresses).await?;
    let data = Data::new(args.data_dir.as_deref())?;
    let secure = args.secure.then(|| Secure::prepare(data.path(), args.listen, args.nodes));
    let secure = secure.transpose()?;
    let nodes = nodes(&args, &addresses, data.path(), secure.as_ref())?;
    let (stop_all, stopping) = watch::channel(false);
    let mut running = JoinSet::new();
    for node in &nodes {
        let (node, stopping) = (node.clone(), stopping.clone());
        running.spawn(async move { node.keep(stopping).await });
    }
    let mut result = tokio::select! {
        ready = ready(&nodes, &data, secure.as_ref(), &mut stop) => ready,
        Some(ended) = running.join_next() => node_ended(ended),
    };
    let _receivers_may_be_gone = stop_all.send(true);
    while let Some(ended) = running.join_next().await {
        result = result.and(node_ended(ended));
    }
    result
}

/// Waits for the leader, says what there is, and waits for the end.
async fn ready(
    nodes: &[Arc<Node>],
    data: &Data,
    secure: Option<&Secure>,
    stop: &mut Stop,
) -> Result<(), Failure> {
    let builder = Client::builder(nodes.iter().map(|node| node.address.to_string()))
        .call_timeout(LEADER_WITHIN)
        .attempt_timeout(Duration::from_secs(1))
        .member_refresh(None);
    let builder = match secure {
        Some(secure) => builder.tls(secure.tls()),
        None => builder,
    };
    let client = builder.build()?;
    let admin = client.admin();
    // The first `cluster status` that somebody types says OK.
    let up = async {
        client.list_services("", Consistency::Linearizable).await?;
        let start = Instant::now();
        loop {
            let status = admin.status(false).await?;
            if is_settled(&status) || start.elapsed() > SETTLED_WITHIN {
                return Ok::<_, Failure>(status);
            }
            sleep(LOOK_EVERY).await;
        }
    };
    let status = tokio::select! {
        status = up => status?,
        () = stop.requested() => return Ok(()),
    };
    output::line(&welcome(nodes, leader(&status), data, secure))?;
    stop.requested().await;
    output::note("stopping");
    Ok(())
}

fn welcome(
    nodes: &[Arc<Node>],
    leader: Option<u64>,
    data: &Data,
    secure: Option<&Secure>,
) -> String {
    let pid = |node: &Node| node.pid.load(Ordering::Relaxed);
    let scheme = if secure.is_some() { "https" } else { "http" };
    let mut text = String::from("Quorate is ready.\n\n");
    for node in nodes {
        let (id, address, http, pid) = (node.id, node.address, node.http, pid(node));
        let dns = node.dns.map(|dns| format!("   dns {dns}")).unwrap_or_default();
        text.push_str(&format!(
            "  node {id}   {address}   pid {pid}   {scheme}://{http}/console/{dns}\n"
        ));
    }
    let kept = match data {
        Data::Kept(path) => format!("kept in {}", path.display()),
        Data::Temporary(directory) => {
            format!("in {}, removed at the end", directory.path().display())
        }
    };
    text.push_str(&format!("  data     {kept}\n"));
    if let Some(secure) = secure {
        text.push_str(&secure.rights());
    }
    text.push_str("\nTo try, in another terminal:\n\n");
    let addresses: Vec<String> = nodes.iter().map(|node| node.address.to_string()).collect();
    let addresses = addresses.join(",");
    if secure.is_some() || addresses != "127.0.0.1:7001,127.0.0.1:7002,127.0.0.1:7003" {
        text.push_str(&format!("  export QUORATE_NODES={addresses}\n"));
    }
    if let Some(secure) = secure {
        text.push_str(&secure.exports());
    }
    for command in [
        "quorate watch orders",
        "quorate register orders orders-1 --endpoint http=http://127.0.0.1:8080",
        "quorate fetch orders",
        "quorate cluster status",
    ] {
        text.push_str(&format!("  {command}\n"));
    }
    if let Some(dns) = nodes.iter().find_map(|node| node.dns) {
        let (ip, port) = (dns.ip(), dns.port());
        text.push_str(&format!("  dig @{ip} -p {port} orders.default.svc.quorate. SRV\n"));
    }
    if let Some(node) = nodes.iter().find(|node| Some(node.id) == leader).or(nodes.first()) {
        let what = match nodes.len() {
            1 => "it comes back with what it had",
            _ if Some(node.id) == leader => "the leader: another takes over, and it comes back",
            _ => "the others go on, and it comes back",
        };
        text.push_str(&format!("  kill -9 {}     # {what}\n", pid(node)));
    }
    text.push_str("\nCtrl-C stops all nodes.");
    text
}

fn node_ended(ended: Result<Result<(), Failure>, tokio::task::JoinError>) -> Result<(), Failure> {
    ended.unwrap_or_else(|error| Err(Failure::failed(format!("a task failed: {error}"))))
}

/// Where the nodes keep their data.
enum Data {
    Kept(PathBuf),
    /// Removed when it is dropped.
    Temporary(TempDir),
}

impl Data {
    fn new(kept: Option<&Path>) -> Result<Self, Failure> {
        if let Some(path) = kept {
            return Ok(Self::Kept(path.to_owned()));
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

/// The addresses of one node.
#[derive(Clone, Copy)]
struct Addresses {
    clients: SocketAddr,
    peers: SocketAddr,
    http: SocketAddr,
    dns: SocketAddr,
}

fn addresses(first: SocketAddr, nodes: u16) -> Result<Vec<Addresses>, Failure> {
    if first.port() == 0 {
        return free_addresses(first, nodes);
    }
    let with_port = |port: u16| SocketAddr::new(first.ip(), port);
    let of_node = |at: u16| {
        let clients = first.port().checked_add(at)?;
        Some(Addresses {
            clients: with_port(clients),
            peers: with_port(clients.checked_add(PEER_PORT_OFFSET)?),
            http: with_port(clients.checked_add(HTTP_PORT_OFFSET)?),
            dns: with_port(clients.checked_add(DNS_PORT_OFFSET)?),
        })
    };
    let all: Option<Vec<_>> = (0..nodes).map(of_node).collect();
    all.ok_or_else(|| {
        let needed = DNS_PORT_OFFSET + nodes;
        Failure::usage(format!("--listen {first}: there are not {needed} ports from there on"))
    })
}

/// The nodes have to know each other's addresses before they listen, so free ports are found, given
/// back, and taken again.
fn free_addresses(first: SocketAddr, nodes: u16) -> Result<Vec<Addresses>, Failure> {
    let found: std::io::Result<Vec<TcpListener>> =
        (0..4 * nodes).map(|_| TcpListener::bind(first)).collect();
    let found = found.and_then(|listeners| listeners.iter().map(TcpListener::local_addr).collect());
    let found: Vec<SocketAddr> =
        found.map_err(|error| Failure::failed(format!("cannot listen on {first}: {error}")))?;
    let of_node = |of: &[SocketAddr]| {
        let [clients, peers, http, dns] = [of[0], of[1], of[2], of[3]];
        Addresses { clients, peers, http, dns }
    };
    Ok(found.chunks_exact(4).map(of_node).collect())
}

/// Before anything is started: another cluster at these addresses would answer in the place of this
/// one. Nodes of a `dev` that was killed may be about to end.
async fn are_free(addresses: &[Addresses]) -> Result<(), Failure> {
    let until = Instant::now() + FREE_WITHIN;
    let all = addresses.iter().flat_map(|of| [of.clients, of.peers, of.http, of.dns]);
    for address in all {
        while TcpListener::bind(address).is_err_and(|it| it.kind() == ErrorKind::AddrInUse) {
            if Instant::now() > until {
                return Err(Failure::failed(format!(
                    "{address} is in use: is another `quorate dev` running?\n  next: stop it, or take other ports: --listen IP:PORT"
                )));
            }
            sleep(LOOK_EVERY).await;
        }
    }
    Ok(())
}

/// The nodes, each with its command line.
fn nodes(
    args: &DevArgs,
    addresses: &[Addresses],
    data: &Path,
    secure: Option<&Secure>,
) -> Result<Vec<Arc<Node>>, Failure> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::failed(format!("cannot find this program: {error}")))?;
    let ids = || (1_u64..).zip(addresses);
    let members: Vec<String> = ids().map(|(id, of)| format!("{id}={}", of.peers)).collect();
    let log_format = args.log.log_format;
    let format = log_format.to_possible_value().expect("invariant: no format is hidden");
    let node = |(id, of): (u64, &Addresses)| {
        let mut line: Vec<OsString> = ["serve", "--child-of-dev", "--id"].map(Into::into).into();
        line.push(id.to_string().into());
        line.extend(["--data-dir".into(), data.join(format!("node-{id}")).into()]);
        line.extend(["--listen".into(), of.clients.to_string().into()]);
        line.extend(["--peer-listen".into(), of.peers.to_string().into()]);
        line.extend(["--http-listen".into(), of.http.to_string().into()]);
        // DNS has no credentials, and would tell everybody on this machine.
        let dns = secure.is_none().then_some(of.dns);
        if let Some(dns) = dns {
            line.extend(["--dns-listen".into(), dns.to_string().into()]);
        }
        line.extend(["--bootstrap".into(), members.join(",").into()]);
        line.extend(["--log-format".into(), format.get_name().into()]);
        if let Some(secure) = secure {
            line.extend(secure.node_args(id));
        }
        if let Some(networks) = &args.health_checks_allow {
            line.extend(["--health-checks-allow".into(), networks.to_string().into()]);
        }
        Arc::new(Node {
            id,
            address: of.clients,
            http: of.http,
            dns,
            program: program.clone(),
            args: line,
            log_format,
            pid: AtomicU32::new(0),
        })
    };
    Ok(ids().map(node).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_follow_each_other() {
        let all = addresses("127.0.0.1:7001".parse().unwrap(), 3).unwrap();
        let ports = |of: &Addresses| [of.clients, of.peers, of.http, of.dns].map(|it| it.port());
        let ports_of: Vec<_> = all.iter().map(ports).collect();
        assert_eq!(
            ports_of,
            [[7001, 7101, 7201, 7301], [7002, 7102, 7202, 7302], [7003, 7103, 7203, 7303]]
        );
        assert!(addresses("127.0.0.1:65500".parse().unwrap(), 3).is_err());
        let free = addresses("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        let mut ports: Vec<_> = free.iter().flat_map(ports).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 12);
    }
}
