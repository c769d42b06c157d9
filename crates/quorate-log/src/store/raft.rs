//! openraft's log traits for [`LogStore`].

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::type_config::alias::{EntryOf, LogIdOf, VoteOf};
use openraft::{LogState, OptionalSend, RaftTypeConfig};
use tokio::sync::oneshot;

use super::{LogStore, encode_meta, undecodable};
use crate::disk::codec;
use crate::disk::meta::MetaKey;
use crate::error::LogError;
use crate::memory::Kept;
use crate::store::writer::{Change, Operation, Report};

/// What one read for replication returns at most, in encoded bytes: it must fit into one message to
/// a follower.
const REPLICATION_READ_BYTES_MAX: usize = 1024 * 1024;

/// Room for an encoded entry of the usual size: one that grows with it is copied several times.
const ENTRY_BYTES_USUAL: usize = 512;

impl<C: RaftTypeConfig> LogStore<C>
where
    EntryOf<C>: Clone,
{
    /// Entries of `[start, end)` that the log has, from the first on, at most `bytes_max` but at
    /// least one.
    fn read_entries(
        &self,
        start: u64,
        end: u64,
        bytes_max: usize,
    ) -> Result<Vec<EntryOf<C>>, LogError> {
        loop {
            let (range, recent_index, removals) = {
                let memory = self.shared().memory();
                let range = start.max(memory.first_index())..end.min(memory.next_index());
                (range, memory.recent_index(), memory.removals)
            };
            if range.is_empty() {
                return Ok(Vec::new());
            }
            let mut budget = Budget::new(bytes_max);
            let mut entries = Vec::new();
            let from_disk = range.start..range.end.min(recent_index);
            let disk_read = if from_disk.is_empty() {
                Ok(())
            } else {
                self.read_disk(from_disk, &mut budget, &mut entries)
            };
            let memory = self.shared().memory();
            if memory.removals != removals {
                continue;
            }
            disk_read?;
            let next_index = range.start + entries.len() as u64;
            if budget.is_spent() || next_index >= range.end {
                return Ok(entries);
            }
            if next_index < memory.recent_index() {
                // Evicted while the disk was read: it can be read there now.
                continue;
            }
            memory.read(next_index..range.end, |entry, bytes| {
                entries.push(entry);
                budget.spend(bytes)
            });
            return Ok(entries);
        }
    }

    fn read_disk(
        &self,
        range: std::ops::Range<u64>,
        budget: &mut Budget,
        entries: &mut Vec<EntryOf<C>>,
    ) -> Result<(), LogError> {
        self.shared().with_disk(|disk| {
            disk.read(range, |index, bytes| {
                let entry = codec::content::<EntryOf<C>>(bytes)
                    .map_err(|source| undecodable(disk, index, source))?;
                entries.push(entry);
                Ok(budget.spend(bytes.len()))
            })
        })
    }
}

