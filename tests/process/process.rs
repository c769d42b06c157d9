//! One run of the binary: its output goes into files, its end is waited for with a deadline, and
//! whatever happens to the test, it is gone when the test is. Kills nothing but what it started, by
//! its handle.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::eventually;

/// What is tested.
pub(crate) const THIS_RELEASE: &str = env!("CARGO_BIN_EXE_quorate");

/// A running (or finished) `quorate`.
pub(crate) struct Process {
    what: String,
    child: Child,
}

impl Process {
    /// Starts `quorate ARGS`, appending to the two files. Nothing of our own environment reaches
    /// it.
    pub(crate) fn start<I, S>(args: I, stdout: &Path, stderr: &Path) -> Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let args: Vec<_> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        Self::start_as(Path::new(THIS_RELEASE), &args, stdout, stderr)
    }

    /// The same with this binary.
    pub(crate) fn start_as<S: AsRef<OsStr> + std::fmt::Debug>(
        binary: &Path,
        args: &[S],
        stdout: &Path,
        stderr: &Path,
    ) -> Self {
        let mut command = Command::new(binary);
        command.args(args).env_clear().env("RUST_BACKTRACE", "1");
        Self::spawn(command, format!("{} {args:?}", binary.display()), stdout, stderr)
    }

    /// The same with variables that a supervisor sets.
    pub(crate) fn start_supervised(
        variables: &[(&str, String)],
        args: &[String],
        output: &Path,
    ) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.args(args).env_clear().envs(variables.iter().map(|(name, value)| (name, value)));
        Self::spawn(command, format!("quorate {args:?}"), output, output)
    }

    /// The same under a limit of the shell's.
    pub(crate) fn start_limited(ulimit: &str, args: &[String], output: &Path) -> Self {
        let mut command = Command::new("/bin/sh");
        let script = format!("ulimit {ulimit} && exec \"$0\" \"$@\"");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_quorate")]).args(args);
        command.env_clear().env("RUST_BACKTRACE", "1");
        Self::spawn(command, format!("quorate {args:?}"), output, output)
    }

    /// Starts another program that belongs to us, with the nodes' addresses.
    pub(crate) fn start_other(program: &Path, nodes: &str, stdout: &Path, stderr: &Path) -> Self {
        let mut command = Command::new(program);
        command.env_clear().env("QUORATE_NODES", nodes);
        Self::spawn(command, program.display().to_string(), stdout, stderr)
    }

    /// Starts a program that is not of ours.
    pub(crate) fn start_foreign(program: &Path, args: &[String], output: &Path) -> Self {
        let mut command = Command::new(program);
        command.args(args).env_clear();
        Self::spawn(command, format!("{} {args:?}", program.display()), output, output)
    }

    fn spawn(mut command: Command, what: String, stdout: &Path, stderr: &Path) -> Self {
        let command = command.stdin(Stdio::null());
        let command = command.stdout(append_to(stdout)).stderr(append_to(stderr));
        Self { what, child: command.spawn().expect("the binary starts") }
    }

    /// kill -9, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a child can be waited for");
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("a child can be signalled");
    }

    /// SIGSTOP. Returns when it stands still: until each of its threads has run next and seen the
    /// signal, it answers.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
        let tasks = format!("/proc/{}/task", self.pid());
        let until = Instant::now() + Duration::from_secs(20);
        while !all_stopped(&tasks).unwrap_or(false) {
            assert!(Instant::now() < until, "{} does not stop", self.what);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn pid(&self) -> i32 {
        Pid::from_child(&self.child).as_raw_nonzero().get()
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be asked")
    }

    /// Waits until it has ended by itself; its exit code.
    pub(crate) async fn exit_code(&mut self, within: Duration) -> i32 {
        let what = format!("the end of {}", self.what);
        let status = eventually(&what, within, || {
            let ended = self.ended();
            async move { ended.ok_or("it runs") }
        })
        .await;
        status.code().unwrap_or_else(|| panic!("{}: {status}", self.what))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // Also ends one that is paused.
            let _gone_meanwhile = self.child.kill();
            let _nothing_to_do = self.child.wait();
        }
    }
}

/// Whether the kernel says of each of these threads that it was stopped.
fn all_stopped(tasks: &str) -> std::io::Result<bool> {
    for task in std::fs::read_dir(tasks)? {
        let stat = std::fs::read_to_string(task?.path().join("stat"))?;
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        if state != Some('T') {
            return Ok(false);
        }
    }
    Ok(true)
}

fn append_to(path: &Path) -> File {
    OpenOptions::new().create(true).append(true).open(path).expect("the output file can be opened")
}

/// What a file holds now.
pub(crate) fn text_of(path: &PathBuf) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}
