//! Accepted connections: with TLS or without, as both listeners serve them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::net::connections::{Admitted, Line};
use crate::net::tls::files::Loaded;
use crate::net::tls::{Outlived, Shown, Tls};

/// A handshake takes a round trip or two; a half-open one is given up. How many
/// there may be is said where connections find their places.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);

/// Is told which connection was refused, and why.
pub(crate) type TellsRefused = Arc<dyn Fn(&Line, &str) + Send + Sync>;

/// How a listener secures its connections.
#[derive(Clone)]
pub(crate) enum Security {
    /// Not at all.
    Plain,
    /// TLS for clients.
    Clients(Arc<Tls>),
    /// TLS for operators' tools, which speak HTTP/1.1.
    Tools(Arc<Tls>),
    /// TLS for the other nodes, and for no clients.
    Peers(Arc<Tls>, TellsRefused),
}

/// A connection that calls come on.
pub(crate) struct Secured {
    stream: Stream,
    line: Arc<Line>,
}

enum Stream {
    Plain(Admitted),
    Tls(Box<TlsStream<Admitted>>),
}

impl Security {
    pub(crate) fn clients(tls: Option<Arc<Tls>>) -> Self {
        tls.map_or(Self::Plain, Self::Clients)
    }

    pub(crate) fn tools(tls: Option<Arc<Tls>>) -> Self {
        tls.map_or(Self::Plain, Self::Tools)
    }

    pub(crate) fn peers(tls: Option<Arc<Tls>>, refused: TellsRefused) -> Self {
        tls.map_or(Self::Plain, |tls| Self::Peers(tls, refused))
    }

    /// The age at which a connection is to end, if any.
    pub(crate) fn age(&self) -> Option<Duration> {
        match self {
            Self::Plain => None,
            Self::Clients(tls) | Self::Tools(tls) | Self::Peers(tls, _) => {
                Some(tls.connection_age())
            }
        }
    }

    /// Makes the handshake. `None`: it failed, and the connection is closed.
    pub(in crate::net) async fn secure(&self, connection: Admitted) -> Option<Secured> {
        let line = connection.connect_info();
        let tls = match self {
            Self::Plain => return Some(Secured { stream: Stream::Plain(connection), line }),
            Self::Clients(tls) | Self::Tools(tls) | Self::Peers(tls, _) => tls,
        };
        let from = line.address();
        match timeout(HANDSHAKE_WITHIN, self.handshake(tls, connection, &line)).await {
            Ok(Ok(stream)) => Some(Secured { stream: Stream::Tls(Box::new(stream)), line }),
            Ok(Err(error)) => {
                let why = tls.told.handshake_failed(from, &error);
                if let (Some(why), Self::Peers(_, refused)) = (why, self) {
                    refused(&line, &why);
                }
                None
            }
            Err(_elapsed) => {
                tls.told.refused(from, &format!("it took longer than {HANDSHAKE_WITHIN:?}"));
                None
            }
        }
    }

    async fn handshake(
        &self,
        tls: &Tls,
        connection: Admitted,
        line: &Line,
    ) -> io::Result<TlsStream<Admitted>> {
        let loaded = tls.loaded.load_full();
        let config = match self {
            Self::Peers(..) => &loaded.peers,
            Self::Tools(..) => &loaded.tools,
            _ => &loaded.clients,
        };
        let stream = TlsAcceptor::from(config.clone()).accept(connection).await?;
        let certificate = tls.certificate(stream.get_ref().1.peer_certificates())?;
        let node = certificate.as_ref().and_then(|id| id.node(&tls.cluster));
        let shown = Shown::new(stream.get_ref().1.peer_certificates(), loaded.set)?;
        line.identify(certificate, node, shown);
        if let (Self::Peers(..), None) = (self, node) {
            let problem = format!("its certificate is of no node of the cluster {:?}", tls.cluster);
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, problem));
        }
        Ok(stream)
    }

    /// Waits until what the other end of a connection has shown is not good any more.
    pub(in crate::net) async fn outlived(&self, line: &Line) -> Outlived {
        let (tls, of_peers) = match self {
            Self::Plain => return std::future::pending().await,
            Self::Clients(tls) | Self::Tools(tls) => (tls, false),
            Self::Peers(tls, _) => (tls, true),
        };
        let Some(shown) = line.shown() else { return std::future::pending().await };
        let verify = |loaded: &Loaded,
                      leaf: &CertificateDer<'_>,
                      rest: &[CertificateDer<'_>],
                      now: UnixTime| {
            let verifier = if of_peers { &loaded.of_peers } else { &loaded.of_clients };
            verifier.verify_client_cert(leaf, rest, now).map(drop)
        };
        tls.outlived(shown, verify).await
    }
}

impl Connected for Secured {
    type ConnectInfo = Arc<Line>;

    fn connect_info(&self) -> Arc<Line> {
        self.line.clone()
    }
}

impl AsyncRead for Secured {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let polled = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, into),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, into),
        };
        self.line.greet(into.filled().len() - before);
        polled
    }
}

macro_rules! to_stream {
    ($self:ident, $stream:ident => $polled:expr) => {
        match &mut $self.get_mut().stream {
            Stream::Plain($stream) => $polled,
            Stream::Tls($stream) => $polled,
        }
    };
}

impl AsyncWrite for Secured {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        to_stream!(self, stream => Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        to_stream!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        to_stream!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        to_stream!(self, stream => Pin::new(stream).poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
