//! What the parameters of a query change of who may ask: nothing, or what a line of
//! `rights_http.rs` says. A parameter that is described and stands in no table here fails.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::guarded::{Guarded, ROOT};
use super::harness::SOON;
use super::http_described::described;
use super::rights::{ROWS, SOMEBODY, access, lease};
use super::rights_http::{LINES, Line, filled, path_of};

/// Those that say what is read: each route that takes one has a line with it.
const WIDENING: [&str; 3] = ["namespace", "prefix", "service"];

/// Those that choose among what may be read, or say how: with each, the line of its route holds.
const OTHERS: [(&str, &str); 22] = [
    ("after", "orders/a"),
    ("after_id", "hidden-p"),
    ("after_service", "payments"),
    ("cluster_id", "00000000000000ff"),
    ("consistency", "local"),
    ("endpoint", "http"),
    ("from", "1"),
    ("incarnation", "1"),
    ("index", "0"),
    ("limit", "1000"),
    ("local_only", "true"),
    ("max_age", "999h"),
    ("min_revision", "1"),
    ("request_age_ms", "1"),
    ("request_done_below", "1"),
    ("request_number", "1"),
    ("request_origin", "7"),
    ("status", "UP"),
    ("tag", "t"),
    ("timeout", "5s"),
    ("wait", "1s"),
    ("zone", "z"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_parameter_is_known() {
    let guarded = Guarded::start(1, "").await;
    let described = described(guarded.cluster.http_address(1)).await;
    let known: BTreeSet<_> = OTHERS.iter().map(|(name, _)| *name).chain(WIDENING).collect();
    let mut found = BTreeSet::new();
    for (path, methods) in &described {
        for (method, parameters) in methods {
            found.extend(parameters.iter().map(String::as_str));
            for name in WIDENING.iter().filter(|name| parameters.contains(**name)) {
                let of = |line: &&Line| line.0 == method && path_of(line) == *path;
                let has = LINES.iter().filter(of).any(|line| takes(line, name));
                assert!(has, "{method} {path}: there is no line with {name:?}");
            }
        }
    }
    assert_eq!(known, found);
}

/// Whether a line's query has this parameter.
fn takes(line: &Line, name: &str) -> bool {
    line.2.split(['?', '&']).any(|given| given.split('=').next() == Some(name))
}

/// The status of an answer, and its text; of a stream, up to its first event.
async fn answer(to: SocketAddr, line: &str, token: &str, body: &str) -> (u16, String) {
    let request = format!(
        "{line} HTTP/1.0\r\nHost: elsewhere\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let exchanged = async {
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        loop {
            let read = stream.read_buf(&mut answer).await.unwrap();
            let text = String::from_utf8_lossy(&answer);
            // A stream that goes on where nothing passes its filter begins with who leads.
            let first = ["event: snapshot", "event: change", "event: leader"];
            let first = if line.contains("from=") { &first[..] } else { &first[..2] };
            let has_event = first.iter().any(|it| text.contains(it));
            if read == 0 || has_event && text.ends_with("\n\n") {
                return text.into_owned();
            }
        }
    };
    let text = timeout(SOON, exchanged).await.unwrap_or_else(|_| panic!("{line}: no answer"));
    (text.split(' ').nth(1).unwrap().parse().unwrap(), text)
}

/// What stands in the names of others' instances, and who may read them.
const HIDDEN: [(&str, &str, &str, &str); 2] = [
    ("hidden-p", "default", "payments", "qrt_other"),
    ("hidden-e", "elsewhere", "orders", "qrt_elsewhere"),
];

/// GHSA-xg4h-6gfc-h4m8 (etcd): a range wider than the right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_parameter_gains_a_right() {
    let guarded = Guarded::start(1, &access()).await;
    let to = guarded.cluster.http_address(1);
    for (id, namespace, service, _) in HIDDEN {
        let line = format!("PUT /api/v1/namespaces/{namespace}/services/{service}/instances/{id}");
        let spec = r#"{"endpoints":{"http":"http://h:1"},"tags":["t"]}"#;
        assert_eq!(answer(to, &line, ROOT, spec).await.0, 200, "{line}");
    }
    // After those: who watches from a revision on sees this come.
    let lease_id = lease(&guarded, "orders", "a").await;
    let described = described(to).await;
    let (mut wrong, mut told_to_root) = (Vec::new(), BTreeSet::new());
    for line in &LINES {
        let parameters = &described[&path_of(line)][line.0];
        let more = OTHERS.iter().filter(|(name, _)| parameters.contains(*name));
        let more = more.filter(|(name, _)| !takes(line, name));
        let (path, body) = filled(line, lease_id);
        let join = if path.contains('?') { '&' } else { '?' };
        let columns = line
            .3
            .map_or("yyyyyy", |row| ROWS.iter().find(|(of, ..)| *of == row).expect("a row").1);
        for (name, value) in more {
            let asked = format!("{} {path}{join}{name}={value}", line.0);
            for (token, column) in SOMEBODY.into_iter().zip(columns.chars()) {
                // Nothing is to be changed here.
                if column == 'y' && line.0 != "GET" {
                    continue;
                }
                let (status, text) = answer(to, &asked, token, &body).await;
                let is_as_before = match column {
                    // Some are refused for their values.
                    'y' => [200, 400].contains(&status),
                    'u' => status == 404,
                    _ => status == 403,
                };
                let told = HIDDEN.iter().filter(|(id, ..)| text.contains(id) && status == 200);
                for (id, _, _, who) in told {
                    if token == ROOT {
                        told_to_root.insert(*id);
                    } else if token != *who {
                        wrong.push(format!("{asked} tells {token} of {id}"));
                    }
                }
                if !is_as_before {
                    wrong.push(format!("{asked} for {token} ({column}): {text}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(told_to_root.len(), HIDDEN.len(), "they are there to be told: {told_to_root:?}");
}
