//! The leader, as far as this node knows, and how fresh that is.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use quorate_log::NodeId;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::types::Vote;

/// What this node knows of its leader from the leader's own messages.
#[derive(Debug)]
pub(crate) struct Leadership {
    view: watch::Sender<Option<NodeId>>,
    /// The log index of the last change of the members that was told.
    members_as_of: AtomicU64,
    contact: Mutex<Contact>,
    moment: Mutex<Moment>,
    suspect: watch::Sender<Option<Vote>>,
    heard: AtomicBool,
    /// The highest index that leaders said is committed.
    committed: AtomicU64,
    stopping: AtomicBool,
    removed: watch::Sender<bool>,
    /// Since when this process knows that it is in a cluster.
    inside_since: OnceLock<Instant>,
}

/// A moment before which everything that was acknowledged is in each state that has come as far as
/// `revision`; `None`: none is known.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Moment {
    pub(crate) at: Option<Instant>,
    pub(crate) revision: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Contact {
    /// When the leader's last message was read; it may have been on its way for long.
    at: Option<Instant>,
    /// When this node asked the last question that a leader answered which was sure of its lead.
    asked: Option<Instant>,
    /// This node has everything that was acknowledged before this time.
    fresh_at: Option<Instant>,
    /// Committed as of this time, not yet applied.
    pending: Option<(u64, Instant)>,
}

impl Leadership {
    pub(crate) fn new() -> Self {
        let (view, contact, moment) =
            (watch::Sender::new(None), Mutex::default(), Mutex::default());
        let suspect = watch::Sender::new(None);
        let (heard, committed, stopping, members_as_of) = Default::default();
        let removed = watch::Sender::new(false);
        let inside_since = OnceLock::new();
        Self {
            view,
            members_as_of,
            contact,
            moment,
            suspect,
            heard,
            committed,
            stopping,
            removed,
            inside_since,
        }
    }

