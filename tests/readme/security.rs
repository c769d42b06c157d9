//! docs/security.md is walked as a newcomer would, from an empty directory, with its commands only:
//! from nothing to a cluster, then all that is rotated, then all that is revoked.

use std::path::Path;
use std::process::Command;

use crate::blocks::blocks;
use crate::ports::Ports;
use crate::process::Running;
use crate::text_of;

/// All nodes end with the script, however that ends.
const BEGIN: &str = "set -eu\ntrap 'kill $(jobs -p); wait' EXIT\n";

#[test]
fn a_cluster_is_secured_from_nothing_rotated_and_revoked() {
    let text = text_of("docs/security.md");
    let shell = blocks(&text).into_iter().filter(|block| block.language == "sh");
    let commands: String = shell.map(|block| block.text).collect();
    assert!(commands.contains("certs init") && commands.contains("fetch orders"), "{commands}");
    let ports = Ports::free();
    // The function puts the last digit behind these.
    let tens = |port: u16| format!("{}$1", ports.of(port) / 10);
    let commands = commands.replace("700$1", &tens(7_000)).replace("710$1", &tens(7_100));
    // The authority is not on the node's machine: the name of that is in the certificate.
    let (local, named) =
        ("quorate certs node 2\n", "quorate certs node 2 --host 127.0.0.1 --host n2\n");
    assert!(commands.contains(local), "{commands}");
    let commands = commands.replacen(local, named, 1);
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
    let later = [
        "node 4 is in, node 3 is out",
        "certs-new/node-4.crt",
        "it cannot connect",
        "it is not believed",
    ];
    for promised in promises.into_iter().chain(later) {
        assert!(said.contains(promised), "the walk said no {promised:?}: {said}");
    }
    let reissued = said.lines().find(|line| line.starts_with("certs-new/node-2.crt"));
    let reissued = reissued.expect("the new authority issued it");
    assert!(reissued.contains("called as 127.0.0.1, n2 (as the one before)"), "{reissued}");
    // What is revoked is refused for that, and in this order: a token, a certificate.
    let errors = file_text(&directory.path().join("walk.err"));
    let words = ["the credential is not known here", "certificate has been revoked"];
    let at = words.map(|words| errors.rfind(words).unwrap_or_else(|| panic!("{words}: {errors}")));
    assert!(at[0] < at[1], "{errors}");
    assert!(errors.contains("the node's certificate has been revoked"), "{errors}");
    let logs = [1, 2].map(|id| file_text(&directory.path().join(format!("node-{id}.log"))));
    for (id, used) in [(1, 6), (2, 5)] {
        let found = logs[id - 1].matches("new certificates are in use").count();
        assert!(found >= used, "node {id} used {found} sets: {}", logs[id - 1]);
    }
    let fetched = said.split("ENDPOINTS").nth(1).unwrap();
    assert!(
        fetched.contains("orders-1") && fetched.contains("http=http://10.0.0.1:8080"),
        "{said}"
    );
    ports.are_free_again(&said);
}

fn file_text(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned()
}
