//! Puts a new state into a data directory: after a power cut at any moment, and after the end of
//! this process at any moment, a node finds the old state or the new one, each whole.
//!
//! The new log and snapshot are made in `anew-ID.incomplete`, ID being the new cluster's. Once all
//! of it is on the disk, it is renamed to `anew-ID`: from then on the new state counts. What is
//! left is to move things ([`next_step`]), one rename after the other, each of which leaves what
//! the next look around finds: whoever comes next, this process or a node that starts, goes on with
//! it. The old log and snapshots go to `before-ID`, and are left there.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use openraft::Membership;
use openraft::storage::RaftLogStorage as _;
use quorate_log::{ClusterId, Identity, Io, LogOptions, NodeId, SnapshotStore, make_dir};
use quorate_state::{Registry, write_snapshot};

use crate::rescue::error::{self, RescueError, Written};
use crate::types::{LogId, LogStore, Member, SnapshotMeta, StoredMembership, TypeConfig, Vote};

/// What a data directory consists of, in the order in which it is moved: while the log is not in
/// its place, a node cannot take the rest for all there is.
const PARTS: [&str; 2] = ["snapshots", "log"];

const ANEW: &str = "anew-";
const BEFORE: &str = "before-";
const INCOMPLETE: &str = ".incomplete";

/// What a file system puts into a directory of its own.
const NOT_OURS: &str = "lost+found";

/// A node that starts waits so long for one that is just opening the same directory.
const LOCK_TRIES: u32 = 50;
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// The only one who works on a data directory, as long as this is there: while it is opened, and
/// while a new state is put into it.
#[derive(Debug)]
pub(crate) struct Lock {
    dir: PathBuf,
    _of_dir: File,
    /// The lock that a node holds for as long as it runs.
    _of_log: Option<File>,
}

impl Lock {
    /// # Errors
    /// Another one has it, or the directory cannot be opened.
    pub(crate) fn take(dir: &Path) -> Result<Self, RescueError> {
        let of_dir = lock(dir, dir)?;
        Ok(Self { dir: dir.to_owned(), _of_dir: of_dir, _of_log: None })
    }

    /// Also keeps nodes away that are not opening it, but run.
    ///
    /// # Errors
    /// One runs, or the log cannot be opened.
    pub(super) fn with_log(self) -> Result<Self, RescueError> {
        let of_log = lock(&self.dir, &self.dir.join("log").join("db"))?;
        Ok(Self { _of_log: Some(of_log), ..self })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

fn lock(dir: &Path, path: &Path) -> Result<File, RescueError> {
    let file = File::open(path).map_err(error::io("open", path))?;
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => thread::sleep(LOCK_RETRY),
            Err(TryLockError::Error(source)) => return Err(error::io("lock", path)(source)),
        }
    }
    Err(RescueError::InUse { dir: dir.to_owned() })
}

/// # Errors
/// There is something in the directory. What an attempt left that was not completed does not count.
pub(super) fn check_empty(dir: &Path) -> Result<(), RescueError> {
    let listed = names(dir).map_err(error::io("list directory", dir))?;
    match listed.into_iter().find(|name| name != NOT_OURS && !is_incomplete(name)) {
        Some(found) => Err(RescueError::NotEmpty { dir: dir.to_owned(), found }),
        None => Ok(()),
    }
}

/// What is to be in a data directory.
pub(crate) struct NewState {
    pub(crate) cluster_id: ClusterId,
    /// The only member.
    pub(crate) node_id: NodeId,
    pub(crate) member: Member,
    pub(crate) registry: Registry,
    /// The entry that the log goes on behind.
    pub(crate) last: Option<LogId>,
    /// A term that is not behind that entry's.
    pub(crate) term: u64,
}

impl NewState {
    /// Writes it beside what is there, and decides that it counts.
    ///
    /// # Errors
    /// It cannot be written; then nothing has changed.
    pub(crate) async fn write(&self, dir: &Path) -> Result<(), RescueError> {
        let anew = dir.join(format!("{ANEW}{}", self.cluster_id));
        let incomplete = dir.join(format!("{ANEW}{}{INCOMPLETE}", self.cluster_id));
        self.write_parts(&incomplete).await.map_err(RescueError::write(dir))?;
        let in_place = sync(&incomplete).and_then(|()| fs::rename(&incomplete, &anew));
        in_place.and_then(|()| sync(dir)).map_err(error::io("write the new state into", dir))?;
        Ok(())
    }

