//! One node of `dev`: a `quorate serve` as a child process, which is started again when it ends.
//! Knows nothing of the others.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::failure::{Failure, USAGE};
use crate::logging::LogFormat;
use crate::output;

/// One that ran is away for this long: time to look at the cluster without it.
const AWAY: Duration = Duration::from_secs(2);
/// One that ends sooner than that after its start has failed to start.
const RAN: Duration = Duration::from_secs(5);
/// Then it is started again after this, and after twice as long each time.
const RESTART_AFTER: Duration = Duration::from_millis(500);
/// This many failed starts in a row end `dev`.
const FAILED_STARTS_MAX: u32 = 4;
/// A node that gets SIGTERM takes about a second to stop.
const STOPPED_WITHIN: Duration = Duration::from_secs(10);
/// A longer line of a node's log is passed on in pieces.
const LINE_MAX: u64 = 64 << 10;
/// This many of a node's last lines are printed once more if they are why `dev` ends.
const LAST_WORDS: usize = 3;

/// What a node is started with, each time.
pub(super) struct Node {
    pub(super) id: u64,
    /// Its address for clients.
    pub(super) address: SocketAddr,
    /// Its address for operators' tools.
    pub(super) http: SocketAddr,
    pub(super) program: PathBuf,
    pub(super) args: Vec<OsString>,
    pub(super) log_format: LogFormat,
    /// The number of its process, or of its last one.
    pub(super) pid: AtomicU32,
}

/// How a run of a node ended.
struct Ended {
    status: ExitStatus,
    last_words: VecDeque<String>,
}

impl Node {
    /// Keeps the node running until the stop.
    ///
    /// # Errors
    /// It does not start, again and again, or it fails to stop.
    pub(super) async fn keep(&self, mut stopping: watch::Receiver<bool>) -> Result<(), Failure> {
        let id = self.id;
        let mut failed_starts = 0;
        loop {
            let since = Instant::now();
            let ended = self.run(stopping.clone()).await.map_err(|error| {
                Failure::failed(format!("cannot run {}: {error}", self.program.display()))
            })?;
            let (pid, how) = (self.pid.load(Ordering::Relaxed), ended.status);
            if *stopping.borrow() {
                // The signal may have come before it listened to signals, or it was killed since it
                // took too long.
                let told = [Signal::TERM, Signal::KILL].map(|signal| Some(signal.as_raw()));
                if how.success() || told.contains(&how.signal()) {
                    return Ok(());
                }
                return Err(ended.failure(format!("node {id} did not stop in order ({how})")));
            }
            failed_starts = if since.elapsed() < RAN { failed_starts + 1 } else { 0 };
            if failed_starts == FAILED_STARTS_MAX || how.code() == Some(i32::from(USAGE)) {
                return Err(ended.failure(format!("node {id} does not start ({how})")));
            }
            let away =
                if failed_starts == 0 { AWAY } else { RESTART_AFTER * (1 << (failed_starts - 1)) };
            output::note(&format!(
                "node {id}, pid {pid}, ended ({how}); it starts again in {away:?}"
            ));
            tokio::select! {
                () = sleep(away) => {}
                () = stopped(&mut stopping) => return Ok(()),
            }
        }
    }

    /// Starts the node, and waits until it has ended, by itself or because of the stop.
    async fn run(&self, mut stopping: watch::Receiver<bool>) -> io::Result<Ended> {
        let mut child = self.start()?;
        // The child reads it and ends with it (`serve.rs`): no node is left behind, whatever ends
        // this process. Taken, since `wait` would close it.
        let _until_this_ends = child.stdin.take();
        let log = child.stderr.take().expect("invariant: stderr is a pipe");
        let again = self.pid.swap(child.id().unwrap_or(0), Ordering::Relaxed) != 0;
        if again {
            output::note(&format!(
                "node {} runs again, pid {}",
                self.id,
                self.pid.load(Ordering::Relaxed)
            ));
        }
        let ended = async {
            let ended = tokio::select! {
                ended = child.wait() => Some(ended),
                () = stopped(&mut stopping) => None,
            };
            match ended {
                Some(ended) => ended,
                None => self.stop(&mut child).await,
            }
        };
        let (last_words, status) = tokio::join!(self.pass_on(log), ended);
        Ok(Ended { status: status?, last_words })
    }

