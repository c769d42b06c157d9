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
use super::metrics::{get, put};
use super::rights::{NEVER_TOLD, NOBODY, ROWS, SOMEBODY, access, lease, refusals};

const ORDERS: &str = "/api/v1/namespaces/{ns}/services/{service}";

/// A method and a path as it is described, what follows the path, and the row; no row: all who are
/// somebody may.
pub(crate) type Line = (&'static str, &'static str, &'static str, Option<&'static str>);

/// `$` stands for [`ORDERS`].
pub(crate) const LINES: [Line; 38] = [
    ("GET", "/api/v1/me", "", None),
    ("GET", "/api/v1/members", "", Some("Registry/ListMembers")),
    ("GET", "/api/v1/status", "", Some("Admin/Status")),
    ("GET", "/api/v1/status", "?local_only=true", Some("Admin/Status")),
    ("POST", "/api/v1/transfer-leader", "", Some("Admin/TransferLeader")),
    ("POST", "/api/v1/snapshot", "", Some("Admin/TriggerSnapshot")),
    ("PUT", "/api/v1/leases", "", Some("Registry/Renew")),
    ("PUT", "/api/v1/leases/{lease_id}", "", Some("Registry/Renew")),
    ("DELETE", "/api/v1/leases/{lease_id}", "", Some("Registry/Deregister of a lease")),
    ("GET", "/api/v1/namespaces/{ns}/services", "?prefix=orders", Some("Registry/ListServices")),
    (
        "GET",
        "/api/v1/namespaces/{ns}/services",
        "?prefix=orders&after=payments",
        Some("Registry/ListServices"),
    ),
    (
        "GET",
        "/api/v1/namespaces/{ns}/services",
        "?prefix=order",
        Some("Registry/ListServices of all"),
    ),
    ("GET", "/api/v1/namespaces/{ns}/services", "", Some("Registry/ListServices of all")),
    ("GET", "/api/v1/namespaces/{ns}/overrides", "", Some("Admin/ListOverrides")),
    ("GET", "/api/v1/namespaces/{ns}/watch", "?service=orders", Some("Registry/Watch")),
    ("GET", "/api/v1/namespaces/{ns}/watch", "?prefix=orders", Some("Registry/Watch")),
    ("GET", "/api/v1/namespaces/{ns}/watch", "?prefix=orders&from=oldest", Some("Registry/Watch")),
    (
        "GET",
        "/api/v1/namespaces/{ns}/watch",
        "?from=oldest",
        Some("Registry/Watch of more than the prefix"),
    ),
    (
        "GET",
        "/api/v1/namespaces/{ns}/watch",
        "?prefix=order",
        Some("Registry/Watch of more than the prefix"),
    ),
    ("GET", "/api/v1/namespaces/{ns}/watch", "", Some("Registry/Watch of more than the prefix")),
    (
        "GET",
        "/api/v1/namespaces/{ns}/watch",
        "?service=orders&service=payments",
        Some("Registry/Fetch of two, one of them another\'s"),
    ),
    ("GET", "/sd/prometheus", "?prefix=orders", Some("Registry/Watch")),
    ("GET", "/sd/prometheus", "?prefix=orders&endpoint=http", Some("Registry/Watch")),
    ("GET", "/sd/prometheus", "?prefix=order", Some("Registry/Fetch of all")),
    ("GET", "/sd/prometheus", "", Some("Registry/Fetch of all")),
    (
        "GET",
        "/sd/prometheus",
        "?namespace=elsewhere",
        Some("Admin/SetOverride of another namespace"),
    ),
    ("GET", "$", "", Some("Registry/Fetch")),
    ("GET", "$", "?index=0&wait=1s", Some("Registry/Fetch")),
    ("GET", "$", "?after=orders/a&consistency=local", Some("Registry/Fetch")),
    ("GET", "$/dependents", "", Some("Registry/ListDependents")),
    ("GET", "$/inspection", "", Some("Admin/InspectService")),
    ("GET", "$/instances/{id}", "", Some("Registry/Fetch")),
    ("PUT", "$/instances/{id}", "", Some("Registry/Register")),
    ("PUT", "$/instances/{id}", "#lease", Some("Registry/Register under a lease")),
    ("PATCH", "$/instances/{id}", "", Some("Registry/Update")),
    ("DELETE", "$/instances/{id}", "", Some("Registry/Deregister")),
    ("PUT", "$/instances/{id}/override", "", Some("Admin/SetOverride")),
    ("DELETE", "$/instances/{id}/override", "", Some("Admin/SetOverride")),
];

