//! A small file system of memory, for nodes whose disk is full. Mounting needs root; without it the
//! tests say so and end.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

use crate::skipped::skipped;

/// A small file system that goes with the test.
pub(crate) struct SmallDisk {
    dir: TempDir,
}

impl SmallDisk {
    pub(crate) fn mount(mib: usize) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let size = std::ffi::CString::new(format!("size={mib}m")).unwrap();
        let flags = MountFlags::empty();
        match mount("tmpfs", dir.path(), "tmpfs", flags, Some(size.as_c_str())) {
            Ok(()) => Some(Self { dir }),
            Err(error) => {
                skipped("a full disk", format!("mounting a tmpfs: {error}"));
                None
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// All three nodes on it.
    pub(crate) fn data_dirs(&self) -> BTreeMap<u64, PathBuf> {
        (1..=3).map(|id| (id, self.dir.path().join(format!("data-{id}")))).collect()
    }

    fn ballast(&self) -> PathBuf {
        self.dir.path().join("ballast")
    }

    pub(crate) fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.dir.path()).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// Leaves only this many bytes, all at once.
    pub(crate) fn fill(&self, leave_bytes: u64) {
        let file = fs::File::create(self.ballast()).unwrap();
        let fits = |bytes| fallocate(&file, FallocateFlags::empty(), 0, bytes).is_ok();
        // The nodes go on writing meanwhile.
        while !fits(self.free().saturating_sub(leave_bytes)) {}
    }

    /// The same, also where it is filled: what the nodes gave back meanwhile is taken, too.
    pub(crate) fn fill_up(&self, leave_bytes: u64) {
        let mut file = fs::File::options();
        let file = file.write(true).create(true).truncate(false).open(self.ballast()).unwrap();
        let (end, more) = (file.metadata().unwrap().len(), self.free().saturating_sub(leave_bytes));
        let _or_the_next_time = fallocate(&file, FallocateFlags::empty(), end, more);
    }

    pub(crate) fn make_room(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Also while a node still has files open there.
        let _stays_mounted = unmount(self.dir.path(), UnmountFlags::DETACH);
    }
}
