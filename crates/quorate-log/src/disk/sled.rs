//! sled: where records and single values lie, and how they are written, removed, synced and read.
//!
//! Knows indexes and bytes, not entries. Every change of several steps is written so that sled,
//! which recovers a prefix of the changes, never leaves a hole: appends go forward, a truncation or
//! a purge is one mark (the next open finishes what the mark says), purged records go from
//! the front, truncated ones from the end.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::disk::codec::{self, Content, Record};
use crate::disk::journal;
use crate::disk::meta::MetaKey;
use crate::disk::room::Room;
use crate::error::LogError;
use crate::error::RecordError;
#[cfg(test)]
use crate::observe;

/// sled's segment size. Four times the default (512 KiB), which makes the largest leaf that is
/// stored inside the `db` file four times larger too; see [`codec::VALUE_BYTES_MAX`]. Fixed: sled
/// cannot change it for an existing directory.
pub(crate) const SEGMENT_BYTES: usize = 2 * 1024 * 1024;

/// sled's page cache. Recent entries are in memory anyway; this serves followers that lag far
/// behind.
const SLED_CACHE_BYTES: u64 = 8 * 1024 * 1024;

/// What may be put into sled, and removed from it, between two syncs; see [`journal::TURN_BYTES`]
/// for the reason. Somewhat more than makes the journal turn, so that mostly the sync that is begun
/// then comes first.
const UNSYNCED_BYTES_MAX: usize = journal::TURN_BYTES + journal::TURN_BYTES / 4;

const ENTRIES_TREE: &str = "entries";
const META_TREE: &str = "meta";

/// What sled has opened: the database, its entries and its single values.
pub(crate) type Trees = (sled::Db, sled::Tree, sled::Tree);

/// An open sled database.
pub(crate) struct Disk {
    db: sled::Db,
    entries: sled::Tree,
    meta: sled::Tree,
    /// A second handle on sled's file: `sled::Db::flush` is `sync_file_range`, which leaves the
    /// data in the disk's cache.
    db_file: File,
    /// What was put in and removed since the last sync that is done began.
    unsynced_bytes: AtomicUsize,
    /// Held during a sync.
    syncing: Mutex<()>,
    room: Room,
    dir: PathBuf,
    db_path: PathBuf,
}

/// The threads that must be possible at once: sled starts seven, the node about as many after it.
const THREADS: usize = 16;

/// Whether there is room for threads. sled only logs that it could not start one, and without any
/// it waits for ever: the node would live on and answer nothing.
///
/// # Errors
/// There is none.
pub(crate) fn check_threads() -> io::Result<()> {
    let all_stand = AtomicBool::new(false);
    thread::scope(|scope| {
        let wait = || {
            while !all_stand.load(Ordering::Acquire) {
                thread::park_timeout(Duration::from_millis(1));
            }
        };
        let start = |_| thread::Builder::new().spawn_scoped(scope, wait).map(drop);
        let started = (0..THREADS).try_for_each(start);
        all_stand.store(true, Ordering::Release);
        started
    })
}

impl Disk {
    /// Open or create sled in `dir`. Nothing is checked beyond what sled checks.
    pub(crate) fn open_sled(dir: &Path) -> Result<Trees, sled::Error> {
        let db = sled::Config::new()
            .path(dir)
            .segment_size(SEGMENT_BYTES)
            .cache_capacity(SLED_CACHE_BYTES)
            // Our writer flushes; a second flusher would only contend for the disk.
            .flush_every_ms(None)
            .open()?;
        let entries = db.open_tree(ENTRIES_TREE)?;
        let meta = db.open_tree(META_TREE)?;
        Ok((db, entries, meta))
    }

    pub(crate) fn new((db, entries, meta): Trees, dir: &Path) -> io::Result<Self> {
        let db_path = Self::db_path_in(dir);
        let db_file = File::options().write(true).open(&db_path)?;
        let room = Room::default();
        room.keep(&db_file);
        let (unsynced_bytes, syncing) = (AtomicUsize::new(0), Mutex::new(()));
        let dir = dir.to_owned();
        Ok(Self { db, entries, meta, db_file, unsynced_bytes, syncing, room, dir, db_path })
    }

