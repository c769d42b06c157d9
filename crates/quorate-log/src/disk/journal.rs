//! The journal in front of sled: makes a group of changes durable with one write and one sync.
//!
//! sled has a flush done by threads of its own, all of which it wakes, and its file grows, so that
//! a sync also writes what the file system knows of it. An append took 79 us until it was durable
//! and takes 30 through the journal (`cargo bench -p quorate-log`); a cluster that commits one
//! entry at a time switches threads a third less often. So the writer puts changes here first,
//! syncs, reports them, and hands them to sled afterwards; at open, sled is given what it does not
//! have.
//!
//! Two files of a fixed size are used in turn. One is begun anew once sled has synced all that was
//! in it. Bytes in, bytes out: it must not know sled, nor what a value means.
//!
//! A file is a run of frames, one for each group. All numbers little endian:
//!
//! ```text
//! offset size
//!      0    4  crc32 of everything behind this field
//!      4    4  length of the frame, with this header
//!      8    1  format version (1)
//!      9    3  which use of the files it belongs to: another number after each time that they were read
//!     12    8  sequence number of the group's first write
//!     20    8  that of its last
//!     28    -  per value: its tree (1 byte), the length of its key (1), its own length (4), key, value
//! ```
//!
//! Sequence numbers are dense, so a frame that does not begin behind the one before it is left from
//! an earlier turn: the file ends there. So it does where a frame was torn by a crash; nothing
//! behind it was ever acknowledged. The numbers of such frames are given out again, and they may
//! still lie where the next use of the file comes to: that is why each use has a number.
//!
//! A frame that is sound and lies behind one that is not, in the same use, may say that all before
//! it was durable (`opening/replay.rs`): then that one was not torn, but is damaged. So that the
//! use is known also where its first frame is damaged, it begins with an empty one in the other
//! file.
//! Frames are looked for byte by byte; what clients write could look like one, but for that number.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::disk::numbers::{u32_at, u64_at};
#[cfg(test)]
use crate::observe;

/// One file. It is full of zeros first: a sync is cheap as long as the file's length and blocks
/// stay.
pub(crate) const FILE_BYTES: usize = 2 * 1024 * 1024;

/// A file is left when it holds this much, though a large frame may take more: that is when sled is
/// synced. What sled writes between two syncs, up to six times as much, must not be much more than
/// one of its segments (`disk::SEGMENT_BYTES`): it takes a segment that a later one says is durable
/// for whole, and uses those again whose pages it has written elsewhere. After a power cut that
/// left the later segments alone, it is damaged beyond help.
pub(crate) const TURN_BYTES: usize = 512 * 1024;

/// The newest version of the frame format that this code reads, and the one it writes.
pub(crate) const FRAME_VERSION: u32 = 1;
const VERSION_BITS: u32 = 8;

const HEADER_BYTES: usize = 28;
const CRC_BYTES: usize = 4;
/// Where version and use are.
const MARK_AT: usize = 8;

/// Which of sled's trees a value belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Tree {
    Entries = 0,
    Meta = 1,
}

/// What one group wrote.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) first_seq: u64,
    pub(crate) last_seq: u64,
    use_number: u32,
    bytes: Vec<u8>,
}

/// One value of a frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Put<'a> {
    pub(crate) tree: Tree,
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
}

/// What both files hold.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Older ones first.
    pub(crate) frames: Vec<Frame>,
    /// Sound ones of the same use as the newest of those, behind one that is not sound. Also what
    /// earlier turns left.
    pub(crate) behind: Vec<Frame>,
}

/// A frame of a release that this one cannot read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NewerFrame {
    pub(crate) found: u32,
}

#[derive(Debug)]
struct OneFile {
    file: File,
    path: PathBuf,
}

/// The journal's files.
#[derive(Debug)]
pub(crate) struct Journal {
    files: [OneFile; 2],
    /// The one in use, and where its next frame begins.
    current: usize,
    at: u64,
    file_bytes: usize,
    last_seq: u64,
    use_number: u32,
    /// Whether every frame that was written is durable.
    is_synced: bool,
    /// The frame that is being made.
    frame: Vec<u8>,
}

/// The names of the files in the log's directory.
pub(crate) const FILE_NAMES: [&str; 2] = ["journal-0", "journal-1"];

impl Journal {
    /// Open or create both files; what is in them is left to [`read`].
    pub(crate) fn open(dir: &Path, file_bytes: usize) -> io::Result<Self> {
        let open = |name: &str| -> io::Result<OneFile> {
            let path = dir.join(name);
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let file = options.open(&path)?;
            fill_with_zeros(&file, file_bytes as u64)?;
            Ok(OneFile { file, path })
        };
        let files = [open(FILE_NAMES[0])?, open(FILE_NAMES[1])?];
        Ok(Self {
            files,
            current: 0,
            at: 0,
            file_bytes,
            last_seq: 0,
            use_number: 0,
            is_synced: true,
            frame: Vec::new(),
        })
    }

