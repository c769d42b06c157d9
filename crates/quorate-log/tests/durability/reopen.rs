//! What is there after a clean restart, and who may open a log.

use std::num::NonZeroU64;

use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::testing::log_id;
use openraft::type_config::TypeConfigExt;
use openraft::type_config::alias::EntryOf;
use quorate_log::{Identity, LogError, LogOptions, LogStore, NodeId, OpenError, StampError};

use crate::toy::{
    FROM_DISK, INLINE, Toy, ToyVote, append, append_queued, contents, entries, entry, id, open,
    open_sled, read_all, run,
};

openraft::declare_raft_types!(pub(crate) Newer: D = Added, R = String);

/// What [`Toy`] has, and one field more.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Added(String, u8);

impl std::fmt::Display for Added {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

const OURS: Identity = Identity {
    cluster_id: NonZeroU64::new(0xabc),
    founders: NonZeroU64::new(1),
    node_id: NodeId::new(3).unwrap(),
};

#[test]
fn everything_is_there_after_reopening() {
    for options in [LogOptions::default(), FROM_DISK, INLINE] {
        let dir = tempfile::tempdir().unwrap();
        run(async {
            let mut log = open(dir.path(), options);
            log.stamp(OURS).await.unwrap();
            log.save_vote(&ToyVote::new_committed(2, 1)).await.unwrap();
            append(&mut log, entries(1, 0..40)).await;
            append(&mut log, entries(2, 40..300)).await;
            log.save_committed(Some(id(2, 290))).await.unwrap();
            log.purge(id(1, 17)).await.unwrap();
            let before = contents(&mut log).await;
            assert_eq!(before.entries.len(), 282);
            log.close().unwrap();

            let mut log = open(dir.path(), options);
            assert_eq!(log.identity(), Some(OURS));
            assert_eq!(contents(&mut log).await, before);
            append(&mut log, entries(2, 300..310)).await;
            drop(log);
            let mut log = open(dir.path(), options);
            assert_eq!(read_all(&mut log).await.len(), 292);
        });
    }
}

#[test]
fn truncated_entries_stay_away_and_their_places_are_taken() {
    for options in [LogOptions::default(), FROM_DISK, INLINE] {
        let dir = tempfile::tempdir().unwrap();
        run(async {
            let mut log = open(dir.path(), options);
            append(&mut log, entries(1, 0..10)).await;
            append(&mut log, entries(1, 10..200)).await;
            append(&mut log, vec![entry(1, 200, "x".repeat(100_000))]).await;
            log.truncate_after(Some(id(1, 14))).await.unwrap();
            let mut expected = entries(1, 0..15);
            assert_eq!(read_all(&mut log).await, expected);
            log.close().unwrap();

            let mut log = open(dir.path(), options);
            assert_eq!(read_all(&mut log).await, expected);
            assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(id(1, 14)));
            append(&mut log, entries(3, 15..40)).await;
            log.truncate_after(Some(id(3, 20))).await.unwrap();
            append(&mut log, entries(4, 21..30)).await;
            expected.extend(entries(3, 15..21));
            expected.extend(entries(4, 21..30));
            assert_eq!(read_all(&mut log).await, expected);
            log.close().unwrap();
            assert_eq!(read_all(&mut open(dir.path(), options)).await, expected);

            let mut log = open(dir.path(), options);
            log.truncate_after(None).await.unwrap();
            append(&mut log, entries(5, 0..3)).await;
            log.close().unwrap();
            assert_eq!(read_all(&mut open(dir.path(), options)).await, entries(5, 0..3));
        });
    }
}

#[test]
fn purge_removes_batches_and_hides_the_rest() {
    for options in [LogOptions::default(), FROM_DISK, INLINE] {
        let dir = tempfile::tempdir().unwrap();
        run(async {
            let mut log = open(dir.path(), options);
            for first in (0..2_000).step_by(10) {
                append(&mut log, entries(1, first..first + 10)).await;
            }
            log.purge(id(1, 1_234)).await.unwrap();
            assert_eq!(read_all(&mut log).await, entries(1, 1_235..2_000));
            assert_eq!(log.try_get_log_entries(1_230..1_240).await.unwrap().len(), 5);
            log.close().unwrap();
            let mut log = open(dir.path(), options);
            assert_eq!(read_all(&mut log).await, entries(1, 1_235..2_000));

            // As after a snapshot that covers more than the log.
            log.purge(id(2, 5_000)).await.unwrap();
            assert_eq!(read_all(&mut log).await, []);
            append(&mut log, entries(2, 5_001..5_005)).await;
            log.close().unwrap();
            let mut log = open(dir.path(), options);
            let state = log.get_log_state().await.unwrap();
            assert_eq!(state.last_purged_log_id, Some(id(2, 5_000)));
            assert_eq!(state.last_log_id, Some(id(2, 5_004)));
            assert_eq!(read_all(&mut log).await, entries(2, 5_001..5_005));
        });
    }
}

