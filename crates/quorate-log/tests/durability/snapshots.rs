//! Snapshot files: written, sent, installed, damaged.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use openraft::type_config::alias::SnapshotMetaOf;
use openraft::{Membership, StoredMembership};
use quorate_log::{SnapshotEncoder, SnapshotError, SnapshotFile, SnapshotStore};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::toy::{Toy, id};

fn meta(index: u64) -> SnapshotMetaOf<Toy> {
    let membership = Membership::new_with_defaults(vec![[1, 2, 3].into()], []);
    SnapshotMetaOf::<Toy> {
        last_log_id: Some(id(2, index)),
        last_membership: StoredMembership::new(Some(id(1, 1)), membership),
    }
}

/// Half of it compresses, half does not.
fn sample_body(len_bytes: usize) -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(9);
    (0..len_bytes).map(|at| if at / 512 % 2 == 0 { random.random() } else { b'x' }).collect()
}

fn write(store: &SnapshotStore<Toy>, index: u64, body: &[u8]) -> SnapshotFile<Toy> {
    let mut writer = store.begin(&meta(index)).unwrap();
    for part in body.chunks(1_000) {
        writer.write_all(part).unwrap();
    }
    writer.finish().unwrap()
}

fn body_of(file: &SnapshotFile<Toy>) -> Vec<u8> {
    let mut body = Vec::new();
    file.body().read_to_end(&mut body).unwrap();
    body
}

fn files(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).unwrap().map(|item| item.unwrap().path()).collect()
}

fn open(dir: &Path) -> SnapshotStore<Toy> {
    SnapshotStore::open(dir).unwrap()
}

#[test]
fn a_written_snapshot_is_current_and_the_older_one_goes() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    assert!(store.current().unwrap().is_none());
    for (index, len_bytes) in [(10, 0), (20, 1), (30, 3_000_000)] {
        let body = sample_body(len_bytes);
        let written = write(&store, index, &body);
        for file in [written, store.current().unwrap().unwrap()] {
            assert_eq!(*file.meta(), meta(index));
            assert_eq!(body_of(&file), body);
        }
        let reopened = open(dir.path()).current().unwrap().unwrap();
        assert_eq!(*reopened.meta(), meta(index));
        assert_eq!(body_of(&reopened), body);
        assert_eq!(files(dir.path()), [reopened.path()]);
    }
    let compressed = store.current().unwrap().unwrap().len_bytes();
    assert!(compressed < 2_900_000, "{compressed} bytes");
}

#[test]
fn a_received_snapshot_replaces_the_current_one_even_while_that_is_sent() {
    let (leader, follower) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sent = write(&open(leader.path()), 50, &sample_body(500_000));
    let store = open(follower.path());
    let old = write(&store, 40, b"old");
    let mut old_bytes = old.raw();

    let mut receiver = store.receive().unwrap();
    let mut raw = sent.raw();
    let mut chunk = vec![0; 65_536];
    loop {
        let read = raw.read(&mut chunk).unwrap();
        if read == 0 {
            break;
        }
        receiver.write_chunk(&chunk[..read]).unwrap();
    }
    let received = receiver.finish().unwrap();
    assert_eq!(*received.meta(), meta(50));
    assert_eq!(*store.current().unwrap().unwrap().meta(), meta(40));
    let installed = store.install(received).unwrap();
    assert_eq!(body_of(&installed), sample_body(500_000));
    assert_eq!(files(follower.path()), [installed.path()]);
    assert_eq!(*open(follower.path()).current().unwrap().unwrap().meta(), meta(50));

    assert_eq!(body_of(&old), b"old");
    let mut copied = Vec::new();
    old_bytes.read_to_end(&mut copied).unwrap();
    assert_eq!(copied.len() as u64, old.len_bytes());
}

#[test]
fn a_snapshot_that_covers_less_does_not_replace_the_current_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut slow = store.begin(&meta(10)).unwrap();
    slow.write_all(b"slow").unwrap();
    write(&store, 20, b"fast");
    assert_eq!(*slow.finish().unwrap().meta(), meta(20));
    assert_eq!(body_of(&store.current().unwrap().unwrap()), b"fast");
    assert_eq!(files(dir.path()).len(), 1);
}

#[test]
fn unfinished_snapshots_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    write(&store, 10, b"sound");
    let mut writer = store.begin(&meta(20)).unwrap();
    writer.write_all(&sample_body(100_000)).unwrap();
    let mut receiver = store.receive().unwrap();
    receiver.write_chunk(b"QSNAPSHT").unwrap();
    assert_eq!(files(dir.path()).len(), 3);
    // A crash leaves both files behind.
    let reopened = open(dir.path());
    assert_eq!(files(dir.path()).len(), 1);
    assert_eq!(body_of(&reopened.current().unwrap().unwrap()), b"sound");

    let mut receiver = store.receive().unwrap();
    receiver.write_chunk(b"QSNAPSHT").unwrap();
    assert!(matches!(receiver.finish(), Err(SnapshotError::Damaged { .. })));
    drop(store.begin(&meta(20)).unwrap());
    assert_eq!(files(dir.path()).len(), 1);
}