    fn start(&self) -> io::Result<Child> {
        let mut command = Command::new(&self.program);
        command.args(&self.args);
        // Variables that are meant for other nodes are not meant for these.
        let others = std::env::vars_os().map(|(name, _)| name);
        for name in others.filter(|name| is_setting(&name.to_string_lossy())) {
            command.env_remove(name);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        // Ctrl-C comes here; then all nodes get SIGTERM.
        command.process_group(0).kill_on_drop(true).spawn()
    }

    async fn stop(&self, child: &mut Child) -> io::Result<ExitStatus> {
        // `id` has none where it has ended.
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM)?;
        }
        match timeout(STOPPED_WITHIN, child.wait()).await {
            Ok(ended) => ended,
            Err(_elapsed) => {
                output::note(&format!(
                    "node {} has not stopped in {STOPPED_WITHIN:?}: killed",
                    self.id
                ));
                child.kill().await?;
                child.wait().await
            }
        }
    }

    /// Passes on what the node logs, until it has ended; its last lines.
    async fn pass_on(&self, log: impl AsyncRead + Unpin) -> VecDeque<String> {
        let (mut log, mut last_words) = (BufReader::new(log), VecDeque::new());
        let mut line = Vec::new();
        // An error is the end, too.
        while let Ok(1..) = (&mut log).take(LINE_MAX).read_until(b'\n', &mut line).await {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            output::note(&with_node(self.id, self.log_format, &text));
            last_words.push_back(text);
            if last_words.len() > LAST_WORDS {
                last_words.pop_front();
            }
            line.clear();
        }
        last_words
    }
}

impl Ended {
    fn failure(&self, what: String) -> Failure {
        let words: Vec<&str> = self.last_words.iter().map(String::as_str).collect();
        let words = if words.is_empty() { "nothing".to_owned() } else { words.join("\n    ") };
        let message = format!("{what}; it said last:\n    {words}");
        match self.status.code() == Some(i32::from(USAGE)) {
            true => Failure::usage(message),
            false => Failure::failed(message),
        }
    }
}

/// Resolves when all are to stop, also when the sender is gone.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _sender_gone = stopping.wait_for(|stop| *stop).await;
}

/// Whether a variable has a setting of a node; what is logged is the same for all.
fn is_setting(variable: &str) -> bool {
    variable.starts_with("QUORATE_") && variable != "QUORATE_LOG"
}

/// A line of a node's log, with the node that wrote it.
fn with_node(id: u64, format: LogFormat, line: &str) -> String {
    match line.strip_prefix('{').filter(|_| format == LogFormat::Json) {
        Some(fields) => format!("{{\"node\":{id},{fields}"),
        None => format!("node {id}: {line}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_of_a_log_says_whose_it_is() {
        let json = with_node(2, LogFormat::Json, "{\"level\":\"WARN\"}");
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&json["node"], &json["level"]), (&2.into(), &"WARN".into()));
        assert_eq!(with_node(2, LogFormat::Json, "error: no"), "node 2: error: no");
        assert_eq!(with_node(3, LogFormat::Text, "WARN {x}"), "node 3: WARN {x}");
    }

    #[test]
    fn settings_of_other_nodes_are_kept_from_these() {
        assert!(is_setting("QUORATE_CONFIG") && is_setting("QUORATE_JOIN"));
        assert!(!is_setting("QUORATE_LOG") && !is_setting("RUST_LOG") && !is_setting("PATH"));
    }
}
