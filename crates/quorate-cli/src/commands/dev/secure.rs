//! `dev --secure`: certificates for its nodes, an operator and a service, issued at each start by a
//! CA that stays with the data; and an access file to begin with.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use quorate_client::Tls;

use crate::authority::{Authority, Issued, LIFETIME, ca_file};
use crate::failure::Failure;
use crate::files::{self, Mode};

const CLUSTER_NAME: &str = "dev";
/// What an access file begins with; one that is there is the user's.
const ACCESS: &str = r#"# Who may do what. The nodes read it again when it changes; `quorate token new` makes more entries.

[[certificate]]
spiffe = "spiffe://dev/client/operator"
role = "admin"

[[certificate]]
spiffe = "spiffe://dev/client/orders"
role = "register"
namespace = "default"
prefix = "orders"
"#;

/// What the nodes and the commands to try are given.
pub(super) struct Secure {
    ca: PathBuf,
    access: PathBuf,
    nodes: Vec<Issued>,
    operator: Issued,
    /// Of a service that may register itself alone.
    orders: Issued,
}

impl Secure {
    /// Makes what is missing in `certs` of the data directory, and new certificates in any case:
    /// those of an earlier run may have expired, or be for another address.
    pub(super) fn prepare(data: &Path, listen: SocketAddr, nodes: u16) -> Result<Self, Failure> {
        let dir = data.join("certs");
        let made = || -> Result<Self, String> {
            let is_there = |path: &Path| {
                path.try_exists().map_err(|error| format!("{}: {error}", path.display()))
            };
            let authority = match is_there(&ca_file(&dir))? {
                true => Authority::open(&dir)?,
                false => Authority::init(&dir, CLUSTER_NAME, false)?.0,
            };
            let mut hosts = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
            if !listen.ip().is_loopback() {
                hosts.push(listen.ip().to_string());
            }
            let access = data.join("access.toml");
            if !is_there(&access)? {
                files::write(&access, ACCESS.as_bytes(), Mode::Public, false)?;
            }
            let node = |id| authority.node(&dir, id, &hosts, LIFETIME, true);
            Ok(Self {
                ca: ca_file(&dir),
                access,
                nodes: (1..=u64::from(nodes)).map(node).collect::<Result<_, _>>()?,
                operator: authority.client(&dir, "operator", LIFETIME, true)?,
                orders: authority.client(&dir, "orders", LIFETIME, true)?,
            })
        };
        made().map_err(Failure::failed)
    }

    /// What the node with this id is started with, besides.
    pub(super) fn node_args(&self, id: u64) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["--cluster-name".into(), CLUSTER_NAME.into()];
        args.extend(["--tls-ca".into(), self.ca.clone().into()]);
        args.extend(["--tls-clients".into(), "required".into()]);
        args.extend(["--access".into(), self.access.clone().into()]);
        if let Some(node) = usize::try_from(id - 1).ok().and_then(|at| self.nodes.get(at)) {
            args.extend(["--tls-cert".into(), node.certificate.clone().into()]);
            args.extend(["--tls-key".into(), node.key.clone().into()]);
        }
        args
    }

    pub(super) fn tls(&self) -> Tls {
        let Issued { certificate, key, .. } = &self.operator;
        Tls::new().ca_file(&self.ca).identity_files(certificate, key)
    }

    /// Where rights stand, and how to call with those of the service alone.
    pub(super) fn rights(&self) -> String {
        let Issued { certificate, key, .. } = &self.orders;
        format!(
            "  access   {}: who may do what\n           as orders alone: --cert {} --key {}\n",
            self.access.display(),
            certificate.display(),
            key.display()
        )
    }

    /// For the terminal in which the commands are tried.
    pub(super) fn exports(&self) -> String {
        let Issued { certificate, key, .. } = &self.operator;
        let all = [("QUORATE_CA", &self.ca), ("QUORATE_CERT", certificate), ("QUORATE_KEY", key)];
        all.map(|(name, path)| format!("  export {name}={}\n", path.display())).concat()
    }
}