impl<C: RaftTypeConfig> RaftLogReader<C> for LogStore<C>
where
    EntryOf<C>: Clone,
{
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<EntryOf<C>>, io::Error> {
        let start = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(index) => index.saturating_add(1),
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        Ok(self.read_entries(start, end, usize::MAX)?)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<EntryOf<C>>, io::Error> {
        Ok(self.read_entries(start, end, REPLICATION_READ_BYTES_MAX)?)
    }

    async fn read_vote(&mut self) -> Result<Option<VoteOf<C>>, io::Error> {
        Ok(self.shared().memory().vote.clone())
    }
}

impl<C: RaftTypeConfig> RaftLogStorage<C> for LogStore<C>
where
    EntryOf<C>: Clone,
{
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<C>, io::Error> {
        let memory = self.shared().memory();
        let last_purged_log_id = memory.purged.clone();
        let last_log_id = memory.last_log_id.clone().or_else(|| last_purged_log_id.clone());
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<C>) -> Result<(), io::Error> {
        let remembered = vote.clone();
        self.put(MetaKey::Vote, vote, move |memory| memory.vote = Some(remembered)).await?;
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogIdOf<C>>) -> Result<(), io::Error> {
        // Only a hint, from which a restart applies sooner: it waits for the next write rather than
        // wake the writer.
        let seq = self.last_seq();
        let value = encode_meta(MetaKey::Committed, seq, &committed)?;
        self.shared().memory_mut().set_committed(committed, seq, value);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogIdOf<C>>, io::Error> {
        Ok(self.shared().memory().committed.clone())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<C>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = EntryOf<C>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut batch = Vec::new();
        let mut encoded = Vec::new();
        for entry in entries {
            let bytes = postcard::to_extend(&entry, Vec::with_capacity(ENTRY_BYTES_USUAL))
                .map_err(|source| LogError::Encode { what: "an entry", source })?;
            encoded.push(bytes);
            batch.push(entry);
        }
        self.submit(move |memory, next_seq| {
            if let Some(first) = batch.first() {
                memory.begin_at(first.index());
            }
            let first_index = memory.next_index();
            for (expected_index, entry) in (first_index..).zip(&batch) {
                let found_index = entry.index();
                if found_index != expected_index {
                    return Err(LogError::NotConsecutive { expected_index, found_index });
                }
            }
            let records = codec::encode(first_index, *next_seq, &encoded);
            *next_seq += records.len() as u64;
            let seq = (!records.is_empty()).then(|| *next_seq - 1);
            let change = Change::Append { records, entries: batch.len() as u64 };
            for (entry, bytes) in batch.into_iter().zip(&encoded) {
                let seq = seq.unwrap_or_default();
                memory.push(Kept { entry, encoded_bytes: bytes.len(), seq });
            }
            Ok(Operation { change, seq, report: Report::Raft(callback) })
        })
        .await?;
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogIdOf<C>>) -> Result<(), io::Error> {
        let from_index = last_log_id.as_ref().map_or(0, |log_id| log_id.index + 1);
        if from_index >= self.shared().memory().next_index() {
            return Ok(());
        }
        // Raft installs a snapshot behind this, which is durable by itself: what a power cut could
        // bring back would contradict it, and the log would never open again.
        let (done, durable) = oneshot::channel();
        self.submit(move |memory, next_seq| {
            let from_index = from_index.max(memory.first_index());
            let seq = *next_seq;
            let mark = encode_meta(MetaKey::Truncated, seq, &from_index)?;
            *next_seq += 1;
            let remaining = last_log_id.filter(|log_id| log_id.index >= memory.first_index());
            memory.truncate(from_index, remaining);
            let change = Change::Truncate { from_index, mark };
            Ok(Operation { change, seq: Some(seq), report: Report::Caller(done) })
        })
        .await?;
        Ok(durable.await.unwrap_or_else(|_| Err(self.shared().closed()))?)
    }

    async fn purge(&mut self, log_id: LogIdOf<C>) -> Result<(), io::Error> {
        let purged_index = self.shared().memory().purged.as_ref().map(|purged| purged.index);
        if Some(log_id.index) <= purged_index {
            return Ok(());
        }
        self.submit(move |memory, next_seq| {
            let seq = *next_seq;
            let mark = encode_meta(MetaKey::Purged, seq, &log_id)?;
            *next_seq += 1;
            let change = Change::Purge { last_index: log_id.index, mark };
            memory.purge(log_id);
            Ok(Operation { change, seq: Some(seq), report: Report::Nobody })
        })
        .await?;
        Ok(())
    }
}

/// How many bytes a read may still return. The first entry always fits.
struct Budget {
    bytes_left: usize,
    spent: bool,
}

impl Budget {
    fn new(bytes_max: usize) -> Self {
        Self { bytes_left: bytes_max, spent: false }
    }

    /// Count an entry; whether there is room for another.
    fn spend(&mut self, bytes: usize) -> bool {
        self.bytes_left = self.bytes_left.saturating_sub(bytes);
        self.spent = self.bytes_left == 0;
        !self.spent
    }

    fn is_spent(&self) -> bool {
        self.spent
    }
}
