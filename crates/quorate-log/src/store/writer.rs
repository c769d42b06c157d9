//! Group commit: takes what is waiting, makes it durable in order with one write and one sync of
//! the journal, reports each change as done, and puts it into sled.
//!
//! The only code that changes the disk of an open log. It must not know what an entry is. After the
//! first failure nothing more is written: what reached the disk is then unknown, and a retried sync
//! would hide that.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use openraft::RaftTypeConfig;
use openraft::storage::IOFlushed;
use tokio::sync::mpsc::{Receiver, error::TryRecvError};
use tokio::sync::oneshot;

use crate::disk::codec::Record;
use crate::disk::journal::{self, Journal, Tree};
use crate::disk::meta::{self, MetaKey};
use crate::disk::shrink;
use crate::disk::sled::Disk;
use crate::disk::witness::Witness;
use crate::error::{LogError, panic_message};
use crate::panics::catching;
use crate::store::{Io, Shared};

/// Operations that may wait for the writer. openraft sends one append per batch; when the disk is
/// slower than that, the appenders wait here instead of filling memory.
pub(super) const QUEUE_OPERATIONS_MAX: usize = 256;

/// A group is synced when it has this many bytes even if more is waiting, so that the first
/// callback is not delayed by the last write, and that sled is synced often enough.
const GROUP_BYTES_MAX: usize = journal::TURN_BYTES / 2;

/// Purged records are removed this many at a time, between groups: a purge may concern many
/// thousands.
const PURGE_RECORDS_PER_STEP: usize = 64;

/// One change of the log, in the order in which it must reach the disk.
pub(crate) struct Operation<C: RaftTypeConfig> {
    pub(crate) change: Change,
    /// The highest sequence number among what is written; `None` if nothing is.
    pub(crate) seq: Option<u64>,
    pub(super) report: Report<C>,
}

pub(crate) enum Change {
    Append {
        records: Vec<Record>,
        entries: u64,
    },
    Put {
        key: MetaKey,
        value: Vec<u8>,
    },
    Truncate {
        from_index: u64,
        mark: Vec<u8>,
    },
    Purge {
        last_index: u64,
        mark: Vec<u8>,
    },
    /// Nothing of what is in the log changes. To be done where it is worth it and the disk has so
    /// much room; without that, always.
    Shrink {
        room_bytes: Option<u64>,
    },
}

/// What learns that the change is durable. `Nobody` waits for no sync: the next one covers it.
pub(crate) enum Report<C: RaftTypeConfig> {
    Nobody,
    Caller(oneshot::Sender<Result<(), LogError>>),
    Raft(IOFlushed<C>),
}

pub(crate) struct Writer<C: RaftTypeConfig> {
    shared: Arc<Shared<C>>,
    io: Io,
    witness: Witness,
    journal: Journal,
    /// Syncs sled, so that the journal's other file can be begun anew.
    checkpoint: Option<Checkpoint>,
    /// Records up to this index were purged but are not all removed yet.
    purge_backlog: Option<u64>,
    /// A [`Change::Shrink`], with its room: to be done when no record is left that was purged.
    shrink_asked: Option<Option<u64>>,
}

