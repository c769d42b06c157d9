//! How entries lie in sled: one record per appended batch. Bytes in, bytes out; it must not know
//! sled, nor what an entry is.
//!
//! Key: the index of the record's first entry, 8 bytes big endian. Value, all numbers little
//! endian:
//!
//! ```text
//! offset size
//!      0    1  format version (1)
//!      1    1  kind: 0 = whole entries, 1 = chunk of a single large entry
//!      2    4  crc32 of everything behind this field
//!      6    8  index of the first entry (must equal the key)
//!     14    8  sequence number of the write that produced the record (see `witness`)
//!     22    4  kind 0: number of entries; kind 1: number of this chunk, from 0
//!     26    4  kind 0: 0;                 kind 1: number of chunks of this entry
//!     30    -  kind 0: per entry its length (4 bytes) and its bytes; kind 1: the chunk's bytes
//! ```
//!
//! No value exceeds [`VALUE_BYTES_MAX`]. A larger batch becomes several records; an entry larger
//! than a record becomes chunks, whose keys are the index followed by the chunk's number (4 bytes
//! big endian; absent for chunk 0), so that they sort between their index and the next.

use serde::de::DeserializeOwned;

use crate::disk::numbers::{u32_at, u64_at};
use crate::error::RecordError;

/// The newest version of the record format that this code reads, and the one it writes.
const RECORD_VERSION: u8 = 1;

/// Upper bound of one sled value. sled rewrites whole tree leaves, and one that exceeds a quarter
/// of a segment goes to a "blob" file of its own, which neither sled nor an fdatasync of the `db`
/// file makes durable. A leaf holds at most 17 values (it splits above 16) and takes in a neighbour
/// of at most 3: 20 of these stay below a quarter of `disk::SEGMENT_BYTES`.
const VALUE_BYTES_MAX: usize = 24 * 1024;

const HEADER_BYTES: usize = 30;
const CRC_START: usize = 6;
const LENGTH_PREFIX_BYTES: usize = 4;
const BODY_BYTES_MAX: usize = VALUE_BYTES_MAX - HEADER_BYTES;

const KIND_ENTRIES: u8 = 0;
const KIND_CHUNK: u8 = 1;

/// Reads the content of a sound value, all of it: postcard itself passes over bytes that are left
/// over.
pub(crate) fn content<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RecordError> {
    match postcard::take_from_bytes(bytes) {
        Ok((content, [])) => Ok(content),
        Ok(_) | Err(postcard::Error::SerdeDeCustom) => Err(RecordError::Unknown),
        Err(error) => Err(RecordError::Content(error)),
    }
}

/// One key and value for sled.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
}

/// The header of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) first_index: u64,
    pub(crate) seq: u64,
    kind: u8,
    number: u32,
    total: u32,
}

/// What a record holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content<'a> {
    /// Consecutive entries, the first at the header's index.
    Entries(Vec<&'a [u8]>),
    /// Part `number` of `total` of the entry at the header's index.
    Chunk { number: u32, total: u32, bytes: &'a [u8] },
}

impl Header {
    /// The index of the last entry that the record has a part of.
    pub(crate) fn last_index(&self) -> u64 {
        match self.kind {
            KIND_CHUNK => self.first_index,
            _ => self.first_index + u64::from(self.number.max(1)) - 1,
        }
    }
}

/// The key of the record whose first entry has `index`.
pub(super) fn key_of(index: u64) -> [u8; 8] {
    index.to_be_bytes()
}

/// The index that a key begins with, or `None` for a key that is not ours.
pub(crate) fn index_of(key: &[u8]) -> Option<u64> {
    match key.len() {
        8 | 12 => key.first_chunk::<8>().map(|bytes| u64::from_be_bytes(*bytes)),
        _ => None,
    }
}

/// The records for consecutive `entries` (encoded), the first at `first_index`, in the order they
/// must be written. The first record gets sequence number `first_seq`, each further one the next.
pub(crate) fn encode(first_index: u64, first_seq: u64, entries: &[Vec<u8>]) -> Vec<Record> {
    let mut records: Vec<Record> = Vec::new();
    let seq_after = |records: &[Record]| first_seq + records.len() as u64;
    let bytes: usize = entries.iter().map(|entry| LENGTH_PREFIX_BYTES + entry.len()).sum();
    let mut body: Vec<u8> = Vec::with_capacity(bytes.min(BODY_BYTES_MAX));
    let mut body_first = first_index;
    let mut body_count = 0u32;
    for (index, entry) in (first_index..).zip(entries) {
        let needed_bytes = LENGTH_PREFIX_BYTES + entry.len();
        if body_count > 0 && body.len() + needed_bytes > BODY_BYTES_MAX {
            records.push(whole(body_first, seq_after(&records), body_count, &body));
            body.clear();
            body_count = 0;
        }
        if needed_bytes > BODY_BYTES_MAX {
            records.extend(chunks(index, seq_after(&records), entry));
            continue;
        }
        if body_count == 0 {
            body_first = index;
        }
        // Fits: the entry is shorter than BODY_BYTES_MAX.
        body.extend_from_slice(&(entry.len() as u32).to_le_bytes());
        body.extend_from_slice(entry);
        body_count += 1;
    }
    if body_count > 0 {
        records.push(whole(body_first, seq_after(&records), body_count, &body));
    }
    records
}

/// Check a record and take it apart.
pub(crate) fn decode<'a>(
    key: &[u8],
    value: &'a [u8],
) -> Result<(Header, Content<'a>), RecordError> {
    let header = decode_header(value)?;
    let found = u32_at(value, 2);
    let computed = crc32fast::hash(&value[CRC_START..]);
    if found != computed {
        return Err(RecordError::Checksum { found, computed });
    }
    let number = if header.kind == KIND_CHUNK { header.number } else { 0 };
    if key != chunk_key(header.first_index, number) {
        return Err(RecordError::Misplaced);
    }
    let body = &value[HEADER_BYTES..];
    let content = match header.kind {
        KIND_ENTRIES => Content::Entries(split_entries(body, header.number)?),
        KIND_CHUNK => Content::Chunk { number: header.number, total: header.total, bytes: body },
        _ => return Err(RecordError::Malformed),
    };
    Ok((header, content))
}

