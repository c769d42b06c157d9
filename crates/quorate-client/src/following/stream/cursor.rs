//! Where a stream stands: takes its messages one by one, checks that none is missing, and says what
//! each comes to. Knows neither connections nor time, nor what is known from other streams.

use quorate_proto::ClusterId;
use quorate_proto::v1::{Change, ResponseHeader, Service, WatchResponse, watch_response::Kind};
use tonic::Status;

/// What a message came to.
#[derive(Debug)]
pub(in crate::following) enum Taken {
    /// The node has a leader, or none. The first of a stream: now it is known which cluster sends
    /// it.
    Leader(bool),
    /// Nothing to see yet: a part of a snapshot, or of changes that count together.
    Part,
    /// All that the subscription covers, as of this revision.
    Snapshot { services: Vec<Service>, revision: u64 },
    /// What follows on what came before, up to this revision. No changes: a bookmark.
    Changes { changes: Vec<Change>, revision: u64 },
}

#[derive(Debug)]
pub(super) struct Cursor {
    /// The cluster that sends the stream; `None` before the first header.
    sender: Option<ClusterId>,
    /// The cluster that the position was of when the stream began; `None`: not known.
    asked_of: Option<ClusterId>,
    /// What the last message led to, or the stream was asked to begin after.
    position: u64,
    /// Whether changes can follow on the position: not before the first snapshot, if the stream was
    /// asked for one.
    has_position: bool,
    /// The parts of a snapshot that is not complete.
    parts: Option<Vec<Service>>,
    /// Changes that came without moving the position. They are of different revisions, and what
    /// there was at none of them is there in between, so they count with those that move it.
    /// Bounded as the parts of a snapshot are: by what the node sends, which is one change of each
    /// instance in its ring. They go with the stream, and the next one brings them again.
    held: Vec<Change>,
    /// Whether all that the node knew when the stream began is here.
    complete: bool,
}

