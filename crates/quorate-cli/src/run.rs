//! `run`: a program that is registered while it runs, so that it needs no library for that.
//!
//! The program has a process group of its own: a Ctrl-C of the terminal comes here first, and reaches it when callers have
//! heard that it leaves.

use std::time::Duration;

use quorate_client::{InstanceStatus, RegistrationHandle};
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::args::RunArgs;
use crate::failure::Failure;
use crate::output;
use crate::register::{self, Stay};

/// Whether the program accepts connections is looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The registry has so long to take in that the program is draining; then it is deregistered all the same.
const DRAINING_WITHIN: Duration = Duration::from_secs(1);

pub(crate) async fn run(args: Box<RunArgs>) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    let client = register::client(&args.client, Stay::Long).await?;
    let id = args.id.clone().unwrap_or_else(default_id);
    let registration = register::registration(&args.service, &id, &args.instance);
    let mut child = start(&args)?;
    let ready = accepts(&args);
    tokio::select! {
        exit = child.wait() => return ended(exit),
        signal = signals.next() => {
            forward(&child, signal);
            return ended(child.wait().await);
        }
        ready = timeout(args.ready_within, ready) => if ready.is_err() && !args.ready_within.is_zero() {
            output::note(&format!("no connection within {:?}; registering anyway", args.ready_within));
        },
    }
    let handle = client.register_in_background(registration)?;
    loop {
        tokio::select! {
            exit = child.wait() => {
                deregister(&handle).await;
                return ended(exit);
            }
            signal = signals.next() => match signal {
                Signal::HUP => forward(&child, signal),
                _ => {
                    leave(&handle, &mut child, &mut signals, args.drain).await;
                    forward(&child, signal);
                    return ended(finish(&mut child, &mut signals).await);
                }
            },
            lost = register::superseded(&handle) => {
                output::note(&format!("no longer registered: {}", lost.message()));
                return ended(finish(&mut child, &mut signals).await);
            }
        }
    }
}

fn default_id() -> String {
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy();
    let valid = |c: &char| c.is_ascii_alphanumeric() || ['.', '-'].contains(c);
    let name: String = name.chars().filter(valid).collect();
    let name = name.trim_matches(['.', '-']);
    let name = if name.is_empty() { "host" } else { name };
    format!("{name}-{}", std::process::id())
}

fn start(args: &RunArgs) -> Result<Child, Failure> {
    let (program, rest) = args.program.split_first().expect("invariant: clap wants one at least");
    let spawned = Command::new(program).args(rest).process_group(0).spawn();
    spawned.map_err(|error| {
        Failure::not_started(format!("cannot start {}: {error}", program.display()))
    })
}

/// Waits until the first endpoint with a host and a port accepts a connection.
async fn accepts(args: &RunArgs) {
    let endpoints = &args.instance.endpoints;
    let Some(address) = endpoints.iter().find_map(|(_, uri)| authority(uri)) else { return };
    while TcpStream::connect(address).await.is_err() {
        sleep(LOOK_EVERY).await;
    }
}

/// The host and port of a URI.
fn authority(uri: &str) -> Option<&str> {
    let (_, rest) = uri.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let authority = authority.rsplit('@').next()?;
    let (_, port) = authority.rsplit_once(':')?;
    port.parse::<u16>().ok().map(|_| authority)
}

/// Takes the program out of the registry and lets it serve on for a while; not any longer than it runs, nor after a second
/// signal.
async fn leave(
    handle: &RegistrationHandle,
    child: &mut Child,
    signals: &mut Signals,
    drain: Duration,
) {
    let until = Instant::now() + drain;
    let leaving = async {
        let _or_late = timeout(DRAINING_WITHIN, handle.set_status(InstanceStatus::Draining)).await;
        deregister(handle).await;
        let _elapsed = timeout_at(until, std::future::pending::<()>()).await;
    };
    tokio::select! {
        () = leaving => {}
        _ended = child.wait() => {}
        _impatient = signals.next() => {}
    }
}

async fn deregister(handle: &RegistrationHandle) {
    if let Err(error) = handle.deregister().await {
        output::note(&format!("not deregistered, it ends with its TTL: {error}"));
    }
}

/// Waits for the program's end, and passes on what else comes.
async fn finish(
    child: &mut Child,
    signals: &mut Signals,
) -> std::io::Result<std::process::ExitStatus> {
    loop {
        tokio::select! {
            exit = child.wait() => return exit,
            signal = signals.next() => forward(child, signal),
        }
    }
}

fn forward(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    if let Some(pid) = pid
        && let Err(error) = kill_process(pid, signal)
    {
        output::note(&format!("the program could not be signalled: {error}"));
    }
}

/// The program's exit code is ours.
fn ended(exit: std::io::Result<std::process::ExitStatus>) -> Result<(), Failure> {
    use std::os::unix::process::ExitStatusExt;
    let exit = exit.map_err(|error| Failure::failed(format!("the program was lost: {error}")))?;
    let code = exit.code().unwrap_or_else(|| 128 + exit.signal().unwrap_or(0));
    match u8::try_from(code).unwrap_or(1) {
        0 => Ok(()),
        code => Err(Failure::of_program(code)),
    }
}

/// What a supervisor or a terminal sends.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.terminate.recv() => Signal::TERM,
            _ = self.hang_up.recv() => Signal::HUP,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_and_port_of_a_uri() {
        assert_eq!(authority("http://127.0.0.1:8080/x?y"), Some("127.0.0.1:8080"));
        assert_eq!(authority("grpc://user@[::1]:50051"), Some("[::1]:50051"));
        for none in ["http://h", "unix:/tmp/x", "http://h:port", "x"] {
            assert_eq!(authority(none), None, "{none}");
        }
    }

    #[test]
    fn an_id_of_its_own_is_a_valid_one() {
        let id = default_id();
        let outer = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        assert!(outer(id.chars().next()) && outer(id.chars().last()), "{id}");
        assert!(
            id.len() <= 253 && id.chars().all(|c| c.is_ascii_alphanumeric() || ".-".contains(c))
        );
    }
}
