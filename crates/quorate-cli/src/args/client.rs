//! What all commands that ask the cluster take.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{ClusterCommand, Command, DebugCommand, UpgradeCommand};
use crate::output::Format;
use crate::parse;

/// The nodes where nothing else is said: the nodes of `dev`.
const NODES: [&str; 3] = ["127.0.0.1:7001", "127.0.0.1:7002", "127.0.0.1:7003"];
const NAMESPACE: &str = "default";

/// What all commands that ask the cluster take. What is not said of the cluster is filled up from
/// the context (`contexts.rs`).
#[derive(Debug, Clone, Args)]
pub(crate) struct ClientArgs {
    /// A cluster by its name in ~/.config/quorate/config.toml, which has its nodes, namespace,
    /// certificates and token file; '' for none. Named here, it wins over variables, not over
    /// flags; a CA, certificate, key or token of a variable is not used then, even where it has
    /// none
    #[arg(long, env = "QUORATE_CONTEXT", value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// Addresses of nodes, tried in this order; a bare port has the previous host [default:
    /// 127.0.0.1:7001,7002,7003]
    #[arg(long, env = "QUORATE_NODES", value_parser = parse::nodes)]
    pub(crate) nodes: Option<parse::NodeList>,
    /// The namespace [default: default]
    #[arg(long, env = "QUORATE_NAMESPACE")]
    pub(crate) namespace: Option<String>,
    /// How the output is written
    #[arg(short, long, default_value = "table")]
    pub(crate) output: Format,
    /// Use TLS, and trust the CAs in this PEM file
    #[arg(long, env = "QUORATE_CA", value_name = "FILE", value_parser = parse::path())]
    pub(crate) ca: Option<PathBuf>,
    /// With a CA: refuse the node certificates on the lists in this PEM file
    #[arg(long, env = "QUORATE_CRL", value_name = "FILE", value_parser = parse::path())]
    pub(crate) crl: Option<PathBuf>,
    /// With a CA: this client's certificate in a PEM file ...
    #[arg(long, env = "QUORATE_CERT", value_name = "FILE", value_parser = parse::path())]
    pub(crate) cert: Option<PathBuf>,
    /// ... and its private key
    #[arg(long, env = "QUORATE_KEY", value_name = "FILE", value_parser = parse::path())]
    pub(crate) key: Option<PathBuf>,
    /// A file with the token that goes with every call. (The token itself may stand in the variable
    /// QUORATE_TOKEN, never on a command line, which every user of the machine can read)
    #[arg(long, env = "QUORATE_TOKEN_FILE", value_name = "FILE", value_parser = parse::path())]
    pub(crate) token_file: Option<PathBuf>,
    /// QUORATE_TOKEN is not for the cluster that the command is made on.
    #[arg(skip)]
    pub(crate) ignores_token: bool,
    /// Send the token to other machines without TLS, too
    #[arg(long)]
    pub(crate) allow_plaintext_token: bool,
    /// How long to go on trying: 10ms to 365 days, written like 500ms, 10s or 2m30s
    #[arg(long, env = "QUORATE_TIMEOUT", default_value = "5s", value_parser = parse::duration)]
    pub(crate) timeout: Duration,
}

impl ClientArgs {
    pub(crate) fn nodes(&self) -> parse::NodeList {
        self.nodes.clone().unwrap_or_else(|| NODES.map(str::to_owned).to_vec())
    }

    pub(crate) fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or(NAMESPACE)
    }
}

impl Command {
    /// What a command that asks the cluster takes.
    pub(crate) fn client(&mut self) -> Option<&mut ClientArgs> {
        Some(match self {
            Self::Register(args) => &mut args.client,
            Self::Run(args) => &mut args.client,
            Self::Deregister(args) => &mut args.client,
            Self::Update(args) => &mut args.client,
            Self::Fetch(args) => &mut args.client,
            Self::Watch(args) => &mut args.client,
            Self::Services(args) => &mut args.client,
            Self::Dependents(args) => &mut args.client,
            Self::Cluster { command } => match command {
                ClusterCommand::Status { client, .. }
                | ClusterCommand::Add { client, .. }
                | ClusterCommand::Remove { client, .. }
                | ClusterCommand::Replace { client, .. }
                | ClusterCommand::TransferLeader { client, .. }
                | ClusterCommand::Snapshot { client }
                | ClusterCommand::Backup { client, .. }
                | ClusterCommand::Overrides { client } => client,
                ClusterCommand::Upgrade { command } => match command {
                    UpgradeCommand::Status { client }
                    | UpgradeCommand::Finalize { client }
                    | UpgradeCommand::Hold { client } => client,
                },
                ClusterCommand::Override(args) => &mut args.client,
            },
            Self::Doctor(args) => &mut args.client,
            Self::Debug { command: DebugCommand::Bundle(args) } => &mut args.client,
            Self::Dev(_)
            | Self::Serve(_)
            | Self::Backup { .. }
            | Self::Restore(_)
            | Self::Recover(_)
            | Self::Certs { .. }
            | Self::Token { .. }
            | Self::Completions { .. }
            | Self::Man { .. } => return None,
        })
    }
}
