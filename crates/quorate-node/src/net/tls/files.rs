//! The files of a node's TLS: read, checked whole, and made into what handshakes need. A set that
//! is half written, does not fit together or has expired is refused as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use quorate_log::NodeId;
use ring::digest::{Context, SHA256};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, RootCertStore, ServerConfig};
use tokio::time::timeout;
use webpki::{BorrowedCertRevocationList, CertRevocationList, EndEntityCert};

use crate::config;
use crate::config::ClientCertificates;
use crate::net::tls::der::{self, Lifetime, ListAge};
use crate::net::tls::error::{ListError, Problem, TlsError};
use crate::net::tls::{WallTime, verify, wall_time};

/// The protocol that the listeners for clients and peers speak (ALPN).
pub(super) const H2: &[u8] = b"h2";
/// The one that operators' tools speak.
const HTTP: &[u8] = b"http/1.1";

/// A file that is larger is none of ours, bytes: a bundle of some hundred authorities.
pub(super) const FILE_MAX: u64 = 1 << 20;

/// A file that takes longer cannot be used: it may be of a server that is gone.
pub(super) const READ_WITHIN: Duration = Duration::from_secs(5);

/// What handshakes need.
pub(super) struct Loaded {
    pub(super) clients: Arc<ServerConfig>,
    pub(super) tools: Arc<ServerConfig>,
    pub(super) peers: Arc<ServerConfig>,
    /// Verifies the chain of a node's certificate.
    pub(super) nodes: Arc<WebPkiServerVerifier>,
    /// This node's own certificate and key.
    pub(super) identity: Arc<SingleCertAndKey>,
    pub(super) of_clients: Arc<dyn ClientCertVerifier>,
    pub(super) of_peers: Arc<dyn ClientCertVerifier>,
    /// Of this node's own certificate.
    pub(super) lifetime: Option<Lifetime>,
    /// How new its revocation lists are, by their authorities' subjects.
    lists: BTreeMap<Vec<u8>, ListAge>,
    /// Sets are numbered as they come into use.
    pub(super) set: u64,
}

/// Of the content of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Digest(Vec<u8>);

impl Digest {
    pub(super) fn of(parts: &[&[u8]]) -> Self {
        let mut context = Context::new(&SHA256);
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        Self(context.finish().as_ref().to_vec())
    }
}

/// The content of all files.
pub(super) struct Read {
    cert: Vec<u8>,
    key: Vec<u8>,
    ca: Vec<u8>,
    crl: Vec<u8>,
    peer_ca: Vec<u8>,
}

impl Read {
    pub(super) fn digest(&self) -> Digest {
        Digest::of(&[&self.cert, &self.key, &self.ca, &self.crl, &self.peer_ca])
    }
}

/// One provider for all of the process.
pub(super) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));
    PROVIDER.clone()
}

/// # Errors
/// A file that is not there, or is too large.
pub(super) async fn read(files: &config::Tls) -> Result<Read, TlsError> {
    let one = async |path: &Path| {
        let bytes = read_file(path).await;
        bytes.map_err(|problem| TlsError { path: path.to_owned(), problem })
    };
    let some = async |path: &Option<PathBuf>| match path {
        Some(path) => one(path).await,
        None => Ok(Vec::new()),
    };
    Ok(Read {
        cert: one(&files.cert).await?,
        key: one(&files.key).await?,
        ca: one(&files.ca).await?,
        crl: some(&files.crl).await?,
        peer_ca: some(&files.peer_ca).await?,
    })
}

async fn read_file(path: &Path) -> Result<Vec<u8>, Problem> {
    let found = tokio::fs::metadata(path).await?;
    // To open a pipe would wait for its other end.
    if !found.is_file() {
        return Err(Problem::NoFile);
    }
    let bytes = found.len();
    if bytes > FILE_MAX {
        return Err(Problem::TooLarge { bytes });
    }
    let read = timeout(READ_WITHIN, tokio::fs::read(path)).await;
    Ok(read.map_err(|_elapsed| Problem::Slow)??)
}