    /// The leader that this node follows or is; `None`: lost.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        *self.view.borrow()
    }

    /// Changes with the leader, and when the members do: clients are to know of both.
    pub(crate) fn views(&self) -> watch::Receiver<Option<NodeId>> {
        self.view.subscribe()
    }

    /// From now on no leader is in sight: health says "not serving", watchers look for another
    /// node.
    pub(crate) fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.set_leader(None);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Notes the leader that the ticker found; true: this is news.
    pub(crate) fn set_leader(&self, leader: Option<NodeId>) -> bool {
        let leader = leader.filter(|_| !self.is_stopping());
        self.view.send_if_modified(|view| {
            let changed = *view != leader;
            *view = leader;
            changed
        })
    }

    /// Notes as of which log index the ticker found the members; 0: not known.
    pub(crate) fn set_members(&self, as_of: u64) {
        if as_of > self.members_as_of.fetch_max(as_of, Ordering::Relaxed) {
            self.view.send_modify(|_the_same| {});
        }
    }

    /// Whether a leader said that this node is no member any more. A node that was taken out need
    /// not have heard of it: the others stop talking to it.
    pub(crate) fn is_removed(&self) -> bool {
        *self.removed.borrow()
    }

    pub(crate) fn set_removed(&self, removed: bool) {
        self.removed.send_replace(removed);
    }

    /// Waits until this node is no member any more.
    pub(crate) async fn removed(&self) {
        let mut removed = self.removed.subscribe();
        // Its sender is here: it does not end.
        let _ = removed.wait_for(|removed| *removed).await;
    }

    /// This node is in a cluster.
    pub(crate) fn set_inside(&self) {
        self.inside_since.get_or_init(Instant::now);
    }

    /// How long it has been, in this process.
    pub(super) fn inside_for(&self) -> Duration {
        self.inside_since.get().map_or(Duration::ZERO, Instant::elapsed)
    }

    /// How far leaders said they have committed, at least.
    pub(crate) fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Whether a leader other than this node was heard of since this process started.
    pub(crate) fn ever_heard(&self) -> bool {
        self.heard.load(Ordering::Relaxed)
    }

    /// A leader's message was read, which says how far it has committed. When it was sent is not
    /// known.
    pub(crate) fn heard(&self, committed: u64) {
        self.heard.store(true, Ordering::Relaxed);
        self.committed.fetch_max(committed, Ordering::Relaxed);
        let mut contact = self.contact.lock().expect("invariant: nothing panics under this lock");
        contact.at = Some(Instant::now());
    }

    /// Everything that was acknowledged before `asked` is in the log up to `committed`; `applied`
    /// is how far this node is.
    pub(super) fn confirmed(&self, committed: u64, asked: Instant, applied: u64) {
        let mut contact = self.contact.lock().expect("invariant: nothing panics under this lock");
        contact.asked = contact.asked.max(Some(asked));
        contact.settle(applied);
        if committed <= applied {
            contact.fresh_at = contact.fresh_at.max(Some(asked));
        } else if contact.pending.is_none() {
            contact.pending = Some((committed, asked));
        }
    }

    /// Keeps what is known of this node's state now.
    pub(super) fn set_moment(&self, moment: Moment) {
        *self.moment.lock().expect("invariant: nothing panics under this lock") = moment;
    }

    /// What was known of it last.
    pub(super) fn moment(&self) -> Moment {
        *self.moment.lock().expect("invariant: nothing panics under this lock")
    }

    /// Something hints that this leader is gone.
    pub(crate) fn suspect(&self, leader: Vote) {
        self.suspect.send_replace(Some(leader));
    }

    /// Follows which leader was suspected last.
    pub(crate) fn suspects(&self) -> watch::Receiver<Option<Vote>> {
        self.suspect.subscribe()
    }

    /// How long ago a leader was heard of, and led for sure; `None`: never. Messages alone prove
    /// neither: they may have waited for a node that stood still.
    pub(crate) fn silence(&self) -> Option<Duration> {
        let contact = self.contact.lock().expect("invariant: nothing panics under this lock");
        Some(contact.at?.min(contact.asked?).elapsed())
    }

    /// Everything that was acknowledged before this is in what is applied by now; `None`: unknown.
    pub(crate) fn fresh_at(&self, applied: u64) -> Option<Instant> {
        let mut contact = self.contact.lock().expect("invariant: nothing panics under this lock");
        contact.settle(applied);
        contact.fresh_at
    }
}

impl Contact {
    fn settle(&mut self, applied: u64) {
        if let Some((committed, at)) = self.pending.filter(|(committed, _)| *committed <= applied) {
            debug_assert!(committed <= applied);
            self.fresh_at = self.fresh_at.max(Some(at));
            self.pending = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn age_counts_from_the_last_question_whose_answer_is_applied() {
        let ms = Duration::from_millis;
        let leadership = Leadership::new();
        let age = |applied| leadership.fresh_at(applied).map(|at| at.elapsed());
        assert_eq!((age(0), leadership.silence()), (None, None));
        leadership.heard(0);
        assert_eq!((age(0), leadership.silence()), (None, None), "no answer yet");
        let first = Instant::now();
        tokio::time::advance(ms(40)).await;
        leadership.confirmed(5, first, 5);
        assert_eq!(age(5), Some(ms(40)), "from the question on");
        let second = Instant::now();
        tokio::time::advance(ms(5_000)).await;
        leadership.heard(0);
        leadership.confirmed(9, second, 5);
        assert_eq!(age(5), Some(ms(5_040)), "it lacks what was committed since");
        assert_eq!(leadership.silence(), Some(ms(5_000)), "a message from before a pause");
        assert_eq!(age(9), Some(ms(5_000)));
        leadership.confirmed(5, first, 9);
        assert_eq!(age(9), Some(ms(5_000)), "an older answer makes it no older");
    }
}
