//! The file of a backup: what the backup is of, in front of a whole snapshot file, which has its
//! own version and checksums.
//!
//! All numbers little endian:
//!
//! ```text
//! head  8 mark "QBACKUP\n" | 4 format version (1) | 4 length of the record | record (postcard)
//!       | 8 xxh3 of everything before
//! then  a snapshot file, to the end
//! ```

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use quorate_state::{read_whole, record};
use xxhash_rust::xxh3::xxh3_64;

const MARK: &[u8; 8] = b"QBACKUP\n";
const VERSION: u32 = 1;
const BEFORE_RECORD: usize = 16;
const CHECK_BYTES: usize = 8;
/// A record is far shorter: two short texts and two numbers.
const RECORD_BYTES_MAX: usize = 64 * 1024;

/// What a backup is of, beyond what its snapshot says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    /// The cluster's name.
    pub(crate) cluster_name: String,
    /// The node that made it.
    pub(crate) node_id: u64,
    /// A moment by that node's clock, ms since 1970: what was acknowledged before it is in the
    /// backup. 0: nobody knows one.
    pub(crate) taken_ms: u64,
    /// The version of the software that made it.
    pub(crate) software: String,
}

record!(Head { cluster_name, node_id, taken_ms, software } {});

/// Why the head of a backup cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HeadError {
    #[error("it cannot be read")]
    Io(#[source] io::Error),
    #[error("it is no backup: it does not begin as one")]
    Mark,
    #[error("it has format version {found}, this release reads {VERSION}")]
    Version { found: u32 },
    #[error("it is damaged: the checksum of its head does not match")]
    Checksum,
    #[error("it holds what this release does not know: a newer one wrote it")]
    Unknown,
}

impl Head {
    /// Of a backup that this release makes.
    pub(crate) fn new(cluster_name: &str, node_id: u64, taken_ms: u64) -> Self {
        Self {
            cluster_name: cluster_name.to_owned(),
            node_id,
            taken_ms,
            software: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// The bytes before the snapshot.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let record =
            postcard::to_stdvec(self).expect("invariant: writing texts to memory does not fail");
        let mut bytes = MARK.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(record.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&record);
        let check = xxh3_64(&bytes);
        bytes.extend_from_slice(&check.to_le_bytes());
        bytes
    }

    /// Reads the head of a file; also where the snapshot begins.
    pub(crate) fn read(path: &Path) -> Result<(Self, u64), HeadError> {
        let mut bytes = Vec::new();
        let longest = (BEFORE_RECORD + RECORD_BYTES_MAX + CHECK_BYTES) as u64;
        let file = File::open(path).map_err(HeadError::Io)?;
        file.take(longest).read_to_end(&mut bytes).map_err(HeadError::Io)?;
        let number = |at: usize| {
            let bytes = bytes.get(at..)?.first_chunk()?;
            Some(u32::from_le_bytes(*bytes))
        };
        if !bytes.starts_with(MARK) {
            return Err(HeadError::Mark);
        }
        match number(MARK.len()) {
            Some(VERSION) => {}
            Some(found) => return Err(HeadError::Version { found }),
            None => return Err(HeadError::Checksum),
        }
        let length = number(MARK.len() + 4).ok_or(HeadError::Checksum)? as usize;
        let end = BEFORE_RECORD.saturating_add(length);
        let check = bytes.get(end..).and_then(|rest| rest.first_chunk::<CHECK_BYTES>());
        if check.map(|check| u64::from_le_bytes(*check)) != bytes.get(..end).map(xxh3_64) {
            return Err(HeadError::Checksum);
        }
        let record = bytes.get(BEFORE_RECORD..end).ok_or(HeadError::Checksum)?;
        let head = read_whole(record).map_err(|_| HeadError::Unknown)?;
        Ok((head, (end + CHECK_BYTES) as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        let (cluster_name, software) = ("prod".to_owned(), "0.1.0".to_owned());
        Head { cluster_name, node_id: 2, taken_ms: 1_000, software }
    }

    fn read(bytes: &[u8]) -> Result<(Head, u64), HeadError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        Head::read(file.path())
    }

    #[test]
    fn the_bytes_of_a_head() {
        let bytes = head().encode();
        let record = b"\x04prod\x02\xe8\x07\x050.1.0\x00";
        assert_eq!(&bytes[..16], b"QBACKUP\n\x01\0\0\0\x0f\0\0\0");
        assert_eq!(&bytes[16..31], record);
        assert_eq!(bytes.len(), 31 + 8);
        let behind = [&bytes[..], b"a snapshot"].concat();
        assert_eq!(read(&behind).unwrap(), (head(), 39));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let bytes = head().encode();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&damaged).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(read(&bytes[..length]).is_err(), "cut at {length}");
        }
    }

    #[test]
    fn what_a_newer_release_wrote_is_said_so() {
        let mut newer = head().encode();
        newer[8] = 2;
        assert!(matches!(read(&newer), Err(HeadError::Version { found: 2 })));
        let mut record = postcard::to_stdvec(&head()).unwrap();
        *record.last_mut().unwrap() = 1; // an optional field
        record.push(7);
        let mut bytes = head().encode()[..12].to_vec();
        bytes.extend_from_slice(&(record.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&record);
        let check = xxh3_64(&bytes);
        bytes.extend_from_slice(&check.to_le_bytes());
        assert!(matches!(read(&bytes), Err(HeadError::Unknown)));
    }
}