/// # Errors
/// What does not fit together, is of another node, or is not valid now.
pub(super) fn load(
    files: &config::Tls,
    cluster: &str,
    node: NodeId,
    read: &Read,
    before: Option<&Loaded>,
) -> Result<Loaded, TlsError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |problem: Problem| TlsError { path: path.clone(), problem }
    };
    let of_cert = failed(&files.cert);
    let chain = certificates(&read.cert).map_err(&of_cert)?;
    let key = PrivateKeyDer::from_pem_slice(&read.key)
        .map_err(|error| failed(&files.key)(Problem::NoKey(error)))?;
    let own = CertifiedKey::from_der(chain.clone(), key, &provider());
    let own = own.map_err(|error| failed(&files.key)(Problem::OtherKey(error)))?;
    let ca = roots(&read.ca).map_err(failed(&files.ca))?;
    let peer_ca_path = files.peer_ca.as_ref().unwrap_or(&files.ca);
    let peer_ca = match &files.peer_ca {
        Some(path) => roots(&read.peer_ca).map_err(failed(path))?,
        None => ca.clone(),
    };
    let (crls, lists) = match &files.crl {
        Some(path) => {
            let crls = revoked(&read.crl).map_err(failed(path))?;
            let trusted = trusted(&[&ca, &peer_ca], &chain);
            let lists = lists(&crls, &trusted, before.map(|before| &before.lists));
            (crls, lists.map_err(|error| failed(path)(error.into()))?)
        }
        None => (Vec::new(), BTreeMap::new()),
    };
    let nodes = WebPkiServerVerifier::builder_with_provider(peer_ca.clone(), provider())
        .with_crls(crls.clone())
        .allow_unknown_revocation_status()
        .build()
        .map_err(|error| failed(peer_ca_path)(error.into()))?;
    check_own(&nodes, &chain, cluster, node).map_err(&of_cert)?;
    let of_peers = verifier(peer_ca, &crls, false);
    let of_peers = of_peers.map_err(|error| failed(peer_ca_path)(error.into()))?;
    let of_clients = match files.clients {
        ClientCertificates::None => WebPkiClientVerifier::no_client_auth(),
        wanted => verifier(ca, &crls, wanted == ClientCertificates::Optional)
            .map_err(|error| failed(&files.ca)(error.into()))?,
    };
    let identity = Arc::new(SingleCertAndKey::from(own));
    let config = |clients: &Arc<dyn ClientCertVerifier>, protocol| {
        server(clients.clone(), identity.clone(), protocol).map_err(&of_cert)
    };
    Ok(Loaded {
        clients: config(&of_clients, H2)?,
        tools: config(&of_clients, HTTP)?,
        peers: config(&of_peers, H2)?,
        nodes,
        identity,
        of_clients,
        of_peers,
        lifetime: chain.first().and_then(|own| der::lifetime(own)),
        lists,
        set: before.map_or(0, |before| before.set + 1),
    })
}

