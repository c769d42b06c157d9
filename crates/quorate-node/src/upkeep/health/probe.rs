//! One probe: what to connect to, whether that is allowed, and what came of it. Nothing is kept
//! between probes.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quorate_state::{CheckKind, HealthCheck, HealthReason, Instance, host_and_port, limits};
use rustix::io::Errno;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::lookup::Lookups;
use super::{grpc, http};
use crate::config::Networks;
use crate::net::Net;

/// How much of a reason says what was asked, bytes.
const TARGET_MAX: usize = limits::HEALTH_REASON_BYTES / 2;

/// What all probes need.
#[derive(Clone)]
pub(super) struct Means {
    pub(super) net: Net,
    pub(super) allowed: Arc<Networks>,
    pub(super) lookups: Arc<Lookups>,
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
    /// out. `late`: it took long.
    #[error("its name is not resolved: {error}")]
    Lookup { error: Arc<io::Error>, late: bool },
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

    /// Whether it is the target that failed.
    pub(super) fn is_the_targets(&self) -> bool {
        !matches!(
            self,
            Self::Lookup { .. }
                | Self::NoLookup
                | Self::OwnTrouble(_)
                | Self::Stalled
                | Self::NotAllowed { .. }
        )
    }
}

impl Means {
    pub(super) fn new(net: Net, allowed: Networks) -> Self {
        Self { net, allowed: Arc::new(allowed), lookups: Arc::new(Lookups::of_system()) }
    }

    /// Whether nothing may be probed.
    pub(super) fn allow_none(&self) -> bool {
        self.allowed.is_empty()
    }

    /// Probes an instance once, as a check says. The check's timeout is how long the target has to
    /// answer; the lookup of its name takes none of that. `name_is_slow`: the last lookup was late.
    pub(super) async fn probe(
        &self,
        instance: &Instance,
        check: &HealthCheck,
        name_is_slow: bool,
    ) -> Result<(), Failure> {
        let (host, port) = address(instance, check).ok_or(Failure::NoAddress)?;
        let limit = Duration::from_millis(check.timeout_ms.into());
        let mut addresses = match host.parse::<IpAddr>() {
            Ok(address) => vec![SocketAddr::new(address, port)],
            Err(_) => self.lookups.look_up(host, name_is_slow, limit).await?,
        };
        addresses.iter_mut().for_each(|address| address.set_port(port));
        let addresses = self.only_allowed(addresses)?;
        match timeout(limit, self.ask(&addresses, host, check)).await {
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

    /// Those of a host's addresses that may be connected to. They are what is connected to, so it
    /// does not matter what the name means a moment later.
    fn only_allowed(&self, mut addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Failure> {
        let first = addresses.first().ok_or(Failure::NoAddress)?.ip();
        addresses.retain(|address| self.allowed.contain(address.ip()));
        match addresses.is_empty() {
            true => Err(Failure::NotAllowed { address: first }),
            false => Ok(addresses),
        }
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
pub(super) mod tests {
    use quorate_state::{
        Incarnation, InstanceId, InstanceKey, InstanceSpec, LeaseId, Namespace, Revision,
        ServiceKey, ServiceName, SpecParts,
    };
    use tokio::time::{Instant, advance};

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

    pub(in crate::upkeep::health) fn checked(
        uri: &str,
        kind: CheckKind,
    ) -> (Instance, HealthCheck) {
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

    /// A target that takes connections, and says nothing.
    fn silent() -> (std::net::TcpListener, Instance, HealthCheck) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let uri = format!("http://db:{}", listener.local_addr().unwrap().port());
        let (instance, check) = checked(&uri, CheckKind::Tcp);
        (listener, instance, HealthCheck { timeout_ms: 200, ..check })
    }

    fn means(lookups: Lookups) -> Means {
        let lookups = Arc::new(lookups);
        Means { lookups, ..Means::new(Net::Tcp, "127.0.0.0/8,::1".parse().unwrap()) }
    }

    fn loopback() -> io::Result<Vec<SocketAddr>> {
        Ok(vec![SocketAddr::from(([127, 0, 0, 1], 0))])
    }

    /// As where the resolver answers for some names and not for others.
    #[tokio::test]
    async fn slow_lookups_hold_up_those_alone_that_were_slow_before() {
        let (_listener, instance, check) = silent();
        let means = means(Lookups::new(|_| loopback()));
        let _slow = means.lookups.crowd(true);
        let late = means.probe(&instance, &check, true).await.unwrap_err();
        assert!(matches!(late, Failure::NoLookup), "{late:?}");
        let check = HealthCheck { timeout_ms: 60_000, ..check };
        means.probe(&instance, &check, false).await.expect("it is looked up");
    }

    /// Else a target that answers would be critical for a slow resolver, or for others' lookups.
    #[tokio::test(start_paused = true)]
    async fn the_lookup_takes_nothing_of_the_targets_time() {
        const LIMIT: Duration = Duration::from_millis(200);
        const NEARLY: Duration = Duration::from_millis(190);
        let (_listener, instance, check) = silent();
        let check = HealthCheck { kind: CheckKind::Http { path: "/".into() }, ..check };
        let (begins, mut begun) = tokio::sync::mpsc::unbounded_channel();
        let (answer, answers) = std::sync::mpsc::channel::<()>();
        let answers = std::sync::Mutex::new(answers);
        let means = means(Lookups::new(move |_| {
            begins.send(()).unwrap();
            answers.lock().unwrap().recv().expect("the test goes on");
            loopback()
        }));
        let others = means.lookups.crowd(false);
        let (began, looked_up) = (Instant::now(), async {
            advance(NEARLY).await;
            drop(others);
            begun.recv().await.expect("it has a place");
            advance(NEARLY).await;
            answer.send(()).unwrap();
        });
        let (failed, ()) = tokio::join!(biased; means.probe(&instance, &check, false), looked_up);
        assert!(matches!(failed, Err(Failure::Timeout(LIMIT))), "{failed:?}");
        let took = began.elapsed();
        assert!(took >= NEARLY * 2 + LIMIT, "the target had {:?}", took - NEARLY * 2);
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