#[test]
fn large_entries_and_batches_are_durable_inside_the_db_file() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let mut log = open(dir.path(), FROM_DISK);
        let mut expected = Vec::new();
        for (index, length_bytes) in (0..).zip([3 << 20, 10, 24_000, 25_000, 300_000, 4 << 20, 1]) {
            let payload = char::from(b'a' + index as u8).to_string().repeat(length_bytes);
            expected.push(entry(1, index, payload));
        }
        append(&mut log, expected.clone()).await;
        // Values near the bound, which make the largest leaves: appended, cut, purged, so that
        // leaves split and merge.
        for round in 0..20 {
            let first = 7 + round * 60;
            let batch: Vec<_> =
                (first..first + 60).map(|index| entry(1, index, "y".repeat(24_400))).collect();
            append(&mut log, batch.clone()).await;
            expected.extend(batch);
        }
        log.truncate_after(Some(id(1, 1_100))).await.unwrap();
        log.purge(id(1, 900)).await.unwrap();
        append(&mut log, entries(2, 1_101..1_400)).await;
        expected.truncate(1_101);
        let expected: Vec<_> =
            expected.into_iter().skip(901).chain(entries(2, 1_101..1_400)).collect();
        assert_eq!(read_all(&mut log).await, expected);
        log.close().unwrap();
        let blobs = std::fs::read_dir(dir.path().join("blobs")).unwrap().count();
        assert_eq!(blobs, 0, "blob files are not covered by the fdatasync of the db file");
        assert_eq!(read_all(&mut open(dir.path(), FROM_DISK)).await, expected);
    });
}

#[test]
fn replication_reads_are_bounded_but_never_empty() {
    for options in [LogOptions::default(), FROM_DISK] {
        let dir = tempfile::tempdir().unwrap();
        run(async {
            let mut log = open(dir.path(), options);
            let batch = (0..8).map(|index| entry(1, index, "z".repeat(300_000))).collect();
            append(&mut log, batch).await;
            append(&mut log, vec![entry(1, 8, "z".repeat(3_000_000))]).await;
            assert_eq!(log.limited_get_log_entries(0, 9).await.unwrap().len(), 4);
            assert_eq!(log.limited_get_log_entries(2, 3).await.unwrap().len(), 1);
            assert_eq!(log.limited_get_log_entries(8, 9).await.unwrap().len(), 1);
            assert_eq!(log.try_get_log_entries(0..9).await.unwrap().len(), 9);
        });
    }
}

#[test]
fn appended_entries_are_readable_before_they_are_durable() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let mut log = open(dir.path(), FROM_DISK);
        let mut durable = Vec::new();
        for index in 0..500 {
            durable.push(append_queued(&mut log, entries(1, index..index + 1)).await);
            let first = index.saturating_sub(50);
            let found = log.clone().try_get_log_entries(first..).await.unwrap();
            assert_eq!(found, entries(1, first..index + 1));
        }
        for done in durable {
            done.await.unwrap().unwrap();
        }
        let stats = log.stats();
        assert_eq!(stats.entries, 500);
        let least_bytes = postcard::to_stdvec(&entries(1, 0..1)[0]).unwrap().len() as u64;
        let bytes = stats.entry_bytes;
        assert!(bytes >= 500 * least_bytes && bytes < 500 * 200, "{bytes} for 500 small entries");
        assert!(stats.flushes < 500, "{} syncs for 500 queued appends", stats.flushes);
    });
}

#[test]
fn a_gap_cannot_be_appended() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let mut log = open(dir.path(), LogOptions::default());
        append(&mut log, entries(1, 0..3)).await;
        for wrong in [4..5, 2..5, 0..1] {
            assert!(log.append(entries(1, wrong), IOFlushed::noop()).await.is_err());
        }
        append(&mut log, entries(1, 3..4)).await;
        assert_eq!(read_all(&mut log).await, entries(1, 0..4));
    });
}

