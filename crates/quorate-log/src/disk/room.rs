//! Room for the log, taken from the disk before it is needed: blocks beyond the end of sled's file.
//! A disk that others fill up within a moment would otherwise stop the log for good, before the
//! node has noticed and takes no more writes.
//!
//! Best effort: a file system that cannot do this, or is full already, is no error here.

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// Kept beyond the end of the file. Many times what a node writes between two looks at its disk.
pub(super) const ROOM_BYTES: u64 = 8 * 1024 * 1024;

/// How far the file has blocks.
#[derive(Debug, Default)]
pub(crate) struct Room {
    file_bytes: AtomicU64,
    kept_bytes: AtomicU64,
}

impl Room {
    /// To be called after every sync; does something when half of the room is used up, or was cut
    /// off.
    pub(super) fn keep(&self, file: &File) {
        let Ok(file_bytes) = file.metadata().map(|metadata| metadata.len()) else { return };
        // sled cuts free segments off the end, and with them what was kept beyond it.
        let was_cut = file_bytes < self.file_bytes.swap(file_bytes, Ordering::Relaxed);
        let needed_bytes = file_bytes + ROOM_BYTES / 2;
        if !was_cut && needed_bytes <= self.kept_bytes.load(Ordering::Relaxed) {
            return;
        }
        let wanted_bytes = file_bytes + ROOM_BYTES;
        // From the beginning: the file may have holes, too.
        let kept_bytes = match fallocate(file, FallocateFlags::KEEP_SIZE, 0, wanted_bytes) {
            Ok(()) => wanted_bytes,
            // The next sync tries again; a full disk sees few of them.
            Err(Errno::NOSPC | Errno::DQUOT | Errno::INTR) => 0,
            Err(error) => {
                tracing::debug!(%error, "no room can be kept for the log on this file system");
                u64::MAX
            }
        };
        self.kept_bytes.store(kept_bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn allocated_bytes(file: &File) -> u64 {
        file.metadata().unwrap().blocks() * 512
    }

    #[test]
    fn there_is_room_beyond_the_end_however_the_file_grows_and_shrinks() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = File::create(dir.path().join("db")).unwrap();
        let room = Room::default();
        room.keep(&file);
        if room.kept_bytes.load(Ordering::Relaxed) == u64::MAX {
            return;
        }
        for _ in 0..20 {
            file.write_all(&vec![1; 1024 * 1024]).unwrap();
            room.keep(&file);
            let length = file.metadata().unwrap().len();
            assert!(allocated_bytes(&file) >= length + ROOM_BYTES / 2);
        }
        assert_eq!(file.metadata().unwrap().len(), 20 * 1024 * 1024, "its length is its own");
        file.set_len(1024).unwrap();
        room.keep(&file);
        assert!(allocated_bytes(&file) >= ROOM_BYTES / 2);
    }
}
