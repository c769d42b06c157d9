//! What the listeners of a node serve, and how much of it.

use std::convert::identity;
use std::net::UdpSocket;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use futures_util::future::try_join_all;
use futures_util::{FutureExt, TryFutureExt};
use quorate_dns::Settings;
use quorate_proto::FILE_DESCRIPTOR_SET;
use quorate_proto::encoded::v1::admin_server::AdminServer;
use quorate_proto::encoded::v1::registry_server::RegistryServer;
use quorate_proto::peer::v1::peer_server::PeerServer;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic_health::pb::health_server::{Health, HealthServer};

use crate::api::dns::Resolver;
use crate::api::grpc::admin::AdminService;
use crate::api::grpc::door::{self, TRANSPORT_MAX};
use crate::api::grpc::peer::PeerService;
use crate::api::grpc::peer_door::refused_handshakes;
use crate::api::grpc::registry::RegistryService;
use crate::api::grpc::routes::ClientCalls;
use crate::api::http::{Observed, count_unrouted, refused, router};
use crate::config::{Dns, Tunables};
use crate::error::RunError;
use crate::meters::Meters;
use crate::net::Listener;
use crate::net::arriving::Arriving;
use crate::net::authority::AnyAuthority;
use crate::net::calls::{self, Apart, Counted, FindApart, UnderWay};
use crate::net::connections::{Connections, Lane, Limits, Refusals};
use crate::net::http::{self, Tools};
use crate::net::tls::{Security, Tls};
use crate::node::Node;
use crate::peers::MESSAGE_MAX;
use crate::runtime::blocking;

/// Threads that answer by DNS; a machine with fewer cores has fewer.
const DNS_THREADS_MAX: usize = 4;
/// HTTP/2 flow control windows: large enough that snapshots and watches are not held up by round
/// trips, bytes.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// A connection is pinged this often, and given up when it has not answered for that long: a client
/// whose machine is gone holds its streams no longer than that. Seldom enough for 10,000 idle
/// connections to cost 1,000 small frames a second.
const PING_EVERY: Duration = Duration::from_secs(10);
const PONG_WITHIN: Duration = Duration::from_secs(10);

/// A request of health or reflection, which are open to all: a name, bytes.
const OPEN_MESSAGE_MAX: usize = 4 * 1024;

/// Calls of nobody who is known, health checks among them and streams among them: beside those of
/// known callers, each a quarter as many.
const OPEN_SHARE: usize = 4;
/// Those of one address, so that it does not take the places of all others: a balancer or an agent
/// on each machine asks a node's health, and a process watches it.
const CHECKS_PER_ADDRESS_MAX: usize = 256;
const STREAMS_PER_ADDRESS_MAX: usize = 64;
/// A stream of theirs ends after this time: nobody else looks whether it is still wanted.
const STREAM_WITHIN: Duration = Duration::from_secs(600);

/// Connections of one address that have neither proved an identity nor made a call: this share of a
/// listener's, and never more than so many. A fleet behind one address comes back all at once after
/// a restart, and half-open handshakes take some KiB each. Small listeners have no need of shares.
const SILENT_SHARE: usize = 4;
const SILENT_PER_ADDRESS_MAX: usize = 1_024;
const SILENT_PER_ADDRESS_MIN: usize = 32;

/// All headers of a call, bytes: a token, the deadline, and what tools add. More is refused.
const HEADERS_MAX: u32 = 16 * 1024;
/// Calls of one connection that were given up before the node looked at them; one more ends the
/// connection (CVE-2023-44487). A node that stood still for a moment finds as many as a process had
/// under way, since their deadlines have passed: with the libraries' 20, that ended the connections
/// of the busiest. With 4,096, a flood of resets makes renewals of others take half a minute
/// (a debug build).
const RESETS_PENDING_MAX: usize = 256;
/// Streams of one connection that the node reset for the caller's fault; one more ends the
/// connection (CVE-2025-8671). The libraries' default, too.
const LOCAL_RESETS_MAX: usize = 1_024;

/// The connections of clients.
pub(super) fn client_connections(node: &Node) -> Arc<Connections> {
    let refusals = Refusals {
        in_all: node.meters().refused("connections"),
        of_address: node.meters().refused("connections_of_address"),
        gave_way: node.meters().refused("silent_connections"),
    };
    Connections::new("clients", client_limits(node.tunables()), refusals)
}

