//! Encrypted connections to the nodes: the CAs to trust, what they have revoked, the client's
//! certificate, and the handshake. What was given as files is read again at each dial, so a
//! connection is made with the newest of them; living ones stay as they are, until the node or the
//! network ends them, or the node's certificate would not be taken any more.

mod der;
mod lists;
mod watched;

use std::future::poll_fn;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::GaiResolver;
use hyper_util::rt::TokioIo;
use rustls::client::{ClientConfig, Resumption, WebPkiServerVerifier};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{InconsistentKeys, RootCertStore};
use tokio::io::AsyncBufRead;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::Uri;
use tower::ServiceExt as _;

use crate::nodes::dial::CONNECT_WITHIN;
use crate::nodes::files::{Before, Kept, Source};
use crate::nodes::tls::der::is_authority;
use crate::nodes::tls::lists::{Authorities, InUse};
use crate::nodes::tls::watched::Watched;

/// What nodes speak (gRPC is HTTP/2).
const ALPN: &[u8] = b"h2";
/// A node that says nothing for this long after the handshake is spoken to all the same.
const FIRST_WORD_WITHIN: Duration = Duration::from_millis(200);

/// How connections to the nodes are encrypted: which CAs to trust and, where nodes want one, the
/// client's certificate. Only the given CAs are trusted, not the system's.
///
/// Files are looked at every 10 s and whenever a node is dialled, by their content; so certificates
/// are replaced, and CAs added or taken away, without a restart. What cannot be used, as a key that
/// is not the certificate's, changes nothing until it can, and holds nothing else back: the CAs,
/// the lists, and the certificate with its key are taken independently. One exception: while lists
/// cannot be used, no CA is added, since they may be its own.
///
/// ```no_run
/// use quorate_client::{Client, Tls};
/// # fn example() -> Result<(), quorate_client::Error> {
/// let tls = Tls::new().ca_file("ca.crt").identity_files("orders.crt", "orders.key");
/// let client = Client::builder(["registry-1:7001", "registry-2:7001"]).tls(tls).build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Tls {
    cas: Vec<Source>,
    lists: Vec<Source>,
    identity: Option<(Source, Source)>,
    server_name: Option<String>,
}

impl Tls {
    /// Begins with nothing: a CA has to be named.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts the certificates of this PEM file, too, each of which has to be a CA's (basic
    /// constraints `CA:TRUE`). One of them that is not, or cannot be read, is an error, not left
    /// out.
    #[must_use]
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.cas.push(Source::file(path));
        self
    }

    /// As [`Tls::ca_file`], with the file's content.
    #[must_use]
    pub fn ca_pem(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.cas.push(Source::given(pem));
        self
    }

    /// Refuses the certificates on the lists in this PEM file, too: at most one list of each CA,
    /// signed by it. A CA without one has revoked nothing. A list whose next one is overdue stays
    /// in use; one that is older than the one before is refused. Lists of CAs that are not trusted
    /// here may stand beside those of CAs that are, as nodes have them; one that was there stays in
    /// use until the client starts again, unless a newer one comes, and one that cannot be used
    /// holds back no list of another CA, only CAs that are added. (A client does not start with a
    /// list that cannot be read.)
    ///
    /// A new list ends the connections to those whose certificates it has, also where calls and
    /// watches are under way: they go on with other nodes. So does a CA that is taken away, and the
    /// end of a certificate, within two minutes.
    #[must_use]
    pub fn crl_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.lists.push(Source::file(path));
        self
    }

    /// As [`Tls::crl_file`], with the file's content.
    #[must_use]
    pub fn crl_pem(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.lists.push(Source::given(pem));
        self
    }

    /// This client's identity: PEM files with its certificate (and the ones between it and the CA,
    /// if there are any) and with its private key, which is not encrypted.
    #[must_use]
    pub fn identity_files(
        mut self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        self.identity = Some((Source::file(certificate), Source::file(key)));
        self
    }

    /// As [`Tls::identity_files`], with the files' contents.
    #[must_use]
    pub fn identity_pem(
        mut self,
        certificate: impl Into<Vec<u8>>,
        key: impl Into<Vec<u8>>,
    ) -> Self {
        self.identity = Some((Source::given(certificate), Source::given(key)));
        self
    }

    /// The DNS name or IP address that every node's certificate has to be for. Unless it is set,
    /// that is the host of the node's address.
    #[must_use]
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// # Errors
    /// What is missing, or cannot be read or used, in words.
    pub(crate) fn load(self) -> Result<Encryption, String> {
        let server_name = self.server_name.map(|name| parse_name(&name)).transpose()?;
        if self.cas.is_empty() {
            return Err("no CA was given, so no node could be trusted".to_owned());
        }
        let own = self.identity.into_iter().flat_map(|(certificate, key)| [certificate, key]);
        // What is revoked goes before whom to trust, and that before who this client is. A CA goes
        // by the first of two equal parts, and comes by the other, which may have to wait.
        let sources = vec![self.lists, self.cas.clone(), self.cas, own.collect()];
        let named = sources.clone();
        let make = move |parts: &[&[Vec<u8>]], before: Option<Before<'_, Loaded>>| {
            let given = |at: usize| -> Vec<Given<'_>> {
                named[at].iter().zip(parts[at].iter().map(Vec::as_slice)).collect()
            };
            let before = before.map(|Before { value, left }| (value, left[0]));
            load([&given(1), &given(2)], &given(0), &given(3), before)
        };
        let kept = Kept::new("the client's certificates", sources, make)?;
        let tcp = tcp(GaiResolver::new(), CONNECT_WITHIN);
        Ok(Encryption { kept, server_name, tcp })
    }
}

