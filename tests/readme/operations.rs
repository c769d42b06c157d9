//! docs/operations.md: its runbooks are walked one after the other, with their own commands only.
//! Three of them need a cluster that is not as in the others, and are walked by themselves.

#[path = "clock.rs"]
mod clock;
#[path = "ended.rs"]
mod ended;
#[path = "full.rs"]
mod full;

use std::path::Path;
use std::process::Command;

use crate::blocks::blocks;
use crate::ports::Ports;
use crate::process::Running;
use crate::text_of;

/// All nodes end with the script, however that ends. Some of its jobs have ended before.
const BEGIN: &str = "set -eu\ntrap 'kill $(jobs -p) 2> /dev/null || true; wait' EXIT\n";

const TRY: &str = "Three nodes to try it with";
const CLOCK: &str = "A wrong clock";
const FULL: &str = "A full disk";
const ENDED: &str = "Certificates that have ended";

/// The shell commands of docs/operations.md below the headings that are wanted.
fn commands(wanted: impl Fn(&str) -> bool) -> String {
    let text = text_of("docs/operations.md");
    let sections = text
        .split("\n## ")
        .skip(1)
        .filter(|section| wanted(section.lines().next().expect("split gives a line")));
    let shell = sections.flat_map(blocks).filter(|block| block.language == "sh");
    let commands: String = shell.map(|block| block.text).collect();
    assert!(!commands.is_empty(), "they are found");
    commands
}

/// A script of these commands, with these ports.
pub(crate) fn script(commands: &str, ports: Ports) -> String {
    format!("{BEGIN}{}", ports.substituted(commands))
}

/// A script of these commands, with these ports, under way in a directory.
fn walk(commands: &str, ports: Ports, directory: &Path) -> Running {
    // The function puts the last digit behind these.
    let tens = |port: u16| format!("{}$1", ports.of(port) / 10);
    let commands = commands.replace("700$1", &tens(7_000)).replace("710$1", &tens(7_100));
    std::fs::write(directory.join("commands.sh"), script(&commands, ports)).unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_quorate")).parent().unwrap();
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
    let mut bash = Command::new("bash");
    bash.arg("commands.sh").current_dir(directory);
    bash.env("PATH", path).env("HOME", directory);
    Running::start(bash, directory, "walk")
}

pub(crate) fn says(said: &str, promises: &[&str]) {
    for promised in promises {
        assert!(said.contains(promised), "the walk said no {promised:?}: {said}");
    }
}

#[test]
fn whatever_is_lost_there_is_a_way_back() {
    let commands = commands(|heading| ![CLOCK, FULL, ENDED].contains(&heading));
    let (ports, directory) = (Ports::free(), tempfile::tempdir().unwrap());
    let said = walk(&commands, ports, directory.path()).succeed();
    says(
        &said,
        &[
            "the cluster stays at level 1",
            "the cluster is at level 1, and is held there",
            "the cluster is at level 1, the highest that every member works at",
            "OK: node",
            "DEGRADED: 2 of 3 voters answer: all goes on, and so it does with 0 more down",
            "exit code 1",
            "WARNING (quorum): node 3 does not answer; 0 more may fail before writes stop",
            "doctor: exit code 1",
            "node 4 is in, node 3 is out",
            "NO QUORUM: 1 of 3 voters answer, 2 are needed",
            "exit code 2",
            "may be lost: what was acknowledged by nodes 2, 4",
            "nothing was changed",
            "node-1 is a new cluster",
            "node 6 does not start",
            "node 7 is in, node 6 is out",
            "checksums verified",
            "node-8 is a new cluster",
            "problem.tar: 5 files",
            "logs/2-node-9.log",
        ],
    );
    let fetched = said.matches("orders-1").count();
    assert_eq!(fetched, 4, "registered, and there after each of three losses: {said}");
    ports.are_free_again(&said);
}
