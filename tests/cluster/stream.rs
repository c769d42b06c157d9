//! A watch stream as a receiver of another make would read it: keeps the state that it was sent,
//! and checks every message against the contract on the way. Uses the wire API only.

use quorate_proto::v1::watch_request::Kind as Ask;
use quorate_proto::v1::watch_response::Kind;
use quorate_proto::v1::{
    Change, ChangeKind, ResponseHeader, WatchAck, WatchRequest, WatchResponse, WatchSubscribe,
};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::calls::{Map, Registry};
use super::harness::SOON;

/// Asks that wait to be sent.
const ASKS: usize = 16;

/// What was received on one stream.
pub(crate) struct Stream {
    asks: mpsc::Sender<WatchRequest>,
    messages: Streaming<WatchResponse>,
    /// Everything up to this revision was received.
    pub(crate) position: u64,
    /// What there is, by snapshot and changes.
    pub(crate) map: Map,
    /// Every change, as it arrived.
    pub(crate) changes: Vec<Change>,
    /// How many messages of each kind: snapshot, delta, bookmark, leader.
    pub(crate) snapshots: usize,
    pub(crate) deltas: usize,
    pub(crate) bookmarks: usize,
    /// Whether the last snapshot said `reset`.
    pub(crate) reset: bool,
    /// Of the first message.
    pub(crate) header: Option<ResponseHeader>,
    /// The last leader that the stream named, if it named one.
    pub(crate) leader: Option<u64>,
    in_snapshot: bool,
    begun: bool,
}

pub(crate) fn subscribe_to(services: &[&str]) -> WatchSubscribe {
    WatchSubscribe {
        services: services.iter().map(ToString::to_string).collect(),
        ..WatchSubscribe::default()
    }
}

pub(crate) fn subscribe_to_prefix(prefix: &str) -> WatchSubscribe {
    WatchSubscribe { prefix: prefix.to_owned(), ..WatchSubscribe::default() }
}

impl Stream {
    /// Subscribes. What the receiver has from an earlier stream is handed over with `go_on`.
    pub(crate) async fn open(
        registry: &Registry,
        subscribe: WatchSubscribe,
    ) -> Result<Self, Status> {
        let position = subscribe.from_revision;
        let (asks, requests) = mpsc::channel(ASKS);
        let ask = WatchRequest { kind: Some(Ask::Subscribe(subscribe)) };
        asks.try_send(ask).expect("a new channel has room");
        let mut registry = registry.clone();
        let opening = registry.watch(ReceiverStream::new(requests));
        let messages = timeout(SOON, opening).await.expect("an answer to a watch")?.into_inner();
        Ok(Self {
            asks,
            messages,
            position,
            map: Map::new(),
            changes: Vec::new(),
            snapshots: 0,
            deltas: 0,
            bookmarks: 0,
            reset: false,
            header: None,
            leader: None,
            in_snapshot: false,
            begun: false,
        })
    }

    /// A new stream that goes on where this one stands, on any node.
    pub(crate) async fn resume(
        self,
        registry: &Registry,
        subscribe: WatchSubscribe,
    ) -> Result<Self, Status> {
        let cluster_id = self.header.as_ref().map_or(0, |header| header.cluster_id);
        let subscribe = WatchSubscribe { from_revision: self.position, cluster_id, ..subscribe };
        let mut next = Self::open(registry, subscribe).await?;
        (next.map, next.changes) = (self.map, self.changes);
        Ok(next)
    }

    pub(crate) async fn ask(&self, kind: Ask) {
        let ask = WatchRequest { kind: Some(kind) };
        self.asks.send(ask).await.expect("the stream is open");
    }

    pub(crate) async fn ack(&self) {
        self.ask(Ask::Ack(WatchAck { revision: self.position })).await;
    }

    /// The next message, checked and taken in.
    pub(crate) async fn next(&mut self) -> Result<WatchResponse, Status> {
        let message = timeout(SOON, self.messages.message()).await;
        let message = message.unwrap_or_else(|_| panic!("silence at {}", self.position));
        match message? {
            Some(message) => {
                self.take(&message);
                Ok(message)
            }
            None => Err(Status::unavailable("the stream ended without a status")),
        }
    }

    /// Receives until everything up to this revision is here.
    pub(crate) async fn reach(&mut self, revision: u64) {
        let there =
            |stream: &Self| stream.position >= revision && stream.begun && !stream.in_snapshot;
        self.until(&format!("revision {revision}"), there).await;
    }

