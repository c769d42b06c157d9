//! The leader, as far as this node knows, and how fresh that is.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use quorate_log::NodeId;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::types::Vote;

/// A node that was asked to lead and did not come to is not asked again for this long.
const UNTAKEN_FOR: Duration = Duration::from_secs(10);

/// What this node knows of its leader from the leader's own messages.
#[derive(Debug)]
pub(crate) struct Leadership {
    view: watch::Sender<Option<NodeId>>,
    /// The log index of the last change of the members that was told.
    members_as_of: AtomicU64,
    contact: Mutex<Contact>,
    moment: Mutex<Moment>,
    suspect: watch::Sender<Option<Vote>>,
    /// The term of the first leader that was heard since this process started, or was it; 0: none.
    first_term: AtomicU64,
    /// The highest index that leaders said is committed.
    committed: AtomicU64,
    stopping: AtomicBool,
    removed: watch::Sender<bool>,
    handed: watch::Sender<Option<Handed>>,
    /// The node that did not take the lead, and when that was given up.
    untaken: Mutex<Option<(NodeId, Instant)>>,
    /// Since when this process knows that it is in a cluster.
    inside_since: OnceLock<Instant>,
    /// When the leader was lost that was in sight last.
    lost_at: Mutex<Option<Instant>>,
}

