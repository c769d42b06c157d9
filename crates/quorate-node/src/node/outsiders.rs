//! Nodes that speak as a leader or a candidate and are no members by the membership in effect here:
//! those that were taken out, which may still run and hold their certificates, and those that this
//! node has never heard of (ARCHITECTURE.md, "Who is a peer"). What they say is taken only when the
//! others have them as members: not their votes, which would end the lead of another, and not their
//! entries.
//!
//! What this node knows may be old, or not committed: it may lack the entry that made the sender a
//! member; an id that was taken out may have been taken in again since; and a removal that only
//! stands in this log may never come true, so that the node that it is about leads rightly. So the
//! others are asked, and the latest word counts of those that a majority knows to be committed.
//! Asking is rare: members are not asked about. It outlives the call that made it necessary, which
//! may be a heartbeat that is given up sooner.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt};
use openraft::async_runtime::watch::WatchReceiver as _;
use quorate_log::NodeId;
use quorate_state::Removal;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::node::{MemberInfo, Node};
use crate::types::Vote;

/// How long the others have to answer.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);

/// That a node is no member is good for this long: one that goes on talking makes nobody ask
/// without end.
const GOOD_FOR: Duration = Duration::from_millis(500);

/// That a node may speak is good for longer: where the others take all of `ANSWER_WITHIN`, its call
/// has been given up, and the next one comes an election's timeout later.
const MAY_FOR: Duration = Duration::from_secs(2);

/// So many nodes are asked about at a time, and others are out until then. A stranger can call
/// itself anything.
const ASKED_ABOUT_MAX: usize = 32;

/// Without a leader for so many times the silence that makes a node suspect its leader, no election
/// is under way that could succeed: some five seconds.
const ALONE_AFTER: u32 = 8;

/// Whether a node is a member by the latest membership that one of the nodes knows to be committed,
/// and the log index of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) as_of: u64,
    pub(crate) is_member: bool,
}

/// What one of the nodes says.
#[derive(Debug, Clone, Copy)]
struct Told {
    by: NodeId,
    /// `None`: it knows no members, or was taken out itself and hears nothing new.
    word: Option<Word>,
    /// It has heard a leader lately, so that it is not behind by much.
    hears_leader: bool,
}

/// What the others make of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Member,
    NoMember,
    /// Too few know.
    Unknown,
}

/// What is known of a node that is no member here.
#[derive(Debug, Clone, Copy)]
enum Known {
    /// The others are to be asked, or being asked.
    Asked,
    /// For as long as this node's own word is the same.
    Found { own: Option<Word>, until: Instant, may: bool },
}

/// What is being found out, and was lately.
#[derive(Debug, Default)]
pub(super) struct Outsiders {
    known: watch::Sender<BTreeMap<NodeId, Known>>,
}

impl Outsiders {
    /// Has a node asked about, unless that was done lately; false: too many are.
    fn ask(&self, id: NodeId, own: Option<Word>) -> bool {
        let mut has_room = true;
        self.known.send_if_modified(|known| {
            known.retain(|_, it| match it {
                Known::Asked => true,
                Known::Found { until, .. } => *until > Instant::now(),
            });
            match known.get(&id) {
                Some(Known::Asked) => return false,
                Some(Known::Found { own: then, .. }) if *then == own => return false,
                _ => {}
            }
            let asked = known.values().filter(|it| matches!(it, Known::Asked)).count();
            has_room = asked < ASKED_ABOUT_MAX;
            if has_room {
                // What was found out of those that were asked about before makes room.
                if known.len() >= 2 * ASKED_ABOUT_MAX {
                    known.retain(|_, it| matches!(it, Known::Asked));
                }
                known.insert(id, Known::Asked);
            }
            has_room
        });
        has_room
    }

    fn set(&self, id: NodeId, own: Option<Word>, may: bool) {
        let until = Instant::now() + if may { MAY_FOR } else { GOOD_FOR };
        self.known.send_modify(|known| {
            known.insert(id, Known::Found { own, until, may });
        });
    }

    /// Once it is found out, whether a node may speak.
    async fn may(&self, id: NodeId) -> bool {
        let mut known = self.known.subscribe();
        let found = known.wait_for(|known| !matches!(known.get(&id), Some(Known::Asked))).await;
        let found = found.expect("invariant: its sender is here");
        matches!(found.get(&id), Some(Known::Found { may: true, .. }))
    }
}

