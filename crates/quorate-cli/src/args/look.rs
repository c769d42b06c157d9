//! `doctor` and `debug`: what they take.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::ClientArgs;
use crate::parse;

#[derive(Debug, Args)]
#[command(
    after_help = "17 checks: quorum, lag, state hash, versions, snapshots, backups, writes, disks, syncs, clock, certificates, listeners, health \
    checks, watches, hot spots; from here, the endpoints of the namespace; and who else can read files with \
    credentials, here and on the nodes' machines. Each finding says what it means and what to do. Exits with 0 if \
    nothing is worse than a note, 1 for a warning, 2 for what is critical, 3 if no node answers. What the caller may not see is left out, and said so.\n\n\
    Examples:\n  \
    quorate doctor\n  \
    quorate doctor -o json --timeout 10s"
)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DebugCommand {
    /// Write what one needs to look into a problem to one file, without secrets
    #[command(
        after_help = "A tar archive with the status, what `doctor` finds, and, where they are named, the metrics of nodes, the ends of logs, \
        a configuration file, and a list of the files of a data directory with their first bytes. manifest.json says what \
        is missing and why; no node needs to answer. Tokens and private keys are taken out; names of services and \
        addresses are not: look through it before you send it to others.\n\n\
        Examples:\n  \
        quorate debug bundle problem.tar\n  \
        quorate debug bundle problem.tar --http 10.0.0.1:7201,10.0.0.2:7201 \\\n      \
        --log /var/log/quorate.log --config /etc/quorate.toml --data-dir /var/lib/quorate"
    )]
    Bundle(BundleArgs),
}

#[derive(Debug, Args)]
pub(crate) struct BundleArgs {
    /// The archive, which must not exist
    pub(crate) file: PathBuf,
    /// Where nodes listen for HTTP (`serve --http-listen`): their metrics are taken
    #[arg(long, value_name = "HOST:PORT,...", value_parser = parse::nodes)]
    pub(crate) http: Option<parse::NodeList>,
    /// A log of a node on this machine (repeatable)
    #[arg(long = "log", value_name = "FILE")]
    pub(crate) logs: Vec<PathBuf>,
    /// The configuration file of a node on this machine
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The data directory of a node on this machine, which may run
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}
