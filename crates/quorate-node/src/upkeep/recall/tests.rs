//! What a node is held to by its promises, and which candidates it votes for then.

use openraft::vote::RaftLeaderId as _;

use super::*;
use crate::raft::recall::{Promise, Recall};
use crate::types::{LogId, Vote};

fn node(number: u64) -> NodeId {
    NodeId::new(number).unwrap()
}

fn at(term: u64, index: u64) -> Option<LogId> {
    Some(LogId::new(Vote::new_committed(term, node(1)).leader_id().to_committed(), index))
}

#[test]
fn a_promise_is_broken_by_an_older_vote_or_a_shorter_log_of_the_same_term() {
    let mut promise = Promise::default();
    assert!(promise.is_kept_by(Reached::default()), "nothing was promised");
    promise.note(3, at(2, 8));
    promise.note(3, at(3, 9));
    promise.note(3, at(2, 7));
    for (what, term, last, kept) in [
        ("as far", 3, at(3, 9), true),
        ("further", 3, at(3, 12), true),
        ("less of the log", 3, at(3, 8), false),
        ("less of the log, before that leader's", 3, at(2, 20), false),
        ("an older vote", 2, at(3, 9), false),
        ("nothing", 0, None, false),
        ("a later leader has cut its log", 4, at(2, 8), true),
    ] {
        assert_eq!(promise.is_kept_by(Reached { term, last }), kept, "{what}");
    }
    // It voted in a later term, and no entry of that one is known: a crash may have come between a
    // cut and an append.
    promise.note(5, None);
    assert!(promise.is_kept_by(Reached { term: 5, last: at(2, 8) }));
    assert!(!promise.is_kept_by(Reached { term: 4, last: at(4, 99) }));
    promise.note(4, at(4, 99));
    assert_eq!((promise.term, promise.in_term), (5, None), "an answer that came late");
}

#[test]
fn a_copy_waits_until_one_of_every_quorum_that_it_was_in_has_answered() {
    let told = |ids: &[u64]| {
        let none = Recalled { reached: Reached::default(), promise: Promise::default() };
        ids.iter().map(|id| (node(*id), none)).collect::<BTreeMap<_, _>>()
    };
    for (configs, answered, missing) in [
        (&[&[1][..]][..], &[][..], 0),
        (&[&[1, 2]], &[], 1),
        (&[&[1, 2]], &[2], 0),
        (&[&[1, 2, 3]], &[3], 1),
        (&[&[1, 2, 3]], &[2, 3], 0),
        (&[&[1, 2, 3, 4, 5]], &[2, 3], 1),
        (&[&[1, 2, 3, 4, 5]], &[2, 3, 5], 0),
        (&[&[1, 2, 3], &[1, 3, 4]], &[2, 3], 1),
        (&[&[1, 2, 3], &[1, 3, 4]], &[2, 3, 4], 0),
        (&[&[2, 3, 4]], &[2, 3], 0),
        (&[], &[], 0),
    ] {
        let sets: Vec<BTreeSet<NodeId>> =
            configs.iter().map(|ids| ids.iter().copied().map(node).collect()).collect();
        let found = missing_answers(node(1), &sets, &told(answered));
        assert_eq!(found, missing, "of {configs:?} {answered:?} answered");
    }
}

#[tokio::test]
async fn one_that_is_behind_votes_only_for_who_has_what_it_promised() {
    let recall = Recall::new(node(1));
    let floor = Reached { term: 5, last: at(5, 20) };
    recall.settle(Standing::Behind(floor));
    for (term, last, votes) in [
        (6, at(5, 20), true),
        (6, at(6, 3), true),
        (6, at(5, 19), false),
        (5, at(5, 20), false),
        (4, at(5, 20), false),
    ] {
        let voted = recall.check_candidate(term, last).await.is_ok();
        assert_eq!(voted, votes, "term {term}, {last:?}");
    }
    assert!(recall.check_leader(4).await.is_err());
    assert!(recall.check_leader(5).await.is_ok());
    let later = recall.later_vote(4).await.unwrap();
    assert_eq!(later, Some(Vote::new(5, node(1))), "a leader that it outvoted steps down");
    assert_eq!(recall.later_vote(5).await.unwrap(), None);
    assert!(recall.check_stands(at(5, 19)).await.is_err());
    assert!(recall.check_stands(at(5, 20)).await.is_ok());
    assert!(!recall.knows_its_vote(4) && recall.knows_its_vote(5));
}

#[test]
fn what_was_promised_before_the_start_is_looked_for() {
    let told = |term, last| {
        let mut promise = Promise::default();
        promise.note(term, last);
        Recalled { reached: Reached::default(), promise }
    };
    let (old, none) = (Reached { term: 3, last: at(3, 4) }, Reached::default());
    let now = |term, last| Reached { term, last };
    let acknowledged = now(3, at(3, 9));
    for (what, reached, answer, floor) in [
        ("it has it", old, told(3, at(3, 4)), none),
        ("it lacks some", old, told(3, at(3, 9)), acknowledged),
        (
            "a later leader has given it nothing yet",
            now(4, at(3, 4)),
            told(3, at(3, 9)),
            acknowledged,
        ),
        ("it was given all since", now(4, at(4, 10)), told(3, at(3, 9)), none),
        ("it acknowledged that since", now(5, at(5, 12)), told(5, at(5, 12)), none),
        ("it lacks a vote", old, told(6, None), now(6, None)),
    ] {
        assert_eq!(broken(old, reached, [answer].iter()), floor, "{what}");
    }
}
