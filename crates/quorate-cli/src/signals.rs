//! Ctrl-C, SIGTERM and SIGHUP: what ends a command in order; and SIGHUP for a node, which reads its
//! files again, if it has any, and goes on.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Catches the signals from the moment it is made.
pub(crate) struct Stop {
    interrupt: Signal,
    terminate: Signal,
    hang_up: HangUp,
}

impl Stop {
    pub(crate) fn listen() -> io::Result<Self> {
        let interrupt = signal(SignalKind::interrupt())?;
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self { interrupt, terminate, hang_up: HangUp::listen()? })
    }

    /// Waits for the next of them.
    pub(crate) async fn requested(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            () = self.hang_up.received() => {}
        }
    }
}

impl Stop {
    /// For a daemon, to which SIGHUP says that it is to read its files again.
    pub(crate) fn listen_reloading() -> io::Result<Self> {
        let hang_up = HangUp(Some(signal(SignalKind::hangup())?));
        Ok(Self { hang_up, ..Self::listen()? })
    }

    /// Waits for Ctrl-C or SIGTERM; calls `reload` for each SIGHUP meanwhile.
    pub(crate) async fn requested_reloading(&mut self, reload: impl Fn()) {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return,
                _ = self.terminate.recv() => return,
                () = self.hang_up.received() => reload(),
            }
        }
    }
}

/// SIGHUP: the terminal is gone. A process that was started with `nohup` ignores it, and goes on
/// doing so.
pub(crate) struct HangUp(Option<Signal>);

impl HangUp {
    pub(crate) fn listen() -> io::Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let listens = !ignores_hang_up(&status);
        Ok(Self(listens.then(|| signal(SignalKind::hangup())).transpose()?))
    }

    pub(crate) async fn received(&mut self) {
        match &mut self.0 {
            Some(signal) => {
                signal.recv().await;
            }
            None => std::future::pending().await,
        }
    }
}

/// Whether a process with this /proc/PID/status ignores SIGHUP: the lowest bit of the signals that
/// it ignores.
fn ignores_hang_up(status: &str) -> bool {
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hang_up_that_is_ignored_is_recognised() {
        let status = |mask| format!("Name:\tquorate\nSigBlk:\t01\nSigIgn:\t{mask}\nSigCgt:\t01\n");
        assert!(ignores_hang_up(&status("0000000000001001")));
        assert!(!ignores_hang_up(&status("0000000000001000")));
        assert!(!ignores_hang_up(""), "where there is no such file");
    }
}
