//! The directory of snapshot files: which one is current, and how a new one takes its place.
//!
//! A file gets its final name only when it is complete and synced, and older ones go after that, so
//! a crash leaves the old snapshot or the new one, never neither. Blocking; what a body means is
//! left to the caller.

mod error;
mod file;
mod slow_close;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::marker::PhantomData;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use lz4_flex::frame::{BlockMode, FrameEncoder, FrameInfo};
use openraft::RaftTypeConfig;
use openraft::type_config::alias::SnapshotMetaOf;

#[cfg(test)]
use crate::observe;
use crate::opening::dirs;
pub use error::{SnapshotError, SnapshotProblem};
pub use file::{SnapshotBody, SnapshotBytes, SnapshotFile};

const FINAL_EXTENSION: &str = "snapshot";
const TEMPORARY_EXTENSION: &str = "incomplete";

/// A file that is being made is synced each time after this many bytes: the log's syncs, which
/// share its disk, would wait for as long as one sync of all of it takes.
const SYNC_AFTER_BYTES: usize = 1024 * 1024;

/// The snapshots of one node. Clones share the directory; no other process may use it (the log's
/// lock sees to that).
#[derive(Debug)]
pub struct SnapshotStore<C: RaftTypeConfig> {
    inner: Arc<Inner<C>>,
}

#[derive(Debug)]
struct Inner<C: RaftTypeConfig> {
    dir: PathBuf,
    /// Held while a file takes its place on the disk, which may take long.
    state: Mutex<State<C>>,
    /// When the current one was written, and its size: nobody waits for a disk to know that.
    written: Mutex<Option<(SystemTime, u64)>>,
    /// Files are numbered in the order in which they became current; temporary ones take numbers
    /// from the same series.
    next_number: AtomicU64,
}

#[derive(Debug)]
struct State<C: RaftTypeConfig> {
    /// Path of the current file, and the file itself once it was checked.
    current: Option<(PathBuf, Option<SnapshotFile<C>>)>,
}

/// A snapshot being built: write the body, then [`finish`](Self::finish). Dropped before that, it
/// leaves nothing.
pub struct SnapshotWriter<C: RaftTypeConfig> {
    store: SnapshotStore<C>,
    encoder: SnapshotEncoder<Temporary>,
}

/// Makes the bytes of a snapshot file, wherever they go: write the body, then
/// [`finish`](Self::finish).
pub struct SnapshotEncoder<W: Write> {
    encoder: FrameEncoder<BufWriter<Checked<W>>>,
    header_bytes: u64,
}

/// A snapshot arriving from a peer. Dropped before [`finish`](Self::finish), it leaves nothing.
#[derive(Debug)]
pub struct SnapshotReceiver<C: RaftTypeConfig> {
    temporary: Temporary,
    config: PhantomData<C>,
}

/// A file that is being made, under its temporary name.
#[derive(Debug)]
struct Temporary {
    name: TemporaryName,
    file: File,
    unsynced_bytes: usize,
}

/// The name of a file that is not installed, which it loses with this value. No other file ever
/// gets that name.
#[derive(Debug)]
struct TemporaryName(PathBuf);

/// Counts and checksums what goes into a file.
struct Checked<W> {
    out: W,
    crc: crc32fast::Hasher,
    len_bytes: u64,
}

