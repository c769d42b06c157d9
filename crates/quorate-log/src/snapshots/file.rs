//! The format of one snapshot file, and how it is checked and read. It must not know which snapshot
//! is the current one.
//!
//! All numbers little endian:
//!
//! ```text
//! header  8 mark "QSNAPSHT" | 4 format version (1) | 4 length of the metadata
//!         | metadata (postcard) | 4 crc32 so far
//! body    an lz4 frame with checksums of its own
//! footer  8 length of the body | 4 crc32 of everything before | 4 mark "QEND"
//! ```
//!
//! A file is read through one open handle by position, so readers do not disturb each other and a
//! file may be superseded, and so unlinked, while it is still being sent.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lz4_flex::frame::FrameDecoder;
use openraft::RaftTypeConfig;
use openraft::type_config::alias::SnapshotMetaOf;

use crate::disk::codec;
use crate::disk::numbers::{u32_at, u64_at};
use crate::error::RecordError;
use crate::snapshots::TemporaryName;
use crate::snapshots::error::{SnapshotError, SnapshotProblem};
use crate::snapshots::slow_close::SlowClose;

const FORMAT_VERSION: u32 = 1;
const HEAD_MARK: &[u8; 8] = b"QSNAPSHT";
const END_MARK: &[u8; 4] = b"QEND";
const HEAD_BYTES: usize = 16;
const CRC_BYTES: usize = 4;
const FOOTER_BYTES: usize = 16;

/// Read size while checking a file.
const CHECK_CHUNK_BYTES: usize = 256 * 1024;

/// A complete snapshot file whose checksums were verified.
#[derive(Debug, Clone)]
pub struct SnapshotFile<C: RaftTypeConfig> {
    meta: SnapshotMetaOf<C>,
    path: PathBuf,
    /// Until it is installed. Dropped before `file`, which is given back slowly once it has no
    /// name.
    _temporary: Option<Arc<TemporaryName>>,
    file: Arc<SlowClose>,
    /// Where it begins in the file: not at 0 in a backup.
    start: u64,
    body_start: u64,
    end: u64,
}

/// Bytes of a snapshot file as they lie on disk, for sending it to a peer. Each has a position of
/// its own.
#[derive(Debug)]
pub struct SnapshotBytes {
    file: Arc<SlowClose>,
    position: u64,
    end: u64,
}

/// The decompressed body of a snapshot.
pub struct SnapshotBody {
    decoder: FrameDecoder<SnapshotBytes>,
}

impl<C: RaftTypeConfig> SnapshotFile<C> {
    /// What the snapshot covers.
    pub fn meta(&self) -> &SnapshotMetaOf<C> {
        &self.meta
    }

    /// Where the file was when this value was made; the contents stay readable through it wherever
    /// the file goes.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size.
    pub fn len_bytes(&self) -> u64 {
        self.end - self.start
    }

    /// The body as it was given to [`crate::SnapshotWriter`]. Damage that appeared since the file
    /// was checked is an error of reading.
    pub fn body(&self) -> SnapshotBody {
        let end = self.end - FOOTER_BYTES as u64;
        SnapshotBody { decoder: FrameDecoder::new(self.slice(self.body_start, end)) }
    }

    /// The whole file, for [`crate::SnapshotReceiver::write_chunk`] on another node.
    pub fn raw(&self) -> SnapshotBytes {
        self.slice(self.start, self.end)
    }

    /// It goes with the last clone of this value.
    pub(super) fn until_installed(self, name: TemporaryName) -> Self {
        Self { _temporary: Some(Arc::new(name)), ..self }
    }

    /// It has this name now, for good.
    pub(super) fn installed_as(self, path: PathBuf) -> Self {
        Self { path, _temporary: None, ..self }
    }

    /// Open a file and check all of it.
    pub(crate) fn open(path: &Path) -> Result<Self, SnapshotError> {
        // For writing, because `SlowClose` shortens it in the end.
        Self::check(path, File::options().read(true).write(true).open(path), 0)
    }

    /// Open what lies behind the first `start` bytes of a file, to read it and nothing else, and
    /// check all of it.
    ///
    /// # Errors
    /// It cannot be read, is no snapshot, is damaged, or was written by a newer release.
    pub fn open_behind(path: &Path, start: u64) -> Result<Self, SnapshotError> {
        Self::check(path, File::open(path), start)
    }

