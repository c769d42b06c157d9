//! A connection that ends once the node's certificate is revoked: whoever has a stolen key would
//! keep it open for ever.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustls::CertificateError;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::nodes::files::Kept;
use crate::nodes::tls::Loaded;

/// A connection to a node.
pub(crate) struct Watched {
    pub(super) stream: TlsStream<TcpStream>,
    pub(super) name: ServerName<'static>,
    pub(super) kept: Kept<Loaded>,
    /// The change of the files by which the certificate was judged last.
    pub(super) judged: u64,
}

impl Watched {
    /// # Errors
    /// A list that has come since names the node's certificate. Whatever else has changed counts
    /// for the next connection: nodes end this one at its age.
    fn judge(&mut self) -> io::Result<()> {
        let changes = self.kept.changes();
        if changes == self.judged {
            return Ok(());
        }
        self.judged = changes;
        let shown = self.stream.get_ref().1.peer_certificates();
        let Some((leaf, rest)) = shown.and_then(<[_]>::split_first) else { return Ok(()) };
        let loaded = self.kept.now();
        let Some(now) = loaded.config.time_provider.current_time() else { return Ok(()) };
        match loaded.verifier.verify_server_cert(leaf, rest, &self.name, &[], now) {
            Err(error @ rustls::Error::InvalidCertificate(CertificateError::Revoked)) => {
                Err(io::Error::new(io::ErrorKind::InvalidData, error))
            }
            _ => Ok(()),
        }
    }
}

/// It is judged when it is read from. That is at least as often as the transport probes it, which
/// it does where nothing arrives.
impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.judge()?;
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
