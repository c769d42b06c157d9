//! [`Discovery`]: a live view of one service, for its callers. What it shows is an immutable value
//! behind one pointer; the work is done by the hub that all views of a client share
//! (`following/discovery/hub.rs`).

mod audit;
#[cfg(feature = "cache")]
mod cache;
#[cfg(not(feature = "cache"))]
#[path = "discovery/no_cache.rs"]
mod cache;
mod hub;
mod instances;
mod topics;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quorate_proto::limits;
use quorate_proto::v1::RemoveReason;
use tokio::sync::watch;
use tokio::time::timeout;

use self::hub::Hub;
pub use self::instances::{Instances, Origin, Selector};
use self::topics::{Feed, Queue};
use crate::core::Core;
use crate::error::{Attempt, Code, Error};
use crate::following::status::WatchStatus;
use crate::following::watch::WatchEvent;
use crate::types::Instance;

/// A live view of one service: a snapshot, then kept current by the registry for as long as it is
/// held. Clones share it.
///
/// No failure makes it smaller. While no node can be reached it stays as it was, and
/// [`Discovery::age`] says how old that is.
///
/// ```no_run
/// # async fn example(client: quorate_client::Client) -> Result<(), quorate_client::Error> {
/// let payments = client.discover("payments")?;
/// for instance in payments.usable().await?.iter() {
///     println!("{}", instance.endpoints["http"]);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Discovery {
    inner: Arc<Inner>,
    /// Of this clone: the changes that it has reported.
    seen: watch::Receiver<()>,
}

#[derive(Debug)]
struct Inner {
    hub: Arc<Hub>,
    feed: Arc<Feed>,
    call_timeout: Duration,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.hub.remove(&self.feed);
    }
}

/// A node that has not seen yet what this client registered a moment ago has this long to see it.
const OWN_WRITES_WITHIN: Duration = Duration::from_secs(1);

/// What follows services for all live views of a client.
#[derive(Debug)]
pub(crate) struct Hubs {
    core: Arc<Core>,
    /// The views hold them, too. One that follows nothing goes when the next view is made.
    running: Mutex<Vec<Arc<Hub>>>,
}

impl Hubs {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core, running: Mutex::default() }
    }

    pub(crate) fn discover(&self, selector: Selector) -> Result<Discovery, Error> {
        // One bad name would have the stream refused for all services on it: so it is refused here.
        check_name("service", &selector.service)?;
        let Core { options, .. } = &*self.core;
        let namespace = selector.namespace.clone().unwrap_or_else(|| options.namespace.clone());
        if !namespace.is_empty() {
            check_name("namespace", &namespace)?;
        }
        let feed = Arc::new(Feed::new(selector));
        let hub = self.add(namespace, &feed);
        let seen = feed.changes.subscribe();
        let call_timeout = options.call_timeout;
        Ok(Discovery { inner: Arc::new(Inner { hub, feed, call_timeout }), seen })
    }

    /// The age of the oldest live view; `None`: there is none, or one of unknown age.
    pub(crate) fn age(&self) -> Option<Duration> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let ages = running.iter().flat_map(|hub| hub.ages());
        ages.collect::<Option<Vec<_>>>()?.into_iter().max()
    }

    /// Adds a view to the hub of the namespace that follows the service or has room for it, else
    /// to a new one.
    fn add(&self, namespace: String, feed: &Arc<Feed>) -> Arc<Hub> {
        let service = &feed.selector.service;
        // Held until it is added: others look for room, too.
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|hub| Arc::strong_count(hub) > 1 || !hub.follows_nothing());
        let takes = |hub: &&Arc<Hub>| hub.namespace() == namespace && hub.takes(service);
        let found = running.iter().find(takes).cloned();
        let hub = found.unwrap_or_else(|| {
            let hub = Hub::start(self.core.clone(), namespace.clone());
            running.push(hub.clone());
            hub
        });
        hub.add(feed);
        hub
    }
}

/// As the registry would (types.proto).
fn check_name(what: &'static str, name: &str) -> Result<(), Error> {
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    let outer = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    let valid = bytes.len() <= limits::NAME_BYTES
        && bytes.iter().all(inner)
        && outer(bytes.first())
        && outer(bytes.last());
    if valid { Ok(()) } else { Err(Error::InvalidName { what, name: name.to_owned() }) }
}

impl Discovery {
    /// The service.
    pub fn service(&self) -> &str {
        &self.inner.feed.selector.service
    }

    /// What is known now, whatever it is worth ([`Instances::origin`]): a pointer is read, nothing
    /// else.
    pub fn current(&self) -> Arc<Instances> {
        self.inner.feed.current.load_full()
    }

    /// As [`Discovery::current`], without counting the reference: for a look on a hot path.
    pub fn with_current<T>(&self, look: impl FnOnce(&Instances) -> T) -> T {
        look(&self.inner.feed.current.load())
    }

    /// The instances that can be called; waits for the first word of the registry (or some from the
    /// cache), no longer than the call timeout. Where there are none, what this client itself
    /// registered before is waited for, for a second at most.
    ///
    /// # Errors
    /// [`Error::NoInstances`], [`Error::UnknownService`], [`Error::Rejected`] where the registry
    /// refuses the service, and [`Error::Unreachable`] while nothing is known at all: never an
    /// empty list.
    pub async fn usable(&self) -> Result<Arc<Instances>, Error> {
        let within = self.inner.call_timeout;
        let mut instances = match timeout(within, self.answered()).await {
            Ok(answer) => answer?,
            Err(_elapsed) => return Err(self.unreachable(Some(within))),
        };
        if instances.is_empty() && self.inner.hub.is_behind_own_writes(&self.inner.feed) {
            let mut changes = self.inner.feed.changes.subscribe();
            if self.current().is_empty() {
                let _or_late = timeout(OWN_WRITES_WITHIN.min(within), changes.changed()).await;
            }
            instances = self.current();
        }
        self.check(instances)
    }