impl<C: RaftTypeConfig> SnapshotStore<C> {
    /// Open or create the directory and remove what a crash left half written.
    ///
    /// # Errors
    /// The directory cannot be created, read or cleaned.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, SnapshotError> {
        let dir = dir.as_ref().to_owned();
        dirs::make_dir(&dir).map_err(|source| failed("create directory", &dir, source))?;
        dirs::sync_parents(&dir).map_err(|source| failed("sync the parent of", &dir, source))?;
        let mut newest: Option<u64> = None;
        for path in list(&dir)? {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some(TEMPORARY_EXTENSION) => {
                    fs::remove_file(&path).map_err(|source| failed("remove", &path, source))?;
                }
                Some(FINAL_EXTENSION) => newest = newest.max(number_of(&path)),
                _ => {}
            }
        }
        let next_number = AtomicU64::new(newest.map_or(1, |number| number + 1));
        let current = newest.map(|number| final_path(&dir, number));
        let written = Mutex::new(current.as_deref().and_then(written));
        let state = Mutex::new(State { current: current.map(|path| (path, None)) });
        Ok(Self { inner: Arc::new(Inner { dir, state, written, next_number }) })
    }

    /// The snapshot that a store in this directory would begin with, read without changing anything
    /// there.
    ///
    /// # Errors
    /// As [`SnapshotStore::current`].
    pub fn look(dir: &Path) -> Result<Option<SnapshotFile<C>>, SnapshotError> {
        let is_final = |path: &PathBuf| path.extension().is_some_and(|it| it == FINAL_EXTENSION);
        let newest = list(dir)?.into_iter().filter(is_final).max_by_key(|path| number_of(path));
        newest.map(|path| SnapshotFile::open_behind(&path, 0)).transpose()
    }

    /// The current snapshot. Reads and checks the whole file the first time.
    ///
    /// # Errors
    /// The file is damaged, was written by a newer release, or cannot be read. There is no older
    /// one to fall back to: the log entries it stood for are purged.
    pub fn current(&self) -> Result<Option<SnapshotFile<C>>, SnapshotError> {
        let mut state = self.state();
        match &mut state.current {
            None => Ok(None),
            Some((_, Some(file))) => Ok(Some(file.clone())),
            Some((path, unchecked)) => {
                Ok(Some(unchecked.insert(SnapshotFile::open(path)?).clone()))
            }
        }
    }

    /// When the current snapshot was written, by the clock of then, and its size, bytes. Asks no
    /// disk.
    pub fn written(&self) -> Option<(SystemTime, u64)> {
        *self.inner.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begin a snapshot of what `meta` says.
    ///
    /// # Errors
    /// The file cannot be created or written.
    pub fn begin(&self, meta: &SnapshotMetaOf<C>) -> Result<SnapshotWriter<C>, SnapshotError> {
        let temporary = self.temporary()?;
        let path = temporary.name.0.clone();
        let header = file::header::<C>(meta)
            .map_err(|source| SnapshotError::Encode { path: path.clone(), source })?;
        let encoder = SnapshotEncoder::after(&header, temporary)
            .map_err(|source| failed("write", &path, source))?;
        Ok(SnapshotWriter { store: self.clone(), encoder })
    }

    /// Begin to receive a snapshot file from a peer.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn receive(&self) -> Result<SnapshotReceiver<C>, SnapshotError> {
        Ok(SnapshotReceiver { temporary: self.temporary()?, config: PhantomData })
    }

    /// Make a received snapshot the current one, durably, and remove the one before. Returns the
    /// current snapshot, which is not `file` if one that covers more was installed meanwhile.
    ///
    /// # Errors
    /// It cannot be renamed or synced, or the current one cannot be read.
    pub fn install(&self, file: SnapshotFile<C>) -> Result<SnapshotFile<C>, SnapshotError> {
        let mut state = self.state();
        if let Some((current_path, checked)) = &mut state.current {
            if *current_path == file.path() {
                return Ok(file);
            }
            // A damaged one is replaced by whatever is sound.
            if checked.is_none() {
                *checked = SnapshotFile::open(current_path).ok();
            }
            if let Some(current) = checked
                && current.meta().last_log_id > file.meta().last_log_id
            {
                return Ok(current.clone());
            }
        }
        let path = final_path(&self.inner.dir, self.number());
        fs::rename(file.path(), &path).map_err(|source| failed("rename", file.path(), source))?;
        #[cfg(test)]
        observe::tell(observe::Event::Replaced(&path));
        File::open(&self.inner.dir)
            .and_then(|dir| dir.sync_all())
            .map_err(|source| failed("sync directory", &self.inner.dir, source))?;
        #[cfg(test)]
        observe::tell(observe::Event::SyncedNames(&self.inner.dir));
        let file = file.installed_as(path.clone());
        let replaced = state.current.replace((path.clone(), Some(file.clone())));
        *self.inner.written.lock().unwrap_or_else(PoisonError::into_inner) = written(&path);
        // Closed when it has no name any more: see `SlowClose`.
        let removed = remove_others(&self.inner.dir, &path);
        drop(replaced);
        removed?;
        Ok(file)
    }

    fn temporary(&self) -> Result<Temporary, SnapshotError> {
        let name = format!("{:020}.{TEMPORARY_EXTENSION}", self.number());
        let path = self.inner.dir.join(name);
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(|source| failed("create", &path, source))?;
        Ok(Temporary { name: TemporaryName(path), file, unsynced_bytes: 0 })
    }

    /// One that no file has.
    fn number(&self) -> u64 {
        self.inner.next_number.fetch_add(1, Ordering::Relaxed)
    }

    fn state(&self) -> MutexGuard<'_, State<C>> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When a file was written, and its size.
