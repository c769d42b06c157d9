//! Continuous load through the client crate: processes that register, update and leave, renewals,
//! fetches, watches. Every call is judged where it is made; [`Load::finish`] compares what all of
//! them know at the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use quorate_client::{
    Client, Consistency, FetchOptions, InstanceBuilder, Registration, RegistrationHandle,
    RegistrationState, Selection, Update, Watch, WatchEvent,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::harness::{Cluster, SOON, within};

/// Every service of the load begins so.
const PREFIX: &str = "load-";
/// Renewals come every third of it: some, in each test. Much longer than a busy machine keeps a
/// client from its turn.
const TTL: Duration = Duration::from_secs(15);
const REGISTRARS: usize = 3;
const FETCHERS: usize = 2;
const WATCHERS: usize = 2;
/// Registered before everything begins; no read and no watcher may ever miss one of them.
const STABLE: usize = 20;
/// Between two calls of one caller.
const PAUSE: Duration = Duration::from_millis(10);
/// When nothing has arrived for this long after the end, everything has.
const QUIET: Duration = Duration::from_secs(1);

/// What runs.
pub(crate) struct Load {
    client: Client,
    stop: Arc<AtomicBool>,
    stop_watchers: Arc<AtomicBool>,
    calls: Arc<Calls>,
    stable: Vec<RegistrationHandle>,
    registrars: JoinSet<Vec<Kept>>,
    others: JoinSet<()>,
    watchers: JoinSet<Followed>,
}

/// What came of the calls.
#[derive(Default)]
struct Calls {
    made: AtomicU64,
    slowest_ms: AtomicU64,
    failures: std::sync::Mutex<Vec<String>>,
}

/// A registration that is to be there at the end, with its weight.
struct Kept {
    handle: RegistrationHandle,
    key: (String, String),
    weight: u32,
}

/// What a watcher came to.
struct Followed {
    watch: Watch,
    weights: Weights,
}

/// Instances with their weights.
type Weights = BTreeMap<(String, String), u32>;

impl Calls {
    /// Counts a call; notes its failure.
    async fn judge<T, E: std::fmt::Debug>(
        &self,
        what: &str,
        call: impl Future<Output = Result<T, E>>,
    ) -> Option<T> {
        let begun = Instant::now();
        let done = call.await;
        self.made.fetch_add(1, Ordering::Relaxed);
        let took_ms = begun.elapsed().as_millis() as u64;
        self.slowest_ms.fetch_max(took_ms, Ordering::Relaxed);
        match done {
            Ok(done) => Some(done),
            Err(error) => {
                self.fail(format!("{what} after {took_ms} ms: {error:?}"));
                None
            }
        }
    }

    fn fail(&self, failure: String) {
        self.failures.lock().expect("no panic under this lock").push(failure);
    }
}

impl Load {
    /// Begins; the client knows the nodes that run now, and has to find the others by itself.
    pub(crate) async fn start(cluster: &Cluster) -> Self {
        let client = cluster.client().await;
        let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(Calls::default()));
        let mut stable = Vec::new();
        for at in 0..STABLE {
            let registration = registration(&format!("{PREFIX}stable"), &format!("s{at}"));
            stable.push(client.register(registration).await.expect("a first registration"));
        }
        let mut load = Self {
            client: client.clone(),
            stop: stop.clone(),
            stop_watchers: Arc::default(),
            calls: calls.clone(),
            stable,
            registrars: JoinSet::new(),
            others: JoinSet::new(),
            watchers: JoinSet::new(),
        };
        for at in 0..REGISTRARS {
            load.registrars.spawn(register(client.clone(), stop.clone(), calls.clone(), at));
        }
        for at in 0..FETCHERS {
            load.others.spawn(fetch(client.clone(), stop.clone(), calls.clone(), at));
        }
        for _ in 0..WATCHERS {
            let watch = client.watch(Selection::prefix(PREFIX));
            load.watchers.spawn(follow(watch, load.stop_watchers.clone()));
        }
        load
    }

    /// Waits until some more calls were made: that nothing stands still.
    pub(crate) async fn goes_on(&self) {
        let before = self.calls.made.load(Ordering::Relaxed);
        // Many calls, each of which may take long on a busy machine.
        within(3 * SOON, "the load goes on", || async {
            (self.calls.made.load(Ordering::Relaxed) >= before + 50).then_some(())
        })
        .await;
    }

    /// Ends the load and checks all of it.
    pub(crate) async fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        let kept: Vec<Kept> = self.registrars.join_all().await.into_iter().flatten().collect();
        self.others.join_all().await;
        let (made, slowest_ms) = (&self.calls.made, &self.calls.slowest_ms);
        let failures = self.calls.failures.lock().expect("no panic under this lock").clone();
        assert!(failures.is_empty(), "of {made:?} calls failed {}: {failures:#?}", failures.len());
        assert!(made.load(Ordering::Relaxed) > 300, "too little load: {made:?} calls");
        eprintln!("{made:?} calls, the slowest took {slowest_ms:?} ms");

        let handles = self.stable.iter().chain(kept.iter().map(|kept| &kept.handle));
        for handle in handles {
            // A renewal that is late is tried again.
            let kept = timeout(SOON, handle.registered()).await;
            assert!(matches!(kept, Ok(Ok(_))), "every one is kept: {:?}", handle.state());
        }
        let mut expected: Weights = kept.iter().map(|k| (k.key.clone(), k.weight)).collect();
        for at in 0..STABLE {
            expected.insert((format!("{PREFIX}stable"), format!("s{at}")), 100);
        }
        let options = FetchOptions::new(Selection::prefix(PREFIX));
        let fetched = self.client.fetch_with(&options).await.expect("a fetch at the end");
        let found = fetched.services.into_iter().flatten().flat_map(|service| service.instances);
        let found: Weights = found.map(|i| ((i.service, i.id), i.weight)).collect();
        assert_eq!(found, expected, "every registration is there at the end, and nothing else");

        self.stop_watchers.store(true, Ordering::Relaxed);
        for Followed { watch, weights } in self.watchers.join_all().await {
            let view = watch.snapshot();
            let seen: Weights =
                view.iter().map(|i| ((i.service.clone(), i.id.clone()), i.weight)).collect();
            assert_eq!(seen, expected, "a watcher's view");
            assert_eq!(weights, expected, "what a watcher's events come to");
        }
    }
}

