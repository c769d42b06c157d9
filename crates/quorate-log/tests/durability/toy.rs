//! A type configuration, a state machine and a driver for the tests.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures_util::{Stream, TryStreamExt};
use openraft::entry::RaftEntry;
use openraft::storage::{
    EntryResponder, IOFlushed, RaftLogReader, RaftLogStorage, RaftSnapshotBuilder, RaftStateMachine,
};
use openraft::testing::log_id;
use openraft::type_config::TypeConfigExt;
use openraft::type_config::alias::{
    EntryOf, LogIdOf, OneshotReceiverOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf, VoteOf,
};
use openraft::{EntryPayload, LogState, OptionalSend, Snapshot};
use quorate_log::{Io, LogOptions, LogStore};

openraft::declare_raft_types!(pub Toy: D = String, R = String);

pub(crate) type ToyEntry = EntryOf<Toy>;
pub(crate) type ToyLogId = LogIdOf<Toy>;
pub(crate) type ToyVote = VoteOf<Toy>;

/// So that tests go through many turns of the journal, and some groups are too large for it.
const SMALL_JOURNAL: Option<usize> = Some(64 * 1024);

/// Keeps nothing in memory that it can read from disk, so that reads test the disk.
pub(crate) const FROM_DISK: LogOptions =
    LogOptions { io: Io::Thread, recent_bytes_max: Some(0), journal_bytes_max: SMALL_JOURNAL };
pub(crate) const INLINE: LogOptions =
    LogOptions { io: Io::Inline, recent_bytes_max: Some(0), journal_bytes_max: SMALL_JOURNAL };

pub(crate) fn id(term: u64, index: u64) -> ToyLogId {
    log_id::<Toy>(term, 1, index)
}

pub(crate) fn entry(term: u64, index: u64, payload: impl Into<String>) -> ToyEntry {
    ToyEntry::new_normal(id(term, index), payload.into())
}

/// Entries whose payload names their term and index, so that a wrong one shows.
pub(crate) fn entries(term: u64, indexes: std::ops::Range<u64>) -> Vec<ToyEntry> {
    indexes.map(|index| entry(term, index, format!("payload {term}/{index}"))).collect()
}

pub(crate) fn open(dir: &Path, options: LogOptions) -> LogStore<Toy> {
    LogStore::open(dir, options).unwrap()
}

/// Run a test's future. Time is virtual: openraft's suite sleeps for eight seconds.
pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().start_paused(true).build().unwrap().block_on(future)
}

/// Append without waiting; the receiver resolves when the entries are durable.
pub(crate) async fn append_queued(
    log: &mut LogStore<Toy>,
    entries: Vec<ToyEntry>,
) -> OneshotReceiverOf<Toy, io::Result<()>> {
    let (done, durable) = Toy::oneshot();
    log.append(entries, IOFlushed::signal(done)).await.unwrap();
    durable
}

/// Append and wait until the entries are durable.
pub(crate) async fn append(log: &mut LogStore<Toy>, entries: Vec<ToyEntry>) {
    append_queued(log, entries).await.await.unwrap().unwrap();
}

pub(crate) async fn read_all(log: &mut LogStore<Toy>) -> Vec<ToyEntry> {
    log.try_get_log_entries(..).await.unwrap()
}

/// Everything that openraft asks for when it starts.
#[derive(Debug, PartialEq)]
pub(crate) struct Contents {
    pub(crate) state: LogState<Toy>,
    pub(crate) vote: Option<ToyVote>,
    pub(crate) committed: Option<ToyLogId>,
    pub(crate) entries: Vec<ToyEntry>,
}

pub(crate) async fn contents(log: &mut LogStore<Toy>) -> Contents {
    Contents {
        state: log.get_log_state().await.unwrap(),
        vote: log.read_vote().await.unwrap(),
        committed: log.read_committed().await.unwrap(),
        entries: read_all(log).await,
    }
}

/// Copy a directory as a crash would leave it: what is in the files now, whether they are open or
/// not.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for item in std::fs::read_dir(from).unwrap() {
        let path = item.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_dir(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// As if sled alone had to bring everything back.
pub(crate) fn remove_journal(dir: &Path) {
    for name in ["journal-0", "journal-1"] {
        std::fs::remove_file(dir.join(name)).unwrap();
    }
}

/// A state machine that remembers what was applied. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct ToyMachine {
    state: Arc<Mutex<ToyState>>,
}

#[derive(Debug, Default)]
struct ToyState {
    applied: Option<ToyLogId>,
    membership: StoredMembershipOf<Toy>,
    snapshot: Option<SnapshotMetaOf<Toy>>,
}

impl ToyMachine {
    fn state(&self) -> MutexGuard<'_, ToyState> {
        self.state.lock().unwrap()
    }
}

impl RaftStateMachine<Toy> for ToyMachine {
    type SnapshotData = ();
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<ToyLogId>, StoredMembershipOf<Toy>), io::Error> {
        let state = self.state();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Toy>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let mut state = self.state();
            state.applied = Some(entry.log_id());
            if let EntryPayload::Membership(membership) = entry.payload {
                state.membership = StoredMembershipOf::<Toy>::new(state.applied, membership);
            }
            if let Some(responder) = responder {
                responder.send(String::new());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<Toy>,
        (): (),
    ) -> Result<(), io::Error> {
        let mut state = self.state();
        state.applied = meta.last_log_id;
        state.membership = meta.last_membership.clone();
        state.snapshot = Some(meta.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<Toy, ()>>, io::Error> {
        Ok(self.state().snapshot.clone().map(|meta| Snapshot { meta, snapshot: () }))
    }
}

impl RaftSnapshotBuilder<Toy> for ToyMachine {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<Toy, ()>, io::Error> {
        let mut state = self.state();
        let meta = SnapshotMetaOf::<Toy> {
            last_log_id: state.applied,
            last_membership: state.membership.clone(),
        };
        state.snapshot = Some(meta.clone());
        Ok(Snapshot { meta, snapshot: () })
    }
}

/// sled as the log opens it, once its own threads have let go of the file: a moment after the last
/// close.
pub(crate) fn open_sled(dir: &Path) -> sled::Db {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match sled::Config::new().path(dir).segment_size(2 << 20).open() {
            Err(error)
                if error.to_string().contains("acquire lock") && Instant::now() < deadline =>
            {
                std::thread::yield_now();
            }
            opened => return opened.unwrap(),
        }
    }
}
