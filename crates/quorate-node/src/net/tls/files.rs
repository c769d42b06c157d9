//! The files of a node's TLS: read, checked whole, and made into what handshakes need. A part that
//! is half written, does not fit the others or has expired is not taken; the others do not wait for
//! it ([`Read::newest`]).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use quorate_log::NodeId;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig};

use crate::config;
use crate::config::ClientCertificates;
use crate::net::tls::der::{self, Lifetime, ListAge};
use crate::net::tls::error::{Problem, TlsError};
use crate::net::tls::pem::{certificates, in_both, revoked, roots};
use crate::net::tls::{WallTime, lists, verify, wall_time};
use crate::runtime::{Reads, Unread};
use crate::wall::Seconds;

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
    /// Verifies the certificate of a listener for clients, by host; `None`: nodes show the same
    /// certificate there as to each other.
    pub(super) hosts: Option<Arc<WebPkiServerVerifier>>,
    /// This node's own certificate and key, for other nodes ...
    pub(super) identity: Arc<SingleCertAndKey>,
    /// ... and for clients.
    pub(super) of_listener: Arc<SingleCertAndKey>,
    /// To dial a node, once it was.
    pub(super) dialled: Dialled,
    pub(super) of_clients: Arc<dyn ClientCertVerifier>,
    pub(super) of_peers: Arc<dyn ClientCertVerifier>,
    /// Of this node's own certificate; of two, the one that ends first.
    pub(super) lifetime: Option<Lifetime>,
    /// What other nodes have against that certificate, by now.
    pub(super) unfit: Option<TlsError>,
    /// How new its revocation lists are, by their authorities' subjects.
    lists: BTreeMap<Vec<u8>, ListAge>,
    /// Some of these lists are of authorities that are not trusted here any more.
    pub(super) has_foreign_lists: bool,
    /// Sets are numbered as they come into use.
    pub(super) set: u64,
}

impl Loaded {
    /// Whose revocation lists are overdue.
    pub(super) fn overdue(&self, now: Seconds) -> Vec<String> {
        lists::overdue(&self.lists, now)
    }
}

/// The settings for dialling one node, or any; made once.
#[derive(Default)]
pub(super) struct Dialled(Mutex<BTreeMap<Option<NodeId>, Arc<ClientConfig>>>);

/// More than a cluster has members.
const DIALLED_MAX: usize = 256;

impl Dialled {
    /// # Errors
    /// They cannot be made.
    pub(super) fn get_or_make(
        &self,
        node: Option<NodeId>,
        make: impl FnOnce() -> Result<ClientConfig, rustls::Error>,
    ) -> Result<Arc<ClientConfig>, rustls::Error> {
        let mut made = self.0.lock().expect("invariant: nothing panics under this lock");
        if let Some(made) = made.get(&node) {
            return Ok(made.clone());
        }
        let new = Arc::new(make()?);
        if made.len() >= DIALLED_MAX {
            made.clear();
        }
        made.insert(node, new.clone());
        Ok(new)
    }
}

/// The content of all files.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Read {
    cert: Vec<u8>,
    key: Vec<u8>,
    ca: Vec<u8>,
    crl: Vec<u8>,
    peer_ca: Vec<u8>,
    peer_cert: Vec<u8>,
    peer_key: Vec<u8>,
}

/// What is taken together, or not at all.
type Part = fn(&mut Read, &Read);

/// All of them but the revocation lists; what counts most stands last.
const PARTS: [Part; 4] = [
    |into, from| (into.cert, into.key) = (from.cert.clone(), from.key.clone()),
    |into, from| {
        (into.peer_cert, into.peer_key) = (from.peer_cert.clone(), from.peer_key.clone());
    },
    |into, from| into.peer_ca.clone_from(&from.peer_ca),
    |into, from| into.ca.clone_from(&from.ca),
];

/// Which revocation lists count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lists {
    /// Those of the file: each has to be of an authority that is trusted.
    Newest,
    /// Those in use, all of them: an authority that is trusted no more may still stand below one
    /// that is, and handshakes pass over the lists of others.
    Kept,
}

