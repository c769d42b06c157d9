//! `run`: a program that is registered while it runs, so that it needs no library for that.
//!
//! The program has a process group of its own: a Ctrl-C of the terminal comes here first, and
//! reaches it when callers have heard that it leaves.

use std::cell::Cell;
use std::convert::Infallible;
use std::net::TcpListener;
use std::pin::pin;
use std::time::Duration;

use quorate_client::{Client, Error, InstanceStatus, RegistrationHandle};
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::args::{IfDeregistered, RunArgs};
use crate::commands::register;
use crate::connect::{self, Stay};
use crate::failure::Failure;
use crate::output;
use crate::parse::authority;
use crate::signals::HangUp;

/// Whether the program accepts connections is looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// One look takes no longer than this: where nothing answers, a connection would try for minutes.
const LOOK_WITHIN: Duration = Duration::from_secs(1);
/// Where the registry refuses that the program is UP, it is asked again after this time.
const ASK_AGAIN: Duration = Duration::from_millis(1_500);
/// The registry has this long to take in that the program is draining; then it is deregistered all
/// the same.
const DRAINING_WITHIN: Duration = Duration::from_secs(1);

pub(crate) async fn run(mut args: Box<RunArgs>) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    let client = connect::client(&args.client, Stay::Long).await?;
    let id = args.id.clone().unwrap_or_else(default_id);
    let port = choose_port(&mut args)?;
    let look_at = look_at(&args);
    let registration = args.instance.registration(&args.service, &id);
    let registration = match look_at {
        Some(_) => registration.status(InstanceStatus::Starting),
        None => registration,
    };
    let mut child = start(&args, &id, port)?;
    let handle = client.register_in_background(registration)?;
    let mut lost = pin!(async {
        tokio::select! {
            lost = register::superseded(&handle, |_granted| Ok(())) => lost,
            never = tell_of_start(&handle, &client, &args, look_at) => match never {},
        }
    });
    loop {
        tokio::select! {
            exit = child.wait() => {
                deregister(&handle).await;
                return ended(exit);
            }
            signal = signals.next() => match signal {
                Signal::HUP => forward(&child, signal),
                _ => {
                    let is_out = leave(&handle, &mut child, &mut signals, args.drain).await;
                    forward(&child, signal);
                    let deregistered = async {
                        if !is_out {
                            deregister(&handle).await;
                        }
                    };
                    let (exit, ()) = tokio::join!(finish(&mut child, &mut signals), deregistered);
                    return ended(exit);
                }
            },
            lost = &mut lost => {
                output::note(&format!("no longer registered: {}", lost.message()));
                if args.if_deregistered == IfDeregistered::Stop {
                    output::note("stopping the program (--if-deregistered stop)");
                    forward(&child, Signal::TERM);
                }
                return ended(finish(&mut child, &mut signals).await);
            }
        }
    }
}

/// Says when it is registered, and that it is UP as soon as it accepts connections.
async fn tell_of_start(
    handle: &RegistrationHandle,
    client: &Client,
    args: &RunArgs,
    look_at: Option<&str>,
) -> Infallible {
    // The task that follows the registration's state reports a failure.
    if let Ok(lease) = handle.registered().await {
        let status = if look_at.is_some() { "STARTING" } else { "UP" };
        let (service, lease) = (&args.service, lease.id);
        output::note(&format!("registered with {service} as {status}: lease {lease}"));
        register::warn_of_checks(client, &args.instance).await;
        if let Some(address) = look_at {
            tell_of_readiness(handle, address, args.ready_within).await;
        }
    }
    std::future::pending().await
}

