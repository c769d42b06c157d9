//! Secrets by HTTP, in JWTs and in key files, on three nodes that speak TLS and hand each other
//! their callers' writes: nothing that a node logs, answers, audits or shows of itself has one.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tonic::Request;

use crate::cli::quorate;
use crate::cluster::{Cluster, Settings};
use crate::issuer::{HOUR, ISSUER, Issuer};
use crate::ports::free_port;
use crate::process::text_of;
use crate::raw::registration;
use crate::secrets::entry;
use crate::wait::eventually;

const SOON: Duration = Duration::from_secs(30);
const TOKEN: &str = "qrt_CANARY-orders";
const ORDERS: &str = "role = 'register'\nnamespace = 'default'\nprefix = 'orders'";
const INSTANCES: &str = "/api/v1/namespaces/default/services";
/// What certificates of `quorate certs` are for, where nothing else is said.
const CLUSTER: &str = "quorate";
/// In full, but for the frames of HTTP/2: with those, three nodes hear each other too late.
const LOG: &str = "debug,quorate_node=trace,rustls=trace,hyper=trace,h2=info,openraft=off";
/// A key file that is being written, with what else an operator may put there.
const SPOILT: &str = "-----BEGIN PRIVATE KEY-----\nCANARY+/CANARYkey\nqrt_CANARY-key\n";

/// Three nodes, the files that they write, and all that must not be seen.
struct Watched {
    cluster: Cluster,
    http: Vec<String>,
    secrets: Vec<String>,
    /// What was seen, and where.
    seen: Vec<(String, String)>,
}

impl Watched {
    async fn start(issuer: &Issuer) -> Self {
        let kept = tempfile::Builder::new().prefix("quorate-canaries-").tempdir().unwrap().keep();
        let path = |name: &str| kept.join(name).display().to_string();
        std::fs::write(kept.join("jwks.json"), issuer.key_set().to_string()).unwrap();
        let access = entry("orders", TOKEN, ORDERS)
            + &format!("[[jwt]]\nissuer = '{ISSUER}'\njwks = '{}'\n", path("jwks.json"))
            + &format!("claims = {{ sub = 'orders' }}\n{ORDERS}\n")
            + &format!("[[certificate]]\nspiffe = 'spiffe://{CLUSTER}/client/tests'\n")
            + "role = 'admin'\n";
        std::fs::write(kept.join("access.toml"), access).unwrap();
        let http: Vec<_> = (0..3).map(|_| format!("127.0.0.1:{}", free_port())).collect();
        let head = (1..).zip(&http).map(|(id, http)| {
            let (access, audit) = (path("access.toml"), path(&format!("audit-{id}")));
            let head = format!("http_listen = '{http}'\naccess = '{access}'\n");
            (id, format!("{head}[audit]\nfile = '{audit}'\n"))
        });
        let settings = Settings { head: head.collect(), secured: true, ..Settings::default() };
        let mut cluster = Cluster::prepare(3, settings).await;
        for node in &mut cluster.nodes {
            node.start_supervised(&[("QUORATE_LOG", LOG.to_owned())]);
        }
        cluster.leader().await;
        let mut watched =
            Self { cluster, http, secrets: vec!["CANARY".to_owned()], seen: Vec::new() };
        for name in ["ca.key", "node-1.key", "node-2.key", "node-3.key", "client-tests.key"] {
            watched.hide(&text_of(&watched.certs(name)));
        }
        for id in 1..=3 {
            watched.seen.push((format!("audit-{id}"), path(&format!("audit-{id}"))));
        }
        watched
    }

    fn certs(&self, name: &str) -> PathBuf {
        self.cluster.secured.as_ref().expect("it is secured").path(name)
    }

    /// Each long part of a secret: a line of a key, a part of a JWT.
    fn hide(&mut self, secret: &str) {
        let parts = secret.split(['\n', '.']).filter(|part| part.len() > 20);
        self.secrets.extend(parts.filter(|part| !part.starts_with("-----")).map(str::to_owned));
    }

    fn see(&mut self, what: &str, text: String) {
        self.seen.push((what.to_owned(), text));
    }

    /// Asks a node by HTTP, again where it has no leader for the moment; the status.
    async fn ask(&mut self, at: usize, line: &str, tokens: &[&str], body: &str) -> u16 {
        let until = Instant::now() + SOON;
        loop {
            match self.ask_once(at, line, tokens, body).await {
                503 if Instant::now() < until => {}
                status => return status,
            }
        }
    }

