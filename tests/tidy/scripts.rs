//! Programs in other languages than Rust can be read by what runs them: many are started seldom.

use std::fs::{self, File};
use std::process::{Command, Stdio};

use crate::no_faults;
use crate::skipped::skipped;
use crate::sources::{paths, root};

/// Modules for a browser. No package.json says so to `node`, which would not know `import`.
const CONSOLE: &str = "crates/quorate-node/console/";
/// What finds more than a parser: a `return` that is in no function.
const COMPILE: &str =
    "import sys; path = sys.argv[1]; compile(open(path, 'rb').read(), path, 'exec')";

/// The programs of a language: by their names, or by what they say that runs them.
fn programs(ending: &str, interpreter: &str) -> Vec<String> {
    let mut all = paths();
    all.retain(|path| {
        let (_, name) = path.rsplit_once('/').unwrap_or(("", path));
        path.ends_with(ending) || !name.contains('.') && is_run_by(interpreter, path)
    });
    all
}

fn is_run_by(interpreter: &str, path: &str) -> bool {
    let begin = format!("#!/usr/bin/env {interpreter}\n");
    fs::read(root().join(path)).unwrap().starts_with(begin.as_bytes())
}

/// Fails with what an interpreter says of programs that it cannot read, `at_least` in all.
fn read_by(
    interpreter: &str,
    programs: &[String],
    at_least: usize,
    read: impl Fn(&mut Command, &str),
) {
    assert!(programs.len() >= at_least, "for {interpreter}: {programs:?}");
    if let Err(error) = Command::new(interpreter).arg("--version").output() {
        return skipped(format!("what {interpreter} runs can be read"), error);
    }
    let mut faults = Vec::new();
    for path in programs {
        let mut command = Command::new(interpreter);
        read(command.current_dir(root()), path);
        let output = command.output().unwrap();
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            faults.push(format!("{path}: {interpreter} cannot read it:\n{said}"));
        }
    }
    no_faults(&faults);
}

#[test]
fn each_script_can_be_read() {
    read_by("bash", &programs(".sh", "bash"), 20, |bash, path| {
        bash.args(["-n", path]);
    });
    read_by("python3", &programs(".py", "python3"), 4, |python, path| {
        python.args(["-c", COMPILE, path]);
    });
    read_by("node", &programs(".js", "node"), 35, |node, path| {
        match path.starts_with(CONSOLE) {
            true => node.args(["--check", "--input-type=module"]).stdin(file(path)),
            false => node.args(["--check", path]),
        };
    });
}

fn file(path: &str) -> Stdio {
    File::open(root().join(path)).unwrap().into()
}
