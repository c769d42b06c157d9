//! A second, tiny file that remembers the last acknowledged write, so that a log which lost its end
//! is noticed.
//!
//! sled treats the first damaged byte of its log as the end of it: everything written later, votes
//! included, is silently dropped. A node that forgot a vote could vote twice. Every write therefore
//! carries a sequence number, and after each sync the last one is written here. At open the log
//! must reach at least that far.
//!
//! The file is not synced itself, so it costs about a microsecond. After a power cut it may be old
//! or unreadable; then it proves less, but it is never ahead of what was made durable.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Two slots are written in turn, so that a torn write leaves the other one. Slot: sequence number,
/// then its crc32.
const SLOT_BYTES: usize = 12;
const SLOTS: u64 = 2;

#[derive(Debug)]
pub(crate) struct Witness {
    file: File,
    turn: u64,
}

impl Witness {
    /// Open or create the file; also the highest sequence number it remembers, if any.
    pub(crate) fn open(path: &Path) -> io::Result<(Self, Option<u64>)> {
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let acknowledged_seq = bytes.chunks_exact(SLOT_BYTES).filter_map(read_slot).max();
        Ok((Self { file, turn: acknowledged_seq.map_or(0, |seq| seq + 1) }, acknowledged_seq))
    }

    /// Remember that every write up to `seq` was made durable.
    pub(crate) fn acknowledge(&mut self, seq: u64) -> io::Result<()> {
        let mut slot = [0; SLOT_BYTES];
        slot[..8].copy_from_slice(&seq.to_le_bytes());
        let crc = crc32fast::hash(&slot[..8]);
        slot[8..].copy_from_slice(&crc.to_le_bytes());
        self.turn += 1;
        self.file.write_all_at(&slot, self.turn % SLOTS * SLOT_BYTES as u64)
    }
}

fn read_slot(slot: &[u8]) -> Option<u64> {
    let (seq, rest) = slot.split_first_chunk::<8>()?;
    let crc = rest.first_chunk::<4>()?;
    (u32::from_le_bytes(*crc) == crc32fast::hash(seq)).then(|| u64::from_le_bytes(*seq))
}
