//! Who leads, as far as this node can tell, and how fresh that is.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::raft::types::Vote;

/// What this node knows of its leader from the leader's own messages.
#[derive(Debug)]
pub(crate) struct Leadership {
    view: watch::Sender<Option<u64>>,
    contact: Mutex<Contact>,
    suspect: watch::Sender<Option<Vote>>,
    heard: AtomicBool,
    /// The highest index that leaders said is committed.
    committed: AtomicU64,
    stopping: AtomicBool,
    removed: AtomicBool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Contact {
    /// When the leader was last heard of.
    at: Option<Instant>,
    /// This node had applied everything that was committed at this time.
    fresh_at: Option<Instant>,
    /// Committed as of this time, not yet applied.
    pending: Option<(u64, Instant)>,
}

impl Leadership {
    pub(crate) fn new() -> Self {
        let (view, contact) = (watch::Sender::new(None), Mutex::default());
        let suspect = watch::Sender::new(None);
        let (heard, committed, stopping, removed) = Default::default();
        Self { view, contact, suspect, heard, committed, stopping, removed }
    }

    /// The leader that this node follows or is; `None`: lost.
    pub(crate) fn leader(&self) -> Option<u64> {
        *self.view.borrow()
    }

    pub(crate) fn views(&self) -> watch::Receiver<Option<u64>> {
        self.view.subscribe()
    }

    /// From now on no leader is in sight: health says "not serving", watchers look for another node.
    pub(crate) fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.set_leader(None);
    }

    /// The ticker tells what it found; true: this is news.
    pub(crate) fn set_leader(&self, leader: Option<u64>) -> bool {
        let leader = leader.filter(|_| !self.stopping.load(Ordering::Relaxed));
        self.view.send_if_modified(|view| {
            let changed = *view != leader;
            *view = leader;
            changed
        })
    }

    /// Whether a leader said that this node is no member any more. A node that was taken out need not have been told: the
    /// others stop talking to it.
    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed)
    }

    pub(crate) fn set_removed(&self, removed: bool) {
        self.removed.store(removed, Ordering::Relaxed);
    }

    /// How far leaders said they have committed, at least.
    pub(crate) fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Whether a leader other than this node was heard of since this process started.
    pub(crate) fn ever_heard(&self) -> bool {
        self.heard.load(Ordering::Relaxed)
    }

    /// A leader's message arrived that says how far it has committed; `applied` is how far this node is.
    pub(crate) fn heard(&self, committed: u64, applied: u64) {
        let now = Instant::now();
        self.heard.store(true, Ordering::Relaxed);
        self.committed.fetch_max(committed, Ordering::Relaxed);
        let mut contact = self.contact.lock().expect("invariant: nothing panics under this lock");
        contact.at = Some(now);
        contact.settle(applied);
        if committed <= applied {
            contact.fresh_at = Some(now);
            contact.pending = None;
        } else if contact.pending.is_none() {
            contact.pending = Some((committed, now));
        }
    }

    /// Something hints that this leader is gone.
    pub(crate) fn suspect(&self, leader: Vote) {
        self.suspect.send_replace(Some(leader));
    }

    /// Follows which leader was suspected last.
    pub(crate) fn suspects(&self) -> watch::Receiver<Option<Vote>> {
        self.suspect.subscribe()
    }

    /// How long ago a leader was heard of; `None`: never.
    pub(crate) fn silence(&self) -> Option<Duration> {
        let contact = self.contact.lock().expect("invariant: nothing panics under this lock");
        contact.at.map(|at| at.elapsed())
    }

    /// How old the state of a follower may be that has applied so far; `None`: unknown.
    pub(crate) fn age(&self, applied: u64) -> Option<Duration> {
        let mut contact = self.contact.lock().expect("invariant: nothing panics under this lock");
        contact.settle(applied);
        contact.fresh_at.map(|at| at.elapsed())
    }
}

impl Contact {
    fn settle(&mut self, applied: u64) {
        if let Some((committed, at)) = self.pending.filter(|(committed, _)| *committed <= applied) {
            debug_assert!(committed <= applied);
            self.fresh_at = Some(at);
            self.pending = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn age_counts_from_the_last_message_that_is_applied() {
        let leadership = Leadership::new();
        assert_eq!(leadership.age(0), None);
        leadership.heard(5, 5);
        tokio::time::advance(Duration::from_millis(100)).await;
        leadership.heard(9, 5);
        tokio::time::advance(Duration::from_millis(50)).await;
        assert_eq!(leadership.age(5), Some(Duration::from_millis(150)));
        assert_eq!(leadership.age(9), Some(Duration::from_millis(50)));
    }
}
