//! Data directories that earlier releases wrote, of each level (tests/process/golden): each is
//! opened by this one, which finds exactly what was registered. Where this fails, nodes of a
//! release that is out could not be upgraded: what changed in the log, the snapshots or the files
//! needs a version of its own beside the one of before (ARCHITECTURE, "How a format grows"). A
//! golden directory itself is never written anew.
//!
//! `QUORATE_WRITE_GOLDEN=level-2 cargo test -p quorate-cli --test process golden` writes one, where
//! there is none yet. There may be several of a level: level-1, level-1b.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::Message as _;
use quorate_node::Levels;
use quorate_proto::v1::admin_client::AdminClient;
use quorate_proto::v1::health_check::Kind;
use quorate_proto::v1::{
    Consistency, DeregisterRequest, FetchResponse, Health, HealthCheck, InstanceOverride,
    InstanceRef, InstanceStatus, ListOverridesRequest, ListOverridesResponse, Metadata, RequestId,
    SetOverrideRequest, TcpCheck, TriggerSnapshotRequest, UpdateRequest,
};

use crate::built::root;
use crate::cli::ask;
use crate::cluster::{Cluster, Settings};
use crate::raw::{registration, spec};
use crate::wait::eventually;

/// After a start, each lease has a full one of these.
const TTL: Duration = Duration::from_secs(3_600);
const SOON: Duration = Duration::from_secs(30);
const HEALTH_CHECKS: &str = "allow = [\"127.0.0.0/8\"]";
/// All of one directory, in the repository.
const BYTES_MAX: u64 = 64 * 1024;

fn golden() -> PathBuf {
    root().join("tests/process/golden")
}

/// What is registered, and what operators have set.
#[derive(Debug, PartialEq)]
struct Content {
    fetched: FetchResponse,
    overrides: ListOverridesResponse,
}

async fn content(cluster: &Cluster) -> Content {
    let fetched = cluster.nodes[0].fetch_all(Consistency::Linearizable).await.unwrap();
    let mut admin = AdminClient::new(cluster.nodes[0].channel());
    let overrides = admin.list_overrides(ListOverridesRequest::default()).await.unwrap();
    // The headers are of this start: the term, the age.
    let overrides = ListOverridesResponse { header: None, ..overrides.into_inner() };
    Content { fetched: FetchResponse { header: None, ..fetched }, overrides }
}

/// Each file below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found.sort();
    found
}

