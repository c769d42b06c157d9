//! A stream of events as a browser follows it (`EventSource`): where it ends or breaks, it comes
//! again, at the next node, and says what it had last. What it was told is compared with what was
//! written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_proto::v1::registry_client::RegistryClient;
use quorate_proto::v1::{DeregisterRequest, InstanceRef, ResponseHeader};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::transport::Channel;

use crate::cluster::{Cluster, Settings};
use crate::ports::free_port;
use crate::raw::{registration, with_deadline};
use crate::wait::{eventually, time_passes};

const PATIENCE: Duration = Duration::from_secs(30);
/// Between two attempts; browsers wait for some seconds.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// Longer than a comment is away, of a node that stands still.
const SILENT_MAX: Duration = Duration::from_secs(40);
const BETWEEN_WRITES: Duration = Duration::from_millis(5);
const SERVICE: &str = "web";

/// A change: its revision, whether the instance came, and which one it is.
type Change = (u64, bool, String);

/// What it was told, of the cluster that it follows now.
#[derive(Debug, Default)]
struct Told {
    cluster: String,
    /// The revision of the snapshot that this began with, and what was in it.
    begun: Option<(u64, BTreeSet<String>)>,
    changes: Vec<Change>,
    /// It was told to forget what it had.
    resets: usize,
    /// How often it came to another node.
    opened: usize,
    faults: Vec<String>,
}

impl Told {
    fn revision(&self) -> u64 {
        let begun = self.begun.as_ref().map_or(0, |(revision, _)| *revision);
        self.changes.last().map_or(begun, |(revision, _, _)| *revision)
    }

    /// A snapshot that is whole.
    fn begin(&mut self, event: &str, id: &str, has: BTreeSet<String>) {
        let (cluster, revision) = id.split_once('-').expect("a cluster and a revision");
        if self.begun.is_some() && event != "reset" {
            self.faults.push(format!("{event} at {id}, which does not say that it replaces all"));
        }
        self.resets += usize::from(event == "reset");
        self.begun = Some((revision.parse().unwrap(), has));
        self.changes.clear();
        self.cluster = cluster.to_owned();
    }

    fn change(&mut self, data: &Value) {
        let own = self.revision().to_string();
        if data["previous_revision"].as_str() != Some(&*own) {
            self.faults.push(format!("after {}: {data}", self.revision()));
        }
        for change in data["changes"].as_array().expect("a list") {
            let revision = change["revision"].as_str().expect("a text").parse().unwrap();
            let id = change["instance"]["id"].as_str().expect("an id").to_owned();
            self.changes.push((revision, change["kind"] == "added", id));
        }
    }
}

/// Runs until it is dropped.
struct EventSource {
    told: Arc<Mutex<Told>>,
    task: JoinHandle<()>,
}

impl EventSource {
    fn start(nodes: Vec<String>, first: usize) -> Self {
        let told = Arc::new(Mutex::new(Told::default()));
        let own = told.clone();
        let task = tokio::spawn(async move {
            let mut last_id = String::new();
            for node in nodes.iter().cycle().skip(first) {
                let _ended = follow(node, &mut last_id, &own).await;
                time_passes(AGAIN_AFTER).await;
            }
        });
        Self { told, task }
    }

    fn look<T>(&self, look: impl FnOnce(&Told) -> T) -> T {
        look(&self.told.lock().unwrap())
    }

    async fn until(&self, what: &str, reached: impl Fn(&Told) -> bool) {
        eventually(what, PATIENCE, async || {
            self.look(|told| match reached(told) {
                true => Ok(()),
                false => Err(format!("{:?}", told)),
            })
        })
        .await;
    }
}

