//! Who may ask what by HTTP: each route, with every kind of credential. A route makes a call of
//! gRPC, so the table is that of `rights.rs`: here stands only which row holds for which route. A
//! route that is described and has no line here fails.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Code;

use super::guarded::{Guarded, ROOT};
use super::harness::SOON;
use super::http_described::described;
use super::rights::{NOBODY, ROWS, SOMEBODY, access, lease};

const ORDERS: &str = "/api/v1/namespaces/{ns}/services/{service}";

/// A method and a path as it is described, what follows the path, and the row; no row: all who are
/// somebody may.
type Line = (&'static str, &'static str, &'static str, Option<&'static str>);

/// `$` stands for [`ORDERS`].
const LINES: [Line; 27] = [
    ("GET", "/api/v1/me", "", None),
    ("GET", "/api/v1/members", "", Some("Registry/ListMembers")),
    ("GET", "/api/v1/status", "", Some("Admin/Status")),
    ("GET", "/api/v1/status", "?local_only=true", Some("Admin/Status")),
    ("POST", "/api/v1/transfer-leader", "", Some("Admin/TransferLeader")),
    ("POST", "/api/v1/snapshot", "", Some("Admin/TriggerSnapshot")),
    ("PUT", "/api/v1/leases/{lease_id}", "", Some("Registry/Renew")),
    ("DELETE", "/api/v1/leases/{lease_id}", "", Some("Registry/Deregister of a lease")),
    ("GET", "/api/v1/namespaces/{ns}/services", "?prefix=orders", Some("Registry/ListServices")),
    ("GET", "/api/v1/namespaces/{ns}/services", "", Some("Registry/ListServices of all")),
    ("GET", "/api/v1/namespaces/{ns}/overrides", "", Some("Admin/ListOverrides")),
    ("GET", "/api/v1/namespaces/{ns}/watch", "?service=orders", Some("Registry/Watch")),
    ("GET", "/api/v1/namespaces/{ns}/watch", "?prefix=orders", Some("Registry/Watch")),
    (
        "GET",
        "/api/v1/namespaces/{ns}/watch",
        "?prefix=order",
        Some("Registry/Watch of more than the prefix"),
    ),
    ("GET", "/api/v1/namespaces/{ns}/watch", "", Some("Registry/Watch of more than the prefix")),
    ("GET", "/sd/prometheus", "?prefix=orders", Some("Registry/Watch")),
    ("GET", "/sd/prometheus", "", Some("Registry/Fetch of all")),
    ("GET", "$", "", Some("Registry/Fetch")),
    ("GET", "$", "?index=0&wait=1s", Some("Registry/Fetch")),
    ("GET", "$/dependents", "", Some("Registry/ListDependents")),
    ("GET", "$/instances/{id}", "", Some("Registry/Fetch")),
    ("PUT", "$/instances/{id}", "", Some("Registry/Register")),
    ("PUT", "$/instances/{id}", "#lease", Some("Registry/Register under a lease")),
    ("PATCH", "$/instances/{id}", "", Some("Registry/Update")),
    ("DELETE", "$/instances/{id}", "", Some("Registry/Deregister")),
    ("PUT", "$/instances/{id}/override", "", Some("Admin/SetOverride")),
    ("DELETE", "$/instances/{id}/override", "", Some("Admin/SetOverride")),
];

fn path_of(line: &Line) -> String {
    line.1.replace('$', ORDERS)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_route_has_a_line() {
    let guarded = Guarded::start(1, "").await;
    let described = described(guarded.cluster.http_address(1)).await;
    let routes: BTreeSet<(String, String)> = described
        .into_iter()
        .flat_map(|(path, methods)| methods.into_keys().map(move |method| (method, path.clone())))
        .collect();
    let lines: BTreeSet<_> = LINES.iter().map(|line| (line.0.to_owned(), path_of(line))).collect();
    assert_eq!(lines, routes);
}

/// Sends a request, and reads the head of its answer: a stream has no end. The status and the head.
async fn begin(to: SocketAddr, line: &str, token: Option<&str>, body: &str) -> (u16, String) {
    let authorization =
        token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let request = format!(
        "{line} HTTP/1.0\r\nHost: elsewhere\r\n{authorization}Content-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let exchanged = async {
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            let read = stream.read_buf(&mut head).await.unwrap();
            assert!(read > 0, "{line}: it closed");
        }
        String::from_utf8_lossy(&head).to_lowercase()
    };
    let head = timeout(SOON, exchanged).await.expect("it answers");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head)
}

/// Asks as a line says. What is to be there was made before by somebody who may.
async fn ask(guarded: &Guarded, line: &Line, token: Option<&str>) -> (u16, String) {
    let to = guarded.cluster.http_address(1);
    let lease_id = lease(guarded, "orders", "a").await.to_string();
    let (method, _, after, _) = line;
    let of = path_of(line).replace("{ns}", "default").replace("{service}", "orders");
    let path = of.replace("{id}", "a").replace("{lease_id}", &lease_id);
    let is_override = path.ends_with("/override");
    if is_override && *method == "DELETE" {
        let set = begin(to, &format!("PUT {path}"), Some(ROOT), r#"{"weight":1}"#).await;
        assert_eq!(set.0, 200, "{}", set.1);
    }
    let endpoints = json!({ "http": "http://h:1" });
    let body = match (*method, *after) {
        ("PUT", _) if is_override => json!({ "weight": 1 }),
        ("PUT", "#lease") => json!({ "endpoints": endpoints, "lease_id": lease_id }),
        ("PUT", _) if path.contains("/instances/") => json!({ "endpoints": endpoints }),
        ("PATCH", _) => json!({ "load": 3 }),
        ("POST", _) if path.ends_with("leader") => json!({ "to_id": "99" }),
        _ => json!({}),
    };
    let after = after.trim_start_matches("#lease");
    begin(to, &format!("{method} {path}{after}"), token, &body.to_string()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_route_takes_those_who_may_and_nobody_else() {
    let guarded = Guarded::start(1, &access()).await;
    let mut wrong = Vec::new();
    for line in &LINES {
        let row = line.3.map(|row| ROWS.iter().find(|(of, ..)| *of == row).expect(row));
        let (columns, taken) =
            row.map_or(("yyyyyy", Code::Ok), |(_, columns, code)| (columns, *code));
        let taken = match taken {
            Code::Ok => 200,
            Code::FailedPrecondition => 409,
            other => panic!("{other:?} is of no route"),
        };
        for token in NOBODY {
            let (status, head) = ask(&guarded, line, token).await;
            if status != 401 || !head.contains("www-authenticate: bearer") {
                wrong.push(format!("{line:?} for {token:?}: {head}"));
            }
        }
        for (token, column) in SOMEBODY.into_iter().zip(columns.chars()) {
            let (status, head) = ask(&guarded, line, Some(token)).await;
            let expected = match column {
                'y' => taken,
                'u' => 404,
                _ => 403,
            };
            let is_problem = head.contains("content-type: application/problem+json");
            if status != expected || is_problem != (expected >= 400) {
                wrong.push(format!("{line:?} for {token}: {head}, not {expected}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
