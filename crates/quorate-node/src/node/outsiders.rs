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
//! Asking is rare: members are not asked about.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt};
use openraft::async_runtime::watch::WatchReceiver as _;
use quorate_log::NodeId;
use tokio::time::Instant;

use crate::node::{MemberInfo, Node};
use crate::types::Vote;

/// How long the others have to answer.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);

/// What they said is good for this long: a node that goes on talking makes nobody ask without end.
const GOOD_FOR: Duration = Duration::from_millis(500);

/// That a node is a member may take them all of `ANSWER_WITHIN`, when its question was given up. It
/// has to be known still when it comes back with it, an election's timeout later.
const MEMBER_FOR: Duration = Duration::from_secs(2);

/// So many nodes are asked about at a time; others are out until one of these is forgotten. A
/// stranger can call itself anything.
const ASKED_ABOUT_MAX: usize = 32;

/// Whether a node is a member by the latest membership that one of the nodes knows to be committed,
/// and the log index of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) as_of: u64,
    pub(crate) is_member: bool,
}

/// What the others make of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Member,
    NoMember,
    /// Fewer than a majority of the voters answered.
    Unknown,
}

/// What was found out lately, and until when that is good.
#[derive(Debug, Default)]
pub(super) struct Found(Mutex<BTreeMap<NodeId, (Instant, bool)>>);

impl Found {
    /// Whether what a node says may be taken; `None`: the others have to be asked. Until that is
    /// done, it may not.
    fn lately(&self, id: NodeId) -> Option<bool> {
        let mut found = self.0.lock().expect("invariant: nothing panics under this lock");
        found.retain(|_, (until, _)| *until > Instant::now());
        if let Some((_, may)) = found.get(&id) {
            return Some(*may);
        }
        if found.len() >= ASKED_ABOUT_MAX {
            return Some(false);
        }
        found.insert(id, (Instant::now() + GOOD_FOR, false));
        None
    }

