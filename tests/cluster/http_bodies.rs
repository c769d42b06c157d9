//! Bodies of requests by HTTP: read once it is known who sends them, in time, as long as they say,
//! and as they are.

use std::net::SocketAddr;
use std::time::Duration;

use quorate_node::Tunables;
use quorate_proto::v1::RenewRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tonic::{Code, Request};

use super::calls::renewal;
use super::guarded::{Guarded, ROOT, entry};
use super::harness::{Cluster, SOON, eventually};
use super::http_api::get;
use super::rights::lease;
use super::rights_http::{LINES, filled};

const A: &str = "/api/v1/namespaces/default/services/web/instances/a";
const BODY: &str = r#"{"endpoints":{"http":"http://h:1"}}"#;
/// The body is sent once it is asked for.
const EXPECT: &str = "Expect: 100-continue\r\n";
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// A body that does not come is waited for longer than this.
const BEFORE_BODIES: Duration = Duration::from_secs(5);

/// What is answered to these bytes until the node closes the connection; the other half stays open.
async fn answer(to: SocketAddr, bytes: &[u8], within: Duration) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let read = timeout(within, stream.read_to_end(&mut answer)).await;
    let answer = String::from_utf8(answer).unwrap();
    read.unwrap_or_else(|_| panic!("nothing came, or it stays open: {answer}")).ok();
    answer
}

/// The head of a request whose body has this many bytes.
fn head(line: &str, headers: &str, bytes: &str) -> Vec<u8> {
    format!(
        "{line} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\
         \r\n{headers}Content-Length: {bytes}\r\n\r\n"
    )
    .into_bytes()
}

