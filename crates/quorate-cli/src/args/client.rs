//! What all commands that ask the cluster take.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::output::Format;
use crate::parse;

/// What all commands that ask the cluster take.
#[derive(Debug, Clone, Args)]
pub(crate) struct ClientArgs {
    /// Addresses of nodes, tried in this order; a bare port has the host before it
    #[arg(long, env = "QUORATE_NODES", default_value = "127.0.0.1:7001,7002,7003", value_parser = parse::nodes)]
    pub(crate) nodes: parse::NodeList,
    /// The namespace
    #[arg(long, env = "QUORATE_NAMESPACE", default_value = "default")]
    pub(crate) namespace: String,
    /// How the output is written
    #[arg(short, long, default_value = "table")]
    pub(crate) output: Format,
    /// Use TLS, and trust the CAs in this PEM file
    #[arg(long, env = "QUORATE_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// With --ca: who we are, a certificate in a PEM file ...
    #[arg(long, env = "QUORATE_CERT", value_name = "FILE", requires_all = ["ca", "key"])]
    pub(crate) cert: Option<PathBuf>,
    /// ... and its private key
    #[arg(long, env = "QUORATE_KEY", value_name = "FILE", requires = "cert")]
    pub(crate) key: Option<PathBuf>,
    /// A file with the token that goes with every call. (The token itself may stand in the variable
    /// QUORATE_TOKEN, never on a command line, which everybody on the machine can read)
    #[arg(long, env = "QUORATE_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Send the token to other machines without TLS, too
    #[arg(long)]
    pub(crate) allow_plaintext_token: bool,
    /// How long to go on trying: 10ms to 365 days, written like 500ms, 10s or 2m30s
    #[arg(long, env = "QUORATE_TIMEOUT", default_value = "5s", value_parser = parse::duration)]
    pub(crate) timeout: Duration,
}
