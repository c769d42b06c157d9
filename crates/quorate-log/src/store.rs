//! The handle on an open log: openraft's traits, and the order in which changes reach the disk.
//!
//! A change first takes effect in memory and is then queued, both under one lock, so the disk sees
//! changes in the order in which readers do. It must not know how anything is laid out on disk.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
};
use std::thread::{self, JoinHandle};

use openraft::RaftTypeConfig;
use tokio::sync::{mpsc, oneshot};

use crate::Identity;
use crate::StampError;
use crate::Stats;
use crate::disk::journal;
use crate::disk::meta::{self, MetaKey};
use crate::disk::sled::Disk;
use crate::error::RecordError;
use crate::error::{LogError, OpenError};
use crate::memory::Memory;
use crate::opening::recover;
use crate::stats::Counters;
use crate::store::writer::{Change, Operation, QUEUE_OPERATIONS_MAX, Report, Writer};

#[cfg(test)]
mod failure_tests;
mod raft;
pub(crate) mod writer;

/// The thread that writes to the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Io {
    /// A thread named `quorate-log`; appends that arrive while it syncs share the next sync.
    #[default]
    Thread,
    /// The caller, before the call returns. Deterministic, for simulations.
    Inline,
}

/// How to open a log.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogOptions {
    /// The thread that writes to the disk.
    pub io: Io,
    /// Keep at most this many encoded bytes of recent entries in memory; the default and maximum is
    /// 2 MiB. Lower it to make tests read from the disk.
    pub recent_bytes_max: Option<usize>,
    /// Give each of the journal's two files at most this many bytes; the default and maximum is 2
    /// MiB. Lower it to make tests begin them anew.
    pub journal_bytes_max: Option<usize>,
}

/// A durable Raft log. Clones are handles on the same log; the last one to go closes it.
pub struct LogStore<C: RaftTypeConfig> {
    inner: Arc<Inner<C>>,
}

struct Inner<C: RaftTypeConfig> {
    shared: Arc<Shared<C>>,
    lane: Lane<C>,
}

/// How a change gets to the writer. Its lock is taken before that of `Shared::memory`.
enum Lane<C: RaftTypeConfig> {
    Thread {
        queue: Mutex<Option<mpsc::Sender<Operation<C>>>>,
        next_seq: Mutex<u64>,
        thread: Mutex<Option<JoinHandle<()>>>,
    },
    Inline(Mutex<(u64, Box<Writer<C>>)>),
}

/// What the handles, their readers and the writer have in common.
pub(crate) struct Shared<C: RaftTypeConfig> {
    dir: PathBuf,
    memory: RwLock<Memory<C>>,
    /// `None` once closed. Held shared during each read and each write, so that closing waits for
    /// them.
    disk: RwLock<Option<Disk>>,
    failure: OnceLock<LogError>,
    counters: Counters,
    /// The log may be an older copy.
    doubted: Arc<AtomicBool>,
}