#[test]
fn a_directory_of_an_older_format_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    // Sealed as `disk/meta.rs` says: version, crc32, sequence number 0, the number in one byte.
    let format = |number: u8| {
        let rest = [&[0; 8][..], &[number]].concat();
        let crc = crc32fast::hash(&[b"format", &rest[..]].concat());
        [&[1][..], &crc.to_le_bytes(), &rest].concat()
    };
    let stored = |db: &sled::Db| db.open_tree("meta").unwrap().get("format").unwrap().unwrap();
    run(async {
        let mut log = open(dir.path(), LogOptions::default());
        append(&mut log, entries(1, 0..10)).await;
        log.close().unwrap();
        let db = open_sled(dir.path());
        assert_eq!(stored(&db).to_vec(), format(1));
        db.open_tree("meta").unwrap().insert("format", format(0)).unwrap();
        db.flush().unwrap();
        drop(db);
        let error = LogStore::<Toy>::open(dir.path(), LogOptions::default()).unwrap_err();
        assert!(matches!(error, OpenError::OlderFormat { found: 0, supported: 1, .. }), "{error}");
        assert_eq!(stored(&open_sled(dir.path())).to_vec(), format(0));
    });
}

/// An entry of which this release knows only a part is not taken for that part: other nodes would
/// do something else.
#[test]
fn what_a_newer_release_has_added_is_refused_with_words() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let mut log = LogStore::<Newer>::open(dir.path(), LogOptions::default()).unwrap();
        let entry = EntryOf::<Newer>::new_normal(log_id::<Newer>(1, 1, 0), Added(String::new(), 7));
        let (done, durable) = Newer::oneshot();
        log.append([entry], IOFlushed::signal(done)).await.unwrap();
        durable.await.unwrap().unwrap();
        log.close().unwrap();
        let error = LogStore::<Toy>::open(dir.path(), FROM_DISK).unwrap_err();
        assert!(matches!(error, OpenError::Unknown { .. }), "{error:?}");
        let told = error.to_string();
        assert!(told.contains("entry 0 holds what this release does not know"), "{told}");
    });
}

#[test]
fn another_nodes_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let log = open(dir.path(), LogOptions::default());
        assert_eq!(log.identity(), None);
        log.stamp(OURS).await.unwrap();
        log.stamp(OURS).await.unwrap();
        log.close().unwrap();
        let log = open(dir.path(), LogOptions::default());
        let foreign = Identity { cluster_id: NonZeroU64::new(1), ..OURS };
        let error = log.stamp(foreign).await.unwrap_err();
        assert!(matches!(error, StampError::Foreign { owner: OURS, .. }));
        let message = error.to_string();
        assert!(message.contains("belongs to node 3 of cluster 0000000000000abc"), "{message}");
        assert_eq!(log.identity(), Some(OURS));
    });
}

/// Founders begin without it.
#[test]
fn a_node_learns_its_clusters_id_once() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let log = open(dir.path(), LogOptions::default());
        log.stamp(Identity { cluster_id: None, ..OURS }).await.unwrap();
        for other in [
            Identity { founders: NonZeroU64::new(2), ..OURS },
            Identity { node_id: NodeId::new(9).unwrap(), ..OURS },
        ] {
            log.stamp(other).await.unwrap_err();
        }
        log.stamp(OURS).await.unwrap();
        log.close().unwrap();
        let log = open(dir.path(), LogOptions::default());
        for cluster_id in [None, NonZeroU64::new(1)] {
            log.stamp(Identity { cluster_id, ..OURS }).await.unwrap_err();
        }
        assert_eq!(log.identity(), Some(OURS));
    });
}

#[test]
fn one_directory_is_open_only_once() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), LogOptions::default());
    let error = LogStore::<Toy>::open(dir.path(), LogOptions::default()).unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    log.close().unwrap();
    open(dir.path(), LogOptions::default());
}

#[test]
fn a_closed_log_says_so_and_leaves_the_directory_to_others() {
    for options in [LogOptions::default(), INLINE] {
        let dir = tempfile::tempdir().unwrap();
        run(async {
            for round in 0..20 {
                let mut log = open(dir.path(), options);
                let mut reader = log.clone();
                let durable = append_queued(&mut log, entries(1, round..round + 1)).await;
                log.close().unwrap();
                durable.await.unwrap().unwrap();
                log.close().unwrap();
                let error = log.save_vote(&ToyVote::new(9, 9)).await.unwrap_err();
                let error = error.into_inner().unwrap().downcast::<LogError>().unwrap();
                assert!(matches!(*error, LogError::Closed { .. }));
                drop(log);
                // A forgotten reader must not keep the lock.
                let _ = reader.try_get_log_entries(..).await;
                assert_eq!(read_all(&mut open(dir.path(), options)).await.len() as u64, round + 1);
            }
        });
    }
}
