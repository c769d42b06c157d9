//! Opening a log: take the lock, check every value that was ever acknowledged, finish what a crash
//! interrupted, give sled what only the journal has, and refuse everything else. It never repairs
//! what holds anything: a node with a damaged log must not take part under its old id.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use openraft::RaftTypeConfig;
use openraft::entry::RaftEntry;
use openraft::type_config::alias::{EntryOf, LogIdOf, VoteOf};
use serde::de::DeserializeOwned;

use crate::Identity;
use crate::disk::codec::{self, Content};
use crate::disk::journal::{self, FRAME_VERSION, Journal, NewerFrame};
use crate::disk::meta::{self, DIRECTORY_FORMAT, MetaKey};
use crate::disk::shrink;
use crate::disk::sled::{Disk, Trees, check_threads};
use crate::disk::witness::{Remembered, Witness};
use crate::error::RecordError;
use crate::error::{LogError, OpenError, panic_message};
#[cfg(test)]
use crate::observe;
use crate::opening::dirs::{make_dir, sync_parents};
use crate::opening::redundant;
use crate::opening::replay::{Reached, durable_before, replay};
use crate::panics::catching;

/// How long to wait for the lock: sled's own threads release it a moment after a close, a dying
/// process after its exit; on a busy machine some seconds after it.
const LOCK_WAIT: Duration = Duration::from_secs(5);
const LOCK_RETRY: Duration = Duration::from_millis(20);

const WITNESS_FILE: &str = "acknowledged";

/// A log that passed every check, and what was found in it.
pub(crate) struct Recovered<C: RaftTypeConfig> {
    pub(crate) disk: Disk,
    pub(crate) journal: Journal,
    pub(crate) witness: Witness,
    pub(crate) identity: Option<Identity>,
    pub(crate) vote: Option<VoteOf<C>>,
    pub(crate) committed: Option<LogIdOf<C>>,
    pub(crate) purged: Option<LogIdOf<C>>,
    /// The last entry's, if there is one.
    pub(crate) last_log_id: Option<LogIdOf<C>>,
    /// Index of the first entry of a log of which nothing was purged.
    pub(crate) start_index: u64,
    pub(crate) next_seq: u64,
}

pub(crate) fn open<C: RaftTypeConfig>(
    dir: &Path,
    journal_bytes: usize,
) -> Result<Recovered<C>, OpenError> {
    let in_dir =
        |operation| move |source| OpenError::Io { operation, path: dir.to_owned(), source };
    make_dir(dir).map_err(in_dir("create directory"))?;
    // sled panics on some kinds of damage. Nothing outlives the closure in that case, so nothing is
    // left half changed.
    check_threads().map_err(in_dir("start threads for the log in"))?;
    catching(|| {
        let trees = open_sled(dir)?;
        let disk = Disk::new(trees, dir).map_err(in_dir("open sled's file in"))?;
        shrink::remove_leftover(dir);
        let journal = Journal::open(dir, journal_bytes).map_err(in_dir("open the journal in"))?;
        sync_names(dir).map_err(in_dir("sync"))?;
        #[cfg(test)]
        {
            observe::tell(observe::Event::Synced(disk.db_path()));
            observe::tell(observe::Event::SyncedNames(dir));
        }
        verify(disk, journal)
    })
    .unwrap_or_else(|payload| {
        let (path, message) = (blamed(dir), panic_message(payload.as_ref()));
        Err(match NO_MEMORY.iter().any(|words| message.contains(words)) {
            true => OpenError::NoMemory { path, message },
            false => OpenError::Panicked { path, message },
        })
    })
}

/// What sled and its libraries say when they get no memory.
const NO_MEMORY: [&str; 2] = ["converting zero into `Owned`", "failed to allocate"];

pub(crate) fn open_sled(dir: &Path) -> Result<Trees, OpenError> {
    let deadline = Instant::now() + LOCK_WAIT;
    redundant::remove(redundant::damaged_settings(dir));
    loop {
        let before = file_number(dir);
        let error = match Disk::open_sled(dir) {
            // What another process has just put another file in the place of is free, and not the
            // log any more.
            Ok(_) if before.is_some() && before != file_number(dir) => {
                OpenError::Locked { path: dir.to_owned() }
            }
            Ok(trees) => return Ok(trees),
            Err(source) => open_error("open the log", dir, source),
        };
        match error {
            OpenError::Locked { .. } if Instant::now() < deadline => thread::sleep(LOCK_RETRY),
            // Only now: who has opened the log writes such files.
            OpenError::Damaged { offset_bytes: None, .. }
                if redundant::remove(redundant::damaged_page_tables(dir)) => {}
            error => return Err(error),
        }
    }
}