fn parse_name(name: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(name.to_owned())
        .map_err(|_| format!("\"{name}\" is no DNS name and no IP address"))
}

/// A source, and its content of now.
type Given<'a> = (&'a Source, &'a [u8]);

/// What nodes are dialled with.
#[derive(Debug)]
struct Loaded {
    config: Arc<ClientConfig>,
    verifier: Arc<WebPkiServerVerifier>,
    roots: Arc<RootCertStore>,
    lists: InUse,
}

/// Whoever stands in both `cas` is trusted. `own`: a certificate and its key, or nothing; `before`:
/// what is in use, and whether other lists than its own are there, which cannot be used.
fn load(
    cas: [&[Given<'_>]; 2],
    crls: &[Given<'_>],
    own: &[Given<'_>],
    before: Option<(&Loaded, bool)>,
) -> Result<Loaded, String> {
    // Whatever provider the program has installed, or none: this is the one that is tested.
    let provider = Arc::new(ring::default_provider());
    let [mut roots, others] = [roots(cas[0])?, roots(cas[1])?];
    roots.roots.retain(|root| others.roots.contains(root));
    if roots.is_empty() {
        return Err("none of the CAs in use is there any more, and new ones wait".to_owned());
    }
    let roots = Arc::new(roots);
    // Those may say whom the new CA has revoked.
    let is_new = |to: &Loaded| roots.roots.iter().any(|root| !to.roots.roots.contains(root));
    let adds = before.is_some_and(|(before, _)| is_new(before));
    if adds && before.is_some_and(|(_, has_bad_lists)| has_bad_lists) {
        return Err("a CA that is new waits for revocation lists that can be used".to_owned());
    }
    let own = match own {
        [certificate, key] => Some((*certificate, *key, identity(*certificate, *key)?)),
        _ => None,
    };
    let between = own.iter().flat_map(|(_, _, (chain, _))| chain.iter().skip(1));
    let authorities = Authorities::new(&roots, between);
    let before = before.map(|(before, _)| &before.lists);
    let lists = lists::check(&revoked(crls)?, &authorities, before, adds, &provider)?;
    // As nodes do it: whose CA has no list is not revoked, and an old list is better than none.
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone())
        .with_crls(lists.values().map(|list| list.der.clone()))
        .allow_unknown_revocation_status()
        .build()
        .map_err(|error| error.to_string())?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_webpki_verifier(verifier.clone());
    let mut config = match own {
        Some(((certificate, _), (key, _), (chain, private))) => {
            config.with_client_auth_cert(chain, private).map_err(|error| match error {
                rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                    format!("{key}: it is not the key of {certificate}")
                }
                error => format!("{certificate}, {key}: {error}"),
            })?
        }
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A node whose session goes on shows no certificate again: that one may have ended.
    config.resumption = Resumption::disabled();
    Ok(Loaded { config: Arc::new(config), verifier, roots, lists })
}

fn roots(cas: &[Given<'_>]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for (source, pem) in cas {
        let named = |fault: String| format!("{source}: {fault}");
        for (number, certificate) in (1..).zip(certificates(pem).map_err(named)?) {
            let of_authority = is_authority(&certificate);
            roots.add(certificate).map_err(|error| {
                named(format!("certificate {number} cannot be one of a CA: {error}"))
            })?;
            if !of_authority {
                return Err(named(format!(
                    "certificate {number} is no authority's: it does not say CA:TRUE"
                )));
            }
        }
    }
    Ok(roots)
}

fn revoked<'a>(sources: &[Given<'a>]) -> Result<Vec<lists::Named<'a>>, String> {
    let mut lists = Vec::new();
    for (source, pem) in sources {
        let read = parts(pem, "X509 CRL--", "revocation list");
        let read = read.map_err(|fault| format!("{source}: {fault}"))?;
        lists.extend((1..).zip(read).map(|(number, list)| (*source, number, list)));
    }
    Ok(lists)
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn identity((certificate, pem): Given<'_>, (key, key_pem): Given<'_>) -> Result<Identity, String> {
    let chain = certificates(pem).map_err(|fault| format!("{certificate}: {fault}"))?;
    let private = PrivateKeyDer::from_pem_slice(key_pem).map_err(|_| {
        format!("{key}: there is no private key in it that is whole and not encrypted")
    })?;
    Ok((chain, private))
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    parts(pem, "CERTIFICATE--", "certificate")
}

/// All parts of a kind in a PEM text, which has at least one; `frame`: what both lines have that
/// one stands between. The reader passes over what it does not know; one with a broken frame is not
/// to be lost that way.
fn parts<T: PemObject>(pem: &[u8], frame: &str, what: &str) -> Result<Vec<T>, String> {
    let read: Result<Vec<T>, _> = T::pem_slice_iter(pem).collect();
    let read = read.map_err(|error| format!("it is no whole PEM file: {error}"))?;
    let frames = String::from_utf8_lossy(pem).matches(frame).count();
    if frames != 2 * read.len() {
        return Err(format!(
            "it has {frames} lines that begin or end a {what}, and {} whole ones",
            read.len()
        ));
    }
    if read.is_empty() {
        return Err(format!("there is no {what} in it"));
    }
    Ok(read)
}

/// What is needed to dial.
#[derive(Debug)]
pub(crate) struct Encryption {
    kept: Kept<Loaded>,
    server_name: Option<ServerName<'static>>,
    tcp: HttpConnector,
}

/// Connects as the transport does without encryption: where a name has several addresses, each gets
/// a part of the time, so that one that hangs does not keep the others from being tried.
fn tcp<R>(resolver: R, within: Duration) -> HttpConnector<R> {
    let mut tcp = HttpConnector::new_with_resolver(resolver);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(within));
    tcp
}

