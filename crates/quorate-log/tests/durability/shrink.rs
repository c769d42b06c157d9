//! A log that was long and is not any more gives its file back, and loses nothing.

use std::path::Path;

use openraft::storage::RaftLogStorage;
use quorate_log::LogStore;

use crate::toy::{
    INLINE, Toy, ToyVote, append, contents, copy_dir, entry, open, remove_journal, run,
};

const LAST: u64 = 20_000;
const KEPT: u64 = 300;
const PAYLOAD_BYTES: usize = 300;

/// A log that had many entries and has the last few.
async fn purged(dir: &Path) -> LogStore<Toy> {
    let mut log = open(dir, INLINE);
    log.save_vote(&ToyVote::new(3, 1)).await.unwrap();
    add(&mut log, 1..LAST + 1).await;
    log.save_committed(Some(crate::toy::id(3, LAST))).await.unwrap();
    log.purge(crate::toy::id(3, LAST - KEPT)).await.unwrap();
    log
}

async fn add(log: &mut LogStore<Toy>, indexes: std::ops::Range<u64>) {
    for first in indexes.clone().step_by(20) {
        let batch = first..(first + 20).min(indexes.end);
        let payload = |index| format!("{index} {}", "x".repeat(PAYLOAD_BYTES));
        append(log, batch.map(|index| entry(3, index, payload(index))).collect()).await;
    }
}

fn file_bytes(dir: &Path) -> u64 {
    std::fs::metadata(dir.join("db")).unwrap().len()
}

#[test]
fn a_log_that_was_long_gives_its_file_back() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let mut log = purged(dir.path()).await;
        let before = contents(&mut log).await;
        let large = file_bytes(dir.path());
        log.shrink().await.unwrap();
        let small = file_bytes(dir.path());
        assert!(small * 3 < large, "{small} bytes, {large} before");
        assert_eq!(contents(&mut log).await, before);
        assert_eq!(before.entries.len() as u64, KEPT);

        // It goes on where it was, and another time there is nothing to gain.
        add(&mut log, LAST + 1..LAST + 101).await;
        let before = contents(&mut log).await;
        let inode = |dir: &Path| {
            std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(dir.join("db")).unwrap())
        };
        let file = inode(dir.path());
        log.shrink().await.unwrap();
        assert_eq!(inode(dir.path()), file, "written anew for nothing");

        // As after a crash, with what the journal has and without.
        let (with, without) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        copy_dir(dir.path(), with.path());
        assert_eq!(contents(&mut open(with.path(), INLINE)).await, before);
        log.close().unwrap();
        drop(log);
        copy_dir(dir.path(), without.path());
        remove_journal(without.path());
        for dir in [dir.path(), without.path()] {
            let mut log = open(dir, INLINE);
            let found = contents(&mut log).await;
            assert_eq!((found.entries, found.vote), (before.entries.clone(), before.vote));
            log.close().unwrap();
        }
    });
}
