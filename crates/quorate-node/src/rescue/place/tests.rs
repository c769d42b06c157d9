//! A new state in a data directory, whenever its putting there is broken off. See
//! `rescue/place.rs`.

use std::num::NonZeroU64;

use quorate_state::{Clock, Command, Op};

use super::*;
use crate::rescue::Remains;
use crate::types::Entry;

fn cluster(id: u64) -> ClusterId {
    ClusterId::new(id).unwrap()
}

fn node(id: u64) -> NodeId {
    NodeId::new(id).unwrap()
}

fn new_state(id: u64) -> NewState {
    let mut registry = Registry::new();
    let cluster_id = NonZeroU64::new(id).unwrap();
    let found = Op::Found { cluster_id, lease_base: 0 };
    registry.apply(&Command::new(Clock(0), found));
    let last = Some(openraft::testing::log_id::<TypeConfig>(3, node(1), 40));
    let (node_id, member) = (node(1), Member::default());
    NewState { cluster_id: cluster(id), node_id, member, registry, last, term: 5 }
}

/// Which cluster a node finds there that is started now.
async fn opened(dir: &Path) -> ClusterId {
    let _lock = Lock::take(dir).unwrap();
    finish(dir).unwrap();
    let log = LogStore::open(dir.join("log"), LogOptions::default()).unwrap();
    let of_log = log.identity().unwrap().cluster_id.unwrap().into();
    log.close().unwrap();
    let snapshots = SnapshotStore::<TypeConfig>::look(&dir.join("snapshots")).unwrap();
    let mut body = io::BufReader::new(snapshots.unwrap().body());
    let of_snapshot = quorate_state::read_snapshot(&mut body).unwrap().cluster_id();
    assert_eq!(Some(of_log), of_snapshot.map(ClusterId::from), "a mixture");
    of_log
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for item in fs::read_dir(from).unwrap() {
        let path = item.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &target),
            false => drop(fs::copy(&path, &target).unwrap()),
        }
    }
}

/// The process ends, or the power fails, between any two steps.
#[tokio::test]
async fn at_every_moment_it_is_the_old_state_or_the_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let start = dir.path().join("start");
    fs::create_dir(&start).unwrap();
    new_state(7).write(&start).await.unwrap();
    assert_eq!(opened(&start).await, cluster(7));

    // While it is written, and when that is done but for the last rename.
    let written = dir.path().join("written");
    copy(&start, &written);
    new_state(9).write(&written).await.unwrap();
    let anew = written.join(format!("anew-{}", cluster(9)));
    let undecided = dir.path().join("undecided");
    copy(&written, &undecided);
    let incomplete = undecided.join(format!("anew-{}.incomplete", cluster(9)));
    fs::rename(undecided.join(anew.file_name().unwrap()), &incomplete).unwrap();
    assert!(!is_unfinished(&undecided).unwrap());
    assert_eq!(opened(&undecided).await, cluster(7));
    assert!(!incomplete.exists(), "what was not decided on is gone");

    // Each number of steps, until none is left.
    let mut steps = 0;
    loop {
        let cut = dir.path().join(format!("cut-{steps}"));
        copy(&written, &cut);
        for _ in 0..steps {
            next_step(&cut).unwrap().unwrap().take().unwrap();
        }
        let is_done = next_step(&cut).unwrap().is_none();
        assert_eq!(opened(&cut).await, cluster(9), "after {steps} steps");
        assert_eq!(next_step(&cut).unwrap(), None);
        let kept = cut.join(format!("before-{}", cluster(9)));
        assert_eq!(opened(&kept).await, cluster(7), "what was there, after {steps} steps");
        if is_done {
            break;
        }
        steps += 1;
    }
    assert_eq!(steps, 6);
}

/// An attempt that was broken off before it decided says nothing about one that had decided.
#[tokio::test]
async fn a_decided_state_counts_whatever_lies_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    new_state(7).write(dir).await.unwrap();
    finish(dir).unwrap();
    new_state(9).write(dir).await.unwrap();
    let incomplete = dir.join(format!("anew-{}.incomplete", cluster(8)));
    fs::create_dir(&incomplete).unwrap();
    let unfinished = |found: RescueError| match found {
        RescueError::Unfinished { .. } => found.to_string(),
        found => panic!("{found:?}"),
    };
    let scratch = tempfile::tempdir().unwrap();
    let looked = async |name| Remains::of(dir, &scratch.path().join(name)).await.unwrap_err();
    for moved in 0..5 {
        assert!(is_unfinished(dir).unwrap(), "after {moved} moves");
        let said = unfinished(looked("a").await);
        assert!(said.contains("start the node on it, which goes on with that"), "{said}");
        unfinished(check_empty(dir).unwrap_err());
        fs::remove_dir_all(&incomplete).unwrap();
        next_step(dir).unwrap().unwrap().take().unwrap();
        fs::create_dir(&incomplete).unwrap();
    }
    assert_eq!(opened(dir).await, cluster(9));
    let remains = Remains::of(dir, &scratch.path().join("b")).await.unwrap();
    assert_eq!(remains.cluster_id(), cluster(9));
}

