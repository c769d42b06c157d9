//! Tests of the journal files: what is read back after turns, torn writes and damage. See
//! `disk/journal.rs`.

#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

use super::*;

const SMALL_FILE: usize = 1_000;

fn write(journal: &mut Journal, last_seq: u64, value: &[u8]) {
    journal.begin(last_seq);
    journal.put(Tree::Entries, b"key", value);
    journal.put(Tree::Meta, b"vote", b"");
    assert!(journal.takes_frame());
    if !journal.has_room() {
        journal.turn().unwrap();
    }
    journal.write().unwrap();
    journal.sync().unwrap();
}

fn reopened(dir: &Path) -> Vec<Frame> {
    found_in(dir).frames
}

fn found_in(dir: &Path) -> Found {
    Journal::open(dir, SMALL_FILE).unwrap().read().unwrap().unwrap()
}

fn seqs(frames: &[Frame]) -> Vec<(u64, u64)> {
    frames.iter().map(|frame| (frame.first_seq, frame.last_seq)).collect()
}

#[test]
fn frames_are_read_as_they_were_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path(), SMALL_FILE).unwrap();
    journal.restart(6);
    write(&mut journal, 7, b"seven");
    write(&mut journal, 10, b"ten");
    let frames = reopened(dir.path());
    assert_eq!(seqs(&frames), [(7, 7), (8, 10)]);
    let puts: Vec<_> = frames[1].puts().map(Option::unwrap).collect();
    let put = |tree, key, value| Put { tree, key, value };
    assert_eq!(
        puts,
        [put(Tree::Entries, b"key", b"ten"), put(Tree::Meta, b"vote", b"".as_slice())]
    );
}

#[test]
fn what_is_left_from_an_earlier_turn_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path(), SMALL_FILE).unwrap();
    let mut turns = 0;
    for seq in 1..200 {
        let before = journal.current;
        write(&mut journal, seq, &vec![b'x'; 50 + seq as usize % 40]);
        turns += usize::from(journal.current != before);
        let found = seqs(&reopened(dir.path()));
        let first = found[0].0;
        // All of the file in use; of the other one, what was not overwritten yet is dense up to it.
        assert_eq!(found, (first..=seq).map(|seq| (seq, seq)).collect::<Vec<_>>());
    }
    assert!(turns > 10, "{turns} turns");
    for name in FILE_NAMES {
        assert!(std::fs::metadata(dir.path().join(name)).unwrap().len() <= SMALL_FILE as u64);
    }
}

#[test]
fn a_frame_behind_a_torn_one_is_not_taken_for_one_of_the_next_use() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAMES[0]);
    let mut journal = Journal::open(dir.path(), SMALL_FILE).unwrap();
    journal.read().unwrap().unwrap();
    journal.restart(10);
    write(&mut journal, 11, &[b'x'; 600]);
    write(&mut journal, 12, b"never acknowledged");
    // Neither was synced. A power cut left the later one, and of the first one all but a sector.
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[..512].fill(0);
    std::fs::write(&path, bytes).unwrap();

    let mut journal = Journal::open(dir.path(), SMALL_FILE).unwrap();
    assert_eq!(seqs(&journal.read().unwrap().unwrap().frames), []);
    journal.restart(10);
    // Even if it is the same again.
    write(&mut journal, 11, &[b'x'; 600]);
    assert_eq!(seqs(&reopened(dir.path())), [(11, 11)]);
}

#[test]
fn a_file_is_not_left_before_it_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path(), SMALL_FILE).unwrap();
    journal.begin(1);
    journal.write().unwrap();
    assert!(!journal.is_synced);
    journal.turn().unwrap();
    assert!(journal.is_synced);
}

#[test]
fn a_torn_or_damaged_frame_ends_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path(), SMALL_FILE).unwrap();
    for seq in 1..=3 {
        write(&mut journal, seq, b"value");
    }
    let path = dir.path().join(FILE_NAMES[0]);
    let sound = std::fs::read(&path).unwrap();
    let frame_bytes = journal.frame.len();
    for at in 0..3 * frame_bytes {
        let mut damaged = sound.clone();
        damaged[at] ^= 0x10;
        std::fs::write(&path, damaged).unwrap();
        assert_eq!(reopened(dir.path()).len(), at / frame_bytes, "byte {at}");
    }
    for length in 0..3 * frame_bytes {
        std::fs::write(&path, &sound[..length]).unwrap();
        assert_eq!(reopened(dir.path()).len(), length / frame_bytes, "{length} bytes");
    }
}

/// Whichever byte before the last frame is damaged, the last one is found, and no frame of an
/// earlier use.
#[test]
fn sound_frames_behind_a_damaged_one_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAMES[0]);
    for use_before in 0..2 {
        let mut journal = Journal::open(dir.path(), SMALL_FILE).unwrap();
        let before = journal.read().unwrap().unwrap();
        assert_eq!(before.behind, [], "use {use_before}");
        journal.begin_use(10 * use_before).unwrap();
        for seq in 1..=4 {
            // The second time, frames of the first use lie behind those of this one.
            write(&mut journal, 10 * use_before + seq, &vec![b'x'; 60 - 10 * use_before as usize]);
        }
        let sound = std::fs::read(&path).unwrap();
        let frame_bytes = journal.frame.len();
        let last = 10 * use_before + 4;
        for at in 0..3 * frame_bytes {
            let mut damaged = sound.clone();
            damaged[at] ^= 0x10;
            std::fs::write(&path, &damaged).unwrap();
            let found = found_in(dir.path());
            assert_eq!(seqs(&found.behind).last(), Some(&(last, last)), "byte {at}");
            assert_eq!(found.behind.len(), 3 - at / frame_bytes, "byte {at}");
            // A whole sector.
            damaged[..at].fill(0);
            std::fs::write(&path, damaged).unwrap();
            let found = found_in(dir.path());
            assert_eq!(seqs(&found.behind).last(), Some(&(last, last)), "up to byte {at}");
        }
        std::fs::write(&path, &sound).unwrap();
    }
}

#[test]
fn a_frame_of_a_newer_release_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path(), SMALL_FILE).unwrap();
    journal.begin(1);
    journal.frame[8] = 2;
    journal.write().unwrap();
    let found = Journal::open(dir.path(), SMALL_FILE).unwrap().read().unwrap();
    assert_eq!(found, Err(NewerFrame { found: 2 }));
}

#[test]
fn a_frame_that_is_too_large_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path(), SMALL_FILE).unwrap();
    journal.begin(1);
    journal.put(Tree::Entries, b"key", &[0; SMALL_FILE]);
    assert!(!journal.takes_frame());
}