impl<C: RaftTypeConfig> LogStore<C> {
    /// Open the log in `dir`, or create an empty one. Blocks while it reads and checks the whole
    /// log.
    ///
    /// # Errors
    /// The log is in use, cannot be read, or is not what was acknowledged: see [`OpenError`].
    pub fn open(dir: impl AsRef<Path>, options: LogOptions) -> Result<Self, OpenError> {
        let dir = dir.as_ref();
        let journal_bytes =
            options.journal_bytes_max.unwrap_or(usize::MAX).min(journal::FILE_BYTES);
        let found = recover::open::<C>(dir, journal_bytes)?;
        let mut memory = Memory::new(
            found.identity,
            found.vote,
            found.committed,
            found.purged,
            found.last_log_id,
            found.start_index,
        );
        memory.limit_recent_bytes(options.recent_bytes_max.unwrap_or(usize::MAX));
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            memory: RwLock::new(memory),
            disk: RwLock::new(Some(found.disk)),
            failure: OnceLock::new(),
            counters: Counters::default(),
            doubted: found.witness.doubted(),
        });
        let writer = Writer::new(shared.clone(), options.io, found.witness, found.journal);
        let lane = match options.io {
            Io::Inline => Lane::Inline(Mutex::new((found.next_seq, Box::new(writer)))),
            Io::Thread => {
                let (queue, waiting) = mpsc::channel(QUEUE_OPERATIONS_MAX);
                let thread = thread::Builder::new()
                    .name("quorate-log".to_owned())
                    .spawn(move || writer.run(waiting))
                    .map_err(|source| OpenError::Io {
                        operation: "start the writer thread for",
                        path: dir.to_owned(),
                        source,
                    })?;
                Lane::Thread {
                    queue: Mutex::new(Some(queue)),
                    next_seq: Mutex::new(found.next_seq),
                    thread: Mutex::new(Some(thread)),
                }
            }
        };
        Ok(Self { inner: Arc::new(Inner { shared, lane }) })
    }

    /// Whose log this is, if it was stamped.
    pub fn identity(&self) -> Option<Identity> {
        self.shared().memory().identity
    }

    /// Claim the log for `identity`; durable when this returns. Claiming it again for the same one
    /// does nothing; a node that did not know its cluster's id may claim it for that cluster.
    ///
    /// # Errors
    /// It belongs to another, or cannot be written.
    pub async fn stamp(&self, identity: Identity) -> Result<(), StampError> {
        if let Some(owner) = self.identity() {
            if owner == identity {
                return Ok(());
            }
            if !owner.may_become(&identity) {
                let path = self.shared().dir.clone();
                return Err(StampError::Foreign { path, owner, claimant: identity });
            }
        }
        let written = self.put(MetaKey::Identity, &identity, |memory| {
            memory.identity = Some(identity);
        });
        written.await.map_err(|source| StampError::Write { claimant: identity, source })
    }

    /// Whether this log may be older than what was acknowledged: it lies in a copy of its
    /// directory, or was said to be ([`LogStore::set_doubted`]). Only others can know.
    pub fn is_doubted(&self) -> bool {
        self.shared().doubted.load(Ordering::Acquire)
    }

    /// Doubt the log, or put an end to that; the next opening finds it so.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn set_doubted(&self, doubted: bool) -> Result<(), LogError> {
        self.shared().doubted.store(doubted, Ordering::Release);
        // Any write has the witness remember it.
        let Some(identity) = self.identity() else { return Ok(()) };
        self.put(MetaKey::Identity, &identity, |_| {}).await
    }

    /// Give back what the log's file takes beyond what it holds, if that is much, can be done
    /// within a moment and with no more than `room_bytes` of the disk meanwhile: best when little
    /// is written. It is done when what was purged is removed, later than this returns.
    ///
    /// # Errors
    /// Nothing can be written any more.
    pub async fn shrink(&self, room_bytes: u64) -> Result<(), LogError> {
        self.shrink_within(Some(room_bytes)).await
    }

    /// Without a bound, it is done even if that gives nothing back.
    pub(crate) async fn shrink_within(&self, room_bytes: Option<u64>) -> Result<(), LogError> {
        self.submit(|_, _| {
            let change = Change::Shrink { room_bytes };
            Ok(Operation { change, seq: None, report: Report::Nobody })
        })
        .await
    }

    /// What was written since the log was opened.
    pub fn stats(&self) -> Stats {
        self.shared().counters.read()
    }

    /// What the log's files take on the disk, as the system says now; 0: it does not. Blocks.
    pub fn file_bytes(&self) -> u64 {
        files_in(&self.shared().dir)
    }

    /// Write what is queued, stop the writer and release the directory, which can then be opened
    /// again. Blocks for that long. Further operations on any handle fail with
    /// [`LogError::Closed`]; closing again does nothing.
    ///
    /// # Errors
    /// The failure that ended all writing, if there was one: some of what was queued is then lost.
    pub fn close(&self) -> Result<(), LogError> {
        self.inner.close()
    }

    pub(crate) fn shared(&self) -> &Shared<C> {
        &self.inner.shared
    }

    /// Write a single value durably; `remember` runs when its place in the order is fixed.
    async fn put<T: serde::Serialize + Sync>(
        &self,
        key: MetaKey,
        content: &T,
        remember: impl FnOnce(&mut Memory<C>) + Send,
    ) -> Result<(), LogError> {
        let (done, durable) = oneshot::channel();
        self.submit(|memory, next_seq| {
            let seq = *next_seq;
            let value = encode_meta(key, seq, content)?;
            *next_seq += 1;
            remember(memory);
            let report = Report::Caller(done);
            Ok(Operation { change: Change::Put { key, value }, seq: Some(seq), report })
        })
        .await?;
        durable.await.unwrap_or_else(|_| Err(self.shared().closed()))
    }

    /// The sequence number of the last change whose place in the order is fixed.
    fn last_seq(&self) -> u64 {
        let next_seq = match &self.inner.lane {
            Lane::Thread { next_seq, .. } => *lock(next_seq),
            Lane::Inline(state) => lock(state).0,
        };
        next_seq - 1
    }

    /// Fix the place of a change in the order: `build` applies it to memory and turns it into an
    /// operation.
    async fn submit(
        &self,
        build: impl FnOnce(&mut Memory<C>, &mut u64) -> Result<Operation<C>, LogError> + Send,
    ) -> Result<(), LogError> {
        let shared = self.shared();
        if let Some(failure) = shared.failure() {
            return Err(failure);
        }
        match &self.inner.lane {
            Lane::Thread { queue, next_seq, .. } => {
                let queue = lock(queue).clone().ok_or_else(|| shared.closed())?;
                let place = queue.reserve().await.map_err(|_| shared.closed())?;
                let mut next_seq = lock(next_seq);
                let operation = build(&mut shared.memory_mut(), &mut next_seq)?;
                place.send(operation);
            }
            Lane::Inline(state) => {
                let (next_seq, writer) = &mut *lock(state);
                shared.with_disk(|_| Ok(()))?;
                let operation = build(&mut shared.memory_mut(), next_seq)?;
                writer.write_group(vec![operation]);
                writer.purge_all();
                writer.shrink_if_asked();
            }
        }
        Ok(())
    }
}

