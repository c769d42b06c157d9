//! A connection that ends once the node's certificate would not be taken any more: it was revoked,
//! its CA is not trusted now, or it has ended. Whoever has a stolen key would keep it open for
//! ever; and of a certificate that has ended, nobody says any more that it was revoked.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::{ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;

use crate::nodes::files::Kept;
use crate::nodes::tls::Loaded;

/// Where no file has changed, a certificate is judged again after half of this to one and a half:
/// it may have ended. At random, since many end at one time: not all connections are to end then.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// A connection to a node.
pub(crate) struct Watched {
    stream: TlsStream<TcpStream>,
    name: ServerName<'static>,
    kept: Kept<Loaded>,
    /// The change of the files by which the certificate was judged last.
    judged: u64,
    /// When it is judged again, whatever has changed.
    again_at: Instant,
    /// It was taken then.
    taken_at: Option<UnixTime>,
}

impl Watched {
    /// `judged`: the change of the files by which the node's certificate was taken.
    pub(super) fn new(
        stream: TlsStream<TcpStream>,
        name: ServerName<'static>,
        kept: Kept<Loaded>,
        judged: u64,
    ) -> Self {
        let taken_at = kept.now().config.time_provider.current_time();
        Self { stream, name, kept, judged, again_at: again_at(), taken_at }
    }

    /// # Errors
    /// The node's certificate would not be taken now.
    fn judge(&mut self) -> io::Result<()> {
        let (changes, now) = (self.kept.changes(), Instant::now());
        if changes == self.judged && now < self.again_at {
            return Ok(());
        }
        (self.judged, self.again_at) = (changes, again_at());
        let now = self.kept.now().config.time_provider.current_time();
        now.map_or(Ok(()), |now| self.judge_at(now))
    }

    fn judge_at(&self, now: UnixTime) -> io::Result<()> {
        let shown = self.stream.get_ref().1.peer_certificates();
        let Some((leaf, rest)) = shown.and_then(<[_]>::split_first) else { return Ok(()) };
        // A clock that went back makes nothing invalid: of what is not valid yet, nothing more is
        // known, such as that it was revoked.
        let now = self.taken_at.map_or(now, |taken_at| now.max(taken_at));
        match self.kept.now().verifier.verify_server_cert(leaf, rest, &self.name, &[], now) {
            // Other errors are of lists, and say nothing of the certificate.
            Err(error @ rustls::Error::InvalidCertificate(_)) => {
                Err(io::Error::new(io::ErrorKind::InvalidData, error))
            }
            _ => Ok(()),
        }
    }
}

