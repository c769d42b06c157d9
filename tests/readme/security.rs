//! docs/security.md: its way "from nothing" is walked as a newcomer would, from an empty directory,
//! with its commands only.

use std::path::Path;
use std::process::Command;

use crate::blocks::blocks;
use crate::ports::Ports;
use crate::process::Running;
use crate::text_of;

/// All nodes end with the script, however that ends.
const BEGIN: &str = "set -eu\ntrap 'kill $(jobs -p); wait' EXIT\n";

#[test]
fn a_cluster_is_secured_from_nothing() {
    let text = text_of("docs/security.md");
    let shell = blocks(&text).into_iter().filter(|block| block.language == "sh");
    let commands: String = shell.map(|block| block.text).collect();
    assert!(commands.contains("certs init") && commands.contains("fetch orders"), "{commands}");
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
    let promises = ["spiffe://prod/node/3", "follower", "registered orders/orders-1"];
    for promised in promises.into_iter().chain(["node 4 is in, node 3 is out"]) {
        assert!(said.contains(promised), "the walk said no {promised:?}: {said}");
    }
    let fetched = said.split("ENDPOINTS").nth(1).unwrap();
    assert!(
        fetched.contains("orders-1") && fetched.contains("http=http://10.0.0.1:8080"),
        "{said}"
    );
    ports.are_free_again(&said);
}
