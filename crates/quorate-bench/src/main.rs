//! `quorate-bench`: measures a cluster of Quorate on this machine, and the same work on etcd.
//!
//! | file | duty |
//! |---|---|
//! | `measure`, `outcome` | repetitions, the peers in turn; the result |
//! | `workload`, `workload/*` | W1 to W8, HTTP: what is done and checked |
//! | `ceiling` | what gRPC and the disk can do at most |
//! | `wire`, `wire/*` | the calls, on either peer |
//! | `cluster`, `certs`, `process`, `disk`, `ports`, `programs`, `machine` | three server processes; what /proc and the disk say |
//! | `scraping` | what it costs to be scraped |
//! | `load`, `item` | calls at once or at a rate; what is registered |
//! | `sample`, `rows`, `targets` | figures, medians and ratios, what is wanted |
//! | `table`, `report`, `report/*`, `number`, `output` | for terminals, for browsers |

mod args;
mod ceiling;
mod certs;
mod cluster;
mod disk;
mod item;
mod load;
mod machine;
mod measure;
mod number;
mod outcome;
mod output;
mod ports;
mod process;
mod programs;
mod report;
mod rows;
mod sample;
mod scraping;
mod table;
mod targets;
mod wire;
mod workload;

/// The generated stubs of etcd's API.
mod etcd {
    #![allow(clippy::all, unreachable_pub, unused_qualifications, dead_code, reason = "generated")]
    tonic::include_proto!("etcdserverpb");
}

/// The generated stubs of the echo server.
mod echo {
    #![allow(clippy::all, unreachable_pub, unused_qualifications, dead_code, reason = "generated")]
    tonic::include_proto!("quorate.bench");
}

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::args::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::note(&format!("error: cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    // An interrupt drops what runs, and with it every server that it started.
    let result = runtime.block_on(async {
        tokio::select! {
            result = run(cli.command) => result,
            () = interrupted() => Err(anyhow::anyhow!("interrupted")),
        }
    });
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::note(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<()> {
    match command {
        Command::Run(args) => measure::run(&args).await,
        Command::Compare(args) => match args.peer {
            args::ComparePeer::Etcd => measure::compare(&args.run).await,
            args::ComparePeer::Plain => measure::compare_with_plain(&args.run).await,
        },
        Command::Scraping(args) => scraping::run(&args).await,
        Command::Ceiling(args) => ceiling::run(&args).await,
        Command::EchoServer { port } => ceiling::serve(port).await,
    }
}

/// A terminal that closes counts, too: without a handler, it would end us and leave the servers.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let kinds = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
        SignalKind::quit(),
    ];
    let mut signals: Vec<_> = kinds.into_iter().filter_map(|kind| signal(kind).ok()).collect();
    if signals.is_empty() {
        return std::future::pending().await;
    }
    let any = signals.iter_mut().map(|signal| Box::pin(signal.recv()));
    futures_util::future::select_all(any).await;
}