    fn check(path: &Path, file: io::Result<File>, start: u64) -> Result<Self, SnapshotError> {
        let failed = |operation| {
            move |source| SnapshotError::Io { operation, path: path.to_owned(), source }
        };
        let damaged = |offset_bytes, problem| SnapshotError::Damaged {
            path: path.to_owned(),
            offset_bytes,
            problem,
        };
        let file = file.map_err(failed("open"))?;
        let end = file.metadata().map_err(failed("read the size of"))?.len();
        if end.saturating_sub(start) < (HEAD_BYTES + CRC_BYTES + FOOTER_BYTES) as u64 {
            return Err(damaged(end, SnapshotProblem::TooShort));
        }
        let mut head = [0; HEAD_BYTES];
        file.read_exact_at(&mut head, start).map_err(failed("read"))?;
        if !head.starts_with(HEAD_MARK) {
            return Err(damaged(start, SnapshotProblem::Mark));
        }
        let found = u32_at(&head, 8);
        if found > FORMAT_VERSION {
            let path = path.to_owned();
            return Err(SnapshotError::NewerFormat { path, found, supported: FORMAT_VERSION });
        }
        let meta_start = start + HEAD_BYTES as u64;
        let meta_end = meta_start + u64::from(u32_at(&head, 12));
        let body_start = meta_end + CRC_BYTES as u64;
        let footer_start = end - FOOTER_BYTES as u64;
        if body_start > footer_start {
            return Err(damaged(start + 12, SnapshotProblem::Length));
        }
        let mut meta_crc = [0; CRC_BYTES];
        file.read_exact_at(&mut meta_crc, meta_end).map_err(failed("read"))?;
        if crc_of(&file, start..meta_end).map_err(failed("read"))? != u32::from_le_bytes(meta_crc) {
            return Err(damaged(meta_end, SnapshotProblem::Checksum));
        }
        let mut footer = [0; FOOTER_BYTES];
        file.read_exact_at(&mut footer, footer_start).map_err(failed("read"))?;
        if !footer.ends_with(END_MARK) {
            return Err(damaged(end - END_MARK.len() as u64, SnapshotProblem::Mark));
        }
        if u64_at(&footer, 0) != footer_start - body_start {
            return Err(damaged(footer_start, SnapshotProblem::Length));
        }
        let crc = crc_of(&file, start..footer_start + 8).map_err(failed("read"))?;
        if crc != u32_at(&footer, 8) {
            return Err(damaged(footer_start + 8, SnapshotProblem::Checksum));
        }
        let mut meta = vec![0; (meta_end - meta_start) as usize];
        file.read_exact_at(&mut meta, meta_start).map_err(failed("read"))?;
        let meta = codec::content(&meta).map_err(|error| match error {
            RecordError::Unknown => damaged(meta_start, SnapshotProblem::Unknown),
            _ => damaged(meta_start, SnapshotProblem::Metadata),
        })?;
        let file = Arc::new(SlowClose::new(file));
        let path = path.to_owned();
        Ok(Self { meta, path, _temporary: None, file, start, body_start, end })
    }

    fn slice(&self, position: u64, end: u64) -> SnapshotBytes {
        SnapshotBytes { file: self.file.clone(), position, end }
    }
}

/// The bytes before the body.
pub(crate) fn header<C: RaftTypeConfig>(
    meta: &SnapshotMetaOf<C>,
) -> Result<Vec<u8>, postcard::Error> {
    let meta = postcard::to_stdvec(meta)?;
    let mut bytes = HEAD_MARK.to_vec();
    bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes.extend_from_slice(&(meta.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&meta);
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    Ok(bytes)
}

/// The bytes behind the body; `crc` is of everything before them.
pub(super) fn footer(body_bytes: u64, crc: crc32fast::Hasher) -> [u8; FOOTER_BYTES] {
    let mut crc = crc;
    let mut footer = [0; FOOTER_BYTES];
    footer[..8].copy_from_slice(&body_bytes.to_le_bytes());
    crc.update(&footer[..8]);
    footer[8..12].copy_from_slice(&crc.finalize().to_le_bytes());
    footer[12..].copy_from_slice(END_MARK);
    footer
}

impl SnapshotBytes {
    /// How much is left to read.
    pub fn remaining_bytes(&self) -> u64 {
        self.end - self.position
    }
}

impl Read for SnapshotBytes {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.remaining_bytes()).unwrap_or(usize::MAX);
        let wanted = wanted.min(buffer.len());
        let read = self.file.read_at(&mut buffer[..wanted], self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Read for SnapshotBody {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.decoder.read(buffer)
    }
}

fn crc_of(file: &File, range: std::ops::Range<u64>) -> io::Result<u32> {
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; CHECK_CHUNK_BYTES];
    let mut position = range.start;
    while position < range.end {
        let wanted = CHECK_CHUNK_BYTES.min((range.end - position) as usize);
        file.read_exact_at(&mut buffer[..wanted], position)?;
        hasher.update(&buffer[..wanted]);
        position += wanted as u64;
    }
    Ok(hasher.finalize())
}