impl<C: RaftTypeConfig> Writer<C> {
    pub(crate) fn new(shared: Arc<Shared<C>>, io: Io, witness: Witness, journal: Journal) -> Self {
        let (checkpoint, purge_backlog, shrink_asked) = (None, None, None);
        Self { shared, io, witness, journal, checkpoint, purge_backlog, shrink_asked }
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
            self.shrink_if_asked();
        }
        self.finish();
    }

    /// Make a group durable, report it, and put it into sled.
    pub(super) fn write_group(&mut self, mut group: Vec<Operation<C>>) {
        for Operation { change, .. } in &group {
            if let Change::Shrink { room_bytes } = change {
                self.shrink_asked = Some(*room_bytes);
            }
        }
        let Some(seq) = group.iter().filter_map(|operation| operation.seq).max() else {
            return report(&mut group, Ok(()));
        };
        let is_awaited = group.iter().any(|operation| !matches!(operation.report, Report::Nobody));
        // Goes with what is written up to it: it must not point to an entry that is not there.
        let committed = is_awaited.then(|| self.shared.memory_mut().take_committed(seq)).flatten();
        let shared = self.shared.clone();
        let journaled = match shared.failure() {
            Some(failure) => Err(failure),
            None => guarded(&shared, "write to", |disk| {
                self.journal_group(disk, &group, committed.as_deref(), seq, is_awaited)
            }),
        };
        report(&mut group, journaled.clone().map(|_| ()));
        let Ok(in_journal) = journaled else { return };
        // A failure is kept in `shared`; the next writes get it.
        let applied = guarded(&shared, "write to", |disk| match in_journal {
            InJournal::Yes => self.apply(disk, &group, committed.as_deref()),
            InJournal::TooLarge => Ok(()),
        });
        if applied.is_ok() {
            shared.memory_mut().evict(seq);
        }
    }

    /// Remove purged records until none is left.
    pub(super) fn purge_all(&mut self) {
        while self.purge_backlog.is_some() {
            self.purge_step();
        }
    }

    /// Write the log anew, if that was asked for and is worth it. A failure to do so leaves it as
    /// it is; one to put it in place ends all writing.
    pub(super) fn shrink_if_asked(&mut self) {
        if self.purge_backlog.is_some() {
            return;
        }
        let Some(room_bytes) = self.shrink_asked.take() else { return };
        let shared = self.shared.clone();
        // What the journal has is then in sled, and durable there.
        let synced = guarded(&shared, "flush", |disk| {
            self.await_checkpoint(disk)?;
            disk.sync()
        });
        if synced.is_err() {
            return;
        }
        shared.memory_mut().evict_all(self.journal.last_seq());
        let started = Instant::now();
        let written = shared.with_disk(|disk| {
            caught("write anew", disk.db_path(), || {
                let room = room_bytes.map_or(Ok(true), |room| shrink::is_worth_it(disk, room));
                room?.then(|| shrink::write_anew(disk)).transpose()
            })
        });
        let mut anew = match written {
            Ok(Some(anew)) => anew,
            Ok(None) => return,
            Err(error) => return tracing::warn!(%error, "the log stays as large as it is"),
        };
        let placed = guarded(&shared, "change over to what was written anew of", |disk| {
            shrink::put_in_place(disk, &mut anew)
        });
        if placed.is_ok() {
            drop(shared.replace_disk(anew));
            let _ = shared.with_disk(|disk| {
                shrink::remove_leftover(disk.dir());
                Ok(())
            });
            shared.counters().rewritten();
            tracing::debug!(took = ?started.elapsed(), "the log was written anew");
        }
    }

    /// Sync sled before the log is closed, so that the next one to open it needs no journal.
    pub(crate) fn finish(&mut self) {
        let shared = self.shared.clone();
        if shared.failure().is_none() {
            // A failure is kept in `shared`, where closing finds it.
            let _ = guarded(&shared, "flush", |disk| {
                self.await_checkpoint(disk)?;
                let committed = shared.memory_mut().take_committed(u64::MAX);
                committed.map_or(Ok(()), |value| disk.put_meta(MetaKey::Committed, &value))?;
                disk.sync()
            });
        }
    }

    /// Write a group to the journal, and sync that if anyone waits; or, if it is too large for
    /// that, put it into sled and sync that.
    fn journal_group(
        &mut self,
        disk: &Disk,
        group: &[Operation<C>],
        committed: Option<&[u8]>,
        seq: u64,
        is_awaited: bool,
    ) -> Result<InJournal, LogError> {
        let started = Instant::now();
        let durable_seq = self.journal.is_synced().then(|| self.journal.last_seq());
        self.journal.begin(seq);
        if let Some(mark) = durable_seq.and_then(|seq| meta::durable_mark(seq).ok()) {
            self.journal.put(Tree::Meta, MetaKey::Format.name().as_bytes(), &mark);
        }
        let changes = group.iter().map(|operation| &operation.change);
        changes.for_each(|change| change.put_into(&mut self.journal));
        if let Some(value) = committed {
            self.journal.put(Tree::Meta, MetaKey::Committed.name().as_bytes(), value);
        }
        let in_journal = if self.journal.takes_frame() {
            self.write_frame(disk, is_awaited)?;
            InJournal::Yes
        } else {
            self.apply(disk, group, committed)?;
            self.await_checkpoint(disk)?;
            disk.sync()?;
            self.journal.restart(seq);
            InJournal::TooLarge
        };
        if is_awaited {
            let appends = group.iter().map(|operation| operation.change.entries());
            let (entries, entry_bytes) =
                appends.fold((0, 0), |all, (count, bytes)| (all.0 + count, all.1 + bytes));
            self.shared.counters().flushed(entries, entry_bytes, started.elapsed());
            self.acknowledge(seq)?;
        }
        Ok(in_journal)
    }

    /// Have the witness remember it; durably where the log begins to be doubted.
    fn acknowledge(&mut self, seq: u64) -> Result<(), LogError> {
        if self.witness.begins_to_doubt() {
            self.witness.begin(seq).map_err(|source| {
                let path = self.witness.path().to_owned();
                LogError::Io { operation: "write or sync", path, source: Arc::new(source) }
            })?;
        } else if let Err(error) = self.witness.acknowledge(seq) {
            // It only makes a later loss harder to notice.
            tracing::warn!(%error, "cannot record the last acknowledged write");
        }
        Ok(())
    }

    fn write_frame(&mut self, disk: &Disk, is_awaited: bool) -> Result<(), LogError> {
        if !self.journal.has_room() {
            // The other file was left when the last checkpoint began; what this one has is in sled,
            // not yet synced.
            self.await_checkpoint(disk)?;
            self.begin_checkpoint(disk)?;
            self.journal.turn().map_err(|source| self.journal_failed(source))?;
        }
        let written = self.journal.write();
        self.shared.counters().journaled(self.journal.frame_bytes());
        let synced = written.and_then(|()| if is_awaited { self.journal.sync() } else { Ok(()) });
        synced.map_err(|source| self.journal_failed(source))
    }

    fn journal_failed(&self, source: io::Error) -> LogError {
        let path = self.journal.path().to_owned();
        LogError::Io { operation: "write or sync", path, source: Arc::new(source) }
    }

    /// Put a group into sled.
    fn apply(
        &mut self,
        disk: &Disk,
        group: &[Operation<C>],
        committed: Option<&[u8]>,
    ) -> Result<(), LogError> {
        for Operation { change, seq, .. } in group {
            match change {
                Change::Append { records, .. } => disk.append(records)?,
                Change::Put { key, value } => disk.put_meta(*key, value)?,
                Change::Shrink { .. } => {}
                Change::Truncate { from_index, mark } => {
                    disk.put_meta(MetaKey::Truncated, mark)?;
                    disk.remove_from(*from_index, seq.unwrap_or(u64::MAX))?;
                }
                Change::Purge { last_index, mark } => {
                    disk.put_meta(MetaKey::Purged, mark)?;
                    self.purge_backlog = self.purge_backlog.max(Some(*last_index));
                }
            }
        }
        committed.map_or(Ok(()), |value| disk.put_meta(MetaKey::Committed, value))
    }

    /// Begin to sync what is in sled: on a thread of its own, so that writes go on meanwhile.
    fn begin_checkpoint(&mut self, disk: &Disk) -> Result<(), LogError> {
        if self.io == Io::Inline {
            // As late as a thread may be done with it.
            self.checkpoint = Some(Checkpoint::Due);
            return Ok(());
        }
        let shared = self.shared.clone();
        let thread = thread::Builder::new().name("quorate-log-sync".to_owned());
        // A failure is kept in `shared`.
        let spawned = thread.spawn(move || drop(guarded(&shared, "flush", Disk::sync)));
        let spawned = spawned.map_err(|source| LogError::Io {
            operation: "start a thread to sync",
            path: disk.db_path().to_owned(),
            source: Arc::new(source),
        })?;
        self.checkpoint = Some(Checkpoint::UnderWay(spawned));
        Ok(())
    }

    fn await_checkpoint(&mut self, disk: &Disk) -> Result<(), LogError> {
        match self.checkpoint.take() {
            None => {}
            Some(Checkpoint::Due) => disk.sync()?,
            // It catches its own panics.
            Some(Checkpoint::UnderWay(thread)) => drop(thread.join()),
        }
        self.shared.failure().map_or(Ok(()), Err)
    }

    fn purge_step(&mut self) {
        let Some(last_index) = self.purge_backlog else { return };
        if self.shared.failure().is_some() {
            self.purge_backlog = None;
            return;
        }
        let step = guarded(&self.shared, "purge", |disk| {
            disk.remove_upto(last_index, PURGE_RECORDS_PER_STEP)
        });
        if !matches!(step, Ok(false)) {
            self.purge_backlog = None;
        }
    }
}

