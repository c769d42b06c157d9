//! Damaged files: the log is refused with a message that helps, or it is whole. Never a hole, never
//! a wrong entry.

use std::fs;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use openraft::storage::{RaftLogReader, RaftLogStorage};
use quorate_log::{Identity, LogOptions, LogStore, NodeId, OpenError};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::toy::{
    FROM_DISK, Toy, ToyVote, append, contents, copy_dir, entries, entry, id, open, open_sled,
    read_all, remove_journal, run,
};

/// Flips tried per file; the seed makes them the same each time.
const FLIPS: u64 = 100;

async fn write_sample(dir: &Path) {
    let mut log = open(dir, LogOptions::default());
    log.save_vote(&ToyVote::new_committed(3, 1)).await.unwrap();
    append(&mut log, entries(1, 0..50)).await;
    append(&mut log, vec![entry(1, 50, "q".repeat(60_000))]).await;
    for first in (51..400).step_by(13) {
        append(&mut log, entries(2, first..first + 13)).await;
    }
    log.purge(id(1, 20)).await.unwrap();
    log.truncate_after(Some(id(2, 390))).await.unwrap();
    log.save_committed(Some(id(2, 380))).await.unwrap();
    append(&mut log, entries(3, 391..420)).await;
    log.close().unwrap();
}

/// A bit in the used part of a file: its end is free space in a segment.
fn flip(path: &Path, random: &mut StdRng) -> (usize, u8) {
    let mut bytes = fs::read(path).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(1, |last| last + 1);
    let at = random.random_range(0..used);
    let mask = 1 << random.random_range(0..8);
    bytes[at] ^= mask;
    fs::write(path, bytes).unwrap();
    (at, mask)
}

fn check_flips(file_name: &str, reopened_before: bool) -> (u64, u64) {
    let dir = tempfile::tempdir().unwrap();
    let sound = dir.path().join("sound");
    let mut refused = 0;
    run(async {
        write_sample(&sound).await;
        if reopened_before {
            // Opening moves sled's page table forward, so that damage lies behind it.
            open(&sound, LogOptions::default()).close().unwrap();
        }
        let expected = contents(&mut open(&sound, FROM_DISK)).await;
        let file = fs::read_dir(&sound)
            .unwrap()
            .map(|item| item.unwrap().file_name().into_string().unwrap())
            .find(|name| name.starts_with(file_name))
            .unwrap();
        for seed in 0..FLIPS {
            let mut random = StdRng::seed_from_u64(seed);
            let damaged = dir.path().join("damaged");
            copy_dir(&sound, &damaged);
            let flipped = flip(&damaged.join(&file), &mut random);
            match LogStore::<Toy>::open(&damaged, FROM_DISK) {
                Ok(mut log) => {
                    let found = contents(&mut log).await;
                    assert_eq!(found, expected, "seed {seed}: {flipped:?} in {file}");
                }
                Err(_) => refused += 1,
            }
            fs::remove_dir_all(&damaged).unwrap();
        }
    });
    (FLIPS, refused)
}

#[test]
fn flipped_bits_in_the_unindexed_log_never_change_the_log() {
    let (flips, refused) = check_flips("db", false);
    assert!(refused > flips / 10, "{refused} of {flips} refused: the flips hit nothing");
}

#[test]
fn flipped_bits_in_the_indexed_log_never_change_the_log() {
    let (flips, refused) = check_flips("db", true);
    assert!(refused > flips / 10, "{refused} of {flips} refused: the flips hit nothing");
}

/// sled works it out again. It refused the log, and blamed its file, which was sound.
#[test]
fn flipped_bits_in_sleds_page_table_do_no_harm() {
    let (_, refused) = check_flips("snap", true);
    assert_eq!(refused, 0);
}

/// sled then takes the first damaged byte of its file for the end of it. Nothing gives it the rest.
#[test]
fn without_its_page_table_and_journal_a_damaged_log_is_refused_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (sound, damaged) = (dir.path().join("sound"), dir.path().join("damaged"));
    run(async {
        write_sample(&sound).await;
        let expected = contents(&mut open(&sound, FROM_DISK)).await;
        remove_journal(&sound);
        let (mut refused, mut recovered) = (0, 0);
        for seed in 0..FLIPS / 4 {
            let mut random = StdRng::seed_from_u64(seed);
            copy_dir(&sound, &damaged);
            flip(&damaged.join("db"), &mut random);
            let mut names = fs::read_dir(&damaged).unwrap().map(|item| item.unwrap().path());
            let is_table = |path: &PathBuf| path.to_string_lossy().contains("/snap.");
            flip(&names.find(is_table).unwrap(), &mut random);
            match LogStore::<Toy>::open(&damaged, FROM_DISK) {
                Ok(mut log) => {
                    assert_eq!(contents(&mut log).await, expected, "seed {seed}");
                    recovered += 1;
                }
                Err(_) => refused += 1,
            }
            fs::remove_dir_all(&damaged).unwrap();
        }
        assert!(refused > recovered, "{refused} refused, {recovered} recovered");
    });
}

