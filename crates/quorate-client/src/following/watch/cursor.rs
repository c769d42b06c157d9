//! Where a watch stands: takes the messages of a stream one by one, checks that none is missing, and moves the view. Knows
//! neither connections nor time.

use quorate_proto::v1::{Service, WatchResponse, WatchSubscribe, watch_response::Kind};

use super::{View, WatchEvent};
use crate::types::Selection;

/// What a message came to.
#[derive(Debug)]
pub(super) enum Taken {
    /// Nothing to see yet: a part of a snapshot.
    Part,
    /// The view has moved; with what changed in it.
    Moved(Vec<WatchEvent>),
    /// The node has a leader, or none.
    Leader(bool),
}

/// A message is missing, or this one cannot follow on what came before: subscribe again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected what follows revision {expected}, got what follows {got}")]
pub(super) struct Gap {
    expected: u64,
    got: u64,
}

#[derive(Debug, Default)]
pub(super) struct Cursor {
    view: View,
    /// The cluster of the present stream.
    cluster_id: u64,
    /// The parts of a snapshot that is not complete.
    parts: Option<Vec<Service>>,
    /// The next stream has to begin with a snapshot.
    anew: bool,
}

impl Cursor {
    /// What is known. It only ever moves forward through complete messages.
    pub(super) fn view(&self) -> &View {
        &self.view
    }

    /// The cluster of the present stream.
    pub(super) fn cluster_id(&self) -> u64 {
        self.cluster_id
    }

    /// Whether no snapshot is half here.
    pub(super) fn is_between_messages(&self) -> bool {
        self.parts.is_none()
    }

    /// The registry is not as far as what is known: the next stream begins with a snapshot, until which the view stays.
    pub(super) fn begin_anew(&mut self) {
        self.anew = true;
    }

    /// Begins a new stream: what was not complete comes again.
    pub(super) fn subscribe(&mut self, namespace: &str, selection: &Selection) -> WatchSubscribe {
        self.parts = None;
        self.cluster_id = self.view.cluster_id();
        WatchSubscribe {
            from_revision: if self.anew { 0 } else { self.view.revision() },
            cluster_id: self.view.cluster_id(),
            ..selection.subscribe(namespace)
        }
    }

    /// Takes the next message of the stream.
    pub(super) fn take(&mut self, message: WatchResponse) -> Result<Taken, Gap> {
        if let Some(header) = &message.header {
            self.cluster_id = header.cluster_id;
        }
        let (revision, previous) = (message.revision, message.previous_revision);
        match message.kind {
            Some(Kind::Snapshot(snapshot)) => {
                let parts = self.parts.get_or_insert_default();
                parts.extend(snapshot.services);
                if !snapshot.last {
                    return Ok(Taken::Part);
                }
                let parts = self.parts.take().unwrap_or_default();
                self.anew = false;
                let cluster_id = self.cluster_id;
                let is_other = self.view.is_synced() && self.view.cluster_id() != cluster_id;
                let reset = is_other.then_some(WatchEvent::Reset { cluster_id, revision });
                let events = reset.into_iter().chain(self.view.replace(parts)).collect();
                self.view.move_to(revision, cluster_id);
                Ok(Taken::Moved(events))
            }
            Some(Kind::Delta(delta)) => {
                self.check(revision, previous)?;
                let events = self.view.apply(delta.changes);
                self.view.move_to(revision, self.cluster_id);
                Ok(Taken::Moved(events))
            }
            // A kind of message that a later server may send moves the position like a bookmark.
            Some(Kind::Bookmark(_)) | None => {
                if self.parts.is_some() {
                    return Ok(Taken::Part);
                }
                self.check(revision, previous)?;
                self.view.move_to(revision, self.cluster_id);
                Ok(Taken::Moved(Vec::new()))
            }
            Some(Kind::Leader(leader)) => Ok(Taken::Leader(leader.leader_id != 0)),
        }
    }

