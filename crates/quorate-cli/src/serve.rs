//! `serve`: one node in this process.

use quorate_node::{Server, StartError};

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
    let mut stop = Stop::listen()?;
    let node = Server::bind(config).await.map_err(not_started)?;
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
