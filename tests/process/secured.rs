//! Certificates of `quorate certs` for a cluster of this machine, and callers that show one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quorate_client::Tls;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use crate::cli::quorate;

/// Who the tests are, where they do not choose.
const CLIENT: &str = "tests";

/// A directory of certificates: an authority's, each node's, a client's.
#[derive(Debug, Clone)]
pub(crate) struct Secured(PathBuf);

impl Secured {
    /// For nodes with the ids 1 to `nodes`.
    pub(crate) async fn make(dir: PathBuf, nodes: u64) -> Self {
        let secured = Self(dir);
        secured.certs("init").await;
        for id in 1..=nodes {
            secured.certs(&format!("node {id}")).await;
        }
        secured.certs(&format!("client {CLIENT}")).await;
        secured
    }

    /// `quorate certs LINE` in this directory.
    pub(crate) async fn certs(&self, line: &str) {
        let dir = self.0.display().to_string();
        let args: Vec<&str> = "certs".split(' ').chain(line.split(' ')).collect();
        quorate(&[&args[..], &["--dir", &dir]].concat()).await.expect(0);
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The table `[tls]` of a node's configuration file.
    pub(crate) fn table(&self, id: u64) -> String {
        let path = |name: &str| self.path(name).display().to_string();
        format!(
            "[tls]\ncert = \"{}\"\nkey = \"{}\"\nca = \"{}\"\nclients = \"required\"\n",
            path(&format!("node-{id}.crt")),
            path(&format!("node-{id}.key")),
            path("ca.crt"),
        )
    }

    /// For the client crate.
    pub(crate) fn tls(&self) -> Tls {
        let [cert, key] = ["crt", "key"].map(|end| self.path(&format!("client-{CLIENT}.{end}")));
        Tls::new().ca_file(self.path("ca.crt")).identity_files(cert, key)
    }

    /// A connection to one node, for generated stubs.
    pub(crate) fn channel(&self, address: &str) -> Channel {
        let connector = TlsConnector::from(Arc::new(self.config()));
        let (endpoint, address) = (plain(address), address.to_owned());
        endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
            let (connector, address) = (connector.clone(), address.clone());
            async move {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                let name = ServerName::try_from("127.0.0.1").expect("an address is a name");
                let stream = connector.connect(name, stream).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        }))
    }

    /// A connection to a node's HTTP listener.
    pub(crate) async fn http(&self, address: &str) -> Option<TlsStream<TcpStream>> {
        self.connect(address, b"http/1.1").await
    }

    /// A connection that speaks this protocol.
    pub(crate) async fn connect(
        &self,
        address: &str,
        protocol: &[u8],
    ) -> Option<TlsStream<TcpStream>> {
        let mut config = self.config();
        config.alpn_protocols = vec![protocol.to_vec()];
        let stream = TcpStream::connect(address).await.ok()?;
        let name = ServerName::try_from("127.0.0.1").expect("an address is a name");
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()
    }

    fn config(&self) -> ClientConfig {
        let cert = |name: &str| CertificateDer::from_pem_file(self.path(name)).unwrap();
        let key = self.path(&format!("client-{CLIENT}.key"));
        let mut roots = RootCertStore::empty();
        roots.add(cert("ca.crt")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(
                vec![cert(&format!("client-{CLIENT}.crt"))],
                PrivateKeyDer::from_pem_file(key).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }
}

/// How a node is dialled that speaks plain text.
pub(crate) fn plain(address: &str) -> Endpoint {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    endpoint.connect_timeout(Duration::from_secs(1))
}
