//! docs/http.md: what it shows of each language is run against `quorate dev`, as it stands there. A
//! language that is not on this machine is left out, and said.

use std::process::Command;

use crate::blocks::blocks;
use crate::operations::says;
use crate::ports::Ports;
use crate::process::Running;
use crate::skipped::skipped;
use crate::story::quorate;
use crate::text_of;

const PAGE: &str = "docs/http.md";
/// How the blocks of a language are run: the file, and the command; and what they say.
const LANGUAGES: [(&str, &str, &[&str], &[&str]); 4] = [
    ("sh", "lines.sh", &["bash", "-e"], &["\"lease_id\"", "event: snapshot", "\"removed\":1"]),
    ("python", "lines.py", &["python3"], &["'py'", "follows event: snapshot"]),
    ("js", "lines.mjs", &["node"], &["'js'", "follows"]),
    ("go", "lines.go", &["go", "run"], &["{go}", "follows"]),
];

#[test]
fn each_language_of_the_page_on_http_works_as_it_stands_there() {
    let (ports, directory) = (Ports::free(), tempfile::tempdir().unwrap());
    let mut dev = quorate(ports);
    dev.args(["dev", "--listen", &ports.substituted("127.0.0.1:7001")]);
    let mut dev = Running::start(dev, directory.path(), "dev");
    dev.wait_for("Quorate is ready.");
    let mut left: Vec<_> = LANGUAGES.iter().map(|(language, ..)| *language).collect();
    for block in blocks(&text_of(PAGE)) {
        let what = format!("{PAGE}:{}", block.line);
        let known = LANGUAGES.iter().find(|(language, ..)| *language == block.language);
        let (language, file, command, promises) =
            known.unwrap_or_else(|| panic!("{what}: no test runs blocks of {:?}", block.language));
        left.retain(|other| other != language);
        if let Err(reason) = there(command[0]) {
            skipped(format!("{PAGE} in {language}"), reason);
            continue;
        }
        std::fs::write(directory.path().join(file), ports.substituted(&block.text)).unwrap();
        let mut program = Command::new(command[0]);
        program.args(&command[1..]).arg(file).current_dir(directory.path());
        let said = Running::start(program, directory.path(), &format!("of-{language}")).succeed();
        says(&said, promises);
    }
    assert!(left.is_empty(), "{PAGE} shows nothing in {left:?}");
}

fn there(program: &str) -> Result<(), String> {
    // Go has no `--version`.
    let version = if program == "go" { "version" } else { "--version" };
    let asked = Command::new(program).arg(version).output();
    asked.map(drop).map_err(|error| format!("{program}: {error}"))
}
