//! Nodes that speak TLS: which certificates get in, on each listener, and what happens when the
//! files change while clients and nodes go on.

#[path = "tls_aged.rs"]
mod aged;
#[path = "tls_ends.rs"]
mod ends;
#[path = "tls_half_open.rs"]
mod half_open;
#[path = "tls_listeners.rs"]
mod listeners;
#[path = "tls_reloaded.rs"]
mod reloaded;
#[path = "tls_revoked.rs"]
mod revoked;
#[path = "tls_rotation.rs"]
mod rotation;
#[path = "tls_separate.rs"]
mod separate;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quorate_client::{Client, Consistency, Tls};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::cluster::{Cluster, Settings};
use crate::ports::free_port;
use crate::wait::eventually;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// A new connection takes a handshake and a round trip.
const SOON: Duration = Duration::from_secs(20);
const TTL: Duration = Duration::from_secs(3);

/// An authority and what it has issued.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its key, PEM.
#[derive(Clone)]
struct Issued {
    cert: String,
    key: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn issue(&self, uris: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let key = KeyPair::generate().unwrap();
        let mut params =
            CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let uris = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap()));
        params.subject_alt_names.extend(uris);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let cert = params.signed_by(&key, &self.issuer).unwrap().pem();
        Issued { cert, key: key.serialize_pem() }
    }

    fn node(&self, id: u64) -> Issued {
        self.issue(&[&format!("spiffe://quorate/node/{id}")], |_| {})
    }

    fn client(&self) -> Issued {
        self.issue(&["spiffe://quorate/client/orders"], |_| {})
    }

    /// The client crate with a certificate of this authority.
    fn tls(&self) -> Tls {
        let Issued { cert, key } = self.client();
        Tls::new().ca_pem(self.pem.clone()).identity_pem(cert, key)
    }
}

/// The files of each node, in a directory of its own, and where it listens for HTTP.
struct Files {
    dir: PathBuf,
    http: String,
}

impl Files {
    fn of(dir: &Path, id: u64) -> Self {
        let dir = dir.join(format!("tls-{id}"));
        std::fs::create_dir_all(&dir).unwrap();
        Self { dir, http: format!("127.0.0.1:{}", free_port()) }
    }

    /// Replaces a file whole, as tools that hand certificates out should.
    fn put(&self, name: &str, text: &str) {
        let new = self.dir.join(format!("{name}.new"));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.dir.join(name)).unwrap();
    }

    fn put_all(&self, issued: &Issued, ca: &str) {
        self.put("ca.crt", ca);
        self.put("node.key", &issued.key);
        self.put("node.crt", &issued.cert);
    }
}

/// Three nodes with certificates of an authority; none runs yet.
async fn prepare(authority: &Authority, age_ms: u64) -> (Cluster, Vec<Files>) {
    let kept = tempfile::Builder::new().prefix("quorate-tls-").tempdir().unwrap().keep();
    let files: Vec<Files> = (1..=3).map(|id| Files::of(&kept, id)).collect();
    let mut settings = Settings::default();
    for (id, files) in (1..).zip(&files) {
        files.put_all(&authority.node(id), &authority.pem);
        let path = |name: &str| files.dir.join(name).display().to_string();
        let head = format!(
            "http_listen = \"{}\"\n[tls]\ncert = \"{}\"\nkey = \"{}\"\nca = \"{}\"\nclients = \"required\"\n\
             connection_age_ms = {age_ms}\n",
            files.http,
            path("node.crt"),
            path("node.key"),
            path("ca.crt"),
        );
        settings.head.insert(id, head);
    }
    (Cluster::prepare(3, settings).await, files)
}

async fn start(authority: &Authority, age_ms: u64) -> (Cluster, Vec<Files>, Client) {
    let (mut cluster, files) = prepare(authority, age_ms).await;
    let client = start_all(&mut cluster, authority).await;
    (cluster, files, client)
}

/// Starts all nodes; a client of them, once they answer.
async fn start_all(cluster: &mut Cluster, authority: &Authority) -> Client {
    cluster.nodes.iter_mut().for_each(|node| node.start());
    let client = cluster.client().tls(authority.tls()).build().unwrap();
    eventually("the cluster answers", SOON, async || {
        client.list_services("", Consistency::Linearizable).await.map_err(|error| error.to_string())
    })
    .await;
    client
}

