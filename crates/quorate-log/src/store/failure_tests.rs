//! A disk that takes a write no more: what reached it is not known then, and nothing follows that
//! would hide it.

#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

use std::cell::RefCell;
use std::io;
use std::num::NonZeroU64;
use std::rc::Rc;

use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::testing::log_id;
use openraft::type_config::TypeConfigExt;
use openraft::type_config::alias::{EntryOf, VoteOf};

use super::*;
use crate::NodeId;
use crate::observe::{self, Event, Step};

openraft::declare_raft_types!(Toy: D = String, R = String);

const WITNESS: &str = "acknowledged";

fn entries(indexes: std::ops::Range<u64>) -> Vec<EntryOf<Toy>> {
    indexes.map(|at| EntryOf::<Toy>::new_normal(log_id::<Toy>(1, 1, at), at.to_string())).collect()
}

fn open(dir: &Path) -> LogStore<Toy> {
    LogStore::open(dir, LogOptions { io: Io::Inline, ..LogOptions::default() }).unwrap()
}

/// Until it is durable, or failed.
async fn append(log: &mut LogStore<Toy>, entries: Vec<EntryOf<Toy>>) -> io::Result<()> {
    let (done, durable) = Toy::oneshot();
    log.append(entries, IOFlushed::signal(done)).await?;
    durable.await.unwrap()
}

/// The files that are written for each group; sled may yet write what it was given before.
fn files(dir: &Path) -> [Vec<u8>; 3] {
    ["journal-0", "journal-1", WITNESS].map(|name| fs::read(dir.join(name)).unwrap())
}

/// The failure that a refused write names as the first one.
fn first_failure(refused: &io::Error) -> Option<&LogError> {
    match refused.get_ref()?.downcast_ref()? {
        LogError::Failed { source, .. } => Some(source),
        _ => None,
    }
}

#[test]
fn after_the_first_failure_nothing_more_is_written() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for step in [Step::Write, Step::Sync] {
        runtime.block_on(fail_at(step));
    }
}

async fn fail_at(step: Step) {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    append(&mut log, entries(0..3)).await.unwrap();
    let touched = Rc::new(RefCell::new(Vec::new()));
    let seen = touched.clone();
    observe::set(Some(Box::new(move |event: Event<'_>| {
        seen.borrow_mut().push(format!("{event:?}"));
    })));

    observe::fail_next(step);
    let failed = append(&mut log, entries(3..4)).await.unwrap_err();
    assert_eq!(failed.kind(), io::ErrorKind::StorageFull, "{failed}");
    assert!(first_failure(&failed).is_none(), "it is the first: {failed}");
    let left = files(dir.path());
    touched.borrow_mut().clear();

    // The disk would take all of it now.
    let identity = Identity {
        cluster_id: None,
        founders: NonZeroU64::new(1),
        node_id: NodeId::new(1).unwrap(),
    };
    let claimed = Identity { cluster_id: NonZeroU64::new(7), ..identity };
    let stamped = log.stamp(claimed).await.map_err(|error| match error {
        StampError::Write { source, .. } => io::Error::from(source),
        other => panic!("{other}"),
    });
    // It had its place in the order before, behind a writer of its own.
    let (done, queued) = oneshot::channel();
    if let Lane::Inline(state) = &log.inner.lane {
        let (next_seq, writer) = &mut *lock(state);
        let value = encode_meta(MetaKey::Vote, *next_seq, &VoteOf::<Toy>::new(2, 1)).unwrap();
        let change = Change::Put { key: MetaKey::Vote, value };
        let (seq, report) = (Some(*next_seq), Report::Caller(done));
        writer.write_group(vec![Operation { change, seq, report }]);
    }
    for (what, written) in [
        ("what was queued", queued.await.unwrap().map_err(Into::into)),
        ("append", append(&mut log, entries(4..5)).await),
        ("vote", log.save_vote(&VoteOf::<Toy>::new(2, 1)).await),
        ("truncate", log.truncate_after(Some(log_id::<Toy>(1, 1, 1))).await),
        ("purge", log.purge(log_id::<Toy>(1, 1, 0)).await),
        ("stamp", stamped),
        ("shrink", log.shrink_within(None).await.map_err(Into::into)),
    ] {
        let refused = written.err().unwrap_or_else(|| panic!("{what}: it was taken"));
        let first = first_failure(&refused).unwrap_or_else(|| panic!("{what}: {refused}"));
        assert!(matches!(first, LogError::Io { source, .. } if source.kind() == failed.kind()));
    }
    assert!(log.close().is_err_and(|error| matches!(error, LogError::Failed { .. })));
    observe::set(None);
    assert_eq!(*touched.borrow(), [""; 0], "after a failure to {step:?}");
    assert!(files(dir.path()) == left, "the files have changed after a failure to {step:?}");

    // What was acknowledged is there; of the one that failed, nobody knows.
    let mut again = open(dir.path());
    let found = again.try_get_log_entries(..).await.unwrap();
    assert!(found.len() >= 3 && entries(0..4).starts_with(&found), "{found:?}");
    assert!(again.read_vote().await.unwrap().is_none() && again.identity().is_none());
}

