//! A simulated watcher of everything: follows one node, or roams, and always goes on from its
//! cursor. Checks every message as it comes.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use quorate_proto::v1::watch_request::Kind as Ask;
use quorate_proto::v1::watch_response::Kind;
use quorate_proto::v1::{Change, WatchRequest, WatchResponse, WatchSubscribe};
use rand::Rng;
use rand::rngs::StdRng;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::Status;

use super::history::{Map, Shared, Told, apply, held, map, now};
use super::nodes::Nodes;

/// A stream that is this quiet is dead: nodes send bookmarks every second.
const QUIET: Duration = Duration::from_secs(3);

/// A watcher, with the state and the cursor that its messages give.
pub(crate) struct Watcher {
    name: String,
    nodes: Nodes,
    /// How long to stay with one node; `None`: for good.
    roam: Option<StdRng>,
    notes: Shared,
    position: u64,
    cluster: u64,
    map: Map,
    /// The part of a snapshot of several messages that has come.
    incoming: Map,
}

impl Watcher {
    pub(crate) fn new(name: String, nodes: Nodes, roam: Option<StdRng>, notes: Shared) -> Self {
        let (map, incoming) = (Map::new(), Map::new());
        Self { name, nodes, roam, notes, position: 0, cluster: 0, map, incoming }
    }

    pub(crate) async fn run(mut self) {
        while !self.notes.borrow().stop {
            let stay = match &mut self.roam {
                Some(rng) => Duration::from_millis(rng.random_range(200..4_000)),
                None => Duration::from_secs(3_600),
            };
            let ended = self.follow(Instant::now() + stay).await;
            if let Err(status) = &ended {
                self.notes.borrow_mut().failed(self.nodes.node(), &self.name, status);
            }
            let ended = ended.map_err(|status| status.code());
            let line = format!(
                "{} left n{} at {}: {ended:?}",
                self.name,
                self.nodes.node(),
                self.position
            );
            self.notes.borrow_mut().note(line);
            match self.roam {
                Some(_) => self.nodes.next(),
                // One that was taken out ends its streams.
                None => self.nodes.leave_removed(),
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn follow(&mut self, until: Instant) -> Result<(), Status> {
        let subscribe = WatchSubscribe {
            from_revision: self.position,
            cluster_id: self.cluster,
            ..WatchSubscribe::default()
        };
        let subscribe = WatchRequest { kind: Some(Ask::Subscribe(subscribe)) };
        let asks = stream::once(std::future::ready(subscribe)).chain(stream::pending());
        let mut client = self.nodes.client();
        let late = |_| Status::deadline_exceeded("no answer");
        let mut answers = timeout(QUIET, client.watch(asks)).await.map_err(late)??.into_inner();
        loop {
            let patience = until.min(Instant::now() + QUIET);
            match timeout_at(patience, answers.message()).await {
                Ok(message) => {
                    let Some(message) = message? else { return Ok(()) };
                    self.take(message);
                }
                Err(_) if Instant::now() >= until => return Ok(()),
                Err(_) => return Err(Status::deadline_exceeded("quiet")),
            }
            let mut notes = self.notes.borrow_mut();
            notes.watchers.insert(self.name.clone(), (self.position, self.map.clone()));
            if notes.stop {
                return Ok(());
            }
        }
    }

    fn wrong(&self, what: String) {
        let line = format!("{} on n{} at {}: {what}", self.name, self.nodes.node(), self.position);
        self.notes.borrow_mut().violation(line);
    }

    fn take(&mut self, message: WatchResponse) {
        let WatchResponse { revision, previous_revision, kind, header } = message;
        if let Some(header) = header {
            self.cluster = header.cluster_id;
        }
        match kind {
            Some(Kind::Snapshot(snapshot)) => {
                if self.position > 0 && !snapshot.reset {
                    self.wrong("a snapshot without reset in answer to a cursor".to_owned());
                }
                self.incoming.extend(map(&snapshot.services));
                if snapshot.last {
                    if revision < self.position {
                        self.wrong(format!("reset goes back to {revision}"));
                    }
                    self.notes.borrow_mut().resets += usize::from(snapshot.reset);
                    self.map = std::mem::take(&mut self.incoming);
                    self.position = revision;
                }
                return;
            }
            Some(Kind::Delta(delta)) => self.take_changes(&delta.changes, revision),
            // Everything is covered, so a bookmark or a leader's name brings no new position.
            Some(Kind::Bookmark(_) | Kind::Leader(_)) if revision == self.position => {}
            other => self.wrong(format!("unexpected at {revision}: {other:?}")),
        }
        if previous_revision != self.position {
            self.wrong(format!("a message from {previous_revision} to {revision}"));
        }
        self.position = revision;
    }

    /// Nothing is filtered out and no watcher is slow, so every revision is reported once.
    fn take_changes(&mut self, changes: &[Change], revision: u64) {
        let told: Vec<u64> = changes.iter().map(|change| change.revision).collect();
        if !told.iter().copied().eq(self.position + 1..=revision) {
            self.wrong(format!("changes {told:?} in a message up to {revision}"));
        }
        for change in changes {
            let (key, held) = held(&change.instance.clone().unwrap_or_default());
            let told = Told { key, kind: change.kind(), held, reason: change.reason() };
            apply(&mut self.map, &told);
            let mut notes = self.notes.borrow_mut();
            let all = notes.told.entry(change.revision).or_default();
            all.push((self.name.clone(), now(), told));
        }
    }
}
