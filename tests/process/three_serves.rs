//! The first picture: three `quorate serve` processes, and the binary's own commands on
//! each of them.

use std::time::Duration;

use quorate_client::Consistency;
use serde_json::{Value, json};

use crate::cli::{Running, ask};
use crate::cluster::{Cluster, LEADER_WITHIN};
use crate::ports::free_port;
use crate::wait::{eventually, time_passes};

/// A watcher on another node gets it within this.
const TOLD_WITHIN: Duration = Duration::from_secs(20);

/// S0.1, S3.1
#[tokio::test(flavor = "multi_thread")]
async fn what_is_registered_on_one_node_is_seen_on_all() {
    let cluster = Cluster::start(3).await;
    let [first, second, third] = [0, 1, 2].map(|at| cluster.nodes[at].clients.clone());
    let watch = Running::ask(&third, "watch orders -o json");
    watch.until("the snapshot", TOLD_WITHIN, |line| line["event"] == "snapshot").await;

    let register =
        "register orders o-1 --endpoint http=http://10.0.0.1:8080 --zone eu-1a --meta k=v";
    let ran = ask(&first, &format!("{register} --ttl 1m --once -o json")).await.expect(0);
    let registered = ran.json();
    assert_eq!(registered["ttl_ms"], 60_000);
    // At once: the very next command, on another node.
    let fetched = ask(&second, "fetch orders -o json").await.expect(0).json();
    let instance = &fetched["services"][0]["instances"][0];
    assert_eq!(instance["id"], "o-1");
    assert_eq!(instance["endpoints"], json!({ "http": "http://10.0.0.1:8080" }));
    assert_eq!((&instance["zone"], &instance["metadata"]), (&json!("eu-1a"), &json!({ "k": "v" })));
    assert_eq!(instance["lease_id"], registered["lease_id"]);
    assert_eq!(fetched["header"]["age_ms"], 0, "linearizable");
    let added = |line: &Value| line["event"] == "added" && line["instance"] == *instance;
    watch.until("the new instance", TOLD_WITHIN, added).await;

    for node in [&first, &second, &third] {
        let same = ask(node, "fetch orders -o json").await.expect(0).json();
        assert_eq!(same["services"], fetched["services"]);
        assert_eq!(same["header"]["revision"], fetched["header"]["revision"]);
    }
    let revision = registered["revision"].as_u64().unwrap();
    for consistency in ["linearizable", "local"] {
        let line = format!("fetch orders --consistency {consistency} --min-revision {revision}");
        let table = ask(&third, &line).await.expect(0).out;
        assert!(table.contains("o-1") && table.contains("http=http://10.0.0.1:8080"), "{table}");
        assert!(table.lines().all(|line| line.chars().count() <= 80), "wider than 80:\n{table}");
    }
    let listed = ask(&second, "services").await.expect(0).out;
    assert!(listed.contains("orders"), "{listed}");

    ask(&second, "deregister orders o-1").await.expect(0);
    watch.until("the removal", TOLD_WITHIN, |line| line["event"] == "removed").await;
    let lines = watch.interrupt().await.expect(0).out;
    assert_eq!(lines.lines().count(), 3, "snapshot, added, removed: {lines}");
}

/// S1.7, S1.8
#[tokio::test(flavor = "multi_thread")]
async fn a_register_command_keeps_its_instance_until_it_is_interrupted() {
    let cluster = Cluster::start(3).await;
    let all = cluster.all();
    let line = "register orders o-1 --endpoint http=http://10.0.0.1:8080 --ttl 6s -o json";
    let register = Running::ask(&all, line);
    register.until("the registration", TOLD_WITHIN, |line| line["event"] == "registered").await;
    // Longer than its TTL: it is renewed.
    time_passes(Duration::from_secs(9)).await;
    let there = ask(&all, "fetch orders -o json").await.expect(0).json();
    assert_eq!(there["services"][0]["instances"][0]["id"], "o-1");
    let ran = register.interrupt().await.expect(0);
    assert!(ran.out.contains("deregistered"), "{}", ran.out);
    let left = ask(&all, "fetch orders -o json").await.expect(0).json();
    assert_eq!(left["services"][0]["instances"], json!([]), "gone when the command has ended");

    let status = ask(&all, "cluster status -o json").await.expect(0).json();
    let members = status["members"].as_array().unwrap();
    assert_eq!(members.len(), 3);
    assert_eq!(members.iter().filter(|member| member["state"] == "leader").count(), 1);
    let table = ask(&all, "cluster status").await.expect(0).out;
    assert!(table.contains("leader") && table.contains("follower"), "{table}");
    assert!(table.lines().all(|line| line.chars().count() <= 80), "wider than 80:\n{table}");
}

/// S2.2, S0.10: exit code 1 when the cluster says no, 3 when there is none, and messages that help.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_and_failures_have_their_exit_codes_and_say_what_to_do() {
    let cluster = Cluster::start(3).await;
    let all = cluster.all();
    let register = |rest: &str| format!("register {rest} --once --endpoint http=http://h:1");
    for (line, says) in [
        (register("or/ders o-1"), ["service", "or/ders"]),
        (register(&format!("orders {}", "x".repeat(254))), ["id", "253"]),
        ("fetch nothing".to_owned(), ["nothing", "quorate services"]),
        ("deregister orders o-9".to_owned(), ["o-9", "quorate fetch"]),
        ("update orders o-9 --weight 5".to_owned(), ["o-9", "quorate fetch"]),
        ("cluster transfer-leader 9".to_owned(), ["node 9", "voter"]),
    ] {
        ask(&all, &line).await.expect(1).says(&says);
    }
    // What the command line can find by itself is a usage error.
    for (line, says) in [
        (register("orders o-1 --ttl 1ms"), ["--ttl", "1s to 24h"]),
        (register("orders o-1 --ttl 25h"), ["--ttl", "1s to 24h"]),
        (register("orders o-1 --weight 1000001"), ["--weight", "1000000"]),
        (register("orders o-1 --endpoint grpc=10.0.0.1:80"), ["--endpoint", "grpc=http://"]),
    ] {
        ask(&all, &line).await.expect(2).says(&says);
    }
    assert!(cluster.nodes[0].instances(Consistency::Linearizable).await.unwrap().is_empty());

    let nobody = format!("127.0.0.1:{}", free_port());
    for line in [register("orders o-1"), "fetch orders".to_owned(), "watch orders".to_owned()] {
        let line = format!("{line} --timeout 1s");
        ask(&nobody, &line).await.expect(3).says(&[&nobody, "--nodes", "next:"]);
    }
    // A node of three that is not there costs nothing but the attempt.
    let nodes = format!("{nobody},{all}");
    ask(&nodes, "services").await.expect(0);
}

/// A node that is started once more with `--bootstrap` goes on with what it has. S4.12
#[tokio::test(flavor = "multi_thread")]
async fn a_later_bootstrap_is_ignored() {
    let mut cluster = Cluster::start(3).await;
    let all = cluster.all();
    ask(&all, "register a a-1 --endpoint http=http://h:1 --ttl 1h --once").await.expect(0);
    for at in 0..3 {
        cluster.nodes[at].kill();
        cluster.nodes[at].start();
        eventually("the instance on the node that was restarted", LEADER_WITHIN, || async {
            let state = cluster.nodes[at].instances(Consistency::Linearizable).await;
            state.map(|state| assert_eq!(state.len(), 1))
        })
        .await;
    }
    cluster.equal_states().await;
}
