//! Leases by HTTP: many in one call, and one after the other on one connection.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use quorate_node::Tunables;
use quorate_proto::v1::{InstanceSpec, RegisterRequest};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::calls::register;
use super::harness::{Cluster, SOON};
use super::http_api::{get, write};

const WINDOW: Duration = Duration::from_millis(300);
const IN_TURN: u32 = 10;
/// What they take at least if each waits for a window.
const HELD_BACK: Duration = WINDOW.saturating_mul(IN_TURN - 1);
/// A busy machine is slow in some of them; held back, each is.
const ROUNDS: usize = 10;

#[tokio::test(flavor = "multi_thread")]
async fn many_leases_are_renewed_by_one_call_and_it_says_which_are_unknown() {
    let cluster = Cluster::start(3).await;
    let mut registry = cluster.registry(cluster.leader().await);
    let http = cluster.http_address(cluster.follower().await);
    let mut leases = Vec::new();
    for id in ["a", "b"] {
        leases.push(register(&mut registry, "web", id).await.lease_id);
    }
    let ids = json!([leases[0].to_string(), leases[1], "7"]);
    let renewed = write(http, "PUT /api/v1/leases", &json!({ "lease_ids": ids })).await;
    assert_eq!(renewed.status, 200, "{renewed:?}");
    assert_eq!(renewed.body["unknown_lease_ids"], json!(["7"]));

    let known = json!([leases[0]]);
    for (body, status, code, field) in [
        (json!({ "lease_ids": ["7"] }), 404, "NOT_FOUND", None),
        (json!({ "lease_ids": known, "cluster_id": "00ff" }), 404, "NOT_FOUND", None),
        (json!({ "lease_ids": [] }), 400, "INVALID_ARGUMENT", Some("lease_ids")),
        (json!({ "lease_ids": vec![7; 10_001] }), 400, "INVALID_ARGUMENT", Some("lease_ids")),
        (json!({ "lease_ids": ["seven"] }), 400, "INVALID_ARGUMENT", Some("lease_ids[0]")),
        (json!({}), 400, "INVALID_ARGUMENT", Some("lease_ids")),
    ] {
        write(http, "PUT /api/v1/leases", &body).await.refuses(status, code, field);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn times_are_given_in_words_too() {
    let cluster = Cluster::start(1).await;
    cluster.leader().await;
    let http = cluster.http_address(1);
    let a = "/api/v1/namespaces/default/services/web/instances/a";
    let check = json!({ "tcp": {}, "interval": "7s", "timeout": "1s" });
    let endpoints = json!({ "http": "http://10.0.0.1:80" });
    let spec = json!({ "endpoints": endpoints, "ttl": "1m", "checks": [check] });
    let registered = write(http, &format!("PUT {a}"), &spec).await;
    assert_eq!(registered.body["ttl_ms"], json!(60_000), "{registered:?}");
    let read = get(http, a).await;
    let check = &read.body["instance"]["checks"][0];
    assert_eq!((&check["interval_ms"], &check["timeout_ms"]), (&json!(7_000), &json!(1_000)));
}

/// The refusal of a registration says the same by both doors.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_told_in_the_words_of_grpc() {
    let cluster = Cluster::start(1).await;
    let mut registry = cluster.registry(cluster.leader().await);
    let http = cluster.http_address(1);
    let long = "x".repeat(300);
    for (service, id, weight, ttl_ms) in [
        ("web", "-", 1, 5_000),
        ("web", &*long, 1, 5_000),
        ("web", "a", 4_000_000_000, 5_000),
        ("web", "a", 1, 5),
    ] {
        let spec = InstanceSpec {
            service: service.to_owned(),
            id: id.to_owned(),
            endpoints: [("http".to_owned(), "http://h:1".to_owned())].into(),
            weight: Some(weight),
            ..InstanceSpec::default()
        };
        let request =
            RegisterRequest { instances: vec![spec], ttl_ms, ..RegisterRequest::default() };
        let by_grpc = registry.register(request).await.expect_err("it is wrong");
        let body =
            json!({ "endpoints": { "http": "http://h:1" }, "weight": weight, "ttl_ms": ttl_ms });
        let path = format!("/api/v1/namespaces/default/services/{service}/instances/{id}");
        let by_http = write(http, &format!("PUT {path}"), &body).await;
        assert_eq!(by_http.status, 400, "{by_http:?}");
        assert_eq!(by_http.body["detail"], by_grpc.message(), "{by_http:?}");
        let limit = by_http.body["limit"].as_str().expect("it says the limit");
        assert!(by_grpc.message().contains(limit), "{limit}: {by_grpc:?}");
    }
}

/// Sends a request on an open connection and reads its answer: its status.
async fn on(stream: &mut BufReader<TcpStream>, line: &str) -> u16 {
    let request = format!("{line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_lowercase()),
        }
    }
    let length = lines.iter().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.expect("it has a length").parse().unwrap()];
    stream.read_exact(&mut body).await.unwrap();
    lines[0].split(' ').nth(1).unwrap().parse().unwrap()
}

