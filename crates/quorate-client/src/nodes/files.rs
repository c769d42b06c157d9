//! Contents of files (or bytes given instead), parsed into a value that is replaced when they
//! change. Files are read again every 10 s and on demand; one that is half written, gone or invalid
//! changes nothing. Knows neither certificates nor tokens, and shows no content.

use std::fmt;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// Files are read again this often. Mounted secrets change by a link that is moved, so it is the
/// content that is looked at.
const REREAD_EVERY: Duration = Duration::from_secs(10);
/// Nobody waits longer for a reading, which goes on: on a mount that hangs it may take for ever,
/// and what was read last is still there.
const READ_WITHIN: Duration = Duration::from_secs(1);
/// No file of certificates, and no token, is larger.
const BYTES_MAX: u64 = 1024 * 1024;

/// Where a content comes from.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Source {
    File(PathBuf),
    Given(Arc<[u8]>),
}

impl Source {
    pub(crate) fn file(path: impl Into<PathBuf>) -> Self {
        Self::File(path.into())
    }

    pub(crate) fn given(bytes: impl Into<Vec<u8>>) -> Self {
        Self::Given(bytes.into().into())
    }

    fn read(&self) -> Result<Vec<u8>, String> {
        match self {
            Self::File(path) => read(path).map_err(|fault| format!("{}: {fault}", path.display())),
            Self::Given(bytes) => Ok(bytes.to_vec()),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    let read = file.take(BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| error.to_string())?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(format!("it has more than {BYTES_MAX} bytes"));
    }
    Ok(bytes)
}

/// For messages.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Given(_) => f.write_str("what was given"),
        }
    }
}

/// Never the content.
impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Given(_) => f.write_str("Given(..)"),
        }
    }
}

/// Parses the contents of all sources, given the value of before; the error is in words.
type Make<T> = Box<dyn Fn(&[Vec<u8>], Option<&T>) -> Result<T, String> + Send + Sync>;

/// A value parsed from some sources. A clone is the same one.
pub(crate) struct Kept<T>(Arc<Shared<T>>);

impl<T> Clone for Kept<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Shared<T> {
    /// What it is, for logs.
    what: &'static str,
    sources: Vec<Source>,
    make: Make<T>,
    now: ArcSwap<T>,
    /// Held for one reading.
    reading: Arc<Semaphore>,
    /// Readings that have begun.
    readings: AtomicU64,
    /// How often the value was replaced.
    changes: AtomicU64,
    hasher: RandomState,
    /// Hash of the contents that were read last, used or not, or of the error.
    seen: AtomicU64,
}

impl<T: Send + Sync + 'static> Kept<T> {
    /// # Errors
    /// What cannot be read or used, in words.
    pub(crate) fn new(
        what: &'static str,
        sources: Vec<Source>,
        make: impl Fn(&[Vec<u8>], Option<&T>) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let contents = read_all(&sources)?;
        let now = make(&contents, None)?;
        let hasher = RandomState::new();
        let seen = hasher.hash_one(Ok::<_, String>(contents));
        Ok(Self(Arc::new(Shared {
            what,
            sources,
            make: Box::new(make),
            now: ArcSwap::from_pointee(now),
            reading: Arc::new(Semaphore::new(1)),
            readings: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            hasher,
            seen: AtomicU64::new(seen),
        })))
    }

    pub(crate) fn now(&self) -> Arc<T> {
        self.0.now.load_full()
    }

    /// Another number after each change.
    pub(crate) fn changes(&self) -> u64 {
        self.0.changes.load(Ordering::Acquire)
    }

    /// Whether it can change at all.
    pub(super) fn is_of_files(&self) -> bool {
        self.0.sources.iter().any(|source| matches!(source, Source::File(_)))
    }

    /// Reads again, and waits until that is done, though not for ever. Concurrent callers share a
    /// reading that began after they called.
    pub(super) async fn reread(&self) {
        if self.is_of_files() {
            let _done_or_goes_on = timeout(READ_WITHIN, self.read()).await;
        }
    }

    async fn read(&self) {
        let before = self.0.readings.load(Ordering::Acquire);
        let alone = self.0.reading.clone().acquire_owned().await;
        let alone = alone.expect("invariant: it is never closed");
        if self.0.readings.load(Ordering::Acquire) > before {
            return;
        }
        self.0.readings.fetch_add(1, Ordering::AcqRel);
        let shared = self.0.clone();
        let reading = tokio::task::spawn_blocking(move || {
            shared.read();
            drop(alone);
        });
        // It cannot be waited for while the runtime is being shut down.
        let _ended = reading.await;
    }

    /// Reads again for ever.
    pub(crate) async fn keep(&self) {
        loop {
            sleep(REREAD_EVERY).await;
            self.reread().await;
        }
    }
}