    pub(crate) fn db_path_in(dir: &Path) -> PathBuf {
        dir.join("db")
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn db_path(&self) -> &Path {
        &self.db_path
    }

    pub(crate) fn records(&self) -> sled::Iter {
        self.entries.iter()
    }

    pub(crate) fn append(&self, records: &[Record]) -> Result<(), LogError> {
        records.iter().try_for_each(|record| self.put_record(&record.key, &record.value))
    }

    pub(crate) fn put_record(&self, key: &[u8], value: &[u8]) -> Result<(), LogError> {
        self.entries
            .insert(key, value)
            .map_err(|source| self.failed("append entries to", source))?;
        self.count(value.len())
    }

    /// Sync when enough has come together.
    fn count(&self, bytes: usize) -> Result<(), LogError> {
        let before = self.unsynced_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > UNSYNCED_BYTES_MAX { self.sync() } else { Ok(()) }
    }

    pub(crate) fn put_meta(&self, key: MetaKey, value: &[u8]) -> Result<(), LogError> {
        self.meta
            .insert(key.name(), value)
            .map_err(|source| self.failed("write a position or vote to", source))?;
        Ok(())
    }

    pub(crate) fn get_meta(&self, key: MetaKey) -> Result<Option<sled::IVec>, sled::Error> {
        self.meta.get(key.name())
    }

    /// Make everything written so far durable.
    pub(crate) fn sync(&self) -> Result<(), LogError> {
        let _syncing = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = self.unsynced_bytes.load(Ordering::Relaxed);
        self.db.flush().map_err(|source| self.failed("flush", source))?;
        #[cfg(test)]
        observe::tell(observe::Event::Wrote(&self.db_path));
        self.db_file.sync_data().map_err(|source| LogError::Io {
            operation: "fdatasync",
            path: self.db_path.clone(),
            source: Arc::new(source),
        })?;
        #[cfg(test)]
        observe::tell(observe::Event::Synced(&self.db_path));
        self.unsynced_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.room.keep(&self.db_file);
        Ok(())
    }

    /// Remove every entry from `from_index` on that was written before `mark_seq`, last first.
    pub(crate) fn remove_from(&self, from_index: u64, mark_seq: u64) -> Result<(), LogError> {
        const OPERATION: &str = "truncate the log in";
        let from_key = codec::key_of(from_index);
        for item in self.entries.range(from_key..).rev() {
            let (key, value) = item.map_err(|source| self.failed(OPERATION, source))?;
            if self.header(&key, &value)?.seq >= mark_seq {
                continue;
            }
            self.entries.remove(&key).map_err(|source| self.failed(OPERATION, source))?;
            self.count(value.len())?;
        }
        let before = self.entries.range(..from_key).next_back();
        let Some(item) = before else { return Ok(()) };
        let (key, value) = item.map_err(|source| self.failed(OPERATION, source))?;
        let (header, content) = self.decode(&key, &value)?;
        let Content::Entries(entries) = content else { return Ok(()) };
        if header.seq >= mark_seq || header.last_index() < from_index {
            return Ok(());
        }
        let kept = &entries[..(from_index - header.first_index) as usize];
        let kept: Vec<Vec<u8>> = kept.iter().map(|entry| entry.to_vec()).collect();
        self.append(&codec::encode(header.first_index, header.seq, &kept))
    }

    /// Remove records of which every entry is at or below `last_index`, at most `records_max` of
    /// them. Returns whether that was all.
    pub(crate) fn remove_upto(
        &self,
        last_index: u64,
        records_max: usize,
    ) -> Result<bool, LogError> {
        const OPERATION: &str = "purge the log in";
        for (removed, item) in self.entries.iter().enumerate() {
            let (key, value) = item.map_err(|source| self.failed(OPERATION, source))?;
            if self.header(&key, &value)?.last_index() > last_index {
                return Ok(true);
            }
            if removed >= records_max {
                return Ok(false);
            }
            self.entries.remove(&key).map_err(|source| self.failed(OPERATION, source))?;
            self.count(value.len())?;
        }
        Ok(true)
    }

    /// Hand the encoded entries of `range`, in order, to `take`, until it returns false or the
    /// range ends. An entry that is not there is an error.
    pub(crate) fn read(
        &self,
        range: Range<u64>,
        mut take: impl FnMut(u64, &[u8]) -> Result<bool, LogError>,
    ) -> Result<(), LogError> {
        const OPERATION: &str = "read entries from";
        let mut expected_index = range.start;
        let missing = |index| LogError::Missing { path: self.db_path.clone(), index };
        let first = self.entries.range(..=codec::key_of(range.start)).next_back();
        let (first_key, _) = first
            .ok_or_else(|| missing(range.start))?
            .map_err(|source| self.failed(OPERATION, source))?;
        let mut large_entry = Vec::new();
        for item in self.entries.range(first_key..) {
            let (key, value) = item.map_err(|source| self.failed(OPERATION, source))?;
            let (header, content) = self.decode(&key, &value)?;
            if header.first_index > expected_index {
                return Err(missing(expected_index));
            }
            if header.last_index() < expected_index {
                continue;
            }
            match content {
                Content::Entries(entries) => {
                    let skipped = (expected_index - header.first_index) as usize;
                    for entry in &entries[skipped..] {
                        if expected_index >= range.end || !take(expected_index, entry)? {
                            return Ok(());
                        }
                        expected_index += 1;
                    }
                }
                Content::Chunk { number, total, bytes } => {
                    if number == 0 {
                        large_entry.clear();
                    }
                    large_entry.extend_from_slice(bytes);
                    if number + 1 < total {
                        continue;
                    }
                    if !take(expected_index, &large_entry)? {
                        return Ok(());
                    }
                    expected_index += 1;
                }
            }
            if expected_index >= range.end {
                return Ok(());
            }
        }
        Err(missing(expected_index))
    }

    /// Bytes of all records; counting ends where there are more than `enough_bytes`.
    pub(crate) fn live_bytes(&self, enough_bytes: u64) -> Result<u64, LogError> {
        let mut bytes = 0;
        for item in self.records() {
            let (_, value) = item.map_err(|source| self.failed("read entries from", source))?;
            bytes += value.len() as u64;
            if bytes > enough_bytes {
                break;
            }
        }
        Ok(bytes)
    }

    /// Put all that is here, checked, into a sled of its own in `dir`, durably.
    pub(crate) fn copy_into(&self, dir: &Path) -> Result<Self, LogError> {
        let failed = |source| self.failed("copy", source);
        let trees = Self::open_sled(dir).map_err(failed)?;
        let copy = Self::new(trees, dir).map_err(|source| failed(sled::Error::Io(source)))?;
        for item in self.records() {
            let (key, value) = item.map_err(failed)?;
            self.decode(&key, &value)?;
            copy.entries.insert(key, value).map_err(failed)?;
        }
        for item in self.meta.iter() {
            let (key, value) = item.map_err(failed)?;
            copy.meta.insert(key, value).map_err(failed)?;
        }
        copy.sync()?;
        Ok(copy)
    }

    /// Its file is in that directory now.
    pub(crate) fn moved_to(&mut self, dir: &Path) {
        (self.dir, self.db_path) = (dir.to_owned(), Self::db_path_in(dir));
    }

    /// Check a record and take it apart.
    pub(crate) fn decode<'a>(
        &self,
        key: &[u8],
        value: &'a [u8],
    ) -> Result<(codec::Header, Content<'a>), LogError> {
        let first_index = self.index_of(key)?;
        codec::decode(key, value).map_err(|source| self.damaged(first_index, source))
    }

    fn header(&self, key: &[u8], value: &[u8]) -> Result<codec::Header, LogError> {
        let first_index = self.index_of(key)?;
        codec::decode_header(value).map_err(|source| self.damaged(first_index, source))
    }

    fn index_of(&self, key: &[u8]) -> Result<u64, LogError> {
        codec::index_of(key).ok_or_else(|| LogError::ForeignKey {
            path: self.db_path.clone(),
            key_bytes: key.len(),
        })
    }

    fn damaged(&self, first_index: u64, source: RecordError) -> LogError {
        LogError::Batch { path: self.db_path.clone(), first_index, source }
    }

    fn failed(&self, operation: &'static str, source: sled::Error) -> LogError {
        LogError::Io {
            operation,
            path: self.db_path.clone(),
            source: Arc::new(io::Error::from(source)),
        }
    }
}