impl Read {
    /// The certificate that other nodes see, with its key, or the one that clients see.
    fn shown(&self, to_nodes: bool) -> (&[u8], &[u8]) {
        match to_nodes && !self.peer_cert.is_empty() {
            true => (&self.peer_cert, &self.peer_key),
            false => (&self.cert, &self.key),
        }
    }

    /// What is taken of these files is the first of these sets that can be used: as many of the
    /// parts as fit together, and the rest as it is in use. What is revoked goes before whom to
    /// trust, and that before what this node shows.
    pub(super) fn newest(&self, used: &Self) -> Vec<(Self, Lists)> {
        let newest = Self { crl: self.crl.clone(), ..used.clone() };
        let mut sets = self.sets(&newest, used, Lists::Newest);
        if !used.crl.is_empty() {
            // Who is to be trusted from now on may have revoked somebody in lists that are bad, and
            // waits for them. Who is not to be trusted any more does not.
            let known = match self.crl == used.crl {
                true => self.clone(),
                false => self.without_new(used),
            };
            sets.extend(known.sets(used, used, Lists::Kept));
        }
        sets
    }

    /// `with` each choice of the parts that are not as in `used`, the largest first.
    fn sets(&self, with: &Self, used: &Self, lists: Lists) -> Vec<(Self, Lists)> {
        let is_new = |part: &Part| {
            let mut with = used.clone();
            part(&mut with, self);
            with != *used
        };
        let parts: Vec<Part> = PARTS.into_iter().filter(is_new).collect();
        let set = |set: u32| {
            let mut taken = with.clone();
            let of_set = (0..).zip(&parts).filter(|(at, _)| set >> at & 1 == 1);
            of_set.for_each(|(_, part)| part(&mut taken, self));
            (taken, lists)
        };
        (0..1_u32 << parts.len()).rev().map(set).collect()
    }

    /// Without the authorities that the other has not.
    fn without_new(&self, used: &Self) -> Self {
        let (ca, peer_ca) = (in_both(&self.ca, &used.ca), in_both(&self.peer_ca, &used.peer_ca));
        Self { ca, peer_ca, ..self.clone() }
    }
}

/// One provider for all of the process.
pub(super) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));
    PROVIDER.clone()
}

/// Beside what was read, the first file that could not be, and counts as it is in `used`.
///
/// # Errors
/// A file that is not there, or is too large, where none is in use.
pub(super) async fn read(
    files: &config::Tls,
    reads: &Reads,
    used: Option<&Read>,
) -> Result<(Read, Option<TlsError>), TlsError> {
    let mut fault = None;
    let mut one = async |path: Option<&PathBuf>, used: Option<&Vec<u8>>| {
        let Some(path) = path else { return Ok(Vec::new()) };
        let read = match reads.read(path, READ_WITHIN, read_one).await {
            Ok(read) => read,
            Err(Unread::Panicked(panicked)) => Err(io::Error::from(panicked).into()),
            Err(Unread::Slow) => Err(Problem::Slow),
        };
        let read = read.map_err(|problem| TlsError { path: path.to_owned(), problem });
        match (read, used) {
            (Err(error), Some(used)) => {
                fault.get_or_insert(error);
                Ok(used.clone())
            }
            (read, _) => read,
        }
    };
    // Lists that cannot be read are as bad ones: nobody is trusted anew meanwhile.
    let no_lists = Vec::new();
    let read = Read {
        cert: one(Some(&files.cert), used.map(|used| &used.cert)).await?,
        key: one(Some(&files.key), used.map(|used| &used.key)).await?,
        ca: one(Some(&files.ca), used.map(|used| &used.ca)).await?,
        crl: one(files.crl.as_ref(), used.map(|_| &no_lists)).await?,
        peer_ca: one(files.peer_ca.as_ref(), used.map(|used| &used.peer_ca)).await?,
        peer_cert: one(files.peer_cert.as_ref(), used.map(|used| &used.peer_cert)).await?,
        peer_key: one(files.peer_key.as_ref(), used.map(|used| &used.peer_key)).await?,
    };
    Ok((read, fault))
}

