//! What is there after a crash. A copy of the directory, taken while the log is open, is what a
//! kill leaves.

use std::fs;
use std::num::NonZeroU64;
use std::path::Path;

use openraft::storage::{RaftLogReader, RaftLogStorage};
use quorate_log::{Identity, LogOptions, LogStore, NodeId, OpenError};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::toy::{
    FROM_DISK, INLINE, Toy, ToyEntry, ToyVote, append, append_queued, contents, copy_dir, entries,
    entry, id, open, open_sled, read_all, remove_journal, run,
};

#[test]
fn acknowledged_writes_survive_a_kill() {
    for options in [LogOptions::default(), FROM_DISK, INLINE] {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("live");
        run(async {
            let mut log = open(&live, options);
            let mut model = Model::default();
            let mut random = StdRng::seed_from_u64(1);
            for step in 0..150 {
                model.change(&mut log, &mut random).await;
                if step % 6 != 5 {
                    continue;
                }
                // One more entry, so that what goes before it is durable too.
                model.append(&mut log, 1).await;
                let crashed = dir.path().join(format!("crashed-{step}"));
                copy_dir(&live, &crashed);
                let mut recovered = open(&crashed, options);
                model.check(&mut recovered).await;
                append(&mut recovered, entries(model.term + 1, model.next()..model.next() + 5))
                    .await;
                drop(recovered);
                fs::remove_dir_all(&crashed).unwrap();
            }
        });
    }
}

/// What a log must contain.
#[derive(Default)]
struct Model {
    entries: Vec<ToyEntry>,
    first: u64,
    term: u64,
    vote: Option<ToyVote>,
}

impl Model {
    fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    async fn append(&mut self, log: &mut LogStore<Toy>, count: u64) {
        let batch = entries(self.term, self.next()..self.next() + count);
        append(log, batch.clone()).await;
        self.entries.extend(batch);
    }

    async fn change(&mut self, log: &mut LogStore<Toy>, random: &mut StdRng) {
        match random.random_range(0..10) {
            0 => {
                self.term += 1;
                let vote = ToyVote::new(self.term, 1);
                log.save_vote(&vote).await.unwrap();
                self.vote = Some(vote);
            }
            1 if self.entries.len() > 20 => {
                let kept = random.random_range(1..self.entries.len());
                let last = &self.entries[kept - 1];
                log.truncate_after(Some(last.log_id)).await.unwrap();
                self.entries.truncate(kept);
                self.term += 1;
            }
            2 if self.entries.len() > 20 => {
                let removed = random.random_range(1..self.entries.len());
                log.purge(self.entries[removed - 1].log_id).await.unwrap();
                self.entries.drain(..removed);
                self.first += removed as u64;
            }
            3 => {
                let large = entry(self.term, self.next(), "l".repeat(200_000));
                append(log, vec![large.clone()]).await;
                self.entries.push(large);
            }
            _ => self.append(log, random.random_range(1..200)).await,
        }
    }

    async fn check(&self, log: &mut LogStore<Toy>) {
        let found = contents(log).await;
        assert_eq!(found.entries, self.entries);
        assert_eq!(found.vote, self.vote);
        assert_eq!(found.state.last_purged_log_id.map_or(0, |purged| purged.index + 1), self.first);
    }
}