fn file_number(dir: &Path) -> Option<u64> {
    fs::metadata(Disk::db_path_in(dir)).ok().map(|file| file.ino())
}

/// The names of sled's files and of our directory must survive a power cut like their contents.
fn sync_names(dir: &Path) -> io::Result<()> {
    for name in ["conf", "db"] {
        File::open(dir.join(name))?.sync_all()?;
    }
    File::open(dir)?.sync_all()?;
    sync_parents(dir)
}

fn verify<C: RaftTypeConfig>(disk: Disk, mut journal: Journal) -> Result<Recovered<C>, OpenError> {
    let witness_path = disk.dir().join(WITNESS_FILE);
    let witness_error = |operation| {
        let path = witness_path.clone();
        move |source| OpenError::Io { operation, path, source }
    };
    let (mut witness, remembered) = Witness::open(&witness_path).map_err(witness_error("open"))?;
    check_format(&disk)?;
    let mut found = Found::<C>::read(&disk)?;
    let journaled = read_journal(&disk, &mut journal)?;
    let durable_seq = durable_before(journaled.frames.iter().chain(&journaled.behind));
    if replay(&disk, &journaled.frames, found.reached)? {
        disk.sync().map_err(|error| change_error(&disk, error))?;
        found = Found::read(&disk)?;
    }
    let found_seq = found.reached.seq;
    drop(journaled);
    let acknowledged_seq = acknowledged(&disk, remembered, durable_seq, found_seq)?;
    // Before anything is written to the log. A slot that was torn is whole again: the next one to
    // be torn could be the other.
    witness.begin(acknowledged_seq).map_err(witness_error("write"))?;
    let named = File::open(disk.dir()).and_then(|dir| dir.sync_all());
    named.map_err(witness_error("sync the directory of"))?;
    if let Some(index) = found.scan.incomplete_index {
        // Its last chunks were never written, so it was never acknowledged.
        tracing::warn!(index, "dropping an entry whose write was interrupted");
        disk.remove_from(index, u64::MAX)
            // Before anything is written that takes its place, and goes to the journal first.
            .and_then(|()| disk.sync())
            .map_err(|error| change_error(&disk, error))?;
        found = Found::read(&disk)?;
    }
    let Found { reached, identity, vote, committed, purged, scan } = found;
    let last_log_id = match scan.next_index.checked_sub(1) {
        Some(index) if index >= scan.start_index => Some(read_log_id::<C>(&disk, index)?),
        _ => None,
    };
    let last_index = last_log_id.as_ref().or(purged.as_ref()).map(|log_id| log_id.index);
    if let Some(committed) = committed.as_ref().filter(|log_id| Some(log_id.index) > last_index) {
        return Err(OpenError::CommittedLost {
            path: disk.db_path().to_owned(),
            committed_index: committed.index,
            last_index,
        });
    }
    journal.begin_use(reached.seq).map_err(|source| OpenError::Io {
        operation: "begin the journal in",
        path: disk.dir().to_owned(),
        source,
    })?;
    Ok(Recovered {
        disk,
        journal,
        witness,
        identity,
        vote,
        committed,
        purged,
        last_log_id,
        start_index: scan.start_index,
        next_seq: reached.seq + 1,
    })
}

/// How far the log was acknowledged, by the witness. What that one or a frame of the journal knows
/// to be durable has to be there.
fn acknowledged(
    disk: &Disk,
    remembered: Remembered,
    durable_seq: u64,
    found_seq: u64,
) -> Result<u64, OpenError> {
    match remembered {
        Remembered::Nothing if found_seq.max(durable_seq) > 0 => {
            Err(OpenError::NoWitness { path: disk.dir().join(WITNESS_FILE), found_seq })
        }
        Remembered::Acknowledged(seq) if seq.max(durable_seq) > found_seq => {
            let path = disk.db_path().to_owned();
            let acknowledged_seq = seq.max(durable_seq);
            Err(OpenError::AcknowledgedLost { path, acknowledged_seq, found_seq })
        }
        Remembered::Acknowledged(seq) => Ok(seq),
        Remembered::Nothing | Remembered::Accepted => Ok(0),
    }
}

fn read_journal(disk: &Disk, journal: &mut Journal) -> Result<journal::Found, OpenError> {
    let found = journal.read().map_err(|source| OpenError::Io {
        operation: "read the journal in",
        path: disk.dir().to_owned(),
        source,
    })?;
    found.map_err(|NewerFrame { found }| OpenError::NewerFormat {
        path: disk.dir().to_owned(),
        found,
        supported: FRAME_VERSION,
    })
}

/// What sled has, once interrupted changes were finished.
struct Found<C: RaftTypeConfig> {
    reached: Reached,
    identity: Option<Identity>,
    vote: Option<VoteOf<C>>,
    committed: Option<LogIdOf<C>>,
    purged: Option<LogIdOf<C>>,
    scan: Scan,
}

