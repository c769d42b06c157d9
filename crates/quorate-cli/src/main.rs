//! The one binary, `quorate`: serve, dev, and the operators' commands. Parses, dispatches, and
//! turns a failure into a message and an exit code; everything else is in the file of the command
//! (`commands/`).

mod args;
mod authority;
mod commands;
mod config;
mod connect;
mod contexts;
mod descriptors;
mod failure;
mod files;
mod instance;
mod json;
mod logging;
mod output;
mod panics;
mod parse;
mod patience;
mod signals;
mod supervisor;
mod token;
mod variables;
#[cfg(test)]
mod version;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use crate::args::{Cli, Command};
use crate::commands::{
    certs, cluster, debug, dev, doctor, fetch, recover, reference, register, rescue,
    run as run_child, serve, tokens, watch,
};
use crate::failure::Failure;
use crate::patience::{told, trying};

/// Gives freed memory back to the system within seconds, with threads of its own, whichever thread
/// freed it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    panics::end_the_process();
    // Usage errors end here, with code 2.
    let matches = Cli::command().get_matches();
    let mut cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.format(&mut Cli::command()).exit(),
    };
    if let Some(args) = cli.command.client()
        && let Err(failure) = contexts::settle(args, cli.context, &matches)
    {
        return report(&failure);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(&Failure::failed(format!("cannot start: {error}"))),
    };
    let result = runtime.block_on(run(cli.command));
    // What is left are blocking reads of the disk or a name server, which no command waits for any
    // more.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(&failure),
    }
}

async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Dev(args) => dev::run(args).await,
        Command::Serve(args) => serve::run(args).await,
        Command::Register(args) => register::register(args).await,
        Command::Run(args) => run_child::run(args).await,
        Command::Deregister(args) => {
            told(trying("deregister", &args.client), register::deregister(args)).await
        }
        Command::Update(args) => told(trying("update", &args.client), register::update(args)).await,
        Command::Fetch(args) => told(trying("fetch", &args.client), fetch::fetch(args)).await,
        Command::Services(args) => {
            told(trying("services", &args.client), fetch::services(args)).await
        }
        Command::Dependents(args) => {
            told(trying("dependents", &args.client), fetch::dependents(args)).await
        }
        Command::Watch(args) => watch::watch(args).await,
        Command::Cluster { command } => cluster::run(command).await,
        Command::Doctor(args) => doctor::run(args).await,
        Command::Debug { command } => debug::run(command).await,
        Command::Backup { command } => rescue::backup(&command),
        Command::Restore(args) => rescue::restore(&args).await,
        Command::Recover(args) => recover::recover(&args).await,
        Command::Certs { command } => certs::run(&command),
        Command::Token { command } => tokens::run(&command),
        Command::Completions { shell } => reference::completions(shell),
        Command::Man { dir } => reference::man(&dir),
    }
}

fn report(failure: &Failure) -> ExitCode {
    if !failure.message().is_empty() {
        output::note(&format!("error: {}", failure.message()));
    }
    ExitCode::from(failure.code())
}