#[test]
fn unacknowledged_writes_leave_a_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let live = dir.path().join("live");
    run(async {
        let mut log = open(&live, FROM_DISK);
        append(&mut log, entries(1, 0..10)).await;
        let mut expected = entries(1, 0..10);
        for round in 0..10u64 {
            let first = expected.len() as u64;
            let large = entry(1, first, format!("{round}").repeat(700_000));
            let mut batch = vec![large];
            batch.extend(entries(1, first + 1..first + 30));
            let durable = append_queued(&mut log, batch.clone()).await;
            // The writer is somewhere in the middle of it.
            let crashed = dir.path().join(format!("crashed-{round}"));
            copy_dir(&live, &crashed);
            durable.await.unwrap().unwrap();
            let acknowledged = expected.len();
            expected.extend(batch);
            match LogStore::<Toy>::open(&crashed, FROM_DISK) {
                Ok(mut recovered) => {
                    let found = read_all(&mut recovered).await;
                    assert!(found.len() >= acknowledged);
                    assert_eq!(found, expected[..found.len()]);
                }
                // Copying takes time: a real crash stops all files at one moment, this one may copy
                // the witness after the entry was acknowledged and the entries before.
                Err(OpenError::AcknowledgedLost { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
}

#[test]
fn a_saved_vote_and_a_stamp_survive_a_kill() {
    for options in [LogOptions::default(), INLINE] {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("live");
        run(async {
            let mut log = open(&live, options);
            for term in 1..20 {
                let vote = ToyVote::new(term, 2);
                log.save_vote(&vote).await.unwrap();
                let crashed = dir.path().join(format!("voted-{term}"));
                copy_dir(&live, &crashed);
                assert_eq!(open(&crashed, options).read_vote().await.unwrap(), Some(vote));
            }
            let ours = Identity {
                cluster_id: NonZeroU64::new(7),
                founders: NonZeroU64::new(1),
                node_id: NodeId::new(2).unwrap(),
            };
            log.stamp(ours).await.unwrap();
            let crashed = dir.path().join("stamped");
            copy_dir(&live, &crashed);
            assert_eq!(open(&crashed, options).identity(), Some(ours));
        });
    }
}

/// Use sled behind the log's back.
fn with_sled<T>(dir: &Path, work: impl FnOnce(&sled::Db) -> T) -> T {
    let db = open_sled(dir);
    let result = work(&db);
    db.flush().unwrap();
    result
}

fn records(dir: &Path) -> Vec<(sled::IVec, sled::IVec)> {
    with_sled(dir, |db| db.open_tree("entries").unwrap().iter().map(Result::unwrap).collect())
}

/// Bring back `records`, as if the process had died before it removed them.
fn put_back(dir: &Path, records: &[(sled::IVec, sled::IVec)]) {
    with_sled(dir, |db| {
        let tree = db.open_tree("entries").unwrap();
        for (key, value) in records {
            tree.insert(key, value).unwrap();
        }
    });
}

#[test]
fn an_interrupted_truncation_or_purge_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let mut log = open(dir.path(), FROM_DISK);
        for first in (0..100).step_by(10) {
            append(&mut log, entries(1, first..first + 10)).await;
        }
        append(&mut log, vec![entry(1, 100, "x".repeat(100_000))]).await;
        log.close().unwrap();
        let before = records(dir.path());

        let mut log = open(dir.path(), FROM_DISK);
        log.purge(id(1, 33)).await.unwrap();
        log.truncate_after(Some(id(1, 74))).await.unwrap();
        log.close().unwrap();
        let expected = entries(1, 34..75);
        // Truncation goes backward, purging forward; interrupted anywhere, they leave these.
        for (purged, truncated) in [(0, before.len()), (2, 9), (3, 8), (1, before.len() - 3)] {
            put_back(dir.path(), &before[purged..truncated]);
            let mut log = open(dir.path(), FROM_DISK);
            assert_eq!(read_all(&mut log).await, expected);
            assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(id(1, 74)));
        }
        let mut log = open(dir.path(), FROM_DISK);
        append(&mut log, entries(2, 75..90)).await;
        log.close().unwrap();
        let mut log = open(dir.path(), FROM_DISK);
        assert_eq!(read_all(&mut log).await, [expected, entries(2, 75..90)].concat());
    });
}

#[test]
fn half_of_a_large_entry_at_the_end_is_dropped_unless_it_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let (acknowledged, torn) = (dir.path().join("acknowledged"), dir.path().join("torn"));
    run(async {
        let mut log = open(&acknowledged, FROM_DISK);
        append(&mut log, entries(1, 0..5)).await;
        append(&mut log, vec![entry(1, 5, "x".repeat(100_000))]).await;
        log.close().unwrap();
        with_sled(&acknowledged, |db| {
            let tree = db.open_tree("entries").unwrap();
            let (last, _) = tree.last().unwrap().unwrap();
            tree.remove(last).unwrap();
        });
        copy_dir(&acknowledged, &torn);
        let error = LogStore::<Toy>::open(&acknowledged, FROM_DISK).unwrap_err();
        assert!(matches!(error, OpenError::AcknowledgedLost { .. }), "{error}");

        fs::write(torn.join("acknowledged"), "accept").unwrap();
        let mut log = open(&torn, FROM_DISK);
        assert_eq!(read_all(&mut log).await, entries(1, 0..5));
        append(&mut log, entries(2, 5..8)).await;
        log.close().unwrap();
        let expected = [entries(1, 0..5), entries(2, 5..8)].concat();
        assert_eq!(read_all(&mut open(&torn, FROM_DISK)).await, expected);
    });
}