impl<C: RaftTypeConfig> Found<C> {
    fn read(disk: &Disk) -> Result<Self, OpenError> {
        let mut metas = Metas { disk, max_seq: 0 };
        let identity = metas.get::<Identity>(MetaKey::Identity)?;
        let vote = metas.get::<VoteOf<C>>(MetaKey::Vote)?;
        let committed = metas.get_with_seq::<Option<LogIdOf<C>>>(MetaKey::Committed)?;
        let committed_seq = committed.as_ref().map_or(0, |(_, seq)| *seq);
        let purged = metas.get::<LogIdOf<C>>(MetaKey::Purged)?;
        let truncated = metas.get_with_seq::<u64>(MetaKey::Truncated)?;
        finish_interrupted(disk, truncated, purged.as_ref().map(|log_id| log_id.index))?;
        let scan = scan_entries(disk, purged.as_ref().map(|log_id| log_id.index + 1))?;
        let reached = Reached { seq: scan.max_seq.max(metas.max_seq), committed_seq };
        let committed = committed.and_then(|(log_id, _)| log_id);
        Ok(Self { reached, identity, vote, committed, purged, scan })
    }
}

/// Reads the single values and remembers the highest sequence number among them.
struct Metas<'a> {
    disk: &'a Disk,
    max_seq: u64,
}

impl Metas<'_> {
    fn get<T: DeserializeOwned>(&mut self, key: MetaKey) -> Result<Option<T>, OpenError> {
        Ok(self.get_with_seq(key)?.map(|(content, _)| content))
    }

    fn get_with_seq<T: DeserializeOwned>(
        &mut self,
        key: MetaKey,
    ) -> Result<Option<(T, u64)>, OpenError> {
        let value = self
            .disk
            .get_meta(key)
            .map_err(|source| open_error("read a single value", self.disk.dir(), source))?;
        let Some(value) = value else { return Ok(None) };
        let damaged = |source| match source {
            RecordError::NewerFormat { found, supported } => {
                OpenError::NewerFormat { path: self.disk.dir().to_owned(), found, supported }
            }
            RecordError::Unknown => {
                let what = format!("the stored {}", key.name());
                OpenError::Unknown { path: self.disk.dir().to_owned(), what }
            }
            source => {
                OpenError::Meta { path: self.disk.db_path().to_owned(), key: key.name(), source }
            }
        };
        let (seq, content) = meta::check(key, &value).map_err(damaged)?;
        let content = codec::content(content).map_err(damaged)?;
        self.max_seq = self.max_seq.max(seq);
        Ok(Some((content, seq)))
    }
}

fn check_format(disk: &Disk) -> Result<(), OpenError> {
    let found = Metas { disk, max_seq: 0 }.get::<u32>(MetaKey::Format)?;
    match found {
        Some(found) if found > DIRECTORY_FORMAT => Err(OpenError::NewerFormat {
            path: disk.dir().to_owned(),
            found,
            supported: DIRECTORY_FORMAT,
        }),
        Some(DIRECTORY_FORMAT) => Ok(()),
        Some(found) => Err(OpenError::OlderFormat {
            path: disk.dir().to_owned(),
            found,
            supported: DIRECTORY_FORMAT,
        }),
        None => {
            let value = meta::encode(MetaKey::Format, 0, &DIRECTORY_FORMAT)
                .expect("invariant: a u32 can be encoded");
            disk.put_meta(MetaKey::Format, &value)
                .and_then(|()| disk.sync())
                .map_err(|error| change_error(disk, error))
        }
    }
}

fn finish_interrupted(
    disk: &Disk,
    truncated: Option<(u64, u64)>,
    purged_index: Option<u64>,
) -> Result<(), OpenError> {
    if let Some((from_index, mark_seq)) = truncated {
        disk.remove_from(from_index, mark_seq).map_err(|error| change_error(disk, error))?;
    }
    if let Some(purged_index) = purged_index {
        disk.remove_upto(purged_index, usize::MAX).map_err(|error| change_error(disk, error))?;
    }
    Ok(())
}

struct Scan {
    start_index: u64,
    next_index: u64,
    max_seq: u64,
    /// A large entry at the very end of which only the first chunks are there.
    incomplete_index: Option<u64>,
}