    async fn write_parts(&self, dir: &Path) -> Result<(), Written> {
        make_dir(dir)?;
        let options = LogOptions { io: Io::Inline, ..LogOptions::default() };
        let mut log = LogStore::open(dir.join("log"), options)?;
        let (cluster_id, node_id) = (Some(self.cluster_id), self.node_id);
        log.stamp(Identity { cluster_id, founders: 0, node_id }).await?;
        log.save_vote(&Vote::new(self.term, node_id)).await?;
        if let Some(last) = self.last {
            log.purge(last).await?;
        }
        log.close()?;
        let snapshots = SnapshotStore::<TypeConfig>::open(dir.join("snapshots"))?;
        let members = [(node_id, self.member.clone())];
        let voters = vec![[node_id].into()];
        let membership = Membership::new(voters, std::collections::BTreeMap::from(members))
            .map_err(io::Error::other)?;
        let last_membership = StoredMembership::new(self.last, membership);
        let meta = SnapshotMeta { last_log_id: self.last, last_membership };
        let mut writer = snapshots.begin(&meta)?;
        write_snapshot(&self.registry, &mut writer)?;
        writer.finish()?;
        Ok(())
    }
}

/// Whether a new state counts that is not in its place yet.
pub(super) fn is_unfinished(dir: &Path) -> io::Result<bool> {
    Ok(next_step(dir)?.is_some_and(|step| !matches!(step, Step::Remove(_))))
}

/// Goes on where the last one who put a new state here has stopped, if one has. The caller has the
/// [`Lock`].
///
/// # Errors
/// Something cannot be moved.
pub(crate) fn finish(dir: &Path) -> io::Result<()> {
    while let Some(step) = next_step(dir)? {
        step.take()?;
    }
    Ok(())
}

/// One change of names.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Make(PathBuf),
    Move { from: PathBuf, to: PathBuf },
    Remove(PathBuf),
}

impl Step {
    fn take(self) -> io::Result<()> {
        let changed = match &self {
            Self::Make(dir) => {
                make_dir(dir)?;
                vec![dir]
            }
            Self::Move { from, to } => {
                fs::rename(from, to)?;
                vec![from, to]
            }
            Self::Remove(dir) => {
                fs::remove_dir_all(dir)?;
                vec![dir]
            }
        };
        changed.into_iter().filter_map(|path| path.parent()).try_for_each(sync)
    }
}

/// What is to be done next; `None`: nothing.
fn next_step(dir: &Path) -> io::Result<Option<Step>> {
    let names = names(dir)?;
    // It does not count, and the next attempt begins anew.
    if let Some(left) = names.iter().find(|name| is_incomplete(name)) {
        return Ok(Some(Step::Remove(dir.join(left))));
    }
    let Some(name) = names.iter().find(|name| name.starts_with(ANEW)) else { return Ok(None) };
    let (anew, id) = (dir.join(name), &name[ANEW.len()..]);
    let before = dir.join(format!("{BEFORE}{id}"));
    // What cannot be looked at is not gone: an error ends it here, before anything is removed.
    let mut part = None;
    for it in PARTS {
        if part.is_none() && anew.join(it).try_exists()? {
            part = Some(it);
        }
    }
    let Some(part) = part else { return Ok(Some(Step::Remove(anew))) };
    let (place, kept) = (dir.join(part), before.join(part));
    Ok(Some(match place.try_exists()? {
        true if !before.try_exists()? => Step::Make(before),
        true => Step::Move { from: place, to: kept },
        false => Step::Move { from: anew.join(part), to: place },
    }))
}

fn is_incomplete(name: &str) -> bool {
    name.starts_with(ANEW) && name.ends_with(INCOMPLETE)
}

fn names(dir: &Path) -> io::Result<Vec<String>> {
    let listed = fs::read_dir(dir)?;
    listed.map(|item| Ok(item?.file_name().to_string_lossy().into_owned())).collect()
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use quorate_state::{Clock, Command, LeaseId, Op};

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
        let found = Op::Found { cluster_id, lease_base: LeaseId(0) };
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
        let of_log = log.identity().unwrap().cluster_id.unwrap();
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
}
