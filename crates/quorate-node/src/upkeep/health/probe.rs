//! One probe: what to connect to, whether that is allowed, and what came of it. Nothing is kept
//! between probes.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use quorate_state::{CheckKind, HealthCheck, HealthReason, Instance, host_and_port, limits};
use rustix::io::Errno;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

use super::{grpc, http};
use crate::config::Networks;
use crate::net::Net;
use crate::runtime::blocking;

/// Names that are resolved at the same time: each holds one of the threads that the log store needs
/// too, for as long as the system's resolver likes. Of probes that hung the last time, as many
/// besides: where the resolver does not answer for some names, others are resolved.
const LOOKUPS_MAX: usize = 16;

/// How much of a reason says what was asked, bytes.
const TARGET_MAX: usize = limits::HEALTH_REASON_BYTES / 2;

/// What all probes need.
#[derive(Debug, Clone)]
pub(super) struct Means {
    pub(super) net: Net,
    pub(super) allowed: Arc<Networks>,
    /// Of probes that do not hang, and of those that do.
    lookups: [Arc<Semaphore>; 2],
}

/// Why a probe did not pass.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    #[error("{0}")]
    Io(io::Error),
    #[error("HTTP status {0}")]
    HttpStatus(u16),
    #[error("the answer is no HTTP/1")]
    NoHttp,
    #[error("gRPC health {0}")]
    GrpcStatus(&'static str),
    #[error("gRPC: {0}")]
    NoGrpc(String),
    #[error("the endpoint has no address to connect to")]
    NoAddress,
    /// Says nothing of the target.
    #[error("{address} is in none of the allowed networks")]
    NotAllowed { address: IpAddr },
    /// Says nothing of the target: while names cannot be resolved, instances must not all be taken
    /// out.
    #[error("its name is not resolved: {0}")]
    Lookup(io::Error),
    /// Says nothing of the target, nor of its name.
    #[error("its name is not resolved: too many others are being resolved")]
    NoLookup,
    /// Says nothing of the target: without descriptors, ports or a way into its network, this node
    /// reaches no target.
    #[error("this node cannot connect: {0}")]
    OwnTrouble(io::Error),
    /// Says nothing of the target.
    #[error("this node stood still meanwhile")]
    Stalled,
}

impl Failure {
    fn of_io(error: io::Error) -> Self {
        if is_own_trouble(&error) { Self::OwnTrouble(error) } else { Self::Io(error) }
    }

    /// Why the check of an instance fails, in one line: what was asked, and what came of it.
    pub(super) fn reason(&self, instance: &Instance, check: &HealthCheck) -> HealthReason {
        HealthReason::new(&format!("{}: {self}", target(instance, check)))
    }

    /// Whether the target may hang, also on the way to its address.
    pub(super) fn is_late(&self) -> bool {
        match self {
            Self::Timeout(_) => true,
            Self::Lookup(error) => error.kind() == io::ErrorKind::TimedOut,
            _ => false,
        }
    }

    /// Whether it is the target that failed.
    pub(super) fn is_the_targets(&self) -> bool {
        !matches!(
            self,
            Self::Lookup(_)
                | Self::NoLookup
                | Self::OwnTrouble(_)
                | Self::Stalled
                | Self::NotAllowed { .. }
        )
    }
}

impl Means {
    pub(super) fn new(net: Net, allowed: Networks) -> Self {
        let lookups = [(); 2].map(|()| Arc::new(Semaphore::new(LOOKUPS_MAX)));
        Self { net, allowed: Arc::new(allowed), lookups }
    }

    /// Whether nothing may be probed.
    pub(super) fn allow_none(&self) -> bool {
        self.allowed.is_empty()
    }

    /// Probes an instance once, as a check says, within the check's timeout. `hangs`: it did the
    /// last time.
    pub(super) async fn probe(
        &self,
        instance: &Instance,
        check: &HealthCheck,
        hangs: bool,
    ) -> Result<(), Failure> {
        let (host, port) = address(instance, check).ok_or(Failure::NoAddress)?;
        let limit = Duration::from_millis(check.timeout_ms.into());
        let deadline = Instant::now() + limit;
        let addresses = self.allowed_addresses(host, port, hangs, deadline).await?;
        match timeout_at(deadline, self.ask(&addresses, host, check)).await {
            Ok(Err(Failure::Io(error))) => Err(Failure::of_io(error)),
            Ok(done) => done,
            Err(_) => Err(Failure::Timeout(limit)),
        }
    }

