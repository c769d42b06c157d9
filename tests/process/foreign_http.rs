//! The HTTP API as strangers take it: by nothing but what it says of itself. A validator reads
//! `/openapi.json`, a generator makes a client of it that does what a service does, and a fuzzer
//! holds every answer against it. Where they cannot be installed, that is said.

use std::path::Path;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::OnceCell;

use crate::cluster::{Cluster, Settings};
use crate::foreign_clients::{installed, ran_within, said};
use crate::ports::free_port;
use crate::skipped::skipped;

/// Making a client takes some seconds, and much more on a busy machine.
const CLIENT_WITHIN: Duration = Duration::from_secs(180);
/// The fuzzer's own limit, s ...
const FUZZ_S: &str = "45";
/// ... beside which it loads, and asks for streams.
const FUZZ_WITHIN: Duration = Duration::from_secs(240);
const SEED: &str = "1";

/// A cluster whose nodes answer by HTTP, and where.
async fn cluster(size: u64) -> (Cluster, Vec<String>) {
    let https: Vec<_> = (0..size).map(|_| format!("127.0.0.1:{}", free_port())).collect();
    let head = (1..).zip(&https).map(|(id, http)| (id, format!("http_listen = {http:?}")));
    // The first answers already say what is not there.
    let tunables = "deny_after_ms = 0".to_owned();
    let settings = Settings { head: head.collect(), tunables, ..Settings::default() };
    let cluster = Cluster::start_with(size, settings).await;
    (cluster, https)
}

/// What a script of `foreign/openapi/` says, which has to succeed. `None`: what it needs cannot be
/// had here.
async fn script(name: &str, arguments: &[&str], limit: Duration) -> Option<String> {
    static HOME: OnceCell<Result<String, String>> = OnceCell::const_new();
    let home = match HOME.get_or_init(|| installed("openapi")).await {
        Ok(home) => home,
        Err(reason) => {
            skipped(name, reason);
            return None;
        }
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/process/foreign/openapi");
    // What it writes beside goes with it.
    let directory = tempfile::tempdir().unwrap();
    let mut python = Command::new("python3");
    python.arg(folder.join(name)).args(arguments).current_dir(directory.path());
    python.env("PYTHONPATH", home).env("PYTHONDONTWRITEBYTECODE", "1");
    let output = ran_within(limit, &mut python).await.unwrap();
    assert!(output.status.success(), "{}", said(&output));
    Some(said(&output))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_made_of_the_description_does_what_a_service_does() {
    let (_cluster, https) = cluster(3).await;
    let addresses: Vec<&str> = https.iter().map(String::as_str).collect();
    if let Some(said) = script("client.py", &addresses, CLIENT_WITHIN).await {
        assert!(said.contains("registered, renewed, read, watched, deregistered"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_asked_the_answer_is_as_described() {
    let (_cluster, https) = cluster(1).await;
    if let Some(said) = script("fuzz.py", &[&https[0], SEED, FUZZ_S], FUZZ_WITHIN).await {
        assert!(said.contains("watches, by status") && said.contains("20 selected"), "{said}");
    }
}
