//! openraft's own suite for log stores.

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use quorate_log::{LogOptions, LogStore};
use tempfile::TempDir;

use crate::toy::{FROM_DISK, INLINE, Toy, ToyMachine, run};

struct InTemporaryDirectory(LogOptions);

impl StoreBuilder<Toy, LogStore<Toy>, ToyMachine, TempDir> for InTemporaryDirectory {
    async fn build(&self) -> Result<(TempDir, LogStore<Toy>, ToyMachine), StorageError<Toy>> {
        let dir = tempfile::tempdir().unwrap();
        let log = LogStore::open(dir.path(), self.0).unwrap();
        Ok((dir, log, ToyMachine::default()))
    }
}

#[test]
fn openraft_suite_with_recent_entries_in_memory() {
    run(Suite::test_all(InTemporaryDirectory(LogOptions::default()))).unwrap();
}

#[test]
fn openraft_suite_reading_from_disk() {
    run(Suite::test_all(InTemporaryDirectory(FROM_DISK))).unwrap();
}

#[test]
fn openraft_suite_without_a_writer_thread() {
    run(Suite::test_all(InTemporaryDirectory(INLINE))).unwrap();
}
