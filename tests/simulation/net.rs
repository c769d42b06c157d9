//! The simulated network as nodes and clients use it: turmoil's sockets under the real gRPC.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::error::Error as _;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream;
use hyper_util::rt::TokioIo;
use quorate_node::{Connection, Listener, Net, SimulatedNet};
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use turmoil::net::{TcpListener, TcpStream};

use super::certificates::secured;
use super::history::now;
use super::late::Late;
use super::plan::{Plan, Way};

/// Clients and peers reach a node's listeners at these ports.
pub(crate) const CLIENT_PORT: u16 = 7001;
pub(crate) const PEER_PORT: u16 = 7101;

/// What a node is given instead of the operating system's network.
pub(crate) fn net(plan: Arc<Plan>, me: u64) -> Net {
    Net::Simulated(Arc::new(Turmoil { plan, me: Some(me) }))
}

/// The name of a node's host.
pub(crate) fn host(node: u64) -> String {
    format!("n{node}")
}

/// The node of a host with such a name.
fn node_of(host: &str) -> Option<u64> {
    host.strip_prefix('n')?.parse().ok()
}

/// A client's channel to a node; it finds out within two seconds that a connection is dead.
pub(crate) fn channel(plan: &Arc<Plan>, node: u64) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}:{CLIENT_PORT}", host(node)))
        .expect("a valid address")
        .connect_timeout(Duration::from_millis(500))
        .http2_keep_alive_interval(Duration::from_secs(1))
        .keep_alive_timeout(Duration::from_secs(1))
        .keep_alive_while_idle(true);
    let (net, tls) = (Turmoil { plan: plan.clone(), me: None }, plan.tuning.tls);
    endpoint.connect_with_connector_lazy(tower::service_fn(move |uri: Uri| {
        let opened = net.open(uri.authority().expect("host:port").as_str());
        async move {
            let stream = opened.await?;
            let stream = if tls { secured(node, stream).await? } else { stream };
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    }))
}

/// A call as the client crate makes it: once more when its connection came to its end in good order
/// in that moment, as each does at its age. A bare channel tells its caller instead: the request
/// waited for its turn, or the connection had just read the GOAWAY.
pub(crate) async fn again<T>(call: impl AsyncFn() -> Result<T, Status>) -> Result<T, Status> {
    match call().await {
        Err(status) if met_an_end(&status) => call().await,
        answer => answer,
    }
}

/// Whether a failure leaves open what came of the call: there was no leader, no quorum or no time,
/// or the transport lost the answer, or its connection came to its end. A node that works says
/// nothing else but its refusals.
pub(crate) fn is_open(status: &Status) -> bool {
    let open = [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled];
    let lost = status.code() == Code::Unknown && status.source().is_some();
    lost || open.contains(&status.code()) || met_an_end(status)
}

/// The code says nothing: tonic gives the end of a connection as an internal error.
fn met_an_end(status: &Status) -> bool {
    let cause = format!("{status:?}");
    let is_waiting = status.code() == Code::Cancelled && cause.contains("\"connection closed\"");
    is_waiting || (cause.contains("GoAway(") && cause.contains("NO_ERROR"))
}

/// Attempts to connect, by sender, address, and simulated second.
type Dials = BTreeMap<(Option<u64>, String, u64), u32>;

thread_local! {
    static DIALS: RefCell<Dials> = const { RefCell::new(BTreeMap::new()) };
}

/// No node and no client needs more attempts to reach an address within a second: a node has four
/// lanes to another one, and each of them is tried with pauses.
const DIALS_MAX: u32 = 80;

fn count_dial(me: Option<u64>, address: &str) {
    let key = (me, address.to_owned(), now() / 1_000);
    DIALS.with_borrow_mut(|dials| *dials.entry(key).or_default() += 1);
}

/// The senders that tried to connect more often than [`DIALS_MAX`] allows.
pub(crate) fn storms() -> Vec<String> {
    let dials = DIALS.take();
    let storms = dials.iter().filter(|(_, count)| **count > DIALS_MAX);
    storms
        .map(|(who, count)| format!("{count} attempts to connect within a second: {who:?}"))
        .collect()
}

/// turmoil as seen from a node, or from a client.
struct Turmoil {
    plan: Arc<Plan>,
    me: Option<u64>,
}

impl Turmoil {
    /// turmoil refuses a connection at once when nothing gets through; in the real world it is a
    /// matter of waiting.
    fn hangs(plan: &Plan, me: Option<u64>, host: &str) -> bool {
        let target = node_of(host).expect("all connections are to nodes");
        match me {
            Some(me) if me == target => false,
            Some(me) => matches!(
                plan.way(me.min(target), me.max(target), now()),
                Way::Cut | Way::DeafForward | Way::DeafBackward
            ),
            None => !plan.reachable(target, now()),
        }
    }
}

impl SimulatedNet for Turmoil {
    fn listen(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Listener>> {
        Box::pin(async move {
            let listener = TcpListener::bind(address).await?;
            let address = listener.local_addr()?;
            let (plan, me) = (self.plan.clone(), self.me);
            let accepted = stream::unfold((listener, plan), move |(listener, plan)| async move {
                let stream = listener.accept().await.map(|(stream, from)| {
                    let from = turmoil::reverse_lookup(from.ip()).and_then(|host| node_of(&host));
                    Connection::new(Late::new(stream, plan.clone(), from.zip(me)))
                });
                Some((stream, (listener, plan)))
            });
            Ok(Listener::new(address, accepted))
        })
    }

    fn open(&self, address: &str) -> BoxFuture<'static, io::Result<Connection>> {
        let (host, port) = address.rsplit_once(':').expect("host:port");
        let (host, port) = (host.to_owned(), port.parse().expect("a port"));
        let hangs = Self::hangs(&self.plan, self.me, &host);
        count_dial(self.me, address);
        let (plan, me) = (self.plan.clone(), self.me);
        Box::pin(async move {
            if hangs {
                std::future::pending::<()>().await;
            }
            let way = node_of(&host).zip(me);
            let stream = TcpStream::connect((host, port)).await?;
            Ok(Connection::new(Late::new(stream, plan, way)))
        })
    }
}