impl<T> Shared<T> {
    fn read(&self) {
        let read = read_all(&self.sources);
        let found = self.hasher.hash_one(&read);
        if self.seen.swap(found, Ordering::AcqRel) == found {
            return;
        }
        let before = self.now.load();
        match read.and_then(|contents| (self.make)(&contents, Some(&**before))) {
            Ok(new) => {
                self.now.store(Arc::new(new));
                self.changes.fetch_add(1, Ordering::AcqRel);
                tracing::info!(what = self.what, "it has changed and was taken over");
            }
            Err(fault) => {
                tracing::warn!(what = self.what, fault, "it cannot be used; the one before stays");
            }
        }
    }
}

fn read_all(sources: &[Source]) -> Result<Vec<Vec<u8>>, String> {
    sources.iter().map(Source::read).collect()
}

/// Its sources, without their contents.
impl<T> fmt::Debug for Kept<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { what, sources, .. } = &*self.0;
        f.debug_struct("Kept").field("what", what).field("sources", sources).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(path: &Path) -> Result<Kept<u32>, String> {
        Kept::new("a number", vec![Source::file(path)], |contents, _| {
            let text = String::from_utf8_lossy(&contents[0]).trim().to_owned();
            text.parse().map_err(|_| "it is no number".to_owned())
        })
    }

    #[tokio::test]
    async fn what_cannot_be_used_changes_nothing_and_the_next_that_can_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("number");
        assert!(number(&path).unwrap_err().contains("number: "), "the file is named");
        std::fs::write(&path, "1").unwrap();
        let kept = number(&path).unwrap();
        let after = async |text: Option<&str>| {
            match text {
                Some(text) => std::fs::write(&path, text).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            kept.reread().await;
            (*kept.now(), kept.changes())
        };
        assert_eq!(after(Some("1")).await, (1, 0));
        assert_eq!(after(Some("half")).await, (1, 0));
        assert_eq!(after(Some("2")).await, (2, 1));
        assert_eq!(after(None).await, (2, 1));
        assert_eq!(after(Some("3")).await, (3, 2));
        let large = "9".repeat(BYTES_MAX as usize + 1);
        assert_eq!(after(Some(&large)).await, (3, 2));
        assert!(number(&path).unwrap_err().contains("more than 1048576 bytes"));
    }

    /// Kubernetes replaces a link to a directory of files; a mount that fails leaves none, or an
    /// empty file.
    #[cfg(unix)]
    #[tokio::test]
    async fn mounted_files_are_followed_and_one_before_stays() {
        use std::os::unix::fs::symlink;

        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let lead_to = |set: &str| {
            symlink(set, path("..data_tmp")).unwrap();
            std::fs::rename(path("..data_tmp"), path("..data")).unwrap();
        };
        for (set, text) in [("..1", "1"), ("..2", "2"), ("..empty", ""), ("..half", "x")] {
            std::fs::create_dir(path(set)).unwrap();
            std::fs::write(path(set).join("number"), text).unwrap();
        }
        std::fs::create_dir_all(path("..directory").join("number")).unwrap();
        symlink("..data/number", path("number")).unwrap();
        lead_to("..1");
        let kept = number(&path("number")).unwrap();
        for (set, expected) in [
            ("..2", (2, 1)),
            ("..gone", (2, 1)),
            ("..empty", (2, 1)),
            ("..half", (2, 1)),
            ("..directory", (2, 1)),
            ("..1", (1, 2)),
        ] {
            lead_to(set);
            kept.reread().await;
            assert_eq!((*kept.now(), kept.changes()), expected, "{set}");
        }
    }

    /// A pipe that nobody writes to is read for as long as a file on a mount that hangs.
    #[cfg(unix)]
    #[tokio::test]
    async fn a_file_that_hangs_is_waited_for_no_longer_and_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("number");
        std::fs::write(&path, "1").unwrap();
        let kept = number(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let both = async { tokio::join!(kept.reread(), kept.reread()) };
        let waited = timeout(READ_WITHIN * 5, both).await;
        let meanwhile = (*kept.now(), kept.changes());
        // Before anything can fail: the thread would keep the test.
        std::fs::write(&path, "2").unwrap();
        drop(kept.0.reading.acquire().await.unwrap());
        assert!(waited.is_ok(), "it was waited for");
        assert_eq!(kept.0.readings.load(Ordering::Acquire), 1, "no thread more hangs");
        assert_eq!((meanwhile, (*kept.now(), kept.changes())), ((1, 0), (2, 1)));
    }

    #[test]
    fn no_content_is_shown() {
        let kept = Kept::new("a secret", vec![Source::given("hunter2")], |contents, _| {
            Ok(String::from_utf8_lossy(&contents[0]).into_owned())
        });
        let shown = format!("{:?} {:?}", kept, Source::given("hunter2"));
        assert!(!shown.contains("hunter2") && shown.contains("a secret"), "{shown}");
    }
}