    /// Every write up to `last_seq` is durable in sled: what the files hold is not needed any more.
    pub(crate) fn restart(&mut self, last_seq: u64) {
        self.at = 0;
        self.last_seq = last_seq;
        self.is_synced = true;
        // It may have been a very large one.
        self.frame = Vec::new();
    }

    /// As [`Journal::restart`], when the files were read: their next use begins.
    pub(crate) fn begin_use(&mut self, last_seq: u64) -> io::Result<()> {
        self.restart(last_seq);
        self.current = 1;
        self.begin(last_seq);
        self.write()?;
        self.sync()?;
        self.current = 0;
        self.restart(last_seq);
        Ok(())
    }

    /// Whether every write that was put into it is durable.
    pub(crate) fn is_synced(&self) -> bool {
        self.is_synced
    }

    /// The last write that was put into it.
    pub(crate) fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// The file in use.
    pub(crate) fn path(&self) -> &Path {
        &self.files[self.current].path
    }

    /// Begin the frame of the writes up to `last_seq`.
    pub(crate) fn begin(&mut self, last_seq: u64) {
        self.frame.clear();
        self.frame.extend_from_slice(&[0; CRC_BYTES + 4]);
        let version_and_use = FRAME_VERSION | (self.use_number << VERSION_BITS);
        self.frame.extend_from_slice(&version_and_use.to_le_bytes());
        self.frame.extend_from_slice(&(self.last_seq + 1).to_le_bytes());
        self.frame.extend_from_slice(&last_seq.to_le_bytes());
        self.last_seq = last_seq;
    }

    /// Add a value to the frame. Keys are shorter than 256 bytes, values than 4 GiB.
    pub(crate) fn put(&mut self, tree: Tree, key: &[u8], value: &[u8]) {
        self.frame.extend_from_slice(&[tree as u8, key.len() as u8]);
        self.frame.extend_from_slice(&(value.len() as u32).to_le_bytes());
        self.frame.extend_from_slice(key);
        self.frame.extend_from_slice(value);
    }

    /// How long the frame is.
    pub(crate) fn frame_bytes(&self) -> u64 {
        self.frame.len() as u64
    }

    /// Whether the frame fits into a file at all.
    pub(crate) fn takes_frame(&self) -> bool {
        self.frame.len() <= self.file_bytes
    }

    /// Whether the frame goes behind those that the file in use has.
    pub(crate) fn has_room(&self) -> bool {
        let end = self.at + self.frame.len() as u64;
        end <= self.file_bytes.min(TURN_BYTES) as u64
    }

    /// Go on at the beginning of the other file, of which nothing is needed any more.
    pub(crate) fn turn(&mut self) -> io::Result<()> {
        if !self.is_synced {
            // A later sync is of the other file: it would make durable what follows, and not this.
            self.sync()?;
        }
        self.current = 1 - self.current;
        self.at = 0;
        Ok(())
    }

    /// Write the frame. It is durable after the next [`Journal::sync`].
    pub(crate) fn write(&mut self) -> io::Result<()> {
        let length = self.frame.len() as u32;
        self.frame[CRC_BYTES..CRC_BYTES + 4].copy_from_slice(&length.to_le_bytes());
        let crc = crc32fast::hash(&self.frame[CRC_BYTES..]);
        self.frame[..CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
        #[cfg(test)]
        observe::begin(observe::Step::Write)?;
        self.files[self.current].file.write_all_at(&self.frame, self.at)?;
        #[cfg(test)]
        observe::tell(observe::Event::Wrote(self.path()));
        self.at += self.frame.len() as u64;
        self.is_synced = false;
        Ok(())
    }

    /// Make what was written durable.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        #[cfg(test)]
        observe::begin(observe::Step::Sync)?;
        self.files[self.current].file.sync_data()?;
        #[cfg(test)]
        observe::tell(observe::Event::Synced(self.path()));
        self.is_synced = true;
        Ok(())
    }

