//! Gives back what a log that was once long still takes: sled's file does not shrink when records are removed from it, nor does
//! what sled keeps in memory of it. So a log that is quiet is written anew: into a directory beside, whose file then takes the
//! old one's place by a rename. What a crash leaves is the one or the other, and both are whole.
//!
//! Nothing else may be written meanwhile; it is read until the files are changed over.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::sled::{Disk, SEGMENT_BYTES, Trees};
use crate::error::{LogError, OpenError};

/// Where the log is written anew, in its directory. What is left there was never in use.
const DIR: &str = "anew";

/// The records of a log that is written anew take no more than this: so long may a write have to wait (a second of a slow
/// disk).
const LIVE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Whether records of so many bytes should have a file of their own instead of one of that size. A new one takes about two and
/// a half times what the records have.
fn is_worth(live_bytes: u64, file_bytes: u64) -> bool {
    let anew_bytes = SEGMENT_BYTES as u64 + 3 * live_bytes;
    live_bytes <= LIVE_BYTES_MAX && file_bytes >= anew_bytes + SEGMENT_BYTES as u64
}

/// Writes the log anew, where that is worth it: everything that is in sled, durably, into a directory beside. Whether it did.
///
/// # Errors
/// It cannot be read, or the copy not be written. The log is as it was.
pub(crate) fn write_anew(disk: &Disk) -> Result<bool, LogError> {
    let file_bytes = fs::metadata(disk.db_path()).map_err(|source| failed(disk, source))?.len();
    if !is_worth(disk.live_bytes()?, file_bytes) {
        return Ok(false);
    }
    remove_leftover(disk.dir());
    let dir = disk.dir().join(DIR);
    let written = disk.copy_into(&dir).and_then(|()| {
        let file = File::options().write(true).open(Disk::db_path_in(&dir));
        file.and_then(|file| file.sync_all()).map_err(|source| failed(disk, source))
    });
    if written.is_err() {
        remove_leftover(disk.dir());
    }
    written.map(|()| true)
}

/// Puts what was written anew in the place of the old file, and has it opened with `open`.
///
/// # Errors
/// The files on the disk are whole, but none is open.
pub(crate) fn change_over(
    disk: Disk,
    open: impl FnOnce(&Path) -> Result<Trees, OpenError>,
) -> Result<Disk, LogError> {
    let dir = disk.dir().to_owned();
    forget_page_tables(&dir).map_err(|source| failed(&disk, source))?;
    // The old file is open until the new one is there: nobody else can take the directory for unused and write to the old one.
    rename(&dir).map_err(|source| failed(&disk, source))?;
    let db_path = disk.db_path().to_owned();
    drop(disk);
    remove_leftover(&dir);
    let failed = |source| LogError::Io {
        operation: "open what was written anew of",
        path: db_path.clone(),
        source: Arc::new(source),
    };
    let trees = open(&dir).map_err(|error| failed(io::Error::other(error)))?;
    Disk::new(trees, &dir).map_err(failed)
}

/// What sled remembers of the old file to open it sooner. It works that out again from the file, and would take it for the new
/// one's.
fn forget_page_tables(dir: &Path) -> io::Result<()> {
    for item in fs::read_dir(dir)? {
        let item = item?;
        if item.file_name().as_encoded_bytes().starts_with(b"snap.") {
            fs::remove_file(item.path())?;
        }
    }
    File::open(dir)?.sync_all()
}

fn rename(dir: &Path) -> io::Result<()> {
    fs::rename(Disk::db_path_in(&dir.join(DIR)), Disk::db_path_in(dir))?;
    File::open(dir)?.sync_all()
}

/// What an interrupted attempt has left. To be called by whoever has the log open.
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

    use super::*;
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

    /// Every step is one that a crash may come after.
    #[tokio::test]
    async fn whatever_step_a_crash_comes_after_the_log_is_whole() {
        let anew = |dir: &Path| {
            let disk = Disk::new(open_sled(dir).unwrap(), dir).unwrap();
            assert!(write_anew(&disk).unwrap());
        };
        let half = |dir: &Path| {
            anew(dir);
            let db = File::options().write(true).open(dir.join(DIR).join("db")).unwrap();
            db.set_len(db.metadata().unwrap().len() / 2).unwrap();
        };
        let forgotten = |dir: &Path| {
            anew(dir);
            forget_page_tables(dir).unwrap();
        };
        let renamed = |dir: &Path| {
            forgotten(dir);
            rename(dir).unwrap();
        };
        let steps: [&dyn Fn(&Path); 4] = [&half, &anew, &forgotten, &renamed];
        for (at, step) in steps.into_iter().enumerate() {
            let dir = tempfile::tempdir().unwrap();
            let written = fill(dir.path()).await;
            let large = fs::metadata(dir.path().join("db")).unwrap().len();
            step(dir.path());
            for opening in 0..2 {
                let mut log = LogStore::<Toy>::open(dir.path(), INLINE).unwrap();
                let found = log.try_get_log_entries(..).await.unwrap();
                assert_eq!(found, written, "step {at}, opened {opening} times before");
                assert!(!dir.path().join(DIR).exists());
                log.close().unwrap();
            }
            let small = fs::metadata(dir.path().join("db")).unwrap().len();
            assert!(at < 3 || small * 2 < large, "{small} bytes after step {at}, {large} before");
        }
    }

    /// Many entries, of which the last few are left.
    async fn fill(dir: &Path) -> Vec<EntryOf<Toy>> {
        let mut log = LogStore::<Toy>::open(dir, INLINE).unwrap();
        for first in (1..8_000).step_by(40) {
            let entry =
                |index| EntryOf::<Toy>::new_normal(log_id::<Toy>(1, 1, index), "x".repeat(600));
            let (done, durable) = Toy::oneshot();
            let entries: Vec<_> = (first..first + 40).map(entry).collect();
            log.append(entries, IOFlushed::signal(done)).await.unwrap();
            durable.await.unwrap().unwrap();
        }
        log.purge(log_id::<Toy>(1, 1, 7_900)).await.unwrap();
        let left = log.try_get_log_entries(..).await.unwrap();
        log.close().unwrap();
        left
    }
}