/// A sync of sled that is not done yet.
enum Checkpoint {
    UnderWay(JoinHandle<()>),
    Due,
}

/// Where a group was made durable.
#[derive(Debug, Clone, Copy)]
enum InJournal {
    Yes,
    /// In sled, and only there.
    TooLarge,
}

/// Run `work` on the open disk. A failure or a panic ends all writing.
fn guarded<C: RaftTypeConfig, T>(
    shared: &Shared<C>,
    operation: &'static str,
    work: impl FnOnce(&Disk) -> Result<T, LogError>,
) -> Result<T, LogError> {
    let result = shared.with_disk(|disk| caught(operation, disk.db_path(), || work(disk)));
    if let Err(error) = &result {
        tracing::error!(%error, "the log stops: a write failed");
        shared.fail(error.clone());
    }
    result
}

/// Turns a panic into an error.
fn caught<T>(
    operation: &'static str,
    path: &Path,
    work: impl FnOnce() -> Result<T, LogError>,
) -> Result<T, LogError> {
    catching(work).unwrap_or_else(|payload| {
        let message = panic_message(payload.as_ref());
        Err(LogError::Panicked { operation, path: path.to_owned(), message })
    })
}

fn report<C: RaftTypeConfig>(group: &mut [Operation<C>], result: Result<(), LogError>) {
    for operation in group {
        match std::mem::replace(&mut operation.report, Report::Nobody) {
            Report::Nobody => {}
            // A caller that went away no longer needs the answer.
            Report::Caller(caller) => drop(caller.send(result.clone())),
            Report::Raft(flushed) => flushed.io_completed(result.clone().map_err(Into::into)),
        }
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
            Change::Shrink { .. } => 0,
        }
    }
}

impl Change {
    fn put_into(&self, journal: &mut Journal) {
        let mut meta = |key: MetaKey, value| journal.put(Tree::Meta, key.name().as_bytes(), value);
        match self {
            Self::Append { records, .. } => {
                let each = records.iter();
                each.for_each(|record| journal.put(Tree::Entries, &record.key, &record.value));
            }
            Self::Put { key, value } => meta(*key, value),
            Self::Truncate { mark, .. } => meta(MetaKey::Truncated, mark),
            Self::Purge { mark, .. } => meta(MetaKey::Purged, mark),
            Self::Shrink { .. } => {}
        }
    }

    /// How many entries it appends, and their bytes.
    fn entries(&self) -> (u64, u64) {
        match self {
            Self::Append { records, entries } => {
                (*entries, records.iter().map(|record| record.value.len() as u64).sum())
            }
            _ => (0, 0),
        }
    }
}