#[test]
fn flipped_bits_in_the_witness_never_change_the_log() {
    let (_, refused) = check_flips("acknowledged", true);
    assert_eq!(refused, 0);
}

#[test]
fn flipped_bits_in_the_journal_never_change_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let live = dir.path().join("live");
    let mut refused = 0;
    run(async {
        let mut log = open(&live, LogOptions::default());
        log.save_vote(&ToyVote::new(3, 1)).await.unwrap();
        for first in (0..400).step_by(10) {
            append(&mut log, entries(1, first..first + 10)).await;
        }
        log.truncate_after(Some(id(1, 350))).await.unwrap();
        append(&mut log, entries(2, 351..360)).await;
        let expected = contents(&mut log).await;
        for seed in 0..FLIPS {
            let mut random = StdRng::seed_from_u64(seed);
            let damaged = dir.path().join("damaged");
            // sled has not synced anything: all is in the journal.
            copy_dir(&live, &damaged);
            let flipped = flip(&damaged.join("journal-0"), &mut random);
            match LogStore::<Toy>::open(&damaged, FROM_DISK) {
                Ok(mut log) => {
                    let found = contents(&mut log).await;
                    assert_eq!(found, expected, "seed {seed}: {flipped:?}");
                }
                Err(error) => {
                    assert!(matches!(error, OpenError::AcknowledgedLost { .. }), "{error}");
                    refused += 1;
                }
            }
            fs::remove_dir_all(&damaged).unwrap();
        }
    });
    assert!(refused > FLIPS / 2, "{refused} of {FLIPS} refused: the flips hit nothing");
}

/// After a power cut the witness may be as old as the opening of the log. A frame of the journal
/// that was written later says that those before it were durable: so they were not torn.
#[test]
fn a_damaged_journal_is_noticed_also_where_the_witness_is_old() {
    let dir = tempfile::tempdir().unwrap();
    let live = dir.path().join("live");
    run(async {
        let mut log = open(&live, LogOptions::default());
        let witness = fs::read(live.join("acknowledged")).unwrap();
        for first in (0..200).step_by(10) {
            append(&mut log, entries(1, first..first + 10)).await;
        }
        let journal = fs::read(live.join("journal-0")).unwrap();
        let used = journal.iter().rposition(|byte| *byte != 0).unwrap();
        append(&mut log, entries(1, 200..201)).await;
        let mut random = StdRng::seed_from_u64(9);
        for turn in 0..40 {
            let damaged = dir.path().join("damaged");
            copy_dir(&live, &damaged);
            fs::write(damaged.join("acknowledged"), &witness).unwrap();
            let mut bytes = fs::read(damaged.join("journal-0")).unwrap();
            // Also all of the first frame's header.
            let at = if turn < 28 { turn } else { random.random_range(0..used) };
            bytes[at] ^= 1 << random.random_range(0..8);
            fs::write(damaged.join("journal-0"), bytes).unwrap();
            let error = LogStore::<Toy>::open(&damaged, FROM_DISK).unwrap_err();
            assert!(matches!(error, OpenError::AcknowledgedLost { .. }), "{at}: {error}");
            // Whoever takes it as it is can go on with it.
            fs::write(damaged.join("acknowledged"), "accept").unwrap();
            for _ in 0..if turn % 8 == 0 { 2 } else { 0 } {
                let mut log = open(&damaged, FROM_DISK);
                let next = log.get_log_state().await.unwrap().last_log_id;
                let next = next.map_or(0, |last| last.index + 1);
                append(&mut log, entries(2, next..next + 1)).await;
                drop(log);
            }
            fs::remove_dir_all(&damaged).unwrap();
        }
    });
}