    /// Nothing but a complete snapshot may come first, every message begins where the one before it ended, none goes back.
    fn check(&self, revision: u64, previous: u64) -> Result<(), Gap> {
        let expected = self.view.revision();
        let follows = self.view.is_synced()
            && self.parts.is_none()
            && self.view.cluster_id() == self.cluster_id
            && previous == expected
            && revision >= expected;
        if follows { Ok(()) } else { Err(Gap { expected, got: previous }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_proto::v1::{
        Change, ChangeKind, Instance, ResponseHeader, WatchBookmark, WatchDelta, WatchLeader,
        WatchSnapshot,
    };

    fn instance(id: &str) -> Instance {
        Instance { service: "s".to_owned(), id: id.to_owned(), ..Instance::default() }
    }

    fn message(previous: u64, revision: u64, kind: Kind) -> WatchResponse {
        WatchResponse {
            revision,
            previous_revision: previous,
            kind: Some(kind),
            header: Some(ResponseHeader { cluster_id: 7, ..ResponseHeader::default() }),
        }
    }

    fn snapshot(revision: u64, ids: &[&str], last: bool) -> WatchResponse {
        let instances = ids.iter().map(|id| instance(id)).collect();
        let services =
            vec![Service { name: "s".to_owned(), instances, known: true, ..Service::default() }];
        message(0, revision, Kind::Snapshot(WatchSnapshot { reset: false, last, services }))
    }

    fn added(previous: u64, revision: u64, id: &str) -> WatchResponse {
        let instance = Some(instance(id));
        let kind = ChangeKind::Added as i32;
        let changes = vec![Change { revision, kind, instance, reason: 0 }];
        message(previous, revision, Kind::Delta(WatchDelta { changes }))
    }

    fn bookmark(previous: u64, revision: u64) -> WatchResponse {
        message(previous, revision, Kind::Bookmark(WatchBookmark {}))
    }

    fn ids(cursor: &Cursor) -> Vec<&str> {
        cursor.view.iter().map(|instance| instance.id.as_str()).collect()
    }

    #[test]
    fn a_snapshot_in_parts_counts_when_it_is_complete() {
        let mut cursor = Cursor::default();
        assert!(matches!(cursor.take(snapshot(5, &["a"], false)), Ok(Taken::Part)));
        assert!(!cursor.view().is_synced());
        assert!(matches!(cursor.take(bookmark(0, 5)), Ok(Taken::Part)));
        // The stream breaks: the parts are forgotten, and the subscription begins at the beginning.
        let subscribe = cursor.subscribe("", &Selection::service("s"));
        assert_eq!((subscribe.from_revision, subscribe.cluster_id), (0, 0));
        cursor.take(snapshot(6, &["b"], false)).unwrap();
        cursor.take(snapshot(6, &["c"], true)).unwrap();
        assert_eq!(ids(&cursor), ["b", "c"]);
        let subscribe = cursor.subscribe("", &Selection::service("s"));
        assert_eq!((subscribe.from_revision, subscribe.cluster_id), (6, 7));
    }

    #[test]
    fn a_gap_is_noticed_and_changes_nothing() {
        // S4.3, S2.7
        let mut cursor = Cursor::default();
        assert!(cursor.take(added(0, 1, "early")).is_err(), "nothing may come before the snapshot");
        cursor.take(snapshot(5, &["a"], true)).unwrap();
        cursor.take(added(5, 6, "b")).unwrap();
        cursor.take(bookmark(6, 9)).unwrap();
        assert_eq!(cursor.take(added(10, 11, "x")).unwrap_err(), Gap { expected: 9, got: 10 });
        assert!(cursor.take(bookmark(10, 12)).is_err());
        assert!(cursor.take(added(5, 6, "b")).is_err(), "a message twice is none that follows");
        assert!(cursor.take(added(9, 8, "x")).is_err(), "no message goes back");
        assert_eq!((ids(&cursor), cursor.view().revision()), (vec!["a", "b"], 9));
        cursor.take(added(9, 10, "c")).unwrap();
    }

    #[test]
    fn another_cluster_needs_a_snapshot() {
        let mut cursor = Cursor::default();
        cursor.take(snapshot(5, &["a"], true)).unwrap();
        let mut other = added(5, 6, "b");
        other.header = Some(ResponseHeader { cluster_id: 8, ..ResponseHeader::default() });
        assert!(cursor.take(other).is_err());
        // In parts: what is shown is of one cluster, and the old one until the other is whole.
        for (id, last) in [("b", false), ("c", true)] {
            assert_eq!((ids(&cursor), cursor.view().cluster_id()), (vec!["a"], 7));
            let mut part = snapshot(2, &[id], last);
            part.header = part.header.map(|header| ResponseHeader { cluster_id: 8, ..header });
            let taken = cursor.take(part).unwrap();
            if let Taken::Moved(events) = taken {
                let reset = WatchEvent::Reset { cluster_id: 8, revision: 2 };
                assert_eq!(format!("{:?}", events[0]), format!("{reset:?}"));
                assert_eq!(events.len(), 4, "and what differs: {events:?}");
            }
        }
        assert_eq!((ids(&cursor), cursor.view().revision()), (vec!["b", "c"], 2));
        let subscribe = cursor.subscribe("", &Selection::service("s"));
        assert_eq!((subscribe.from_revision, subscribe.cluster_id), (2, 8));
    }

    #[test]
    fn a_leader_message_moves_nothing() {
        let mut cursor = Cursor::default();
        let leader = |id| message(0, 0, Kind::Leader(WatchLeader { leader_id: id }));
        assert!(matches!(cursor.take(leader(0)), Ok(Taken::Leader(false))));
        cursor.take(snapshot(5, &["a"], true)).unwrap();
        assert!(matches!(cursor.take(leader(3)), Ok(Taken::Leader(true))));
        assert_eq!(cursor.view().revision(), 5);
    }
}
