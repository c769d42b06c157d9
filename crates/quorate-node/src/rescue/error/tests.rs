//! What is sound is never called damaged: a disk that fails, a copy without room, and what another
//! release wrote say nothing against a backup or a log.

use super::*;

/// With its causes, as people see it.
fn told(error: RescueError) -> String {
    let (mut said, mut cause) = (error.to_string(), std::error::Error::source(&error));
    while let Some(error) = cause {
        said += &format!(": {error}");
        cause = error.source();
    }
    said
}

fn failing() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())
}

fn snapshot_error(problem: SnapshotProblem) -> SnapshotError {
    SnapshotError::Damaged { path: "s".into(), offset_bytes: 16, problem }
}

/// Of a backup, and of the snapshot in a data directory.
fn both<F: Into<Fault>>(fault: impl Fn() -> F) -> [String; 2] {
    let path = Path::new("/where/it/is");
    [RescueError::content(path, fault()), RescueError::snapshot(path, fault())].map(told)
}

#[test]
fn a_snapshot_is_damaged_only_where_its_bytes_are() {
    let (operation, path) = ("read", PathBuf::from("s"));
    let io = || SnapshotError::Io { operation, path: path.clone(), source: failing() };
    let newer = || SnapshotError::NewerFormat { path: path.clone(), found: 9, supported: 1 };
    let unpacked = || ContentError::Io { record: 3, source: failing() };
    for (said, next) in [
        (both(io), "Input/output error"),
        (both(unpacked), "Input/output error"),
        (both(newer), "use that release's quorate"),
        (both(|| snapshot_error(SnapshotProblem::Unknown)), "use that release's quorate"),
        (both(|| ContentError::Unknown { record: 3 }), "use that release's quorate"),
        (both(|| ContentError::Version { found: 2 }), "use that release's quorate"),
    ] {
        for said in said {
            assert!(said.contains("/where/it/is") && said.contains(next), "{said}");
            for wrong in ["damaged", "another one", "another node"] {
                assert!(!said.contains(wrong), "{wrong}: {said}");
            }
        }
    }
    let not_unpacked = || ContentError::Io { record: 3, source: io::Error::other("a bad block") };
    for said in [
        both(|| snapshot_error(SnapshotProblem::Checksum)),
        both(not_unpacked),
        both(|| ContentError::Mismatch),
    ] {
        let [backup, snapshot] = said;
        assert!(backup.contains("is damaged; use another one"), "{backup}");
        assert!(snapshot.contains("recover from another node's directory"), "{snapshot}");
    }
}

#[test]
fn the_head_of_a_backup_says_whether_it_is_damaged_or_newer() {
    let head = |error| told(RescueError::head(Path::new("b"), error));
    for error in [HeadError::Version { found: 9 }, HeadError::Unknown] {
        let said = head(error);
        assert!(said.contains("another release") && !said.contains("damaged"), "{said}");
    }
    assert_eq!(head(HeadError::Io(failing())), format!("cannot read b: {}", failing()));
    assert!(head(HeadError::Checksum).contains("is damaged; use another one"));
}

#[test]
fn a_copy_that_cannot_be_opened_says_nothing_against_its_log() {
    let of = |error| told(RescueError::log(Path::new("/data"), Path::new("/tmp/copy"), error));
    let (operation, path) = ("write", PathBuf::from("/tmp/copy/db"));
    let said = of(OpenError::Io { operation, path: path.clone(), source: failing() });
    for part in ["/data", "/tmp/copy", "nothing against the log", "set TMPDIR", "Input/output"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains("another node"), "{said}");
    let said = of(OpenError::NewerFormat { path: path.clone(), found: 9, supported: 1 });
    assert!(said.contains("/data/log was written by another release"), "{said}");
    assert!(!said.contains("another node"), "{said}");
    let said = of(OpenError::Hole { path, expected_index: 1, found_index: 3 });
    assert!(said.contains("the log in /data cannot be read; recover from another node"), "{said}");
}
