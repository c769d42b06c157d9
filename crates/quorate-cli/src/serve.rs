//! `serve`: one node in this process.

use quorate_node::{Config, Environment, Server, StartError};
use tokio::runtime::{Builder, Handle};

use crate::args::ServeArgs;
use crate::config;
use crate::failure::Failure;
use crate::logging;
use crate::signals::Stop;

pub(crate) async fn run(args: Box<ServeArgs>) -> Result<(), Failure> {
    let variable = |name: &str| std::env::var(name).ok();
    let read =
        |path: &std::path::Path| std::fs::read_to_string(path).map_err(|error| error.to_string());
    let config = config::load(&args, variable, read)
        .map_err(|bad| Failure::usage(format!("bad configuration: {}", bad.0)))?;
    logging::start(logging::NODE, args.log.log_format);
    // One thread for Raft: see `Environment::raft_on`.
    let raft =
        Builder::new_multi_thread().worker_threads(1).thread_name("raft").enable_all().build();
    let raft = raft.map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    let ended = serve(config, raft.handle().clone()).await;
    raft.shutdown_background();
    ended
}

async fn serve(config: Config, raft_on: Handle) -> Result<(), Failure> {
    let mut stop = Stop::listen()?;
    let environment = Environment { raft_on: Some(raft_on), ..Environment::default() };
    let node = Server::bind_in(config, environment).await.map_err(not_started)?;
    let requested = async move { stop.requested().await };
    node.run(requested).await.map_err(|error| Failure::failed(format!("{:#}", chain(error))))
}

/// A wrong setting is a usage error, everything else a failed start.
pub(crate) fn not_started(error: StartError) -> Failure {
    let usage = matches!(error, StartError::Config(_) | StartError::RaftConfig { .. });
    let message = format!("{:#}", chain(error));
    if usage { Failure::usage(message) } else { Failure::failed(message) }
}

/// An error with its causes.
pub(crate) fn chain(error: impl std::error::Error + Send + Sync + 'static) -> anyhow::Error {
    anyhow::Error::new(error)
}