/// Check all entries. They begin at `start_index`; if nothing was purged, where the first one is.
fn scan_entries(disk: &Disk, start_index: Option<u64>) -> Result<Scan, OpenError> {
    let start_index = match (start_index, disk.records().next()) {
        (Some(index), _) => index,
        (None, Some(Ok((key, _)))) => codec::index_of(&key).unwrap_or_default(),
        // An error shows again below.
        (None, _) => 0,
    };
    let mut scan =
        Scan { start_index, next_index: start_index, max_seq: 0, incomplete_index: None };
    let mut chunks_found = 0;
    for (position, item) in disk.records().enumerate() {
        let (key, value) = item.map_err(|source| open_error("read entries", disk.dir(), source))?;
        let (header, content) =
            disk.decode(&key, &value).map_err(|error| change_error(disk, error))?;
        let hole = OpenError::Hole {
            path: disk.db_path().to_owned(),
            expected_index: scan.next_index,
            found_index: header.first_index,
        };
        match content {
            Content::Entries(_) => {
                let follows = header.first_index == scan.next_index
                    || (position == 0 && header.first_index < scan.next_index);
                if !follows || chunks_found > 0 {
                    return Err(hole);
                }
                scan.next_index = header.last_index() + 1;
            }
            Content::Chunk { number, total, .. } => {
                if header.first_index != scan.next_index || number != chunks_found {
                    return Err(hole);
                }
                chunks_found = if number + 1 == total { 0 } else { number + 1 };
                if chunks_found == 0 {
                    scan.next_index += 1;
                }
            }
        }
        scan.max_seq = scan.max_seq.max(header.seq);
    }
    scan.incomplete_index = (chunks_found > 0).then_some(scan.next_index);
    Ok(scan)
}

fn read_log_id<C: RaftTypeConfig>(disk: &Disk, index: u64) -> Result<LogIdOf<C>, OpenError> {
    let mut log_id = Err(RecordError::Malformed);
    disk.read(index..index + 1, |_, bytes| {
        log_id = codec::content::<EntryOf<C>>(bytes).map(|entry| entry.log_id());
        Ok(true)
    })
    .map_err(|error| change_error(disk, error))?;
    match log_id {
        Ok(log_id) if log_id.index == index => Ok(log_id),
        Ok(_) => Err(RecordError::Misplaced),
        Err(RecordError::Unknown) => return Err(unknown_entry(disk, index)),
        Err(source) => Err(source),
    }
    .map_err(|source| OpenError::Batch {
        path: disk.db_path().to_owned(),
        first_index: index,
        source,
    })
}

fn unknown_entry(disk: &Disk, index: u64) -> OpenError {
    OpenError::Unknown { path: disk.dir().to_owned(), what: format!("entry {index}") }
}

/// An error from finishing interrupted work, as an error of opening.
pub(crate) fn change_error(disk: &Disk, error: LogError) -> OpenError {
    match error {
        LogError::Batch { source: RecordError::NewerFormat { found, supported }, .. } => {
            OpenError::NewerFormat { path: disk.dir().to_owned(), found, supported }
        }
        LogError::Batch { source: RecordError::Unknown, first_index, .. } => {
            unknown_entry(disk, first_index)
        }
        LogError::Batch { path, first_index, source } => {
            OpenError::Batch { path, first_index, source }
        }
        LogError::ForeignKey { path, key_bytes } => OpenError::ForeignKey { path, key_bytes },
        LogError::Missing { path, index } => {
            OpenError::Hole { path, expected_index: index, found_index: index + 1 }
        }
        LogError::Io { operation, path, source } => {
            let source = io::Error::new(source.kind(), source);
            OpenError::Io { operation, path, source }
        }
        error => OpenError::Io {
            operation: "recover the log in",
            path: disk.dir().to_owned(),
            source: io::Error::from(error),
        },
    }
}

fn open_error(operation: &'static str, dir: &Path, source: sled::Error) -> OpenError {
    match source {
        sled::Error::Corruption { at, .. } => OpenError::Damaged {
            path: blamed(dir),
            offset_bytes: at.map(|pointer| pointer.lid()),
            source,
        },
        // sled 0.34.7 (pinned) has no variant for it: config.rs, `try_lock`.
        sled::Error::Io(error) if error.to_string().starts_with("could not acquire lock") => {
            OpenError::Locked { path: dir.to_owned() }
        }
        // What sled's settings say is not what we always say, though their checksum fits.
        source @ sled::Error::Unsupported(_) => {
            OpenError::Damaged { path: dir.join("conf"), offset_bytes: None, source }
        }
        sled::Error::Io(source) => OpenError::Io { operation, path: Disk::db_path_in(dir), source },
        source => OpenError::Sled { operation, path: dir.to_owned(), source },
    }
}

/// Which of sled's files is damaged: one whose own checksum does not fit (sled does not say which
/// file it cannot read); else the one that has everything.
fn blamed(dir: &Path) -> PathBuf {
    let damaged = redundant::damaged_settings(dir).into_iter();
    let mut damaged = damaged.chain(redundant::damaged_page_tables(dir));
    damaged.next().unwrap_or_else(|| Disk::db_path_in(dir))
}