    async fn ask(
        &self,
        addresses: &[SocketAddr],
        host: &str,
        check: &HealthCheck,
    ) -> Result<(), Failure> {
        let stream = self.connect(addresses, check).await?;
        let port = addresses.first().map_or(0, SocketAddr::port);
        let named = named(host, port);
        match &check.kind {
            CheckKind::Tcp => Ok(()),
            CheckKind::Http { path } => http::probe(stream, &named, path).await,
            CheckKind::Grpc { service } => grpc::probe(stream, &named, service).await,
        }
    }

    /// The addresses of a host that may be connected to. They are what is connected to, so it does
    /// not matter what the name means a moment later.
    async fn allowed_addresses(
        &self,
        host: &str,
        port: u16,
        hangs: bool,
        deadline: Instant,
    ) -> Result<Vec<SocketAddr>, Failure> {
        let all = match host.parse::<IpAddr>() {
            Ok(address) => vec![SocketAddr::new(address, port)],
            Err(_) => self.look_up(host, port, hangs, deadline).await?,
        };
        let first = all.first().ok_or(Failure::NoAddress)?.ip();
        let allowed: Vec<_> =
            all.into_iter().filter(|address| self.allowed.contain(address.ip())).collect();
        match allowed.is_empty() {
            true => Err(Failure::NotAllowed { address: first }),
            false => Ok(allowed),
        }
    }

    async fn look_up(
        &self,
        host: &str,
        port: u16,
        hangs: bool,
        deadline: Instant,
    ) -> Result<Vec<SocketAddr>, Failure> {
        let permit = self.lookups[usize::from(hangs)].clone().acquire_owned();
        let permit = timeout_at(deadline, permit).await.map_err(|_elapsed| Failure::NoLookup)?;
        let named = (host.to_owned(), port);
        let found = blocking(move || {
            // Held until the resolver is done, also when no probe waits for it any more.
            let _permit = permit;
            named.to_socket_addrs().map(Iterator::collect)
        });
        let late = |_elapsed| Failure::Lookup(io::ErrorKind::TimedOut.into());
        let found = timeout_at(deadline, found).await.map_err(late)?;
        found.map_err(|error| Failure::Lookup(error.into()))?.map_err(Failure::Lookup)
    }

    /// The first address that takes a connection; each has an equal share of the time.
    async fn connect(
        &self,
        addresses: &[SocketAddr],
        check: &HealthCheck,
    ) -> Result<TcpStream, Failure> {
        let limit = Duration::from_millis(check.timeout_ms.into());
        let share = limit / addresses.len().max(1) as u32;
        let mut failure = None;
        for address in addresses {
            let next = match timeout(share, self.net.open(*address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => Failure::of_io(error),
                Err(_) => Failure::Timeout(limit),
            };
            failure = Some(more_telling(failure, next));
        }
        Err(failure.unwrap_or(Failure::NoAddress))
    }
}

/// The host and the port that a check goes to.
fn address<'a>(instance: &'a Instance, check: &HealthCheck) -> Option<(&'a str, u16)> {
    let mut endpoints = instance.spec.endpoints().iter();
    let (_, uri) = endpoints.find(|(name, _)| *name == &*check.endpoint)?;
    host_and_port(uri)
}

fn named(host: &str, port: u16) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

/// What a check asks, for people: a URI, cut where it is so long that little room would be left for
/// what came of it. URIs are ASCII.
fn target(instance: &Instance, check: &HealthCheck) -> String {
    let address = address(instance, check);
    let named =
        address.map_or_else(|| check.endpoint.to_string(), |(host, port)| named(host, port));
    let uri = match &check.kind {
        CheckKind::Tcp => format!("tcp://{named}"),
        CheckKind::Http { path } => format!("http://{named}{path}"),
        CheckKind::Grpc { service } => format!("grpc://{named}/{service}"),
    };
    match uri.len() > TARGET_MAX {
        true => format!("{uri:.TARGET_MAX$}…"),
        false => uri,
    }
}

/// What came of several addresses: the last failure that says something of the target.
fn more_telling(before: Option<Failure>, next: Failure) -> Failure {
    match before {
        Some(before) if before.is_the_targets() && !next.is_the_targets() => before,
        _ => next,
    }
}

