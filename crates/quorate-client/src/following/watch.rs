//! [`Watch`]: what an application holds of a subscription. The work is done by the task in
//! `following/watch/follow.rs`; between them stand the newest view and the backlog of events.

mod follow;
mod view;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quorate_proto::ClusterId;
use quorate_proto::v1::{Instance, RemoveReason};
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;

pub(crate) use self::view::Backlog;
pub use self::view::View;
use crate::core::Core;
use crate::error::Error;
use crate::following::status::WatchStatus;
use crate::following::stream::Follower;
use crate::types::Selection;

/// What happened to what a watch covers.
///
/// An example is at [`Watch`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum WatchEvent {
    /// The first event, and the only one of its kind: all that there is.
    Snapshot(Arc<View>),
    /// Another cluster answers now (it was founded again, or the addresses lead to another one):
    /// the view is all that this one has. What differs follows, as events like all others; reasons
    /// and revisions of removals are not known.
    Reset {
        /// The cluster that answers now.
        cluster_id: ClusterId,
        /// The revision of it that the view shows.
        revision: u64,
    },
    /// An instance that was not there before.
    Added(Arc<Instance>),
    /// An instance that has changed, also when a new run of its process took it over.
    Modified(Arc<Instance>),
    /// An instance that is gone, or no longer covered.
    Removed {
        /// As it was last.
        instance: Arc<Instance>,
        /// Why; unspecified when it went while the watch was interrupted for long.
        reason: RemoveReason,
        /// When; 0 when it went while the watch was interrupted for long.
        revision: u64,
    },
}

/// A subscription that goes on over every failure of nodes, for as long as it is held; dropping it
/// ends its task at once.
///
/// It gives the same facts in two ways, of which one or both can be used: a view that is always
/// complete ([`Watch::snapshot`], [`Watch::changed`]), and events ([`Watch::next`]).
///
/// ```no_run
/// use quorate_client::{Client, Selection, WatchEvent, WatchStatus};
/// # async fn example(client: Client) {
/// let mut everything = client.watch(Selection::prefix(""));
/// while let Some(event) = everything.next().await {
///     match event {
///         WatchEvent::Snapshot(view) => println!("{} at revision {}", view.len(), view.revision()),
///         WatchEvent::Reset { cluster_id, .. } => println!("cluster {cluster_id} answers now"),
///         WatchEvent::Added(instance) => println!("+ {}/{}", instance.service, instance.id),
///         WatchEvent::Modified(instance) => println!("~ {}/{}", instance.service, instance.id),
///         WatchEvent::Removed { instance, reason, .. } => println!("- {} {reason:?}", instance.id),
///         _ => {} // what a later release may add
///     }
///     if let WatchStatus::Interrupted { last_error, .. } = everything.status() {
///         println!("going on elsewhere: {last_error}");
///     }
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Watch {
    events: Arc<Events>,
    view: watch::Receiver<Arc<View>>,
    status: watch::Receiver<WatchStatus>,
    _task: AbortOnDropHandle<()>,
}

impl Watch {
    pub(crate) fn start(core: Arc<Core>, selection: Selection) -> Self {
        let (view_sender, view) = watch::channel(Arc::new(View::default()));
        let (status_sender, status) = watch::channel(WatchStatus::Connecting);
        let events = Arc::new(Events::default());
        let publisher = Publisher { events: events.clone(), view: view_sender };
        let follower = Follower::new(core.clone(), "watch", status_sender);
        let runtime = core.runtime.clone();
        let task = runtime.spawn(follow::follow(core, selection, follower, publisher));
        Self { events, view, status, _task: AbortOnDropHandle::new(task) }
    }

    /// The next event. The first is the snapshot; after it come the changes, in order. A reader
    /// that falls behind gets, for each instance, only the latest of the events that wait for it
    /// (added and removed meanwhile: none at all), so it always comes to the same end and slows no
    /// other. Between two events, what was read of them may be what never was: who keeps a list for
    /// use takes the view. `None` when the task has stopped: [`Watch::status`] says why.
    ///
    /// Can be cancelled at any time without losing an event.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        loop {
            {
                let mut queue = self.events.lock();
                if !queue.begun && self.view.borrow().is_synced() {
                    queue.begun = true;
                    return Some(WatchEvent::Snapshot(self.view.borrow().clone()));
                }
                if let Some(event) = queue.backlog.pop() {
                    return Some(event);
                }
                if queue.ended {
                    return None;
                }
            }
            self.events.arrived.notified().await;
        }
    }

    /// All that is known now. Failures never make it smaller. Before the first snapshot it is empty
    /// and [`View::is_synced`] is false.
    pub fn snapshot(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// Waits until the view differs from the one that this method returned last (at first: from the
    /// empty one), and returns it. Can be cancelled at any time.
    ///
    /// # Errors
    /// The reason, when the task has stopped.
    pub async fn changed(&mut self) -> Result<Arc<View>, Error> {
        match self.view.changed().await {
            Ok(()) => Ok(self.view.borrow_and_update().clone()),
            Err(_closed) => Err(self.why_stopped()),
        }
    }

    /// Waits until the first snapshot is there. To give up after some time, put a timeout around
    /// it.
    ///
    /// # Errors
    /// The reason, when the task has stopped.
    pub async fn synced(&self) -> Result<Arc<View>, Error> {
        let mut view = self.view.clone();
        match view.wait_for(|view| view.is_synced()).await {
            Ok(view) => Ok(view.clone()),
            Err(_closed) => Err(self.why_stopped()),
        }
    }

    /// How the watch stands now.
    pub fn status(&self) -> WatchStatus {
        self.status.borrow().clone()
    }

    /// Follows how the watch stands.
    pub fn watch_status(&self) -> watch::Receiver<WatchStatus> {
        self.status.clone()
    }

    fn why_stopped(&self) -> Error {
        match self.status() {
            WatchStatus::Refused { error } => error,
            _ => Error::Stopped,
        }
    }
}

/// The events between the task and their reader.
#[derive(Debug, Default)]
struct Events {
    /// Also held while the view is replaced, so that a snapshot and the events after it fit
    /// together. Never held across an await; the view's own lock is only taken within it.
    queue: Mutex<Queue>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    /// Whether the reader has its snapshot. Until then no events are kept: the snapshot will have
    /// them.
    begun: bool,
    backlog: Backlog,
    /// Whether the task has stopped.
    ended: bool,
}

impl Events {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task's end of a watch.
#[derive(Debug)]
struct Publisher {
    events: Arc<Events>,
    view: watch::Sender<Arc<View>>,
}

impl Publisher {
    fn publish(&self, view: &View, changes: Vec<WatchEvent>) {
        let mut queue = self.events.lock();
        let view = Arc::new(view.clone());
        self.view.send_if_modified(|published| {
            let first = !published.is_synced();
            *published = view;
            first || !changes.is_empty()
        });
        if queue.begun {
            changes.into_iter().for_each(|event| queue.backlog.push(event));
        }
        drop(queue);
        self.events.arrived.notify_one();
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.events.lock().ended = true;
        self.events.arrived.notify_one();
    }
}
