//! `certs` and `token`: what they take.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use crate::output::Format;
use crate::parse;

#[derive(Debug, Subcommand)]
pub(crate) enum CertsCommand {
    /// Make a CA, which signs the certificates of all nodes and clients of a cluster
    #[command(
        after_help = "Its key (ca.key) stays where certificates are made; nodes and clients get ca.crt.\n\n\
        Examples:\n  \
        quorate certs init\n  \
        quorate certs init --cluster-name prod --dir ~/prod-ca"
    )]
    Init {
        /// The cluster's name, as its nodes get it with `serve --cluster-name`
        #[arg(long, default_value = "quorate")]
        cluster_name: String,
        #[command(flatten)]
        place: Place,
    },
    /// Make a node's certificate and key
    #[command(
        after_help = "Name each host that clients write in --nodes; peers know a node by its id.\n\n\
        Examples:\n  \
        quorate certs node 1\n  \
        quorate certs node 1 --host node-1.example --host 10.0.0.1 --dir ~/prod-ca\n  \
        quorate certs node 1 --force     before the old one runs out, and for the same hosts"
    )]
    Node {
        /// The node's id
        id: u64,
        /// A DNS name or IP address that clients call it by (repeatable) [default: with --force,
        /// those of the certificate that is there; else localhost, 127.0.0.1 and ::1]
        #[arg(long = "host", value_name = "HOST")]
        hosts: Vec<String>,
        #[command(flatten)]
        lifetime: Lifetime,
        #[command(flatten)]
        place: Place,
    },
    /// Make a client's certificate and key
    #[command(after_help = "Examples:\n  \
        quorate certs client operator\n  \
        quorate certs client orders --valid-for 90d")]
    Client {
        /// Who it is, as a rule of the access file names it: spiffe://CLUSTER/client/NAME
        name: String,
        #[command(flatten)]
        lifetime: Lifetime,
        #[command(flatten)]
        place: Place,
    },
    /// Write the CA's list of revoked certificates (ca.crl), with these and all earlier ones
    #[command(
        after_help = "Nodes (serve --tls-crl) and clients (--crl) take such certificates no more when they have the list.\n\n\
        Example:\n  quorate certs revoke certs/client-orders.crt"
    )]
    Revoke {
        /// The certificates; without any, the list is made that nodes can begin with
        certificates: Vec<PathBuf>,
        /// The directory with the CA
        #[arg(long, default_value = "certs")]
        dir: PathBuf,
        /// How the output is written
        #[arg(short, long, default_value = "table")]
        output: Format,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Lifetime {
    /// For how long, written like 90d: 1 day to 5 years
    #[arg(long, default_value = "365d", value_parser = parse::lifetime)]
    pub(crate) valid_for: Duration,
}

/// Where files go, and what is said of them.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// The directory with the CA and all that it issues
    #[arg(long, default_value = "certs")]
    pub(crate) dir: PathBuf,
    /// Write another in the place of one that is there
    #[arg(long)]
    pub(crate) force: bool,
    /// How the output is written
    #[arg(short, long, default_value = "table")]
    pub(crate) output: Format,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token: print it, and what the nodes' access file has to say of it
    #[command(
        after_help = "The token is shown once and kept nowhere: the access file has its digest, which cannot be used as a token.\n\n\
        Examples:\n  \
        quorate token new --id orders --role register --namespace default --prefix orders\n  \
        quorate token new --id console --role read --namespace '*' --valid-for 90d\n  \
        quorate token new --id ci --role operator --namespace default \\\n      \
        --out ci.token >> access.toml"
    )]
    New(TokenArgs),
}

#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    /// What logs and the audit call it
    #[arg(long)]
    pub(crate) id: String,
    /// What its holder may do
    #[arg(long)]
    pub(crate) role: RoleArg,
    /// In which namespace; '*' for all
    #[arg(long, required_if_eq_any = [("role", "read"), ("role", "register"), ("role", "operator")])]
    pub(crate) namespace: Option<String>,
    /// Of which services: the ones whose name begins with this [default: all]
    #[arg(long)]
    pub(crate) prefix: Option<String>,
    /// Until when, like 2027-01-01T00:00:00Z [default: for ever]
    #[arg(long, value_name = "TIME", value_parser = parse::moment)]
    pub(crate) not_after: Option<String>,
    /// For how long from now, written like 90d
    #[arg(long, conflicts_with = "not_after", value_parser = parse::lifetime)]
    pub(crate) valid_for: Option<Duration>,
    /// A file for the token, which must not exist and only its owner can read; it is then not
    /// printed
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// How the output is written
    #[arg(short, long, default_value = "table")]
    pub(crate) output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleArg {
    /// See services and their instances
    Read,
    /// That, and register own services, by --prefix
    Register,
    /// That, and override, drain, accept a loss
    Operator,
    /// Everything, also members, snapshots and backups
    Admin,
}
