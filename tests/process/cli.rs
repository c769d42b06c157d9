//! The binary's client commands, as a script runs them: arguments in, exit code and output out.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Process, text_of};
use crate::wait::eventually;

/// How long a command goes on trying, if it does not say it: an election on a busy machine may take
/// longer than the 5 s that it would give itself.
const TIMEOUT: [&str; 2] = ["--timeout", "20s"];
/// No command takes longer than that and a little, also on a loaded machine.
const COMMAND_WITHIN: Duration = Duration::from_secs(40);

/// What came of a command.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "exit code; stdout:\n{}\nstderr:\n{}", self.out, self.err);
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }

    /// That the message says all of this.
    #[track_caller]
    pub(crate) fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.err.contains(word), "no \"{word}\" in: {}", self.err);
        }
        self
    }
}

/// Runs `quorate ARGS` to its end.
pub(crate) async fn quorate<S: AsRef<str>>(args: &[S]) -> Ran {
    let mut running = Running::start(args);
    let code = running.process.exit_code(COMMAND_WITHIN).await;
    Ran { code, out: running.out(), err: running.err() }
}

/// `quorate ARGS... --nodes NODES`, ARGS written as on a command line.
pub(crate) async fn ask(nodes: &str, line: &str) -> Ran {
    let mut args = args_of(nodes, line);
    if !args.iter().any(|arg| arg == TIMEOUT[0]) {
        args.extend(TIMEOUT.map(str::to_owned));
    }
    quorate(&args).await
}

fn args_of(nodes: &str, line: &str) -> Vec<String> {
    line.split_whitespace().chain(["--nodes", nodes]).map(str::to_owned).collect()
}

/// A command that goes on until it is stopped.
pub(crate) struct Running {
    pub(crate) process: Process,
    dir: TempDir,
}

impl Running {
    pub(crate) fn start<S: AsRef<str>>(args: &[S]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (out, err) = (dir.path().join("out"), dir.path().join("err"));
        let args = args.iter().map(AsRef::as_ref);
        Self { process: Process::start(args, &out, &err), dir }
    }

    pub(crate) fn ask(nodes: &str, line: &str) -> Self {
        Self::start(&args_of(nodes, line))
    }

    pub(crate) fn out(&self) -> String {
        text_of(&self.dir.path().join("out"))
    }

    pub(crate) fn err(&self) -> String {
        text_of(&self.dir.path().join("err"))
    }

    /// The whole lines until now, as JSON.
    pub(crate) fn json_lines(&self) -> Vec<Value> {
        let out = self.out();
        let whole = out.rfind('\n').map_or("", |end| &out[..end]);
        whole.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect()
    }

    /// Waits for a line that is wanted; all lines up to then.
    pub(crate) async fn until(
        &self,
        what: &str,
        within: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Vec<Value> {
        eventually(what, within, || {
            let lines = self.json_lines();
            let found = lines.iter().any(&wanted);
            let seen = format!("lines: {lines:?}, stderr: {}", self.err());
            async move { if found { Ok(lines) } else { Err(seen) } }
        })
        .await
    }

    /// Ctrl-C.
    pub(crate) async fn interrupt(mut self) -> Ran {
        self.process.signal(Signal::INT);
        let code = self.process.exit_code(COMMAND_WITHIN).await;
        Ran { code, out: self.out(), err: self.err() }
    }
}
