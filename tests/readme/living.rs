//! Who lives through the loss of nodes: a registration that is kept, and a watch and a live view of
//! its service. Neither may be without it for a moment, and both have to show what is new at the
//! end. Beside it stands a ghost, which nobody keeps.

use std::time::{Duration, Instant};

use quorate_client::{
    Client, Discovery, InstanceBuilder, Registration, RegistrationHandle, Tls, Watch, WatchEvent,
};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::timeout;

const SERVICE: &str = "billing";
const LIVES: &str = "lives";
const GHOST: &str = "ghost";
const LATE: &str = "late";
/// What ends by itself, for the script: later than what lives would, if it were not renewed.
pub(super) const HAUNT: &str =
    "quorate register billing ghost --endpoint http=http://10.0.0.9:1 --ttl 12s --once\n";
/// Longer than any time without a leader: the machine may be slow.
const TTL: Duration = Duration::from_secs(10);
const GONE_WITHIN: Duration = Duration::from_secs(40);
const SHOWN_WITHIN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(5);

pub(super) struct Living {
    runtime: Runtime,
    client: Client,
    kept: RegistrationHandle,
    /// Whether it saw the ghost; why not all was well, otherwise.
    looking: JoinHandle<Result<bool, String>>,
}

impl Living {
    /// Comes into the cluster of these nodes, and is seen there.
    pub(super) fn begin(nodes: impl IntoIterator<Item = String>, tls: Option<Tls>) -> Self {
        let runtime = Runtime::new().unwrap();
        let (client, kept, view, watch) = runtime.block_on(async {
            let builder = Client::builder(nodes);
            let builder = match tls {
                Some(tls) => builder.tls(tls),
                None => builder,
            };
            let client = builder.build().unwrap();
            let kept = client.register(registration(LIVES)).await.unwrap();
            let (view, watch) = (client.discover(SERVICE).unwrap(), client.watch(SERVICE));
            view.synced().await;
            watch.synced().await.unwrap();
            (client, kept, view, watch)
        });
        let looking = runtime.spawn(look(view, watch));
        Self { runtime, client, kept, looking }
    }

    /// Nothing was missing until now, and soon it is alone: the ghost was there, and goes. What
    /// comes then is shown: a watch or a view that stands still shows nothing missing.
    pub(super) fn has_lived(self) {
        let Self { runtime, client, kept, looking } = self;
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
            let late = client.register(registration(LATE)).await.unwrap();
            let looked = timeout(SHOWN_WITHIN, looking).await;
            let saw_ghost = looked.expect("the watch and the view show what is new").unwrap();
            assert_eq!(saw_ghost, Ok(true), "the ghost was there");
            late.deregister().await.unwrap();
            kept.deregister().await.unwrap();
        });
    }
}

fn registration(id: &str) -> Registration {
    let instance = InstanceBuilder::new(SERVICE, id).endpoint("http", "http://h:1");
    Registration::new(instance).ttl(TTL)
}

/// Until both show the late one.
async fn look(view: Discovery, mut watch: Watch) -> Result<bool, String> {
    let (mut saw_ghost, mut saw_late) = (false, false);
    while !saw_late || view.current().get(LATE).is_none() {
        let shown = view.current();
        if shown.get(LIVES).is_none() {
            return Err(format!("the view was without it: {:?}", shown.as_slice()));
        }
        let Ok(event) = timeout(LOOK_EVERY, watch.next()).await else { continue };
        match event {
            Some(WatchEvent::Removed { instance, reason, .. }) if instance.id == LIVES => {
                return Err(format!("the watch lost it: {reason:?}"));
            }
            Some(WatchEvent::Added(instance)) => {
                saw_ghost |= instance.id == GHOST;
                saw_late |= instance.id == LATE;
            }
            Some(WatchEvent::Reset { .. }) => return Err("the watch began anew".to_owned()),
            Some(_) => {}
            None => return Err(format!("the watch ended: {:?}", watch.status())),
        }
    }
    Ok(saw_ghost)
}
