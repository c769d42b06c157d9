//! Health checks by the command line: allowed in the configuration file, declared with `--check`, shown by `fetch` and
//! `watch`.

use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpListener;

use crate::cli::{Running, ask};
use crate::cluster::{Cluster, Settings};
use crate::wait::eventually;

const PATIENCE: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread")]
async fn checks_are_declared_and_shown() {
    // S4.4, S4.9
    let health_checks = "allow = [\"127.0.0.0/8\"]".to_owned();
    let cluster = Cluster::start_with(3, Settings { health_checks, ..Settings::default() }).await;
    let nodes = cluster.all();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let watch = Running::ask(&nodes, "watch web -o json");
    let line =
        format!("register web a --endpoint e=tcp://{address} --check tcp,every=1s,failures=2");
    let registration = Running::ask(&nodes, &line);
    let health_is = |health: &'static str| {
        move |line: &Value| line["instance"]["health"] == health && line["instance"]["id"] == "a"
    };
    watch.until("it passes", PATIENCE, health_is("PASSING")).await;
    drop(listener);
    watch.until("it fails", PATIENCE, health_is("CRITICAL")).await;

    let table = ask(&nodes, "fetch web").await.expect(0).out;
    assert!(table.contains("HEALTH") && table.contains("CRITICAL"), "{table}");
    assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
    let json = ask(&nodes, "fetch web -o json").await.expect(0).json();
    let instance = &json["services"][0]["instances"][0];
    assert_eq!(instance["health"], "CRITICAL");
    let check = &instance["checks"][0];
    assert_eq!(
        (&check["interval_ms"], &check["failures_before_critical"]),
        (&1_000.into(), &2.into())
    );

    let _listener = TcpListener::bind(address).await.expect("the same port");
    eventually("it is back", PATIENCE, async || {
        let json = ask(&nodes, "fetch web -o json").await.json();
        let health = json["services"][0]["instances"][0]["health"].clone();
        if health == "PASSING" { Ok(()) } else { Err(health) }
    })
    .await;
    registration.interrupt().await.expect(0);
    watch.interrupt().await.expect(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_check_is_refused_by_name() {
    let cluster = Cluster::start(1).await;
    let register = "register web a --endpoint e=tcp://127.0.0.1:1 --once --check";
    let refused = ask(&cluster.all(), &format!("{register} tcp,every=1ms")).await.expect(1);
    refused.says(&["checks[0].interval_ms", "1000 to 3600000"]);
    let refused = ask(&cluster.all(), &format!("{register} http=/")).await.expect(1);
    refused.says(&["checks[0].endpoint", "http:"]);
}
