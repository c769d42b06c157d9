//! Health checks by the command line: allowed in the configuration file, declared with `--check`,
//! shown by `fetch` and `watch`.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::cli::{Running, ask};
use crate::cluster::{Cluster, Settings};
use crate::wait::{eventually, time_passes};

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
    let lines = watch.until("it fails", PATIENCE, health_is("CRITICAL")).await;
    let why = format!("tcp://{address}: Connection refused (os error 111)");
    let told = |line: &Value| line["instance"]["health_reason"].clone();
    assert_eq!(lines.last().map(told), Some(why.clone().into()));
    assert!(lines.iter().rev().skip(1).all(|line| told(line).is_null()), "{lines:?}");

    let table = ask(&nodes, "fetch web").await.expect(0).out;
    assert!(table.contains("HEALTH") && table.contains("CRITICAL"), "{table}");
    assert!(table.contains(&format!("! a is CRITICAL: {why}")), "{table}");
    assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
    let json = ask(&nodes, "fetch web -o json").await.expect(0).json();
    let instance = &json["services"][0]["instances"][0];
    assert_eq!(
        (&instance["health"], &instance["health_reason"]),
        (&"CRITICAL".into(), &why.into())
    );
    let check = &instance["checks"][0];
    assert_eq!(
        (&check["interval_ms"], &check["failures_before_critical"]),
        (&1_000.into(), &2.into())
    );

    let _listener = TcpListener::bind(address).await.expect("the same port");
    eventually("it is back", PATIENCE, async || {
        let json = ask(&nodes, "fetch web -o json").await.json();
        let instance = json["services"][0]["instances"][0].clone();
        let passes = instance["health"] == "PASSING" && instance["health_reason"].is_null();
        if passes { Ok(()) } else { Err(instance) }
    })
    .await;
    registration.interrupt().await.expect(0);
    watch.interrupt().await.expect(0);
}

/// A node that stands still while a probe is under way finds its time over when it goes on: that is
/// not the target's fault.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stood_still_blames_nobody() {
    let health_checks = "allow = [\"127.0.0.0/8\"]".to_owned();
    let mut cluster =
        Cluster::start_with(1, Settings { health_checks, ..Settings::default() }).await;
    let nodes = cluster.all();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let watch = Running::ask(&nodes, "watch web -o json");
    let check = "http=/,every=2s,timeout=2s,failures=1";
    let line = format!("register web a --endpoint e=http://{address} --ttl 1m --check {check}");
    let _registration = Running::ask(&nodes, &line);
    for probe in 0..6 {
        let mut stream = timeout(PATIENCE, listener.accept()).await.expect("a probe").unwrap().0;
        stream.read_buf(&mut Vec::new()).await.unwrap();
        if probe == 2 {
            cluster.nodes[0].pause();
            time_passes(Duration::from_secs(4)).await;
            cluster.nodes[0].go_on();
            // It finds its time over before there is an answer, and hangs up.
            let end = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await;
            let _hung_up = end.expect("it gives the probe up");
        }
        let _gone = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
    }
    let passes = |line: &Value| line["instance"]["health"] == "PASSING";
    let lines = watch.until("it passes", PATIENCE, passes).await;
    let critical = lines.iter().filter(|line| line["instance"]["health"] == "CRITICAL");
    assert_eq!(critical.count(), 0, "{lines:?}");
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
