//! `backup`, `restore` and `recover`: what they take. None of them asks a cluster.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::output::Format;

#[derive(Debug, Subcommand)]
pub(crate) enum BackupCommand {
    /// Check a backup, and show what is in it
    #[command(
        after_help = "`quorate cluster backup` makes them. A file that is damaged or cut off is refused.\n\n\
        Examples:\n  \
        quorate backup inspect registry.backup\n  \
        quorate backup inspect registry.backup --instances -o json"
    )]
    Inspect {
        /// The backup
        file: PathBuf,
        /// List the instances, too
        #[arg(long)]
        instances: bool,
        /// How the output is written
        #[arg(long, short, default_value = "table")]
        output: Format,
    },
}

#[derive(Debug, Args)]
#[command(
    after_help = "The new cluster has an id of its own and one node: start that, let others join with empty directories. Clients \
    find out that it is another cluster: they register again, so what was registered after the backup comes back by \
    itself, and their watches begin anew. What nobody renews is gone after its TTL.\n\n\
    Examples:\n  \
    quorate restore registry.backup --data-dir /var/lib/quorate --id 1\n  \
    quorate serve --id 1 --data-dir /var/lib/quorate --listen 10.0.0.1:7001 \\\n      \
    --peer-listen 10.0.0.1:7101 \\\n      \
    --tls-ca ca.crt --tls-cert node-1.crt --tls-key node-1.key\n  \
    quorate serve --id 2 --data-dir /var/lib/quorate --listen 10.0.0.2:7001 \\\n      \
    --peer-listen 10.0.0.2:7101 --join 10.0.0.1:7001 \\\n      \
    --tls-ca ca.crt --tls-cert node-2.crt --tls-key node-2.key"
)]
pub(crate) struct RestoreArgs {
    /// The backup
    pub(crate) file: PathBuf,
    /// The data directory of the new node, missing or empty
    #[arg(long)]
    pub(crate) data_dir: PathBuf,
    /// The new node's id
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) id: u64,
    /// How the output is written
    #[arg(long, short, default_value = "table")]
    pub(crate) output: Format,
}

#[derive(Debug, Args)]
#[command(
    after_help = "For a cluster whose majority is lost for good. Give it the data directories of all nodes that are left, with no node \
    running on them. Without --accept-data-loss it only says how far each is, which is the best, and what may be lost; \
    nothing is written. With it, the best becomes a new cluster of one, with an id of its own: nodes of the old cluster \
    that come back are told to end, within seconds, where a node of the new one runs and reaches them at their old addresses. \
    Until then they may serve: take their directories away. What that one's directory had is kept there, in before-ID. Directories of a \
    majority are refused: just start those nodes.\n\n\
    The logs are read in copies, in the directory for temporary files: if that has not some MiB more room than they take, set TMPDIR \
    to one that has.\n\n\
    Examples:\n  \
    quorate recover --data-dir /mnt/node-1 --data-dir /mnt/node-3\n  \
    quorate recover --data-dir /mnt/node-1 --data-dir /mnt/node-3 --accept-data-loss"
)]
pub(crate) struct RecoverArgs {
    /// The data directory of a node that is left (repeatable)
    #[arg(long = "data-dir", value_name = "DIR", required = true)]
    pub(crate) data_dirs: Vec<PathBuf>,
    /// Make the best of them a new cluster, although what only the lost nodes had is gone
    #[arg(long)]
    pub(crate) accept_data_loss: bool,
    /// How the output is written
    #[arg(long, short, default_value = "table")]
    pub(crate) output: Format,
}