fn written(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

impl<C: RaftTypeConfig> SnapshotWriter<C> {
    /// Complete the file and make it current, as [`SnapshotStore::install`] does.
    ///
    /// # Errors
    /// It cannot be written, synced or renamed.
    pub fn finish(self) -> Result<SnapshotFile<C>, SnapshotError> {
        let dir = self.store.inner.dir.clone();
        let temporary =
            self.encoder.finish().map_err(|source| failed("write a snapshot in", &dir, source))?;
        self.store.install(temporary.complete()?)
    }
}

impl<W: Write> SnapshotEncoder<W> {
    /// Begin with what says what the snapshot covers.
    ///
    /// # Errors
    /// It cannot be encoded or written.
    pub fn begin<C: RaftTypeConfig>(meta: &SnapshotMetaOf<C>, out: W) -> io::Result<Self> {
        Self::after(&file::header::<C>(meta).map_err(io::Error::other)?, out)
    }

    fn after(header: &[u8], out: W) -> io::Result<Self> {
        let mut checked = Checked { out, crc: crc32fast::Hasher::new(), len_bytes: 0 };
        checked.write_all(header)?;
        let header_bytes = checked.len_bytes;
        let frame = FrameInfo::new()
            .block_mode(BlockMode::Linked)
            .block_checksums(true)
            .content_checksum(true);
        let encoder = FrameEncoder::with_frame_info(frame, BufWriter::new(checked));
        Ok(Self { encoder, header_bytes })
    }

    /// Write what comes after the body; where it was written to.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(self) -> io::Result<W> {
        let buffered = self.encoder.finish().map_err(io::Error::other)?;
        let checked = buffered.into_inner().map_err(io::IntoInnerError::into_error)?;
        let body_bytes = checked.len_bytes - self.header_bytes;
        let mut out = checked.out;
        out.write_all(&file::footer(body_bytes, checked.crc))?;
        Ok(out)
    }
}

impl<W: Write> Write for SnapshotEncoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.encoder.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.encoder.flush()
    }
}

impl<C: RaftTypeConfig> Write for SnapshotWriter<C> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.encoder.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.encoder.flush()
    }
}

impl<C: RaftTypeConfig> SnapshotReceiver<C> {
    /// Take the next bytes of the file.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn write_chunk(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.temporary
            .write_all(bytes)
            .map_err(|source| failed("write", &self.temporary.name.0, source))
    }

    /// Sync and check what has arrived. The file keeps its temporary name until
    /// [`SnapshotStore::install`]; if that does not happen, it goes with the last clone of what is
    /// returned.
    ///
    /// # Errors
    /// The file is incomplete or damaged, or cannot be synced.
    pub fn finish(self) -> Result<SnapshotFile<C>, SnapshotError> {
        self.temporary.complete()
    }
}

