//! tokio as the Raft library uses it, except that its randomness (election timeouts, the phase of
//! its tick) can be seeded for simulations, which would not run the same way twice without it.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use openraft::{AsyncRuntime, OptionalSend, TokioRuntime};
use rand_core::TryRng;
use tokio::task::{AbortHandle, JoinError, JoinHandle};
use tokio::time::timeout;

thread_local! {
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From now on, all that is random in the nodes that run on this thread follows from the seed. For
/// simulations.
pub fn seed_this_thread(seed: u64) {
    SEED.set(Some(seed));
}

/// Does work that blocks: on a thread of its own kind, or, in a seeded simulation, at once, since
/// threads finish in any order.
///
/// # Errors
/// It panicked.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    match SEED.get() {
        Some(_) => Ok(work()),
        None => tokio::task::spawn_blocking(work).await,
    }
}

/// Reads of files that may never come back, as of a server that is gone. Each has a thread until it
/// does, and there are only so many: of each file, one is under way.
#[derive(Debug, Default)]
pub(crate) struct Reads(Mutex<BTreeMap<PathBuf, AbortHandle>>);

/// Why a file was not read.
#[derive(Debug)]
pub(crate) enum Unread {
    /// Not within the time, or not even the last time.
    Slow,
    Panicked(JoinError),
}

impl Reads {
    /// What is read of a file.
    ///
    /// # Errors
    /// It is slow, and may be under way for longer, as it may be where its caller went away; or it
    /// panicked.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        path: &Path,
        within: Duration,
        read: impl FnOnce(&Path) -> T + Send + 'static,
    ) -> Result<T, Unread> {
        if SEED.get().is_some() {
            return Ok(read(path));
        }
        let reading = self.begin(path, read).ok_or(Unread::Slow)?;
        match timeout(within, reading).await {
            Ok(read) => read.map_err(Unread::Panicked),
            Err(_elapsed) => Err(Unread::Slow),
        }
    }

    /// `None`: one is under way. One that has come back since tells what was there before.
    fn begin<T: Send + 'static>(
        &self,
        path: &Path,
        read: impl FnOnce(&Path) -> T + Send + 'static,
    ) -> Option<JoinHandle<T>> {
        // To begin a thread panics where the system has none.
        let mut under_way = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if under_way.get(path).is_some_and(|before| !before.is_finished()) {
            return None;
        }
        let of = path.to_owned();
        let reading = tokio::task::spawn_blocking(move || read(&of));
        under_way.insert(path.to_owned(), reading.abort_handle());
        Some(reading)
    }
}

/// The Raft library's runtime: tokio's, with randomness that can be seeded.
#[derive(Debug)]
pub(crate) struct Runtime(TokioRuntime);

impl AsyncRuntime for Runtime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> =
        <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = SplitMix;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(error)
    }

    fn thread_rng() -> SplitMix {
        let Some(seed) = SEED.get() else {
            return SplitMix(RandomState::new().hash_one(0));
        };
        SEED.set(Some(seed.wrapping_add(1)));
        SplitMix(seed)
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F: Future<Output = T>, T>(&mut self, future: F) -> T {
        self.0.block_on(future)
    }
}

/// A random number; in a seeded simulation, the next of its seed.
pub(crate) fn random() -> u64 {
    let Ok(random) = Runtime::thread_rng().try_next_u64();
    random
}

/// SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014): good
/// enough to keep nodes from standing for election at the same moment.
#[derive(Debug)]
pub(crate) struct SplitMix(u64);

impl TryRng for SplitMix {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok((self.try_next_u64()? >> 32) as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Ok(mixed ^ (mixed >> 31))
    }

    fn try_fill_bytes(&mut self, into: &mut [u8]) -> Result<(), Infallible> {
        for part in into.chunks_mut(8) {
            let bytes = self.try_next_u64()?.to_le_bytes();
            part.copy_from_slice(&bytes[..part.len()]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;

    /// A mount that hung took another thread every few seconds, until no file was read any more,
    /// and no snapshot written.
    #[tokio::test]
    async fn a_file_that_is_not_read_takes_one_thread() {
        const SOON: Duration = Duration::from_millis(20);
        const LATE: Duration = Duration::from_secs(10);
        let (reads, begun) = (Reads::default(), Arc::new(AtomicU32::new(0)));
        let (back, comes_back) = mpsc::channel::<()>();
        let (hung, well) = (Path::new("/hung"), Path::new("/well"));
        let count = |number: u32| {
            let begun = begun.clone();
            move |_: &Path| {
                begun.fetch_add(1, Ordering::Relaxed);
                number
            }
        };
        let first = reads.read(hung, SOON, move |_| {
            let _until_then = comes_back.recv();
            1
        });
        assert!(matches!(first.await, Err(Unread::Slow)));
        for _ in 0..3 {
            let again = reads.read(hung, LATE, count(2)).await;
            assert!(matches!(again, Err(Unread::Slow)), "said at once");
        }
        assert_eq!(begun.load(Ordering::Relaxed), 0, "none is begun beside it");
        assert_eq!(reads.read(well, LATE, count(3)).await.unwrap(), 3);
        back.send(()).unwrap();
        let deadline = Instant::now() + LATE;
        let read = loop {
            match reads.read(hung, LATE, count(4)).await {
                Ok(read) => break read,
                Err(_) => assert!(Instant::now() < deadline, "it came back"),
            }
            tokio::task::yield_now().await;
        };
        assert_eq!(read, 4, "not what was read then");
        assert_eq!(begun.load(Ordering::Relaxed), 2);
    }

    /// As a status whose caller does not wait for it.
    #[tokio::test]
    async fn a_read_that_is_given_up_before_it_is_slow_takes_its_thread_all_the_same() {
        const LATE: Duration = Duration::from_secs(10);
        let (reads, hung) = (Reads::default(), Path::new("/hung"));
        let (back, comes_back) = mpsc::channel::<()>();
        let first = reads.read(hung, LATE, move |_| comes_back.recv().is_ok());
        assert!(timeout(Duration::ZERO, first).await.is_err(), "it is given up");
        let again = reads.read(hung, LATE, |_| true).await;
        assert!(matches!(again, Err(Unread::Slow)), "none is begun beside it: {again:?}");
        drop(back);
    }
}