impl Drop for EventSource {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Follows one node as long as that goes; `None`: it has ended.
async fn follow(node: &str, last_id: &mut String, told: &Mutex<Told>) -> Option<()> {
    let stream = TcpStream::connect(node).await.ok()?;
    let mut lines = BufReader::new(stream).lines();
    let last = match last_id.as_str() {
        "" => String::new(),
        id => format!("Last-Event-ID: {id}\r\n"),
    };
    let path = format!("/api/v1/namespaces/default/watch?service={SERVICE}");
    let head = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n{last}\r\n");
    lines.get_mut().write_all(head.as_bytes()).await.ok()?;
    if !lines.next_line().await.ok()??.contains(" 200 ") {
        return None;
    }
    told.lock().unwrap().opened += 1;
    while !lines.next_line().await.ok()??.is_empty() {}
    let (mut id, mut event, mut data) = (None, String::new(), String::new());
    let mut parts = BTreeSet::new();
    loop {
        let line = timeout(SILENT_MAX, lines.next_line()).await.ok()?.ok()??;
        match line.split_once(": ") {
            Some(("id", text)) => id = Some(text.to_owned()),
            Some(("event", text)) => text.clone_into(&mut event),
            Some(("data", text)) => data.push_str(text),
            // What is not whole does not count: no more than the others of its event.
            _ if line.is_empty() => {
                if let Some(id) = id.take() {
                    *last_id = id;
                }
                let (event, data) = (std::mem::take(&mut event), std::mem::take(&mut data));
                if !data.is_empty() {
                    let data = serde_json::from_str(&data).expect("JSON");
                    take(&event, &data, last_id, &mut parts, told);
                }
            }
            _ => {}
        }
    }
}

fn take(
    event: &str,
    data: &Value,
    last_id: &str,
    parts: &mut BTreeSet<String>,
    told: &Mutex<Told>,
) {
    let mut told = told.lock().unwrap();
    match event {
        "snapshot" | "reset" => {
            let services = data["services"].as_array().expect("a list");
            let instances = services.iter().flat_map(|service| service["instances"].as_array());
            let ids = instances.flatten().map(|instance| instance["id"].as_str().expect("an id"));
            parts.extend(ids.map(str::to_owned));
            if data["last"] == true {
                told.begin(event, last_id, std::mem::take(parts));
            }
        }
        "change" => told.change(data),
        _ => {}
    }
}

/// Writes until it is told to stop; what was acknowledged. Every third write takes an instance out.
fn write(mut registry: RegistryClient<Channel>) -> (Arc<AtomicBool>, JoinHandle<Vec<Change>>) {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let task = tokio::spawn(async move {
        let mut written = Vec::new();
        for number in 0_u64.. {
            if stopped.load(Ordering::Relaxed) {
                break;
            }
            let comes = number % 3 != 2;
            let id = format!("i{}", if comes { number } else { number - 1 });
            let header = match comes {
                true => {
                    let request = registration(SERVICE, &id, Duration::from_secs(3_600), 1);
                    let request = with_deadline(request, PATIENCE);
                    registry.register(request).await.expect("a write").into_inner().header
                }
                false => {
                    let (service, id) = (SERVICE.to_owned(), id.clone());
                    let instances = vec![InstanceRef { service, id, incarnation: 0 }];
                    let request = DeregisterRequest { instances, ..DeregisterRequest::default() };
                    let request = with_deadline(request, PATIENCE);
                    registry.deregister(request).await.expect("a write").into_inner().header
                }
            };
            written.push((header.map_or(0, |header: ResponseHeader| header.revision), comes, id));
            time_passes(BETWEEN_WRITES).await;
        }
        written
    });
    (stop, task)
}

/// That it was told exactly what was written, in one snapshot and the changes after it.
#[track_caller]
fn assert_exact(source: &EventSource, written: &[Change]) {
    source.look(|told| {
        assert!(told.faults.is_empty(), "{:?}", told.faults);
        let (begun, has) = told.begun.as_ref().expect("a snapshot");
        let mut before = BTreeSet::new();
        for (_, comes, id) in written.iter().filter(|(revision, _, _)| revision <= begun) {
            assert!(if *comes { before.insert(id.clone()) } else { before.remove(id) }, "{id}");
        }
        assert_eq!(*has, before, "the snapshot at {begun}");
        let after: Vec<_> = written.iter().filter(|(at, _, _)| at > begun).cloned().collect();
        assert_eq!(told.changes, after, "the changes after {begun}");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browsers_stream_goes_on_when_its_node_dies_and_says_when_the_cluster_is_another() {
    let ports: Vec<u16> = (0..3).map(|_| free_port()).collect();
    let listen = |(id, port): (u64, &u16)| (id, format!("http_listen = \"127.0.0.1:{port}\""));
    let head: BTreeMap<_, _> = (1..).zip(&ports).map(listen).collect();
    let mut cluster = Cluster::start_with(3, Settings { head, ..Settings::default() }).await;
    let leader = cluster.leader().await;
    let other = cluster.others(leader)[0];
    let nodes: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let source = EventSource::start(nodes, leader);
    source.until("the first snapshot", |told| told.begun.is_some()).await;

    let (stop, writer) = write(cluster.nodes[other].registry());
    source.until("some changes", |told| told.changes.len() > 50).await;
    // With changes under way, and the lead lost.
    cluster.nodes[leader].kill();
    source.until("it is at another node", |told| told.opened > 1).await;
    let had = source.look(Told::revision);
    source.until("more changes", |told| told.revision() > had + 50).await;
    stop.store(true, Ordering::Relaxed);
    let written = writer.await.unwrap();
    let last = written.last().expect("some writes").0;
    source.until("all of them", |told| told.revision() >= last).await;
    assert_eq!(source.look(|told| told.resets), 0, "it had missed nothing that was not there");
    assert_exact(&source, &written);

    let cluster_before = source.look(|told| told.cluster.clone());
    for at in cluster.running() {
        cluster.nodes[at].kill();
    }
    for node in &mut cluster.nodes {
        std::fs::remove_dir_all(&node.data_dir).unwrap();
        node.start();
    }
    cluster.leader().await;
    let (stop, writer) = write(cluster.nodes[other].registry());
    source.until("it is told of the new cluster", |told| told.resets > 0).await;
    source.until("some changes", |told| told.changes.len() > 50).await;
    stop.store(true, Ordering::Relaxed);
    let written = writer.await.unwrap();
    let last = written.last().expect("some writes").0;
    source.until("all of them", |told| told.revision() >= last).await;
    assert_exact(&source, &written);
    source.look(|told| {
        assert_eq!(told.resets, 1, "once");
        assert_ne!(told.cluster, cluster_before);
    });
}