/// Rows that no route leads to, and why.
const NOT_BY_HTTP: [(&str, &str); 7] = [
    (
        "Registry/Register of two, one of them another\'s",
        "one PUT for each, the later ones with the `lease_id` of the first",
    ),
    ("Registry/RenewStream", "PUT /leases renews many in one request"),
    ("Admin/AddNode", "the command line: it goes on for long, and is done again until it is done"),
    ("Admin/RemoveNode", "the command line, as AddNode"),
    ("Admin/ReplaceNode", "the command line, as AddNode"),
    ("Admin/Upgrade", "the command line: it cannot be taken back"),
    ("Admin/Backup", "the command line: it checks the bytes, and writes a file"),
];

pub(crate) fn path_of(line: &Line) -> String {
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

/// And so each method: `each_method_has_a_row` looks at the contract.
#[test]
fn each_row_has_a_route_or_a_reason() {
    let rows: BTreeSet<&str> = ROWS.iter().map(|(row, ..)| *row).collect();
    let mut found: BTreeSet<&str> = LINES.iter().filter_map(|line| line.3).collect();
    for (row, why) in NOT_BY_HTTP {
        assert!(!why.is_empty() && found.insert(row), "{row} has a route: {why}");
    }
    assert_eq!(found, rows);
}

/// Sends a request, and reads the head of its answer, in small letters, since a stream has no end;
/// of a refusal, its body as well. The status and what was read.
pub(crate) async fn begin(
    to: SocketAddr,
    line: &str,
    token: Option<&str>,
    body: &str,
) -> (u16, String) {
    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n"));
    begin_with(to, line, &authorization.unwrap_or_default(), body).await
}

/// The same, with these headers.
async fn begin_with(to: SocketAddr, line: &str, headers: &str, body: &str) -> (u16, String) {
    let request = format!(
        "{line} HTTP/1.0\r\nHost: elsewhere\r\n{headers}Content-Type: application/json\r\n\
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
        let end = head.windows(4).position(|end| end == b"\r\n\r\n").unwrap();
        head[..end].make_ascii_lowercase();
        let status = String::from_utf8_lossy(&head[..end]).split(' ').nth(1).unwrap().parse();
        let status: u16 = status.unwrap();
        if status >= 400 {
            // With a reset, where it has not read all that was sent.
            let _closed = stream.read_to_end(&mut head).await;
        }
        (status, String::from_utf8_lossy(&head).into_owned())
    };
    timeout(SOON, exchanged).await.expect("it answers")
}

/// The path of a line with its query, and its body, where this lease is that of `orders/a`.
pub(crate) fn filled(line: &Line, lease_id: u64) -> (String, String) {
    let lease_id = lease_id.to_string();
    let (method, _, after, _) = line;
    let of = path_of(line).replace("{ns}", "default").replace("{service}", "orders");
    let path = of.replace("{id}", "a").replace("{lease_id}", &lease_id);
    let is_override = path.ends_with("/override");
    let endpoints = json!({ "http": "http://h:1" });
    let body = match (*method, *after) {
        ("PUT", _) if is_override => json!({ "weight": 1 }),
        ("PUT", "#lease") => json!({ "endpoints": endpoints, "lease_id": lease_id }),
        ("PUT", _) if path.ends_with("/leases") => json!({ "lease_ids": [lease_id] }),
        ("PUT", _) if path.contains("/instances/") => json!({ "endpoints": endpoints }),
        ("PATCH", _) => json!({ "load": 3 }),
        ("POST", _) if path.ends_with("leader") => json!({ "to_id": "99" }),
        _ => json!({}),
    };
    (path + after.trim_start_matches("#lease"), body.to_string())
}

/// Asks as a line says. What is to be there was made before by somebody who may.
async fn ask(guarded: &Guarded, line: &Line, token: Option<&str>) -> (u16, String) {
    let to = guarded.cluster.http_address(1);
    let (path, body) = filled(line, lease(guarded, "orders", "a").await);
    if path.ends_with("/override") && line.0 == "DELETE" {
        let set = begin(to, &format!("PUT {path}"), Some(ROOT), r#"{"weight":1}"#).await;
        assert_eq!(set.0, 200, "{}", set.1);
    }
    begin(to, &format!("{} {path}", line.0), token, &body).await
}

/// Which routes answer otherwise than their lines say, to those who prove nothing, and to somebody
/// for each column of the rows.
pub(crate) async fn wrong_answers(
    guarded: &Guarded,
    nobody: &[Option<&str>],
    somebody: &[&str; 6],
) -> Vec<String> {
    let mut wrong = Vec::new();
    // What no refusal may tell of.
    lease(guarded, "payments", "hidden").await;
    for line in &LINES {
        let row = line.3.map(|row| ROWS.iter().find(|(of, ..)| *of == row).expect(row));
        let (columns, taken) =
            row.map_or(("yyyyyy", Code::Ok), |(_, columns, code)| (columns, *code));
        let taken = match taken {
            Code::Ok => 200,
            Code::FailedPrecondition => 409,
            other => panic!("{other:?} is of no route"),
        };
        for token in nobody {
            let (status, head) = ask(guarded, line, *token).await;
            wrong.extend(told_too_much(line, *token, status, &head));
            if status != 401 || !head.contains("www-authenticate: bearer") {
                wrong.push(format!("{line:?} for {token:?}: {head}"));
            }
        }
        for (token, column) in somebody.iter().zip(columns.chars()) {
            let (status, head) = ask(guarded, line, Some(token)).await;
            wrong.extend(told_too_much(line, Some(token), status, &head));
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
    wrong
}

/// CVE-2026-44283 (etcd) and its kind: what a refusal tells, in its head or its body.
fn told_too_much(line: &Line, token: Option<&str>, status: u16, told: &str) -> Option<String> {
    let never = NEVER_TOLD.iter().find(|word| told.contains(**word)).filter(|_| status >= 400)?;
    Some(format!("{line:?} for {token:?}: {never:?} in {told}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_route_takes_those_who_may_and_nobody_else() {
    let guarded = Guarded::start_audited(1, &access()).await;
    let wrong = wrong_answers(&guarded, &NOBODY, &SOMEBODY).await;
    assert!(wrong.is_empty(), "{wrong:#?}");
    let row = |name: &str| ROWS.iter().find(|(of, ..)| *of == name).expect("a row").1;
    let known = refusals(LINES.iter().filter_map(|line| line.3).map(row));
    guarded.each_refusal_is_told(&known, LINES.len() * NOBODY.len()).await;
}

/// CVE-2024-10006 (Consul): readers of the first of two headers and readers of the last differ. Two
/// credentials are none, on each route, also those that stream; so it is for calls (`rights.rs`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_credentials_in_one_request_are_none() {
    let guarded = Guarded::start(1, &access()).await;
    let to = guarded.cluster.http_address(1);
    let lease_id = lease(&guarded, "orders", "a").await;
    let mut taken = Vec::new();
    for line in LINES.iter().chain(&[("GET", "/metrics", "", None)]) {
        let (path, body) = filled(line, lease_id);
        for (first, second) in [(ROOT, ROOT), (ROOT, "qrt_wrong"), ("qrt_wrong", ROOT), (ROOT, "")]
        {
            let headers = [first, second].map(|token| format!("Authorization: Bearer {token}\r\n"));
            let asked = format!("{} {path}", line.0);
            let (status, head) = begin_with(to, &asked, &headers.concat(), &body).await;
            if status != 401 || !head.contains("www-authenticate: bearer") {
                taken.push(format!("{asked} by {first:?} and {second:?}: {head}"));
            }
        }
    }
    assert!(taken.is_empty(), "{taken:#?}");
}

/// CVE-2024-10005 (Consul) and its kind: what a header says up to a byte that ends strings
/// elsewhere, and headers that are too large, also beside the right one. Such a request is refused
/// or its connection ends; others go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_that_is_cut_or_too_large_gains_nothing() {
    let guarded = Guarded::start(1, &access()).await;
    let to = guarded.cluster.http_address(1);
    let large = format!("{ROOT}\r\nX-Large: {}", "a".repeat(64 * 1024));
    // CVE-2026-29181 (opentelemetry-go), see `rights.rs`.
    let baggage = format!("{ROOT}{}", "\r\nBaggage: k=v".repeat(2_000));
    for (what, token, expected) in [
        ("a NUL behind the token", format!("{ROOT}\0"), 400),
        ("a NUL in front of it", format!("\0{ROOT}"), 400),
        ("a NUL in it", ROOT.replace('_', "_\0"), 400),
        ("another token behind a NUL", format!("qrt_wrong\0 Bearer {ROOT}"), 400),
        ("64 KiB beside it", large, 431),
        ("baggage beside it", baggage, 431),
    ] {
        for path in ["/api/v1/me", "/metrics"] {
            let answer = get(to, path, Some(token.as_str())).await;
            let status = answer.as_ref().map(|answer| answer.status);
            assert!(status.is_none_or(|status| status == expected), "{what}: {answer:?}");
            let next = get(to, path, Some(ROOT)).await.map(|answer| answer.status);
            assert_eq!(next, Some(200), "after {what}");
        }
    }
}

const SERVICES: &str = "/api/v1/namespaces/default/services";

/// `$` stands for [`SERVICES`]. Each leads to `payments`, or to the metrics, for who reads it
/// carelessly.
const ODD_PATHS: [&str; 31] = [
    "$/orders/../payments",
    "$/orders/..;/payments",
    "$/orders;/../payments",
    "$/orders/%2e%2e/payments",
    "$/orders%2F..%2Fpayments",
    "$/orders%2f%2e%2e%2fpayments",
    "$/orders%252F..%252Fpayments",
    "$/orders\\..\\payments",
    "$/orders%00/payments",
    "$/%70ayments",
    "$/payments%00",
    "$/payments/",
    "$/payments;orders",
    "$/payments?service=orders",
    "$/payments#/healthz",
    "$/PAYMENTS",
    "$//payments",
    "/$/payments",
    "/x;/..$/payments",
    "/healthz/..$/payments",
    "/healthz;/..$/payments",
    "/healthz%3F/..$/payments",
    "/console/..$/payments",
    "/console/%2e%2e$/payments",
    "/openapi.json/..$/payments",
    "http://one.example$/payments",
    "/healthz/../metrics",
    "/healthz;/metrics",
    "//metrics",
    "/%6detrics",
    "/metrics/",
];

const HEADERS: [&str; 12] = [
    "X-Original-URL: $/payments",
    "X-Rewrite-URL: $/payments",
    "Forwarded: for=127.0.0.1",
    "X-Forwarded-For: 127.0.0.1",
    "X-Forwarded-Client-Cert: URI=spiffe://quorate/node/1",
    "User-Agent: Nacos-Server",
    "ServerIdentity: security",
    "AccessToken: qrt_root",
    "X-Consul-Token: qrt_root",
    "Cookie: token=qrt_root",
    "Authorization: Basic cXJ0X3Jvb3Q6",
    "Proxy-Authorization: Bearer qrt_root",
];

/// What is sent back to a request with one more header, until the node closes.
async fn with_header(to: SocketAddr, path: &str, header: &str) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{header}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(SOON, stream.read_to_string(&mut answer)).await.expect("it closes").unwrap();
    answer
}

/// Nacos #4701, #4779, and the kind of CVE-2026-33186 (grpc-go): what is asked for, and who asks,
/// was read in another way by those who decide than by those who answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_spelling_of_a_path_and_no_header_gains_a_right() {
    let guarded = Guarded::start(1, &access()).await;
    let to = guarded.cluster.http_address(1);
    let payments = format!("{SERVICES}/payments");
    lease(&guarded, "orders", "a").await;
    lease(&guarded, "payments", "hidden").await;
    let tells = |text: &str| text.contains("hidden") || text.contains("quorate_instances");
    for path in [&payments, &format!("{SERVICES}/%70ayments"), "/metrics"] {
        let found = get(to, path, Some(ROOT)).await.unwrap();
        assert!(found.status == 200 && tells(&found.body), "it is there: {path}: {}", found.body);
    }
    for path in ODD_PATHS.map(|path| path.replace('$', SERVICES)) {
        for token in [None, Some("qrt_wrong"), Some("qrt_read")] {
            // What is no request at all may be answered by the end of the connection.
            let Some(answer) = get(to, &path, token).await else { continue };
            let is_refused = (400..500).contains(&answer.status) && !tells(&answer.body);
            assert!(is_refused, "{path} for {token:?}: {} {}", answer.status, answer.body);
        }
        let instance = format!("{path}/instances/planted");
        let body = r#"{"endpoints":{"http":"http://h:1"}}"#;
        if let Some(answer) = put(to, &instance, Some("qrt_register"), body).await {
            assert!((400..500).contains(&answer.status), "{instance}: {}", answer.body);
        }
    }
    for header in HEADERS.map(|header| header.replace('$', SERVICES)) {
        for path in [&payments, "/healthz", "/metrics", &format!("{payments}?token=qrt_root")] {
            let answer = with_header(to, path, &header).await;
            let is_open = path == "/healthz" && answer.starts_with("HTTP/1.1 200 ");
            // What is no parameter is refused first, by its name.
            let refusal = if path.contains('?') { "HTTP/1.1 400 " } else { "HTTP/1.1 401 " };
            let is_refused = is_open || answer.starts_with(refusal);
            assert!(is_refused && !tells(&answer), "{path}, {header}: {answer}");
        }
    }
    let kept = get(to, &payments, Some(ROOT)).await.unwrap().body;
    assert!(kept.contains("hidden") && !kept.contains("planted"), "{kept}");
}