fn is_status(answer: &str, status: u16) -> bool {
    answer.starts_with(&format!("HTTP/1.1 {status} "))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_read_only_of_those_who_may_send_it() {
    let access = entry("qrt_reads", "role = 'read'\nnamespace = '*'\nprefix = ''")
        + &entry("qrt_other", "role = 'register'\nnamespace = 'default'\nprefix = 'other'");
    let guarded = Guarded::start(1, &access).await;
    let http = guarded.cluster.http_address(1);
    for line in [
        &format!("PUT {A}"),
        &format!("PATCH {A}"),
        &format!("DELETE {A}"),
        &format!("PUT {A}/override"),
        &format!("DELETE {A}/override"),
        "POST /api/v1/transfer-leader",
        "POST /api/v1/snapshot",
    ] {
        for (token, status) in [("qrt_wrong", 401), ("qrt_reads", 403), ("qrt_other", 403)] {
            let token = format!("{EXPECT}Authorization: Bearer {token}\r\n");
            let refused = answer(http, &head(line, &token, "1000000"), BEFORE_BODIES).await;
            assert!(is_status(&refused, status), "{line}, {token}: {refused}");
        }
        let refused = answer(http, &head(line, EXPECT, "1000000"), BEFORE_BODIES).await;
        assert!(is_status(&refused, 401), "{line}: {refused}");
    }
    for line in ["PUT /api/v1/leases/7", "DELETE /api/v1/leases/7"] {
        let token = "Authorization: Bearer qrt_reads\r\n";
        let refused = answer(http, &head(line, token, "1000000"), BEFORE_BODIES).await;
        assert!(is_status(&refused, 403), "{line}: {refused}");
    }
    // Who may is not refused before the body is there.
    let token = "Authorization: Bearer qrt_other\r\n";
    let theirs = format!("PUT {}", A.replace("web", "other"));
    let mut whole = head(&theirs, token, &BODY.len().to_string());
    whole.extend(BODY.bytes());
    let taken = answer(http, &whole, SOON).await;
    assert!(is_status(&taken, 200), "{taken}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_body_ends_in_time_and_leaves_its_place() {
    let tunables = Tunables { http_connections_max: 4, ..Tunables::default() };
    let cluster = Cluster::start_with(1, tunables).await;
    cluster.leader().await;
    let http = cluster.http_address(1);
    let mut slow = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(http).await.unwrap();
        stream.write_all(&head(&format!("PUT {A}"), EXPECT, "100")).await.unwrap();
        let mut asked_for = [0; CONTINUE.len()];
        timeout(SOON, stream.read_exact(&mut asked_for)).await.expect("it is asked for").unwrap();
        assert_eq!(asked_for, *CONTINUE);
        stream.write_all(b"{").await.unwrap();
        slow.push(stream);
    }
    // All places of an address are taken: a third one is closed, or refused.
    let asks = head(&format!("GET {A}"), "", "0");
    let refused = answer(http, &asks, SOON).await;
    assert!(!is_status(&refused, 404), "{refused}");
    let begun = Instant::now();
    for mut stream in slow {
        let mut late = Vec::new();
        let read = timeout(SOON, stream.read_to_end(&mut late)).await;
        let (took, late) = (begun.elapsed(), String::from_utf8(late).unwrap());
        read.unwrap_or_else(|_| panic!("it stays open: {late}")).unwrap();
        assert!(is_status(&late, 408), "after {took:?}: {late}");
        assert!(late.contains("DEADLINE_EXCEEDED"), "{late}");
    }
    // A place is free when the node has seen that the caller closed, too.
    let again = eventually("their places are free", || async {
        let answered = answer(http, &asks, SOON).await;
        is_status(&answered, 404).then_some(answered)
    });
    assert!(again.await.contains("NOT_FOUND"));
}

/// As many as one address may have under way that are not whole, and some more.
const LARGE: usize = 70;
const BODY_MAX: usize = 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn there_is_room_for_some_bodies_that_are_not_whole() {
    let cluster = Cluster::start(1).await;
    cluster.leader().await;
    let http = cluster.http_address(1);
    let mut bodies = JoinSet::new();
    for _ in 0..LARGE {
        bodies.spawn(async move {
            let mut stream = TcpStream::connect(http).await.unwrap();
            let whole = head(&format!("PUT {A}"), "", &BODY_MAX.to_string());
            stream.write_all(&whole).await.unwrap();
            // All but a byte; it may be refused before.
            let _sent = stream.write_all(&vec![b' '; BODY_MAX - 1]).await;
            let mut answer = Vec::new();
            let _closed = stream.read_to_end(&mut answer).await;
            String::from_utf8(answer).unwrap()
        });
    }
    let first = timeout(BEFORE_BODIES, bodies.join_next()).await.expect("one is refused at once");
    let first = first.unwrap().unwrap();
    assert!(is_status(&first, 429), "{first}");
    for said in ["application/problem+json", "retry-after: 1", "at most 67108864 bytes"] {
        assert!(first.contains(said), "{first}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lengths_that_lie_are_refused() {
    let cluster = Cluster::start(1).await;
    cluster.leader().await;
    let http = cluster.http_address(1);
    let put = format!("PUT {A}");
    let whole = |length: &str, body: &[u8]| [head(&put, "", length), body.to_vec()].concat();
    let chunked = |body: &[u8]| {
        let head = String::from_utf8(head(&put, "", "X")).unwrap();
        let head = head.replace("Content-Length: X", "Transfer-Encoding: chunked");
        [head.as_bytes(), body].concat()
    };
    let large = [b"200000\r\n".to_vec(), vec![b' '; 0x20_0000], b"\r\n".to_vec()].concat();
    for (what, sent, status) in [
        ("more than may be", whole("1048577", b""), 413),
        ("chunks that are more", chunked(&large), 413),
        ("no number", whole("ten", BODY.as_bytes()), 400),
        ("less than nothing", whole("-1", BODY.as_bytes()), 400),
        ("more than there can be", whole("99999999999999999999999", b""), 400),
        ("two that differ", whole("35\r\nContent-Length: 36", BODY.as_bytes()), 400),
        ("fewer than came", whole("4", BODY.as_bytes()), 400),
        ("a chunk without a size", chunked(b"zz\r\n{}\r\n0\r\n\r\n"), 400),
    ] {
        let refused = answer(http, &sent, BEFORE_BODIES).await;
        assert!(is_status(&refused, status), "{what}: {refused}");
    }
    // Fewer come than it says, and no more will.
    let mut stream = TcpStream::connect(http).await.unwrap();
    stream.write_all(&whole("100", BODY.as_bytes())).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut refused = String::new();
    timeout(BEFORE_BODIES, stream.read_to_string(&mut refused)).await.expect("it ends").unwrap();
    assert!(refused.is_empty() || is_status(&refused, 400), "{refused}");
    get(http, A).await.refuses(404, "NOT_FOUND", None);
}

/// CVE-2025-11374, CVE-2025-11375 (Consul): one route read what another refused. Here each refuses
/// a body that is more than it may be, or answers without one; none waits for what was claimed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_route_waits_for_a_length_that_lies() {
    let guarded = Guarded::start(1, "").await;
    let http = guarded.cluster.http_address(1);
    let lease_id = lease(&guarded, "orders", "a").await;
    let outside = ["/metrics", "/healthz", "/readyz", "/openapi.json", "/console/", "/nothing"];
    let outside = outside.map(|path| ("GET", path, "", None));
    let (too_much, endless) = (vec![b' '; BODY_MAX + 1], "ffffffff\r\n");
    for line in LINES.iter().chain(&outside) {
        let (path, _) = filled(line, lease_id);
        for (length, body) in [
            ("Content-Length: 1048577", ""),
            ("Content-Length: 17179869184", ""),
            ("Transfer-Encoding: chunked", endless),
        ] {
            let head = format!(
                "{} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {ROOT}\r\n\
                 Content-Type: application/json\r\n{length}\r\n\r\n{body}",
                line.0
            );
            let more: &[u8] = if body == endless { &too_much } else { b"{" };
            let status = status_of(http, head.as_bytes(), more).await;
            let reads_none = line.0 == "GET";
            let is_right = if reads_none { status < 500 } else { status == 413 };
            assert!(is_right, "{} {path}, {length}: {status}", line.0);
        }
    }
}

/// The status of what is answered first; the node may have had enough before it has all.
async fn status_of(to: SocketAddr, head: &[u8], more: &[u8]) -> u16 {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(head).await.unwrap();
    let (mut answers, mut rest) = stream.split();
    let mut status = [0; 12];
    let read = async {
        let mut answered = std::pin::pin!(answers.read_exact(&mut status));
        tokio::select! {
            read = &mut answered => read,
            _closed = rest.write_all(more) => answered.await,
        }
    };
    let read = timeout(BEFORE_BODIES, read).await;
    let head = String::from_utf8_lossy(head);
    read.unwrap_or_else(|_| panic!("no answer: {head}")).unwrap_or_else(|e| panic!("{e}: {head}"));
    str::from_utf8(&status[9..]).unwrap().parse().unwrap()
}

/// What is small on the way could be large: nothing is unpacked, and who packs is told so.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_packed_is_refused() {
    let cluster = Cluster::start(1).await;
    cluster.leader().await;
    let http = cluster.http_address(1);
    let length = BODY.len().to_string();
    for (encoding, status) in [
        ("Content-Encoding: gzip\r\n", 415),
        ("Content-Encoding: br\r\n", 415),
        ("Content-Encoding: identity\r\nContent-Encoding: gzip\r\n", 415),
        ("Content-Encoding: gzip, identity\r\n", 415),
        ("Content-Encoding: \r\n", 415),
        ("Content-Encoding: Identity\r\n", 200),
    ] {
        let whole = [head(&format!("PUT {A}"), encoding, &length), BODY.into()].concat();
        let answered = answer(http, &whole, SOON).await;
        assert!(is_status(&answered, status), "{encoding}: {answered}");
        assert_eq!(
            answered.contains("\"field\":\"content-encoding\""),
            status == 415,
            "{answered}"
        );
    }
    let mut registry = cluster.registry(1);
    for encoding in ["gzip", "deflate", "zstd", "identity"] {
        let packed = |mut request: Request<RenewRequest>| {
            request.metadata_mut().insert("grpc-encoding", encoding.parse().unwrap());
            request
        };
        let unary = registry.renew(packed(Request::new(renewal([u64::MAX])))).await.map(drop);
        let refused = unary.unwrap_err();
        let expected = if encoding == "identity" { Code::NotFound } else { Code::Unimplemented };
        assert_eq!(refused.code(), expected, "{encoding}: {refused:?}");
        if expected == Code::Unimplemented {
            let takes = refused.metadata().get("grpc-accept-encoding").expect("what it takes");
            assert_eq!(takes, "identity", "{refused:?}");
        }
    }
}
