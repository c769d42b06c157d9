//! Data directories that earlier releases wrote, one of each level (tests/process/golden): each is
//! opened by this one, which finds exactly what was registered. Where this fails, nodes of a
//! release that is out could not be upgraded: what changed in the log, the snapshots or the files
//! needs a version of its own beside the one of before (ARCHITECTURE, "How a format grows"). A
//! golden directory itself is never written anew.
//!
//! `QUORATE_WRITE_GOLDEN=1 cargo test -p quorate-cli --test process golden` writes that of this
//! release's level, where there is none yet.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::Message as _;
use quorate_node::Levels;
use quorate_proto::v1::admin_client::AdminClient;
use quorate_proto::v1::{
    Consistency, DeregisterRequest, FetchResponse, InstanceOverride, InstanceRef,
    ListOverridesRequest, ListOverridesResponse, SetOverrideRequest, TriggerSnapshotRequest,
};

use crate::built::root;
use crate::cluster::{Cluster, Settings};
use crate::raw::{registration, spec};

/// After a start, each lease has a full one of these.
const TTL: Duration = Duration::from_secs(3_600);
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
}

async fn one_node(data_dir: Option<PathBuf>) -> Cluster {
    let data_dirs = data_dir.map(|dir| (1, dir)).into_iter().collect();
    Cluster::start_with(1, Settings { data_dirs, ..Settings::default() }).await
}

async fn write(to: &Path) {
    let mut cluster = one_node(None).await;
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
    let own = golden().join(format!("level-{}", Levels::OWN.max));
    if std::env::var_os("QUORATE_WRITE_GOLDEN").is_some() && !own.exists() {
        write(&own).await;
    }
    assert!(
        own.is_dir(),
        "there is no {}: write it with QUORATE_WRITE_GOLDEN=1, and keep it for ever",
        own.display()
    );
    for level in Levels::OWN.min..=Levels::OWN.max {
        let of_level = golden().join(format!("level-{level}"));
        let bytes: u64 = files(&of_level).iter().map(|file| file.metadata().unwrap().len()).sum();
        eprintln!("measured: level {level}: {bytes} bytes");
        assert!(bytes <= BYTES_MAX, "{bytes} bytes in {}", of_level.display());
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("data");
        unpack(&of_level.join("data"), &data_dir);
        let cluster = one_node(Some(data_dir)).await;
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
