//! `doctor` finds what was done wrong with a real node: all of it at once.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::cli::{Running, ask, quorate};
use crate::ports::free_port;
use crate::wait::eventually;

const SOON: Duration = Duration::from_secs(30);
/// More than half of what one address may have.
const CONNECTIONS_MAX: usize = 40;
const CONNECTIONS: usize = 24;

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
    std::fs::set_permissions(&token, Permissions::from_mode(0o644)).unwrap();
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
        let found: serde_json::Value =
            serde_json::from_str(&ran.out).map_err(|_| format!("{ran:?}"))?;
        let findings = found["findings"].as_array().expect("a list");
        let fits = |finding: &serde_json::Value| {
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
