//! Nodes that this one knows to have been taken out. Such a node may still run and hold its
//! certificate, and what it says as a leader or a candidate is taken no more: not its vote, which
//! would end the lead of another, and not its entries (ARCHITECTURE.md, "Who is a peer").
//!
//! What this node knows may be old, or not committed: the id may have been taken in again since,
//! and a removal that only stands in this log may never come true, so that the node that it is
//! about leads rightly. So the others are asked, and the latest word counts of those that a
//! majority knows to be committed. Asking is rare: members are not asked about, nor are nodes that
//! were never heard of.

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

/// Whether a node is a member by the latest membership that one of the nodes knows to be committed,
/// and the log index of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) as_of: u64,
    pub(crate) is_member: bool,
}

/// What was found out lately, and when.
#[derive(Debug, Default)]
pub(super) struct Found(Mutex<BTreeMap<NodeId, (Instant, bool)>>);

impl Found {
    /// What is known of a node; `None`: it has to be asked. Until that is done, the node is out.
    fn lately(&self, id: NodeId) -> Option<bool> {
        let mut found = self.0.lock().expect("invariant: nothing panics under this lock");
        found.retain(|_, (at, _)| at.elapsed() < GOOD_FOR);
        let known = found.get(&id).map(|(_, is_member)| *is_member);
        found.entry(id).or_insert_with(|| (Instant::now(), false));
        known
    }

    fn set(&self, id: NodeId, is_member: bool) {
        let mut found = self.0.lock().expect("invariant: nothing panics under this lock");
        found.insert(id, (Instant::now(), is_member));
    }
}

impl Node {
    /// Whether a node may speak as a leader or a candidate, as far as it matters that nodes are
    /// taken out: members and nodes that this one does not know may.
    ///
    /// # Errors
    /// Why not.
    pub(crate) async fn check_not_evicted(
        &self,
        sender: NodeId,
        vote: &Vote,
    ) -> Result<(), &'static str> {
        let is_member = self.view.borrow_watched().membership_config.get_node(&sender).is_some();
        if is_member || !self.has_taken_out(sender) {
            return Ok(());
        }
        // A leader that takes itself out leads until that is committed.
        if self.follows(vote) && self.word_on(sender).is_none_or(|word| word.is_member) {
            return Ok(());
        }
        match self.is_member_after_all(sender).await {
            true => Ok(()),
            false => Err("it was taken out of this cluster"),
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

    /// Asks the other members, unless that was done a moment ago.
    async fn is_member_after_all(&self, id: NodeId) -> bool {
        if let Some(is_member) = self.evicted.lately(id) {
            return is_member;
        }
        let members = self.members();
        let others = members.iter().filter(|member| member.id != self.id);
        let asked: FuturesUnordered<_> = others.map(|other| self.ask_about(id, other)).collect();
        let voters = members.iter().filter(|member| member.voter).map(|member| member.id);
        let own = (self.id, self.word_on(id));
        let is_member = is_member_by(own, asked, &voters.collect()).await;
        tracing::debug!(id = id.get(), is_member, "asked whether a node is a member again");
        self.evicted.set(id, is_member);
        is_member
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
async fn is_member_by(
    own: (NodeId, Option<Word>),
    mut asked: impl Stream<Item = Option<(NodeId, Option<Word>)>> + Unpin,
    voters: &BTreeSet<NodeId>,
) -> bool {
    let mut words = vec![own];
    while !is_member(&words, voters) {
        let Some(word) = asked.next().await else { return false };
        words.extend(word);
    }
    true
}

/// What the words of these nodes come to; with fewer than a majority of the voters among them,
/// nothing is sure.
fn is_member(words: &[(NodeId, Option<Word>)], voters: &BTreeSet<NodeId>) -> bool {
    let answered = words.iter().filter(|(id, _)| voters.contains(id)).count();
    let latest = words.iter().filter_map(|(_, word)| *word).max_by_key(|word| word.as_of);
    2 * answered > voters.len() && latest.is_some_and(|latest| latest.is_member)
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
        const IN: bool = true;
        const OUT: bool = false;
        let voters = (1..=3).map(node).collect();
        for (what, words, expected) in [
            ("it alone knows better", &[(1, 9, OUT), (2, 5, IN), (3, 5, IN)][..], OUT),
            ("it has it in its log only", &[(1, 5, IN), (2, 5, IN), (3, 5, IN)], IN),
            ("nobody can say whether it is committed", &[(1, 5, IN)], OUT),
            ("a majority can: it is not", &[(1, 5, IN), (3, 5, IN)], IN),
            ("one knows that it is committed", &[(1, 5, IN), (2, 5, IN), (3, 9, OUT)], OUT),
            ("it was taken in again", &[(1, 9, OUT), (2, 20, IN)], IN),
            ("and taken out again", &[(1, 9, OUT), (2, 20, IN), (3, 25, OUT)], OUT),
            ("by the word of a node without a vote", &[(1, 9, OUT), (7, 20, IN)], OUT),
        ] {
            let word = |&(id, as_of, is_member): &(u64, u64, bool)| {
                (node(id), Some(Word { as_of, is_member }))
            };
            let words: Vec<_> = words.iter().map(word).collect();
            assert_eq!(is_member(&words, &voters), expected, "{what}");
        }
        let silent = [(node(1), Some(Word { as_of: 5, is_member: IN })), (node(2), None)];
        assert!(is_member(&silent, &voters), "one that knows no members has answered");
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
        for (what, answers, expected, within_ms) in [
            ("one is dead", [(5, Some((2, 20, true))), (500, None)], true, 5),
            (
                "the one that knows is slow",
                [(5, Some((2, 9, false))), (90, Some((3, 20, true)))],
                true,
                90,
            ),
            ("it is out", [(5, Some((2, 9, false))), (500, None)], false, 500),
            ("both are dead", [(500, None), (500, None)], false, 500),
        ] {
            let begun = Instant::now();
            let asked: FuturesUnordered<_> =
                answers.into_iter().map(|(ms, answer)| after(ms, answer)).collect();
            assert_eq!(is_member_by(own, asked, &voters).await, expected, "{what}");
            assert_eq!(begun.elapsed(), Duration::from_millis(within_ms), "{what}");
        }
    }
}
