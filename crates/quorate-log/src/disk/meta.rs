//! The single values beside the entries: format version, identity, vote and positions in the log.
//! Each is sealed like a record, so that damage is noticed; what they mean is left to the callers.
//!
//! Value, little endian: format version (1 byte), crc32 of the key and of all that follows (4),
//! sequence number of the write (8), the content in postcard.

use serde::Serialize;

use crate::error::RecordError;

/// The version of the whole directory's format: the only one that this code reads, and the one it
/// writes.
pub(crate) const DIRECTORY_FORMAT: u32 = 1;

const META_VERSION: u8 = 1;
const HEADER_BYTES: usize = 13;
const CRC_START: usize = 5;

/// Which value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MetaKey {
    /// `u32`: the directory's format.
    Format,
    /// [`crate::Identity`].
    Identity,
    /// The vote.
    Vote,
    /// Log id of the last entry known to be committed.
    Committed,
    /// Log id of the last purged entry.
    Purged,
    /// `u64`: entries from this index on that were written before this mark are void.
    Truncated,
}

impl MetaKey {
    const ALL: [Self; 6] =
        [Self::Format, Self::Identity, Self::Vote, Self::Committed, Self::Purged, Self::Truncated];

    pub(crate) fn of_name(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|key| key.name().as_bytes() == name)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Format => "format",
            Self::Identity => "identity",
            Self::Vote => "vote",
            Self::Committed => "committed",
            Self::Purged => "purged",
            Self::Truncated => "truncated",
        }
    }
}

pub(crate) fn encode<T: Serialize>(
    key: MetaKey,
    seq: u64,
    content: &T,
) -> Result<Vec<u8>, postcard::Error> {
    let mut value = vec![META_VERSION, 0, 0, 0, 0];
    value.extend_from_slice(&seq.to_le_bytes());
    let mut value = postcard::to_extend(content, value)?;
    let crc = checksum(key, &value);
    value[1..CRC_START].copy_from_slice(&crc.to_le_bytes());
    Ok(value)
}

/// The format, as a frame of the journal has it beside its values: every write up to `seq` was
/// durable when that frame was written. To a release that does not know this, it says what it
/// knows.
pub(crate) fn durable_mark(seq: u64) -> Result<Vec<u8>, postcard::Error> {
    encode(MetaKey::Format, seq, &DIRECTORY_FORMAT)
}

/// Check a value; its sequence number and its encoded content.
pub(crate) fn check(key: MetaKey, value: &[u8]) -> Result<(u64, &[u8]), RecordError> {
    let version = value.first().copied().unwrap_or(0);
    if version > META_VERSION {
        return Err(RecordError::NewerFormat {
            found: u32::from(version),
            supported: u32::from(META_VERSION),
        });
    }
    if version == 0 {
        return Err(RecordError::Malformed);
    }
    let too_short =
        RecordError::TooShort { found_bytes: value.len(), expected_bytes: HEADER_BYTES };
    let (header, content) = value.split_first_chunk::<HEADER_BYTES>().ok_or(too_short)?;
    let [_, c0, c1, c2, c3, seq @ ..] = *header;
    let found = u32::from_le_bytes([c0, c1, c2, c3]);
    let computed = checksum(key, value);
    if found != computed {
        return Err(RecordError::Checksum { found, computed });
    }
    Ok((u64::from_le_bytes(seq), content))
}

fn checksum(key: MetaKey, value: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key.name().as_bytes());
    hasher.update(&value[CRC_START..]);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

    use super::*;

    #[test]
    fn any_flipped_bit_or_swapped_key_is_noticed() {
        let value = encode(MetaKey::Vote, 7, &(3u64, true)).unwrap();
        assert_eq!(check(MetaKey::Vote, &value).unwrap().0, 7);
        assert!(check(MetaKey::Committed, &value).is_err());
        for at in 0..value.len() {
            let mut damaged = value.clone();
            damaged[at] ^= 0x10;
            assert!(check(MetaKey::Vote, &damaged).is_err(), "byte {at}");
        }
        for length in 0..value.len() {
            assert!(check(MetaKey::Vote, &value[..length]).is_err());
        }
    }
}
