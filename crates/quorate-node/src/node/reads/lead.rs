//! Whether another node's vote for this leader spares the round that would confirm its lead.

use std::collections::BTreeSet;

use openraft::RaftState;
use openraft::vote::RaftLeaderId as _;
use quorate_log::NodeId;

use crate::types::{LogId, TypeConfig, Vote};

/// What a node's Raft says of its lead.
pub(super) struct Lead<'a> {
    me: NodeId,
    leads: bool,
    vote: &'a Vote,
    /// The last entry that a quorum has.
    committed: Option<&'a LogId>,
    /// The voters whose majorities count: two sets while a change of membership goes on.
    voters: &'a [BTreeSet<NodeId>],
}

impl<'a> Lead<'a> {
    pub(super) fn of(state: &'a RaftState<TypeConfig>, me: NodeId) -> Self {
        Self {
            me,
            leads: state.server_state.is_leader(),
            vote: state.vote_ref(),
            committed: state.cluster_committed(),
            voters: state.membership_state.effective().get_joint_config(),
        }
    }

    /// The index that reads of another node have to wait for, if it and this one, which leads, are
    /// a quorum.
    ///
    /// That node read its vote after its reads had begun, and it is this leader's: until then it
    /// had voted for no later one. So its question says what its answer to a heartbeat would (Raft
    /// thesis, section 6.4, steps 1 and 2), a round trip sooner.
    pub(super) fn vouched(&self, from: NodeId, vote: &Vote) -> Option<u64> {
        let leads = self.leads && self.vote == vote && vote.is_committed();
        let is_quorum = |voters: &BTreeSet<NodeId>| {
            let both = [self.me, from].iter().filter(|id| voters.contains(id)).count();
            self.me != from && both > voters.len() / 2
        };
        // Of an earlier term, it would not show how far that term's leader got.
        let committed = self.committed?;
        let of_this_term = committed.committed_leader_id() == &vote.leader_id().to_committed();
        (leads && of_this_term && self.voters.iter().all(is_quorum)).then_some(committed.index())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u64) -> NodeId {
        NodeId::new(number).unwrap()
    }

    /// Node 1 asks whether it can vouch for node 2's reads.
    #[test]
    fn a_voter_with_the_leaders_vote_is_vouched_for_where_two_are_a_quorum() {
        let committed = |term, number| Vote::new_committed(term, node(number));
        let (ours, at) =
            (committed(5, 1), |vote: Vote| LogId::new(vote.leader_id().to_committed(), 9));
        let three: &[&[u64]] = &[&[1, 2, 3]];
        for (what, from, vote, leads, last, voters, vouched) in [
            ("three voters", 2, ours, true, Some(ours), three, true),
            ("two voters", 2, ours, true, Some(ours), &[&[1, 2]], true),
            ("itself", 1, ours, true, Some(ours), three, false),
            ("no leader any more", 2, ours, false, Some(ours), three, false),
            ("a vote for another, later", 2, committed(6, 3), true, Some(ours), three, false),
            ("a vote for another, earlier", 2, committed(4, 3), true, Some(ours), three, false),
            (
                "a vote for its last lead",
                2,
                committed(4, 1),
                true,
                Some(committed(4, 1)),
                three,
                false,
            ),
            ("a vote in an election", 2, Vote::new(5, node(1)), true, Some(ours), three, false),
            ("nothing committed", 2, ours, true, None, three, false),
            ("committed in an earlier term", 2, ours, true, Some(committed(4, 1)), three, false),
            ("a learner", 4, ours, true, Some(ours), three, false),
            ("a leader that is no voter", 2, ours, true, Some(ours), &[&[2, 3, 4]], false),
            ("four voters", 2, ours, true, Some(ours), &[&[1, 2, 3, 4]], false),
            ("five voters", 2, ours, true, Some(ours), &[&[1, 2, 3, 4, 5]], false),
            ("a quorum of both", 2, ours, true, Some(ours), &[&[1, 2, 3], &[1, 2, 4]], true),
            ("of the old only", 2, ours, true, Some(ours), &[&[1, 2, 3], &[1, 3, 4]], false),
            ("of the new only", 2, ours, true, Some(ours), &[&[1, 3, 4], &[1, 2, 3]], false),
        ] {
            let voters: Vec<BTreeSet<NodeId>> =
                voters.iter().map(|ids| ids.iter().copied().map(node).collect()).collect();
            let last: Option<LogId> = last.map(at);
            let committed = last.as_ref();
            let lead = Lead { me: node(1), leads, vote: &ours, committed, voters: &voters };
            assert_eq!(lead.vouched(node(from), &vote), vouched.then_some(9), "{what}");
        }
        // A leader whose own vote is not for itself as the leader, but the same as the asker's.
        let (candidate, voters) = (Vote::new(5, node(1)), [BTreeSet::from([1, 2, 3].map(node))]);
        let last = at(ours);
        let (vote, committed) = (&candidate, Some(&last));
        let lead = Lead { me: node(1), leads: true, vote, committed, voters: &voters };
        assert_eq!(lead.vouched(node(2), &candidate), None, "not elected yet");
    }
}