    fn set(&self, id: NodeId, may: bool) {
        let good_for = if may { MEMBER_FOR } else { GOOD_FOR };
        let mut found = self.0.lock().expect("invariant: nothing panics under this lock");
        found.insert(id, (Instant::now() + good_for, may));
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
        // A leader that takes itself out leads until that is committed.
        let still_leads = || self.word_on(sender).is_none_or(|word| word.is_member);
        if taken_out && self.follows(vote) && still_leads() {
            return Ok(());
        }
        match self.is_of_cluster(sender, taken_out).await {
            true => Ok(()),
            false if taken_out => Err("it was taken out of this cluster"),
            false => Err("it is no member of this cluster"),
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
        state.membership.get_node(&id).is_some() || state.registry.removed_at(id.get()).is_some()
    }

    /// Whether this is the vote of the leader that this node follows.
    pub(crate) fn follows(&self, vote: &Vote) -> bool {
        self.view.borrow_watched().vote == *vote
    }

    /// Asks the other members, unless that was done a moment ago. When too few answer, one that was
    /// taken out stays out. One that was never heard of is taken at its word where this node sees no
    /// leader: all whom it knew may be gone, replaced by this one among others, and nobody else
    /// could ever bring it up to date.
    async fn is_of_cluster(&self, id: NodeId, taken_out: bool) -> bool {
        if let Some(may) = self.outsiders.lately(id) {
            return may;
        }
        let members = self.members();
        let others = members.iter().filter(|member| member.id != self.id);
        let asked: FuturesUnordered<_> = others.map(|other| self.ask_about(id, other)).collect();
        let voters = members.iter().filter(|member| member.voter).map(|member| member.id);
        let own = (self.id, self.word_on(id));
        let verdict = verdict_of(own, asked, &voters.collect()).await;
        let may = match verdict {
            Verdict::Member => true,
            Verdict::NoMember => false,
            Verdict::Unknown => !taken_out && self.leadership.leader().is_none(),
        };
        tracing::debug!(id = id.get(), ?verdict, may, "asked whether a node is a member");
        self.outsiders.set(id, may);
        may
    }

    /// What another member knows of a node; `None`: it did not answer.
    async fn ask_about(&self, id: NodeId, other: &MemberInfo) -> Option<(NodeId, Option<Word>)> {
        let address = self.peers.book.address(other.id, &other.member.peer_address);
        let answer = self.peers.identify(other.id, &address, Some(id), ANSWER_WITHIN).await.ok()?;
        if answer.cluster_id != self.peers.cluster_id() || answer.node_id != other.id.get() {
            return None;
        }
        let word = match (answer.in_as_of, answer.out_as_of) {
            (0, 0) => None,
            (0, as_of) => Some(Word { as_of, is_member: false }),
            (as_of, _) => Some(Word { as_of, is_member: true }),
        };
        Some((other.id, word))
    }
}

/// What the words of these nodes come to, as they arrive. A majority that has it as a member is
/// enough: a removal that was reported is known to one of each majority. What asks may be a
/// heartbeat, which is given up before a member whose machine is dead has not answered.
async fn verdict_of(
    own: (NodeId, Option<Word>),
    mut asked: impl Stream<Item = Option<(NodeId, Option<Word>)>> + Unpin,
    voters: &BTreeSet<NodeId>,
) -> Verdict {
    let mut words = vec![own];
    loop {
        let verdict = verdict(&words, voters);
        if verdict == Verdict::Member {
            return verdict;
        }
        let Some(word) = asked.next().await else { return verdict };
        words.extend(word);
    }
}

/// What the words of these nodes come to; with fewer than a majority of the voters among them,
/// nothing is sure.
fn verdict(words: &[(NodeId, Option<Word>)], voters: &BTreeSet<NodeId>) -> Verdict {
    let answered = words.iter().filter(|(id, _)| voters.contains(id)).count();
    if 2 * answered <= voters.len() {
        return Verdict::Unknown;
    }
    let latest = words.iter().filter_map(|(_, word)| *word).max_by_key(|word| word.as_of);
    match latest.is_some_and(|latest| latest.is_member) {
        true => Verdict::Member,
        false => Verdict::NoMember,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u64) -> NodeId {
        NodeId::new(number).unwrap()
    }

    /// The one that asks is node 1; voters are 1, 2 and 3.
    #[test]
    fn the_latest_word_of_a_majority_counts() {
        use Verdict::{Member, NoMember, Unknown};
        const IN: bool = true;
        const OUT: bool = false;
        let voters = (1..=3).map(node).collect();
        for (what, words, expected) in [
            ("it alone knows better", &[(1, 9, OUT), (2, 5, IN), (3, 5, IN)][..], NoMember),
            ("it has it in its log only", &[(1, 5, IN), (2, 5, IN), (3, 5, IN)], Member),
            ("nobody can say whether it is committed", &[(1, 5, IN)], Unknown),
            ("a majority can: it is not", &[(1, 5, IN), (3, 5, IN)], Member),
            ("one knows that it is committed", &[(1, 5, IN), (2, 5, IN), (3, 9, OUT)], NoMember),
            ("it was taken in again", &[(1, 9, OUT), (2, 20, IN)], Member),
            ("and taken out again", &[(1, 9, OUT), (2, 20, IN), (3, 25, OUT)], NoMember),
            ("nobody has heard of it", &[(1, 5, OUT), (2, 5, OUT), (3, 9, OUT)], NoMember),
            ("by the word of a node without a vote", &[(1, 9, OUT), (7, 20, IN)], Unknown),
        ] {
            let word = |&(id, as_of, is_member): &(u64, u64, bool)| {
                (node(id), Some(Word { as_of, is_member }))
            };
            let words: Vec<_> = words.iter().map(word).collect();
            assert_eq!(verdict(&words, &voters), expected, "{what}");
        }
        let silent = [(node(1), Some(Word { as_of: 5, is_member: IN })), (node(2), None)];
        let said = verdict(&silent, &voters);
        assert_eq!(said, Member, "one that knows no members has answered");
    }

    /// A heartbeat waits no longer than 80 ms.
    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_dead_member_where_a_majority_has_it_as_one() {
        let voters = (1..=3).map(node).collect();
        let after = |ms, answer: Option<(u64, u64, bool)>| async move {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            answer.map(|(id, as_of, is_member)| (node(id), Some(Word { as_of, is_member })))
        };
        let own = (node(1), Some(Word { as_of: 9, is_member: false }));
        use Verdict::{Member, NoMember, Unknown};
        for (what, answers, expected, within_ms) in [
            ("one is dead", [(5, Some((2, 20, true))), (500, None)], Member, 5),
            (
                "the one that knows is slow",
                [(5, Some((2, 9, false))), (90, Some((3, 20, true)))],
                Member,
                90,
            ),
            ("it is out", [(5, Some((2, 9, false))), (500, None)], NoMember, 500),
            ("both are dead", [(500, None), (500, None)], Unknown, 500),
        ] {
            let begun = Instant::now();
            let asked: FuturesUnordered<_> =
                answers.into_iter().map(|(ms, answer)| after(ms, answer)).collect();
            assert_eq!(verdict_of(own, asked, &voters).await, expected, "{what}");
            assert_eq!(begun.elapsed(), Duration::from_millis(within_ms), "{what}");
        }
    }

    /// Until the others have answered, nothing is taken; and nobody makes them be asked about ever
    /// more nodes.
    #[tokio::test(start_paused = true)]
    async fn few_nodes_are_asked_about_at_a_time() {
        let found = Found::default();
        assert_eq!(found.lately(node(1)), None);
        assert_eq!(found.lately(node(1)), Some(false), "it is being asked about");
        for number in 2..=ASKED_ABOUT_MAX as u64 {
            assert_eq!(found.lately(node(number)), None);
        }
        assert_eq!(found.lately(node(1_000)), Some(false), "too many");
        found.set(node(1), true);
        tokio::time::advance(GOOD_FOR).await;
        assert_eq!(found.lately(node(1)), Some(true), "a member is known longer");
        assert_eq!(found.lately(node(1_000)), None);
        tokio::time::advance(MEMBER_FOR).await;
        assert_eq!(found.lately(node(1)), None);
    }
}