#[test]
fn garbage_instead_of_the_db_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    run(write_sample(dir.path()));
    let mut random = StdRng::seed_from_u64(5);
    let garbage: Vec<u8> = (0..3 << 20).map(|_| random.random()).collect();
    fs::write(dir.path().join("db"), garbage).unwrap();
    remove_journal(dir.path());
    LogStore::<Toy>::open(dir.path(), LogOptions::default()).unwrap_err();
    let file = dir.path().join("a-file");
    fs::write(&file, b"").unwrap();
    let error = LogStore::<Toy>::open(&file, LogOptions::default()).unwrap_err();
    assert!(matches!(error, OpenError::Io { operation: "create directory", .. }), "{error}");
}

/// Change a value behind our back, with sled's checksums right.
fn edit(dir: &Path, tree: &str, edit: impl Fn(&sled::Tree)) {
    let db = open_sled(dir);
    edit(&db.open_tree(tree).unwrap());
    db.flush().unwrap();
}

fn check_edit(tree: &str, change: impl Fn(&sled::Tree), expected: &str) {
    let dir = tempfile::tempdir().unwrap();
    run(write_sample(dir.path()));
    edit(dir.path(), tree, change);
    let error = LogStore::<Toy>::open(dir.path(), LogOptions::default()).unwrap_err();
    let mut chain = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        chain = format!("{chain}: {cause}");
        source = cause.source();
    }
    assert!(chain.contains(expected), "expected {expected:?} in: {chain}");
}

fn replace(tree: &sled::Tree, key: &[u8], change: impl Fn(&mut Vec<u8>)) {
    let mut value = tree.get(key).unwrap().unwrap().to_vec();
    change(&mut value);
    tree.insert(key, value).unwrap();
}

#[test]
fn errors_say_what_is_wrong_and_what_to_do() {
    let batch = 64u64.to_be_bytes();
    let remove = move |tree: &sled::Tree| {
        tree.remove(batch).unwrap().unwrap();
    };
    check_edit(
        "entries",
        remove,
        "entry 64 is missing (the next one found is 77); replace this node",
    );
    let spoil = move |tree: &sled::Tree| replace(tree, &batch, |value| value[40] ^= 1);
    check_edit("entries", spoil, "beginning at index 64 is damaged; replace this node");
    check_edit("entries", spoil, "its checksum is");
    let newer = move |tree: &sled::Tree| replace(tree, &batch, |value| value[0] = 9);
    check_edit("entries", newer, "format version 9, this release reads up to 1");
    let stray = |tree: &sled::Tree| {
        tree.insert(b"stray", b"x").unwrap();
    };
    check_edit("entries", stray, "a key of 5 bytes");
    let middle_chunk = |tree: &sled::Tree| {
        let key = [50u64.to_be_bytes().as_slice(), &1u32.to_be_bytes()].concat();
        tree.remove(key).unwrap().unwrap();
    };
    check_edit("entries", middle_chunk, "entry 50 is missing");
    let vote = |tree: &sled::Tree| replace(tree, b"vote", |value| value[14] ^= 1);
    check_edit("meta", vote, "the stored vote is damaged");
    let format = |tree: &sled::Tree| replace(tree, b"format", |value| value[0] = 2);
    check_edit("meta", format, "format version 2, this release reads up to 1; run the newer");
}

#[test]
fn an_old_copy_of_the_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let live = dir.path().join("live");
    run(async {
        let mut log = open(&live, LogOptions::default());
        append(&mut log, entries(1, 0..10)).await;
        copy_dir(&live, &dir.path().join("old"));
        log.save_vote(&ToyVote::new(2, 1)).await.unwrap();
        log.close().unwrap();
        for name in ["db", "acknowledged"] {
            assert!(live.join(name).exists());
        }
        // The disk brings back an older state of the file: the vote is forgotten, nothing else
        // shows it.
        let old = dir.path().join("old");
        fs::copy(old.join("db"), live.join("db")).unwrap();
        let given_back = dir.path().join("given-back");
        copy_dir(&live, &given_back);
        let vote = open(&given_back, LogOptions::default()).read_vote().await.unwrap();
        assert_eq!(vote, Some(ToyVote::new(2, 1)), "the journal has it");

        for name in ["journal-0", "journal-1"] {
            fs::copy(old.join(name), live.join(name)).unwrap();
        }
        let error = LogStore::<Toy>::open(&live, LogOptions::default()).unwrap_err();
        assert!(matches!(error, OpenError::AcknowledgedLost { .. }), "{error}");
        assert_eq!(
            read_all(&mut open(&dir.path().join("old"), LogOptions::default())).await.len(),
            10
        );
    });
}