/// The listener for clients, until new calls are to be refused and none is left.
pub(super) fn serve_clients<H: Health>(
    node: Arc<Node>,
    connections: &Arc<Connections>,
    listener: Listener,
    security: Security,
    health: HealthServer<H>,
) -> impl Future<Output = Result<(), tonic::transport::Error>> + Send + use<H> {
    let refusals = Refusals {
        in_all: node.meters().refused("calls"),
        of_address: node.meters().refused("calls_of_address"),
        ..Refusals::default()
    };
    let under_way = calls_under_way("clients", node.tunables(), refusals);
    let apart = calls_apart(&node);
    let stop = node.stop().clone();
    let arriving = Arc::new(Arriving::new(node.meters().refused("arriving")));
    let registry = RegistryServer::new(RegistryService { node: node.clone() })
        .max_decoding_message_size(TRANSPORT_MAX);
    let admin = AdminServer::new(AdminService { node: node.clone() })
        .max_decoding_message_size(TRANSPORT_MAX);
    let v1 = reflection().build_v1().expect(DESCRIPTORS_FIT);
    let v1alpha = reflection().build_v1alpha().expect(DESCRIPTORS_FIT);
    let others = Routes::new(health.max_decoding_message_size(OPEN_MESSAGE_MAX))
        .add_service(v1.max_decoding_message_size(OPEN_MESSAGE_MAX))
        .add_service(v1alpha.max_decoding_message_size(OPEN_MESSAGE_MAX))
        .add_service(admin);
    let others = others.prepare();
    let calls = ClientCalls { node, arriving, registry, others, cluster: Arc::default() };
    let calls = Counted::new(calls, under_way).apart(apart);
    let arriving = connections.accept(listener);
    calls::serve(transport(), calls, arriving, security, AnyAuthority::new, stop)
}

/// The listener for peers, until the stop.
pub(super) async fn serve_peers(
    service: PeerService,
    listener: Listener,
    tls: Option<Arc<Tls>>,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let (tunables, meters) = (service.node.tunables(), service.node.meters());
    let security = Security::peers(tls, refused_handshakes(service.node.clone()));
    let refusals = one_lane(meters, "peer_connections");
    let connections = Connections::new("peers", peer_limits(tunables), refusals);
    let under_way = calls_under_way("peers", tunables, one_lane(meters, "peer_calls"));
    let service = PeerServer::new(service)
        .max_decoding_message_size(MESSAGE_MAX)
        .max_encoding_message_size(MESSAGE_MAX);
    let calls = Counted::new(service, under_way);
    let arriving = connections.accept(listener);
    let peers = calls::serve(transport(), calls, arriving, security, identity, stop.clone());
    tokio::select! {
        ended = peers => ended.map_err(RunError::Peers),
        never = connections.watch(stop) => match never {},
    }
}

/// The listener for operators' tools, until the stop; `under_way`: its calls of the API.
pub(super) async fn serve_tools(
    observed: Observed,
    listener: Listener,
    security: Security,
    under_way: TaskTracker,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let (tunables, meters) = (observed.node.tunables(), observed.node.meters());
    let (in_all, per_address) =
        (tunables.http_connections_max, tunables.http_connections_max.div_ceil(2));
    let limits = limits(tunables, in_all, per_address);
    let connections = Connections::new("tools", limits, one_lane(meters, "http_connections"));
    let refusals = one_lane(meters, "http_calls");
    let lane = |lane| UnderWay::new(lane, in_all, per_address, refusals.clone());
    let calls = lane(("tools", Lane::Known));
    let strangers = lane(("strangers by HTTP", Lane::Strangers));
    let node = observed.node.clone();
    let apart: FindApart<_> = Arc::new(move |call| {
        let (under_way, refusal) = (strangers.clone(), None);
        door::is_unknown(&node, call).then_some(Apart { under_way, within: None, refusal })
    });
    let arriving = connections.accept(listener);
    let meters = meters.clone();
    let count = Arc::new(move |method: &_, status| count_unrouted(&meters, method, status));
    let tools = Tools { router: router(observed), refused, count, calls, apart, under_way };
    tokio::select! {
        () = http::serve(tools, arriving, security, stop.clone()) => Ok(()),
        never = connections.watch(stop) => match never {},
    }
}

