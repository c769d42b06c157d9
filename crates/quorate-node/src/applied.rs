//! What this node has applied: the registry, the watch hub and the log position, under one lock.
//!
//! Commands are applied and watchers are registered under the same lock, so that nothing can fall
//! between the snapshot that a watcher begins with and the first change that it is sent. The lock
//! is held for short, never across an await; a long read clones the registry (which shares
//! structure and costs almost nothing) and works on the clone.

pub(crate) mod encoded;
pub(crate) mod hub;
pub(crate) mod marks;
pub(crate) mod pending;
pub(crate) mod readers;
mod ring;
pub(crate) mod shared_event;
pub(crate) mod subscription;
mod wake;
pub(crate) mod wire_size;

use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard};

use openraft::EntryPayload;
use prometheus_client::metrics::histogram::Histogram;
use quorate_proto::ClusterId;
use quorate_state::{Op, Registry, Reply, Request};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::applied::hub::{AGES_EVERY, Hub};
use crate::applied::marks::Marks;
use crate::applied::pending::Pending;
use crate::applied::readers::Readers;
use crate::types::{Entry, LogId, Outcome, StoredMembership};

/// The applied state of this node.
#[derive(Debug)]
pub(crate) struct Applied {
    state: Mutex<State>,
    position: watch::Sender<Position>,
    /// How long changes take from here to watchers.
    propagation: Histogram,
}

/// How far this node is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Position {
    /// The last applied log index.
    pub(crate) index: u64,
    /// The state's revision there.
    pub(crate) revision: u64,
    /// The cluster that it is of; `None`: one that has not been founded yet.
    pub(crate) cluster_id: Option<ClusterId>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) registry: Registry,
    pub(crate) hub: Hub,
    readers: Readers,
    /// What this node proposes and has not applied.
    pub(crate) pending: Pending,
    pub(crate) last_log_id: Option<LogId>,
    pub(crate) membership: StoredMembership,
    pub(crate) marks: Marks,
    /// The term of the last leader of whom a command was applied that let time pass, or a grace,
    /// which comes before that.
    pub(crate) timed_by: u64,
    /// The last entry that the log had when this node started. What leads up to it is not counted:
    /// it was when it was applied before, but for an end that this node had not applied yet.
    again_until: Option<LogId>,
}

/// At this target the log says, at the level `trace`, what came of each write when it was applied;
/// the simulation compares that with what its callers were told.
const WRITES: &str = "quorate::writes";

impl Applied {
    pub(crate) fn new(watch_ring: usize, watch_ring_bytes: usize, propagation: Histogram) -> Self {
        Self::after(None, watch_ring, watch_ring_bytes, propagation)
    }

    /// Of a node whose log ends there: what is applied up to that is not counted.
    pub(crate) fn after(
        again_until: Option<LogId>,
        watch_ring: usize,
        watch_ring_bytes: usize,
        propagation: Histogram,
    ) -> Self {
        let registry = Registry::new();
        let state = State {
            // The first entry, a membership, leaves it so: before and after it nodes have the same
            // hash.
            marks: Marks::begin(0, registry.hash()),
            registry,
            hub: Hub::new(watch_ring, watch_ring_bytes),
            readers: Readers::default(),
            pending: Pending::default(),
            last_log_id: None,
            membership: StoredMembership::default(),
            timed_by: 0,
            again_until,
        };
        let position = watch::Sender::new(Position::default());
        Self { state: Mutex::new(state), position, propagation }
    }

