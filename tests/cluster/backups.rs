//! Backups whose callers do not read them, or may not have them any more; and of nodes that do not
//! know all that was acknowledged.

use std::time::Duration;

use quorate_client::Client;
use quorate_node::Tunables;
use quorate_node::rescue::Backup;
use quorate_proto::v1::{BackupChunk, BackupRequest, FetchRequest, ResponseHeader};
use tonic::{Code, Status, Streaming};

use super::calls::{
    Registry, assert_refused, fetch_all, fetch_of, local, register, registration, spec,
};
use super::guarded::{Guarded, ROOT, by, entry};
use super::harness::{Cluster, eventually};

/// As many as a node makes at the same time.
const BACKUPS_AT_ONCE: usize = 4;
const ADMIN: &str = "role = 'admin'";

/// Registers so much that a backup has several chunks, more than a connection takes unread.
async fn fill(registry: &mut Registry) {
    for at in 0..15_u32 {
        let noisy = (0..1_000_u32).map(|id| {
            let mut spec = spec("web", &format!("b{at}-{id:04}"));
            let noise = |n: u32| {
                format!("{:08x}", (n + 41 * (id + 1_001 * at)).wrapping_mul(2_654_435_761))
            };
            spec.metadata.insert("noise".to_owned(), (0..40_u32).map(noise).collect());
            spec
        });
        registry.register(by(Some(ROOT), registration(noisy.collect()))).await.unwrap();
    }
}

async fn begin(guarded: &Guarded, token: &str) -> Result<Streaming<BackupChunk>, Status> {
    let mut request = by(Some(token), BackupRequest::default());
    request.set_timeout(Duration::from_secs(60));
    guarded.cluster.admin(1).backup(request).await.map(tonic::Response::into_inner)
}

async fn read(mut backup: Streaming<BackupChunk>) -> Result<u64, Status> {
    let mut bytes = 0;
    while let Some(chunk) = backup.message().await? {
        bytes += chunk.data.len() as u64;
    }
    Ok(bytes)
}

/// Each held a thread for as long as its caller liked: 512 of them, and no access file was read and
/// no line of the audit log written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backups_that_nobody_reads_are_few_and_end() {
    let guarded = Guarded::start(1, "").await;
    fill(&mut guarded.cluster.registry(1)).await;
    let mut unread = Vec::new();
    for _ in 0..BACKUPS_AT_ONCE {
        unread.push(begin(&guarded, ROOT).await.unwrap());
    }
    let refused = begin(&guarded, ROOT).await;
    let refused = assert_refused(refused, Code::ResourceExhausted, &["4 backups"]);
    assert!(refused.metadata().contains_key("retry-after-ms"), "{refused:?}");

    // Their connections end, and what each held is given back.
    let mut more = Vec::new();
    for _ in 0..BACKUPS_AT_ONCE {
        let room = eventually("there is room", || async { begin(&guarded, ROOT).await.ok() });
        more.push(room.await);
    }
    assert!(read(more.pop().unwrap()).await.unwrap() > 4_000_000);
    let ends = futures_util::future::join_all(unread.into_iter().map(read)).await;
    assert!(ends.iter().all(Result::is_err), "{ends:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_ends_when_its_right_does() {
    let guarded = Guarded::start(1, &entry("qrt_gone", ADMIN)).await;
    fill(&mut guarded.cluster.registry(1)).await;
    let mut backup = begin(&guarded, "qrt_gone").await.unwrap();
    guarded.rewrite("");
    // Read as slowly as may be: the file is looked at every ten seconds.
    let mut pace = tokio::time::interval(Duration::from_secs(1));
    let ended = loop {
        pace.tick().await;
        match backup.message().await {
            Ok(chunk) => assert!(chunk.is_some(), "the backup was handed out whole"),
            Err(ended) => break ended,
        }
    };
    assert_eq!(ended.code(), Code::Unauthenticated, "{ended:?}");
}

/// The header of a local backup, and what is in it.
async fn local_backup(cluster: &Cluster, node: u64) -> (ResponseHeader, Backup) {
    let request = BackupRequest { local: true };
    let mut chunks = cluster.admin(node).backup(request).await.unwrap().into_inner();
    let (mut header, mut bytes) = (None, Vec::new());
    while let Some(chunk) = chunks.message().await.unwrap() {
        header = header.or(chunk.header);
        bytes.extend(chunk.data);
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    (header.expect("the first chunk has one"), Backup::read(file.path()).unwrap())
}

fn ids(backup: &Backup) -> Vec<String> {
    backup.instances().map(|it| it.id).collect()
}

async fn is_refused(cluster: &Cluster, node: u64) {
    let refused = cluster.admin(node).backup(BackupRequest::default()).await;
    assert_refused(refused, Code::Unavailable, &["all that was acknowledged", "--local"]);
}

/// It called what it had a backup of now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_cut_off_makes_no_backup_but_a_local_one() {
    let tunables = Tunables { request_timeout_ms: 1_000, ..Tunables::default() };
    let mut cluster = Cluster::start_cuttable(3, tunables).await;
    let (leader, behind) = (cluster.leader().await, cluster.follower().await);
    register(&mut cluster.registry(behind), "web", "early").await;
    fetch_all(&mut cluster.registry(behind)).await;
    cluster.cut_off(behind);
    register(&mut cluster.registry(leader), "web", "late").await;

    is_refused(&cluster, behind).await;
    let (header, old) = local_backup(&cluster, behind).await;
    assert!((1..60_000).contains(&header.age_ms) && header.node_id == behind, "{header:?}");
    assert_eq!(ids(&old), ["early"]);
    let fresh_until = old.taken_ms().expect("it has heard of a leader");
    let taken_by = |status: quorate_proto::v1::StatusResponse| {
        status.members[0].condition.clone().unwrap().backup_age_ms
    };
    let own = cluster.own_status(behind).await.unwrap();
    assert_eq!(taken_by(own), None, "nobody is to rely on it");

    // The client crate goes on to a node that knows.
    let named = [behind, leader].map(|id| cluster.client_address(id).to_owned());
    let admin = Client::builder(named).in_order(true).build().unwrap().admin();
    let first = admin.backup().await.unwrap().next().await.unwrap().unwrap().header.unwrap();
    assert!(first.node_id != behind && first.age_ms == 0, "{first:?}");

    // Of each node, as soon as it says yes.
    cluster.reconnect(behind);
    let mut chunks = eventually("it has caught up", || async {
        Some(cluster.admin(behind).backup(BackupRequest::default()).await.ok()?.into_inner())
    })
    .await;
    while chunks.message().await.unwrap().is_some() {}
    let (_, caught_up) = local_backup(&cluster, behind).await;
    assert_eq!(ids(&caught_up), ["early", "late"]);
    assert!(caught_up.taken_ms().unwrap() > fresh_until);
    let own = cluster.own_status(behind).await.unwrap();
    assert!(taken_by(own).is_some());

    // Nobody has told it anything since it started.
    cluster.stop_all().await;
    cluster.restart(behind).await;
    eventually("it serves what it has", || async {
        let fetch: FetchRequest = local(fetch_of(&["web"]));
        cluster.registry(behind).fetch(fetch).await.ok()
    })
    .await;
    is_refused(&cluster, behind).await;
    let (header, of_nobody) = local_backup(&cluster, behind).await;
    assert_eq!((header.age_ms, of_nobody.taken_ms()), (u64::MAX, None));
    assert_eq!(ids(&of_nobody), ["early", "late"]);
}