#[test]
fn what_follows_a_dropped_half_of_a_large_entry_survives_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let (torn, live) = (dir.path().join("torn"), dir.path().join("live"));
    let crashed = dir.path().join("crashed");
    run(async {
        let mut log = open(&torn, INLINE);
        append(&mut log, entries(1, 0..5)).await;
        // Too large for the journal: four records of sled's.
        append(&mut log, vec![entry(1, 5, "x".repeat(90_000))]).await;
        log.close().unwrap();
        fs::write(torn.join("acknowledged"), "accept").unwrap();
        let removed = with_sled(&torn, |db| {
            let tree = db.open_tree("entries").unwrap();
            tree.pop_max().unwrap().unwrap()
        });
        assert_eq!(removed.0.len(), 12, "a chunk");

        copy_dir(&torn, &live);
        let mut log = open(&live, INLINE);
        append(&mut log, entries(2, 5..8)).await;
        let expected = [entries(1, 0..5), entries(2, 5..8)].concat();
        // sled has written nothing since the start, or all that was begun then.
        copy_dir(&live, &crashed);
        assert_eq!(read_all(&mut open(&crashed, INLINE)).await, expected);
        log.close().unwrap();
        assert_eq!(read_all(&mut open(&live, INLINE)).await, expected);
    });
}

/// Cut `bytes` off sled's file.
fn cut_tail(dir: &Path, bytes: u64) {
    let file = fs::OpenOptions::new().write(true).open(dir.join("db")).unwrap();
    file.set_len(file.metadata().unwrap().len() - bytes).unwrap();
}

#[test]
fn a_log_that_lost_its_end_is_given_it_back_by_the_journal_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let live = dir.path().join("live");
    let whole = run(async {
        let mut log = open(&live, LogOptions::default());
        for first in (0..6_000).step_by(100) {
            append(&mut log, entries(1, first..first + 100)).await;
        }
        log.save_committed(Some(id(1, 5_999))).await.unwrap();
        log.save_vote(&ToyVote::new(6, 1)).await.unwrap();
        log.save_vote(&ToyVote::new(7, 1)).await.unwrap();
        let whole = contents(&mut log).await;
        log.close().unwrap();
        whole
    });
    let written = fs::metadata(live.join("db")).unwrap().len();
    run(async {
        // sled pads its file, so a small cut may hit nothing.
        let mut refused = 0;
        for cut in [1, 10, 30, 100, 1_000, 100_000, written / 2, written] {
            let crashed = dir.path().join(format!("cut-{cut}"));
            copy_dir(&live, &crashed);
            cut_tail(&crashed, cut);
            let given_back = contents(&mut open(&crashed, FROM_DISK)).await;
            assert_eq!(given_back, whole, "{cut} bytes cut");

            let crashed = dir.path().join(format!("cut-{cut}-without-journal"));
            copy_dir(&live, &crashed);
            cut_tail(&crashed, cut);
            remove_journal(&crashed);
            match LogStore::<Toy>::open(&crashed, FROM_DISK) {
                Ok(mut log) => assert_eq!(contents(&mut log).await, whole, "{cut} bytes cut"),
                Err(error) => {
                    let message = error.to_string();
                    assert!(message.contains("quorate cluster replace"), "{cut}: {message}");
                    refused += 1;
                }
            }
        }
        assert!(refused >= 5, "only {refused} refused");
    });
}