async fn tell_of_readiness(handle: &RegistrationHandle, address: &str, within: Duration) {
    if timeout(within, accepts(address)).await.is_err() {
        output::note(&format!(
            "no connection to {address} within {within:?}: it stays STARTING until there is one"
        ));
        accepts(address).await;
    }
    let mut is_told = false;
    loop {
        match handle.set_status(InstanceStatus::Up).await {
            Ok(()) => return output::note(&format!("{address} accepts connections: UP")),
            // The registration does not go on wanting what was refused.
            Err(error @ Error::Rejected { .. }) => {
                if !is_told {
                    output::note(&format!(
                        "{address} accepts connections; still STARTING, going on trying: {error}"
                    ));
                    is_told = true;
                }
                sleep(ASK_AGAIN).await;
            }
            // The task that follows the registration's state reports that it has ended.
            Err(Error::Superseded { .. } | Error::AlreadyDeregistered | Error::Stopped) => return,
            Err(error) => {
                return output::note(&format!("{address} accepts connections; UP later: {error}"));
            }
        }
    }
}

/// What stands for a free port in endpoints and arguments.
const PORT: &str = "{port}";

/// Puts a free port in the place of `{port}`, if an endpoint has it.
fn choose_port(args: &mut RunArgs) -> Result<Option<u16>, Failure> {
    if !args.instance.endpoints.iter().any(|(_, uri)| uri.contains(PORT)) {
        return Ok(None);
    }
    // Given back for the program to take; until then another program might.
    let found = TcpListener::bind("0.0.0.0:0").and_then(|listener| listener.local_addr());
    let port = found.map_err(|error| Failure::failed(format!("no free port: {error}")))?.port();
    for (_, uri) in &mut args.instance.endpoints {
        *uri = uri.replace(PORT, &port.to_string());
    }
    for arg in &mut args.program {
        if let Some(text) = arg.to_str().filter(|text| text.contains(PORT)) {
            *arg = text.replace(PORT, &port.to_string()).into();
        }
    }
    Ok(Some(port))
}

/// The first endpoint with a host and a port, which shows by accepting a connection that the
/// program is ready; `None`: nothing shows it.
fn look_at(args: &RunArgs) -> Option<&str> {
    let mut endpoints = args.instance.endpoints.iter();
    let address = endpoints.find_map(|(_, uri)| authority(uri));
    address.filter(|_| !args.ready_within.is_zero())
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

fn start(args: &RunArgs, id: &str, port: Option<u16>) -> Result<Child, Failure> {
    let (program, rest) = args.program.split_first().expect("invariant: clap wants one at least");
    let mut command = Command::new(program);
    command.args(rest).env("QUORATE_SERVICE", &args.service).env("QUORATE_ID", id);
    if let Some(port) = port {
        command.env("PORT", port.to_string());
    }
    let spawned = command.process_group(0).spawn();
    spawned.map_err(|error| {
        Failure::not_started(format!("cannot start {}: {error}", program.display()))
    })
}

async fn accepts(address: &str) {
    while !matches!(timeout(LOOK_WITHIN, TcpStream::connect(address)).await, Ok(Ok(_))) {
        sleep(LOOK_EVERY).await;
    }
}

/// Takes the program out of the registry and lets it serve on for a while; not any longer than it
/// runs (a supervisor may signal it, too), nor after a second signal. Returns whether it came so
/// far that the program was deregistered.
async fn leave(
    handle: &RegistrationHandle,
    child: &mut Child,
    signals: &mut Signals,
    drain: Duration,
) -> bool {
    let until = Instant::now() + drain;
    let is_out = Cell::new(false);
    let leaving = async {
        let _or_late = timeout(DRAINING_WITHIN, handle.set_status(InstanceStatus::Draining)).await;
        deregister(handle).await;
        is_out.set(true);
        let _elapsed = timeout_at(until, std::future::pending::<()>()).await;
    };
    tokio::select! {
        () = leaving => {}
        _ended = child.wait() => {}
        _impatient = signals.next() => {}
    }
    is_out.get()
}

async fn deregister(handle: &RegistrationHandle) {
    match handle.deregister().await {
        // The second: by a call of ours that was not waited for.
        Ok(()) | Err(Error::AlreadyDeregistered) => {}
        Err(error) => output::note(&format!("not deregistered, it ends with its TTL: {error}")),
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
    hang_up: HangUp,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: HangUp::listen()?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.terminate.recv() => Signal::TERM,
            () = self.hang_up.received() => Signal::HUP,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
