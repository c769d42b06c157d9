//! Secrets that commands are given, in files and variables, right ones and spoilt ones: what they
//! print, what the node logs and what the system shows of their processes has none of them.

use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::ports::free_port;
use crate::secrets::{SOON, Serving, entry, serve, text};
use crate::wait::eventually;

/// Stands in each secret.
const CANARY: &str = "CANARY";
const TOKEN: &str = "qrt_CANARY-admin";

/// What a command showed of itself.
struct Shown {
    what: String,
    text: String,
    succeeded: bool,
}

/// Runs a command with these variables, in a home of its own.
fn run(home: &Path, line: &str, variables: &[(&str, &str)]) -> Shown {
    let output = command(home, line, variables).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    Shown { what: line.to_owned(), text, succeeded: output.status.success() }
}

fn command(home: &Path, line: &str, variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.args(line.split_whitespace()).env_clear().env("HOME", home).stdin(Stdio::null());
    // All that it may ever say.
    command
        .envs(variables.iter().copied())
        .env("QUORATE_LOG", "trace,openraft=trace")
        .env("RUST_BACKTRACE", "1");
    command
}

/// The subcommands of a command, by its help.
fn subcommands(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = lines.map_while(|line| line.strip_prefix("  "));
    let names = names.filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

/// The help of each command, with all variables set that are secret or name what is.
fn helps(home: &Path, variables: &[(&str, &str)], all: &mut Vec<Shown>) {
    let mut next = vec![String::new()];
    while let Some(command) = next.pop() {
        let shown = run(home, &format!("{command} --help"), variables);
        assert!(shown.text.contains("Usage"), "{}: {}", shown.what, shown.text);
        next.extend(subcommands(&shown.text).iter().map(|name| format!("{command} {name}")));
        all.push(shown);
    }
}

fn put(dir: &TempDir, name: &str, content: &[u8]) -> String {
    let path = dir.path().join(name);
    std::fs::write(&path, content).unwrap();
    path.display().to_string()
}

/// Token files with something wrong, and commands that fail for other reasons.
fn failures(dir: &TempDir, nodes: &str, all: &mut Vec<Shown>) {
    let home = dir.path();
    for (name, content) in [
        ("unknown", &b"qrt_CANARY-unknown\n"[..]),
        ("two-lines", b"qrt_CANARY\nCANARY\n"),
        ("not-ascii", b"CANARY\xff\xfeCANARY"),
        ("control", b"CANARY\x01CANARY\0"),
        ("long", &[b"CANARY".to_vec(), vec![b'x'; 20_000]].concat()),
    ] {
        let file = put(dir, name, content);
        let line = format!("fetch web --nodes {nodes} --timeout 2s --token-file {file}");
        let shown = run(home, &line, &[]);
        assert!(!shown.succeeded, "{name}: {}", shown.text);
        all.push(shown);
        if let Ok(text) = std::str::from_utf8(content)
            && !text.contains('\0')
        {
            let line = format!("fetch web --nodes {nodes} --timeout 2s");
            let shown = run(home, &line, &[("QUORATE_TOKEN", text)]);
            assert!(!shown.succeeded, "{name}: {}", shown.text);
            all.push(shown);
        }
    }
    let right = [("QUORATE_TOKEN", TOKEN)];
    for line in [
        "fetch web --nodes 127.0.0.1:1 --timeout 1s".to_owned(),
        // Another machine, without TLS: it is not sent.
        "fetch web --nodes 192.0.2.1:7001 --timeout 1s".to_owned(),
        format!("deregister web none --nodes {nodes}"),
        format!("cluster remove 9 --nodes {nodes}"),
        format!("fetch --no-such-flag --nodes {nodes}"),
    ] {
        let shown = run(home, &line, &right);
        assert!(!shown.succeeded, "{line}: {}", shown.text);
        all.push(shown);
    }
    // Keys that are none.
    let key = "-----BEGIN PRIVATE KEY-----\nCANARY+/CANARY\n-----END PRIVATE KEY-----\n";
    let key = put(dir, "bad.key", key.as_bytes());
    let certificate = "-----BEGIN CERTIFICATE-----\nCANARY==\n-----END CERTIFICATE-----\n";
    let certificate = put(dir, "bad.crt", certificate.as_bytes());
    let line = format!("--nodes {nodes} --ca {certificate} --cert {certificate} --key {key}");
    all.push(run(home, &format!("fetch web {line}"), &[]));
    let serve = format!(
        "serve --id 1 --data-dir {}/none --listen 127.0.0.1:0 --peer-listen 127.0.0.1:0 \
         --tls-ca {certificate} --tls-cert {certificate} --tls-key {key}",
        home.display()
    );
    all.push(run(home, &serve, &[]));
    assert!(!all[all.len() - 1].succeeded && !all[all.len() - 2].succeeded);
}

/// A bundle of a node whose configuration, log and metrics are full of secrets, which no node
/// writes.
fn bundle(dir: &TempDir, nodes: &str, token: &str, all: &mut Vec<Shown>) {
    let key = "-----BEGIN PRIVATE KEY-----\nCANARY+/CANARY\n-----END PRIVATE KEY-----\n";
    let log = format!("token qrt_CANARY-log\nauthorization: Bearer CANARY.jwt\n{key}a last line\n");
    let log = put(dir, "other.log", log.as_bytes());
    let config = "# CANARY\nid = 1\npassword = 'CANARY'\n[more]\nkeys = ['CANARY']\n";
    let config = put(dir, "odd.toml", config.as_bytes());
    let (data, file) = (dir.path().join("data"), dir.path().join("bundle.tar"));
    let own_log = dir.path().join("log");
    let line = format!(
        "debug bundle {} --nodes {nodes} --token-file {token} --log {log} --log {} --config {config} --data-dir {} \
         --http 127.0.0.1:1",
        file.display(),
        own_log.display(),
        data.display()
    );
    let shown = run(dir.path(), &line, &[]);
    assert!(shown.succeeded, "{}", shown.text);
    all.push(shown);
    let bytes = std::fs::read(&file).unwrap();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    for word in
        ["manifest.json", "status.json", "doctor.json", "a last line", "snapshots", "logs/2-log"]
    {
        assert!(text.contains(word), "no {word} in the bundle");
    }
    all.push(Shown { what: "the bundle".to_owned(), text, succeeded: true });
}

/// What everybody on the machine can read of a process.
fn command_line(child: &Serving) -> String {
    text(Path::new(&format!("/proc/{}/cmdline", child.0.id()))).replace('\0', " ")
}

/// CVE-2021-28235 (etcd), etcd PR 21993.
#[tokio::test(flavor = "multi_thread")]
async fn secrets_that_commands_are_given_are_shown_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("access.toml"), entry("admin", TOKEN, "role = 'admin'"))
        .unwrap();
    let [address, peer] = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
    let serving = serve(dir.path(), &address, &peer);
    let (file, right) = (put(&dir, "token", TOKEN.as_bytes()), [("QUORATE_TOKEN", TOKEN)]);
    let mut all = Vec::new();
    let status = format!("cluster status --nodes {address} -o json");
    eventually("the node serves", SOON, async || {
        let shown = run(dir.path(), &status, &right);
        let (is_done, text) = (shown.succeeded, shown.text.clone());
        all.push(shown);
        if is_done { Ok(()) } else { Err(text) }
    })
    .await;
    for line in [
        "cluster status",
        "cluster overrides",
        "register web a --endpoint http=http://h:1 --ttl 1h --once",
        "fetch web",
        "services",
    ] {
        let shown = run(dir.path(), &format!("{line} --nodes {address} --token-file {file}"), &[]);
        assert!(shown.succeeded, "{line}: {}", shown.text);
        all.push(shown);
    }
    bundle(&dir, &address, &file, &mut all);
    helps(dir.path(), &[right[0], ("QUORATE_TOKEN_FILE", &file)], &mut all);
    let helped = all.iter().filter(|shown| shown.what.ends_with("--help")).count();
    assert!(helped > 20, "{helped} helps");
    failures(&dir, &address, &mut all);

    // Commands that go on, with the token in either place.
    let out = std::fs::File::create(dir.path().join("watched")).unwrap();
    let mut watching = Vec::new();
    for (more, variables) in [(format!("--token-file {file}"), &[][..]), (String::new(), &right)] {
        let line = format!("watch web --nodes {address} -o json {more}");
        let mut command = command(dir.path(), &line, variables);
        let to = || out.try_clone().unwrap();
        watching.push(Serving(command.stdout(to()).stderr(to()).spawn().unwrap()));
    }
    eventually("both watch", SOON, async || {
        let text = text(&dir.path().join("watched"));
        if text.matches("http://h:1").count() >= 2 { Ok(()) } else { Err(text) }
    })
    .await;
    let lines: Vec<String> = watching.iter().chain([&serving]).map(command_line).collect();
    assert!(lines[0].contains("watch web") && lines[2].contains("--access"), "{lines:?}");
    all.push(Shown { what: "command lines".to_owned(), text: lines.join("\n"), succeeded: true });
    for name in ["watched", "log", "audit"] {
        let text = text(&dir.path().join(name));
        assert!(!text.is_empty(), "{name} has something in it");
        all.push(Shown { what: name.to_owned(), text, succeeded: true });
    }
    for Shown { what, text, .. } in &all {
        let line = text.lines().find(|line| line.contains(CANARY));
        assert_eq!(line, None, "{what}");
    }
}