/// Without descriptors, memory, ports or a network of its own, a node finds no target; that must
/// not take the whole fleet out.
fn is_own_trouble(error: &io::Error) -> bool {
    let own = [
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOBUFS,
        Errno::NOMEM,
        Errno::ADDRNOTAVAIL,
        Errno::NETUNREACH,
        Errno::NETDOWN,
    ];
    let raw = error.raw_os_error();
    own.iter().any(|errno| raw == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use quorate_state::{
        Incarnation, InstanceId, InstanceKey, InstanceSpec, LeaseId, Namespace, Revision,
        ServiceKey, ServiceName, SpecParts,
    };

    use super::*;

    fn errno(errno: Errno) -> Failure {
        Failure::of_io(io::Error::from_raw_os_error(errno.raw_os_error()))
    }

    #[test]
    fn a_reason_tells_what_was_asked_and_what_came_of_it() {
        let long = format!("/{}", "p".repeat(1_000));
        let cut = format!("http://10.0.0.1:80{}…: HTTP status 503", &long[..110]);
        let http = |path: &str| CheckKind::Http { path: path.into() };
        let grpc = CheckKind::Grpc { service: "shop.Cart".into() };
        for (uri, kind, failure, expected) in [
            ("http://10.0.0.1", http(&long), Failure::HttpStatus(503), cut.as_str()),
            (
                "grpc://[::1]:1",
                grpc,
                Failure::NoHttp,
                "grpc://[::1]:1/shop.Cart: the answer is no HTTP/1",
            ),
            (
                "pg://user:word@db:5432",
                CheckKind::Tcp,
                errno(Errno::CONNREFUSED),
                "tcp://db:5432: Connection refused (os error 111)",
            ),
        ] {
            let (instance, check) = checked(uri, kind);
            assert_eq!(failure.reason(&instance, &check).as_str(), expected);
        }
    }

    fn checked(uri: &str, kind: CheckKind) -> (Instance, HealthCheck) {
        let endpoints = [("e".to_owned(), uri.to_owned())].into();
        let spec = InstanceSpec::new("", SpecParts { endpoints, ..SpecParts::default() }).unwrap();
        let (namespace, name) = (Namespace::default(), ServiceName::new("service", "web").unwrap());
        let service = ServiceKey { namespace, name };
        let instance = Instance {
            key: InstanceKey { service, id: InstanceId::new("id", "a").unwrap() },
            spec,
            incarnation: Incarnation(1),
            lease: LeaseId(1),
            created: Revision(1),
            modified: Revision(1),
            overridden: None,
            found: None,
        };
        let check = HealthCheck {
            kind,
            endpoint: "e".into(),
            interval_ms: 1_000,
            timeout_ms: 1_000,
            failures_before_critical: 1,
            successes_before_passing: 1,
        };
        (instance, check)
    }

    /// As where the resolver answers for some names and not for others.
    #[tokio::test]
    async fn lookups_that_hang_hold_up_those_alone_that_did_before() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let uri = format!("tcp://localhost:{}", listener.local_addr().unwrap().port());
        let (instance, check) = checked(&uri, CheckKind::Tcp);
        let check = HealthCheck { timeout_ms: 200, ..check };
        let means = Means::new(Net::Tcp, "127.0.0.0/8,::1".parse().unwrap());
        let hang = LOOKUPS_MAX.try_into().unwrap();
        let _hanging = means.lookups[1].acquire_many(hang).await.unwrap();
        let late = means.probe(&instance, &check, true).await.unwrap_err();
        assert!(matches!(late, Failure::NoLookup) && !late.is_late(), "{late:?}");
        let check = HealthCheck { timeout_ms: 60_000, ..check };
        means.probe(&instance, &check, false).await.expect("it is looked up");
    }

    // S4.5
    #[test]
    fn what_this_node_lacks_says_nothing_of_the_target() {
        for own in [Errno::MFILE, Errno::ADDRNOTAVAIL, Errno::NETUNREACH, Errno::NETDOWN] {
            assert!(!errno(own).is_the_targets(), "{own}");
        }
        for its in [Errno::CONNREFUSED, Errno::HOSTUNREACH, Errno::CONNRESET, Errno::TIMEDOUT] {
            assert!(errno(its).is_the_targets(), "{its}");
        }
    }

    /// A node without IPv6 and a target that refuses over IPv4, in either order.
    #[test]
    fn of_several_addresses_the_one_that_tells_counts() {
        for order in
            [[Errno::NETUNREACH, Errno::CONNREFUSED], [Errno::CONNREFUSED, Errno::NETUNREACH]]
        {
            let [first, second] = order.map(errno);
            let failure = more_telling(Some(more_telling(None, first)), second);
            assert!(
                matches!(&failure, Failure::Io(e) if e.kind() == io::ErrorKind::ConnectionRefused)
            );
        }
        let none = more_telling(Some(errno(Errno::NETUNREACH)), errno(Errno::NETUNREACH));
        assert!(!none.is_the_targets());
    }
}
