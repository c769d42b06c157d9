//! What a page of another origin gets of a node by the browser of somebody who reaches it.
//! `.ci/console` tries the same in Chromium, in each way that a page has.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::calls::register;
use super::guarded::Guarded;
use super::harness::Cluster;
use super::http_api::{self, WEB};
use super::metrics;

const PATHS: [&str; 12] = [
    "/",
    "/console/",
    "/console/app.js",
    "/console/none",
    "/openapi.json",
    "/healthz",
    "/readyz",
    "/metrics",
    "/sd/prometheus",
    "/api/v1/status",
    "/api/v1/none",
    "/none",
];

/// Nacos#1717, Nacos#1918, fabio#588, nomad#7468, consul PR#22596: pages that called, or ran what
/// callers had registered. (What is registered is put into the console's page in tests/console.)
/// Such a page can run a text as a script, or show it as a picture, unless the answer says that it
/// must not: scripts of it would tell whether a node is ready.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_is_for_pages_of_other_origins() {
    let (open, guarded) = (Cluster::start(1).await, Guarded::start(1, "").await);
    open.leader().await;
    for http in [open.http_address(1), guarded.cluster.http_address(1)] {
        for path in PATHS {
            let answer = metrics::get(http, path, None).await.expect("it answers");
            for line in
                ["x-content-type-options: nosniff", "cross-origin-resource-policy: same-origin"]
            {
                assert!(answer.headers.lines().any(|of| of == line), "{path}: {answer:?}");
            }
            assert!(!answer.headers.contains("access-control-"), "{path}: {answer:?}");
        }
    }
}

/// What a browser sends for a page without asking the node first: no method but these, no type but
/// these, and, to addresses of other machines without TLS, not a word of where it comes from.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_page_may_send_unasked_changes_nothing() {
    let cluster = Cluster::start(1).await;
    let mut registry = cluster.registry(cluster.leader().await);
    register(&mut registry, "web", "a").await;
    let http = cluster.http_address(1);
    let instance = format!("{WEB}/instances/a");
    let before = (http_api::get(http, &instance).await.body, snapshots(http).await);
    let paths = ["/api/v1/snapshot", "/api/v1/transfer-leader", "/api/v1/leases", &instance];
    for path in paths {
        for of_type in [
            "",
            "Content-Type: text/plain",
            "Content-Type: application/x-www-form-urlencoded",
            "Content-Type: multipart/form-data; boundary=x",
        ] {
            for site in ["", "Sec-Fetch-Site: same-site", "Sec-Fetch-Site: cross-site"] {
                let line = format!("POST {path} HTTP/1.0");
                let lines: Vec<&str> = [line.as_str(), "Host: localhost", of_type, site]
                    .into_iter()
                    .filter(|line| !line.is_empty())
                    .collect();
                let answer = http_api::send(http, &lines, b"{}").await;
                assert!([403, 405, 415].contains(&answer.status), "{lines:?}: {answer:?}");
            }
        }
        let line = format!("OPTIONS {path} HTTP/1.0");
        let lines = [
            &*line,
            "Host: localhost",
            "Origin: http://localhost:1",
            "Access-Control-Request-Method: PUT",
            "Access-Control-Request-Headers: authorization, content-type",
        ];
        let asked = http_api::send(http, &lines, b"").await;
        assert!([403, 405].contains(&asked.status), "{asked:?}");
        assert_eq!(asked.header("access-control-allow-origin"), None, "{asked:?}");
    }
    let after = (http_api::get(http, &instance).await.body, snapshots(http).await);
    assert_eq!(without_header(after.0), without_header(before.0));
    assert_eq!(after.1, before.1);
}

fn without_header(mut body: Value) -> Value {
    body["header"] = json!(null);
    body
}

/// Up to which index the node has a snapshot.
async fn snapshots(http: SocketAddr) -> u64 {
    let status = http_api::get(http, "/api/v1/status").await.body;
    status["members"][0]["snapshot_index"].as_u64().unwrap()
}