    /// The state, locked: for short, and never across an await.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("invariant: nothing panics while it holds this lock")
    }

    /// A cheap copy of the registry for reading at leisure.
    pub(crate) fn registry(&self) -> Registry {
        self.lock().registry.clone()
    }

    /// Follows how far this node is.
    pub(crate) fn positions(&self) -> watch::Receiver<Position> {
        self.position.subscribe()
    }

    pub(crate) fn position(&self) -> Position {
        *self.position.borrow()
    }

    /// Applies one log entry. [`Applied::tell_position`] wakes the tasks that wait for it,
    /// [`Applied::wake_watchers`] the watchers of what it changes.
    pub(crate) fn apply(&self, entry: Entry) -> Outcome {
        let index = entry.log_id.index();
        let mut state = self.lock();
        let state = &mut *state;
        state.last_log_id = Some(entry.log_id);
        let outcome = match entry.payload {
            EntryPayload::Blank => state.nothing(),
            EntryPayload::Membership(membership) => {
                let before = state.membership.nodes().map(|(id, _)| id.get()).collect();
                state.membership = StoredMembership::new(Some(entry.log_id), membership);
                let after = state.membership.nodes().map(|(id, _)| id.get()).collect();
                state.registry.members_changed(&before, &after);
                state.nothing()
            }
            EntryPayload::Normal(command) => {
                let before = state.registry.clock();
                let applied = state.registry.apply(&command);
                if state.registry.clock() > before || matches!(command.op, Op::Grace { .. }) {
                    state.timed_by = entry.log_id.committed_leader_id().term;
                }
                if let Some(request) = command.request {
                    state.pending.remove(&request);
                    let Request { origin, number, .. } = request;
                    let revision = applied.revision.0;
                    let is_done = !matches!(applied.reply, Reply::Rejected(_));
                    tracing::trace!(target: WRITES, index, origin, number, revision, is_done);
                }
                state.readers.changed(&applied.events);
                if Some(entry.log_id) > state.again_until {
                    state.hub.count(&applied.events);
                }
                state.hub.publish(applied.events);
                Outcome { reply: applied.reply, revision: applied.revision }
            }
        };
        state.marks.passed(index, || state.registry.hash());
        outcome
    }

    /// Publishes how far this node is.
    pub(crate) fn tell_position(&self) {
        let state = self.lock();
        let index = state.last_log_id.map_or(0, |log_id| log_id.index());
        let (revision, cluster_id) = revision_and_cluster(&state.registry);
        drop(state);
        self.position.send_replace(Position { index, revision, cluster_id });
    }

    /// Wakes the watchers and readers that the entries concern which were applied since this was
    /// last called.
    pub(crate) fn wake_watchers(&self) {
        let mut state = self.lock();
        let (watchers, readers) = (state.hub.take_wakes(), state.readers.take_wakes());
        drop(state);
        watchers.iter().chain(&readers).for_each(|waits| waits.call());
    }

    /// Lets go of what watchers need no more, as time goes by.
    pub(crate) async fn forget_old_changes(&self) -> Infallible {
        loop {
            tokio::time::sleep(AGES_EVERY).await;
            loop {
                // Dropped without the lock.
                let gone = self.lock().hub.age(Instant::now());
                if !gone.is_full() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
    }

    /// Replaces everything by what a snapshot held; what was there before.
    pub(crate) fn restore(
        &self,
        registry: Registry,
        last_log_id: Option<LogId>,
        membership: StoredMembership,
    ) -> Registry {
        let index = last_log_id.map_or(0, |log_id| log_id.index());
        let (revision, cluster_id) = revision_and_cluster(&registry);
        let mut state = self.lock();
        state.marks = Marks::begin(index, registry.hash());
        state.hub.restart(registry.revision());
        state.readers.all_changed();
        let replaced = std::mem::replace(&mut state.registry, registry);
        state.last_log_id = last_log_id;
        state.membership = membership;
        drop(state);
        self.position.send_replace(Position { index, revision, cluster_id });
        replaced
    }
}

fn revision_and_cluster(registry: &Registry) -> (u64, Option<ClusterId>) {
    (registry.revision().0, registry.cluster_id().map(ClusterId::from))
}

impl State {
    fn nothing(&self) -> Outcome {
        Outcome { reply: Reply::Done, revision: self.registry.revision() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use openraft::Membership;
    use openraft::vote::RaftLeaderId as _;
    use quorate_log::NodeId;
    use quorate_state::{Clock, Command, Share};

    use super::*;
    use crate::types::{Member, Vote};

    fn node(id: u64) -> NodeId {
        NodeId::new(id).unwrap()
    }

    fn log_id(term: u64, index: u64) -> LogId {
        LogId::new(Vote::new_committed(term, node(1)).leader_id().to_committed(), index)
    }

    /// Otherwise a new node would seem to disagree with nodes that have begun.
    #[test]
    fn the_first_membership_leaves_the_hash_as_it_was() {
        let applied = Applied::new(1, 1, Histogram::new([]));
        let before = applied.lock().marks.last();
        let founders = BTreeSet::from([1, 2, 3].map(node));
        let member = |id: &NodeId| (*id, Member::default());
        let nodes: BTreeMap<_, _> = founders.iter().map(member).collect();
        let membership = Membership::new(vec![founders], nodes).unwrap();
        let (log_id, payload) = (log_id(0, 0), EntryPayload::Membership(membership));
        applied.apply(Entry { log_id, payload });
        assert_eq!(applied.lock().membership.nodes().count(), 3);
        assert_eq!(applied.lock().marks.last(), before);
        assert_eq!(before, (0, applied.registry().hash()));
    }

    #[test]
    fn what_is_applied_is_not_under_way_any_more() {
        let applied = Applied::new(1, 1, Histogram::new([]));
        let (since, share) = (Clock(0), Share(1));
        let request = Request { origin: 7, number: 1, done_below: 0, since, digest: 0, share };
        applied.lock().pending.add(3, &request, 10);
        let command = Command { request: Some(request), ..Command::new(Clock(0), Op::Tick) };
        let (log_id, payload) = (log_id(3, 1), EntryPayload::Normal(command));
        applied.apply(Entry { log_id, payload });
        assert_eq!(applied.lock().pending.bytes(3, None), 0);
    }

    #[test]
    fn it_is_known_whose_commands_let_time_pass() {
        let applied = Applied::new(1, 1, Histogram::new([]));
        let (grace, renewal) = (Op::Grace { grace_ms: 1 }, Op::Renew(Vec::new()));
        let steps = [
            (1, 0, grace.clone(), 1),
            (1, 100, Op::Tick, 1),
            // Before its grace, the clock of a leader stands still.
            (3, 100, renewal, 1),
            (3, 100, grace, 3),
            (4, 100, Op::Tick, 3),
            (4, 101, Op::Tick, 4),
        ];
        for (index, (term, clock, op, expected)) in (1..).zip(steps) {
            let payload = EntryPayload::Normal(Command::new(Clock(clock), op));
            applied.apply(Entry { log_id: log_id(term, index), payload });
            assert_eq!(applied.lock().timed_by, expected, "at {index}");
        }
    }
}
