//! `/openapi.json` and the routes are the same: what it names answers, with the methods and the
//! parameters that it names, and nothing else does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::guarded::Guarded;
use super::harness::{Cluster, SOON};
use super::http_api::{Answer, get, send};

pub(crate) const PLACE: &str = "/openapi.json";

/// The methods that a route may have.
const METHODS: [&str; 7] = ["GET", "PUT", "POST", "PATCH", "DELETE", "OPTIONS", "TRACE"];

/// What is described: the methods of each path, and of these the parameters in the query.
pub(crate) async fn described(
    to: SocketAddr,
) -> BTreeMap<String, BTreeMap<String, BTreeSet<String>>> {
    let document = get(to, PLACE).await.body;
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let in_query = |operation: &Value| {
        let parameters = operation["parameters"].as_array().unwrap().iter();
        let of_query = parameters.filter(|parameter| parameter["in"] == "query");
        of_query.map(|parameter| text(&parameter["name"])).collect()
    };
    let methods = |item: &Value| {
        let operations = item.as_object().unwrap().iter();
        operations.map(|(method, of)| (method.to_uppercase(), in_query(of))).collect()
    };
    let paths = document["paths"].as_object().unwrap().iter();
    paths.map(|(path, item)| (path.clone(), methods(item))).collect()
}

/// A path with something for each name in braces.
fn filled(path: &str) -> String {
    let filled = path.replace("{lease_id}", "77").replace("{ns}", "default");
    let filled = filled.replace("{service}", "web").replace("{id}", "a");
    assert!(!filled.contains('{'), "{path}");
    filled
}

async fn ask(to: SocketAddr, method: &str, path: &str) -> Answer {
    let lines = [&*format!("{method} {path} HTTP/1.0"), "Host: localhost"];
    let typed = [&lines[..], &["Content-Type: application/json"]].concat();
    send(to, &typed, b"{}").await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_path_takes_the_methods_that_are_described_and_no_other() {
    let cluster = Cluster::start(1).await;
    cluster.leader().await;
    let http = cluster.http_address(1);
    let described = described(http).await;
    assert!(described.len() > 10, "{described:?}");
    for (path, methods) in described {
        for method in METHODS {
            // A query that is taken nowhere: nothing is done, and nothing streams.
            let answer = ask(http, method, &format!("{}?no-such=1", filled(&path))).await;
            if methods.contains_key(method) {
                answer.refuses(400, "INVALID_ARGUMENT", Some("no-such"));
                continue;
            }
            answer.refuses(405, "UNIMPLEMENTED", None);
            let allowed: BTreeSet<_> = answer.header("allow").unwrap().split(',').collect();
            let mut expected: BTreeSet<_> =
                methods.keys().map(|name| name.to_lowercase()).collect();
            if expected.contains("get") {
                expected.insert("head".to_owned());
            }
            assert_eq!(allowed, expected.iter().map(String::as_str).collect(), "{path}");
        }
    }
}

/// A route says what it takes when it is asked for something else.
#[tokio::test(flavor = "multi_thread")]
async fn each_route_takes_the_parameters_that_are_described_and_no_other() {
    let cluster = Cluster::start(1).await;
    cluster.leader().await;
    let http = cluster.http_address(1);
    let mut with_some = 0;
    for (path, methods) in described(http).await {
        for (method, parameters) in methods {
            let answer = ask(http, &method, &format!("{}?no-such=1", filled(&path))).await;
            let limit = answer.body["limit"].as_str().unwrap_or_default();
            let (_, taken) =
                limit.split_once("which takes ").unwrap_or_else(|| panic!("{answer:?}"));
            let taken = taken.split(", ").filter(|name| *name != "none");
            let taken: BTreeSet<_> = taken.map(str::to_owned).collect();
            assert_eq!(taken, parameters, "{method} {path}: the routes, and what is described");
            with_some += usize::from(!taken.is_empty());
        }
    }
    assert!(with_some > 8, "{with_some}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_description_takes_no_credential_and_is_sent_once() {
    let guarded = Guarded::start(1, "").await;
    let http = guarded.cluster.http_address(1);
    let first = get(http, PLACE).await;
    assert_eq!((first.status, &first.body["openapi"]), (200, &"3.1.0".into()), "{first:?}");
    let line = format!("If-None-Match: {}", first.header("etag").unwrap());
    let lines = [&*format!("GET {PLACE} HTTP/1.0"), "Host: elsewhere", &line];
    let again = send(http, &lines, b"").await;
    assert_eq!((again.status, again.body), (304, Value::Null));
    let unknown = get(http, "/api/v1/nothing").await;
    unknown.refuses(404, "NOT_FOUND", None);
    assert!(unknown.body["detail"].as_str().unwrap().contains(PLACE), "{unknown:?}");
    let other = get(guarded.cluster.http_address(1), "/api/v1/me").await;
    other.refuses(401, "UNAUTHENTICATED", None);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_route_is_counted_by_its_template_and_nothing_else_is_a_label() {
    let cluster = Cluster::start(1).await;
    cluster.leader().await;
    let http = cluster.http_address(1);
    let described = described(http).await;
    for (path, methods) in &described {
        for method in methods.keys() {
            let line = format!("{method} {}?no-such=1", filled(path));
            let counted = format!("method=\"{method}\",route=\"{path}\",code=");
            assert!(requests(http).await.contains_key(&format!("{counted}\"200\"")), "{line}");
            ask(http, method, line.split_once(' ').unwrap().1).await;
            assert_eq!(requests(http).await[&format!("{counted}\"400\"")], 1, "{line}");
        }
    }
    for line in ["BREW /api/v1/me", "GET /api/v1/not-there", "GET /not-there/either"] {
        let (method, path) = line.split_once(' ').unwrap();
        let _text =
            exchange(http, &format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")).await;
    }
    let requests = requests(http).await;
    assert_eq!(requests["method=\"other\",route=\"/api/v1/me\",code=\"405\""], 1);
    assert_eq!(requests["method=\"GET\",route=\"none\",code=\"404\""], 2);
    let text = format!("{requests:?}");
    assert!(!text.contains("not-there") && !text.contains("BREW"), "{text}");
}

/// The counters of requests, by their labels.
async fn requests(to: SocketAddr) -> BTreeMap<String, u64> {
    let text = exchange(to, "GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").await;
    let lines = text.lines().filter_map(|line| line.strip_prefix("quorate_http_requests_total{"));
    let counts = lines.map(|line| line.split_once("} ").unwrap());
    counts.map(|(labels, count)| (labels.to_owned(), count.parse().unwrap())).collect()
}

async fn exchange(to: SocketAddr, request: &str) -> String {
    let exchanged = async {
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    timeout(SOON, exchanged).await.expect("it answers and closes")
}