fn verifier(
    roots: Arc<RootCertStore>,
    crls: &[CertificateRevocationListDer<'static>],
    optional: bool,
) -> Result<Arc<dyn ClientCertVerifier>, rustls::server::VerifierBuilderError> {
    let builder = WebPkiClientVerifier::builder_with_provider(roots, provider())
        .with_crls(crls.to_vec())
        .allow_unknown_revocation_status();
    match optional {
        true => builder.allow_unauthenticated().build(),
        false => builder.build(),
    }
}

fn server(
    clients: Arc<dyn ClientCertVerifier>,
    identity: Arc<SingleCertAndKey>,
    protocol: &[u8],
) -> Result<Arc<ServerConfig>, Problem> {
    let builder = ServerConfig::builder_with_details(provider(), Arc::new(WallTime))
        .with_safe_default_protocol_versions()?;
    let mut config = builder.with_client_cert_verifier(clients).with_cert_resolver(identity);
    config.alpn_protocols = vec![protocol.to_vec()];
    // No ticket of an old authority outlives its set of files.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// What other nodes would see wrong with this node's certificate is seen here first.
fn check_own(
    nodes: &WebPkiServerVerifier,
    chain: &[CertificateDer<'static>],
    cluster: &str,
    node: NodeId,
) -> Result<(), Problem> {
    let (leaf, intermediates) = chain.split_first().ok_or(Problem::NoCertificate)?;
    let name = ServerName::try_from("node").expect("invariant: it is a DNS name");
    match nodes.verify_server_cert(leaf, intermediates, &name, &[], wall_time()) {
        Ok(_)
        | Err(rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => {}
        Err(error) => return Err(error.into()),
    }
    let wanted = format!("spiffe://{cluster}/node/{node}");
    let found = verify::identity(leaf)?.spiffe;
    if found.as_deref() != Some(&wanted) {
        let found = found.unwrap_or_else(|| "nothing".to_owned());
        return Err(Problem::OtherNode { found, wanted });
    }
    Ok(())
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let read = read.map_err(Problem::Pem)?;
    if read.is_empty() { Err(Problem::NoCertificate) } else { Ok(read) }
}

fn roots(pem: &[u8]) -> Result<Arc<RootCertStore>, Problem> {
    let mut roots = RootCertStore::empty();
    for (at, certificate) in (1..).zip(certificates(pem)?) {
        roots.add(certificate).map_err(|source| Problem::Authority { at, source })?;
    }
    Ok(Arc::new(roots))
}

fn revoked(pem: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, Problem> {
    let read: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(pem).collect();
    let read = read.map_err(Problem::Pem)?;
    if read.is_empty() { Err(ListError::None.into()) } else { Ok(read) }
}

/// The subjects of the authorities whose lists are taken: the configured ones, and those between
/// them and this node's certificate.
fn trusted(roots: &[&RootCertStore], chain: &[CertificateDer<'static>]) -> BTreeSet<Vec<u8>> {
    let configured = roots.iter().flat_map(|roots| &roots.roots).map(|root| root.subject.to_vec());
    let between = chain.iter().skip(1).filter_map(|certificate| {
        EndEntityCert::try_from(certificate).ok().map(|certificate| certificate.subject().to_vec())
    });
    configured.chain(between).collect()
}

/// How new the lists are, by authority.
///
/// # Errors
/// One is of an authority that is not trusted here; it goes back behind the one before, by which
/// something would be taken again that was revoked; or it is missing, which does the same.
fn lists(
    crls: &[CertificateRevocationListDer<'static>],
    trusted: &BTreeSet<Vec<u8>>,
    before: Option<&BTreeMap<Vec<u8>, ListAge>>,
) -> Result<BTreeMap<Vec<u8>, ListAge>, ListError> {
    let mut lists: BTreeMap<Vec<u8>, ListAge> = BTreeMap::new();
    let name =
        |issuer: &[u8]| verify::common_name(issuer).unwrap_or_else(|| "an authority".to_owned());
    for (at, der) in (1..).zip(crls) {
        let list = BorrowedCertRevocationList::from_der(der);
        let list = list.map_err(|source| ListError::Unreadable { at, source })?;
        let list = CertRevocationList::Borrowed(list);
        let issuer = list.issuer();
        if !trusted.contains(issuer) {
            return Err(ListError::Foreign { at, issuer: name(issuer) });
        }
        let age = der::list_age(der).ok_or(ListError::NoTime { at })?;
        if before.and_then(|before| before.get(issuer)).is_some_and(|before| age.is_before(before))
        {
            return Err(ListError::Older { at, issuer: name(issuer) });
        }
        lists.insert(issuer.to_vec(), age);
    }
    let missing = before.and_then(|before| {
        let mut of_now = before.keys().filter(|issuer| trusted.contains(*issuer));
        of_now.find(|issuer| !lists.contains_key(*issuer))
    });
    match missing {
        Some(issuer) => Err(ListError::Missing { issuer: name(issuer) }),
        None => Ok(lists),
    }
}
