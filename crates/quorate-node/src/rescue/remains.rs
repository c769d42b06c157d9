//! What a data directory holds, found without changing a byte of it: the log is copied, and the
//! copy is opened, since opening a log writes to it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use openraft::storage::{RaftLogReader as _, RaftLogStorage as _};
use openraft::vote::RaftLeaderId as _;
use prometheus_client::metrics::histogram::Histogram;
use quorate_log::{Io, LogOptions, NodeId, SnapshotStore};
use quorate_proto::ClusterId;
use quorate_state::{Counts, OldNode, Registry, read_snapshot};

use crate::applied::Applied;
use crate::rescue::error::{self, RescueError};
use crate::rescue::place::{self, Lock};
use crate::rescue::{LOG, SNAPSHOTS};
use crate::types::{LogId, LogStore, Member, TypeConfig};

/// Entries that are read from the log at once.
const READ_AT_ONCE: u64 = 256;

/// Bytes of a log that are copied at once.
const COPIED_AT_ONCE: u64 = 256 * 1024;

/// What the directory of a node holds that does not run. While this is there, none can be started
/// on it.
#[derive(Debug)]
pub struct Remains {
    pub(super) lock: Lock,
    pub(super) node_id: NodeId,
    pub(super) member: Member,
    /// The other members, those first that vote.
    pub(super) others: Vec<OldNode>,
    pub(super) registry: Registry,
    pub(super) last: LogId,
    pub(super) term: u64,
    cluster_id: ClusterId,
    committed: u64,
    voters: Vec<NodeId>,
    halves: Vec<BTreeSet<NodeId>>,
    written: SystemTime,
}

impl Remains {
    /// Reads a data directory; `scratch` is an empty directory with room for a copy of its log.
    /// Blocks.
    ///
    /// # Errors
    /// A node runs on it, it is damaged, or it is of no cluster.
    pub async fn of(dir: &Path, scratch: &Path) -> Result<Self, RescueError> {
        // Its log may be on its way. What cannot be listed is told of below.
        if place::is_unfinished(dir).unwrap_or(false) {
            return Err(RescueError::Unfinished { dir: dir.to_owned() });
        }
        look_for_log(dir, &dir.join(LOG).join("db"))?;
        let lock = Lock::take(dir)?.with_log()?;
        if place::is_unfinished(dir).map_err(error::io("list directory", dir))? {
            return Err(RescueError::Unfinished { dir: dir.to_owned() });
        }
        let written = copy_log(dir, scratch)?;
        let options = LogOptions { io: Io::Inline, ..LogOptions::default() };
        let mut log = LogStore::open(scratch, options)
            .map_err(|error| RescueError::log(dir, scratch, error))?;
        let unfounded = || RescueError::Unfounded { path: dir.to_owned() };
        let identity = log.identity().ok_or_else(unfounded)?;
        let reading = |source| error::io("read the log in", dir)(source);
        let state = log.get_log_state().await.map_err(reading)?;
        let vote = log.read_vote().await.map_err(reading)?;
        let committed = log.read_committed().await.map_err(reading)?;
        let applied = Applied::new(1, 1, Histogram::new([]));
        let covered = restore(dir, &applied)?;
        let last = ends(state.last_log_id, covered).ok_or_else(unfounded)?;
        if state.last_purged_log_id > covered {
            return Err(RescueError::NoSnapshot { dir: dir.to_owned() });
        }
        let mut next = covered.map_or(0, |covered| covered.index() + 1);
        while next <= last.index() {
            let end = (last.index() + 1).min(next + READ_AT_ONCE);
            let entries = log.try_get_log_entries(next..end).await.map_err(reading)?;
            entries.into_iter().for_each(|entry| drop(applied.apply(entry)));
            next = end;
        }
        let (registry, membership) = {
            let state = applied.lock();
            (state.registry.clone(), state.membership.clone())
        };
        let cluster_id = registry.cluster_id().map(ClusterId::from).ok_or_else(unfounded)?;
        let voters: Vec<NodeId> = membership.voter_ids().collect();
        let others = membership.nodes().filter(|(id, _)| **id != identity.node_id);
        let mut others: Vec<_> = others.collect();
        others.sort_by_key(|(id, _)| !voters.contains(id));
        let other = |(id, member): (&NodeId, &Member)| OldNode {
            id: id.get(),
            address: member.peer_address.clone(),
        };
        let term = vote.map_or(0, |vote| vote.leader_id().term());
        Ok(Self {
            lock,
            node_id: identity.node_id,
            member: membership.get_node(&identity.node_id).cloned().unwrap_or_default(),
            others: others.into_iter().map(other).collect(),
            registry,
            last,
            term: term.max(last.committed_leader_id().term),
            cluster_id,
            committed: committed.max(covered).map_or(0, |id| id.index()),
            voters,
            halves: membership.get_joint_config().clone(),
            written: written.max(newest_in(&dir.join(SNAPSHOTS))?),
        })
    }

    /// Where they are.
    pub fn dir(&self) -> &Path {
        self.lock.dir()
    }

    /// The node that they are of.
    pub fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// The cluster that they are of.
    pub fn cluster_id(&self) -> ClusterId {
        self.cluster_id
    }

