//! The addresses of names. Of each name one lookup is under way, which all probes that want it
//! share: the system's resolver takes as long as it likes, and nobody can end it.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::probe::Failure;
use crate::runtime::blocking;

/// Names that are looked up at the same time: each holds one of the threads that the log store
/// needs too. Of names that are known to be slow, as many besides: where the resolver does not
/// answer for some names, others are looked up.
const LOOKUPS_MAX: usize = 16;

/// A lookup that failed, and took longer than this, is late: of names that there are, and of those
/// that there are not, resolvers know more quickly.
const LATE: Duration = Duration::from_millis(500);

/// Has the addresses of a host, with any port.
type Resolve = dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// What came of a lookup, and, where it failed, whether it was late.
type Found = Result<Vec<SocketAddr>, (Arc<io::Error>, bool)>;

type Looking = Shared<BoxFuture<'static, Found>>;

/// The lookups that are under way, and the places that they take.
pub(super) struct Lookups {
    resolve: Box<Resolve>,
    /// For names that are not known to be slow, and for those that are.
    places: [Arc<Semaphore>; 2],
    under_way: Mutex<HashMap<String, Looking>>,
}

impl Lookups {
    /// Asks the system's resolver.
    pub(super) fn of_system() -> Self {
        Self::new(|host| (host, 0).to_socket_addrs().map(Iterator::collect))
    }

    pub(super) fn new(
        resolve: impl Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
    ) -> Self {
        let places = [(); 2].map(|()| Arc::new(Semaphore::new(LOOKUPS_MAX)));
        Self { resolve: Box::new(resolve), places, under_way: Mutex::default() }
    }

    /// The addresses of a host, with any port. `is_slow`: its name was, the last time. `limit` is
    /// how long it waits for a place, and how long for the lookup.
    ///
    /// # Errors
    /// No place was free in time, or the lookup failed or was late.
    pub(super) async fn look_up(
        self: &Arc<Self>,
        host: &str,
        is_slow: bool,
        limit: Duration,
    ) -> Result<Vec<SocketAddr>, Failure> {
        let looking = match self.under_way(host) {
            Some(looking) => looking,
            None => {
                let place = self.places[usize::from(is_slow)].clone().acquire_owned();
                let Ok(Ok(place)) = timeout(limit, place).await else {
                    return Err(Failure::NoLookup);
                };
                self.begin(host, place)
            }
        };
        match timeout(limit, looking).await {
            Ok(found) => found.map_err(|(error, late)| Failure::Lookup { error, late }),
            Err(_elapsed) => {
                let error = Arc::new(io::ErrorKind::TimedOut.into());
                Err(Failure::Lookup { error, late: true })
            }
        }
    }

    fn under_way(&self, host: &str) -> Option<Looking> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).get(host).cloned()
    }

    /// Begins a lookup, if none of that host has begun while a place was waited for.
    fn begin(self: &Arc<Self>, host: &str, place: OwnedSemaphorePermit) -> Looking {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = || {
            let lookup = Lookup { of: self.clone(), host: host.to_owned(), _place: place };
            let found = blocking(move || lookup.run());
            let found = found.map(|found| {
                found.unwrap_or_else(|panicked| Err((Arc::new(panicked.into()), false)))
            });
            found.boxed().shared()
        };
        under_way.entry(host.to_owned()).or_insert_with(begin).clone()
    }
}

/// One lookup: under way, and with its place, until the resolver is done, also when no probe waits
/// for it any more.
struct Lookup {
    of: Arc<Lookups>,
    host: String,
    _place: OwnedSemaphorePermit,
}

impl Lookup {
    fn run(self) -> Found {
        let began = Instant::now();
        let found = (self.of.resolve)(&self.host);
        found.map_err(|error| (Arc::new(error), began.elapsed() > LATE))
    }
}

