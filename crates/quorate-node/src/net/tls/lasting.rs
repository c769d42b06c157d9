//! How long a certificate is good that was shown when a connection began: until it ends, or one
//! between it and its authority, or until new files name it as revoked or do not trust its
//! authority any more. In both directions.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use quorate_log::NodeId;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::sleep;
use tokio_rustls::client::TlsStream;

use crate::net::Connection;
use crate::net::tls::files::Loaded;
use crate::net::tls::{Tls, der, wall_time};
use crate::wall::{self, Seconds};

/// The end of a certificate is looked for so often at least: the wall clock that says so may jump,
/// and that one between it and its authority ends is seen by verifying the chain again.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// A connection begins to end this long before the certificate does, so that calls under way can
/// be finished; a tenth of what is left, where that is less.
const EARLY_MAX: Duration = Duration::from_secs(5);

/// What is revoked has this long for its calls.
const REVOKED_GRACE: Duration = Duration::from_secs(1);

/// What the other end of a connection has shown.
#[derive(Debug)]
pub(crate) struct Shown {
    /// Behind the first may stand what is not needed, and nobody has verified.
    chain: Vec<CertificateDer<'static>>,
    /// When the first of them ends.
    until: Seconds,
    /// They were verified then.
    at: UnixTime,
    /// The files that it was verified with.
    set: u64,
}

/// Why a connection is to end, and how much later at most.
#[derive(Debug)]
pub(crate) struct Outlived {
    pub(crate) why: String,
    pub(crate) grace: Duration,
}

impl Shown {
    /// `None`: nothing was shown.
    ///
    /// # Errors
    /// It cannot be read when it ends.
    pub(super) fn new(chain: Option<&[CertificateDer<'_>]>, set: u64) -> io::Result<Option<Self>> {
        let Some(chain) = chain.filter(|chain| !chain.is_empty()) else { return Ok(None) };
        let unread =
            || io::Error::new(io::ErrorKind::InvalidData, "its certificate says no end to read");
        let until = der::lifetime(&chain[0]).ok_or_else(unread)?.not_after;
        let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        Ok(Some(Self { chain, until, at: wall_time(), set }))
    }
}

impl Tls {
    /// Waits until what was shown is not good any more; `verify`: by the files and at the time of
    /// then.
    pub(super) async fn outlived(
        &self,
        shown: &Shown,
        verify: impl Fn(
            &Loaded,
            &CertificateDer<'_>,
            &[CertificateDer<'_>],
            UnixTime,
        ) -> Result<(), rustls::Error>,
    ) -> Outlived {
        let Shown { chain, until, at, set } = shown;
        let Some((leaf, rest)) = chain.split_first() else { return std::future::pending().await };
        let left = || Duration::from_secs(until.saturating_sub(wall::now()));
        let grace = EARLY_MAX.min(left() / 10);
        let (mut changes, mut set) = (self.changes.subscribe(), *set);
        loop {
            let leaves_in = left().saturating_sub(grace);
            if leaves_in.is_zero() {
                return Outlived { why: "its certificate ends".to_owned(), grace };
            }
            tokio::select! {
                // Its sender is here: it does not end before.
                _ = changes.wait_for(|newest| *newest != set) => {}
                () = sleep(leaves_in.min(LOOK_AGAIN)) => if rest.is_empty() { continue },
            }
            let loaded = self.loaded.load_full();
            set = loaded.set;
            // A clock that went back makes nothing invalid: of what is not valid yet, nothing more
            // is known, such as that it was revoked.
            if let Err(error) = verify(&loaded, leaf, rest, wall_time().max(*at)) {
                let why = format!("its certificate is not taken any more: {error}");
                return Outlived { why, grace: REVOKED_GRACE };
            }
        }
    }

    /// A connection that this node has dialled, which breaks when the certificate of the node there
    /// is not good any more.
    ///
    /// # Errors
    /// It cannot be read when that one ends.
    pub(super) fn watched(
        self: &Arc<Self>,
        stream: TlsStream<Connection>,
        node: Option<NodeId>,
        name: ServerName<'static>,
        set: u64,
    ) -> io::Result<Watched> {
        let shown = Shown::new(stream.get_ref().1.peer_certificates(), set)?;
        let tls = self.clone();
        let outlived = async move {
            let Some(shown) = shown else { return std::future::pending().await };
            let verify = |loaded: &Loaded,
                          leaf: &CertificateDer<'_>,
                          rest: &[CertificateDer<'_>],
                          now: UnixTime| {
                let verifier = tls.verifier(loaded, node);
                verifier.verify_server_cert(leaf, rest, &name, &[], now).map(drop)
            };
            tls.outlived(&shown, verify).await
        };
        Ok(Watched { stream, outlived: Some(outlived.boxed()) })
    }
}

/// See [`Tls::watched`].
pub(super) struct Watched {
    stream: TlsStream<Connection>,
    /// `None`: it has come.
    outlived: Option<BoxFuture<'static, Outlived>>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(outlived) = &mut self.outlived else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        };
        if let Poll::Ready(Outlived { why, .. }) = outlived.poll_unpin(cx) {
            self.outlived = None;
            tracing::warn!(why, "a connection to another node ends");
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, why)));
        }
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