    /// The frames of both files. A new use of them begins.
    pub(crate) fn read(&mut self) -> io::Result<Result<Found, NewerFrame>> {
        let mut runs = Vec::new();
        let mut hasher = crc32fast::Hasher::new();
        // One for both: the allocator keeps a second one of that size for good when it is freed (2
        // MiB of a node).
        let mut bytes = Vec::new();
        for OneFile { file, .. } in &mut self.files {
            bytes.clear();
            file.read_to_end(&mut bytes)?;
            hasher.update(&bytes);
            match frames(&bytes) {
                Ok(run) => runs.push(run),
                Err(newer) => return Ok(Err(newer)),
            }
        }
        // What an earlier use left is not what that one had found.
        self.use_number = hasher.finalize() >> VERSION_BITS;
        let last = runs.iter().filter_map(|run| run.last());
        let newest = last.max_by_key(|frame| (frame.last_seq, frame.first_seq));
        let newest_use = newest.map(|frame| frame.use_number);
        let mut behind = Vec::new();
        for (OneFile { file, .. }, run) in self.files.iter_mut().zip(&runs) {
            let Some(use_number) = newest_use else { break };
            let end: usize = run.iter().map(|frame| frame.bytes.len()).sum();
            bytes.clear();
            file.seek(SeekFrom::Start(end as u64))?;
            file.read_to_end(&mut bytes)?;
            behind.append(&mut frames_of_use(&bytes, use_number));
        }
        runs.sort_by_key(|run| run.first().map(|frame| frame.first_seq));
        Ok(Ok(Found { frames: runs.into_iter().flatten().collect(), behind }))
    }
}

impl Frame {
    /// What it holds; `None` where it is not what was ever written.
    pub(crate) fn puts(&self) -> impl Iterator<Item = Option<Put<'_>>> {
        let mut rest = &self.bytes[HEADER_BYTES..];
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let put = split_put(rest);
            rest = put.as_ref().map_or(&[], |(_, tail)| tail);
            Some(put.map(|(put, _)| put))
        })
    }
}

/// Makes a file at least this long.
fn fill_with_zeros(file: &File, wanted_bytes: u64) -> io::Result<()> {
    let zeros = [0; 32 * 1024];
    let mut length = file.metadata()?.len();
    while length < wanted_bytes {
        let piece = zeros.len().min((wanted_bytes - length) as usize);
        file.write_all_at(&zeros[..piece], length)?;
        length += piece as u64;
    }
    file.sync_all()
}

fn frames(mut bytes: &[u8]) -> Result<Vec<Frame>, NewerFrame> {
    let mut frames: Vec<Frame> = Vec::new();
    while let Some(frame) = first_frame(bytes)? {
        let follows = |last: &Frame| {
            (last.last_seq + 1, last.use_number) == (frame.first_seq, frame.use_number)
        };
        if !frames.last().is_none_or(follows) {
            break;
        }
        bytes = &bytes[frame.bytes.len()..];
        frames.push(frame);
    }
    Ok(frames)
}

/// All that are sound, wherever they begin.
fn frames_of_use(bytes: &[u8], use_number: u32) -> Vec<Frame> {
    const CHUNK: usize = 4096;
    let used = bytes.chunks(CHUNK).rposition(|chunk| chunk != &[0; CHUNK][..chunk.len()]);
    let bytes = &bytes[..bytes.len().min(used.map_or(0, |last| (last + 1) * CHUNK))];
    let mark = (FRAME_VERSION | (use_number << VERSION_BITS)).to_le_bytes();
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(at) = bytes[from..].windows(mark.len()).position(|part| part == mark) {
        let begins = (from + at).checked_sub(MARK_AT);
        match begins.and_then(|begins| first_frame(&bytes[begins..]).ok().flatten()) {
            Some(frame) => {
                from += at - MARK_AT + frame.bytes.len();
                found.push(frame);
            }
            None => from += at + 1,
        }
    }
    found
}

fn first_frame(bytes: &[u8]) -> Result<Option<Frame>, NewerFrame> {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let length = u32_at(header, 4) as usize;
    if length < HEADER_BYTES || length > bytes.len() {
        return Ok(None);
    }
    let bytes = &bytes[..length];
    if crc32fast::hash(&bytes[CRC_BYTES..]) != u32_at(header, 0) {
        return Ok(None);
    }
    let version_and_use = u32_at(header, MARK_AT);
    let (found, use_number) = (version_and_use & 0xff, version_and_use >> VERSION_BITS);
    if found != FRAME_VERSION {
        return Err(NewerFrame { found });
    }
    let (first_seq, last_seq) = (u64_at(header, 12), u64_at(header, 20));
    Ok(Some(Frame { first_seq, last_seq, use_number, bytes: bytes.to_vec() }))
}

fn split_put(bytes: &[u8]) -> Option<(Put<'_>, &[u8])> {
    let ([tree, key_bytes, l0, l1, l2, l3], rest) = bytes.split_first_chunk::<6>()?;
    let tree = match tree {
        0 => Tree::Entries,
        1 => Tree::Meta,
        _ => return None,
    };
    let (key, rest) = rest.split_at_checked(usize::from(*key_bytes))?;
    let value_bytes = u32::from_le_bytes([*l0, *l1, *l2, *l3]) as usize;
    let (value, rest) = rest.split_at_checked(value_bytes)?;
    Some((Put { tree, key, value }, rest))
}

#[cfg(test)]
mod tests;