/// This node has asked another one to lead, and takes no writes until one does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Handed {
    pub(crate) to: NodeId,
    /// The term in which this node leads.
    pub(crate) term: u64,
    pub(crate) since: Instant,
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
        let (first_term, committed, stopping, members_as_of) = Default::default();
        let (removed, handed, untaken) =
            (watch::Sender::new(false), watch::Sender::new(None), Mutex::default());
        let (inside_since, lost_at) = Default::default();
        Self {
            view,
            members_as_of,
            contact,
            moment,
            suspect,
            first_term,
            committed,
            stopping,
            removed,
            handed,
            untaken,
            inside_since,
            lost_at,
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

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Notes the leader that the ticker found; true: this is news.
    pub(crate) fn set_leader(&self, leader: Option<NodeId>) -> bool {
        let leader = leader.filter(|_| !self.is_stopping());
        self.view.send_if_modified(|view| {
            let changed = *view != leader;
            if changed && leader.is_none() {
                *self.lost_at.lock().expect("invariant: nothing panics under this lock") =
                    Some(Instant::now());
            }
            *view = leader;
            changed
        })
    }

    /// How long there has been no leader in sight; `None`: since this process started, or there is
    /// one.
    pub(super) fn lost_for(&self) -> Option<Duration> {
        let at = *self.lost_at.lock().expect("invariant: nothing panics under this lock");
        at.filter(|_| self.leader().is_none()).map(|at| at.elapsed())
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

    /// Whether the whole cluster was down when this process started, and no lead since then has let
    /// time pass, as far as this node knows; `timed_by`: the last leader whose commands, of those
    /// that are applied here, did so. A leader that was heard runs since before this process or was
    /// elected after that began, for no process leads again in the term that it led in before: so
    /// what let time pass in its term, or later, shows that leases were renewed meanwhile. What
    /// did in an earlier term may be from before the end of all.
    pub(crate) fn all_was_down(&self, timed_by: u64) -> bool {
        let first = self.first_term.load(Ordering::Relaxed);
        first == 0 || timed_by < first
    }

    /// This node leads in this term, and its grace is applied.
    pub(crate) fn led(&self, term: u64) {
        let (set, load) = (Ordering::Relaxed, Ordering::Relaxed);
        let _is_set_already = self.first_term.compare_exchange(0, term, set, load);
    }

    /// A message of a leader of this term was read, which says how far it has committed. When it
    /// was sent is not known.
    pub(crate) fn heard(&self, term: u64, committed: u64) {
        self.led(term);
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

    /// This node has asked another one to lead. Of several in a term, the first began the wait.
    pub(super) fn hands_over(&self, handed: Handed) {
        self.handed.send_if_modified(|last| {
            let is_first = last.is_none_or(|last| last.term != handed.term);
            if is_first {
                *last = Some(handed);
            }
            is_first
        });
    }

    /// Follows when this node hands the lead over.
    pub(crate) fn handed(&self) -> watch::Receiver<Option<Handed>> {
        self.handed.subscribe()
    }

    /// A node that was asked to lead did not come to.
    pub(crate) fn set_untaken(&self, id: NodeId) {
        let mut untaken = self.untaken.lock().expect("invariant: nothing panics under this lock");
        *untaken = Some((id, Instant::now()));
    }

    /// Whether this node was asked to lead a moment ago, and did not come to.
    pub(super) fn was_untaken(&self, id: NodeId) -> bool {
        let untaken = self.untaken.lock().expect("invariant: nothing panics under this lock");
        untaken.is_some_and(|(it, at)| it == id && at.elapsed() < UNTAKEN_FOR)
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
    async fn who_did_not_take_the_lead_is_left_alone_for_a_while() {
        let (leadership, one, other) =
            (Leadership::new(), NodeId::new(1).unwrap(), NodeId::new(2).unwrap());
        let mut handed = leadership.handed();
        let first = Handed { to: one, term: 3, since: Instant::now() };
        leadership.hands_over(first);
        leadership.hands_over(Handed { to: other, ..first });
        assert_eq!(*handed.borrow_and_update(), Some(first), "the wait began with the first");
        let later = Handed { term: 4, ..first };
        leadership.hands_over(later);
        assert_eq!(*handed.borrow_and_update(), Some(later));
        assert!(!leadership.was_untaken(one));
        leadership.set_untaken(one);
        assert!(leadership.was_untaken(one) && !leadership.was_untaken(other));
        tokio::time::advance(UNTAKEN_FOR).await;
        assert!(!leadership.was_untaken(one));
    }

    #[tokio::test(start_paused = true)]
    async fn age_counts_from_the_last_question_whose_answer_is_applied() {
        let ms = Duration::from_millis;
        let leadership = Leadership::new();
        let age = |applied| leadership.fresh_at(applied).map(|at| at.elapsed());
        assert_eq!((age(0), leadership.silence()), (None, None));
        leadership.heard(1, 0);
        assert_eq!((age(0), leadership.silence()), (None, None), "no answer yet");
        let first = Instant::now();
        tokio::time::advance(ms(40)).await;
        leadership.confirmed(5, first, 5);
        assert_eq!(age(5), Some(ms(40)), "from the question on");
        let second = Instant::now();
        tokio::time::advance(ms(5_000)).await;
        leadership.heard(1, 0);
        leadership.confirmed(9, second, 5);
        assert_eq!(age(5), Some(ms(5_040)), "it lacks what was committed since");
        assert_eq!(leadership.silence(), Some(ms(5_000)), "a message from before a pause");
        assert_eq!(age(9), Some(ms(5_000)));
        leadership.confirmed(5, first, 9);
        assert_eq!(age(9), Some(ms(5_000)), "an older answer makes it no older");
    }

    /// After a restart of all, the first leader to be heard is dead before its grace is applied:
    /// any append counted as a sign that others had been there all along.
    #[test]
    fn only_a_lead_that_let_time_pass_shows_that_the_cluster_was_up() {
        let leadership = Leadership::new();
        assert!(leadership.all_was_down(0) && leadership.all_was_down(7), "none was heard");
        leadership.heard(8, 0);
        assert!(leadership.all_was_down(7), "what is applied is from before");
        assert!(!leadership.all_was_down(8), "its grace is applied");
        leadership.heard(9, 0);
        assert!(!leadership.all_was_down(8), "the next one gave none, but this one did");

        // One that was down alone, and finds the leader that it had.
        let leadership = Leadership::new();
        leadership.heard(7, 0);
        assert!(!leadership.all_was_down(7));

        let leadership = Leadership::new();
        leadership.led(9);
        assert!(!leadership.all_was_down(9), "it was the leader itself");
    }
}
