//! A second, tiny file that remembers the last acknowledged write, so that a log which lost its end
//! is noticed.
//!
//! sled treats the first damaged byte of its log as the end of it: everything written later, votes
//! included, is silently dropped. A node that forgot a vote could vote twice. Every write therefore
//! carries a sequence number, and after each sync the last one is written here. At open the log
//! must reach at least that far.
//!
//! It also remembers which file it is itself, by its inode and the time of its creation (a file
//! system gives the inode of a file that was removed to the next one): in a directory that was
//! copied, the log is as old as the copy, and nothing in it shows that. Opening it reports that,
//! and the node says when it is settled.
//!
//! The file is synced when the log is opened, and when that begins to be doubted; not with each
//! write, which costs about a microsecond. After a power cut it may be old, or torn where it was
//! being written; then it proves less, but it is never ahead of what was made durable. If nothing
//! in it can be read, something else has happened to it, and the log may have lost its end
//! unnoticed.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::UNIX_EPOCH;

#[cfg(test)]
use crate::observe;

/// Two slots are written in turn, so that a torn write leaves the other one. Slot: sequence number,
/// [`place_of`] the file (or [`NOWHERE`]), then the crc32 of both.
const SLOT_BYTES: usize = 20;
const SLOTS: u64 = 2;
/// No file is there: the log is doubted.
const NOWHERE: u64 = 0;
/// An operator's word that the log is to be taken as it is.
const ACCEPT: &[u8] = b"accept";

/// What the file remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remembered {
    /// Every write up to this one was acknowledged.
    Acknowledged(u64),
    /// Nothing that can be read.
    Nothing,
    /// An operator has put it right.
    Accepted,
}

#[derive(Debug)]
pub(crate) struct Witness {
    path: PathBuf,
    file: File,
    turn: u64,
    place: u64,
    /// The log may be an older copy.
    doubted: Arc<AtomicBool>,
    /// Also a power cut leaves that it is doubted.
    doubt_is_durable: bool,
}

impl Witness {
    /// Open or create the file; also what it remembers.
    pub(crate) fn open(path: &Path) -> io::Result<(Self, Remembered)> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(path)?;
        let place = place_of(&file.metadata()?);
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let slots = || bytes.chunks_exact(SLOT_BYTES).map(read_slot);
        let newest = slots().flatten().max();
        let turn = slots().position(|slot| slot.is_some() && slot == newest).unwrap_or(0) as u64;
        let remembered = match newest {
            Some((seq, _)) => Remembered::Acknowledged(seq),
            None if bytes.trim_ascii() == ACCEPT => Remembered::Accepted,
            None => Remembered::Nothing,
        };
        let doubted = newest.is_some_and(|(_, written_to)| written_to != place);
        let doubted = Arc::new(doubted.into());
        let path = path.to_owned();
        Ok((Self { path, file, turn, place, doubted, doubt_is_durable: false }, remembered))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the log may be an older copy: kept with what is acknowledged from now on.
    pub(crate) fn doubted(&self) -> Arc<AtomicBool> {
        self.doubted.clone()
    }

    /// Whether the log is doubted, and a power cut could leave that it is not.
    pub(crate) fn begins_to_doubt(&self) -> bool {
        self.doubted.load(Ordering::Acquire) && !self.doubt_is_durable
    }

    /// Write both slots, and make them durable. What was newest is overwritten last.
    pub(crate) fn begin(&mut self, seq: u64) -> io::Result<()> {
        let doubted = self.doubted.load(Ordering::Acquire);
        #[cfg(test)]
        observe::begin(observe::Step::Witness)?;
        for _ in 0..SLOTS {
            self.write(seq, doubted)?;
        }
        self.file.set_len(SLOTS * SLOT_BYTES as u64)?;
        self.file.sync_all()?;
        #[cfg(test)]
        observe::tell(observe::Event::Synced(&self.path));
        self.doubt_is_durable = doubted;
        Ok(())
    }

    /// Remember that every write up to `seq` was made durable.
    pub(crate) fn acknowledge(&mut self, seq: u64) -> io::Result<()> {
        let doubted = self.doubted.load(Ordering::Acquire);
        self.doubt_is_durable &= doubted;
        self.write(seq, doubted)
    }

    fn write(&mut self, seq: u64, doubted: bool) -> io::Result<()> {
        let place = if doubted { NOWHERE } else { self.place };
        let mut slot = [0; SLOT_BYTES];
        slot[..8].copy_from_slice(&seq.to_le_bytes());
        slot[8..16].copy_from_slice(&place.to_le_bytes());
        let crc = crc32fast::hash(&slot[..16]);
        slot[16..].copy_from_slice(&crc.to_le_bytes());
        self.turn += 1;
        self.file.write_all_at(&slot, self.turn % SLOTS * SLOT_BYTES as u64)
    }
}

/// Which file this is. Where the file system keeps no time of creation, the inode alone.
fn place_of(file: &Metadata) -> u64 {
    let created = file.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let created = created.map_or(0, |since| since.as_nanos() as u64);
    (file.ino() ^ created).max(1)
}

/// The sequence number and the place.
fn read_slot(slot: &[u8]) -> Option<(u64, u64)> {
    let (content, crc) = slot.split_first_chunk::<16>()?;
    let (seq, place) = content.split_first_chunk::<8>()?;
    let is_sound = u32::from_le_bytes(*crc.first_chunk()?) == crc32fast::hash(content);
    let place = u64::from_le_bytes(*place.first_chunk()?);
    is_sound.then(|| (u64::from_le_bytes(*seq), place))
}