impl Encryption {
    pub(super) fn is_of_files(&self) -> bool {
        self.kept.is_of_files()
    }

    pub(crate) async fn keep(&self) {
        self.kept.keep().await;
    }

    /// Connects to `host:port`, which `uri` has, too.
    pub(super) async fn connect(&self, address: &str, uri: Uri) -> io::Result<TokioIo<Watched>> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => {
                let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
                let host = host.trim_start_matches('[').trim_end_matches(']');
                parse_name(host).map_err(io::Error::other)?
            }
        };
        self.kept.reread().await;
        let tcp = self.tcp.clone().oneshot(uri).await.map_err(io::Error::other)?.into_inner();
        // Before they are looked at: what comes in between is looked at again.
        let judged = self.kept.changes();
        let connector = TlsConnector::from(self.kept.now().config.clone());
        let mut stream = connector.connect(name.clone(), tcp).await?;
        if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            let error = rustls::Error::NoApplicationProtocol;
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        if let Ok(judged) = timeout(FIRST_WORD_WITHIN, first_word(&mut stream)).await {
            judged?;
        }
        Ok(TokioIo::new(Watched::new(stream, name, self.kept.clone(), judged)))
    }
}

/// Waits until the node speaks, as HTTP/2 servers do without being asked. With TLS 1.3 it judges
/// the client's certificate when the handshake is already over for the client; left to itself,
/// HTTP/2 would mostly report a closed connection only.
async fn first_word(stream: &mut TlsStream<TcpStream>) -> io::Result<()> {
    let spoke = poll_fn(|cx| {
        let bytes = ready!(Pin::new(&mut *stream).poll_fill_buf(cx))?;
        Poll::Ready(Ok::<_, io::Error>(!bytes.is_empty()))
    });
    if spoke.await? {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the node closed the connection at once"))
}

#[cfg(test)]
mod tests;
