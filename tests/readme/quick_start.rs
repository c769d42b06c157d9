//! docs/quick-start.md: its commands are run as its reader would, in one shell and an empty
//! directory, and its programs in other languages are run by them. Only what installs their
//! libraries is done by `.ci/install-foreign` instead; where that cannot, this language is left
//! out, and said.

use std::path::Path;
use std::process::Command;

use crate::blocks::{Block, blocks};
use crate::built::{installed, root};
use crate::operations::{says, script};
use crate::ports::Ports;
use crate::process::Running;
use crate::skipped::skipped;
use crate::story::shown_part;
use crate::text_of;

const PAGE: &str = "docs/quick-start.md";
/// What comes before. Here cargo has built the binary, and an empty directory is there.
const BEFORE: &str = "\
$ cargo build --release
$ export PATH=\"$PWD/target/release:$PATH\" PROTO=\"$PWD/proto\"
$ mkdir /tmp/quick-start && cd /tmp/quick-start
";
/// The program of a language, by the name of its blocks: how `.ci/install-foreign` calls it, where
/// its libraries are looked for, and what its commands begin with.
const FOREIGN: [(&str, &str, &str, [&str; 2]); 2] = [
    ("python", "python", "PYTHONPATH", ["pip install", "python3 "]),
    ("javascript", "node", "NODE_PATH", ["npm install", "node "]),
];

/// How the program in Python ends; and before that, the node hangs that it talks to: it stays
/// registered for longer than its TTL of 3 s.
const ENDS: &str = "kill $! && wait $!\ncat orders.log\n";
const HANGS: &str = r#"
node_1=$(sed -n 's/^ *node 1 .* pid \([0-9]*\).*/\1/p' dev.log)
kill -STOP $node_1
export others=127.0.0.1:7002,127.0.0.1:7003
quorate register orders orders-short --endpoint http=http://10.0.0.9:80 --ttl 4s --once --nodes $others
until quorate fetch orders --nodes $others > fetched && ! grep -q orders-short fetched; do sleep 0.2; done
kill -CONT $node_1
grep orders-python fetched || { echo "its registration has ended"; exit 1; }
"#;

#[test]
fn every_command_and_program_of_the_quick_start_works() {
    // Its web server and its caller.
    if let Some(reason) = ["python3", "curl"].into_iter().find_map(|name| there(name).err()) {
        return skipped("the quick start", reason);
    }
    let page = text_of(PAGE);
    let (ports, directory) = (Ports::free(), tempfile::tempdir().unwrap());
    let mut commands = Vec::new();
    let mut bash = Command::new("bash");
    for block in blocks(&page) {
        match block.language.as_str() {
            "sh" => commands.push(block.text),
            "rust,ignore" => {
                let shown = shown_part(&text_of("cluster-examples/readme.rs"));
                assert_eq!(block.text, shown, "{PAGE}:{}: README's lines are others", block.line);
            }
            "console" => assert_eq!(block.text, BEFORE, "what this test has in its place"),
            // What goes into another project.
            "toml" => {
                assert!(block.text.contains(&format!("git = {:?}", env!("CARGO_PKG_REPOSITORY"))))
            }
            language => place(&block, language, ports, directory.path()),
        }
    }
    let mut promises = vec![
        "OK: node",
        "registered orders/orders-1",
        "http=http://10.0.0.1:8080",
        "quorate_raft_has_leader 1",
        "http=http://127.0.0.1:",
        "the program's own exit code: 143",
        "\"id\":\"orders-curl\"",
        "\"removed\":1",
    ];
    for (language, name, variable, [install, run]) in FOREIGN {
        match libraries(name) {
            Ok(home) => {
                bash.env(variable, if name == "node" { home + "/node_modules" } else { home });
                promises.push(if name == "node" { "there is orders-1" } else { "deregistered" });
                commands.iter_mut().for_each(|block| *block = without(block, install));
            }
            Err(reason) => {
                skipped(format!("the quick start in {language}"), reason);
                let is_of_it = |line: &str| line.starts_with(install) || line.starts_with(run);
                commands.retain(|block| !block.lines().any(is_of_it));
            }
        }
    }
    let dev = format!("quorate dev --listen 127.0.0.1:{}", ports.of(7_001));
    let commands = commands.concat().replace("quorate dev", &dev);
    let commands = commands.replace(ENDS, &format!("{HANGS}{ENDS}"));
    std::fs::write(directory.path().join("commands.sh"), script(&commands, ports)).unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_quorate")).parent().unwrap();
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
    bash.arg("commands.sh").current_dir(directory.path()).env("PATH", path);
    bash.env("PROTO", root().join("proto")).env("QUORATE_NODES", ports.nodes());
    // None of the developer's own.
    bash.env("QUORATE_CONTEXT", "");
    let said = Running::start(bash, directory.path(), "quick-start").succeed();
    says(&said, &promises);
    ports.are_free_again(&said);
}

/// Writes a program into the file that its first line names.
fn place(block: &Block, language: &str, ports: Ports, directory: &Path) {
    let what = format!("{PAGE}:{}", block.line);
    let known = FOREIGN.iter().any(|(name, ..)| *name == language);
    assert!(known, "{what}: no test runs blocks of {language:?}");
    let first = block.text.lines().next().unwrap_or_default();
    let name = first.strip_prefix("# ").or_else(|| first.strip_prefix("// "));
    let name = name.unwrap_or_else(|| panic!("{what}: its first line names no file"));
    std::fs::write(directory.join(name), ports.substituted(&block.text)).unwrap();
}

fn without(commands: &str, begin: &str) -> String {
    let kept = commands.lines().filter(|line| !line.starts_with(begin));
    kept.flat_map(|line| [line, "\n"]).collect()
}

fn there(program: &str) -> Result<(), String> {
    let ran = Command::new(program).arg("--version").output();
    ran.map(drop).map_err(|error| format!("{program}: {error}"))
}

/// Where a language's libraries were installed; why they cannot be, otherwise.
fn libraries(name: &str) -> Result<String, String> {
    there(if name == "node" { "npm" } else { "python3" })?;
    installed(".ci/install-foreign", &[name])
}
