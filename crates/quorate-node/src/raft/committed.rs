//! What is committed on this node, and whether what a leader sends leaves that as it is.

use std::cmp::Ordering;
use std::io;

use openraft::raft::AppendEntriesRequest;
use openraft::storage::{RaftLogReader as _, RaftLogStorage as _};
use openraft::vote::RaftLeaderId as _;

use crate::types::{LogId, LogStore, TypeConfig, Vote};

/// The last entry of this node's log.
///
/// # Errors
/// The log cannot be read.
pub(crate) async fn last_log_id(log: &LogStore) -> io::Result<Option<LogId>> {
    Ok(log.clone().get_log_state().await?.last_log_id)
}

/// The last entry that this node knows to be committed; `applied`: the last that it has applied.
///
/// # Errors
/// The log cannot be read.
pub(crate) async fn up_to(log: &LogStore, applied: Option<LogId>) -> io::Result<Option<LogId>> {
    Ok(log.clone().read_committed().await?.max(applied))
}

/// Whether the entries of an append follow each other, and the one before them, in a term that its
/// sender leads in or that was before. Raft takes that for granted.
pub(crate) fn follow_each_other(append: &AppendEntriesRequest<TypeConfig>) -> bool {
    let term = append.vote.leader_id().term();
    let mut before = append.prev_log_id;
    append.entries.iter().all(|entry| {
        let at = entry.log_id;
        let next = before.map_or(Some(0), |before| before.index().checked_add(1));
        let follows = next == Some(at.index())
            && before.is_none_or(|before| before < at)
            && at.committed_leader_id().term <= term;
        before = Some(at);
        follows
    })
}

/// The index, if any, where an append has another entry than is committed here. `applied`: the last
/// entry that is applied here; `known`: an index up to which entries are known to be committed.
///
/// # Errors
/// The log cannot be read.
pub(crate) async fn other_entry(
    log: &LogStore,
    append: &AppendEntriesRequest<TypeConfig>,
    applied: Option<LogId>,
    known: u64,
) -> io::Result<Option<u64>> {
    let known = known.max(applied.map_or(0, |id| id.index()));
    let previous = append.prev_log_id;
    // Mostly it goes on behind what is committed, and only then nothing has to be read.
    let goes_on = |previous: LogId| match previous.index().cmp(&known) {
        Ordering::Greater => true,
        Ordering::Equal => applied == Some(previous),
        Ordering::Less => false,
    };
    if previous.is_some_and(goes_on) {
        return Ok(None);
    }
    let sent = previous.into_iter().chain(append.entries.iter().map(|entry| entry.log_id));
    let sent: Vec<LogId> = sent.collect();
    let Some((first, last)) = sent.first().zip(sent.last()) else { return Ok(None) };
    let committed = up_to(log, applied).await?;
    let Some(committed) = committed.filter(|committed| first.index() <= committed.index()) else {
        return Ok(None);
    };
    let range = first.index()..=last.index().min(committed.index());
    let ours = log.clone().try_get_log_entries(range).await?;
    // What is purged here cannot be compared, but is of no later term than what is committed behind
    // it.
    let other = sent.iter().find(|sent| {
        let held = ours.iter().find(|ours| ours.log_id.index() == sent.index());
        match held {
            Some(held) => held.log_id != **sent,
            None => sent.index() <= committed.index() && **sent > committed,
        }
    });
    Ok(other.map(LogId::index))
}

/// What a snapshot of a leader is to this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// It goes further than what is committed here: it may replace that.
    Further,
    /// All of it is committed here. A leader sends such a one when answers to its appends were lost
    /// and its log is purged behind them; it has to be told that this node has it, or it sends the
    /// same again for ever.
    Covered,
}

