//! Group commit: takes what is waiting, writes it in order, syncs once, and only then reports each
//! write as done.
//!
//! The only code that changes the disk of an open log. It must not know what an entry is. After the
//! first failure nothing more is written: what reached the disk is then unknown, and a retried sync
//! would hide that.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use openraft::RaftTypeConfig;
use openraft::storage::IOFlushed;
use tokio::sync::mpsc::{Receiver, error::TryRecvError};
use tokio::sync::oneshot;

use crate::codec::Record;
use crate::disk::Disk;
use crate::error::{LogError, panic_message};
use crate::meta::MetaKey;
use crate::store::Shared;
use crate::witness::Witness;

/// Operations that may wait for the writer. openraft sends one append per batch; when the disk is
/// slower than that, the appenders wait here instead of filling memory.
pub(crate) const QUEUE_OPERATIONS_MAX: usize = 256;

/// A group is synced when it has this many bytes even if more is waiting, so that the first
/// callback is not delayed by the last write.
const GROUP_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Purged records are removed this many at a time, between groups: a purge may concern many
/// thousands.
const PURGE_RECORDS_PER_STEP: usize = 64;

/// One change of the log, in the order in which it must reach the disk.
pub(crate) struct Operation<C: RaftTypeConfig> {
    pub(crate) change: Change,
    /// The highest sequence number among what is written; `None` if nothing is.
    pub(crate) seq: Option<u64>,
    pub(crate) report: Report<C>,
}

pub(crate) enum Change {
    Append { records: Vec<Record>, entries: u64 },
    Put { key: MetaKey, value: Vec<u8> },
    Truncate { from_index: u64, mark: Vec<u8> },
    Purge { last_index: u64, mark: Vec<u8> },
}

/// Whom to tell that the change is durable. `Nobody` waits for no sync: the next one covers it.
pub(crate) enum Report<C: RaftTypeConfig> {
    Nobody,
    Caller(oneshot::Sender<Result<(), LogError>>),
    Raft(IOFlushed<C>),
}

pub(crate) struct Writer<C: RaftTypeConfig> {
    shared: Arc<Shared<C>>,
    witness: Witness,
    /// Records up to this index were purged but are not all removed yet.
    purge_backlog: Option<u64>,
}

impl<C: RaftTypeConfig> Writer<C> {
    pub(crate) fn new(shared: Arc<Shared<C>>, witness: Witness) -> Self {
        Self { shared, witness, purge_backlog: None }
    }

    /// Serve the queue until every sender is gone and it is empty.
    pub(crate) fn run(mut self, mut queue: Receiver<Operation<C>>) {
        loop {
            let first = if self.purge_backlog.is_some() {
                match queue.try_recv() {
                    Ok(operation) => Some(operation),
                    Err(TryRecvError::Empty) => None,
                    Err(TryRecvError::Disconnected) => break,
                }
            } else {
                match queue.blocking_recv() {
                    Some(operation) => Some(operation),
                    None => break,
                }
            };
            if let Some(first) = first {
                let group = collect_group(first, &mut queue);
                self.write_group(group);
            }
            self.purge_step();
        }
        self.finish();
    }

    /// Write a group, sync it if anyone waits for that, and report.
    pub(crate) fn write_group(&mut self, group: Vec<Operation<C>>) {
        let result = match self.shared.failure() {
            Some(failure) => Err(failure),
            None => self.guarded("write to", |writer, disk| writer.write_and_sync(disk, &group)),
        };
        for operation in group {
            match operation.report {
                Report::Nobody => {}
                // A caller that went away no longer needs the answer.
                Report::Caller(caller) => drop(caller.send(result.clone())),
                Report::Raft(flushed) => flushed.io_completed(result.clone().map_err(Into::into)),
            }
        }
    }

    /// Remove purged records until none is left.
    pub(crate) fn purge_all(&mut self) {
        while self.purge_backlog.is_some() {
            self.purge_step();
        }
    }

