//! `quorate --context`: clusters by name, in a file of the user's.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Output};

use tempfile::TempDir;

const FILE: &str = r#"
default = "here"

[contexts.here]
nodes = "127.0.0.1:9"

[contexts.there]
nodes = ["127.0.0.1:10", "127.0.0.1:11"]
ca = "there.crt"

[contexts.far]
nodes = "192.0.2.1:9"
"#;

const NODES: &[(&str, &str)] =
    &[("QUORATE_NODES", "127.0.0.1:13"), ("QUORATE_CONTEXT", "there"), ("QUORATE_CA", "")];
const CREDENTIALS: &[(&str, &str)] = &[
    ("QUORATE_CA", "mine.crt"),
    ("QUORATE_CERT", "mine.crt"),
    ("QUORATE_KEY", "mine.key"),
    ("QUORATE_TOKEN_FILE", "mine.token"),
];
const TOKEN: &[(&str, &str)] = &[("QUORATE_TOKEN", "qrt_canary"), ("QUORATE_NODES", "192.0.2.1:9")];
const BOTH: &[(&str, &str)] = &[("QUORATE_NODES", "127.0.0.1:13"), ("QUORATE_CONTEXT", "here")];

fn home(file: Option<&str>) -> TempDir {
    let home = tempfile::tempdir().unwrap();
    if let Some(file) = file {
        let dir = home.path().join(".config/quorate");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("config.toml"), file).unwrap();
    }
    home
}

/// Exit code and stderr.
fn run(home: &TempDir, line: &str, variables: &[(&str, &str)]) -> (i32, String) {
    let mut quorate = Command::new(env!("CARGO_BIN_EXE_quorate"));
    quorate.args(line.split(' ')).env_clear().env("HOME", home.path());
    let Output { status, stderr, .. } = quorate.envs(variables.iter().copied()).output().unwrap();
    (status.code().unwrap(), String::from_utf8_lossy(&stderr).into_owned())
}

#[test]
fn a_context_says_where_the_cluster_is_and_flags_and_variables_win() {
    let home = home(Some(FILE));
    let services = "services --timeout 100ms";
    for (line, variables, code, words) in [
        (services.to_owned(), &[] as &[_], 3, "tried 127.0.0.1:9 ("),
        (format!("{services} --nodes 127.0.0.1:12"), &[], 3, "tried 127.0.0.1:12 ("),
        (services.to_owned(), &[("QUORATE_NODES", "127.0.0.1:13")], 3, "tried 127.0.0.1:13 ("),
        (format!("{services} --context there"), &[], 2, "there.crt: No such file"),
        (format!("--context there {services}"), &[], 2, ".config/quorate/there.crt: No such file"),
        (services.to_owned(), &[("QUORATE_CONTEXT", "there")], 2, "there.crt: No such file"),
        (format!("{services} --context nowhere"), &[], 2, "there are: far, here, there"),
        // What was exported for another cluster is not for the one that is named.
        (format!("{services} --context here"), NODES, 3, "tried 127.0.0.1:9 ("),
        (format!("--context here {services}"), NODES, 3, "tried 127.0.0.1:9 ("),
        (
            format!("{services} --context here --nodes 127.0.0.1:12"),
            NODES,
            3,
            "tried 127.0.0.1:12 (",
        ),
        (services.to_owned(), BOTH, 3, "tried 127.0.0.1:13 ("),
        // Nor are credentials, where it has none: a token goes to no other machine without TLS.
        (services.to_owned(), CREDENTIALS, 2, "mine.token: No such file"),
        (format!("{services} --context here"), CREDENTIALS, 3, "tried 127.0.0.1:9 ("),
        (format!("{services} --context here --ca my.crt"), CREDENTIALS, 2, "my.crt: No such file"),
        (services.to_owned(), TOKEN, 2, "--allow-plaintext-token"),
        (format!("{services} --context far"), TOKEN, 3, "tried 192.0.2.1:9 ("),
        ("certs node x --context there".to_owned(), &[], 2, "unexpected argument"),
    ] {
        let (ended, said) = run(&home, &line, variables);
        let said = said.replace('\n', " ");
        assert!(ended == code && said.contains(words), "{line}: {ended}, not \"{words}\": {said}");
    }
}

/// Not as if they were not set: a node would start without its access file, a command would be
/// made without its token.
#[test]
fn a_variable_that_is_no_text_ends_the_command() {
    let home = home(None);
    let serve = "serve --id 1 --data-dir d --listen 127.0.0.1:0 --peer-listen 127.0.0.1:0";
    let services = "services --timeout 100ms";
    for (line, name) in
        [(serve, "QUORATE_ACCESS"), (serve, "QUORATE_LOG"), (services, "QUORATE_TOKEN")]
    {
        let mut quorate = Command::new(env!("CARGO_BIN_EXE_quorate"));
        quorate.args(line.split(' ')).env_clear().env("HOME", home.path());
        quorate.current_dir(home.path()).env(name, OsStr::from_bytes(b"canary\xff"));
        let Output { status, stderr, .. } = quorate.output().unwrap();
        let said = String::from_utf8_lossy(&stderr);
        assert_eq!(status.code(), Some(2), "{name}: {said}");
        assert!(said.contains(&format!("the value of {name} is no UTF-8")), "{said}");
        assert!(!said.contains("canary"), "it may be a secret: {said}");
    }
}

#[test]
fn without_the_file_all_is_as_without_contexts() {
    let home = home(None);
    let (code, said) = run(&home, "services --timeout 100ms --context x", &[]);
    assert!(code == 2 && said.contains("no such file"), "{code}: {said}");
    let (code, said) = run(&home, "services --timeout 100ms", &[]);
    assert!(code != 2, "{code}: {said}");
}
