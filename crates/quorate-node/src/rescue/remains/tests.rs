//! Data directories as nodes leave them behind, and what is found there.

use std::num::NonZeroU64;
use std::time::Duration;

use openraft::EntryPayload;
use openraft::storage::RaftLogStorageExt as _;
use quorate_log::Identity;
use quorate_state::{Clock, Command, Op, write_snapshot};

use super::*;
use crate::rescue;
use crate::types::{Entry, SnapshotMeta, StoredMembership};
use crate::wall;

const CLUSTER: NonZeroU64 = NonZeroU64::new(7).unwrap();

fn node() -> NodeId {
    NodeId::new(1).unwrap()
}

fn id(term: u64, index: u64) -> LogId {
    openraft::testing::log_id::<TypeConfig>(term, node(), index)
}

fn blank(index: u64) -> Entry {
    Entry { log_id: id(5, index), payload: EntryPayload::Blank }
}

/// A log of these entries, and a snapshot that covers so much.
async fn leave(dir: &Path, entries: Vec<Entry>, covers: LogId) {
    let mut log = LogStore::open(dir.join(LOG), LogOptions::default()).unwrap();
    let node_id = node();
    log.stamp(Identity { cluster_id: Some(CLUSTER), founders: None, node_id }).await.unwrap();
    if !entries.is_empty() {
        log.blocking_append(entries).await.unwrap();
    }
    log.close().unwrap();
    let mut registry = Registry::new();
    let found = Op::Found { cluster_id: CLUSTER, lease_base: 0 };
    registry.apply(&Command::new(Clock(42), found));
    let snapshots = SnapshotStore::<TypeConfig>::open(dir.join(SNAPSHOTS)).unwrap();
    let last_log_id = Some(covers);
    let meta = SnapshotMeta { last_log_id, last_membership: StoredMembership::default() };
    let mut writer = snapshots.begin(&meta).unwrap();
    write_snapshot(&registry, &mut writer).unwrap();
    writer.finish().unwrap();
}

/// The node stopped between the snapshot of a leader and the purge that goes with it: its log ends
/// before that, with entries that were never committed, or is empty.
#[tokio::test]
async fn a_snapshot_that_goes_further_than_the_log_is_where_it_ends() {
    for (entries, covers, reaches) in
        [(0..51, id(3, 100), (3, 100)), (0..0, id(3, 100), (3, 100)), (0..51, id(5, 20), (5, 50))]
    {
        let what = format!("{entries:?}, a snapshot to {covers}");
        let dir = tempfile::tempdir().unwrap();
        leave(dir.path(), entries.map(blank).collect(), covers).await;
        let scratch = tempfile::tempdir().unwrap();
        let remains = Remains::of(dir.path(), scratch.path()).await.unwrap();
        assert_eq!((remains.reaches(), remains.committed()), (reaches, covers.index()), "{what}");
        assert_eq!(remains.registry.clock(), Clock(42), "{what}");
        rescue::recover(&remains).await.unwrap();
        drop(remains);

        let mut log = LogStore::open(dir.path().join(LOG), LogOptions::default()).unwrap();
        let ends = log.get_log_state().await.unwrap().last_log_id;
        assert_eq!(ends, Some(id(reaches.0, reaches.1)), "{what}");
        log.close().unwrap();
    }
}

/// Three of five that vote, but one or two of the three on either side.
#[tokio::test]
async fn an_open_change_of_the_voters_takes_a_majority_of_both_halves() {
    let voters = |ids: &[u64]| ids.iter().map(|id| NodeId::new(*id).unwrap()).collect::<Vec<_>>();
    let set = |ids: &[u64]| voters(ids).into_iter().collect::<BTreeSet<_>>();
    let nodes = voters(&[1, 2, 3, 4, 5]).into_iter().map(|id| (id, Member::default()));
    let nodes: std::collections::BTreeMap<_, _> = nodes.collect();
    let change = |halves: Vec<BTreeSet<NodeId>>| {
        let membership = openraft::Membership::new(halves, nodes.clone()).unwrap();
        Entry { log_id: id(5, 1), payload: EntryPayload::Membership(membership) }
    };
    let open = change(vec![set(&[1, 2, 3]), set(&[3, 4, 5])]);
    let done = change(vec![set(&[3, 4, 5])]);
    for (entry, left, is_enough) in [
        (&open, &[1, 2, 4][..], false),
        (&open, &[1, 4, 5], false),
        (&open, &[1, 2, 4, 5], true),
        (&open, &[1, 3, 4], true),
        (&done, &[1, 4, 5], true),
        (&done, &[1, 2, 4], false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        leave(dir.path(), vec![blank(0), entry.clone()], id(3, 0)).await;
        let scratch = tempfile::tempdir().unwrap();
        let remains = Remains::of(dir.path(), scratch.path()).await.unwrap();
        assert_eq!(remains.are_majority(&voters(left)), is_enough, "{left:?} of {entry}");
    }
}

/// By a clock that fell back, the recovery is long ago from the first moment that it is right.
#[tokio::test]
async fn a_clock_behind_what_was_written_last_recovers_nothing() {
    let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
    let now = SystemTime::UNIX_EPOCH + wall::since_1970();
    for (part, ahead, is_refused) in [
        (LOG, minutes(60), true),
        (SNAPSHOTS, minutes(60), true),
        (LOG, minutes(4), false),
        (SNAPSHOTS, minutes(4), false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        leave(dir.path(), Vec::new(), id(3, 100)).await;
        let file = fs::read_dir(dir.path().join(part)).unwrap().next().unwrap().unwrap().path();
        File::options().write(true).open(&file).unwrap().set_modified(now + ahead).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let remains = Remains::of(dir.path(), scratch.path()).await.unwrap();
        let recovered = rescue::recover(&remains).await;
        assert_eq!(recovered.is_err(), is_refused, "{part} {ahead:?}: {recovered:?}");
        let Err(refused) = recovered else { continue };
        let said = refused.to_string();
        for part in ["the clock of this machine says 20", "last written at 20", "set the clock"] {
            assert!(said.contains(part), "no {part:?} in: {said}");
        }
        drop(remains);
        let left = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, 2, "nothing but log and snapshots");
    }
}
