//! The arguments of `serve`: the settings of one node.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use quorate_node::{ClientCertificates, Networks};

use crate::args::LogArgs;
use crate::parse;

/// TLS of a node.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct TlsArgs {
    /// This node's certificate, PEM, which names spiffe://CLUSTER/node/ID (`quorate certs node`);
    /// with --tls-key and --tls-ca, both listeners speak TLS
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,
    /// The authorities whose certificates are taken, PEM
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// Revoked certificates, PEM
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_crl: Option<PathBuf>,
    /// Whether clients have to show a certificate (nodes always have to) [default: optional]
    #[arg(long, value_name = "WHEN")]
    pub(crate) tls_clients: Option<Clients>,
    /// The authorities whose certificates are taken of other nodes, PEM [default: those of
    /// --tls-ca]
    #[arg(long, value_name = "FILE")]
    pub(crate) peer_tls_ca: Option<PathBuf>,
    /// The certificate that other nodes see, PEM, which names spiffe://CLUSTER/node/ID; that of
    /// --tls-cert then needs to name hosts only [default: that of --tls-cert]
    #[arg(long, value_name = "FILE")]
    pub(crate) peer_tls_cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE")]
    pub(crate) peer_tls_key: Option<PathBuf>,
    /// Without TLS, listen on addresses that other machines reach all the same: the network keeps
    /// strangers out
    #[arg(long)]
    pub(crate) insecure: bool,
}

/// Whether clients have to show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Clients {
    /// Connections without one are refused
    Required,
    /// One that is shown must be valid
    Optional,
    /// None is asked for
    None,
}

impl From<Clients> for ClientCertificates {
    fn from(clients: Clients) -> Self {
        match clients {
            Clients::Required => Self::Required,
            Clients::Optional => Self::Optional,
            Clients::None => Self::None,
        }
    }
}

