//! Who lives through the loss of nodes: a registration that is kept, and a watch and a live view of
//! its service. Neither may be without it for a moment. Beside it stands a ghost, which nobody
//! keeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quorate_client::{
    Client, Discovery, InstanceBuilder, Registration, RegistrationHandle, Watch, WatchEvent,
};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::timeout;

const SERVICE: &str = "billing";
const LIVES: &str = "lives";
const GHOST: &str = "ghost";
/// What ends by itself, for the script: later than what lives would, if it were not renewed.
pub(super) const HAUNT: &str =
    "quorate register billing ghost --endpoint http=http://10.0.0.9:1 --ttl 12s --once\n";
/// Longer than any time without a leader: the machine may be slow.
const TTL: Duration = Duration::from_secs(10);
const GONE_WITHIN: Duration = Duration::from_secs(40);
const LOOK_EVERY: Duration = Duration::from_millis(5);

pub(super) struct Living {
    runtime: Runtime,
    client: Client,
    kept: RegistrationHandle,
    stop: Arc<AtomicBool>,
    /// Whether it saw the ghost; why not all was well, otherwise.
    looking: JoinHandle<Result<bool, String>>,
}

impl Living {
    /// Comes into the cluster of these nodes, and is seen there.
    pub(super) fn begin(nodes: impl IntoIterator<Item = String>) -> Self {
        let runtime = Runtime::new().unwrap();
        let (client, kept, view, watch) = runtime.block_on(async {
            let client = Client::builder(nodes).build().unwrap();
            let instance = InstanceBuilder::new(SERVICE, LIVES).endpoint("http", "http://h:1");
            let kept = client.register(Registration::new(instance).ttl(TTL)).await.unwrap();
            let (view, watch) = (client.discover(SERVICE).unwrap(), client.watch(SERVICE));
            view.synced().await;
            watch.synced().await.unwrap();
            (client, kept, view, watch)
        });
        let stop = Arc::new(AtomicBool::new(false));
        let looking = runtime.spawn(look(view, watch, stop.clone()));
        Self { runtime, client, kept, stop, looking }
    }

    /// Nothing was missing until now, and soon it is alone: the ghost was there, and goes.
    pub(super) fn has_lived(self) {
        let Self { runtime, client, kept, stop, looking } = self;
        runtime.block_on(async {
            let deadline = Instant::now() + GONE_WITHIN;
            loop {
                let found = client.fetch(SERVICE).await;
                let ids = found.map(|found| {
                    let ids = found.instances.iter().map(|instance| instance.id.clone());
                    ids.collect::<Vec<_>>()
                });
                match ids {
                    Ok(ids) if ids == [LIVES] => break,
                    found => assert!(Instant::now() < deadline, "a ghost stays: {found:?}"),
                }
                tokio::time::sleep(LOOK_EVERY * 20).await;
            }
            stop.store(true, Ordering::Relaxed);
            let saw_ghost = looking.await.unwrap();
            assert_eq!(saw_ghost, Ok(true), "the ghost was there");
            kept.deregister().await.unwrap();
        });
    }
}

async fn look(view: Discovery, mut watch: Watch, stop: Arc<AtomicBool>) -> Result<bool, String> {
    let mut saw_ghost = false;
    while !stop.load(Ordering::Relaxed) {
        let shown = view.current();
        if shown.get(LIVES).is_none() {
            return Err(format!("the view was without it: {:?}", shown.as_slice()));
        }
        let Ok(event) = timeout(LOOK_EVERY, watch.next()).await else { continue };
        match event {
            Some(WatchEvent::Removed { instance, reason, .. }) if instance.id == LIVES => {
                return Err(format!("the watch lost it: {reason:?}"));
            }
            Some(WatchEvent::Added(instance)) => saw_ghost |= instance.id == GHOST,
            Some(WatchEvent::Reset { .. }) => return Err("the watch began anew".to_owned()),
            Some(_) => {}
            None => return Err(format!("the watch ended: {:?}", watch.status())),
        }
    }
    Ok(saw_ghost)
}
