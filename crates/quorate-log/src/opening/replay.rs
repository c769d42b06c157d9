//! Gives sled what only the journal has: what was written, and perhaps acknowledged, after sled's
//! last sync that survived.

use crate::disk::codec::{self};
use crate::disk::journal::{Frame, Put, Tree};
use crate::disk::meta::{self, MetaKey};
use crate::disk::sled::Disk;
use crate::error::RecordError;
use crate::error::{LogError, OpenError};
use crate::opening::recover::change_error;

/// How far sled got.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reached {
    /// It has every write up to this one and none after it: it recovers a prefix of what it was
    /// given.
    pub(crate) seq: u64,
    /// The committed position has no number of its own, but that of the write before it.
    pub(super) committed_seq: u64,
}

/// Put into sled what it does not have, in order. Returns whether there was anything; it is not
/// synced yet.
pub(super) fn replay(disk: &Disk, frames: &[Frame], reached: Reached) -> Result<bool, OpenError> {
    let damaged = |source| OpenError::Journal { path: disk.dir().to_owned(), source };
    let mut is_changed = false;
    let mut replayed_seq = reached.seq;
    for frame in frames {
        if frame.first_seq > replayed_seq + 1 {
            return Err(OpenError::AcknowledgedLost {
                path: disk.db_path().to_owned(),
                acknowledged_seq: frame.first_seq - 1,
                found_seq: replayed_seq,
            });
        }
        for put in frame.puts() {
            let put = put.ok_or(RecordError::Malformed).and_then(|put| write_of(&put));
            let write = put.map_err(damaged)?;
            if let Some(write) = write.filter(|write| write.is_new(reached)) {
                write.put_into(disk).map_err(|error| change_error(disk, error))?;
                is_changed = true;
            }
        }
        replayed_seq = replayed_seq.max(frame.last_seq);
    }
    Ok(is_changed)
}

/// The last write that was durable before one of these frames was written, as the frame says: so
/// that what is missing of those was damaged, and not torn. The witness may be older after a power
/// cut.
pub(super) fn durable_before<'a>(frames: impl Iterator<Item = &'a Frame>) -> u64 {
    let puts = frames.flat_map(Frame::puts).flatten();
    let marks = puts.filter(|put| put.tree == Tree::Meta);
    let marks = marks.filter(|put| put.key == MetaKey::Format.name().as_bytes());
    let seqs = marks.filter_map(|put| meta::check(MetaKey::Format, put.value).ok());
    seqs.map(|(seq, _)| seq).max().unwrap_or(0)
}

/// A value of the journal, checked.
enum Write<'a> {
    Record { seq: u64, key: &'a [u8], value: &'a [u8] },
    Meta { seq: u64, key: MetaKey, value: &'a [u8] },
    Truncate { seq: u64, from_index: u64, mark: &'a [u8] },
}

/// `None`: it says something of the writes before it, and is none.
fn write_of<'a>(put: &Put<'a>) -> Result<Option<Write<'a>>, RecordError> {
    let value = put.value;
    if put.tree == Tree::Entries {
        let (header, _) = codec::decode(put.key, value)?;
        return Ok(Some(Write::Record { seq: header.seq, key: put.key, value }));
    }
    let key = MetaKey::of_name(put.key).ok_or(RecordError::Malformed)?;
    let (seq, content) = meta::check(key, value)?;
    Ok(match key {
        MetaKey::Format => None,
        MetaKey::Truncated => {
            Some(Write::Truncate { seq, from_index: codec::content(content)?, mark: value })
        }
        _ => Some(Write::Meta { seq, key, value }),
    })
}

impl Write<'_> {
    fn is_new(&self, reached: Reached) -> bool {
        match self {
            Self::Meta { seq, key: MetaKey::Committed, .. } => *seq > reached.committed_seq,
            Self::Record { seq, .. } | Self::Meta { seq, .. } | Self::Truncate { seq, .. } => {
                *seq > reached.seq
            }
        }
    }

    fn put_into(&self, disk: &Disk) -> Result<(), LogError> {
        match *self {
            Self::Record { key, value, .. } => disk.put_record(key, value),
            Self::Meta { key, value, .. } => disk.put_meta(key, value),
            Self::Truncate { seq, from_index, mark } => {
                disk.put_meta(MetaKey::Truncated, mark)?;
                disk.remove_from(from_index, seq)
            }
        }
    }
}