#[derive(Debug, Args)]
#[command(
    after_help = "Each setting can also stand in a variable (QUORATE_ID, QUORATE_DATA_DIR, QUORATE_LISTEN, \
    QUORATE_PEER_LISTEN, QUORATE_HTTP_LISTEN, QUORATE_HTTP_CORS_ORIGINS, QUORATE_DNS_LISTEN, QUORATE_DNS_DOMAIN, QUORATE_DNS_ALLOW, QUORATE_ADVERTISE, QUORATE_PEER_ADVERTISE, QUORATE_BOOTSTRAP, QUORATE_JOIN, QUORATE_OBSERVER, \
    QUORATE_HEALTH_CHECKS_ALLOW, QUORATE_ACCESS, QUORATE_AUDIT, QUORATE_CLUSTER_NAME, QUORATE_TLS_CERT, QUORATE_TLS_KEY, QUORATE_TLS_CA, QUORATE_TLS_CRL, \
    QUORATE_TLS_CLIENTS, QUORATE_PEER_TLS_CA, QUORATE_PEER_TLS_CERT, QUORATE_PEER_TLS_KEY, QUORATE_INSECURE, QUORATE_CONFIG) or in the \
    file. Flags win over variables, variables over the file.\n\n\
    Examples:\n  \
    quorate serve --id 1 --data-dir /var/lib/quorate --listen 10.0.0.1:7001 \\\n      \
    --peer-listen 10.0.0.1:7101 \\\n      \
    --tls-ca ca.crt --tls-cert node-1.crt --tls-key node-1.key \\\n      \
    --bootstrap 1=10.0.0.1:7101,2=10.0.0.2:7101,3=10.0.0.3:7101\n  \
    quorate serve --id 4 --data-dir /var/lib/quorate --listen 10.0.0.4:7001 \\\n      \
    --peer-listen 10.0.0.4:7101 --join 10.0.0.1:7001 \\\n      \
    --tls-ca ca.crt --tls-cert node-4.crt --tls-key node-4.key\n  \
    quorate serve --config /etc/quorate.toml"
)]
pub(crate) struct ServeArgs {
    /// This node's id, never used by another before
    #[arg(long, value_parser = parse::id)]
    pub(crate) id: Option<u64>,
    /// Where it keeps its data
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,
    /// Its address for clients
    #[arg(long, value_name = "IP:PORT", value_parser = parse::listen)]
    pub(crate) listen: Option<SocketAddr>,
    /// Its address for the other nodes
    #[arg(long, value_name = "IP:PORT", value_parser = parse::listen)]
    pub(crate) peer_listen: Option<SocketAddr>,
    /// Its address for HTTP: /api/v1, /console/, /healthz, /readyz and /metrics [default: none]
    #[arg(long, value_name = "IP:PORT", value_parser = parse::listen)]
    pub(crate) http_listen: Option<SocketAddr>,
    /// Origins whose pages may call /api/v1 from a browser (CORS): scheme, host and port of each
    /// [default: none]
    #[arg(long, value_name = "ORIGIN,...")]
    pub(crate) http_cors_origins: Option<String>,
    /// Its address for DNS, over UDP and TCP [default: none]
    #[arg(long, value_name = "IP:PORT", value_parser = parse::listen)]
    pub(crate) dns_listen: Option<SocketAddr>,
    /// The domain of the names that it answers by DNS [default: quorate.]
    #[arg(long, value_name = "NAME")]
    pub(crate) dns_domain: Option<String>,
    /// Networks that may ask by DNS, which knows no tokens [default: this machine]
    #[arg(long, value_name = "CIDR,...")]
    pub(crate) dns_allow: Option<Networks>,
    /// The address that it announces to clients, if it is another than it listens on
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) advertise: Option<String>,
    /// The address that it announces to other nodes, if it is another than it listens on
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) peer_advertise: Option<String>,
    /// First start of a new cluster: all of its nodes with their peer addresses, the same list on
    /// each. It is founded when all of three, or four of five, are up; later ignored, as long as
    /// the disk is there. Take it out once the cluster is OK
    #[arg(long, value_name = "ID=HOST:PORT,...")]
    pub(crate) bootstrap: Option<String>,
    /// Instead: ask a running cluster to take this node in; addresses of some of its nodes
    #[arg(long, value_name = "HOST:PORT,...", conflicts_with = "bootstrap")]
    pub(crate) join: Option<String>,
    /// With --join: replicate and serve, but never vote
    #[arg(long)]
    pub(crate) observer: bool,
    /// Networks whose addresses may be probed for the health checks that instances declare; the
    /// same on every node. Without any, no health checks are made
    #[arg(long, value_name = "CIDR,...")]
    pub(crate) health_checks_allow: Option<Networks>,
    /// A file with the rights of tokens, certificates and JWTs; it is followed. Without it, every
    /// client that can connect may do everything
    #[arg(long, value_name = "FILE.toml")]
    pub(crate) access: Option<PathBuf>,
    /// A file that gets a line of JSON for each write, and for each call that is refused for
    /// lack of a right
    #[arg(long, value_name = "FILE")]
    pub(crate) audit: Option<PathBuf>,
    /// With --audit: no write without a line. While the file cannot be written, this node refuses
    /// writes, and answers reads and renewals
    #[arg(long)]
    pub(crate) audit_required: bool,
    /// A file with the same settings, and the tunables
    #[arg(long, value_name = "FILE.toml")]
    pub(crate) config: Option<PathBuf>,
    /// As a node of `dev`: it ends when its stdin does, and is quick to stop
    #[arg(long, hide = true)]
    pub(crate) child_of_dev: bool,
    /// The cluster's name, as it stands in certificates and tokens: 1 to 63 of a-z 0-9 . -
    /// [default: quorate]
    #[arg(long, value_name = "NAME")]
    pub(crate) cluster_name: Option<String>,
    #[command(flatten)]
    pub(crate) tls: TlsArgs,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}
