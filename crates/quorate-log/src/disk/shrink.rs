//! Gives back what a log that was once long still takes: sled's file does not shrink when records
//! are removed from it, nor does what sled keeps in memory of it. So a log that is quiet is written
//! anew: into a directory beside, whose file then takes the old one's place by a rename. What a
//! crash leaves is the one or the other, and both are whole.
//!
//! Nothing else may be written meanwhile; it is read until the files are changed over.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::room::ROOM_BYTES;
use crate::disk::sled::{Disk, SEGMENT_BYTES, check_threads};
use crate::error::LogError;
#[cfg(test)]
use crate::observe;

/// Where the log is written anew, in its directory. What is left there was never in use.
const DIR: &str = "anew";

/// The records of a log that is written anew take no more than this, bytes: a write has to wait for
/// that long (a second of a slow disk).
const LIVE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Whether records of this many bytes should have a file of their own instead of one of that size.
/// A new one takes about two and a half times what the records have.
fn is_worth(live_bytes: u64, file_bytes: u64) -> bool {
    live_bytes <= LIVE_BYTES_MAX && file_bytes >= anew_bytes(live_bytes) + SEGMENT_BYTES as u64
}

fn anew_bytes(live_bytes: u64) -> u64 {
    SEGMENT_BYTES as u64 + 3 * live_bytes
}

/// Whether it is worth it to write the log anew, and takes no more than `room_bytes` of the disk.
///
/// # Errors
/// It cannot be read.
pub(crate) fn is_worth_it(disk: &Disk, room_bytes: u64) -> Result<bool, LogError> {
    let file_bytes = fs::metadata(disk.db_path()).map_err(|source| failed(disk, source))?.len();
    if !is_worth(0, file_bytes) {
        return Ok(false);
    }
    let live_bytes = disk.live_bytes(LIVE_BYTES_MAX)?;
    let has_room = anew_bytes(live_bytes) + ROOM_BYTES <= room_bytes;
    Ok(has_room && is_worth(live_bytes, file_bytes))
}

/// Writes the log anew: everything that is in sled, durably, into a directory beside, where it
/// stays open.
///
/// # Errors
/// It cannot be read, or the copy not be written. The log is as it was.
pub(crate) fn write_anew(disk: &Disk) -> Result<Disk, LogError> {
    // Without, sled would wait for ever.
    check_threads().map_err(|source| failed(disk, source))?;
    remove_leftover(disk.dir());
    let anew = write_copy(disk, &disk.dir().join(DIR));
    if anew.is_err() {
        remove_leftover(disk.dir());
    }
    anew
}

fn write_copy(disk: &Disk, dir: &Path) -> Result<Disk, LogError> {
    let anew = disk.copy_into(dir)?;
    let finish = || {
        // Only the one file gets a place.
        if fs::read_dir(dir.join("blobs"))?.next().is_some() {
            return Err(io::Error::other("sled gave a value a file of its own"));
        }
        File::open(dir)?.sync_all()?;
        forget_page_tables(disk.dir())
    };
    finish().map_err(|source| failed(disk, source))?;
    Ok(anew)
}

/// Puts what was written anew in the place of the old file. It stays open all the time, as the old
/// one does: so nobody else can take either for unused.
///
/// # Errors
/// Which of the two a power cut leaves is not known.
pub(crate) fn put_in_place(disk: &Disk, anew: &mut Disk) -> Result<(), LogError> {
    rename(disk.dir()).map_err(|source| failed(disk, source))?;
    anew.moved_to(disk.dir());
    Ok(())
}

/// What sled remembers of the old file to open it sooner. It works that out again from the file,
/// and would take it for the new one's.
fn forget_page_tables(dir: &Path) -> io::Result<()> {
    for item in fs::read_dir(dir)? {
        let item = item?;
        if item.file_name().as_encoded_bytes().starts_with(b"snap.") {
            fs::remove_file(item.path())?;
        }
    }
    sync_names(dir)
}

fn rename(dir: &Path) -> io::Result<()> {
    let db_path = Disk::db_path_in(dir);
    fs::rename(Disk::db_path_in(&dir.join(DIR)), &db_path)?;
    #[cfg(test)]
    observe::tell(observe::Event::Replaced(&db_path));
    sync_names(dir)
}

fn sync_names(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()?;
    #[cfg(test)]
    observe::tell(observe::Event::SyncedNames(dir));
    Ok(())
}

/// Removes what an interrupted attempt has left. Only for the process that has the log open.
pub(crate) fn remove_leftover(dir: &Path) {
    let path: PathBuf = dir.join(DIR);
    match fs::remove_dir_all(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // It takes room, and no more than that.
        Err(error) => tracing::warn!(%error, path = %path.display(), "cannot remove a leftover"),
    }
}