/// How far a snapshot up to `last` goes, sent by a leader with this vote. Both the term and the
/// place count: a later term alone would let a snapshot in that goes less far.
pub(crate) fn reach(
    last: Option<LogId>,
    vote: &Vote,
    committed: Option<LogId>,
) -> Result<Reach, &'static str> {
    let Some(last) = last else { return Err("its snapshot is of no entries") };
    if *last.committed_leader_id() > vote.leader_id().to_committed() {
        return Err("its snapshot is of a later term than its lead");
    }
    let Some(committed) = committed else { return Ok(Reach::Further) };
    match (last.index().cmp(&committed.index()), last.cmp(&committed)) {
        (Ordering::Greater, Ordering::Greater) => Ok(Reach::Further),
        (Ordering::Equal, Ordering::Equal) | (Ordering::Less, Ordering::Less) => Ok(Reach::Covered),
        (Ordering::Greater, _) => {
            Err("its snapshot is of an earlier term than what is committed here")
        }
        (Ordering::Equal | Ordering::Less, _) => {
            Err("its snapshot has another entry at its end than was committed there")
        }
    }
}

#[cfg(test)]
mod tests {
    use openraft::EntryPayload;
    use quorate_log::NodeId;

    use super::*;
    use crate::types::Entry;

    #[test]
    fn entries_follow_each_other() {
        let id = |(term, index): (u64, u64)| LogId::new(term.into(), index);
        for (what, previous, entries, expected) in [
            ("none", Some((4, 9)), &[][..], true),
            ("the next", Some((4, 9)), &[(4, 10), (4, 11)], true),
            ("of a later term", Some((3, 9)), &[(3, 10), (4, 11)], true),
            ("the first of all", None, &[(0, 0), (4, 1)], true),
            ("not the first of all", None, &[(4, 1)], false),
            ("one is missing before them", Some((4, 9)), &[(4, 11)], false),
            ("one is missing among them", Some((4, 9)), &[(4, 10), (4, 12)], false),
            ("one comes twice", Some((4, 9)), &[(4, 10), (4, 10)], false),
            ("it is there already", Some((4, 9)), &[(4, 9)], false),
            ("of an earlier term", Some((4, 9)), &[(3, 10)], false),
            ("of a term after its lead", Some((4, 9)), &[(5, 10)], false),
            ("behind the last of all", Some((4, u64::MAX)), &[(4, 0)], false),
        ] {
            let entries =
                entries.iter().map(|at| Entry { log_id: id(*at), payload: EntryPayload::Blank });
            let append = AppendEntriesRequest {
                vote: Vote::new_committed(4, NodeId::new(1).unwrap()),
                prev_log_id: previous.map(id),
                entries: entries.collect(),
                leader_commit: None,
            };
            assert_eq!(follow_each_other(&append), expected, "{what}");
        }
    }

    #[test]
    fn a_snapshot_is_installed_where_it_goes_further_and_is_there_where_it_does_not() {
        let (further, covered) = (Some(Reach::Further), Some(Reach::Covered));
        let id = |term, index| {
            Some(LogId::new(
                Vote::new_committed(term, NodeId::new(1).unwrap()).leader_id().to_committed(),
                index,
            ))
        };
        for (what, last, term, committed, wanted) in [
            ("further", id(3, 20), 4, id(3, 10), further),
            ("further, of a later term", id(4, 20), 4, id(3, 10), further),
            ("the same again", id(3, 10), 4, id(3, 10), covered),
            ("to a node that has nothing", id(3, 10), 4, None, further),
            ("older", id(3, 9), 4, id(3, 10), covered),
            ("further, of an earlier term", id(2, 20), 4, id(3, 10), None),
            ("less far, of a later term", id(4, 9), 4, id(3, 10), None),
            ("another one at the same place", id(4, 10), 4, id(3, 10), None),
            ("of a term after its lead", id(5, 20), 4, id(3, 10), None),
            ("of nothing", None, 4, id(3, 10), None),
            ("of nothing, to a node that has nothing", None, 4, None, None),
        ] {
            let vote = Vote::new_committed(term, NodeId::new(1).unwrap());
            let reach = reach(last, &vote, committed);
            assert_eq!(reach.ok(), wanted, "{what}: {reach:?}");
        }
    }
}