#[test]
fn what_the_journal_has_no_more_room_for_is_in_sled() {
    for options in [FROM_DISK, INLINE] {
        let dir = tempfile::tempdir().unwrap();
        let (live, crashed) = (dir.path().join("live"), dir.path().join("crashed"));
        run(async {
            let mut log = open(&live, options);
            log.save_vote(&ToyVote::new(3, 1)).await.unwrap();
            // Some ten times what the journal has room for, which is less than sled keeps in
            // memory.
            for first in (0..40_000).step_by(100) {
                append(&mut log, entries(1, first..first + 100)).await;
            }
            let whole = contents(&mut log).await;
            copy_dir(&live, &crashed);
            assert_eq!(contents(&mut open(&crashed, options)).await, whole);
        });
    }
}

#[test]
fn a_log_is_refused_if_even_the_journal_lacks_what_sled_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (live, old) = (dir.path().join("live"), dir.path().join("old"));
    run(async {
        let mut log = open(&live, FROM_DISK);
        append(&mut log, entries(1, 0..10)).await;
        log.close().unwrap();
        copy_dir(&live, &old);
        let mut log = open(&live, FROM_DISK);
        // Some ten times what the journal has room for.
        for first in (10..40_000).step_by(100) {
            append(&mut log, entries(1, first..first + 100)).await;
        }
        log.close().unwrap();
        fs::copy(old.join("db"), live.join("db")).unwrap();
        let error = LogStore::<Toy>::open(&live, FROM_DISK).unwrap_err();
        assert!(matches!(error, OpenError::AcknowledgedLost { .. }), "{error}");
        // Also when nothing shows how far the log went.
        fs::write(live.join("acknowledged"), "accept").unwrap();
        let error = LogStore::<Toy>::open(&live, FROM_DISK).unwrap_err();
        assert!(matches!(error, OpenError::AcknowledgedLost { .. }), "{error}");
    });
}

#[test]
fn a_lost_committed_tail_is_refused_without_the_witness() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let mut log = open(dir.path(), LogOptions::default());
        append(&mut log, entries(1, 0..100)).await;
        log.save_committed(Some(id(1, 99))).await.unwrap();
        log.close().unwrap();
        fs::write(dir.path().join("acknowledged"), "accept").unwrap();
        with_sled(dir.path(), |db| {
            let tree = db.open_tree("entries").unwrap();
            let (last, _) = tree.last().unwrap().unwrap();
            tree.remove(last).unwrap();
        });
        let error = LogStore::<Toy>::open(dir.path(), LogOptions::default()).unwrap_err();
        assert!(matches!(error, OpenError::CommittedLost { committed_index: 99, .. }), "{error}");
    });
}

#[test]
fn a_torn_page_table_of_sled_is_no_reason_to_refuse() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let mut log = open(dir.path(), LogOptions::default());
        append(&mut log, entries(1, 0..10)).await;
        log.close().unwrap();
        open(dir.path(), LogOptions::default()).close().unwrap();
        fs::write(dir.path().join("snap.FFFFFFFFFFFFFFFF.generating"), b"half").unwrap();
        assert_eq!(read_all(&mut open(dir.path(), LogOptions::default())).await.len(), 10);
    });
}