/// Stamped, and what its witness was each time that it was synced.
async fn watched(dir: &Path) -> (LogStore<Toy>, Rc<RefCell<Vec<Vec<u8>>>>) {
    let synced = Rc::new(RefCell::new(Vec::new()));
    let seen = synced.clone();
    observe::set(Some(Box::new(move |event: Event<'_>| {
        if let Event::Synced(path) = event
            && path.ends_with(WITNESS)
        {
            seen.borrow_mut().push(fs::read(path).unwrap());
        }
    })));
    let log = open(dir);
    let (cluster_id, founders) = (None, NonZeroU64::new(1));
    let identity = Identity { cluster_id, founders, node_id: NodeId::new(1).unwrap() };
    log.stamp(identity).await.unwrap();
    (log, synced)
}

/// Of the witness, a power cut may leave what was synced last, and may tear either of its slots.
#[test]
fn that_a_log_is_doubted_survives_a_power_cut() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, synced) = watched(dir.path()).await;
        append(&mut log, entries(0..3)).await.unwrap();
        assert_eq!(synced.borrow().len(), 1, "when it was opened");
        log.set_doubted(true).await.unwrap();
        append(&mut log, entries(3..6)).await.unwrap();
        assert_eq!(synced.borrow().len(), 2, "and once more, not with each write");
        log.close().unwrap();
        let whole = synced.borrow().last().unwrap().clone();
        for torn in [None, Some(0), Some(whole.len() / 2)] {
            let mut left = whole.clone();
            torn.into_iter().for_each(|at| left[at] ^= 1);
            // It stays the same file.
            fs::write(dir.path().join(WITNESS), left).unwrap();
            assert!(open(dir.path()).is_doubted(), "torn at {torn:?}");
        }
        // It is no more, and is again.
        let (mut log, synced) = watched(dir.path()).await;
        log.set_doubted(false).await.unwrap();
        append(&mut log, entries(6..7)).await.unwrap();
        log.set_doubted(true).await.unwrap();
        log.close().unwrap();
        fs::write(dir.path().join(WITNESS), synced.borrow().last().unwrap()).unwrap();
        assert_eq!(synced.borrow().len(), 2);
        assert!(open(dir.path()).is_doubted());
        observe::set(None);
    });
}

#[test]
fn a_doubt_that_is_not_on_disk_is_not_reported_as_kept() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = watched(dir.path()).await;
        observe::fail_next(Step::Witness);
        let failed = log.set_doubted(true).await.unwrap_err();
        let LogError::Io { path, .. } = &failed else { panic!("{failed}") };
        assert!(path.ends_with(WITNESS), "{failed}");
        let refused = append(&mut log, entries(0..1)).await.unwrap_err();
        assert!(first_failure(&refused).is_some(), "{refused}");
        observe::set(None);
    });
}
