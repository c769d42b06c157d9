//! The node's sockets, all of them: listening, accepting, connecting. [`Net::Tcp`] is the real
//! network; a simulation brings its own. Nothing else in this crate opens a socket.

pub(crate) mod answers;
pub(crate) mod arriving;
pub(crate) mod authority;
pub(crate) mod calls;
pub(crate) mod connections;
pub(crate) mod http;
pub(crate) mod tls;
pub(crate) mod watched;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt, stream};
use hyper_util::rt::TokioIo;
use quorate_log::{Io, NodeId};
use quorate_state::Levels;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::net::tls::Tls;

/// What a node stands on, replaceable for simulations. The default is the real thing.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// Its network.
    pub net: Net,
    /// What writes its log to the disk.
    pub log_io: Io,
    /// Where Raft runs, and what talks to peers. `None`: where the node is made. A runtime with one
    /// thread of its own is best: a write then crosses few threads, and no load of clients keeps a
    /// heartbeat waiting.
    pub raft_on: Option<tokio::runtime::Handle>,
    /// Notified, files that may have changed are read again at once.
    pub reload: Arc<tokio::sync::Notify>,
    /// The levels of a cluster that it works at: those of this release, but where a test has it be
    /// another one.
    pub levels: Levels,
}

/// A network.
#[derive(Clone, Default)]
pub enum Net {
    /// The operating system's.
    #[default]
    Tcp,
    /// A simulated one.
    Simulated(Arc<dyn SimulatedNet>),
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "Tcp",
            Self::Simulated(_) => "Simulated",
        })
    }
}

/// A network that a simulation brings along.
pub trait SimulatedNet: Send + Sync {
    /// Listens at an address.
    fn listen(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Listener>>;
    /// Connects to `host:port`.
    fn open(&self, address: &str) -> BoxFuture<'static, io::Result<Connection>>;
}

/// Where a node listens, for its peers or its clients.
///
/// # Errors
/// It is no `host:port`.
pub(crate) fn endpoint(address: &str, connect_within: Duration) -> Result<Endpoint, NoAddress> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"));
    let endpoint = endpoint.map_err(|_| NoAddress { address: address.to_owned() })?;
    Ok(endpoint.connect_timeout(connect_within))
}

/// Nothing can be called there.
#[derive(Debug, thiserror::Error)]
#[error("the node's address {address:?} is no host:port")]
pub(crate) struct NoAddress {
    address: String,
}

/// A bound address and the connections that arrive there.
pub struct Listener {
    address: SocketAddr,
    accepted: BoxStream<'static, io::Result<Connection>>,
}

/// One accepted connection.
pub struct Connection {
    stream: Pin<Box<dyn Duplex>>,
    from: Option<IpAddr>,
}

/// When no connection can be accepted (no descriptors, no memory), the next one is tried after this
/// long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A thread that waits for datagrams looks this often whether it is to stop.
const DATAGRAM_WITHIN: Duration = Duration::from_millis(200);
/// How long a datagram may wait for the network; it is lost then, as any may be.
const SEND_WITHIN: Duration = Duration::from_millis(10);
/// That is logged at most this often.
const TELL_EVERY: Duration = Duration::from_secs(60);

trait Duplex: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}

impl Net {
    /// Listens at an address. Accepted connections do without Nagle's algorithm, which would hold
    /// small messages back for 40 ms.
    pub(crate) async fn listen(&self, address: SocketAddr) -> io::Result<Listener> {
        match self {
            Self::Tcp => {
                let listener = TcpListener::bind(address).await?;
                let address = listener.local_addr()?;
                let accepted =
                    stream::unfold((listener, None), |(listener, mut told)| async move {
                        let connection = accept(&listener, &mut told).await;
                        Some((Ok(connection), (listener, told)))
                    });
                Ok(Listener::new(address, accepted))
            }
            Self::Simulated(net) => net.listen(address).await,
        }
    }

    /// Takes datagrams at an address, for threads that wait for them. A simulation has none.
    pub(crate) fn datagrams(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        match self {
            Self::Tcp => {
                let socket = UdpSocket::bind(address)?;
                socket.set_read_timeout(Some(DATAGRAM_WITHIN))?;
                socket.set_write_timeout(Some(SEND_WITHIN))?;
                Ok(socket)
            }
            Self::Simulated(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// A channel that connects when it is first used; with TLS, only to a node of this cluster, and
    /// only to `node` where that is known.
    pub(crate) fn connect(
        &self,
        endpoint: &Endpoint,
        tls: Option<&Arc<Tls>>,
        node: Option<NodeId>,
    ) -> Channel {
        match (self, tls) {
            (_, Some(tls)) => tls.connect(self, endpoint, node),
            (Self::Tcp, None) => endpoint.connect_lazy(),
            (Self::Simulated(net), None) => {
                let net = net.clone();
                endpoint.connect_with_connector_lazy(tower::service_fn(move |uri: Uri| {
                    let opened = net.open(authority_of(&uri));
                    async { opened.await.map(TokioIo::new) }
                }))
            }
        }
    }

    /// Connects to where an address says.
    pub(crate) async fn reach(&self, uri: &Uri) -> io::Result<Connection> {
        match self {
            Self::Tcp => {
                let stream = TcpStream::connect(authority_of(uri)).await?;
                stream.set_nodelay(true)?;
                Ok(Connection::new(stream))
            }
            Self::Simulated(net) => net.open(authority_of(uri)).await,
        }
    }

    /// Connects to `host:port` and closes the connection again: whether a process listens there.
    pub(crate) fn dial(&self, address: &str) -> BoxFuture<'static, io::Result<()>> {
        match self {
            Self::Tcp => {
                let address = address.to_owned();
                Box::pin(async move { TcpStream::connect(address).await.map(drop) })
            }
            Self::Simulated(net) => {
                let opened = net.open(address);
                Box::pin(async move { opened.await.map(drop) })
            }
        }
    }

    /// Connects to exactly this address. A simulation has nothing to connect to so.
    pub(crate) async fn open(&self, address: SocketAddr) -> io::Result<TcpStream> {
        match self {
            Self::Tcp => TcpStream::connect(address).await,
            Self::Simulated(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

/// `host:port`; a node's address has one.
fn authority_of(uri: &Uri) -> &str {
    uri.authority().map_or("", |authority| authority.as_str())
}

/// The next connection. One that cannot be accepted stays in the kernel's queue, so trying again at
/// once would do nothing else.
async fn accept(listener: &TcpListener, told: &mut Option<Instant>) -> Connection {
    loop {
        let error = match listener.accept().await {
            Ok((stream, from)) => {
                // Fails only for one that is gone again.
                let _slower_at_worst = stream.set_nodelay(true);
                return Connection { from: Some(from.ip()), ..Connection::new(stream) };
            }
            Err(error) => error,
        };
        use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
        if matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
            continue;
        }
        if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            *told = Some(Instant::now());
            tracing::error!(%error, "cannot accept connections; trying again and again");
        }
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

impl Listener {
    /// Listens at `address` and accepts what the stream yields.
    pub fn new(
        address: SocketAddr,
        accepted: impl Stream<Item = io::Result<Connection>> + Send + 'static,
    ) -> Self {
        Self { address, accepted: accepted.boxed() }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn into_accepted(self) -> BoxStream<'static, io::Result<Connection>> {
        self.accepted
    }
}

impl Connection {
    /// A connection over a byte stream.
    pub fn new(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        Self { stream: Box::pin(stream), from: None }
    }

    /// The address that it comes from, if it has one.
    pub(crate) fn from(&self) -> Option<IpAddr> {
        self.from
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_read(cx, into)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
