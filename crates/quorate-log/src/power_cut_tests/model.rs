//! What a log must contain, in the plainest form.

use openraft::entry::RaftEntry;
use openraft::storage::{RaftLogReader, RaftLogStorage};
use openraft::testing::log_id;
use openraft::type_config::alias::{EntryOf, LogIdOf, VoteOf};

use crate::LogStore;

openraft::declare_raft_types!(pub(super) Toy: D = String, R = String);

pub(super) type ToyEntry = EntryOf<Toy>;
pub(super) type ToyLogId = LogIdOf<Toy>;
pub(super) type ToyVote = VoteOf<Toy>;

pub(super) fn entry(term: u64, index: u64, payload: String) -> ToyEntry {
    ToyEntry::new_normal(log_id::<Toy>(term, 1, index), payload)
}

#[derive(Debug, Clone, Default)]
pub(super) struct State {
    pub(super) entries: Vec<ToyEntry>,
    pub(super) vote: Option<ToyVote>,
    pub(super) purged: Option<ToyLogId>,
    /// Only a hint: an older one may be found.
    pub(super) committed: Option<ToyLogId>,
}

impl State {
    pub(super) async fn read(log: &mut LogStore<Toy>) -> Self {
        let purged = log.get_log_state().await.unwrap().last_purged_log_id;
        let entries = log.try_get_log_entries(..).await.unwrap();
        let vote = log.read_vote().await.unwrap();
        Self { entries, vote, purged, committed: log.read_committed().await.unwrap() }
    }

    pub(super) fn first_index(&self) -> u64 {
        self.purged.map_or(0, |purged| purged.index + 1)
    }

    pub(super) fn next_index(&self) -> u64 {
        self.first_index() + self.entries.len() as u64
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.entries == other.entries && self.is_same_but_entries(other)
    }

    /// Whether this is `before` with the first ones of the entries that `after` has in addition.
    pub(super) fn is_between(&self, before: &Self, after: &Self) -> bool {
        self.entries.starts_with(&before.entries)
            && after.entries.starts_with(&self.entries)
            && self.is_same_but_entries(before)
            && self.is_same_but_entries(after)
    }

    fn is_same_but_entries(&self, other: &Self) -> bool {
        (self.vote, self.purged) == (other.vote, other.purged)
    }

    /// The log ids and sizes, short enough to be read.
    pub(super) fn summary(&self) -> String {
        let entries = self.entries.iter().map(|entry| format!("{}", entry.log_id()));
        let entries = entries.collect::<Vec<_>>().join(" ");
        let Self { vote, purged, committed, .. } = self;
        format!("vote {vote:?} purged {purged:?} committed {committed:?} entries {entries}")
    }
}
