//! One running command: its output goes into files, every wait has a deadline, and it is gone when
//! the test is. Signals nothing but what it started, by its process id.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Nothing that is waited for takes longer on a slow, busy machine. Open connections, for one, are
/// looked at once a minute.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A running (or finished) command.
pub(crate) struct Running {
    what: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Running {
    /// Starts a command; its output goes to `NAME.out` and `NAME.err` in `directory`.
    pub(crate) fn start(mut command: Command, directory: &Path, name: &str) -> Self {
        let stdout = directory.join(format!("{name}.out"));
        let stderr = directory.join(format!("{name}.err"));
        let what = format!("{command:?}");
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(&stdout).unwrap())
            .stderr(File::create(&stderr).unwrap())
            .spawn()
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        Self { what, child, stdout, stderr }
    }

    /// What it has written to stdout until now.
    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.stdout).unwrap()).into_owned()
    }

    /// What it has written until now.
    pub(crate) fn output(&self) -> String {
        let stderr = String::from_utf8_lossy(&std::fs::read(&self.stderr).unwrap()).into_owned();
        self.stdout() + &stderr
    }

    /// Waits until its output has `text`; it may not end before.
    pub(crate) fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Asked before the output is read: what it wrote before its end is seen.
            let ended = self.child.try_wait().unwrap();
            if self.output().contains(text) {
                return;
            }
            let waited = format!("{} did not write {text:?}", self.what);
            assert!(ended.is_none(), "{waited} and ended: {}", self.output());
            assert!(Instant::now() < deadline, "{waited}: {}", self.output());
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Whether it has not ended; then waits a moment.
    pub(crate) fn goes_on(&mut self) -> bool {
        let goes_on = self.child.try_wait().unwrap().is_none();
        if goes_on {
            std::thread::sleep(LOOK_EVERY);
        }
        goes_on
    }

    /// Fails where it has ended; else waits a moment.
    pub(crate) fn is_running(&mut self) {
        let ended = self.child.try_wait().unwrap();
        assert!(ended.is_none(), "{} ended: {}", self.what, self.output());
        std::thread::sleep(LOOK_EVERY);
    }

    /// Waits for its end, which has to be a good one; what it wrote to stdout.
    pub(crate) fn succeed(&mut self) -> String {
        let status = self.end();
        assert!(status.success(), "{}: {status}: {}", self.what, self.output());
        self.stdout()
    }

    /// Waits for its end.
    pub(crate) fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "{} does not end: {}", self.what, self.output());
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Sends SIGINT (as Ctrl-C does) or SIGTERM.
    pub(crate) fn signal(&self, signal: &str) {
        let kill = format!("kill -{signal} {}", self.child.id());
        let sent = Command::new("sh").args(["-c", &kill]).status().unwrap();
        assert!(sent.success(), "{}: no longer there: {}", self.what, self.output());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // A script has children of its own, which it stops when it gets the signal.
            let kill = format!("kill -TERM {}", self.child.id());
            let _gone_meanwhile = Command::new("sh").args(["-c", &kill]).status();
            let deadline = Instant::now() + Duration::from_secs(15);
            while let Ok(None) = self.child.try_wait() {
                if Instant::now() > deadline {
                    let _gone_meanwhile = self.child.kill();
                    let _nothing_to_do = self.child.wait();
                    return;
                }
                std::thread::sleep(LOOK_EVERY);
            }
        }
    }
}