    /// Sync what nobody waited for, before the log is closed.
    pub(crate) fn finish(&mut self) {
        if self.shared.failure().is_none() {
            // A failure is kept in `shared`, where closing finds it.
            let _ = self.guarded("flush", |writer, disk| {
                writer.write_committed(disk, u64::MAX)?;
                disk.sync()
            });
        }
    }

    /// Write the committed position, if it changed and everything up to `seq` is written: it must
    /// not point to an entry that is not there.
    fn write_committed(&self, disk: &Disk, seq: u64) -> Result<(), LogError> {
        let value = self.shared.memory_mut().take_committed(seq);
        value.map_or(Ok(()), |value| disk.put_meta(MetaKey::Committed, &value))
    }

    fn write_and_sync(&mut self, disk: &Disk, group: &[Operation<C>]) -> Result<(), LogError> {
        let started = Instant::now();
        let mut entries_written = 0;
        for operation in group {
            match &operation.change {
                Change::Append { records, entries } => {
                    disk.append(records)?;
                    entries_written += entries;
                }
                Change::Put { key, value } => disk.put_meta(*key, value)?,
                Change::Truncate { from_index, mark } => {
                    disk.put_meta(MetaKey::Truncated, mark)?;
                    disk.remove_from(*from_index, operation.seq.unwrap_or(u64::MAX))?;
                }
                Change::Purge { last_index, mark } => {
                    disk.put_meta(MetaKey::Purged, mark)?;
                    self.purge_backlog = self.purge_backlog.max(Some(*last_index));
                }
            }
        }
        let Some(seq) = group.iter().filter_map(|operation| operation.seq).max() else {
            return Ok(());
        };
        if group.iter().any(|operation| !matches!(operation.report, Report::Nobody)) {
            self.write_committed(disk, seq)?;
            disk.sync()?;
            self.shared.counters().flushed(entries_written, started.elapsed());
            if let Err(error) = self.witness.acknowledge(seq) {
                // It only makes a later loss harder to notice.
                tracing::warn!(%error, "cannot record the last acknowledged write");
            }
        }
        self.shared.memory_mut().evict(seq);
        Ok(())
    }

    fn purge_step(&mut self) {
        let Some(last_index) = self.purge_backlog else { return };
        let step =
            self.guarded("purge", |_, disk| disk.remove_upto(last_index, PURGE_RECORDS_PER_STEP));
        if !matches!(step, Ok(false)) {
            self.purge_backlog = None;
        }
    }

    /// Run `work` on the open disk. A failure or a panic ends all writing.
    fn guarded<T>(
        &mut self,
        operation: &'static str,
        work: impl FnOnce(&mut Self, &Disk) -> Result<T, LogError>,
    ) -> Result<T, LogError> {
        let shared = self.shared.clone();
        let result = shared.with_disk(|disk| {
            catch_unwind(AssertUnwindSafe(|| work(self, disk))).unwrap_or_else(|payload| {
                Err(LogError::Panicked {
                    operation,
                    path: disk.db_path().to_owned(),
                    message: panic_message(payload.as_ref()),
                })
            })
        });
        if let Err(error) = &result {
            tracing::error!(%error, "the log stops: a write failed");
            shared.fail(error.clone());
        }
        result
    }
}

fn collect_group<C: RaftTypeConfig>(
    first: Operation<C>,
    queue: &mut Receiver<Operation<C>>,
) -> Vec<Operation<C>> {
    let mut bytes = first.bytes();
    let mut group = vec![first];
    while bytes < GROUP_BYTES_MAX
        && let Ok(operation) = queue.try_recv()
    {
        bytes += operation.bytes();
        group.push(operation);
    }
    group
}

impl<C: RaftTypeConfig> Operation<C> {
    fn bytes(&self) -> usize {
        match &self.change {
            Change::Append { records, .. } => records.iter().map(|record| record.value.len()).sum(),
            Change::Put { value: bytes, .. }
            | Change::Truncate { mark: bytes, .. }
            | Change::Purge { mark: bytes, .. } => bytes.len(),
        }
    }
}
