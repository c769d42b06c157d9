//! How much room is left on the disk. Below its reserve a node takes no writes, so that neither the
//! log store nor the rest of the machine ever sees a full disk; above it again, it goes on by
//! itself. What keeps the registry readable and true, and what makes room, goes on down to a floor:
//! first entries of a term, time, renewals, deregistrations, members.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use quorate_log::NodeId;
use tokio::sync::watch;

use crate::error::NodeError;

/// Below this part of the reserve nothing is written.
const FLOOR_PART: u64 = 4;

/// Watches the file system of the data directory.
#[derive(Debug)]
pub(crate) struct Disk {
    node: NodeId,
    dir: PathBuf,
    reserve_bytes: u64,
    free_bytes: AtomicU64,
    low: watch::Sender<bool>,
}

impl Disk {
    pub(crate) fn new(node: NodeId, dir: PathBuf, reserve_bytes: u64) -> Self {
        let (free_bytes, low) = (AtomicU64::new(u64::MAX), watch::Sender::new(false));
        let disk = Self { node, dir, reserve_bytes, free_bytes, low };
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
        self.check_at_least(self.reserve_bytes / FLOOR_PART)
    }

    /// Whether there is room for any write.
    ///
    /// # Errors
    /// [`NodeError::DiskFull`].
    pub(crate) fn check(&self) -> Result<(), NodeError> {
        self.check_room_for(0)
    }

    /// Whether there is room for this many bytes, beside the reserve.
    ///
    /// # Errors
    /// [`NodeError::DiskFull`].
    pub(crate) fn check_room_for(&self, bytes: u64) -> Result<(), NodeError> {
        self.check_at_least(self.reserve_bytes.saturating_add(bytes))
    }

    fn check_at_least(&self, wanted_bytes: u64) -> Result<(), NodeError> {
        let (free_bytes, reserve_bytes) = (self.free_bytes(), self.reserve_bytes);
        if free_bytes >= wanted_bytes {
            return Ok(());
        }
        Err(NodeError::DiskFull { node: self.node, free_bytes, reserve_bytes })
    }
}