/// Read a record's header without checking its body.
pub(super) fn decode_header(value: &[u8]) -> Result<Header, RecordError> {
    let version = value.first().copied().unwrap_or(0);
    if version > RECORD_VERSION {
        return Err(RecordError::NewerFormat {
            found: u32::from(version),
            supported: u32::from(RECORD_VERSION),
        });
    }
    if version == 0 {
        return Err(RecordError::Malformed);
    }
    if value.len() < HEADER_BYTES {
        return Err(RecordError::TooShort {
            found_bytes: value.len(),
            expected_bytes: HEADER_BYTES,
        });
    }
    Ok(Header {
        kind: value[1],
        first_index: u64_at(value, 6),
        seq: u64_at(value, 14),
        number: u32_at(value, 22),
        total: u32_at(value, 26),
    })
}

fn whole(first_index: u64, seq: u64, count: u32, body: &[u8]) -> Record {
    let header = Header { kind: KIND_ENTRIES, first_index, seq, number: count, total: 0 };
    Record { key: key_of(first_index).to_vec(), value: seal(header, body) }
}

fn chunks(index: u64, first_seq: u64, entry: &[u8]) -> impl Iterator<Item = Record> {
    let total = entry.len().div_ceil(BODY_BYTES_MAX) as u32;
    (0..total).zip(entry.chunks(BODY_BYTES_MAX)).map(move |(number, bytes)| {
        let seq = first_seq + u64::from(number);
        let header = Header { kind: KIND_CHUNK, first_index: index, seq, number, total };
        Record { key: chunk_key(index, number), value: seal(header, bytes) }
    })
}

fn chunk_key(index: u64, number: u32) -> Vec<u8> {
    let mut key = key_of(index).to_vec();
    if number > 0 {
        key.extend_from_slice(&number.to_be_bytes());
    }
    key
}

fn seal(header: Header, body: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(HEADER_BYTES + body.len());
    value.extend_from_slice(&[RECORD_VERSION, header.kind, 0, 0, 0, 0]);
    value.extend_from_slice(&header.first_index.to_le_bytes());
    value.extend_from_slice(&header.seq.to_le_bytes());
    value.extend_from_slice(&header.number.to_le_bytes());
    value.extend_from_slice(&header.total.to_le_bytes());
    value.extend_from_slice(body);
    let crc = crc32fast::hash(&value[CRC_START..]);
    value[2..CRC_START].copy_from_slice(&crc.to_le_bytes());
    value
}

fn split_entries(body: &[u8], count: u32) -> Result<Vec<&[u8]>, RecordError> {
    let mut entries = Vec::new();
    let mut rest = body;
    for _ in 0..count {
        let (length, tail) =
            rest.split_first_chunk::<LENGTH_PREFIX_BYTES>().ok_or(RecordError::Malformed)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (entry, tail) = tail.split_at_checked(length).ok_or(RecordError::Malformed)?;
        entries.push(entry);
        rest = tail;
    }
    if entries.is_empty() || !rest.is_empty() {
        return Err(RecordError::Malformed);
    }
    Ok(entries)
}

#[cfg(test)]
mod tests;