/// Whether a listener speaks HTTP/2 with a caller that trusts this authority and shows this.
async fn is_served(address: &str, ca: &str, shown: Option<&Issued>) -> Result<(), String> {
    is_answered(address, ca, shown, (b"h2", PREFACE)).await
}

/// The same, in this protocol, to these words.
async fn is_answered(
    address: &str,
    ca: &str,
    shown: Option<&Issued>,
    (protocol, words): (&[u8], &[u8]),
) -> Result<(), String> {
    let mut config = config(ca, shown);
    config.alpn_protocols = vec![protocol.to_vec()];
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let name = ServerName::try_from("localhost").unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let answer = async {
        let mut stream = connector.connect(name, stream).await?;
        stream.write_all(words).await?;
        // With TLS 1.3 a refusal comes after the caller's handshake is done.
        stream.read_u8().await
    };
    let answer = tokio::time::timeout(SOON, answer).await.map_err(|_| "no answer".to_owned())?;
    answer.map(drop).map_err(|error| error.to_string())
}

impl Files {
    /// A sample without labels of the node's metrics.
    async fn metric(&self, authority: &Authority, name: &str) -> Result<String, String> {
        let text = self.answer(authority, "GET /metrics", "").await?;
        let sample = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        sample.map(str::to_owned).ok_or(text.clone())
    }

    /// All that comes by HTTP until the connection ends in good order.
    async fn answer(
        &self,
        authority: &Authority,
        asks: &str,
        body: &str,
    ) -> Result<String, String> {
        let length = body.len();
        let words = format!(
            "{asks} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        let mut config = config(&authority.pem, Some(&authority.client()));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let exchange = async {
            let stream = TcpStream::connect(&self.http).await?;
            let host = ServerName::try_from("localhost").unwrap();
            let mut stream = TlsConnector::from(Arc::new(config)).connect(host, stream).await?;
            stream.write_all(words.as_bytes()).await?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await?;
            Ok::<_, std::io::Error>(text)
        };
        let text =
            tokio::time::timeout(SOON, exchange).await.map_err(|_| "no answer".to_owned())?;
        text.map_err(|error| error.to_string())
    }
}

/// Of a caller that trusts this authority and shows this.
fn config(ca: &str, shown: Option<&Issued>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let Some(Issued { cert, key }) = shown else { return builder.with_no_client_auth() };
    let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    builder.with_client_auth_cert(chain, key).unwrap()
}

/// What a holder of a certificate calls a listener over.
fn channel(address: &str, authority: &Authority, shown: &Issued) -> tonic::transport::Channel {
    let mut config = config(&authority.pem, Some(shown));
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (config, address) = (Arc::new(config), address.to_owned());
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let (config, address) = (config.clone(), address.clone());
        async move {
            let stream = TcpStream::connect(address).await?;
            let name = ServerName::try_from("localhost").unwrap();
            let stream = TlsConnector::from(config).connect(name, stream).await?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    }))
}

/// A node that others could reach without TLS says both ways out, and does not start.
#[tokio::test]
async fn a_node_without_tls_stays_on_loopback_unless_it_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data").display().to_string();
    for (listener, setting) in
        [("--listen", "listen"), ("--peer-listen", "peer_listen"), ("--http-listen", "http_listen")]
    {
        let at = |flag: &str| if flag == listener { "0.0.0.0:0" } else { "127.0.0.1:0" };
        let rest = ["--data-dir", &data, "--advertise", "h:1", "--peer-advertise", "h:2"];
        let listens = ["--listen", "--peer-listen", "--http-listen"].map(|flag| [flag, at(flag)]);
        let args = [&["serve", "--id", "1"][..], &rest, listens.as_flattened()].concat();
        let refused = crate::cli::quorate(&args).await.expect(2);
        refused.says(&[
            &format!("{setting} = 0.0.0.0:0"),
            "--tls-cert",
            "quorate certs",
            "--insecure",
        ]);
    }
}
