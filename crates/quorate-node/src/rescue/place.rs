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
use quorate_log::{Identity, Io, LogOptions, NodeId, SnapshotStore, make_dir};
use quorate_proto::ClusterId;
use quorate_state::{Registry, write_snapshot};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use crate::rescue::error::{self, RescueError, Written};
use crate::rescue::{LOG, SNAPSHOTS};
use crate::types::{LogId, LogStore, Member, SnapshotMeta, StoredMembership, TypeConfig, Vote};

/// What a data directory consists of, in the order in which it is moved: while the log is not in
/// its place, a node cannot take the rest for all there is.
const PARTS: [&str; 2] = [SNAPSHOTS, LOG];

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
        let of_log = lock(&self.dir, &self.dir.join(LOG).join("db"))?;
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
    let in_dir = || error::io("list directory", dir);
    if is_unfinished(dir).map_err(in_dir())? {
        return Err(RescueError::Unfinished { dir: dir.to_owned() });
    }
    let listed = names(dir).map_err(in_dir())?;
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
    /// Writes it beside what is there, and decides that it counts. The caller has the [`Lock`].
    ///
    /// # Errors
    /// It cannot be written, or what is there could not be moved; then nothing has changed.
    pub(crate) async fn write(&self, dir: &Path) -> Result<(), RescueError> {
        check_movable(dir)?;
        // Else each attempt would leave one more, until the disk is full.
        remove_incomplete(dir).map_err(error::io("remove what an attempt left in", dir))?;
        let anew = dir.join(format!("{ANEW}{}", self.cluster_id));
        let incomplete = dir.join(format!("{ANEW}{}{INCOMPLETE}", self.cluster_id));
        let written = self.write_parts(&incomplete).await.map_err(RescueError::write(dir));
        let decided = written.and_then(|()| {
            let renamed = sync(&incomplete).and_then(|()| fs::rename(&incomplete, &anew));
            renamed.map_err(error::io("write the new state into", dir))
        });
        if decided.is_err() {
            // What is left of it goes with the next attempt, or when a node starts.
            let _or_later = fs::remove_dir_all(&incomplete);
        }
        decided
    }

    /// Puts it into its place, once it is [written](Self::write).
    ///
    /// # Errors
    /// Something cannot be moved. It counts all the same.
    pub(super) fn put_in_place(&self, dir: &Path) -> Result<(), RescueError> {
        let cluster_id = self.cluster_id;
        finish(dir).map_err(|source| RescueError::NotInPlace {
            dir: dir.to_owned(),
            cluster_id,
            source,
        })
    }

    async fn write_parts(&self, dir: &Path) -> Result<(), Written> {
        make_dir(dir)?;
        let options = LogOptions { io: Io::Inline, ..LogOptions::default() };
        let mut log = LogStore::open(dir.join(LOG), options)?;
        let (cluster_id, node_id) = (Some(self.cluster_id.into()), self.node_id);
        log.stamp(Identity { cluster_id, founders: None, node_id }).await?;
        log.save_vote(&Vote::new(self.term, node_id)).await?;
        if let Some(last) = self.last {
            log.purge(last).await?;
        }
        log.close()?;
        let snapshots = SnapshotStore::<TypeConfig>::open(dir.join(SNAPSHOTS))?;
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

/// # Errors
/// A file system is mounted where a part has its place: nobody can move it away from there.
fn check_movable(dir: &Path) -> Result<(), RescueError> {
    let of_dir = mounted(dir);
    let parts = PARTS.map(|part| dir.join(part));
    match parts.into_iter().find(|part| mounted(part).is_some_and(|it| Some(it) != of_dir)) {
        Some(part) => Err(RescueError::Mounted { part }),
        None => Ok(()),
    }
}

/// The file system that a path is on, and which of its mounts, as far as the kernel tells (since
/// Linux 5.8); `None`: there is nothing.
fn mounted(path: &Path) -> Option<(u32, u32, u64)> {
    // What a link leads to is not moved.
    let found = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID).ok()?;
    let has_mount = found.stx_mask & StatxFlags::MNT_ID.bits() != 0;
    let mount = if has_mount { found.stx_mnt_id } else { 0 };
    Some((found.stx_dev_major, found.stx_dev_minor, mount))
}

/// Whether a new state counts that is not in its place yet.
pub(super) fn is_unfinished(dir: &Path) -> io::Result<bool> {
    for name in names(dir)?.iter().filter(|name| is_decided(name)) {
        for part in PARTS {
            if dir.join(name).join(part).try_exists()? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Goes on where the last one who put a new state here has stopped, if one has. The caller has the
/// [`Lock`].
///
/// # Errors
/// Something cannot be moved.
pub(crate) fn finish(dir: &Path) -> io::Result<()> {
    if next_step(dir)?.is_some() {
        // What decided was a rename, and perhaps no more.
        sync(dir)?;
    }
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
    let Some(name) = names.iter().find(|name| is_decided(name)) else { return Ok(None) };
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

fn is_decided(name: &str) -> bool {
    name.starts_with(ANEW) && !name.ends_with(INCOMPLETE)
}

fn remove_incomplete(dir: &Path) -> io::Result<()> {
    let names = names(dir)?;
    let left = names.iter().filter(|name| is_incomplete(name));
    left.map(|name| dir.join(name)).try_for_each(fs::remove_dir_all)
}

fn names(dir: &Path) -> io::Result<Vec<String>> {
    let listed = fs::read_dir(dir)?;
    listed.map(|item| Ok(item?.file_name().to_string_lossy().into_owned())).collect()
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests;
