//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::workload::Workload;
use crate::workload::repeated::Repeated;

/// Measures a three-node cluster on this machine: real processes, real disks
#[derive(Debug, Parser)]
#[command(name = "quorate-bench", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Measure Quorate alone
    Run(RunArgs),
    /// Measure Quorate and a peer, alternating, with the same work
    Compare(CompareArgs),
    /// Measure what it costs Quorate to be scraped (/metrics) every second
    Scraping(ScrapingArgs),
    /// Measure what gRPC and the disk can do at most on this machine
    Ceiling(CeilingArgs),
    /// The server of `ceiling`
    #[command(hide = true)]
    EchoServer {
        #[arg(long)]
        port: u16,
    },
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Only these workloads, e.g. w1,w7
    #[arg(long, value_delimiter = ',')]
    pub(crate) only: Vec<Workload>,
    /// Repetitions, an even number: the peers begin in turn; the medians are printed
    #[arg(long, default_value_t = 2)]
    pub(crate) reps: u32,
    /// The share of the work that is done: less than 1 for a look, not for a figure
    #[arg(long, default_value_t = 1.0)]
    pub(crate) scale: f64,
    /// Also the sizes that take long: a million instances, a million leases
    #[arg(long)]
    pub(crate) large: bool,
    /// Connections to each node
    #[arg(long, default_value_t = 2)]
    pub(crate) connections: usize,
    /// TLS between nodes and to clients, all of whom show certificates
    #[arg(long)]
    pub(crate) tls: bool,
    /// Where the clusters keep their data meanwhile; default: target/bench. Not in memory (tmpfs)
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,
    /// Leave data and logs there
    #[arg(long)]
    pub(crate) keep: bool,
    /// The server; default: `quorate` beside this program, built by cargo if need be
    #[arg(long)]
    pub(crate) quorate: Option<PathBuf>,
    /// The other server; default: `etcd` of the PATH
    #[arg(long)]
    pub(crate) etcd: Option<PathBuf>,
    /// Write the result here, as JSON
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
    /// Write the tables of docs/performance.md here
    #[arg(long)]
    pub(crate) markdown: Option<PathBuf>,
    /// Write a report here, as one HTML file
    #[arg(long)]
    pub(crate) html: Option<PathBuf>,
    /// Do not measure first what the machine can do at most
    #[arg(long)]
    pub(crate) no_ceiling: bool,
    /// Print every figure, not only the main ones
    #[arg(long)]
    pub(crate) details: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// Compare with this
    #[arg(long, value_enum, default_value_t = ComparePeer::Etcd)]
    pub(crate) peer: ComparePeer,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ComparePeer {
    Etcd,
    /// Quorate without TLS; ours is with it
    Plain,
}

#[derive(Debug, Args)]
pub(crate) struct ScrapingArgs {
    /// Only these workloads, e.g. w3
    #[arg(long, value_delimiter = ',')]
    pub(crate) only: Vec<Repeated>,
    /// Pairs of rounds of each workload, one scraped and one not
    #[arg(long, default_value_t = 20)]
    pub(crate) pairs: u32,
    /// The share of the work that is done: less than 1 for a look, not for a figure
    #[arg(long, default_value_t = 1.0)]
    pub(crate) scale: f64,
    /// Where the clusters keep their data meanwhile; default: target/bench. Not in memory (tmpfs)
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,
    /// The server; default: `quorate` beside this program, built by cargo if need be
    #[arg(long)]
    pub(crate) quorate: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct CeilingArgs {
    /// Seconds for each figure
    #[arg(long, default_value_t = 3.0)]
    pub(crate) seconds: f64,
    /// Where the disk is measured; default: target/bench
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,
    /// Write the result here, as JSON
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
}