impl Cursor {
    /// Of a stream that was asked for what follows on this revision of this cluster; revision 0:
    /// for a snapshot.
    pub(super) fn new(cluster_id: Option<ClusterId>, from: u64) -> Self {
        Self {
            sender: None,
            asked_of: cluster_id,
            position: from,
            has_position: from > 0,
            parts: None,
            held: Vec::new(),
            complete: false,
        }
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// The cluster that sends the stream; `None` before the first header.
    pub(super) fn cluster_id(&self) -> Option<ClusterId> {
        self.sender
    }

    /// Whether all that the node knew when the stream began is here.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Takes the header of the next message. The first message has to have one: without it, the
    /// cluster whose revisions the stream counts in is not known. Says then whether the node has a
    /// leader. All messages are of the same cluster.
    pub(super) fn take_header(
        &mut self,
        header: Option<&ResponseHeader>,
    ) -> Result<Option<bool>, Status> {
        match (self.sender, header) {
            (None, None) => Err(Status::aborted("the first message has no header")),
            (None, Some(header)) => {
                let Some(sender) = ClusterId::of(header) else {
                    return Err(Status::aborted("the first message names no cluster"));
                };
                self.sender = Some(sender);
                self.has_position &= self.asked_of.is_none_or(|of| of == sender);
                Ok(Some(header.leader_id != 0))
            }
            (Some(was), Some(header)) if ClusterId::of(header) != Some(was) => {
                let is = header.cluster_id;
                Err(Status::aborted(format!("a message of {is:016x} in a stream of {was}")))
            }
            (Some(_), _) => Ok(None),
        }
    }

    /// Takes the next message.
    pub(super) fn take(&mut self, message: WatchResponse) -> Result<Taken, Status> {
        let (revision, previous) = (message.revision, message.previous_revision);
        let taken = match message.kind {
            Some(Kind::Leader(leader)) => return Ok(Taken::Leader(leader.leader_id != 0)),
            Some(Kind::Snapshot(snapshot)) => {
                self.held.clear();
                let parts = self.parts.get_or_insert_default();
                parts.extend(snapshot.services);
                if !snapshot.last {
                    return Ok(Taken::Part);
                }
                Taken::Snapshot { services: self.parts.take().unwrap_or_default(), revision }
            }
            Some(Kind::Delta(delta)) => {
                self.check(revision, previous)?;
                self.held.extend(delta.changes);
                self.held(revision)
            }
            // A kind of message that a later server may send moves the position like a bookmark.
            Some(Kind::Bookmark(_)) | None => {
                if self.parts.is_some() {
                    return Ok(Taken::Part);
                }
                self.check(revision, previous)?;
                self.held(revision)
            }
        };
        if matches!(taken, Taken::Part) {
            return Ok(taken);
        }
        self.position = revision;
        (self.has_position, self.complete) = (true, true);
        Ok(taken)
    }

    /// All changes up to this revision; a part of them where the position stays.
    fn held(&mut self, revision: u64) -> Taken {
        if revision == self.position && !self.held.is_empty() {
            return Taken::Part;
        }
        Taken::Changes { changes: std::mem::take(&mut self.held), revision }
    }

    /// Every message begins where the one before it ended, and none goes back.
    fn check(&self, revision: u64, previous: u64) -> Result<(), Status> {
        let expected = self.position;
        let follows = self.has_position
            && self.parts.is_none()
            && previous == expected
            && revision >= previous;
        if follows {
            return Ok(());
        }
        let wanted = if self.has_position {
            format!("what follows {expected}")
        } else {
            "a snapshot".to_owned()
        };
        Err(Status::aborted(format!("expected {wanted}, got what follows {previous}")))
    }
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::{WatchBookmark, WatchDelta, WatchLeader, WatchSnapshot};
    use tonic::Code;

    use super::*;

    fn header(cluster_id: u64) -> ResponseHeader {
        ResponseHeader { cluster_id, leader_id: 1, ..ResponseHeader::default() }
    }

    fn message(previous: u64, revision: u64, kind: Kind) -> WatchResponse {
        WatchResponse { revision, previous_revision: previous, kind: Some(kind), header: None }
    }

    fn snapshot(revision: u64, name: &str, last: bool) -> WatchResponse {
        let services = vec![Service { name: name.to_owned(), ..Service::default() }];
        message(0, revision, Kind::Snapshot(WatchSnapshot { reset: false, last, services }))
    }

    fn changed(previous: u64, revision: u64) -> WatchResponse {
        let changes = vec![Change { revision, ..Change::default() }];
        message(previous, revision, Kind::Delta(WatchDelta { changes }))
    }

    fn bookmark(previous: u64, revision: u64) -> WatchResponse {
        message(previous, revision, Kind::Bookmark(WatchBookmark {}))
    }

    /// A stream of cluster 7 that was asked for what follows on this revision of cluster 7.
    fn stream(from: u64) -> Cursor {
        let mut cursor = Cursor::new(ClusterId::new(7), from);
        assert_eq!(cursor.take_header(Some(&header(7))).unwrap(), Some(true));
        cursor
    }

    /// What a message is refused for.
    fn refusal<T: std::fmt::Debug>(taken: Result<T, Status>) -> String {
        let status = taken.unwrap_err();
        assert_eq!(status.code(), Code::Aborted, "another node may do better");
        status.message().to_owned()
    }

    #[test]
    fn a_snapshot_in_parts_counts_when_it_is_complete() {
        let mut cursor = stream(0);
        assert!(matches!(cursor.take(snapshot(5, "a", false)), Ok(Taken::Part)));
        assert!(matches!(cursor.take(bookmark(0, 5)), Ok(Taken::Part)));
        assert!(!cursor.is_complete());
        assert!(cursor.take(changed(5, 6)).is_err(), "nothing follows on half a snapshot");
        let Ok(Taken::Snapshot { services, revision: 5 }) = cursor.take(snapshot(5, "b", true))
        else {
            panic!("it is complete");
        };
        assert_eq!(services.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert!(cursor.is_complete());
        assert_eq!((cursor.cluster_id(), cursor.position()), (ClusterId::new(7), 5));
    }

    /// Of changes of a slow receiver, only the last message moves the position: what there was in
    /// between there never was.
    #[test]
    fn changes_that_do_not_move_the_position_count_with_those_that_do() {
        let part = |revision| {
            let changes = vec![Change { revision, ..Change::default() }];
            message(10, 10, Kind::Delta(WatchDelta { changes }))
        };
        let mut cursor = stream(10);
        assert!(matches!(cursor.take(part(21)), Ok(Taken::Part)));
        assert!(matches!(cursor.take(part(22)), Ok(Taken::Part)));
        assert!(matches!(cursor.take(bookmark(10, 10)), Ok(Taken::Part)));
        assert_eq!((cursor.position(), cursor.is_complete()), (10, false));
        let Ok(Taken::Changes { changes, revision: 1_501 }) = cursor.take(changed(10, 1_501))
        else {
            panic!("they are all there");
        };
        assert!(changes.iter().map(|change| change.revision).eq([21, 22, 1_501]));
        assert_eq!((cursor.position(), cursor.is_complete()), (1_501, true));
        let Ok(Taken::Changes { changes, .. }) = cursor.take(bookmark(1_501, 1_501)) else {
            panic!("nothing is held any more");
        };
        assert!(changes.is_empty());
        // What replaces everything replaces them.
        cursor.take(message(1_501, 1_501, part(1_600).kind.unwrap())).unwrap();
        cursor.take(snapshot(2_000, "a", true)).unwrap();
        let after = cursor.take(changed(2_000, 2_001));
        assert!(matches!(after, Ok(Taken::Changes { changes, .. }) if changes.len() == 1));
    }

    #[test]
    fn a_gap_is_noticed_and_changes_nothing() {
        // S4.3, S2.7
        let mut cursor = stream(0);
        let early = refusal(cursor.take(changed(0, 1)));
        assert_eq!(early, "expected a snapshot, got what follows 0");
        cursor.take(snapshot(5, "a", true)).unwrap();
        cursor.take(changed(5, 6)).unwrap();
        cursor.take(bookmark(6, 9)).unwrap();
        let gap = refusal(cursor.take(changed(10, 11)));
        assert_eq!(gap, "expected what follows 9, got what follows 10");
        assert!(cursor.take(bookmark(10, 12)).is_err());
        assert!(cursor.take(changed(5, 6)).is_err(), "a message twice is none that follows");
        assert!(cursor.take(changed(9, 8)).is_err(), "no message goes back");
        assert_eq!(cursor.position(), 9);
        cursor.take(changed(9, 10)).unwrap();
    }

    /// A node coalesces what a slow reader missed: of each instance, the last change. Until the
    /// last message, one that went and came may be missing that went at an earlier revision;
    /// whoever then went on from the revision of some change would never hear of it.
    #[test]
    fn changes_that_go_together_count_when_all_are_there() {
        // S2.7
        let mut cursor = stream(5);
        let part = |revisions: &[u64], upto| {
            let change = |revision: &u64| Change { revision: *revision, ..Change::default() };
            let changes = revisions.iter().map(change).collect();
            message(5, upto, Kind::Delta(WatchDelta { changes }))
        };
        assert!(matches!(cursor.take(part(&[7, 11], 5)), Ok(Taken::Part)));
        assert!(matches!(cursor.take(bookmark(5, 5)), Ok(Taken::Part)));
        assert_eq!((cursor.position(), cursor.is_complete()), (5, false));
        let Ok(Taken::Changes { changes, revision: 20 }) = cursor.take(part(&[19], 20)) else {
            panic!("all are there");
        };
        assert_eq!(changes.iter().map(|change| change.revision).collect::<Vec<_>>(), [7, 11, 19]);
        assert_eq!((cursor.position(), cursor.is_complete()), (20, true));
        let Ok(Taken::Changes { changes, .. }) = cursor.take(bookmark(20, 20)) else {
            panic!("a bookmark");
        };
        assert!(changes.is_empty());
    }

    #[test]
    fn a_stream_goes_on_where_it_was_asked_to() {
        let mut cursor = stream(5);
        assert!(!cursor.is_complete(), "the node may know more");
        assert!(cursor.take(changed(4, 6)).is_err());
        cursor.take(changed(5, 6)).unwrap();
        assert!(cursor.is_complete());
    }

    #[test]
    fn on_the_position_in_one_cluster_nothing_of_another_follows() {
        let mut cursor = Cursor::new(ClusterId::new(7), 5);
        cursor.take_header(Some(&header(8))).unwrap();
        let early = refusal(cursor.take(changed(5, 6)));
        assert_eq!(early, "expected a snapshot, got what follows 5");
        cursor.take(snapshot(2, "a", true)).unwrap();
        cursor.take(changed(2, 3)).unwrap();
        assert_eq!((cursor.cluster_id(), cursor.position()), (ClusterId::new(8), 3));
    }

    #[test]
    fn the_first_message_has_a_header_and_all_are_of_one_cluster() {
        let mut cursor = Cursor::new(None, 0);
        assert_eq!(refusal(cursor.take_header(None)), "the first message has no header");
        let of_none = refusal(cursor.take_header(Some(&header(0))));
        assert_eq!(of_none, "the first message names no cluster");
        let leaderless = ResponseHeader { leader_id: 0, ..header(7) };
        assert_eq!(cursor.take_header(Some(&leaderless)).unwrap(), Some(false));
        assert_eq!(cursor.take_header(None).unwrap(), None);
        assert_eq!(cursor.take_header(Some(&header(7))).unwrap(), None);
        refusal(cursor.take_header(Some(&header(8))));
    }

    #[test]
    fn a_leader_message_moves_nothing() {
        let mut cursor = stream(0);
        let leader = |id| message(0, 0, Kind::Leader(WatchLeader { leader_id: id }));
        assert!(matches!(cursor.take(leader(0)), Ok(Taken::Leader(false))));
        cursor.take(snapshot(5, "a", true)).unwrap();
        assert!(matches!(cursor.take(leader(3)), Ok(Taken::Leader(true))));
        assert_eq!(cursor.position(), 5);
    }
}