impl Node {
    /// Whether a node may speak as a leader or a candidate: members may, and who is one by what the
    /// others know. A node that knows no members yet takes anybody's word.
    ///
    /// # Errors
    /// Why not.
    pub(crate) async fn check_of_cluster(
        &self,
        sender: NodeId,
        vote: &Vote,
    ) -> Result<(), &'static str> {
        if self.member(sender).is_some() || !self.has_membership() {
            return Ok(());
        }
        let taken_out = self.has_taken_out(sender);
        let own = self.word_on(sender);
        // A leader that takes itself out leads until that is committed.
        if taken_out && self.follows(vote) && own.is_none_or(|word| word.is_member) {
            return Ok(());
        }
        match self.outsiders.ask(sender, own) && self.outsiders.may(sender).await {
            true => Ok(()),
            false if taken_out => Err(self.why_out(sender)),
            false => Err("it is no member of this cluster"),
        }
    }

    /// Asks the other members about those that speak and are none.
    pub(crate) async fn ask_about_outsiders(&self) -> Infallible {
        let mut known = self.outsiders.known.subscribe();
        let (mut asking, mut under_way) = (FuturesUnordered::new(), BTreeSet::new());
        loop {
            let asked: Vec<NodeId> = {
                let known = known.borrow_and_update();
                let asked = known.iter().filter(|(_, it)| matches!(it, Known::Asked));
                asked.map(|(id, _)| *id).filter(|id| !under_way.contains(id)).collect()
            };
            for id in asked {
                under_way.insert(id);
                asking.push(async move { (id, self.word_on(id), self.is_of_cluster(id).await) });
            }
            tokio::select! {
                _ = known.changed() => {}
                Some((id, own, may)) = asking.next() => {
                    under_way.remove(&id);
                    self.outsiders.set(id, own, may);
                }
            }
        }
    }

    /// The latest that this node knows to be committed of a node's membership; `None`: it knows no
    /// members.
    pub(crate) fn word_on(&self, id: NodeId) -> Option<Word> {
        let in_effect = {
            let metrics = self.metrics.borrow_watched();
            let membership = &metrics.membership_config;
            let is_committed = *membership.log_id() <= metrics.local_committed;
            is_committed.then(|| membership.clone())
        };
        let word = |log_id: Option<u64>, is_member| Some(Word { as_of: log_id?, is_member });
        if let Some(membership) = in_effect {
            let log_id = membership.log_id().map(|log_id| log_id.index());
            return word(log_id, membership.get_node(&id).is_some());
        }
        let state = self.applied.lock();
        let log_id = state.membership.log_id().map(|log_id| log_id.index());
        word(log_id, state.membership.get_node(&id).is_some())
    }

    /// Of a node that is no member by the membership in effect: whether it was one by what is
    /// applied, now or before.
    pub(super) fn has_taken_out(&self, id: NodeId) -> bool {
        let state = self.applied.lock();
        state.membership.get_node(&id).is_some() || state.registry.removal_of(id.get()).is_some()
    }

    /// Whether this node is known here to have been a member, now or before: what a change that is
    /// not committed says of it may never come true. A founding does.
    pub(crate) fn was_member_for_sure(&self) -> bool {
        let is_founder = self.member_as_of() == Some(0);
        is_founder
            || self.word_on(self.id).is_some_and(|word| word.is_member)
            || self.has_taken_out(self.id)
    }

    /// In words, of a node that counts as taken out.
    pub(super) fn why_out(&self, id: NodeId) -> &'static str {
        match self.applied.lock().registry.removal_of(id.get()) {
            Some(Removal::Perhaps) => {
                "whether it was taken out of this cluster is not known any more: its id lies between those of others that were"
            }
            Some(Removal::At(_)) | None => "it was taken out of this cluster",
        }
    }

    /// Whether this is the vote of the leader that this node follows.
    pub(crate) fn follows(&self, vote: &Vote) -> bool {
        self.view.borrow_watched().vote == *vote
    }

    /// Without a leader for this long, a node may be alone for ever.
    pub(super) fn alone_after(&self) -> Duration {
        self.silence_max() * ALONE_AFTER
    }

    /// Whether this node has heard a leader lately, or leads. One that has not been here for long
    /// may hear one yet.
    pub(crate) fn hears_leader(&self) -> bool {
        let silence = match self.leads() {
            true => Some(self.quorum_silence()),
            false => self.leadership.silence().into_iter().chain(self.leadership.lost_for()).min(),
        };
        let alone_after = self.alone_after();
        silence.is_some_and(|silence| silence < alone_after) || self.started.elapsed() < alone_after
    }

    /// Asks the other members. Where too few know, one that was taken out stays out. One that was
    /// never heard of is taken at its word where this node has heard no leader for long: all whom
    /// it knew may be gone, replaced by this one among others, and nobody else could ever bring it
    /// up to date.
    async fn is_of_cluster(&self, id: NodeId) -> bool {
        let members = self.members();
        let others = members.iter().filter(|member| member.id != self.id);
        let asked: FuturesUnordered<_> = others.map(|other| self.ask_about(id, other)).collect();
        let word = self.word_on(id).filter(|_| !self.leadership.is_removed());
        let own = Told { by: self.id, word, hears_leader: self.hears_leader() };
        let halves: Vec<BTreeSet<NodeId>> = {
            let view = self.view.borrow_watched();
            view.membership_config.membership().get_joint_config().clone()
        };
        let taken_out = self.has_taken_out(id);
        let verdict = verdict_of(own, asked, &halves, taken_out).await;
        let may = match verdict {
            Verdict::Member => true,
            Verdict::NoMember => false,
            Verdict::Unknown => !taken_out && !self.hears_leader(),
        };
        tracing::debug!(id = id.get(), ?verdict, may, "asked whether a node is a member");
        may
    }

    /// What another member knows of a node; `None`: it did not answer.
    async fn ask_about(&self, id: NodeId, other: &MemberInfo) -> Option<Told> {
        let address = self.peers.book.address(other.id, &other.member.peer_address);
        let answer = self.peers.identify(other.id, &address, Some(id), ANSWER_WITHIN).await.ok()?;
        if answer.cluster_id != self.peers.cluster_id() || answer.node_id != other.id.get() {
            return None;
        }
        let word = match (answer.in_as_of, answer.out_as_of) {
            _ if answer.removed => None,
            (0, 0) => None,
            (0, as_of) => Some(Word { as_of, is_member: false }),
            (as_of, _) => Some(Word { as_of, is_member: true }),
        };
        Some(Told { by: other.id, word, hears_leader: answer.hears_leader })
    }
}