    /// Waits for the first word of the registry, or some instances from the cache.
    pub(crate) async fn answered(&self) -> Result<Arc<Instances>, Error> {
        // An empty list from the cache says nothing of who is there now.
        let answers = |shown: &Instances| !shown.is_empty() || shown.origin() == Origin::Registry;
        tokio::select! {
            biased;
            instances = self.shown(answers) => Ok(instances),
            error = self.inner.hub.refusal(&self.inner.feed) => Err(error),
        }
    }

    /// As [`Discovery::usable`], from what is known now.
    ///
    /// # Errors
    /// As [`Discovery::usable`].
    pub fn usable_now(&self) -> Result<Arc<Instances>, Error> {
        self.check(self.current())
    }

    fn check(&self, instances: Arc<Instances>) -> Result<Arc<Instances>, Error> {
        if !instances.is_empty() {
            return Ok(instances);
        }
        let service = self.service().to_owned();
        match (instances.origin(), instances.is_known()) {
            (Origin::Nowhere | Origin::Cache, _) => Err(self.unreachable(None)),
            (Origin::Registry, true) => Err(Error::NoInstances { service }),
            (Origin::Registry, false) => Err(Error::UnknownService { service }),
        }
    }

    /// Why nothing is known, where it was waited for in vain, if it was.
    fn unreachable(&self, within: Option<Duration>) -> Error {
        match self.status() {
            WatchStatus::Interrupted {
                last_error: Error::Unreachable { operation, tried, .. },
                ..
            } => Error::Unreachable { operation, within, tried },
            WatchStatus::Interrupted { last_error, .. } => last_error,
            WatchStatus::Refused { error } => error,
            _ => Error::Unreachable {
                operation: "discover",
                within,
                tried: vec![Attempt {
                    address: "the registry".to_owned(),
                    code: Code::Unavailable,
                    reason: "nothing has arrived yet".to_owned(),
                    mismatch: None,
                    answered: false,
                }],
            },
        }
    }

    /// Waits until something is known, from the registry or the cache.
    pub async fn synced(&self) -> Arc<Instances> {
        self.shown(|shown| shown.origin() != Origin::Nowhere).await
    }

    /// Waits until this holds of what is shown.
    async fn shown(&self, holds: impl Fn(&Instances) -> bool) -> Arc<Instances> {
        let mut changes = self.inner.feed.changes.subscribe();
        loop {
            let current = self.current();
            if holds(&current) {
                return current;
            }
            if changes.changed().await.is_err() {
                // Not while this handle holds the sender.
                return current;
            }
        }
    }

    /// Waits until the view changes (or is there at all), and returns it. Changes since this clone
    /// was made or last asked count; several of them are one. Can be cancelled at any time.
    pub async fn changed(&mut self) -> Arc<Instances> {
        // The sender lives as long as this handle.
        let _never_closed = self.seen.changed().await;
        self.current()
    }

    /// Each change from now on, after an `Added` for each instance that is shown already.
    pub fn listen(&self) -> Listener {
        Listener { queue: self.inner.hub.listen(&self.inner.feed), _view: self.clone() }
    }

    /// How old the view is at most: it shows everything that was acknowledged longer ago than this.
    /// `None`: no node has said so since this process started. It grows where nothing new arrives:
    /// no node can be reached, the one that is has lost the others, or the service is refused.
    /// While all is well it is some seconds at most, as the nodes say at least every 5 s unless
    /// configured.
    pub fn age(&self) -> Option<Duration> {
        self.inner.hub.age(&self.inner.feed)
    }

    /// How the stream behind it stands.
    pub fn status(&self) -> WatchStatus {
        match self.inner.hub.refused(&self.inner.feed) {
            Some(error) => WatchStatus::Refused { error },
            None => self.inner.hub.shared.status.borrow().clone(),
        }
    }
}

/// What happened to what a view shows.
///
/// An example is at the head of [the crate](crate).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum DiscoveryEvent {
    /// An instance that was not shown before.
    Added(Arc<Instance>),
    /// An instance that has changed, also when a new run of its process took it over.
    Updated(Arc<Instance>),
    /// An instance that is gone, or not among what the selector admits any more.
    Removed {
        /// As it was last.
        instance: Arc<Instance>,
        /// Why; unspecified when it is no longer admitted, or went while the stream was interrupted
        /// for long.
        reason: RemoveReason,
    },
}

/// The changes of a view, in order, each as soon as the view shows it. A reader that keeps up gets
/// each of them; one that falls behind by more than 1,024 gets, for each instance, only the latest
/// change that waits (added and removed meanwhile: none), comes to the same end, and slows no
/// other.
///
/// An example is at the head of [the crate](crate).
#[derive(Debug)]
pub struct Listener {
    queue: Arc<Queue>,
    _view: Discovery,
}

impl Listener {
    /// Waits for the next change. Can be cancelled at any time without losing one.
    pub async fn next(&mut self) -> DiscoveryEvent {
        loop {
            let event = self.queue.pop();
            match event {
                Some(WatchEvent::Added(instance)) => return DiscoveryEvent::Added(instance),
                Some(WatchEvent::Modified(instance)) => return DiscoveryEvent::Updated(instance),
                Some(WatchEvent::Removed { instance, reason, .. }) => {
                    return DiscoveryEvent::Removed { instance, reason };
                }
                Some(WatchEvent::Snapshot(_) | WatchEvent::Reset { .. }) | None => {
                    self.queue.arrived.notified().await
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