fn read_one(path: &Path) -> Result<Vec<u8>, Problem> {
    let found = std::fs::metadata(path)?;
    // To open a pipe would wait for its other end.
    if !found.is_file() {
        return Err(Problem::NoFile);
    }
    let bytes = found.len();
    if bytes > FILE_MAX {
        return Err(Problem::TooLarge { bytes });
    }
    Ok(std::fs::read(path)?)
}

/// `before`: what is in use, and the files that it was made of.
///
/// # Errors
/// What does not fit together, is of another node, or is not valid now. A certificate of the node's
/// own that is in use and has ended is no reason: others are to be refused by the newest files.
pub(super) fn load(
    files: &config::Tls,
    cluster: &str,
    node: NodeId,
    (read, which): (&Read, Lists),
    before: Option<(&Loaded, &Read)>,
) -> Result<Loaded, TlsError> {
    let owned = Owned::read(files, read)?;
    let of_cert = failed(files.peer_cert.as_ref().unwrap_or(&files.cert));
    let ca = roots(&read.ca).map_err(failed(&files.ca))?;
    let peer_ca_path = files.peer_ca.as_ref().unwrap_or(&files.ca);
    let peer_ca = match &files.peer_ca {
        Some(path) => roots(&read.peer_ca).map_err(failed(path))?,
        None => ca.clone(),
    };
    let between = owned.all().flat_map(|own| own.cert.iter().skip(1));
    let trusted = lists::authorities(&[&ca, &peer_ca], between);
    let of_lists = failed(files.crl.as_ref().unwrap_or(&files.ca));
    let crls = match &files.crl {
        Some(_) => revoked(&read.crl).map_err(&of_lists)?,
        None => Vec::new(),
    };
    let lists = lists::check(&crls, &trusted, which, before.map(|(before, _)| &before.lists));
    let lists = lists.map_err(|error| of_lists(error.into()))?;
    let has_foreign_lists = lists.keys().any(|issuer| !trusted.contains_key(issuer));
    let nodes = servers(peer_ca.clone(), &crls).map_err(failed(peer_ca_path))?;
    let unless_shown = |fits: Result<(), TlsError>, to_nodes| {
        unless_shown(
            fits,
            before.is_some_and(|(_, used)| read.shown(to_nodes) == used.shown(to_nodes)),
        )
    };
    let fits = check_own(&nodes, &owned.for_nodes().cert, cluster, node).map_err(&of_cert);
    let (mut unfit, mut hosts) = (unless_shown(fits, true)?, None);
    if owned.of_node.is_some() {
        let fits = check_time(&owned.of_listener.cert).map_err(failed(&files.cert));
        unfit = unfit.or(unless_shown(fits, false)?);
        hosts = Some(servers(ca.clone(), &crls).map_err(failed(&files.ca))?);
    }
    let of_peers = verifier(peer_ca, &crls, false).map_err(failed(peer_ca_path))?;
    let of_clients = match files.clients {
        ClientCertificates::None => WebPkiClientVerifier::no_client_auth(),
        wanted => verifier(ca, &crls, wanted == ClientCertificates::Optional)
            .map_err(failed(&files.ca))?,
    };
    let lifetime = owned.lifetime();
    let of_listener = Arc::new(SingleCertAndKey::from(owned.of_listener));
    let identity = owned.of_node.map_or(of_listener.clone(), |own| Arc::new(own.into()));
    let config = |of: &Arc<dyn ClientCertVerifier>, own: &Arc<SingleCertAndKey>, protocol| {
        server(of.clone(), own.clone(), protocol).map_err(&of_cert)
    };
    Ok(Loaded {
        clients: config(&of_clients, &of_listener, H2)?,
        tools: config(&of_clients, &of_listener, HTTP)?,
        peers: config(&of_peers, &identity, H2)?,
        nodes,
        hosts,
        identity,
        of_listener,
        dialled: Dialled::default(),
        of_clients,
        of_peers,
        lifetime,
        unfit,
        lists,
        has_foreign_lists,
        set: before.map_or(0, |(before, _)| before.set + 1),
    })
}

