//! A watch on one node with the generated stub, so that revisions can be checked: it follows
//! everything in the default namespace, so with no other namespace in use every revision is one
//! change, and none may be missing or come twice.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use quorate_proto::v1::watch_request::Kind as Ask;
use quorate_proto::v1::watch_response::Kind;
use quorate_proto::v1::{
    Change, ChangeKind, Instance, WatchAck, WatchRequest, WatchResponse, WatchSubscribe,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

use crate::cluster::{Node, key};
use crate::wait::eventually;

/// What a watch has seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The revision of the first snapshot.
    pub(crate) begun_at: u64,
    pub(crate) snapshots: usize,
    /// Every change, with the time when it arrived.
    pub(crate) changes: Vec<(Instant, Change)>,
    /// What is there, by snapshot and changes.
    pub(crate) view: BTreeMap<String, Instance>,
    /// The position of the stream.
    pub(crate) revision: u64,
    /// The leaders that it named; 0: lost.
    pub(crate) leaders: Vec<u64>,
    /// Revisions that were missing or came twice, and a stream that ended.
    pub(crate) faults: Vec<String>,
}

impl Seen {
    fn take(&mut self, message: WatchResponse) {
        if message.previous_revision != self.revision {
            let (before, now) = (self.revision, message.previous_revision);
            self.faults.push(format!("a message after {now} came where {before} was reached"));
        }
        match message.kind {
            Some(Kind::Snapshot(snapshot)) => {
                let instances = snapshot.services.into_iter().flat_map(|part| part.instances);
                self.view.extend(instances.map(|instance| (key(&instance), instance)));
                if snapshot.last {
                    self.snapshots += 1;
                    self.begun_at = message.revision;
                }
            }
            Some(Kind::Delta(delta)) => {
                let before = self.revision;
                for (offset, change) in (before + 1..).zip(delta.changes) {
                    if change.revision != offset {
                        let found = change.revision;
                        self.faults.push(format!("revision {found} came where {offset} is due"));
                    }
                    self.note(change);
                }
                let last = self.changes.last().map_or(before, |(_, change)| change.revision);
                if message.revision != last {
                    let position = message.revision;
                    self.faults.push(format!("position {position} after revision {last}"));
                }
            }
            Some(Kind::Bookmark(_)) if message.revision != self.revision => {
                let (before, now) = (self.revision, message.revision);
                self.faults.push(format!("a bookmark at {now} skips what follows {before}"));
            }
            Some(Kind::Leader(leader)) => self.leaders.push(leader.leader_id),
            _ => {}
        }
        self.revision = message.revision;
    }

    fn note(&mut self, change: Change) {
        let instance = change.instance.clone().expect("a change has its instance");
        let key = key(&instance);
        let (was_there, fits) = match change.kind() {
            ChangeKind::Added => (self.view.insert(key.clone(), instance).is_some(), false),
            ChangeKind::Modified => (self.view.insert(key.clone(), instance).is_some(), true),
            _ => (self.view.remove(&key).is_some(), true),
        };
        if was_there != fits {
            self.faults.push(format!("{:?} of {key}, which was there: {was_there}", change.kind()));
        }
        self.changes.push((Instant::now(), change));
    }

    /// The changes of one kind of instances whose "service/id" begins with `prefix`, with their
    /// times.
    pub(crate) fn of(&self, kind: ChangeKind, prefix: &str) -> Vec<(Instant, Change)> {
        let wanted = |change: &Change| {
            let instance = change.instance.as_ref();
            change.kind() == kind && instance.is_some_and(|one| key(one).starts_with(prefix))
        };
        self.changes.iter().filter(|(_, change)| wanted(change)).cloned().collect()
    }
}

const BEGINS_WITHIN: Duration = Duration::from_secs(30);

/// A running watch.
pub(crate) struct Feed {
    node: u64,
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

impl Feed {
    /// Begins with a snapshot, and returns when that has arrived.
    pub(crate) async fn start(node: &Node) -> Self {
        // A node that has only just begun may not have heard yet that it is a member.
        let (asks, mut answers) = eventually("the watch begins", BEGINS_WITHIN, || async {
            let (asks, requests) = mpsc::channel(16);
            let subscribe = WatchRequest { kind: Some(Ask::Subscribe(WatchSubscribe::default())) };
            asks.send(subscribe).await.unwrap();
            let answers = node.registry().watch(ReceiverStream::new(requests)).await;
            answers.map(|answers| (asks, answers.into_inner()))
        })
        .await;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let noted = seen.clone();
        let task = tokio::spawn(async move {
            loop {
                let fault = match answers.message().await {
                    Ok(Some(message)) => {
                        let revision = message.revision;
                        noted.lock().unwrap().take(message);
                        let ack = Ask::Ack(WatchAck { revision });
                        // Full while the node is busy: an ack covers all before it too.
                        let _next_one_tells = asks.try_send(WatchRequest { kind: Some(ack) });
                        continue;
                    }
                    Ok(None) => "the stream ended without a status".to_owned(),
                    Err(status) => format!("the stream ended: {status}"),
                };
                return noted.lock().unwrap().faults.push(fault);
            }
        });
        let feed = Self { node: node.id, seen, task };
        feed.until("the snapshot", BEGINS_WITHIN, |seen| seen.snapshots > 0).await;
        feed
    }

    /// Looks at what it has seen.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.seen.lock().unwrap())
    }

    pub(crate) async fn until(
        &self,
        what: &str,
        within: Duration,
        reached: impl Fn(&Seen) -> bool,
    ) {
        let what = format!("watch on node {}: {what}", self.node);
        eventually(&what, within, || {
            let (done, state) = self.look(|seen| {
                let Seen { revision, changes, faults, .. } = seen;
                let count = changes.len();
                let state = format!("revision {revision}, {count} changes, faults: {faults:?}");
                (reached(seen), state)
            });
            async move { if done { Ok(()) } else { Err(state) } }
        })
        .await;
    }

    /// That up to here it missed nothing, repeated nothing, and was never interrupted.
    #[track_caller]
    pub(crate) fn assert_gapless(&self) {
        self.look(|seen| {
            assert!(seen.faults.is_empty(), "watch on node {}: {:?}", self.node, seen.faults);
            assert_eq!(seen.snapshots, 1, "watch on node {}", self.node);
            let expected = seen.revision - seen.begun_at;
            assert_eq!(seen.changes.len() as u64, expected, "watch on node {}", self.node);
        });
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.task.abort();
    }
}