    /// Receives until this holds. What is not there soon is not coming, also when bookmarks are.
    pub(crate) async fn until(&mut self, what: &str, check: impl Fn(&Self) -> bool) {
        let receiving = async {
            while !check(self) {
                let next = self.next().await;
                next.unwrap_or_else(|status| panic!("waiting for {what}: {status:?}"));
            }
        };
        let received = timeout(SOON, receiving).await;
        assert!(received.is_ok(), "{what} does not come, at {} after {SOON:?}", self.position);
    }

    /// Receives until the stream ends; the status that it ends with.
    pub(crate) async fn end(&mut self) -> Status {
        let receiving = async {
            loop {
                if let Err(status) = self.next().await {
                    return status;
                }
            }
        };
        timeout(SOON, receiving).await.expect("the stream ends")
    }

    /// Receives the whole snapshot that the stream begins with.
    pub(crate) async fn snapshot(&mut self) {
        self.until("a snapshot", |stream| stream.snapshots > 0 && !stream.in_snapshot).await;
    }

    /// Receives until this revision is there, and forgets which changes that took: what comes after
    /// is counted.
    pub(crate) async fn begin_after(&mut self, revision: u64) {
        self.reach(revision).await;
        assert_eq!(self.position, revision, "nothing else was to change");
        self.changes.clear();
    }

    fn take(&mut self, message: &WatchResponse) {
        if !self.begun {
            self.begun = true;
            self.header.clone_from(&message.header);
            assert!(message.header.is_some(), "the first message has a header");
        }
        let kind = message.kind.as_ref().expect("a message of some kind");
        match kind {
            Kind::Snapshot(part) => {
                if !self.in_snapshot {
                    self.map.clear();
                }
                for service in &part.services {
                    for instance in &service.instances {
                        let key = (instance.service.clone(), instance.id.clone());
                        let before = self.map.insert(key, instance.clone());
                        assert!(before.is_none(), "an instance stands twice in a snapshot");
                    }
                }
                self.in_snapshot = !part.last;
                self.reset = part.reset;
                self.snapshots += 1;
                if part.last {
                    self.position = message.revision;
                }
                return;
            }
            Kind::Delta(delta) => {
                self.deltas += 1;
                assert!(!delta.changes.is_empty(), "a delta has changes");
                delta.changes.iter().for_each(|change| self.take_change(change));
            }
            Kind::Bookmark(_) => self.bookmarks += 1,
            Kind::Leader(leader) => {
                assert!(message.header.is_some(), "news of the leader have a header");
                self.leader = Some(leader.leader_id);
            }
        }
        assert!(!self.in_snapshot, "nothing comes between the parts of a snapshot");
        assert_eq!(message.previous_revision, self.position, "a message is missing: {kind:?}");
        assert!(message.revision >= self.position, "the position never goes back");
        self.position = message.revision;
    }

    fn take_change(&mut self, change: &Change) {
        let instance = change.instance.clone().expect("a change has its instance");
        let (key, revision) = ((instance.service.clone(), instance.id.clone()), change.revision);
        assert!(revision > self.position, "{key:?} at {revision} was sent before");
        if let Some(last) = self.changes.last() {
            assert!(revision > last.revision, "{revision} after {}", last.revision);
        }
        self.changes.push(change.clone());
        match change.kind() {
            ChangeKind::Added => {
                let before = self.map.insert(key, instance);
                assert!(before.is_none(), "ADDED at {revision} was there: {before:?}");
            }
            ChangeKind::Modified => {
                let before = self.map.insert(key, instance);
                assert!(before.is_some(), "MODIFIED at {revision} was not there");
            }
            ChangeKind::Removed => {
                let before = self.map.remove(&key);
                assert!(before.is_some(), "REMOVED at {revision} was not there");
            }
            ChangeKind::Unspecified => panic!("a change of no kind"),
        }
    }

    /// The revisions of all changes that arrived.
    pub(crate) fn revisions(&self) -> Vec<u64> {
        self.changes.iter().map(|change| change.revision).collect()
    }

    pub(crate) fn kinds(&self) -> Vec<ChangeKind> {
        self.changes.iter().map(Change::kind).collect()
    }

    /// The ids of the instances that there are, in order.
    pub(crate) fn ids(&self) -> Vec<&str> {
        self.map.keys().map(|(_, id)| id.as_str()).collect()
    }
}
