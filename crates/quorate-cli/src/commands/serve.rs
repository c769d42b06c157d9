//! `serve`: one node in this process.

use std::io::{self, IsTerminal as _};

use quorate_node::{Config, Environment, RunError, Server};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::args::ServeArgs;
use crate::config;
use crate::descriptors::{self, Listens};
use crate::failure::{self, FAILED, Failure, not_started};
use crate::logging;
use crate::signals::Stop;
use crate::supervisor;
use crate::variables;

pub(crate) async fn run(args: Box<ServeArgs>) -> Result<(), Failure> {
    let read =
        |path: &std::path::Path| std::fs::read_to_string(path).map_err(|error| error.to_string());
    let mut config = config::load(&args, variables::text, read)
        .map_err(|bad| Failure::usage(format!("bad configuration: {}", bad.0)))?;
    let log = if args.child_of_dev { logging::DEV } else { logging::NODE };
    logging::start(log, args.log.log_format).map_err(Failure::usage)?;
    if args.child_of_dev {
        end_with_stdin()
            .map_err(|error| Failure::failed(format!("cannot start a thread: {error}")))?;
        config.tunables.shutdown_grace_ms = DEV_SHUTDOWN_GRACE_MS;
        // It replaces no cluster, and who tries out DNS asks soon.
        config.tunables.deny_after_ms = 0;
    }
    let listens = Listens { http: config.http_listen.is_some(), dns: config.dns_listen.is_some() };
    descriptors::share(&mut config.tunables, listens);
    let (stop, stopped) = oneshot::channel();
    let raft = raft_thread(stopped)
        .map_err(|error| Failure::failed(format!("cannot start a thread for Raft: {error}")))?;
    let ended = serve(config, raft, args.child_of_dev).await;
    drop(stop);
    ended
}

/// Nodes of `dev` that all stop at once cannot hand the lead over; they need not be given time to
/// try. What was acknowledged is on the disk already.
const DEV_SHUTDOWN_GRACE_MS: u64 = 1_000;

/// Ends this process at once when its stdin ends: the process that started it holds the other end,
/// and is gone. As if both had been killed together; a stop in order comes as a signal.
fn end_with_stdin() -> io::Result<()> {
    let until_it_ends = || {
        let _error_is_the_end = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(i32::from(FAILED));
    };
    std::thread::Builder::new().name("parent".to_owned()).spawn(until_it_ends)?;
    Ok(())
}

/// A runtime with one thread (see `Environment::raft_on`), until the sender is gone. One that knows
/// of no other threads takes 4 % fewer instructions for a registration than one that could have
/// several.
fn raft_thread(stopped: oneshot::Receiver<()>) -> io::Result<Handle> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new().name("raft".to_owned()).spawn(move || {
        // The sender ends it by being dropped, which is an error here.
        let _ = runtime.block_on(stopped);
        runtime.shutdown_background();
    })?;
    Ok(handle)
}

/// Whether SIGHUP may be that of a terminal which is closed. Else it is of somebody who takes this
/// for a daemon as others, as logrotate does, and not to end it.
fn is_in_a_terminal() -> bool {
    io::stdin().is_terminal() || io::stderr().is_terminal()
}

async fn serve(config: Config, raft_on: Handle, of_dev: bool) -> Result<(), Failure> {
    let reloads = config.tls.is_some() || config.access.is_some();
    let ends_with_terminal = !reloads && is_in_a_terminal();
    let mut stop = if ends_with_terminal { Stop::listen()? } else { Stop::listen_reloading()? };
    let environment = Environment { raft_on: Some(raft_on.clone()), ..Environment::default() };
    let reload = environment.reload.clone();
    let node = Server::bind_in(config, environment).await.map_err(not_started)?;
    let requested = async move {
        match ends_with_terminal {
            true => stop.requested().await,
            false => {
                let hang_up = || match reloads {
                    true => reload.notify_one(),
                    false => tracing::info!("SIGHUP: there is nothing to read again"),
                };
                stop.requested_reloading(hang_up).await;
            }
        }
        supervisor::stopping();
    };
    let followed = supervisor::follow(node.readiness(), raft_on);
    let ended = tokio::select! {
        ended = node.run(requested) => ended,
        never = followed => match never {},
    };
    match ended {
        Err(RunError::SlowStop { .. }) if of_dev => Ok(()),
        ended => ended.map_err(failure::ended),
    }
}