fn compressed(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn pack(from: &Path, to: &Path) {
    for file in files(from) {
        let below = file.strip_prefix(from).unwrap();
        let packed = to.join(format!("{}.lz4", below.display()));
        fs::create_dir_all(packed.parent().unwrap()).unwrap();
        fs::write(packed, compressed(&fs::read(&file).unwrap())).unwrap();
    }
}

fn unpack(from: &Path, to: &Path) {
    for file in files(from) {
        let below = file.strip_prefix(from).unwrap().with_extension("");
        let mut bytes = Vec::new();
        let packed = fs::File::open(&file).unwrap();
        lz4_flex::frame::FrameDecoder::new(packed).read_to_end(&mut bytes).unwrap();
        let path = to.join(below);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// Something of every kind: in a snapshot, and in the log behind it.
async fn fill(cluster: &Cluster) {
    let node = &cluster.nodes[0];
    let mut admin = AdminClient::new(node.channel());
    for (service, count) in [("web", 5), ("db", 2)] {
        for at in 0..count {
            node.register(service, &format!("before-{at}"), TTL).await.unwrap();
        }
    }
    let value = InstanceOverride { weight: Some(7), reason: "moved".to_owned(), ..<_>::default() };
    let set = SetOverrideRequest {
        service: "web".to_owned(),
        id: "before-1".to_owned(),
        r#override: Some(value),
        ..<_>::default()
    };
    admin.set_override(set).await.unwrap();
    let gone =
        InstanceRef { service: "web".to_owned(), id: "before-2".to_owned(), ..<_>::default() };
    let gone = DeregisterRequest { instances: vec![gone], ..<_>::default() };
    node.registry().deregister(gone).await.unwrap();
    fill_with_what_changes(cluster).await;
    admin.trigger_snapshot(TriggerSnapshotRequest {}).await.unwrap();

    let mut full = registration("web", "after", TTL, 9);
    let instance = &mut full.instances[0];
    *instance = spec("web", "after");
    instance.metadata.insert("team".to_owned(), "blue".to_owned());
    instance.tags.push("canary".to_owned());
    instance.zone = "z1".to_owned();
    instance.version = "1.2.3".to_owned();
    node.registry().register(full).await.unwrap();
    node.register("db", "after", TTL).await.unwrap();
    fill_with_what_changes(cluster).await;
}

/// A load, a check that fails, updates, a write that a client has named, and a held level.
async fn fill_with_what_changes(cluster: &Cluster) {
    let node = &cluster.nodes[0];
    let id =
        format!("checked-{}", node.fetch_all(Consistency::Local).await.unwrap().services.len());
    let mut checked = registration("checked", &id, TTL, 9);
    let instance = &mut checked.instances[0];
    instance.load = 300;
    // Nobody listens there.
    instance.endpoints = [("http".to_owned(), "http://127.0.0.1:1".to_owned())].into();
    instance.checks = vec![HealthCheck {
        interval_ms: 1_000,
        failures_before_critical: 1,
        kind: Some(Kind::Tcp(TcpCheck {})),
        ..HealthCheck::default()
    }];
    node.registry().register(checked).await.unwrap();
    eventually("its check fails", SOON, async || {
        let state = node.instances(Consistency::Local).await.unwrap();
        let health = state[&format!("checked/{id}")].health();
        if health == Health::Critical { Ok(()) } else { Err(format!("{health:?}")) }
    })
    .await;
    let updated =
        InstanceRef { service: "web".to_owned(), id: "before-0".to_owned(), ..<_>::default() };
    let update = UpdateRequest {
        instance: Some(updated),
        status: InstanceStatus::Draining.into(),
        weight: Some(7),
        load: Some(1_000_000),
        metadata: Some(Metadata { entries: [("k".to_owned(), "v".to_owned())].into() }),
        request_id: Some(RequestId { origin: 5, number: 1, ..RequestId::default() }),
        ..UpdateRequest::default()
    };
    node.registry().update(update).await.unwrap();
    ask(&cluster.all(), "cluster upgrade hold").await.expect(0);
}

/// Who checks no instance's health finds none known, so it checks them as whoever wrote it did.
async fn one_node(data_dir: PathBuf) -> Cluster {
    let data_dirs = [(1, data_dir)].into();
    let health_checks = HEALTH_CHECKS.to_owned();
    Cluster::start_with(1, Settings { data_dirs, health_checks, ..Settings::default() }).await
}

async fn write(to: &Path) {
    let health_checks = HEALTH_CHECKS.to_owned();
    let mut cluster =
        Cluster::start_with(1, Settings { health_checks, ..Settings::default() }).await;
    fill(&cluster).await;
    let content = content(&cluster).await;
    cluster.nodes[0].terminate();
    assert_eq!(cluster.nodes[0].exit_code(Duration::from_secs(12)).await, 0);
    pack(&cluster.nodes[0].data_dir, &to.join("data"));
    fs::write(to.join("fetched.pb"), content.fetched.encode_to_vec()).unwrap();
    fs::write(to.join("overrides.pb"), content.overrides.encode_to_vec()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn golden_directories_of_each_level_open() {
    if let Some(name) = std::env::var_os("QUORATE_WRITE_GOLDEN")
        && let own = golden().join(name)
        && !own.exists()
    {
        write(&own).await;
    }
    let own = golden().join(format!("level-{}", Levels::OWN.max));
    assert!(
        own.is_dir(),
        "there is no {}: write it with QUORATE_WRITE_GOLDEN, and keep it for ever",
        own.display()
    );
    let mut all: Vec<_> = fs::read_dir(golden()).unwrap().map(|it| it.unwrap().path()).collect();
    all.sort();
    for of_level in all {
        let name = of_level.file_name().unwrap().to_string_lossy();
        let level = name.trim_start_matches("level-").trim_end_matches(char::is_alphabetic);
        let level: u32 = level.parse().unwrap_or_else(|_| panic!("{name} is of no level"));
        if level < Levels::OWN.min {
            continue;
        }
        let bytes: u64 = files(&of_level).iter().map(|file| file.metadata().unwrap().len()).sum();
        eprintln!("measured: {name}: {bytes} bytes");
        assert!(bytes <= BYTES_MAX, "{bytes} bytes in {}", of_level.display());
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("data");
        unpack(&of_level.join("data"), &data_dir);
        let cluster = one_node(data_dir).await;
        let read = |name| fs::read(of_level.join(name)).unwrap();
        let expected = Content {
            fetched: FetchResponse::decode(&*read("fetched.pb")).unwrap(),
            overrides: ListOverridesResponse::decode(&*read("overrides.pb")).unwrap(),
        };
        assert_eq!(
            content(&cluster).await,
            expected,
            "what a release of level {level} wrote is not what this one reads: see the head of {}",
            file!()
        );
        let level_now = cluster.nodes[0].status().await.unwrap().level;
        assert_eq!(level_now, level, "opening raises nothing");
        // And it goes on.
        cluster.nodes[0].register("web", "new", TTL).await.unwrap();
    }
}
