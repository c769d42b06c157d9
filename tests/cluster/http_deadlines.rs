//! How long a caller of the JSON API waits: as long as it says.

use std::net::SocketAddr;
use std::time::Duration;

use quorate_node::Tunables;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::calls::register;
use super::harness::{Cluster, SOON, within};
use super::http_api::{Answer, get, write};

const WEB: &str = "/api/v1/namespaces/default/services/web";
/// Answers come earlier than this by what the caller says, and later by what a node does unasked.
const EARLY: Duration = Duration::from_secs(4);

async fn timed(answer: impl Future<Output = Answer>) -> (Answer, Duration) {
    let begun = Instant::now();
    (answer.await, begun.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_says_how_long_it_waits_learns_by_then_why_nothing_came() {
    let mut cluster = Cluster::start(3).await;
    cluster.leader().await;
    let http = cluster.http_address(1);
    let spec = json!({ "endpoints": { "http": "http://h:1" } });
    let put = format!("PUT {WEB}/instances/a");
    let done = write(http, &format!("{put}?timeout=30s"), &spec).await;
    assert_eq!(done.status, 200, "{done:?}");
    cluster.stop(2).await;
    cluster.stop(3).await;
    let (refused, took) = timed(write(http, &format!("{put}?timeout=1s"), &spec)).await;
    refused.refuses(503, "UNAVAILABLE", None);
    assert!(took < EARLY, "a write: {took:?}");
    for path in [
        format!("{WEB}?timeout=1000ms"),
        format!("{WEB}/instances/a?timeout=1s"),
        format!("{WEB}/dependents?timeout=1s"),
        "/api/v1/namespaces/default/services?timeout=1s".to_owned(),
    ] {
        let (refused, took) = timed(get(http, &path)).await;
        refused.refuses(503, "UNAVAILABLE", None);
        assert!(took < EARLY, "{path}: {took:?}");
    }
    let (refused, took) = timed(get(http, WEB)).await;
    refused.refuses(503, "UNAVAILABLE", None);
    assert!(took > EARLY, "who does not say waits for what is usual: {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_waits_is_over_when_its_caller_gives_up() {
    let tunables = Tunables { deny_after_ms: 0, ..Tunables::default() };
    let cluster = Cluster::start_with(1, tunables).await;
    cluster.leader().await;
    register(&mut cluster.registry(1), "web", "a").await;
    let http = cluster.http_address(1);
    let first = get(http, WEB).await;
    let index = first.body["index"].as_str().unwrap();
    let (again, took) = timed(get(http, &format!("{WEB}?index={index}&timeout=900ms"))).await;
    assert_eq!((again.status, &again.body["index"]), (200, &json!(index)), "{again:?}");
    assert!(took > Duration::from_millis(500) && took < EARLY, "{took:?}");
    for (timeout, says) in [("0s", "1ms"), ("2", "its unit"), ("1w", "5m"), ("", "its unit")] {
        let bad = get(http, &format!("{WEB}?timeout={timeout}")).await;
        bad.refuses(400, "INVALID_ARGUMENT", Some("timeout"));
        assert!(bad.body["limit"].as_str().unwrap().contains(says), "{bad:?}");
    }
    let twice = get(http, &format!("{WEB}?timeout=1s&timeout=2s")).await;
    twice.refuses(400, "INVALID_ARGUMENT", Some("timeout"));
    for place in ["/sd/prometheus", "/api/v1/me", "/api/v1/status", "/api/v1/members"] {
        let answer = within(SOON, "it knows how old its state is", || async {
            let answer = get(http, &format!("{place}?timeout=10m")).await;
            (answer.status == 200).then_some(answer)
        });
        answer.await;
    }
}

/// The head of a write whose body does not come.
async fn without_body(to: SocketAddr, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let head = format!(
        "PUT {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Connection: close\r\nContent-Length: 100\r\n\r\n{{"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gives_up_before_its_body_is_there_is_told_so() {
    let cluster = Cluster::start(1).await;
    cluster.leader().await;
    let begun = Instant::now();
    let path = format!("{WEB}/instances/a?timeout=500ms");
    let mut stream = without_body(cluster.http_address(1), &path).await;
    let mut answer = String::new();
    let read = timeout(SOON, stream.read_to_string(&mut answer)).await;
    let took = begun.elapsed();
    read.unwrap_or_else(|_| panic!("it stays open: {answer}")).unwrap();
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
    assert!(answer.contains("application/problem+json"), "{answer}");
    assert!(answer.contains("DEADLINE_EXCEEDED") && answer.contains("500 ms"), "{answer}");
    assert!(took < EARLY, "{took:?}");
}