fn failed(disk: &Disk, source: io::Error) -> LogError {
    let path = disk.db_path().to_owned();
    LogError::Io { operation: "write anew", path, source: Arc::new(source) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

    use openraft::entry::RaftEntry;
    use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
    use openraft::testing::log_id;
    use openraft::type_config::TypeConfigExt;
    use openraft::type_config::alias::EntryOf;
    use tempfile::TempDir;

    use super::*;
    use crate::disk::meta::{self, MetaKey};
    use crate::opening::recover::open_sled;
    use crate::{Io, LogOptions, LogStore};

    openraft::declare_raft_types!(Toy: D = String, R = String);

    const INLINE: LogOptions =
        LogOptions { io: Io::Inline, recent_bytes_max: Some(0), journal_bytes_max: None };

    #[test]
    fn only_a_file_much_larger_than_its_records_is_worth_it() {
        const MIB: u64 = 1024 * 1024;
        let rows = [
            (0, 3, false),
            (0, 4, true),
            (2, 9, false),
            (2, 10, true),
            (16, 52, true),
            (17, 500, false),
        ];
        for (live, file, expected) in rows {
            assert_eq!(is_worth(live * MIB, file * MIB), expected, "{live} MiB in {file} MiB");
        }
    }

    /// What a log may be like when it is written anew.
    #[derive(Debug, Clone, Copy)]
    enum Before {
        Closed,
        /// Only the journal has the last entries.
        JournalAhead,
        /// What was purged and truncated is still there, and the marks.
        Marked,
    }

    /// Every step is one that a crash may come after.
    #[tokio::test]
    async fn whatever_step_a_crash_comes_after_the_log_is_whole() {
        let disk_of = |dir: &Path| Disk::new(open_sled(dir).unwrap(), dir).unwrap();
        let copied = |dir: &Path| {
            disk_of(dir).copy_into(&dir.join(DIR)).unwrap();
        };
        let half = |dir: &Path| {
            copied(dir);
            let db = File::options().write(true).open(dir.join(DIR).join("db")).unwrap();
            db.set_len(db.metadata().unwrap().len() / 2).unwrap();
        };
        let anew = |dir: &Path| {
            write_anew(&disk_of(dir)).unwrap();
        };
        let renamed = |dir: &Path| {
            anew(dir);
            rename(dir).unwrap();
        };
        let placed = |dir: &Path| {
            let disk = disk_of(dir);
            let mut anew = write_anew(&disk).unwrap();
            put_in_place(&disk, &mut anew).unwrap();
            assert_eq!(anew.db_path(), disk.db_path());
            drop(disk);
            remove_leftover(dir);
            anew.sync().unwrap();
        };
        let steps: [&dyn Fn(&Path); 5] = [&half, &copied, &anew, &renamed, &placed];
        for before in [Before::Closed, Before::JournalAhead, Before::Marked] {
            let (original, written) = fill(before).await;
            for (at, step) in steps.into_iter().enumerate() {
                let dir = tempfile::tempdir().unwrap();
                copy_files(original.path(), dir.path());
                let large = fs::metadata(dir.path().join("db")).unwrap().len();
                step(dir.path());
                for opening in 0..2 {
                    let mut log = LogStore::<Toy>::open(dir.path(), INLINE).unwrap();
                    let found = log.try_get_log_entries(..).await.unwrap();
                    assert_eq!(found, written, "{before:?}, step {at}, opened {opening} times");
                    assert!(!dir.path().join(DIR).exists());
                    log.close().unwrap();
                }
                let small = fs::metadata(dir.path().join("db")).unwrap().len();
                assert!(at < 3 || small * 2 < large, "{small} bytes after step {at} of {large}");
            }
        }
    }

    fn entry(index: u64) -> EntryOf<Toy> {
        EntryOf::<Toy>::new_normal(log_id::<Toy>(1, 1, index), "x".repeat(600))
    }

    async fn append(log: &mut LogStore<Toy>, first: u64, count: u64) {
        let (done, durable) = Toy::oneshot();
        let entries: Vec<_> = (first..first + count).map(entry).collect();
        log.append(entries, IOFlushed::signal(done)).await.unwrap();
        durable.await.unwrap().unwrap();
    }

    /// Many entries, of which the last few are left.
    async fn fill(before: Before) -> (TempDir, Vec<EntryOf<Toy>>) {
        let (dir, left_behind) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut log = LogStore::<Toy>::open(dir.path(), INLINE).unwrap();
        for first in (1..8_000).step_by(40) {
            append(&mut log, first, 40).await;
        }
        log.purge(log_id::<Toy>(1, 1, 7_900)).await.unwrap();
        let mut left: Vec<_> = (7_901..=8_000).map(entry).collect();
        match before {
            Before::Closed => log.close().unwrap(),
            Before::JournalAhead => {
                log.shared().with_disk(Disk::sync).unwrap();
                append(&mut log, 8_001, 40).await;
                left.extend((8_001..=8_040).map(entry));
            }
            Before::Marked => {
                log.close().unwrap();
                mark(dir.path(), 7_910, 7_991);
                left.retain(|entry| (7_911..7_991).contains(&entry.log_id().index));
            }
        }
        copy_files(dir.path(), left_behind.path());
        if let Before::JournalAhead = before {
            let disk = Disk::new(open_sled(left_behind.path()).unwrap(), left_behind.path());
            let (last, _) = disk.unwrap().records().next_back().unwrap().unwrap();
            assert!(last.as_ref() < 8_001_u64.to_be_bytes().as_slice());
        }
        (left_behind, left)
    }

    fn copy_files(from: &Path, to: &Path) {
        for name in ["conf", "db", "journal-0", "journal-1", "acknowledged"] {
            fs::copy(from.join(name), to.join(name)).unwrap();
        }
    }

    /// As a purge and a truncation leave sled that did not get any further.
    fn mark(dir: &Path, purged: u64, truncated_from: u64) {
        let disk = Disk::new(open_sled(dir).unwrap(), dir).unwrap();
        let purged = log_id::<Toy>(1, 1, purged);
        let value = meta::encode(MetaKey::Purged, 1_000_000, &purged).unwrap();
        disk.put_meta(MetaKey::Purged, &value).unwrap();
        let value = meta::encode(MetaKey::Truncated, 1_000_001, &truncated_from).unwrap();
        disk.put_meta(MetaKey::Truncated, &value).unwrap();
        disk.sync().unwrap();
    }
}
