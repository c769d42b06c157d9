//! The task behind a watch: what the messages of its streams do to the view.

use std::sync::Arc;

use quorate_proto::ClusterId;
use quorate_proto::v1::WatchSubscribe;

use super::{Publisher, View, WatchEvent};
use crate::core::Core;
use crate::following::stream::{Ended, Event, Follower, Stream, Taken};
use crate::types::Selection;

/// What the task knows.
#[derive(Debug, Default)]
struct Known {
    view: View,
    /// The registry is not as far as the view: the next stream begins with a snapshot, until which
    /// the view stays.
    anew: bool,
}

/// Runs until it is aborted or the registry refuses the subscription.
pub(super) async fn follow(
    core: Arc<Core>,
    selection: Selection,
    mut follower: Follower,
    publisher: Publisher,
) {
    let namespace = &core.options.namespace;
    let mut known = Known::default();
    loop {
        let node = follower.pick();
        let ended = match follower.open(&node, known.subscribe(namespace, &selection)).await {
            Ok(stream) => receive(&mut follower, stream, &mut known, &publisher).await,
            Err(ended) => ended,
        };
        match ended {
            Ended::Refused => return,
            Ended::Ahead => known.anew = true,
            Ended::Lost => {}
        }
        follower.pause().await;
    }
}

/// Publishes what a stream brings, until it ends.
async fn receive(
    follower: &mut Follower,
    mut stream: Stream,
    known: &mut Known,
    publisher: &Publisher,
) -> Ended {
    loop {
        match follower.next(&mut stream).await {
            Ok(Event::Taken(taken)) => {
                if let Some(changes) = known.take(taken, stream.cluster_id()) {
                    publisher.publish(&known.view, changes);
                }
            }
            Ok(Event::Due(to)) => follower.relocate(&mut stream, to).await,
            Err(ended) => return ended,
        }
    }
}

impl Known {
    /// To what follows on what is known.
    fn subscribe(&self, namespace: &str, selection: &Selection) -> WatchSubscribe {
        WatchSubscribe {
            from_revision: if self.anew { 0 } else { self.view.revision() },
            cluster_id: ClusterId::to_wire(self.view.cluster_id()),
            ..selection.subscribe(namespace)
        }
    }

    /// Takes what a stream of this cluster brought. If the view has moved: what changed in it.
    fn take(&mut self, taken: Taken, sender: Option<ClusterId>) -> Option<Vec<WatchEvent>> {
        let (events, revision) = match taken {
            Taken::Leader(_) | Taken::Part => return None,
            Taken::Snapshot { services, revision } => {
                self.anew = false;
                let is_other = self.view.is_synced() && self.view.cluster_id() != sender;
                let other = sender.filter(|_| is_other);
                let reset = other.map(|cluster_id| WatchEvent::Reset { cluster_id, revision });
                let events = reset.into_iter().chain(self.view.replace(services)).collect();
                (events, revision)
            }
            Taken::Changes { changes, revision } => (self.view.apply(changes), revision),
        };
        self.view.move_to(revision, sender);
        Some(events)
    }
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::{Instance, Service};

    use super::*;

    fn snapshot(revision: u64, ids: &[&str]) -> Taken {
        let instance = |id: &&str| Instance {
            service: "s".to_owned(),
            id: (*id).to_owned(),
            ..Instance::default()
        };
        let instances = ids.iter().map(instance).collect();
        let services = vec![Service { name: "s".to_owned(), instances, ..Service::default() }];
        Taken::Snapshot { services, revision }
    }

    #[test]
    fn another_clusters_snapshot_resets_and_tells_what_differs() {
        let mut known = Known::default();
        known.take(snapshot(5, &["a"]), ClusterId::new(7)).unwrap();
        for taken in [Taken::Leader(true), Taken::Part] {
            assert!(known.take(taken, ClusterId::new(8)).is_none());
        }
        assert_eq!(
            (known.view.len(), known.view.cluster_id()),
            (1, ClusterId::new(7)),
            "until the other is whole"
        );
        let events = known.take(snapshot(2, &["b", "c"]), ClusterId::new(8)).unwrap();
        let reset = WatchEvent::Reset { cluster_id: ClusterId::new(8).unwrap(), revision: 2 };
        assert_eq!(format!("{:?}", events[0]), format!("{reset:?}"));
        assert_eq!(events.len(), 4, "and what differs: {events:?}");
        let subscribe = known.subscribe("", &Selection::service("s"));
        assert_eq!((subscribe.from_revision, subscribe.cluster_id), (2, 8));
    }

    #[test]
    fn after_the_registry_went_back_the_view_stays_until_there_is_a_snapshot() {
        let mut known = Known::default();
        known.take(snapshot(5, &["a"]), ClusterId::new(7)).unwrap();
        known.anew = true;
        assert_eq!(known.subscribe("", &Selection::service("s")).from_revision, 0);
        assert_eq!(known.view.len(), 1);
        known.take(snapshot(2, &["b"]), ClusterId::new(7)).unwrap();
        assert_eq!(known.subscribe("", &Selection::service("s")).from_revision, 2);
    }
}
