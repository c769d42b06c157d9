//! How much room is left on the disk. Below its reserve a node takes no writes, so that neither the
//! log store nor the rest of the machine ever sees a full disk; above it again, it goes on by
//! itself. What keeps the registry readable and true, and what makes room, goes on down to a floor:
//! first entries of a term, time, renewals, deregistrations, members.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quorate_log::NodeId;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::error::NodeError;

/// Below this part of the reserve nothing is written.
const FLOOR_PART: u64 = 4;

/// A snapshot may have this many times the bytes of the last one, where nobody has counted: a disk
/// that gets full while one is written ends the node.
const GROWTH: u64 = 2;

/// What was counted is good for so long, and the registry grows by no more than a part of it
/// meanwhile, or the reserve takes that.
const COUNTED_FOR: Duration = Duration::from_secs(5);
const COUNTED_PART: u64 = 16;

/// Watches the file system of the data directory.
#[derive(Debug)]
pub(crate) struct Disk {
    node: NodeId,
    dir: PathBuf,
    reserve_bytes: u64,
    free_bytes: AtomicU64,
    low: watch::Sender<bool>,
    /// Why the last snapshot was put off; `None`: it was not.
    put_off: watch::Sender<Option<NodeError>>,
    /// The bytes that a snapshot would have had, and when.
    counted: Mutex<Option<(Instant, u64)>>,
}

impl Disk {
    pub(crate) fn new(node: NodeId, dir: PathBuf, reserve_bytes: u64) -> Self {
        let (free_bytes, low) = (AtomicU64::new(u64::MAX), watch::Sender::new(false));
        let put_off = watch::Sender::new(None);
        let disk =
            Self { node, dir, reserve_bytes, free_bytes, low, put_off, counted: Mutex::default() };
        disk.measure();
        disk
    }

    /// Looks again; called by the ticker. A file system that cannot be asked counts as having room.
    pub(crate) fn measure(&self) {
        let before = self.free_bytes();
        let free = match rustix::fs::statvfs(&self.dir) {
            Ok(stat) => stat.f_bavail.saturating_mul(stat.f_frsize),
            Err(_) => u64::MAX,
        };
        self.free_bytes.store(free, Ordering::Relaxed);
        let reserve_bytes = self.reserve_bytes;
        let is_low = free < reserve_bytes;
        self.low.send_if_modified(|low| std::mem::replace(low, is_low) != is_low);
        if (before >= reserve_bytes) && free < reserve_bytes {
            tracing::error!(free_bytes = free, reserve_bytes, dir = %self.dir.display(),
                "the disk is nearly full: no registrations until there is room");
        }
        if before < reserve_bytes && free >= reserve_bytes {
            tracing::info!(free_bytes = free, reserve_bytes, "there is room on the disk again");
        }
    }

    /// Whether a file is on this disk; not: nobody can tell.
    pub(crate) fn has(&self, file: &Path) -> bool {
        let device = |path: &Path| std::fs::metadata(path).map(|it| it.dev());
        device(&self.dir).ok().zip(device(file).ok()).is_some_and(|(data, file)| data == file)
    }

    /// Follows whether less is free than the reserve.
    pub(crate) fn follow(&self) -> watch::Receiver<bool> {
        self.low.subscribe()
    }

    pub(crate) fn free_bytes(&self) -> u64 {
        self.free_bytes.load(Ordering::Relaxed)
    }

    /// What is free beside the reserve.
    pub(crate) fn spare_bytes(&self) -> u64 {
        self.free_bytes().saturating_sub(self.reserve_bytes)
    }

    /// Whether there is room for what must go on below the reserve.
    ///
    /// # Errors
    /// [`NodeError::DiskFull`].
    pub(crate) fn check_floor(&self) -> Result<(), NodeError> {
        self.check_at_least(self.floor_bytes())
    }

    fn floor_bytes(&self) -> u64 {
        self.reserve_bytes / FLOOR_PART
    }

    /// Whether there is room for any write.
    ///
    /// # Errors
    /// [`NodeError::DiskFull`].
    pub(crate) fn check(&self) -> Result<(), NodeError> {
        self.check_at_least(self.reserve_bytes)
    }

    /// Whether a snapshot may begin, when the last one has this many bytes. Whoever waits for one
    /// learns why not.
    pub(crate) fn may_begin_snapshot(&self, last_bytes: u64) -> bool {
        let refused = self.check_snapshot(last_bytes).err();
        let before = self.put_off.send_replace(refused.clone());
        if let (None, Some(reason)) = (before, &refused) {
            tracing::warn!(%reason, "a snapshot is put off");
        }
        refused.is_none()
    }

