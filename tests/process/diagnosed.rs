//! `doctor` finds what was done wrong with a real node: all of it at once.

use std::collections::BTreeMap;
use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpStream;

use crate::cli::{Running, ask, quorate};
use crate::cluster::{Cluster, Settings};
use crate::ports::free_port;
use crate::process::THIS_RELEASE;
use crate::wait::eventually;

const SOON: Duration = Duration::from_secs(30);
/// More than half of what one address may have.
const CONNECTIONS_MAX: usize = 40;
const CONNECTIONS: usize = 24;

fn set_mode(path: &Path, mode: u32) {
    set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_finds_all_that_was_done_wrong_with_a_node() {
    let dir = tempfile::tempdir().unwrap();
    let (clients, peers) = (free_port(), free_port());
    let config = dir.path().join("node.toml");
    let text = format!(
        "[bootstrap]\n1 = \"127.0.0.1:{peers}\"\n[health_checks]\nallow = [\"10.0.0.0/8\"]\n\
         [tunables]\nconnections_per_address_max = {CONNECTIONS_MAX}\n"
    );
    std::fs::write(&config, text).unwrap();
    let line = format!(
        "serve --id 1 --listen 0.0.0.0:{clients} --advertise 127.0.0.1:{clients} --insecure \
         --peer-listen 127.0.0.1:{peers} --config {} --data-dir {}",
        config.display(),
        dir.path().join("data").display()
    );
    let node = Running::start(&line.split(' ').collect::<Vec<_>>());
    let address = format!("127.0.0.1:{clients}");
    let registered = "register web named --endpoint http=http://db.internal:80 --ttl 1h --once";
    eventually("it takes registrations", SOON, async || {
        let ran = ask(&address, registered).await;
        if ran.code == 0 { Ok(()) } else { Err(format!("{} {}", ran.err, node.err())) }
    })
    .await;
    let line = "register web probed --endpoint http=http://127.0.0.1:1 --check tcp,every=1s --ttl 1h --once";
    ask(&address, line).await.expect(0);
    let token = dir.path().join("token");
    std::fs::write(&token, "qrt_anything").unwrap();
    set_mode(&token, 0o644);
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(TcpStream::connect(&address).await.unwrap());
    }
    let token = token.display().to_string();
    let doctor = ["doctor", "-o", "json", "--nodes", &address, "--token-file", &token];
    let wanted: BTreeMap<&str, (&str, &str)> = [
        ("quorum", ("warning", "one voter")),
        ("backups", ("note", "no backup was taken")),
        ("listeners", ("warning", "without TLS; clients at 0.0.0.0")),
        ("health checks", ("warning", "in no network that it may probe")),
        ("hot spots", ("warning", "are from 127.0.0.1")),
        ("endpoints", ("note", "db.internal of web/named")),
        ("files", ("warning", "holds a secret, and other users of this machine can read it (644)")),
    ]
    .into();
    eventually("all of it is found, and nothing else", SOON, async || {
        let ran = quorate(&[&doctor[..], &["--allow-plaintext-token"]].concat()).await;
        let found: Value = serde_json::from_str(&ran.out).map_err(|_| format!("{ran:?}"))?;
        let findings = found["findings"].as_array().expect("a list");
        let fits = |finding: &Value| {
            let check = finding["check"].as_str().and_then(|check| wanted.get(check));
            check.is_some_and(|(severity, words)| {
                finding["severity"] == *severity
                    && finding["meaning"].as_str().is_some_and(|meaning| meaning.contains(words))
                    && finding["next"].as_str().is_some_and(|next| !next.is_empty())
            })
        };
        let is_all = findings.len() == wanted.len() && findings.iter().all(fits);
        let left_out = found["not_looked_at"].as_array().expect("a list");
        match is_all && left_out.is_empty() && ran.code == 1 {
            true => Ok(()),
            false => Err(format!("exit code {}: {found:#}", ran.code)),
        }
    })
    .await;
}