fn registration(service: &str, id: &str) -> Registration {
    let instance = InstanceBuilder::new(service, id).endpoint("http", "http://10.0.0.1:80");
    Registration::new(instance).ttl(TTL)
}

/// One process after the other: registers, reads itself, changes; every third leaves.
async fn register(
    client: Client,
    stop: Arc<AtomicBool>,
    calls: Arc<Calls>,
    registrar: usize,
) -> Vec<Kept> {
    let mut kept = Vec::new();
    let service = format!("{PREFIX}{registrar}");
    let mut at = 0;
    while !stop.load(Ordering::Relaxed) {
        at += 1;
        let id = format!("p{at}");
        let registering = client.register(registration(&service, &id));
        let Some(handle) = calls.judge("register", registering).await else { continue };
        let mut weight = 100;
        if let RegistrationState::Registered(lease) = handle.state() {
            // S2.5: whichever node answers has it.
            let options = FetchOptions::new(service.as_str())
                .consistency(Consistency::Local)
                .min_revision(lease.revision);
            let own = calls.judge("read itself", client.fetch_with(&options)).await;
            let services = own.and_then(|own| own.services).unwrap_or_default();
            let found = services.iter().flat_map(|s| &s.instances).any(|i| i.id == id);
            if !services.is_empty() && !found {
                calls.fail(format!("{id} does not read itself at {}", lease.revision));
            }
        }
        if at % 2 == 0 {
            weight = at;
            calls.judge("update", handle.update(Update::new().weight(weight))).await;
        }
        if at % 3 == 0 {
            calls.judge("deregister", handle.deregister()).await;
        } else {
            kept.push(Kept { handle, key: (service.clone(), id), weight });
        }
        sleep(PAUSE).await;
    }
    kept
}

async fn fetch(client: Client, stop: Arc<AtomicBool>, calls: Arc<Calls>, fetcher: usize) {
    let stable = format!("{PREFIX}stable");
    while !stop.load(Ordering::Relaxed) {
        if fetcher.is_multiple_of(2) {
            let fetched = calls.judge("fetch", client.fetch(&stable)).await;
            if let Some(found) = fetched.map(|service| service.instances.len())
                && found != STABLE
            {
                calls.fail(format!("a fetch found {found} of {STABLE}"));
            }
        } else {
            let consistency = Consistency::Linearizable;
            calls.judge("list", client.list_services(PREFIX, consistency)).await;
        }
        sleep(PAUSE).await;
    }
}

/// Takes events until the load is over and nothing comes any more.
async fn follow(mut watch: Watch, stop: Arc<AtomicBool>) -> Followed {
    let mut weights = Weights::new();
    let (mut begun, mut complete) = (false, false);
    loop {
        let Ok(event) = timeout(QUIET, watch.next()).await else {
            match stop.load(Ordering::Relaxed) {
                true => return Followed { watch, weights },
                false => continue,
            }
        };
        let key = |i: &quorate_client::Instance| (i.service.clone(), i.id.clone());
        match event.expect("a watch goes on for ever") {
            WatchEvent::Snapshot(view) => {
                assert!(!begun, "only one snapshot");
                begun = true;
                weights = view.iter().map(|i| (key(i), i.weight)).collect();
            }
            WatchEvent::Added(i) => {
                assert_eq!(weights.insert(key(&i), i.weight), None, "added twice: {i:?}");
            }
            WatchEvent::Modified(i) => {
                assert!(weights.insert(key(&i), i.weight).is_some(), "not there: {i:?}");
            }
            WatchEvent::Reset { cluster_id, .. } => panic!("another cluster: {cluster_id}"),
            WatchEvent::Removed { instance, .. } => {
                assert!(weights.remove(&key(&instance)).is_some(), "not there: {instance:?}");
            }
            other => panic!("{other:?}"),
        }
        // The node that it begins with may be a moment behind. From then on, none is ever lost.
        let is_there =
            |at: &usize| weights.contains_key(&(format!("{PREFIX}stable"), format!("s{at}")));
        let missing = (0..STABLE).find(|at| !is_there(at));
        complete |= missing.is_none();
        assert!(!complete || missing.is_none(), "a watcher lost s{missing:?}");
    }
}
