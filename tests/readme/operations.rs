//! docs/operations.md: its runbooks are walked one after the other, with their own commands only.

use std::path::Path;
use std::process::Command;

use crate::blocks::blocks;
use crate::ports::Ports;
use crate::process::Running;
use crate::text_of;

/// All nodes end with the script, however that ends. Some of its jobs have ended before.
const BEGIN: &str = "set -eu\ntrap 'kill $(jobs -p) 2> /dev/null || true; wait' EXIT\n";

#[test]
fn whatever_is_lost_there_is_a_way_back() {
    let text = text_of("docs/operations.md");
    let shell = blocks(&text).into_iter().filter(|block| block.language == "sh");
    let commands: String = shell.map(|block| block.text).collect();
    let ports = Ports::free();
    // The function puts the last digit behind these.
    let tens = |port: u16| format!("{}$1", ports.of(port) / 10);
    let commands = commands.replace("700$1", &tens(7_000)).replace("710$1", &tens(7_100));
    let directory = tempfile::tempdir().unwrap();
    let script = format!("{BEGIN}{}", ports.substituted(&commands));
    std::fs::write(directory.path().join("commands.sh"), script).unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_quorate")).parent().unwrap();
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
    let mut bash = Command::new("bash");
    bash.arg("commands.sh").current_dir(directory.path());
    bash.env("PATH", path).env("HOME", directory.path());
    let said = Running::start(bash, directory.path(), "walk").succeed();
    for promised in [
        "OK: node",
        "DEGRADED: 2 of 3 voters answer: all goes on, and so it does with 0 more down",
        "exit code 1",
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
    ] {
        assert!(said.contains(promised), "the walk said no {promised:?}: {said}");
    }
    let fetched = said.matches("orders-1").count();
    assert_eq!(fetched, 4, "registered, and there after each of three losses: {said}");
    assert!(ports.all_free(), "a node is left over: {said}");
}
