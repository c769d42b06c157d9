//! One probe: whom to connect to, whether that is allowed, and what came of it. Nothing is kept between probes.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use quorate_state::{CheckKind, HealthCheck, Instance, host_and_port};
use rustix::io::Errno;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

use super::networks::Networks;
use super::{grpc, http};
use crate::net::Net;
use crate::raft::runtime::blocking;

/// Names that are resolved at the same time: each holds one of the threads that the log store needs too, for as long as
/// the system's resolver likes.
const LOOKUPS_MAX: usize = 32;

/// What all probes need.
#[derive(Debug, Clone)]
pub(super) struct Means {
    pub(super) net: Net,
    pub(super) allowed: Arc<Networks>,
    lookups: Arc<Semaphore>,
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
    /// Says nothing of the target: while names cannot be resolved, instances must not all be taken out.
    #[error("its name is not resolved: {0}")]
    Lookup(io::Error),
    /// Says nothing of the target: without descriptors or ports of its own, this node reaches nobody.
    #[error("this node cannot connect: {0}")]
    OwnTrouble(io::Error),
    /// Says nothing of the target.
    #[error("this node stood still meanwhile")]
    Stalled,
}

impl Failure {
    /// Whether it is the target that failed.
    pub(super) fn is_the_targets(&self) -> bool {
        let ours = matches!(self, Self::Lookup(_) | Self::OwnTrouble(_) | Self::Stalled);
        !ours && !matches!(self, Self::NotAllowed { .. })
    }
}

impl Means {
    pub(super) fn new(net: Net, allowed: Networks) -> Self {
        let (allowed, lookups) = (Arc::new(allowed), Arc::new(Semaphore::new(LOOKUPS_MAX)));
        Self { net, allowed, lookups }
    }

    /// Probes an instance once, as a check says, within the check's timeout.
    pub(super) async fn probe(
        &self,
        instance: &Instance,
        check: &HealthCheck,
    ) -> Result<(), Failure> {
        let mut endpoints = instance.spec.endpoints().iter();
        let endpoint = endpoints.find(|(name, _)| *name == &*check.endpoint);
        let target = endpoint.and_then(|(_, uri)| host_and_port(uri));
        let (host, port) = target.ok_or(Failure::NoAddress)?;
        let limit = Duration::from_millis(check.timeout_ms.into());
        let deadline = Instant::now() + limit;
        let looked_up = timeout_at(deadline, self.allowed_addresses(host, port)).await;
        let addresses =
            looked_up.unwrap_or(Err(Failure::Lookup(io::ErrorKind::TimedOut.into())))?;
        match timeout_at(deadline, self.ask(&addresses, host, check)).await {
            Ok(Err(Failure::Io(error))) if is_own_trouble(&error) => {
                Err(Failure::OwnTrouble(error))
            }
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
        let named = match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        match &check.kind {
            CheckKind::Tcp => Ok(()),
            CheckKind::Http { path } => http::probe(stream, &named, path).await,
            CheckKind::Grpc { service } => grpc::probe(stream, &named, service).await,
        }
    }

    /// The addresses of a host that may be connected to. They are what is connected to, so it does not matter what the
    /// name means a moment later.
    async fn allowed_addresses(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
        let all = match host.parse::<IpAddr>() {
            Ok(address) => vec![SocketAddr::new(address, port)],
            Err(_) => self.look_up(host, port).await?,
        };
        let first = all.first().ok_or(Failure::NoAddress)?.ip();
        let allowed: Vec<_> =
            all.into_iter().filter(|address| self.allowed.contain(address.ip())).collect();
        match allowed.is_empty() {
            true => Err(Failure::NotAllowed { address: first }),
            false => Ok(allowed),
        }
    }

    async fn look_up(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
        let permit = self.lookups.clone().acquire_owned().await;
        let named = (host.to_owned(), port);
        let found = blocking(move || {
            // Held until the resolver is done, also when nobody waits for it any more.
            let _permit = permit;
            named.to_socket_addrs().map(Iterator::collect)
        });
        let found = found.await.map_err(|error| Failure::Lookup(error.into()))?;
        found.map_err(Failure::Lookup)
    }

    /// The first address that takes a connection; each has an equal share of the time.
    async fn connect(
        &self,
        addresses: &[SocketAddr],
        check: &HealthCheck,
    ) -> Result<TcpStream, Failure> {
        let limit = Duration::from_millis(check.timeout_ms.into());
        let share = limit / addresses.len().max(1) as u32;
        let mut last = Failure::NoAddress;
        for address in addresses {
            match timeout(share, self.net.open(*address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = Failure::Io(error),
                Err(_) => last = Failure::Timeout(limit),
            }
        }
        Err(last)
    }
}

/// Without descriptors, memory or ports of its own, a node finds nobody; that must not take the whole fleet out.
fn is_own_trouble(error: &io::Error) -> bool {
    let own = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL];
    let raw = error.raw_os_error();
    own.iter().any(|errno| raw == Some(errno.raw_os_error()))
}