/// Else a command that is tried again and again fills the disk.
#[tokio::test]
async fn an_attempt_removes_what_others_left_and_leaves_nothing_itself() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let left = dir.join(format!("anew-{}.incomplete", cluster(8)));
    fs::create_dir_all(left.join("log")).unwrap();
    new_state(7).write(dir).await.unwrap();
    assert!(!left.exists());
    finish(dir).unwrap();
    let before = names(dir).unwrap();
    // What it is to be called is taken.
    let taken = dir.join(format!("anew-{}", cluster(9)));
    fs::write(&taken, b"").unwrap();
    new_state(9).write(dir).await.unwrap_err();
    fs::remove_file(&taken).unwrap();
    assert_eq!(names(dir).unwrap(), before);
    assert_eq!(opened(dir).await, cluster(7));
}

#[tokio::test]
async fn what_was_decided_and_cannot_be_moved_is_said_to_count() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    new_state(7).write(dir).await.unwrap();
    finish(dir).unwrap();
    new_state(9).write(dir).await.unwrap();
    let in_the_way = dir.join(format!("before-{}", cluster(9)));
    fs::write(&in_the_way, b"").unwrap();
    let said = new_state(9).put_in_place(dir).unwrap_err().to_string();
    let counts = format!("holds a new cluster, {}, from now on", cluster(9));
    assert!(said.contains(&counts) && said.contains("start the node on it"), "{said}");
    fs::remove_file(&in_the_way).unwrap();
    assert_eq!(opened(dir).await, cluster(9));
}

#[tokio::test]
async fn only_one_at_a_time_works_on_a_directory_and_none_while_a_node_runs() {
    let dir = tempfile::tempdir().unwrap();
    new_state(7).write(dir.path()).await.unwrap();
    finish(dir.path()).unwrap();
    let lock = Lock::take(dir.path()).unwrap();
    assert!(matches!(Lock::take(dir.path()), Err(RescueError::InUse { .. })));
    drop(lock);
    let running = LogStore::open(dir.path().join("log"), LogOptions::default()).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let looked = Remains::of(dir.path(), &scratch.path().join("a")).await;
    assert!(matches!(looked, Err(RescueError::InUse { .. })), "{looked:?}");
    running.close().unwrap();
}

/// All of the log counts, also what this node did not know to be committed; and a look changes
/// nothing.
#[tokio::test]
async fn a_look_applies_the_whole_log_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    new_state(7).write(dir.path()).await.unwrap();
    finish(dir.path()).unwrap();
    let mut log = LogStore::open(dir.path().join("log"), LogOptions::default()).unwrap();
    let entries = (41..900).map(|index| Entry {
        log_id: openraft::testing::log_id::<TypeConfig>(5, node(1), index),
        payload: openraft::EntryPayload::Normal(Command::new(Clock(index), Op::Tick)),
    });
    use openraft::storage::RaftLogStorageExt as _;
    log.blocking_append(entries).await.unwrap();
    log.close().unwrap();
    let files = |dir: &Path| {
        let mut all: Vec<(PathBuf, Vec<u8>)> = Vec::new();
        let mut folders = vec![dir.to_owned()];
        while let Some(folder) = folders.pop() {
            for item in fs::read_dir(folder).unwrap() {
                let path = item.unwrap().path();
                match path.is_dir() {
                    true => folders.push(path),
                    false => all.push((path.clone(), fs::read(&path).unwrap())),
                }
            }
        }
        all.sort();
        all
    };
    let before = files(dir.path());
    let scratch = tempfile::tempdir().unwrap();
    let remains = Remains::of(dir.path(), &scratch.path().join("a")).await.unwrap();
    assert_eq!((remains.reaches(), remains.committed()), ((5, 899), 40));
    assert_eq!((remains.cluster_id(), remains.voters()), (cluster(7), &[node(1)][..]));
    assert_eq!(remains.registry.clock(), Clock(899));
    assert!(before == files(dir.path()), "the directory is as it was");
}
