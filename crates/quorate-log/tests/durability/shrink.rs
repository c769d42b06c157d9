//! A log that was long and is not any more gives its file back, and loses nothing.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use openraft::storage::RaftLogStorage;
use quorate_log::{LogOptions, LogStore, OpenError};

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

fn inode(dir: &Path) -> u64 {
    std::fs::metadata(dir.join("db")).unwrap().ino()
}

#[test]
fn a_log_that_was_long_gives_its_file_back() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let mut log = purged(dir.path()).await;
        let before = contents(&mut log).await;
        let large = file_bytes(dir.path());
        log.shrink(u64::MAX).await.unwrap();
        let small = file_bytes(dir.path());
        assert!(small * 3 < large, "{small} bytes, {large} before");
        assert_eq!(contents(&mut log).await, before);
        assert_eq!(before.entries.len() as u64, KEPT);

        // It goes on where it was, and another time there is nothing to gain.
        add(&mut log, LAST + 1..LAST + 101).await;
        let before = contents(&mut log).await;
        let file = inode(dir.path());
        log.shrink(u64::MAX).await.unwrap();
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

#[test]
fn without_room_for_the_copy_or_a_place_for_it_the_log_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let mut log = purged(dir.path()).await;
        let file = inode(dir.path());
        // Of the room also what is kept beyond the end of the file.
        log.shrink(8 * 1024 * 1024).await.unwrap();
        assert_eq!(inode(dir.path()), file);
        assert!(!dir.path().join("anew").exists());

        std::fs::write(dir.path().join("anew"), "not a directory").unwrap();
        log.shrink(u64::MAX).await.unwrap();
        assert_eq!(inode(dir.path()), file);

        add(&mut log, LAST + 1..LAST + 101).await;
        std::fs::remove_file(dir.path().join("anew")).unwrap();
        log.shrink(u64::MAX).await.unwrap();
        assert_ne!(inode(dir.path()), file);
        assert_eq!(contents(&mut log).await.entries.len() as u64, KEPT + 100);
    });
}

/// Nobody else ever gets the directory, and readers and writers notice nothing.
#[test]
fn while_a_log_is_written_anew_it_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let is_done = AtomicBool::new(false);
    let log = run(async {
        drop(purged(dir.path()).await);
        open(dir.path(), LogOptions { recent_bytes_max: Some(0), ..LogOptions::default() })
    });
    let file = inode(dir.path());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !is_done.load(Ordering::Acquire) {
                    let opened = LogStore::<Toy>::open(dir.path(), INLINE);
                    assert!(matches!(opened, Err(OpenError::Locked { .. })), "{opened:?}");
                }
            });
        }
        scope.spawn(|| {
            let mut reader = log.clone();
            run(async {
                while !is_done.load(Ordering::Acquire) {
                    let found = contents(&mut reader).await;
                    assert!(found.entries.len() as u64 >= KEPT);
                }
            });
        });
        let mut log = log.clone();
        let (found, next) = run(async {
            log.shrink(u64::MAX).await.unwrap();
            let mut next = LAST + 1;
            while inode(dir.path()) == file && next < 2 * LAST || next < LAST + 101 {
                add(&mut log, next..next + 20).await;
                next += 20;
            }
            (contents(&mut log).await.entries, next)
        });
        is_done.store(true, Ordering::Release);
        assert_ne!(inode(dir.path()), file);
        assert_eq!(found.len() as u64, KEPT + next - LAST - 1);
    });
}
