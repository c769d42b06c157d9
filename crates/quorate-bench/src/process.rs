//! A child process, and what /proc says of it. Ends nothing but what it started, by its handle.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

/// A running child. It is gone when this value is; and where `setpriv` is, when we are, even by
/// SIGKILL.
pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// Starts `program args`, appending both outputs to `log`. Of our own environment it gets
    /// nothing but PATH.
    pub(crate) fn start(program: &Path, args: &[String], log: &Path) -> Result<Self> {
        let mut command = if ended_with_us() {
            let mut command = Command::new(ENDED_WITH_US[0]);
            command.args(&ENDED_WITH_US[1..]).arg(program);
            command
        } else {
            Command::new(program)
        };
        let child = command
            .args(args)
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .stdin(Stdio::null())
            .stdout(append_to(log)?)
            .stderr(append_to(log)?)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        Ok(Self { child })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// kill -9, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        // Fails only where it has ended by itself.
        let _gone_already = self.child.kill();
        let _nothing_to_do = self.child.wait();
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal).context("signalling a child")
    }

    /// True until it has ended.
    pub(crate) fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.runs() {
            self.kill();
        }
    }
}

/// Becomes the program behind it, which the kernel kills when the thread that started it ends: one
/// of the runtime's, so when we do. Of util-linux.
const ENDED_WITH_US: [&str; 3] = ["setpriv", "--pdeathsig", "KILL"];

/// Whether this machine has it.
fn ended_with_us() -> bool {
    static THERE: OnceLock<bool> = OnceLock::new();
    *THERE.get_or_init(|| {
        let mut command = Command::new(ENDED_WITH_US[0]);
        command.args(&ENDED_WITH_US[1..]).arg("true").stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    })
}

fn append_to(path: &Path) -> Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.with_context(|| format!("opening {}", path.display()))
}

/// A clock tick of /proc/PID/stat: USER_HZ, 100 on every Linux that we know of.
const TICK: Duration = Duration::from_millis(10);

/// Processor time that a process (all of its threads) has used.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let text = read(pid, "stat")?;
    // "PID (NAME) STATE ...": the name may hold anything, so count from behind its parenthesis.
    let (_, fields) = text.rsplit_once(')').context("/proc/PID/stat has a name")?;
    let mut fields = fields.split_whitespace().skip(11).map(str::parse::<u32>);
    let (Some(Ok(user)), Some(Ok(system))) = (fields.next(), fields.next()) else {
        anyhow::bail!("/proc/{pid}/stat cannot be read: {text}");
    };
    Ok(TICK * (user + system))
}

/// What a process holds of the machine's memory, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// VmRSS: with the pages of files that it has mapped, its own program among them.
    pub(crate) resident: u64,
    /// RssAnon: without those, which the kernel can drop.
    pub(crate) anonymous: u64,
    /// VmHWM: the most that was resident since it started.
    pub(crate) peak: u64,
}

pub(crate) fn memory(pid: u32) -> Result<Memory> {
    let text = read(pid, "status")?;
    let bytes = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name));
        let kib = value.and_then(|value| value.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.map(|kib| kib * 1024).with_context(|| format!("no {name} in /proc/{pid}/status"))
    };
    Ok(Memory { resident: bytes("VmRSS:")?, anonymous: bytes("RssAnon:")?, peak: bytes("VmHWM:")? })
}

fn read(pid: u32, file: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{file}");
    std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_process_is_understood() {
        let me = std::process::id();
        let begun = cpu_time(me).unwrap();
        let mut turns = 0_u64;
        // Fails by never ending if processor time does not grow.
        while cpu_time(me).unwrap() < begun + 3 * TICK {
            turns += 1;
        }
        assert!(turns > 0);
        let Memory { resident, anonymous, peak } = memory(me).unwrap();
        assert!(anonymous > 10_000 && resident > anonymous, "{resident} {anonymous}");
        assert!(peak >= resident / 2, "{resident} {peak}");
    }
}