/// Without its witness, a log could have lost its end unnoticed: it is refused, unless an operator
/// has accepted that.
#[test]
fn a_log_without_a_sound_witness_is_refused_until_that_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let live = dir.path().join("live");
    let witness = live.join("acknowledged");
    run(async {
        let mut log = open(&live, LogOptions::default());
        append(&mut log, entries(1, 0..10)).await;
        let expected = contents(&mut log).await;
        log.close().unwrap();
        for damage in [None, Some(&b""[..]), Some(&[7; 40])] {
            match damage {
                None => fs::remove_file(&witness).unwrap(),
                Some(bytes) => fs::write(&witness, bytes).unwrap(),
            }
            // A refusal changes nothing, so the second is the same.
            for _ in 0..2 {
                let error = LogStore::<Toy>::open(&live, FROM_DISK).unwrap_err();
                assert!(matches!(error, OpenError::NoWitness { .. }), "{damage:?}: {error}");
                let said = error.to_string();
                assert!(said.contains("acknowledged") && said.contains("accept"), "{said}");
            }
        }
        fs::write(&witness, "accept\n").unwrap();
        for _ in 0..2 {
            let mut log = open(&live, FROM_DISK);
            assert_eq!(contents(&mut log).await, expected);
            assert!(!log.is_doubted());
            log.close().unwrap();
        }
    });
}

/// A copy may be old, and nothing in it says so.
#[test]
fn a_copied_log_is_doubted_until_that_is_settled_or_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let (live, copied) = (dir.path().join("live"), dir.path().join("copied"));
    run(async {
        let mut log = open(&live, LogOptions::default());
        log.stamp(Identity {
            cluster_id: NonZeroU64::new(7),
            founders: NonZeroU64::new(1),
            node_id: NodeId::new(1).unwrap(),
        })
        .await
        .unwrap();
        append(&mut log, entries(1, 0..10)).await;
        assert!(!log.is_doubted());
        log.close().unwrap();
        copy_dir(&live, &copied);
        for _ in 0..2 {
            let mut log = open(&copied, FROM_DISK);
            assert!(log.is_doubted(), "also when it was opened and written to");
            let next = log.get_log_state().await.unwrap().last_log_id.unwrap().index + 1;
            append(&mut log, entries(1, next..next + 1)).await;
            log.close().unwrap();
        }
        for doubted in [false, true, false] {
            let log = open(&copied, FROM_DISK);
            log.set_doubted(doubted).await.unwrap();
            log.close().unwrap();
            let log = open(&copied, FROM_DISK);
            assert_eq!(log.is_doubted(), doubted);
            log.close().unwrap();
        }
        fs::remove_dir_all(&copied).unwrap();
        copy_dir(&live, &copied);
        fs::write(copied.join("acknowledged"), "accept").unwrap();
        assert!(!open(&copied, FROM_DISK).is_doubted());
    });
}

/// Nothing is in them that is not always the same: the log was refused for good, also one that had
/// never held anything when a power cut tore them.
#[test]
fn damaged_settings_of_sled_are_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (sound, damaged) = (dir.path().join("sound"), dir.path().join("damaged"));
    run(async {
        write_sample(&sound).await;
        let expected = contents(&mut open(&sound, FROM_DISK)).await;
        let whole = fs::read(sound.join("conf")).unwrap();
        let flipped = (0..whole.len()).map(|at| {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x55;
            bytes
        });
        let cut = (0..whole.len()).map(|length| whole[..length].to_vec());
        let others = [vec![0; whole.len()], vec![0; 4_096], vec![b'x'; 40]];
        for settings in flipped.chain(cut).chain(others) {
            copy_dir(&sound, &damaged);
            fs::write(damaged.join("conf"), &settings).unwrap();
            let mut log = open(&damaged, FROM_DISK);
            assert_eq!(contents(&mut log).await, expected, "{settings:?}");
            assert_eq!(fs::read(damaged.join("conf")).unwrap(), whole, "{settings:?}");
            drop(log);
            fs::remove_dir_all(&damaged).unwrap();
        }
    });
}

/// Settings that are sound and not ours are left, and blamed.
#[test]
fn settings_of_another_kind_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(sled::Config::new().path(dir.path()).segment_size(1 << 16).open().unwrap());
    let error = LogStore::<Toy>::open(dir.path(), FROM_DISK).unwrap_err();
    let said = error.to_string();
    assert!(said.contains("/conf is damaged") && said.contains("replace this node"), "{said}");
}