    /// How far the log goes, as Raft compares logs: the term of the last entry, its index.
    pub fn reaches(&self) -> (u64, u64) {
        (self.last.committed_leader_id().term, self.last.index())
    }

    /// The last entry that is noted to be committed. The node may have known of more, and applied
    /// it: a commit is noted with the next write to the log.
    pub fn committed(&self) -> u64 {
        self.committed
    }

    /// The revision, once all of the log is applied.
    pub fn revision(&self) -> u64 {
        self.registry.revision().0
    }

    /// Services, instances and leases, once all of the log is applied.
    pub fn counts(&self) -> [usize; 3] {
        let Counts { services, instances, leases, .. } = self.registry.counts();
        [services, instances, leases]
    }

    /// The voters, by the last change of them in the log.
    pub fn voters(&self) -> &[NodeId] {
        &self.voters
    }

    /// Whether these nodes can go on alone. Where a change of the voters is open in the log, that
    /// takes a majority of those before and of those after it.
    pub fn are_majority(&self, nodes: &[NodeId]) -> bool {
        self.halves
            .iter()
            .all(|half| nodes.iter().filter(|id| half.contains(id)).count() > half.len() / 2)
    }

    /// When the log or a snapshot was written last, by the file system.
    pub fn written(&self) -> SystemTime {
        self.written
    }
}

/// A directory that is not there, one that this user may not look into, and one without a log are
/// three things.
fn look_for_log(dir: &Path, log: &Path) -> Result<(), RescueError> {
    fs::read_dir(dir).map_err(error::io("list directory", dir))?;
    match log.try_exists().map_err(error::io("look at", log))? {
        true => Ok(()),
        false => Err(RescueError::NoLog { dir: dir.to_owned() }),
    }
}

/// What the snapshot has, if there is one, and what it covers.
fn restore(dir: &Path, applied: &Applied) -> Result<Option<LogId>, RescueError> {
    let snapshots = dir.join(SNAPSHOTS);
    if !snapshots.try_exists().map_err(error::io("look at", &snapshots))? {
        return Ok(None);
    }
    let newest = SnapshotStore::<TypeConfig>::look(&snapshots);
    let Some(file) = newest.map_err(|error| RescueError::snapshot(dir, error))? else {
        return Ok(None);
    };
    let registry = read_snapshot(&mut BufReader::new(file.body()));
    let registry = registry.map_err(|error| RescueError::snapshot(dir, error))?;
    let meta = file.meta().clone();
    drop(applied.restore(registry, meta.last_log_id, meta.last_membership));
    Ok(meta.last_log_id)
}

/// When the newest file in a directory was written; of one that is not there, in 1970.
fn newest_in(dir: &Path) -> Result<SystemTime, RescueError> {
    let never = SystemTime::UNIX_EPOCH;
    if !dir.try_exists().map_err(error::io("look at", dir))? {
        return Ok(never);
    }
    let modified = |item: std::io::Result<fs::DirEntry>| item?.metadata()?.modified();
    let mut all = fs::read_dir(dir).map_err(error::io("list directory", dir))?.map(modified);
    all.try_fold(never, |newest, it| it.map(|it| newest.max(it)))
        .map_err(error::io("look at the files in", dir))
}

/// Where a log goes on behind, as a node that starts finds it (`server/opening.rs`): what it has
/// before the end of the snapshot counts no more, also if it is of a later term.
fn ends(log: Option<LogId>, covered: Option<LogId>) -> Option<LogId> {
    let is_further = |covered: &LogId| Some(covered.index()) > log.map(|last| last.index());
    covered.filter(is_further).or(log)
}

/// Copies the log of a data directory; when the newest of its files was written.
fn copy_log(dir: &Path, scratch: &Path) -> Result<SystemTime, RescueError> {
    let mut written = SystemTime::UNIX_EPOCH;
    let mut folders: Vec<(PathBuf, PathBuf)> = vec![(dir.join(LOG), scratch.to_owned())];
    while let Some((from, to)) = folders.pop() {
        fs::create_dir_all(&to).map_err(RescueError::copy(dir, &to))?;
        for item in fs::read_dir(&from).map_err(error::io("list directory", &from))? {
            let path = item.map_err(error::io("list directory", &from))?.path();
            let target = to.join(path.file_name().unwrap_or_default());
            if path.is_dir() {
                folders.push((path, target));
                continue;
            }
            let source = File::open(&path).map_err(error::io("read", &path))?;
            let modified = source.metadata().and_then(|found| found.modified());
            written = written.max(modified.map_err(error::io("look at", &path))?);
            copy_file(dir, (source, &path), &target)?;
        }
    }
    Ok(written)
}

/// By hand: whichever of the two disks fails is named.
fn copy_file(dir: &Path, from: (File, &Path), to: &Path) -> Result<(), RescueError> {
    let (source, path) = from;
    let mut copy = File::create(to).map_err(RescueError::copy(dir, to))?;
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        let read = (&source).take(COPIED_AT_ONCE).read_to_end(&mut bytes);
        if read.map_err(error::io("read", path))? == 0 {
            return Ok(());
        }
        copy.write_all(&bytes).map_err(RescueError::copy(dir, to))?;
    }
}

#[cfg(test)]
mod tests;