/// Answers by DNS, until the stop.
pub(super) async fn serve_dns(
    node: Arc<Node>,
    (socket, listener): (UdpSocket, Listener),
    dns: Dns,
    settings: Settings,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let at = listener.address();
    if at.ip().is_unspecified() {
        tracing::warn!(
            dns = %at,
            "answers by DNS leave from the address that the system chooses: where this machine has several, \
             resolvers take none from another one than they asked; listen at one address"
        );
    }
    let tunables = node.tunables();
    let in_all = tunables.dns_connections_max;
    let limits = limits(tunables, in_all, in_all.div_ceil(2));
    let connections = Connections::new("dns", limits, one_lane(node.meters(), "dns_connections"));
    let resolver = Arc::new(Resolver::new(node, &dns, settings, at));
    let arriving = connections.accept(listener);
    // The threads end with this, however it ends.
    let ended = stop.child_token();
    let _ended = ended.clone().drop_guard();
    let (socket, threads) = (Arc::new(socket), available_parallelism().map_or(1, usize::from));
    let datagrams = (0..threads.min(DNS_THREADS_MAX)).map(|_| {
        let (resolver, socket, stop) = (resolver.clone(), socket.clone(), ended.clone());
        blocking(move || resolver.answer_datagrams(&socket, &stop))
    });
    let datagrams = try_join_all(datagrams).map_err(RunError::Panicked);
    tokio::try_join!(datagrams, resolver.answer_connections(arriving, &stop).map(Ok))?;
    Ok(())
}

fn client_limits(tunables: &Tunables) -> Limits {
    let Tunables { connections_max, connections_per_address_max, .. } = *tunables;
    let (in_all, per_address) = (connections_max, connections_per_address_max);
    limits(tunables, in_all, per_address)
}

fn limits(tunables: &Tunables, in_all: usize, per_address: usize) -> Limits {
    let share = in_all / SILENT_SHARE;
    let silent_per_address = share.clamp(SILENT_PER_ADDRESS_MIN, SILENT_PER_ADDRESS_MAX);
    let idle = Duration::from_millis(tunables.connection_idle_ms);
    Limits { in_all, per_address, silent_per_address, idle }
}

fn calls_under_way(whose: &'static str, tunables: &Tunables, refusals: Refusals) -> Arc<UnderWay> {
    let Tunables { calls_max, calls_per_address_max, .. } = *tunables;
    UnderWay::new((whose, Lane::Known), calls_max, calls_per_address_max, refusals)
}

/// Calls of strangers have shares of their own.
fn calls_apart(node: &Arc<Node>) -> FindApart {
    let Tunables { calls_max, calls_per_address_max, .. } = *node.tunables();
    let (in_all, of_address) = (calls_max / OPEN_SHARE, calls_per_address_max / OPEN_SHARE);
    let refusals = one_lane(node.meters(), "open_calls");
    let lane = |lane, of_address| UnderWay::new(lane, in_all, of_address, refusals.clone());
    let strangers = lane(("strangers", Lane::Strangers), of_address);
    let of_checks = of_address.min(CHECKS_PER_ADDRESS_MAX);
    let checks = lane(("health checks of strangers", Lane::Checks), of_checks);
    let of_streams = of_address.min(STREAMS_PER_ADDRESS_MAX);
    let streams = lane(("streams of strangers", Lane::Streams), of_streams);
    let node = node.clone();
    Arc::new(move |call| {
        let door::Open { lane, refusal } = door::open(&node, call)?;
        let (under_way, within) = match lane {
            Lane::Checks => (&checks, None),
            Lane::Streams => (&streams, Some(STREAM_WITHIN)),
            Lane::Strangers | Lane::Known => (&strangers, None),
        };
        Some(Apart { under_way: under_way.clone(), within, refusal })
    })
}

/// Both limits of a listener that is not for clients count together.
fn one_lane(meters: &Meters, lane: &'static str) -> Refusals {
    let refused = meters.refused(lane);
    let gave_way = meters.refused("silent_connections");
    Refusals { in_all: refused.clone(), of_address: refused, gave_way }
}

/// Peers may share an address.
fn peer_limits(tunables: &Tunables) -> Limits {
    let in_all = tunables.peer_connections_max;
    limits(tunables, in_all, in_all)
}

fn transport() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .max_concurrent_streams(calls::PER_CONNECTION_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PONG_WITHIN))
        .http2_max_header_list_size(HEADERS_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESETS_PENDING_MAX))
        .http2_max_local_error_reset_streams(Some(LOCAL_RESETS_MAX))
}

const DESCRIPTORS_FIT: &str = "invariant: the descriptors were compiled from the same files";

/// What the listener for clients serves; the peer API has another one. Older tools ask for
/// `v1alpha`.
fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name("quorate.v1.Registry")
        .with_service_name("quorate.v1.Admin")
        .with_service_name("grpc.health.v1.Health")
}