/// On the node's machine, which is asked about from another one.
#[tokio::test(flavor = "multi_thread")]
async fn doctor_finds_what_everybody_can_read_of_a_nodes_files() {
    let settings = Settings { secured: true, ..Settings::default() };
    let cluster = Cluster::start_with(1, settings).await;
    let secured = cluster.secured.clone().expect("it is");
    let path = |name: &str| secured.path(name).display().to_string();
    let flags = format!(
        "-o json --ca {} --cert {} --key {}",
        path("ca.crt"),
        path("client-tests.crt"),
        path("client-tests.key")
    );
    let told = async || {
        let found = ask(&cluster.all(), &format!("doctor {flags}")).await.json();
        let mut findings = found["findings"].as_array().expect("a list").clone();
        findings.retain(|finding| finding["check"] == "files");
        findings
    };
    assert_eq!(told().await, Vec::<Value>::new());
    let (key, data) = (secured.path("node-1.key"), cluster.nodes[0].data_dir.clone());
    let log = data.join("log");
    for (path, mode) in [(&key, 0o644), (&data, 0o755), (&log, 0o755)] {
        set_mode(path, mode);
    }
    let above = data.parent().expect("the directory of all that is the cluster's");
    set_mode(above, 0o700);
    assert_eq!(told().await, Vec::<Value>::new(), "nobody gets there: {}", above.display());
    for directory in [above, key.parent().expect("that of the certificates")] {
        set_mode(directory, 0o711);
    }
    let findings = told().await;
    let commands = [format!("chmod 700 {}", log.display()), format!("chmod 600 {}", key.display())];
    assert_eq!(findings.len(), commands.len(), "{findings:#?}");
    for (finding, command) in findings.iter().zip(commands) {
        assert_eq!((&finding["node"], &finding["severity"]), (&1.into(), &"warning".into()));
        let next = finding["next"].as_str().expect("what to do");
        assert!(next.contains(&command), "{command} in {next}");
    }
    let status = ask(&cluster.all(), &format!("cluster status {flags}")).await.json();
    let open = &status["members"][0]["condition"]["open_files"];
    assert_eq!(open["tls.key"], key.display().to_string(), "{status:#}");
    for (path, mode) in [(&key, 0o640), (&log, 0o700)] {
        set_mode(path, mode);
    }
    assert_eq!(told().await, Vec::<Value>::new(), "a group may, and one may enter");
}

/// `| head -1` of a script that wants the code.
async fn code_with_nobody_reading(nodes: &str, line: &str) -> i32 {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(THIS_RELEASE);
    command.args(line.split_whitespace()).args(["--nodes", nodes, "--timeout", "20s"]);
    command.env_clear().stdout(writer).stderr(Stdio::null());
    let ended = tokio::task::spawn_blocking(move || command.status()).await.unwrap().unwrap();
    ended.code().expect("it ends by itself")
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_learn_all_and_the_code_also_where_nobody_reads_on() {
    let mut cluster = Cluster::start(3).await;
    cluster.equal_states().await;
    let nodes = cluster.all();
    let status = ask(&nodes, "cluster status -o json").await.expect(0).json();
    assert_eq!((&status["level_held"], &status["partial"]), (&false.into(), &false.into()));
    assert_eq!(status["cluster_name"], "quorate", "{status:#}");
    let level = status["level"].as_u64().expect("a number");
    for member in status["members"].as_array().expect("a list") {
        let [min, max] = ["level_min", "level_max"].map(|end| member[end].as_u64().unwrap_or(0));
        assert!((1..=level).contains(&min) && level <= max, "{member:#}");
    }
    assert_eq!(code_with_nobody_reading(&nodes, "cluster status --exit-code").await, 0);
    for at in [1, 2] {
        cluster.nodes[at].kill();
    }
    let left = cluster.nodes[0].clients.clone();
    eventually("no quorum", SOON, async || {
        let shown = ask(&left, "cluster status --exit-code").await;
        if shown.code == 2 { Ok(()) } else { Err(shown.out) }
    })
    .await;
    for line in ["cluster status --exit-code", "cluster status --exit-code -o json", "doctor"] {
        assert_eq!(code_with_nobody_reading(&left, line).await, 2, "{line}");
    }
}