impl<C: RaftTypeConfig> Inner<C> {
    fn close(&self) -> Result<(), LogError> {
        match &self.lane {
            Lane::Thread { queue, thread, .. } => {
                drop(lock(queue).take());
                if let Some(thread) = lock(thread).take()
                    && thread.join().is_err()
                {
                    self.shared.fail(LogError::Panicked {
                        operation: "write to",
                        path: self.shared.dir.clone(),
                        message: "the writer thread ended".to_owned(),
                    });
                }
            }
            Lane::Inline(state) => {
                let (_, writer) = &mut *lock(state);
                if self.shared.with_disk(|_| Ok(())).is_ok() {
                    writer.finish();
                }
            }
        }
        let disk = self.shared.disk.write().unwrap_or_else(PoisonError::into_inner).take();
        drop(disk);
        self.shared.failure().map_or(Ok(()), Err)
    }
}

impl<C: RaftTypeConfig> Drop for Inner<C> {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(%error, "the log was dropped after a failure");
        }
    }
}

impl<C: RaftTypeConfig> Clone for LogStore<C> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<C: RaftTypeConfig> fmt::Debug for LogStore<C> {
    /// Not the contents: sled's own output is the whole database.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogStore").field("dir", &self.shared().dir).finish_non_exhaustive()
    }
}

impl<C: RaftTypeConfig> Shared<C> {
    // A lock is only poisoned by a panic in code of ours that holds it, and none of that leaves the
    // data half changed.
    pub(crate) fn memory(&self) -> RwLockReadGuard<'_, Memory<C>> {
        self.memory.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn memory_mut(&self) -> RwLockWriteGuard<'_, Memory<C>> {
        self.memory.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Use the disk; closing waits until `work` is done.
    pub(crate) fn with_disk<T>(
        &self,
        work: impl FnOnce(&Disk) -> Result<T, LogError>,
    ) -> Result<T, LogError> {
        let disk = self.disk.read().unwrap_or_else(PoisonError::into_inner);
        disk.as_ref().map_or_else(|| Err(self.closed()), work)
    }

    /// Put another disk in the place of the open one, which is returned. Waits for those that read.
    pub(crate) fn replace_disk(&self, disk: Disk) -> Option<Disk> {
        self.disk.write().unwrap_or_else(PoisonError::into_inner).replace(disk)
    }

    /// The first failure of a write, as an error for those that come later.
    pub(crate) fn failure(&self) -> Option<LogError> {
        let source = Box::new(self.failure.get()?.clone());
        Some(LogError::Failed { path: self.dir.clone(), source })
    }

    pub(crate) fn fail(&self, error: LogError) {
        // Only the first one is of interest.
        let _ = self.failure.set(error);
    }

    fn closed(&self) -> LogError {
        LogError::Closed { path: self.dir.clone() }
    }
}

/// The sizes of the files below a directory. What goes meanwhile counts or not.
fn files_in(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let bytes = entries.filter_map(|entry| {
        let metadata = entry.metadata().ok()?;
        Some(if metadata.is_dir() { files_in(&entry.path()) } else { metadata.len() })
    });
    bytes.sum()
}

fn encode_meta<T: serde::Serialize>(
    key: MetaKey,
    seq: u64,
    content: &T,
) -> Result<Vec<u8>, LogError> {
    meta::encode(key, seq, content).map_err(|source| LogError::Encode { what: key.name(), source })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stored entry that cannot be decoded, as the error of reading it.
fn undecodable(disk: &Disk, index: u64, source: RecordError) -> LogError {
    LogError::Batch { path: disk.db_path().to_owned(), first_index: index, source }
}