/// What the others tell comes to, as it arrives. That it is a member is enough: what asks may be a
/// heartbeat, which is given up before a member whose machine is dead has not answered.
async fn verdict_of(
    own: Told,
    mut asked: impl Stream<Item = Option<Told>> + Unpin,
    halves: &[BTreeSet<NodeId>],
    taken_out: bool,
) -> Verdict {
    let mut told = vec![own];
    loop {
        let verdict = verdict(&told, halves, taken_out);
        if verdict == Verdict::Member {
            return verdict;
        }
        let Some(answer) = asked.next().await else { return verdict };
        told.extend(answer);
    }
}

/// What the words of these nodes come to, the latest of them; `halves`: the voters, of a change
/// that is not finished both halves.
///
/// Of a node that was taken out, a majority must have answered: a removal that was reported is
/// known to one of each majority. Of one that was never heard of, who has it as a member knows more
/// than this node; that it is none, only those can say who hear a leader, for all others may be as
/// far behind as this one.
fn verdict(told: &[Told], halves: &[BTreeSet<NodeId>], taken_out: bool) -> Verdict {
    let latest = told.iter().filter_map(|told| told.word).max_by_key(|word| word.as_of);
    let is_member = latest.is_some_and(|latest| latest.is_member);
    let majority = |knows: &dyn Fn(&Told) -> bool| {
        let of_half = |half: &BTreeSet<NodeId>| {
            let known = told.iter().filter(|told| half.contains(&told.by) && knows(told)).count();
            2 * known > half.len()
        };
        halves.iter().all(of_half)
    };
    if is_member && (!taken_out || majority(&|told| told.word.is_some())) {
        return Verdict::Member;
    }
    match majority(&|told| told.word.is_some() && (taken_out || told.hears_leader)) {
        true => Verdict::NoMember,
        false => Verdict::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::Verdict::{Member, NoMember, Unknown};
    use super::*;

    const IN: bool = true;
    const OUT: bool = false;

    fn node(number: u64) -> NodeId {
        NodeId::new(number).unwrap()
    }

    fn voters(all: &[u64]) -> BTreeSet<NodeId> {
        all.iter().copied().map(node).collect()
    }

    /// Of a node that hears a leader.
    fn told(by: u64, as_of: u64, is_member: bool) -> Told {
        Told { by: node(by), word: Some(Word { as_of, is_member }), hears_leader: true }
    }

    fn behind(by: u64, as_of: u64, is_member: bool) -> Told {
        Told { hears_leader: false, ..told(by, as_of, is_member) }
    }

    fn wordless(by: u64) -> Told {
        Told { by: node(by), word: None, hears_leader: false }
    }

    /// The one that asks is node 1; voters are 1, 2 and 3.
    #[test]
    fn of_a_node_that_was_taken_out_the_latest_word_of_a_majority_counts() {
        let voters = [voters(&[1, 2, 3])];
        for (what, words, expected) in [
            ("it alone knows better", &[(1, 9, OUT), (2, 5, IN), (3, 5, IN)][..], NoMember),
            ("it has it in its log only", &[(1, 5, IN), (2, 5, IN), (3, 5, IN)], Member),
            ("nobody can say whether it is committed", &[(1, 5, IN)], Unknown),
            ("a majority can: it is not", &[(1, 5, IN), (3, 5, IN)], Member),
            ("one knows that it is committed", &[(1, 5, IN), (2, 5, IN), (3, 9, OUT)], NoMember),
            ("it was taken in again", &[(1, 9, OUT), (2, 20, IN)], Member),
            ("and taken out again", &[(1, 9, OUT), (2, 20, IN), (3, 25, OUT)], NoMember),
            ("by the word of a node without a vote", &[(1, 9, OUT), (7, 20, IN)], Unknown),
        ] {
            for told in [told, behind] {
                let told: Vec<_> = words.iter().map(|&(by, at, is)| told(by, at, is)).collect();
                assert_eq!(verdict(&told, &voters, true), expected, "{what}");
            }
        }
        let silent = [told(1, 5, IN), wordless(2)];
        assert_eq!(verdict(&silent, &voters, true), Unknown, "one that was taken out has no word");
        let joint = [self::voters(&[1, 2, 3]), self::voters(&[2, 3, 4])];
        let later = [told(2, 9, OUT), told(3, 20, IN)];
        assert_eq!(verdict(&later, &joint, true), Member, "a majority of either half");
    }

    #[test]
    fn of_a_node_that_was_never_heard_of_those_count_who_hear_a_leader() {
        let voters = [voters(&[1, 2, 3])];
        for (what, told, expected) in [
            ("a stranger", &[told(1, 5, OUT), told(2, 9, OUT)][..], NoMember),
            ("this one alone knows", &[told(1, 5, OUT)], Unknown),
            ("another one is as far behind", &[behind(1, 5, OUT), behind(2, 5, OUT)], Unknown),
            ("the other was taken out", &[behind(1, 5, OUT), wordless(2)], Unknown),
            ("one that is up to date has it", &[behind(1, 5, OUT), told(2, 20, IN)], Member),
            ("also without a vote", &[behind(1, 5, OUT), told(7, 20, IN)], Member),
            (
                "it was taken out since",
                &[told(1, 5, OUT), told(2, 9, IN), told(3, 20, OUT)],
                NoMember,
            ),
        ] {
            assert_eq!(verdict(told, &voters, false), expected, "{what}");
        }
    }

    /// A heartbeat waits no longer than 80 ms.
    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_dead_member_where_a_majority_has_it_as_one() {
        let voters = [voters(&[1, 2, 3])];
        let after = |ms, answer: Option<(u64, u64, bool)>| async move {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            answer.map(|(by, as_of, is_member)| told(by, as_of, is_member))
        };
        let own = told(1, 9, OUT);
        for (what, answers, expected, within_ms) in [
            ("one is dead", [(5, Some((2, 20, IN))), (500, None)], Member, 5),
            (
                "the one that knows is slow",
                [(5, Some((2, 9, OUT))), (90, Some((3, 20, IN)))],
                Member,
                90,
            ),
            ("it is out", [(5, Some((2, 9, OUT))), (500, None)], NoMember, 500),
            ("both are dead", [(500, None), (500, None)], Unknown, 500),
        ] {
            let begun = Instant::now();
            let asked: FuturesUnordered<_> =
                answers.into_iter().map(|(ms, answer)| after(ms, answer)).collect();
            assert_eq!(verdict_of(own, asked, &voters, true).await, expected, "{what}");
            assert_eq!(begun.elapsed(), Duration::from_millis(within_ms), "{what}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_found_out_is_good_for_a_while_and_for_the_same_members() {
        let outsiders = Outsiders::default();
        let own = Some(Word { as_of: 5, is_member: false });
        let asks = || {
            let known = outsiders.known.borrow();
            known.values().filter(|it| matches!(it, Known::Asked)).count()
        };
        for number in 1..=ASKED_ABOUT_MAX as u64 {
            assert!(outsiders.ask(node(number), own));
            assert!(outsiders.ask(node(number), own), "it is being asked about");
        }
        assert!(!outsiders.ask(node(1_000), own), "too many");
        assert_eq!(asks(), ASKED_ABOUT_MAX);
        outsiders.set(node(1), own, true);
        outsiders.set(node(2), own, false);
        assert!(outsiders.may(node(1)).await && !outsiders.may(node(2)).await);
        tokio::time::advance(GOOD_FOR).await;
        assert!(outsiders.ask(node(1), own) && outsiders.may(node(1)).await, "that it may: longer");
        let rest = asks();
        assert!(outsiders.ask(node(2), own));
        assert_eq!(asks(), rest + 1, "it is asked about again");
        let removed = Some(Word { as_of: 9, is_member: false });
        assert!(outsiders.ask(node(1), removed));
        assert_eq!(asks(), rest + 2, "the members are others");
    }
}