impl Drop for Lookup {
    fn drop(&mut self) {
        let mut under_way = self.of.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.remove(&self.host);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;

    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
    use tokio::time::advance;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(2);
    const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    impl Lookups {
        /// Takes all places of those that are not slow, or of those that are.
        pub(in crate::upkeep::health) fn crowd(&self, slow: bool) -> OwnedSemaphorePermit {
            let all = LOOKUPS_MAX.try_into().unwrap();
            self.places[usize::from(slow)].clone().try_acquire_many_owned(all).unwrap()
        }
    }

    /// Lookups that say when they begin, and end when they are told how.
    struct Told {
        lookups: Arc<Lookups>,
        begun: UnboundedReceiver<String>,
        answer: mpsc::Sender<io::Result<()>>,
    }

    impl Told {
        fn new() -> Self {
            let (begins, begun) = unbounded_channel();
            let (answer, answers) = mpsc::channel::<io::Result<()>>();
            let answers = Mutex::new(answers);
            let lookups = Lookups::new(move |host| {
                begins.send(host.to_owned()).unwrap();
                let answer = answers.lock().unwrap().recv();
                answer.expect("the test goes on").map(|()| vec![ADDRESS])
            });
            Self { lookups: Arc::new(lookups), begun, answer }
        }

        fn free(&self) -> [usize; 2] {
            self.lookups.places.each_ref().map(|places| places.available_permits())
        }

        /// One that fails after so long: whether it was late.
        async fn is_late_after(&mut self, took: Duration, kind: io::ErrorKind) -> bool {
            let lookups = self.lookups.clone();
            let fails = async {
                self.begun.recv().await.unwrap();
                advance(took).await;
                self.answer.send(Err(kind.into())).unwrap();
            };
            match tokio::join!(lookups.look_up("db", false, LIMIT), fails) {
                (Err(Failure::Lookup { error, late }), ()) if error.kind() == kind => late,
                (other, ()) => panic!("{other:?}"),
            }
        }
    }

    /// As where the resolver gives up by itself: its own words say nothing of how long it took.
    #[tokio::test(start_paused = true)]
    async fn a_lookup_that_failed_and_took_long_is_late_whatever_is_said() {
        let mut told = Told::new();
        for kind in [io::ErrorKind::NotFound, io::ErrorKind::Other, io::ErrorKind::TimedOut] {
            assert!(!told.is_late_after(LATE, kind).await, "{kind:?}");
            assert!(told.is_late_after(LATE + Duration::from_millis(1), kind).await, "{kind:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_host_one_lookup_is_under_way_which_all_share() {
        let mut told = Told::new();
        let lookups = told.lookups.clone();
        let given_up = lookups.look_up("db", true, Duration::from_millis(100));
        let begins = async {
            assert_eq!(told.begun.recv().await.as_deref(), Some("db"));
            advance(Duration::from_millis(100)).await;
        };
        let (given_up, ()) = tokio::join!(given_up, begins);
        assert!(matches!(given_up, Err(Failure::Lookup { late: true, .. })), "{given_up:?}");
        assert_eq!(told.free(), [LOOKUPS_MAX, LOOKUPS_MAX - 1], "it goes on");

        // No place is free for those that follow; they need none.
        let _others = told.lookups.crowd(false);
        let ended = async { told.answer.send(Ok(())).unwrap() };
        let (first, second, ()) = tokio::join!(
            biased;
            lookups.look_up("db", false, LIMIT),
            lookups.look_up("db", true, LIMIT),
            ended
        );
        assert_eq!([first.unwrap(), second.unwrap()], [[ADDRESS], [ADDRESS]]);
        assert!(told.begun.try_recv().is_err(), "no other one was begun");

        // It is over: the next one is another, and has to have a place.
        assert_eq!(told.free(), [0, LOOKUPS_MAX]);
        let none = lookups.look_up("db", false, LIMIT).await;
        assert!(matches!(none, Err(Failure::NoLookup)), "{none:?}");
        let ended = async { told.answer.send(Ok(())).unwrap() };
        let (again, ()) = tokio::join!(lookups.look_up("db", true, LIMIT), ended);
        assert_eq!(again.unwrap(), [ADDRESS]);
        assert_eq!(told.begun.recv().await.as_deref(), Some("db"));
    }

    /// Two that wait for a place at the same time.
    #[tokio::test(start_paused = true)]
    async fn whose_host_is_looked_up_when_its_turn_comes_leaves_its_place_to_others() {
        let mut told = Told::new();
        let lookups = told.lookups.clone();
        let others = told.lookups.crowd(false);
        let looks = async {
            drop(others);
            told.begun.recv().await.unwrap();
            assert_eq!(told.free(), [LOOKUPS_MAX - 1, LOOKUPS_MAX]);
            told.answer.send(Ok(())).unwrap();
        };
        let (first, second, ()) = tokio::join!(
            biased;
            lookups.look_up("db", false, LIMIT),
            lookups.look_up("db", false, LIMIT),
            looks
        );
        assert_eq!([first.unwrap(), second.unwrap()], [[ADDRESS], [ADDRESS]]);
        assert!(told.begun.try_recv().is_err(), "one was begun");
    }

    #[tokio::test]
    async fn after_a_resolver_that_panics_another_lookup_is_begun() {
        let calls = AtomicU32::new(0);
        let lookups = Lookups::new(move |_| match calls.fetch_add(1, Ordering::Relaxed) {
            0 => panic!("as the test wants it"),
            _ => Ok(vec![ADDRESS]),
        });
        let lookups = Arc::new(lookups);
        let failed = lookups.look_up("db", false, LIMIT).await;
        assert!(matches!(failed, Err(Failure::Lookup { late: false, .. })), "{failed:?}");
        assert_eq!(lookups.look_up("db", false, LIMIT).await.unwrap(), [ADDRESS]);
    }
}