impl Temporary {
    fn complete<C: RaftTypeConfig>(self) -> Result<SnapshotFile<C>, SnapshotError> {
        let Self { name, file, .. } = self;
        file.sync_all().map_err(|source| failed("sync", &name.0, source))?;
        #[cfg(test)]
        observe::tell(observe::Event::Synced(&name.0));
        // The one that is opened now is to be its only handle: see `SlowClose`.
        drop(file);
        Ok(SnapshotFile::open(&name.0)?.until_installed(name))
    }
}

impl Write for Temporary {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.unsynced_bytes += written;
        if self.unsynced_bytes >= SYNC_AFTER_BYTES {
            self.file.sync_data()?;
            self.unsynced_bytes = 0;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for TemporaryName {
    fn drop(&mut self) {
        match fs::remove_file(&self.0) {
            // It was installed, and has another name.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let path = self.0.display();
                tracing::warn!(%path, %error, "cannot remove a snapshot that is not installed");
            }
            Ok(()) => {}
        }
    }
}

impl<W: Write> Write for Checked<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.crc.update(&bytes[..written]);
        self.len_bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl<C: RaftTypeConfig> Clone for SnapshotStore<C> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, SnapshotError> {
    fs::read_dir(dir)
        .and_then(|listing| listing.map(|item| item.map(|item| item.path())).collect())
        .map_err(|source| failed("list directory", dir, source))
}

fn remove_others(dir: &Path, kept: &Path) -> Result<(), SnapshotError> {
    for path in list(dir)? {
        if path.extension().is_some_and(|extension| extension == FINAL_EXTENSION) && path != kept {
            fs::remove_file(&path).map_err(|source| failed("remove", &path, source))?;
            #[cfg(test)]
            observe::tell(observe::Event::Removed(&path));
        }
    }
    Ok(())
}

fn final_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:020}.{FINAL_EXTENSION}"))
}

fn number_of(path: &Path) -> Option<u64> {
    path.file_stem()?.to_str()?.parse().ok()
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> SnapshotError {
    SnapshotError::Io { operation, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

    use std::cell::RefCell;
    use std::rc::Rc;

    use openraft::testing::log_id;
    use openraft::type_config::alias::StoredMembershipOf;

    use super::*;

    openraft::declare_raft_types!(Toy: D = String, R = String);

    /// A power cut at any moment leaves the old one or the new one, whole and under its name.
    #[test]
    fn the_old_snapshot_goes_when_the_new_one_and_its_name_are_durable() {
        let dir = tempfile::tempdir().unwrap();
        let store = SnapshotStore::<Toy>::open(dir.path()).unwrap();
        let write = |index| {
            let last_log_id = Some(log_id::<Toy>(1, 1, index));
            let last_membership = StoredMembershipOf::<Toy>::default();
            let meta = SnapshotMetaOf::<Toy> { last_log_id, last_membership };
            let mut writer = store.begin(&meta).unwrap();
            writer.write_all(b"all of it").unwrap();
            writer.finish().unwrap().path().to_owned()
        };
        let old = write(1);
        let told = Rc::new(RefCell::new(Vec::new()));
        let seen = told.clone();
        observe::set(Some(Box::new(move |event| {
            let (what, path) = match event {
                observe::Event::Wrote(path) => ("wrote", path),
                observe::Event::Synced(path) => ("synced", path),
                observe::Event::Replaced(path) => ("named", path),
                observe::Event::Removed(path) => ("removed", path),
                observe::Event::SyncedNames(path) => ("synced the names in", path),
            };
            seen.borrow_mut().push((what, path.to_owned()));
        })));
        let new = write(2);
        observe::set(None);
        let unnamed = final_path(dir.path(), number_of(&new).unwrap() - 1);
        let unnamed = unnamed.with_extension(TEMPORARY_EXTENSION);
        let events = [
            ("synced", unnamed),
            ("named", new),
            ("synced the names in", dir.path().to_owned()),
            ("removed", old),
        ];
        assert_eq!(*told.borrow(), events);
    }
}
