//! What health checks are aimed at: an HTTP server that answers each path as it is set to, and
//! records each request and its time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_proto::v1::health_check::Kind;
use quorate_proto::v1::{GrpcCheck, HealthCheck, HttpCheck, InstanceSpec, TcpCheck};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::calls::spec;
use super::harness::SOON;
use super::metronome::Metronome;

/// How a path is answered.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// With this status.
    Status(u16),
    /// With these statuses in turn, again and again.
    Turns(Vec<u16>),
    /// With a redirect to this path.
    Redirect(&'static str),
    /// Never.
    Hang,
}

#[derive(Debug, Default)]
struct Told {
    answers: HashMap<String, Answer>,
    asked: HashMap<String, Vec<Instant>>,
    connections: usize,
}

/// An HTTP server on loopback; ends when it is dropped. A path that was not set is answered with
/// 200.
pub(crate) struct Targets {
    pub(crate) port: u16,
    told: Arc<Mutex<Told>>,
    accepting: JoinHandle<()>,
}

impl Targets {
    pub(crate) async fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let told = Arc::new(Mutex::new(Told::default()));
        let shared = told.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                shared.lock().unwrap().connections += 1;
                tokio::spawn(serve(stream, shared.clone()));
            }
        });
        Self { port, told, accepting }
    }

    /// From now on this path is answered so.
    pub(crate) fn answer(&self, path: &str, answer: Answer) {
        self.told.lock().unwrap().answers.insert(path.to_owned(), answer);
    }

    /// When this path was asked for.
    pub(crate) fn asked(&self, path: &str) -> Vec<Instant> {
        self.told.lock().unwrap().asked.get(path).cloned().unwrap_or_default()
    }

    pub(crate) fn connections(&self) -> usize {
        self.told.lock().unwrap().connections
    }

    /// An instance with an HTTP check of `/ID` here, every `interval_ms`.
    pub(crate) fn instance(&self, service: &str, id: &str, interval_ms: u32) -> InstanceSpec {
        self.at("127.0.0.1", service, id, http(&format!("/{id}"), interval_ms))
    }

    /// An instance that is reached under another name for this machine.
    pub(crate) fn at(
        &self,
        host: &str,
        service: &str,
        id: &str,
        check: HealthCheck,
    ) -> InstanceSpec {
        let endpoints = [("http".to_owned(), format!("http://{host}:{}", self.port))].into();
        InstanceSpec { endpoints, checks: vec![check], ..spec(service, id) }
    }
}

impl Drop for Targets {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(mut stream: TcpStream, told: Arc<Mutex<Told>>) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read_buf(&mut request).await {
            Ok(read) if read > 0 => {}
            _ => return,
        }
    }
    let request = String::from_utf8(request).expect("a request in ASCII");
    let path = request.split(' ').nth(1).expect("a path").to_owned();
    let answer = {
        let mut told = told.lock().unwrap();
        let asked = told.asked.entry(path.clone()).or_default();
        asked.push(Instant::now());
        let before = asked.len() - 1;
        match told.answers.get(&path) {
            None => "200 OK".to_owned(),
            Some(Answer::Status(status)) => status.to_string(),
            Some(Answer::Turns(all)) => all[before % all.len()].to_string(),
            Some(Answer::Redirect(to)) => format!("302 Found\r\nLocation: {to}"),
            Some(Answer::Hang) => String::new(),
        }
    };
    if answer.is_empty() {
        // Longer than any test waits; ends with the test.
        sleep(10 * SOON).await;
    }
    let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let _ = stream.write_all(answer.as_bytes()).await;
}

/// The shortest time from one probe to the next.
pub(crate) const SECOND_MS: u32 = 1_000;

fn check(kind: Kind, interval_ms: u32) -> HealthCheck {
    HealthCheck { kind: Some(kind), interval_ms, ..HealthCheck::default() }
}

pub(crate) fn http(path: &str, interval_ms: u32) -> HealthCheck {
    check(Kind::Http(HttpCheck { path: path.to_owned() }), interval_ms)
}

pub(crate) fn tcp(interval_ms: u32) -> HealthCheck {
    check(Kind::Tcp(TcpCheck {}), interval_ms)
}

pub(crate) fn grpc(service: &str, interval_ms: u32) -> HealthCheck {
    check(Kind::Grpc(GrpcCheck { service: service.to_owned() }), interval_ms)
}

/// Of the times between two probes in which this process did not stand still: how many are the
/// interval, 20 % more or less, and how many there are.
pub(crate) fn on_schedule(
    all: &[Vec<Instant>],
    interval_ms: u32,
    metronome: &Metronome,
) -> [usize; 2] {
    let interval = Duration::from_millis(interval_ms.into());
    let right = interval.mul_f64(0.8)..=interval.mul_f64(1.2);
    let gaps = all.iter().flat_map(|asked| asked.windows(2).map(|pair| (pair[0], pair[1])));
    let still = |(from, to): &(Instant, Instant)| metronome.was_late(interval / 20, *from, *to);
    let gaps: Vec<_> = gaps.filter(|gap| !still(gap)).map(|(from, to)| to - from).collect();
    [gaps.iter().filter(|gap| right.contains(*gap)).count(), gaps.len()]
}
