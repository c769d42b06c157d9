//! Backups whose callers do not read them, or may not have them any more.

use std::time::Duration;

use quorate_proto::v1::{BackupChunk, BackupRequest};
use tonic::{Code, Status, Streaming};

use super::calls::{Registry, assert_refused, registration, spec};
use super::guarded::{Guarded, ROOT, by, entry};
use super::harness::eventually;

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
    let mut request = by(Some(token), BackupRequest {});
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
