//! Contents of files (or bytes given instead), parsed into a value that is replaced when they
//! change. Files are read again every 10 s and on demand; one that is half written, gone or invalid
//! counts as before, and holds back no file of another part. Knows neither certificates nor tokens,
//! and shows no content.

use std::fmt;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
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

/// The contents of the sources that belong together: all of them are taken, or none.
type Contents = Vec<Vec<u8>>;

/// Makes a value of all parts, given what is in use; the error is in words.
type Make<T> = Box<dyn Fn(&[&[Vec<u8>]], Option<Before<'_, T>>) -> Result<T, String> + Send + Sync>;

/// What is in use when a value is made.
#[cfg_attr(
    all(not(feature = "tls"), not(test)),
    expect(dead_code, reason = "only TLS has parts that depend on what was before")
)]
pub(super) struct Before<'a, T> {
    pub(super) value: &'a T,
    /// Of each part, whether what was read of it is another, or nothing, and is left out here.
    pub(super) left: &'a [bool],
}

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
    /// Of each part, the one that counts most first.
    sources: Vec<Vec<Source>>,
    make: Make<T>,
    now: ArcSwap<T>,
    /// Of each part, what the value was made of.
    used: Mutex<Vec<Contents>>,
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
    /// `sources`: of each part, the one that counts most first.
    ///
    /// # Errors
    /// What cannot be read or used, in words.
    pub(super) fn new(
        what: &'static str,
        sources: Vec<Vec<Source>>,
        make: impl Fn(&[&[Vec<u8>]], Option<Before<'_, T>>) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let read = read_parts(&sources);
        let hasher = RandomState::new();
        let seen = hasher.hash_one(&read);
        let used = read.into_iter().collect::<Result<Vec<Contents>, String>>()?;
        let now = make(&used.iter().map(Vec::as_slice).collect::<Vec<_>>(), None)?;
        Ok(Self(Arc::new(Shared {
            what,
            sources,
            make: Box::new(make),
            now: ArcSwap::from_pointee(now),
            used: Mutex::new(used),
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
        self.0.sources.iter().flatten().any(|source| matches!(source, Source::File(_)))
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
        let _done_or_shut_down = reading.await;
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
        let read = read_parts(&self.sources);
        let found = self.hasher.hash_one(&read);
        if self.seen.swap(found, Ordering::AcqRel) == found {
            return;
        }
        let mut used = self.used.lock().expect("invariant: nothing panics under this lock");
        let unread = read.iter().find_map(|part| part.as_ref().err().cloned());
        let mut is_new = false;
        // What did not fit the rest may fit what is taken of it.
        let fault = loop {
            let (newest, fault) = self.newest(&read, &used);
            let Some((value, contents)) = newest else { break unread.or(fault) };
            self.now.store(Arc::new(value));
            self.changes.fetch_add(1, Ordering::AcqRel);
            (*used, is_new) = (contents, true);
        };
        drop(used);
        match (fault, is_new) {
            (None, true) => tracing::info!(what = self.what, "it has changed and was taken over"),
            (None, false) => tracing::info!(what = self.what, "it is the one in use again"),
            (Some(fault), true) => tracing::warn!(
                what = self.what,
                fault,
                "some of it cannot be used and counts as before; the rest was taken over"
            ),
            (Some(fault), false) => {
                tracing::warn!(what = self.what, fault, "it cannot be used; the one before stays");
            }
        }
    }

    /// The value of the first set that can be used, and its contents: as many of the parts as fit
    /// together, and the rest as it is in use; and why that is not all of them. `None`: nothing new
    /// can be used.
    fn newest(
        &self,
        read: &[Result<Contents, String>],
        used: &[Contents],
    ) -> (Option<(T, Vec<Contents>)>, Option<String>) {
        let mut fault = None;
        let before = self.now.load();
        for set in (1..1_u32 << read.len()).rev() {
            let is_taken = |at: usize| set >> (read.len() - 1 - at) & 1 == 1;
            let parts = read.iter().zip(used).enumerate().map(|(at, (read, used))| {
                match (is_taken(at), read) {
                    (true, Ok(contents)) => Some(contents.as_slice()),
                    (true, Err(_)) => None,
                    (false, _) => Some(used.as_slice()),
                }
            });
            let Some(parts) = parts.collect::<Option<Vec<_>>>() else { continue };
            if parts.iter().copied().eq(used) {
                continue;
            }
            let is_other = |at: usize| read[at].as_ref().ok() != Some(&used[at]);
            let left: Vec<_> = (0..read.len()).map(|at| !is_taken(at) && is_other(at)).collect();
            let before = Some(Before { value: &**before, left: &left });
            // What is read is foreign: a parser that panics at it is to hold back nothing else. Its
            // message may have what was read in it.
            let made = catch_unwind(AssertUnwindSafe(|| (self.make)(&parts, before)));
            let panicked = "its parser panicked, which is a fault of this library";
            match made.unwrap_or_else(|_panic| Err(panicked.to_owned())) {
                Ok(value) => {
                    return (
                        Some((value, parts.iter().map(|part| part.to_vec()).collect())),
                        fault,
                    );
                }
                Err(of_set) => fault = fault.or(Some(of_set)),
            }
        }
        (None, fault)
    }
}

/// Of each part. What two parts are made of is read once: both are to have the same.
fn read_parts(sources: &[Vec<Source>]) -> Vec<Result<Contents, String>> {
    let mut read: Vec<Result<Contents, String>> = Vec::new();
    for (at, part) in sources.iter().enumerate() {
        let same = sources[..at].iter().position(|before| before == part);
        read.push(same.map_or_else(|| read_all(part), |same| read[same].clone()));
    }
    read
}

fn read_all(sources: &[Source]) -> Result<Contents, String> {
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

    fn parse(part: &[Vec<u8>]) -> Result<u32, String> {
        let text = String::from_utf8_lossy(&part[0]).trim().to_owned();
        text.parse().map_err(|_| "it is no number".to_owned())
    }

    fn number(path: &Path) -> Result<Kept<u32>, String> {
        Kept::new("a number", vec![vec![Source::file(path)]], |parts, _| parse(parts[0]))
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

    /// Three numbers, of which none is to be more than 10 above the one before it, nor all together
    /// more than 40 above those in use.
    #[tokio::test]
    async fn a_part_that_cannot_be_used_holds_back_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["a", "b", "c"].map(|name| dir.path().join(name));
        let put = |texts: [&str; 3]| {
            for (path, text) in paths.iter().zip(texts) {
                match text {
                    "gone" => std::fs::remove_file(path).unwrap(),
                    text => std::fs::write(path, text).unwrap(),
                }
            }
        };
        put(["1", "2", "3"]);
        let sources = paths.iter().map(|path| vec![Source::file(path)]).collect();
        let sum = |numbers: &[u32]| numbers.iter().sum::<u32>();
        let kept =
            Kept::new("numbers", sources, move |parts, before: Option<Before<'_, Vec<u32>>>| {
                let read: Result<Vec<u32>, String> = parts.iter().map(|part| parse(part)).collect();
                let read = read?;
                let fit = read.windows(2).all(|two| two[1] <= two[0] + 10)
                    && before.is_none_or(|before| sum(&read) <= sum(before.value) + 40);
                if fit { Ok(read) } else { Err("they do not fit".to_owned()) }
            });
        let kept = kept.unwrap();
        for (what, texts, numbers, changes) in [
            ("the first", ["x", "4", "5"], [1, 4, 5], 1),
            ("the first, gone", ["gone", "5", "5"], [1, 5, 5], 2),
            ("the last", ["3", "6", "x"], [3, 6, 5], 3),
            ("all but one", ["x", "7", "x"], [3, 7, 5], 4),
            ("as before, and bad ones", ["x", "7", "y"], [3, 7, 5], 4),
            ("as it is in use", ["3", "7", "5"], [3, 7, 5], 4),
            ("two that fit together alone", ["20", "30", "x"], [20, 30, 5], 5),
            ("one that does not fit those in use", ["10", "30", "x"], [20, 30, 5], 5),
            ("one that fits none", ["1", "12", "5"], [20, 12, 5], 6),
            ("two of which either fits: the first counts more", ["5", "25", "5"], [5, 12, 5], 7),
            ("one that fits when the other is taken", ["40", "50", "5"], [40, 50, 5], 9),
        ] {
            put(texts);
            kept.reread().await;
            assert_eq!((&kept.now()[..], kept.changes()), (&numbers[..], changes), "{what}");
        }
    }

    #[tokio::test]
    async fn a_content_that_its_parser_panics_at_holds_back_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["a", "b"].map(|name| dir.path().join(name));
        let put = |texts: [&str; 2]| {
            paths.iter().zip(texts).for_each(|(path, text)| std::fs::write(path, text).unwrap());
        };
        put(["1", "1"]);
        let sources = paths.iter().map(|path| vec![Source::file(path)]).collect();
        let kept = Kept::new("numbers", sources, |parts, _| {
            assert!(parts.iter().all(|part| part[0] != b"panic"), "as the parser of a library");
            Ok([parse(parts[0])?, parse(parts[1])?])
        });
        let kept = kept.unwrap();
        for (texts, expected) in [
            (["panic", "2"], ([1, 2], 1)),
            (["3", "panic"], ([3, 2], 2)),
            (["panic", "panic"], ([3, 2], 2)),
            (["4", "x"], ([4, 2], 3)),
            (["5", "5"], ([5, 5], 4)),
        ] {
            put(texts);
            kept.reread().await;
            assert_eq!((*kept.now(), kept.changes()), expected, "{texts:?}");
        }
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

    /// As `<(...)` of a shell is, whose second reader would wait for ever.
    #[cfg(unix)]
    #[test]
    fn a_pipe_that_two_parts_are_made_of_is_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("number");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let part = vec![Source::file(&path)];
        let (done, made) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let kept = Kept::new("numbers", vec![part.clone(), part], |parts, _| {
                Ok([parse(parts[0])?, parse(parts[1])?])
            });
            done.send(*kept.unwrap().now())
        });
        std::fs::write(&path, "1").unwrap();
        assert_eq!(made.recv_timeout(Duration::from_secs(30)).unwrap(), [1, 1]);
    }

    #[test]
    fn no_content_is_shown() {
        let kept = Kept::new("a secret", vec![vec![Source::given("hunter2")]], |parts, _| {
            Ok(String::from_utf8_lossy(&parts[0][0]).into_owned())
        });
        let shown = format!("{:?} {:?}", kept, Source::given("hunter2"));
        assert!(!shown.contains("hunter2") && shown.contains("a secret"), "{shown}");
    }
}
