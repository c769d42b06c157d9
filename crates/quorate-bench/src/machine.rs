//! What the figures were measured on.

use std::path::Path;

use serde::Serialize;

/// Told with every result.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
    /// What was there before we began: other work falsifies everything.
    pub(crate) load_before: String,
    pub(crate) etcd: Option<String>,
    pub(crate) quorate: String,
}

impl Machine {
    pub(crate) fn look(quorate: &Path, etcd: Option<&Path>) -> Self {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let value = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_once(':').map_or("", |(_, value)| value).trim().to_owned()
        };
        let memory = value(&text("/proc/meminfo"), "MemTotal");
        let memory = memory.split(' ').next().and_then(|kib| kib.parse::<u64>().ok());
        let load = text("/proc/loadavg");
        Self {
            processor: value(&text("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: memory.unwrap_or_default() / 1024,
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            load_before: load.split(' ').take(1).collect(),
            etcd: etcd.map(version_of),
            quorate: version_of(quorate),
        }
    }

    pub(crate) fn line(&self) -> String {
        format!(
            "{}, {} cores, {} MiB, Linux {}, load before {}; {}{}",
            self.processor,
            self.cores,
            self.memory_mib,
            self.kernel,
            self.load_before,
            self.quorate,
            self.etcd.as_ref().map_or(String::new(), |etcd| format!("; {etcd}")),
        )
    }
}

/// The first line of `PROGRAM --version`.
fn version_of(program: &Path) -> String {
    let output = std::process::Command::new(program).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.ok().and_then(|text| text.lines().next().map(str::to_owned)).unwrap_or_default()
}
