//! Certificates for all nodes of either peer and for the driver, made by `quorate certs`; and where
//! a node is, with what it takes to speak to it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use quorate_client::Tls;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// A directory with a CA's certificate, those of nodes 1 to 3, and the driver's.
#[derive(Debug, Clone)]
pub(crate) struct Certs {
    dir: PathBuf,
    /// What the driver trusts and shows.
    pub(crate) driver: Arc<ClientConfig>,
}

/// Where a node listens for clients.
#[derive(Debug, Clone)]
pub(crate) struct Address {
    /// "host:port".
    pub(crate) text: String,
    /// None: it speaks plain text.
    pub(crate) certs: Option<Certs>,
}

impl Certs {
    /// Makes them below `base`.
    pub(crate) fn make(quorate: &Path, base: &Path, nodes: usize) -> Result<Self> {
        let dir = base.join("certs");
        let make = |what: &str| -> Result<()> {
            let mut command = Command::new(quorate);
            command.arg("certs").args(what.split(' ')).arg("--dir").arg(&dir);
            let output = command.output().context("starting quorate certs")?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.success(), "quorate certs {what}: {said}");
            Ok(())
        };
        make("init")?;
        for node in 1..=nodes {
            make(&format!("node {node}"))?;
        }
        make("client driver")?;
        let driver = Arc::new(driver(&dir).context("reading what quorate certs made")?);
        Ok(Self { dir, driver })
    }

    pub(crate) fn ca(&self) -> String {
        self.dir.join("ca.crt").display().to_string()
    }

    /// Certificate and key of a node.
    pub(crate) fn node(&self, id: usize) -> (String, String) {
        let file = |end: &str| self.dir.join(format!("node-{id}.{end}")).display().to_string();
        (file("crt"), file("key"))
    }

    /// For the client crate.
    pub(crate) fn tls(&self) -> Tls {
        let [cert, key] = ["crt", "key"].map(|end| self.dir.join(format!("client-driver.{end}")));
        Tls::new().ca_file(self.ca()).identity_files(cert, key)
    }
}

fn driver(dir: &Path) -> Result<ClientConfig> {
    let cert = |name: &str| CertificateDer::from_pem_file(dir.join(name));
    let mut roots = RootCertStore::empty();
    roots.add(cert("ca.crt")?)?;
    let key = PrivateKeyDer::from_pem_file(dir.join("client-driver.key"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![cert("client-driver.crt")?], key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}
