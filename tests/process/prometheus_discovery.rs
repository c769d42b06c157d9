//! A real Prometheus finds its targets in the registry, as docs/prometheus.md configures it: in and
//! after changes, with a node and then all of them gone, and after it was started again meanwhile.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::built::{installed, root};
use crate::cli::ask;
use crate::prometheus::{Prometheus, observed};
use crate::skipped::skipped;
use crate::wait::eventually;

/// It takes up what it has found every 5 s.
const FOUND_WITHIN: Duration = Duration::from_secs(30);
/// A job with the URLs of all nodes, beside the one of the document.
const ALL: &str = "all";
const ONE: &str = "services";

/// Of the Prometheus that is asked.
const OLDEST: (u32, u32) = (2, 42);

/// "prometheus, version 2.42.0+ds (branch: ..." is (2, 42).
fn version_of(program: &str) -> (u32, u32) {
    let output = Command::new(program).arg("--version").output().unwrap();
    // Some say it there.
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    let (_, version) = said.split_once("version ").unwrap_or_else(|| panic!("{said}"));
    let mut parts = version.split('.').map(|part| part.parse().expect("a number"));
    (parts.next().unwrap(), parts.next().unwrap())
}

/// The configuration in the document, of these nodes and looked at each second.
fn configured(https: &[String]) -> String {
    let document = std::fs::read_to_string(root().join("docs/prometheus.md")).unwrap();
    let (_, rest) = document.split_once("```yaml\n").expect("a configuration");
    let (config, _) = rest.split_once("```").unwrap();
    let (config, from) =
        (config.replace("refresh_interval: 30s", "refresh_interval: 1s"), "10.0.0.1:7201");
    assert!(config.contains(from) && config.contains("job_name: services"), "{config}");
    let mut all = config.replace(from, &https[0]);
    let urls: String = https.iter().map(|http| {
        format!("      - {{url: \"http://{http}/sd/prometheus?endpoint=metrics\", refresh_interval: 1s}}\n")
    }).collect();
    all += &format!(
        "  - job_name: {ALL}\n    scrape_interval: 1s\n    scrape_timeout: 1s\n    http_sd_configs:\n{urls}"
    );
    all
}

/// Addresses by what is scraped there: the path, and the instance's status.
type Found = BTreeMap<String, (String, String)>;

async fn found(prometheus: &Prometheus, job: &str) -> Result<Found, String> {
    let targets = prometheus.targets().await?;
    let of_job = targets.iter().filter(|target| target["scrapePool"] == job);
    Ok(of_job
        .map(|target| {
            let label = |name: &str| target["discoveredLabels"][name].as_str().unwrap_or_default();
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let status = label("__meta_quorate_status").to_owned();
            (label("__address__").to_owned(), (text(&target["scrapeUrl"]), status))
        })
        .collect())
}

/// Waits until a job has these addresses.
async fn until(prometheus: &Prometheus, job: &str, wanted: &[&str]) -> Found {
    eventually(&format!("{job} has {wanted:?}"), FOUND_WITHIN, async || {
        let found = found(prometheus, job).await?;
        match found.keys().eq(wanted) {
            true => Ok(found),
            false => Err(format!("{found:?}")),
        }
    })
    .await
}

/// Waits until it has asked all nodes in vain.
async fn until_in_vain(prometheus: &Prometheus, times: u64) {
    eventually("it asks in vain", FOUND_WITHIN, async || {
        match prometheus.asked_in_vain().await? {
            now if now >= times => Ok(()),
            now => Err(now.to_string()),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_keeps_the_targets_that_the_registry_told_it() {
    let program = match installed(".ci/install-prometheus", &["prometheus"]) {
        Ok(program) => program,
        Err(reason) => return skipped("a Prometheus that discovers", reason),
    };
    let version = version_of(&program);
    eprintln!("measured: with Prometheus {version:?}");
    assert!(version >= OLDEST, "{version:?} is older than {OLDEST:?}");
    let (mut cluster, https) = observed().await;
    cluster.leader().await;
    let nodes = cluster.all();
    let run = async |line: &str| ask(&nodes, line).await.expect(0);
    let register = async |id: &str, uri: &str| {
        let line = format!("register orders {id} --endpoint metrics={uri} --ttl 1h --once");
        run(&line).await;
    };
    register("a", "http://127.0.0.1:1").await;
    register("b", "http://[::1]:2/own").await;
    run("register orders none --endpoint http=http://127.0.0.1:9 --ttl 1h --once").await;
    let mut prometheus = Prometheus::start_with(Path::new(&program), &configured(&https), "");
    let first = until(&prometheus, ONE, &["127.0.0.1:1", "[::1]:2"]).await;
    assert_eq!(first["127.0.0.1:1"], ("http://127.0.0.1:1/metrics".to_owned(), "UP".to_owned()));
    assert_eq!(first["[::1]:2"].0, "http://[::1]:2/own");
    until(&prometheus, ALL, &["127.0.0.1:1", "[::1]:2"]).await;

    // One drains, others come and go, and one node is gone: the list of that node stays.
    cluster.nodes[0].kill();
    cluster.leader().await;
    run("update orders a --status draining").await;
    for round in 0..10 {
        register("c", &format!("http://127.0.0.1:1{round}")).await;
        run("deregister orders c").await;
        for job in [ONE, ALL] {
            let now = found(&prometheus, job).await.unwrap();
            let stays = ["127.0.0.1:1", "[::1]:2"].iter().all(|at| now.contains_key(*at));
            assert!(stays, "{job}, round {round}: {now:?}");
        }
    }
    register("d", "http://127.0.0.1:3").await;
    until(&prometheus, ALL, &["127.0.0.1:1", "127.0.0.1:3", "[::1]:2"]).await;
    assert_eq!(found(&prometheus, ONE).await.unwrap(), first, "what its node said last");

    // With all of them gone, nothing changes: each has been asked in vain.
    cluster.nodes[1..].iter_mut().for_each(|node| node.kill());
    let before = found(&prometheus, ALL).await.unwrap();
    let failed = prometheus.asked_in_vain().await.unwrap();
    until_in_vain(&prometheus, failed + 12).await;
    assert_eq!(found(&prometheus, ALL).await.unwrap(), before);
    assert_eq!(found(&prometheus, ONE).await.unwrap(), first);

    // A new one knows nothing until a node answers.
    prometheus.restart().await;
    until_in_vain(&prometheus, 4).await;
    assert_eq!(found(&prometheus, ALL).await.unwrap(), Found::new());
    cluster.nodes.iter_mut().for_each(|node| node.start());
    let back = until(&prometheus, ONE, &["127.0.0.1:1", "127.0.0.1:3", "[::1]:2"]).await;
    assert_eq!(back["127.0.0.1:1"].1, "DRAINING");
}