async fn renew_in_turn(http: SocketAddr, lease: u64) -> Duration {
    let mut stream = BufReader::new(TcpStream::connect(http).await.unwrap());
    let begun = Instant::now();
    for _ in 0..IN_TURN {
        let status = timeout(SOON, on(&mut stream, &format!("PUT /api/v1/leases/{lease}"))).await;
        assert_eq!(status.expect("it answers"), 200);
    }
    begun.elapsed()
}

/// A caller that renews as soon as the last renewal is answered waits for each; held back for
/// others, each would take a window.
#[tokio::test(flavor = "multi_thread")]
async fn who_renews_one_after_the_other_is_not_held_back_for_others() {
    let window_ms = u64::try_from(WINDOW.as_millis()).unwrap();
    let tunables = Tunables { renew_window_ms: window_ms, ..Tunables::default() };
    let cluster = Cluster::start_with(3, tunables).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let lease = register(&mut cluster.registry(leader), "web", "a").await.lease_id;
    for id in [leader, follower] {
        let mut rounds = Vec::new();
        while rounds.iter().all(|took| *took > HELD_BACK / 2) {
            assert!(rounds.len() < ROUNDS, "{rounds:?}; held back, it takes {HELD_BACK:?}");
            rounds.push(renew_in_turn(cluster.http_address(id), lease).await);
        }
        eprintln!("measured: {IN_TURN} renewals in turn at node {id}: {rounds:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_followed_page_by_page_and_no_other_origin_is_let_in() {
    let cluster = Cluster::start(1).await;
    let mut registry = cluster.registry(cluster.leader().await);
    let http = cluster.http_address(1);
    let wanted: Vec<String> = (0..7).map(|at| format!("s{at}")).collect();
    for service in &wanted {
        register(&mut registry, service, "a").await;
    }
    let (mut names, mut after, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let path = format!("/api/v1/namespaces/default/services?limit=3&after={after}");
        let page = get(http, &path).await;
        assert_eq!(page.header("access-control-allow-origin"), None);
        let services = page.body["services"].as_array().unwrap();
        names.extend(services.iter().map(|of| of["name"].as_str().unwrap().to_owned()));
        pages += 1;
        after = page.body["next"].as_str().unwrap_or_default().to_owned();
        if after.is_empty() {
            break;
        }
    }
    assert_eq!((names, pages), (wanted, 3));
}

/// Whoever hears nothing sends a write again; in the meantime others may have written.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_without_a_body_is_done_once_too() {
    let cluster = Cluster::start(1).await;
    let mut registry = cluster.registry(cluster.leader().await);
    let http = cluster.http_address(1);
    let a = "/api/v1/namespaces/default/services/web/instances/a";
    register(&mut registry, "web", "a").await;
    let named = |number| format!("request_origin=77&request_number={number}&request_age_ms=9");
    let in_body = json!({ "origin": "77", "number": "1", "age_ms": 9 });
    let decided = json!({ "weight": 7, "request_id": in_body });
    for (number, line, body) in [
        (1, format!("PUT {a}/override"), decided),
        (2, format!("DELETE {a}/override?{}", named(2)), json!({})),
        (3, format!("DELETE {a}?{}", named(3)), json!({})),
    ] {
        let first = write(http, &line, &body).await;
        assert_eq!(first.status, 200, "{number}: {first:?}");
        // What it would do now is something else.
        let endpoints = json!({ "endpoints": { "http": "http://h:1" } });
        assert_eq!(write(http, &format!("PUT {a}"), &endpoints).await.status, 200, "{number}");
        let again = write(http, &line, &body).await;
        assert_eq!(again.status, 200, "{number}: {again:?}");
        for field in ["revision", "removed"] {
            assert_eq!(again.body[field], first.body[field], "{number}: {again:?}");
        }
    }
    assert_eq!(get(http, a).await.status, 200, "what came later is still there");
    let lease = register(&mut registry, "web", "b").await.lease_id;
    let line = format!("DELETE /api/v1/leases/{lease}?{}", named(4));
    let [first, again] =
        [write(http, &line, &json!({})).await, write(http, &line, &json!({})).await];
    assert_eq!((first.status, &first.body["removed"]), (200, &json!(1)), "{first:?}");
    assert_eq!(
        (again.status, &again.body["revision"]),
        (200, &first.body["revision"]),
        "{again:?}"
    );
    let nobodys = write(http, &format!("DELETE {a}?request_number=5"), &json!({})).await;
    assert_eq!((nobodys.status, &nobodys.body["code"]), (400, &json!("INVALID_ARGUMENT")));
}
