//! Pages of other origins that an operator lets in. `http_pages.rs` has what all others get:
//! nothing.

use std::net::SocketAddr;

use serde_json::json;

use super::guarded::{Guarded, ROOT, entry};
use super::harness::eventually;
use super::http_api::{Answer, WEB, send};

const ALLOWED: &str = "https://tools.example";
/// Each is nearly the one that is allowed.
const OTHERS: [&str; 5] = [
    "http://tools.example",
    "https://tools.example:8443",
    "https://tools.example.evil.example",
    "https://eviltools.example",
    "null",
];

/// As a browser asks for a page of another site.
async fn ask(to: SocketAddr, line: &str, origin: &str, more: &[&str], body: &str) -> Answer {
    let (line, origin) = (format!("{line} HTTP/1.0"), format!("Origin: {origin}"));
    let lines = [&*line, "Host: localhost", &*origin, "Sec-Fetch-Site: cross-site"];
    send(to, &[&lines[..], more].concat(), body.as_bytes()).await
}

fn allowed(answer: &Answer) -> Option<&str> {
    answer.header("access-control-allow-origin")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_an_origin_that_is_allowed_calls_with_a_token_and_no_other_page_does() {
    let access = entry("qrt_reads", "role = 'read'\nnamespace = 'default'\nprefix = ''");
    let mut guarded = Guarded::start(1, &access).await;
    guarded.cluster.stop(1).await;
    let config = guarded.cluster.config_mut(1);
    config.http_cors_origins = vec!["http://localhost:3000".to_owned(), ALLOWED.to_owned()];
    guarded.cluster.restart(1).await;
    let to = guarded.cluster.http_address(1);
    let (instance, get) = (format!("{WEB}/instances/a"), format!("GET {WEB}"));
    let (put, first) = (format!("PUT {instance}"), format!("OPTIONS {instance}"));
    let asks =
        ["Access-Control-Request-Method: PUT", "Access-Control-Request-Headers: authorization"];
    let spec = json!({ "endpoints": { "http": "http://h:1" } }).to_string();
    let by = |token: &str| format!("Authorization: Bearer {token}");
    let json_type = "Content-Type: application/json";
    eventually("the node leads", async || {
        let read = ask(to, &get, ALLOWED, &[&by(ROOT)], "").await;
        (read.status == 200).then_some(())
    })
    .await;

    for other in OTHERS {
        let asked = ask(to, &first, other, &asks, "").await;
        assert_eq!((asked.status, allowed(&asked)), (405, None), "{other}: {asked:?}");
        let refused = ask(to, &put, other, &[json_type, &by(ROOT)], &spec).await;
        refused.refuses(403, "PERMISSION_DENIED", Some("sec-fetch-site"));
        assert_eq!((allowed(&refused), refused.header("vary")), (None, Some("origin")));
        let read = ask(to, &get, other, &[&by(ROOT)], "").await;
        assert_eq!(allowed(&read), None, "{other}: its browser keeps this from it: {read:?}");
        assert_eq!(read.header("access-control-expose-headers"), None, "{read:?}");
    }

    let asked = ask(to, &first, ALLOWED, &asks, "").await;
    assert_eq!((asked.status, allowed(&asked)), (204, Some(ALLOWED)), "{asked:?}");
    let (methods, headers) = ("access-control-allow-methods", "access-control-allow-headers");
    assert!(asked.header(methods).unwrap().contains("put"), "{asked:?}");
    for needed in ["authorization", "content-type", "last-event-id"] {
        assert!(asked.header(headers).unwrap().contains(needed), "{needed}: {asked:?}");
    }
    assert_eq!(asked.header("access-control-allow-credentials"), None, "no certificate, no cookie");
    let nobody = ask(to, &put, ALLOWED, &[json_type], &spec).await;
    nobody.refuses(401, "UNAUTHENTICATED", None);
    assert_eq!(allowed(&nobody), Some(ALLOWED), "it is told why: {nobody:?}");
    let reads = ask(to, &put, ALLOWED, &[json_type, &by("qrt_reads")], &spec).await;
    reads.refuses(403, "PERMISSION_DENIED", None);
    let written = ask(to, &put, ALLOWED, &[json_type, &by(ROOT)], &spec).await;
    assert_eq!((written.status, allowed(&written)), (200, Some(ALLOWED)), "{written:?}");
    let read = ask(to, &get, ALLOWED, &[&by("qrt_reads")], "").await;
    assert_eq!((read.status, allowed(&read)), (200, Some(ALLOWED)), "{read:?}");
    assert!(read.header("access-control-expose-headers").unwrap().contains("etag"), "{read:?}");
}
