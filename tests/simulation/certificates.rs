//! Certificates for the runs with TLS. All that is random in a handshake is of one length (Ed25519
//! signatures always are, those of ECDSA are not), so that every run sends as many bytes.

use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quorate_node::{Connection, Tls};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use super::net::host;
use super::plan::Ms;

/// Connections end at this age at most, so that many do in a run.
const AGE: Ms = 7_000;

thread_local! {
    /// What clients connect with.
    static CLIENTS: RefCell<Option<Arc<ClientConfig>>> = const { RefCell::new(None) };
}

/// Makes an authority, and the files of nodes in this directory.
pub(crate) fn make(dir: &Path, nodes: impl Iterator<Item = u64>) {
    let key = || KeyPair::generate_for(&PKCS_ED25519).expect("a key");
    let (of_authority, mut params) = (key(), CertificateParams::default());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.serial_number = Some(SerialNumber::from(1_000_u64));
    let authority = params.self_signed(&of_authority).expect("a certificate");
    put(dir.join("ca.crt"), &authority.pem());
    let issuer = Issuer::new(params, of_authority);
    for node in nodes {
        let (own, mut params) = (key(), CertificateParams::new([host(node)]).expect("a name"));
        let uri = format!("spiffe://{}/node/{node}", quorate_node::CLUSTER_NAME);
        params.subject_alt_names.push(SanType::URI(uri.as_str().try_into().expect("a URI")));
        params.serial_number = Some(SerialNumber::from(1_000 + node));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let issued = params.signed_by(&own, &issuer).expect("a certificate");
        put(dir.join(format!("{node}.crt")), &issued.pem());
        put(dir.join(format!("{node}.key")), &own.serialize_pem());
    }
    CLIENTS.set(Some(Arc::new(clients(authority.der()))));
}

fn put(path: PathBuf, text: &str) {
    std::fs::write(path, text).expect("a file");
}

fn clients(authority: &CertificateDer<'static>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone()).expect("an authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// A node's files.
pub(crate) fn of_node(dir: &Path, node: u64) -> Tls {
    let path = |name: String| dir.join(name);
    let (cert, key) = (path(format!("{node}.crt")), path(format!("{node}.key")));
    Tls { connection_age_ms: AGE, ..Tls::new(cert, key, path("ca.crt".to_owned())) }
}

/// A client's connection to a node, with TLS.
pub(crate) async fn secured(node: u64, stream: Connection) -> io::Result<Connection> {
    let config = CLIENTS.with_borrow(Clone::clone).expect("certificates were made");
    let name = ServerName::try_from(host(node)).expect("a name");
    Ok(Connection::new(TlsConnector::from(config).connect(name, stream).await?))
}