/// The call that brought it ends at any moment, and what it had with it.
#[test]
fn a_received_snapshot_that_is_not_installed_goes_with_its_last_handle() {
    let (leader, follower) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut bytes = Vec::new();
    write(&open(leader.path()), 50, b"body").raw().read_to_end(&mut bytes).unwrap();
    let store = open(follower.path());
    let receive = || {
        let mut receiver = store.receive().unwrap();
        receiver.write_chunk(&bytes).unwrap();
        receiver.finish().unwrap()
    };
    let received = receive();
    let held = received.clone();
    drop(received);
    assert_eq!(files(follower.path()), [held.path()]);
    let mut raw = held.raw();
    drop(held);
    assert_eq!(files(follower.path()).len(), 0);
    let mut read = Vec::new();
    raw.read_to_end(&mut read).unwrap();
    assert_eq!(read, bytes, "who reads it is not disturbed");

    let received = receive();
    let held = received.clone();
    let installed = store.install(received).unwrap();
    drop(held);
    assert_eq!(files(follower.path()), [installed.path()]);
    assert_eq!(body_of(&open(follower.path()).current().unwrap().unwrap()), b"body");
}

#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(&open(dir.path()), 10, &sample_body(300)).path().to_owned();
    let sound = fs::read(&path).unwrap();
    for at in 0..sound.len() {
        let mut damaged = sound.clone();
        damaged[at] ^= 1 << (at % 8);
        fs::write(&path, damaged).unwrap();
        let error = open(dir.path()).current().unwrap_err();
        assert!(error.to_string().contains(path.to_str().unwrap()), "byte {at}: {error}");
    }
    for len_bytes in 0..sound.len() {
        fs::write(&path, &sound[..len_bytes]).unwrap();
        open(dir.path()).current().unwrap_err();
    }
    fs::write(&path, [sound.as_slice(), b"more"].concat()).unwrap();
    open(dir.path()).current().unwrap_err();

    // A sound one from a peer takes its place.
    let store = open(dir.path());
    let mut receiver = store.receive().unwrap();
    receiver.write_chunk(&sound).unwrap();
    store.install(receiver.finish().unwrap()).unwrap();
    assert_eq!(*open(dir.path()).current().unwrap().unwrap().meta(), meta(10));
}

#[test]
fn a_newer_format_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(&open(dir.path()), 10, b"body").path().to_owned();
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = 7;
    fs::write(&path, bytes).unwrap();
    let error = open(dir.path()).current().unwrap_err();
    assert!(matches!(error, SnapshotError::NewerFormat { found: 7, supported: 1, .. }), "{error}");
}

#[test]
fn a_snapshot_that_is_made_without_a_file_has_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    for len_bytes in [0, 1, 700_000] {
        let body = sample_body(len_bytes);
        let mut in_file = Vec::new();
        write(&open(dir.path()), 10, &body).raw().read_to_end(&mut in_file).unwrap();
        let mut encoder = SnapshotEncoder::begin::<Toy>(&meta(10), Vec::new()).unwrap();
        body.chunks(1_000).for_each(|part| encoder.write_all(part).unwrap());
        assert!(encoder.finish().unwrap() == in_file, "{len_bytes} bytes");
    }
}

/// As in a backup, and on media that cannot be written.
#[test]
fn a_snapshot_behind_other_bytes_is_read_and_checked_as_one_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store"));
    let body = sample_body(300_000);
    let written = write(&store, 7, &body);
    let alone = fs::read(written.path()).unwrap();
    let looked = SnapshotStore::<Toy>::look(&dir.path().join("store")).unwrap().unwrap();
    assert_eq!((looked.path(), body_of(&looked)), (written.path(), body.clone()));
    let path = dir.path().join("backup");
    let before = b"some other bytes";
    let whole = [&before[..], &alone].concat();
    let read = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let mut mode = fs::metadata(&path).unwrap().permissions();
        mode.set_readonly(true);
        fs::set_permissions(&path, mode).unwrap();
        let read = SnapshotFile::<Toy>::open_behind(&path, before.len() as u64);
        fs::remove_file(&path).unwrap();
        read
    };
    let file = read(&whole).unwrap();
    assert_eq!((file.meta(), file.len_bytes()), (&meta(7), alone.len() as u64));
    assert_eq!(body_of(&file), body);
    let mut raw = Vec::new();
    file.raw().read_to_end(&mut raw).unwrap();
    assert_eq!(raw, alone);
    for cut in [0, before.len(), before.len() + 30, whole.len() - 1] {
        let error = read(&whole[..cut]).unwrap_err();
        assert!(matches!(error, SnapshotError::Damaged { .. }), "cut at {cut}: {error}");
    }
    for at in (before.len()..whole.len()).step_by(997) {
        let mut damaged = whole.clone();
        damaged[at] ^= 4;
        assert!(read(&damaged).is_err(), "byte {at}");
    }
}
