//! TLS: the files that a node needs for it, and which clients have to show a certificate.

use std::path::PathBuf;

use serde::Deserialize;

/// TLS on both listeners, and towards the other nodes. In the configuration file: the table
/// `[tls]`. The files are PEM. They are read again every 10 s, and at once on SIGHUP; new ones that
/// cannot be used are refused with a warning, and the old ones stay in use.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// This node's certificate, with the intermediate authorities' behind it. Among its names is
    /// `spiffe://CLUSTER/node/ID` as the only URI, with the cluster's name and the node's id, and
    /// the hosts that clients dial.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities whose certificates are taken, of clients and of nodes.
    pub ca: PathBuf,
    /// Certificates that were revoked, one list for each authority. A list that is older than the
    /// one before is refused; connections whose certificate is on a new one end. Default: none.
    #[serde(default)]
    pub crl: Option<PathBuf>,
    /// Whether clients have to show a certificate. Default: `optional`. Other nodes always have to.
    #[serde(default)]
    pub clients: ClientCertificates,
    /// The authorities whose certificates are taken of other nodes, if they are others than `ca`.
    #[serde(default)]
    pub peer_ca: Option<PathBuf>,
    /// The certificate that other nodes see, if it is another than `cert`, and `peer_key` with it:
    /// then only this one has to name the node, and `cert` only the hosts. A node that joins by
    /// itself (`--join`) shows `cert`.
    #[serde(default)]
    pub peer_cert: Option<PathBuf>,
    /// Its private key.
    #[serde(default)]
    pub peer_key: Option<PathBuf>,
    /// A connection ends at this age, ms (up to a tenth sooner, so that not all end at once), and
    /// with it what an old certificate granted. Default 3,600,000 (an hour), minimum 1,000, maximum
    /// a day. Streams of clients are resumed on a new one.
    #[serde(default = "connection_age_ms")]
    pub connection_age_ms: u64,
}

/// Whether clients have to show a certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificates {
    /// Connections without one are refused.
    Required,
    /// One that is shown must be valid.
    #[default]
    Optional,
    /// None is asked for.
    None,
}

impl Tls {
    /// With these three files, and defaults for all else.
    pub fn new(cert: PathBuf, key: PathBuf, ca: PathBuf) -> Self {
        let (clients, connection_age_ms) = (ClientCertificates::default(), connection_age_ms());
        let (crl, peer_ca, peer_cert, peer_key) = (None, None, None, None);
        Self { cert, key, ca, crl, clients, peer_ca, peer_cert, peer_key, connection_age_ms }
    }
}

fn connection_age_ms() -> u64 {
    3_600_000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn errors_name_the_table() {
        let listen = "127.0.0.1:0".parse().unwrap();
        let field = |change: fn(&mut Tls)| {
            let mut tls = Tls::new("c".into(), "k".into(), "a".into());
            change(&mut tls);
            let config = Config { tls: Some(tls), ..Config::new(1, "d".into(), listen, listen) };
            config.validate().map_err(|error| error.field)
        };
        assert_eq!(field(|_| {}), Ok(()));
        assert_eq!(field(|tls| tls.connection_age_ms = 0), Err("tls.connection_age_ms"));
        let half = field(|tls| tls.peer_cert = Some("pc".into()));
        assert_eq!(half, Err("tls.peer_cert, tls.peer_key"));
    }
}