    async fn ask_once(&mut self, at: usize, line: &str, tokens: &[&str], body: &str) -> u16 {
        let headers = tokens.iter().map(|token| format!("Authorization: {token}\r\n"));
        let request = format!(
            "{line} HTTP/1.0\r\nHost: localhost\r\n{}Content-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            headers.collect::<String>(),
            body.len()
        );
        let secured = self.cluster.secured.as_ref().expect("it is secured");
        let mut stream = secured.http(&self.http[at]).await.expect("a connection");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // A stream goes on.
        while !answer.windows(16).any(|part| part == b"event: snapshot\n") {
            match timeout(SOON, stream.read_buf(&mut answer)).await.expect("an answer") {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        self.see(line, answer.clone());
        status.unwrap_or_else(|| panic!("{line}: {answer:?}"))
    }

    /// All that may be asked by HTTP of one node, rightly and wrongly.
    async fn ask_all(&mut self, at: usize, right: [&str; 2], wrong: &[String]) {
        let (get, body) =
            (format!("GET {INSTANCES}/orders"), r#"{"endpoints":{"http":"http://h:1"}}"#);
        for (number, token) in right.into_iter().enumerate() {
            let right = format!("Bearer {token}");
            let own = format!("PUT {INSTANCES}/orders/instances/a{at}-{number}");
            let foreign = format!("PUT {INSTANCES}/payments/instances/a");
            let stream = "GET /api/v1/namespaces/default/watch?service=orders";
            for (line, status) in [(&own, 200), (&foreign, 403), (&get, 200)] {
                let body = if line.starts_with("PUT") { body } else { "" };
                assert_eq!(self.ask(at, line, &[&right], body).await, status, "{line}");
            }
            for (line, status) in [(stream, 200), ("GET /api/v1/me", 200), ("GET /metrics", 403)] {
                assert_eq!(self.ask(at, line, &[&right], "").await, status, "{line}");
            }
            assert_eq!(self.ask(at, &get, &[&right, &right], "").await, 401);
            let broken = self.ask(at, &own, &[&right], "{").await;
            assert_eq!(broken, 400);
        }
        for token in wrong {
            assert_eq!(self.ask(at, &get, &[token], "").await, 401, "{token}");
        }
        // Where no token belongs.
        assert_eq!(self.ask(at, &format!("{get}?token={TOKEN}"), &[], "").await, 400);
    }

    /// A key file that cannot be used, until it can.
    async fn spoil_key(&mut self, at: usize) {
        let file = self.certs(&format!("node-{}.key", at + 1));
        let good = std::fs::read(&file).unwrap();
        for (content, words) in [(SPOILT.as_bytes(), "cannot be used"), (&good, "in use again")] {
            std::fs::write(&file, content).unwrap();
            self.cluster.nodes[at].process().signal(Signal::HUP);
            let node = &self.cluster.nodes[at];
            let told = async || match node.log_text().contains(words) {
                true => Ok(()),
                false => Err(words),
            };
            eventually("the key is read", SOON, told).await;
        }
    }

    /// What commands say of the nodes, and what everybody on the machine sees of them.
    async fn look(&mut self) {
        let path = |name: &str| self.certs(name).display().to_string();
        let [ca, cert, key] = ["ca.crt", "client-tests.crt", "client-tests.key"].map(path);
        let (nodes, http) = (self.cluster.all(), self.http.join(","));
        let identity = ["--nodes", &nodes, "--ca", &ca, "--cert", &cert, "--key", &key];
        let file = self.cluster.dir().join("bundle.tar").display().to_string();
        let logs = (1..=3).map(|id| self.cluster.dir().join(format!("node-{id}.log")));
        let logs: Vec<_> = logs.map(|log| log.display().to_string()).collect();
        let bundle = ["debug", "bundle", &file, "--http", &http, "--log", &logs[0]];
        for line in [&["cluster", "status", "-o", "json"][..], &["doctor"], &bundle] {
            let ran = quorate(&[line, &identity].concat()).await;
            assert!(!ran.out.is_empty(), "{line:?}: {}", ran.err);
            self.see(&line.join(" "), ran.out + &ran.err);
        }
        let bundle = std::fs::read(&file).unwrap();
        self.see("the bundle", String::from_utf8_lossy(&bundle).into_owned());
        for at in 0..3 {
            let pid = self.cluster.nodes[at].process().pid();
            let shown = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
            assert!(shown.contains("serve"), "{shown}");
            self.see("the command line", shown);
            let log = self.cluster.nodes[at].log_text();
            assert!(log.matches("TRACE").count() > 100, "it was logged in full");
            self.see("the log", log);
        }
    }
}

/// CVE-2021-28235 (etcd), etcd PR 21993: a password and a JWT stood in the log.
#[tokio::test(flavor = "multi_thread")]
async fn secrets_by_http_in_jwts_and_in_keys_are_shown_by_no_node() {
    let (issuer, stranger) = (Issuer::new(), Issuer::new());
    let mut watched = Watched::start(&issuer).await;
    let jwt = issuer.issue("orders", CLUSTER, HOUR);
    let wrong = [
        issuer.issue("orders", "another-cluster", HOUR),
        issuer.issue("orders", CLUSTER, -2 * HOUR / 60),
        issuer.issue("nobody", CLUSTER, HOUR),
        stranger.issue("orders", CLUSTER, HOUR),
    ];
    wrong.iter().chain([&jwt]).for_each(|jwt| watched.hide(jwt));
    let mut refused: Vec<String> = wrong.iter().map(|jwt| format!("Bearer {jwt}")).collect();
    let others = ["Bearer qrt_CANARY-wrong", "Basic CANARY", "CANARY", "Bearer CANARY CANARY"];
    refused.extend(others.map(str::to_owned));
    for at in 0..3 {
        watched.ask_all(at, [TOKEN, &jwt], &refused).await;
        // Also by gRPC; two of three hand it on.
        let mut request = Request::new(registration("orders", &format!("g{at}"), SOON, 0));
        request.metadata_mut().insert("authorization", format!("Bearer {jwt}").parse().unwrap());
        watched.cluster.nodes[at].registry().register(request).await.unwrap();
    }
    watched.spoil_key(0).await;
    watched.look().await;
    let mut audits = String::new();
    for (what, text) in &mut watched.seen {
        if what.starts_with("audit-") {
            *text = text_of(&PathBuf::from(&text));
            audits.push_str(text);
        }
    }
    for who in ["\"token:orders\"", &format!("\"jwt:{ISSUER}#orders\""), "\"principal\":null"] {
        assert!(audits.contains(who), "no {who}: {audits}");
    }
    assert!(watched.secrets.len() > 10, "{}", watched.secrets.len());
    for (what, text) in &watched.seen {
        for secret in &watched.secrets {
            let line = text.lines().find(|line| line.contains(secret));
            assert_eq!(line, None, "{what} has {secret}");
        }
    }
}