fn again_at() -> Instant {
    Instant::now() + AGAIN_AFTER.mul_f64(0.5 + rand::random::<f64>())
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::time::UNIX_EPOCH;

    use rcgen::{
        BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd,
    };
    use rustls::ServerConfig;
    use rustls::crypto::ring;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::time::{sleep, timeout};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;
    use crate::nodes::tls::Tls;

    const SOON: Duration = Duration::from_secs(30);
    /// A busy machine makes a connection, and uses it, well before.
    const GOOD_FOR: Duration = Duration::from_secs(10);
    const PAUSE: Duration = Duration::from_millis(50);

    struct Authority {
        pem: String,
        issuer: Issuer<'static, KeyPair>,
        /// What nodes show behind their own certificate.
        behind: Vec<CertificateDer<'static>>,
    }

    impl Authority {
        fn new(name: &str) -> Self {
            let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::default());
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let pem = params.self_signed(&key).unwrap().pem();
            Self { pem, issuer: Issuer::new(params, key), behind: Vec::new() }
        }

        /// A node "a" whose certificate ends then (from 1970), and which says one byte each time
        /// that it hears one.
        async fn node(&self, ends: Duration) -> (TcpListener, TlsAcceptor) {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec!["a".to_owned()]).unwrap();
            params.not_after = date_time_ymd(1970, 1, 1) + ends;
            let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
            let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert([vec![leaf], self.behind.clone()].concat(), key)
                .unwrap();
            (TcpListener::bind("127.0.0.1:0").await.unwrap(), TlsAcceptor::from(Arc::new(config)))
        }

        /// Where it answers.
        async fn serve(&self, ends: Duration) -> SocketAddr {
            let (listener, acceptor) = self.node(ends).await;
            let address = listener.local_addr().unwrap();
            tokio::spawn(async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                    while let Ok(byte) = stream.read_u8().await {
                        stream.write_u8(byte).await.unwrap();
                    }
                }
            });
            address
        }

        async fn connect(&self, kept: &Kept<Loaded>, ends: Duration) -> Watched {
            dial(kept, self.serve(ends).await).await.unwrap()
        }
    }

    async fn dial(kept: &Kept<Loaded>, address: SocketAddr) -> io::Result<Watched> {
        let name = ServerName::try_from("a").unwrap();
        let tcp = TcpStream::connect(address).await.unwrap();
        let connector = TlsConnector::from(kept.now().config.clone());
        let stream = connector.connect(name.clone(), tcp).await?;
        Ok(Watched::new(stream, name, kept.clone(), kept.changes()))
    }

    fn since_1970() -> Duration {
        Duration::from_secs(UNIX_EPOCH.elapsed().unwrap().as_secs())
    }

    const HOUR: Duration = Duration::from_secs(3_600);

    async fn hears(connection: &mut Watched) -> io::Result<u8> {
        let both = async {
            connection.write_u8(7).await?;
            connection.read_u8().await
        };
        timeout(SOON, both).await.expect("an answer or an error")
    }

    /// The node had all the time to replace it, and whoever stole its key never does.
    #[tokio::test]
    async fn a_connection_ends_some_time_after_the_nodes_certificate() {
        let ours = Authority::new("ours");
        let kept = Tls::new().ca_pem(ours.pem.as_str()).load().unwrap().kept;
        let until = since_1970() + GOOD_FOR;
        let mut connection = ours.connect(&kept, until).await;
        let again_in = connection.again_at - Instant::now();
        assert!(again_in > AGAIN_AFTER / 3 && again_in <= AGAIN_AFTER * 3 / 2, "{again_in:?}");
        assert_eq!(hears(&mut connection).await.unwrap(), 7);
        let deadline = Instant::now() + SOON;
        let ended = loop {
            connection.again_at = Instant::now();
            match hears(&mut connection).await {
                Err(ended) => break ended,
                Ok(_) => assert!(Instant::now() < deadline, "it goes on"),
            }
            sleep(PAUSE).await;
        };
        assert!(since_1970() >= until, "not before");
        assert!(ended.to_string().contains("expired"), "{ended}");
    }

    /// A session that goes on would not be verified. Servers hand out tickets for one by default.
    #[tokio::test]
    async fn a_node_is_not_believed_again_after_its_certificate() {
        let ours = Authority::new("ours");
        let kept = Tls::new().ca_pem(ours.pem.as_str()).load().unwrap().kept;
        let until = since_1970() + GOOD_FOR;
        let address = ours.serve(until).await;
        let deadline = Instant::now() + SOON;
        let mut heard = 0;
        let refused = loop {
            match dial(&kept, address).await {
                Err(refused) => break refused,
                Ok(mut connection) => heard += u32::from(hears(&mut connection).await.unwrap()),
            }
            assert!(Instant::now() < deadline, "it goes on");
            sleep(PAUSE).await;
        };
        assert!(heard > 0, "it was believed before: {refused}");
        assert!(since_1970() >= until, "not before");
        assert!(refused.to_string().contains("expired"), "{refused}");
    }

    #[tokio::test]
    async fn a_connection_ends_when_the_nodes_ca_is_taken_away() {
        let (ours, other) = (Authority::new("ours"), Authority::new("other"));
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca");
        std::fs::write(&ca, format!("{}{}", ours.pem, other.pem)).unwrap();
        let kept = Tls::new().ca_file(&ca).load().unwrap().kept;
        let mut connection = ours.connect(&kept, since_1970() + HOUR).await;
        for (trusted, is_kept) in [(&ours, true), (&other, false)] {
            std::fs::write(&ca, &trusted.pem).unwrap();
            kept.reread().await;
            let heard = hears(&mut connection).await;
            assert_eq!(heard.is_ok(), is_kept, "{heard:?}");
        }
    }

    /// Of several ways that lead to no CA, the library tells that one was not valid yet.
    #[tokio::test]
    async fn a_connection_ends_whatever_the_node_has_shown_besides() {
        let (mut ours, other) = (Authority::new("ours"), Authority::new("other"));
        let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::default());
        params.distinguished_name.push(DnType::CommonName, "ours");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = date_time_ymd(2050, 1, 1);
        ours.behind = vec![params.self_signed(&key).unwrap().der().clone()];
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca");
        std::fs::write(&ca, &ours.pem).unwrap();
        let kept = Tls::new().ca_file(&ca).load().unwrap().kept;
        let mut connection = ours.connect(&kept, since_1970() + HOUR).await;
        hears(&mut connection).await.unwrap();
        std::fs::write(&ca, &other.pem).unwrap();
        kept.reread().await;
        hears(&mut connection).await.unwrap_err();
    }

    #[tokio::test]
    async fn a_clock_that_goes_back_ends_no_connection() {
        let ours = Authority::new("ours");
        let kept = Tls::new().ca_pem(ours.pem.as_str()).load().unwrap().kept;
        let connection = ours.connect(&kept, since_1970() + HOUR).await;
        let at = |since_1970| UnixTime::since_unix_epoch(since_1970);
        for (now, is_kept) in
            [(Duration::ZERO, true), (since_1970(), true), (since_1970() + 2 * HOUR, false)]
        {
            assert_eq!(connection.judge_at(at(now)).is_ok(), is_kept, "{now:?}");
        }
    }
}