fn failed(path: &Path) -> impl Fn(Problem) -> TlsError {
    let path = path.to_owned();
    move |problem| TlsError { path: path.clone(), problem }
}

/// What is against the node's own certificates, where they are shown already and were good once.
fn unless_shown(fits: Result<(), TlsError>, is_shown: bool) -> Result<Option<TlsError>, TlsError> {
    match fits {
        Err(error) if is_shown && error.problem.is_of_its_end() => Ok(Some(error)),
        fits => fits.map(|()| None),
    }
}

/// The certificates that a node shows, with their keys.
struct Owned {
    of_listener: CertifiedKey,
    /// For other nodes, if it is another.
    of_node: Option<CertifiedKey>,
}

impl Owned {
    fn read(files: &config::Tls, read: &Read) -> Result<Self, TlsError> {
        let of_node = match (&files.peer_cert, &files.peer_key) {
            (Some(cert), Some(key)) => Some(own((cert, &read.peer_cert), (key, &read.peer_key))?),
            _ => None,
        };
        let of_listener = own((&files.cert, &read.cert), (&files.key, &read.key))?;
        Ok(Self { of_listener, of_node })
    }

    fn all(&self) -> impl Iterator<Item = &CertifiedKey> {
        self.of_node.iter().chain([&self.of_listener])
    }

    fn for_nodes(&self) -> &CertifiedKey {
        self.of_node.as_ref().unwrap_or(&self.of_listener)
    }

    /// Of the one that ends first.
    fn lifetime(&self) -> Option<Lifetime> {
        let lifetimes = self.all().filter_map(|own| der::lifetime(own.cert.first()?));
        lifetimes.min_by_key(|lifetime| lifetime.not_after)
    }
}

/// A certificate and the key that fits it.
fn own(
    (cert_path, cert): (&Path, &[u8]),
    (key_path, key): (&Path, &[u8]),
) -> Result<CertifiedKey, TlsError> {
    let of_cert = |problem| TlsError { path: cert_path.to_owned(), problem };
    let of_key = |problem| TlsError { path: key_path.to_owned(), problem };
    let chain = certificates(cert).map_err(of_cert)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| of_key(Problem::NoKey(error)))?;
    CertifiedKey::from_der(chain, key, &provider())
        .map_err(|error| of_key(Problem::OtherKey(error)))
}

fn servers(
    roots: Arc<RootCertStore>,
    crls: &[CertificateRevocationListDer<'static>],
) -> Result<Arc<WebPkiServerVerifier>, Problem> {
    let builder = WebPkiServerVerifier::builder_with_provider(roots, provider())
        .with_crls(crls.to_vec())
        .allow_unknown_revocation_status();
    Ok(builder.build()?)
}

fn verifier(
    roots: Arc<RootCertStore>,
    crls: &[CertificateRevocationListDer<'static>],
    optional: bool,
) -> Result<Arc<dyn ClientCertVerifier>, Problem> {
    let builder = WebPkiClientVerifier::builder_with_provider(roots, provider())
        .with_crls(crls.to_vec())
        .allow_unknown_revocation_status();
    Ok(match optional {
        true => builder.allow_unauthenticated().build()?,
        false => builder.build()?,
    })
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

/// A certificate that only clients see may be of any authority that they trust.
fn check_time(chain: &[CertificateDer<'static>]) -> Result<(), Problem> {
    let lifetime = chain.first().and_then(|leaf| der::lifetime(leaf));
    let Lifetime { not_before, not_after } = lifetime.ok_or(Problem::NoTime)?;
    match wall_time().as_secs() {
        now if now < not_before => Err(Problem::NotYet),
        now if now > not_after => Err(Problem::Ended),
        _ => Ok(()),
    }
}