    /// A snapshot would have this many bytes now.
    pub(crate) fn has_counted(&self, snapshot_bytes: u64) {
        let mut counted = self.counted.lock().expect("invariant: nothing panics under this lock");
        *counted = Some((Instant::now(), snapshot_bytes));
    }

    /// Follows why snapshots are put off, from now on.
    pub(crate) fn snapshots_put_off(&self) -> watch::Receiver<Option<NodeError>> {
        self.put_off.subscribe()
    }

    /// Whether there is room for a snapshot beside the reserve.
    ///
    /// # Errors
    /// [`NodeError::DiskFull`], or [`NodeError::NoRoomForSnapshot`].
    fn check_snapshot(&self, last_bytes: u64) -> Result<(), NodeError> {
        self.check()?;
        let (node, free_bytes, reserve_bytes) = (self.node, self.free_bytes(), self.reserve_bytes);
        let counted = *self.counted.lock().expect("invariant: nothing panics under this lock");
        let counted = counted.filter(|(at, _)| at.elapsed() < COUNTED_FOR);
        let snapshot_bytes = match counted {
            Some((_, bytes)) => bytes.saturating_add(bytes / COUNTED_PART),
            None => last_bytes.saturating_mul(GROWTH),
        };
        let wanted_bytes = reserve_bytes.saturating_add(snapshot_bytes);
        match free_bytes >= wanted_bytes {
            true => Ok(()),
            false => Err(NodeError::NoRoomForSnapshot { node, free_bytes, wanted_bytes }),
        }
    }

    fn check_at_least(&self, wanted_bytes: u64) -> Result<(), NodeError> {
        let (free_bytes, reserve_bytes) = (self.free_bytes(), self.reserve_bytes);
        if free_bytes >= wanted_bytes {
            return Ok(());
        }
        let is_at_floor = free_bytes < self.floor_bytes();
        Err(NodeError::DiskFull { node: self.node, free_bytes, reserve_bytes, is_at_floor })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn below_the_floor_nobody_is_told_that_renewals_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(NodeId::new(1).unwrap(), dir.path().to_owned(), 100);
        let told = |free| {
            disk.free_bytes.store(free, Ordering::Relaxed);
            let (any, some) = (disk.check(), disk.check_floor());
            [any, some].map(|checked| checked.map_err(|error| error.to_string()).err())
        };
        assert_eq!(told(100), [None, None]);
        let [any, some] = told(25);
        let begins =
            "the disk of node 1 has 25 bytes free, below its reserve of 100: no registrations";
        assert!(any.unwrap().starts_with(begins) && some.is_none());
        for told in told(24) {
            let told = told.unwrap();
            assert!(told.contains("nothing is written") && !told.contains("renewals"), "{told}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_begins_only_where_it_fits_beside_the_reserve() {
        let dir = tempfile::tempdir().unwrap();
        let node = NodeId::new(1).unwrap();
        let disk = Disk::new(node, dir.path().to_owned(), 100);
        let full = |free_bytes| {
            let (reserve_bytes, is_at_floor) = (100, false);
            NodeError::DiskFull { node, free_bytes, reserve_bytes, is_at_floor }
        };
        let short = |free_bytes, wanted_bytes| NodeError::NoRoomForSnapshot {
            node,
            free_bytes,
            wanted_bytes,
        };
        let rows = [
            (99, 0, Some(full(99))),
            (100, 0, None),
            (99, 16, Some(full(99))),
            (131, 16, Some(short(131, 132))),
            (132, 16, None),
        ];
        for (free, last, expected) in rows {
            disk.free_bytes.store(free, Ordering::Relaxed);
            let put_off = disk.snapshots_put_off();
            assert_eq!(disk.may_begin_snapshot(last), expected.is_none(), "{free} free, {last}");
            assert_eq!(*put_off.borrow(), expected, "{free} free, {last}");
        }
        disk.free_bytes.store(117, Ordering::Relaxed);
        assert!(!disk.may_begin_snapshot(16), "it may have twice that");
        disk.has_counted(16);
        assert!(disk.may_begin_snapshot(16), "it has not");
        disk.has_counted(32);
        assert!(!disk.may_begin_snapshot(1), "it has more");
        tokio::time::advance(COUNTED_FOR).await;
        assert!(disk.may_begin_snapshot(1), "that was long ago");
    }
}
