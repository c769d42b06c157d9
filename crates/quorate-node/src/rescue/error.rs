//! Why a backup or a data directory cannot be used. What to do next is part of the message.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_log::{LogError, OpenError, SnapshotError, SnapshotProblem, StampError};
use quorate_proto::ClusterId;
use quorate_state::SnapshotError as ContentError;

use crate::backup::HeadError;
use crate::rescue::{LOG, SNAPSHOTS};
use crate::wall;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why a backup or a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RescueError {
    /// The file system refused.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The file is no backup, or not a whole one.
    #[error("backup {} is damaged; use another one", path.display())]
    Backup {
        /// The file.
        path: PathBuf,
        /// In what way it is none.
        #[source]
        source: Source,
    },
    /// Another release wrote it, and this one does not know all of it. It may be sound.
    #[error("{} was written by another release; use that release's quorate", path.display())]
    OtherRelease {
        /// The backup, the log or the snapshots.
        path: PathBuf,
        /// What is not known.
        #[source]
        source: Source,
    },
    /// The file is something else.
    #[error("{} is no backup; `quorate cluster backup` makes one", path.display())]
    NoBackup {
        /// The file.
        path: PathBuf,
    },
    /// The backup is of a cluster that was not founded yet.
    #[error("{} is of a cluster that was not founded yet: there is nothing in it", path.display())]
    Unfounded {
        /// The backup, or the data directory.
        path: PathBuf,
    },
    /// A directory that has to be empty is not.
    #[error(
        "{} is not empty ({found} is in it), and nothing is overwritten; name a directory that is missing or empty",
        dir.display()
    )]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
        /// One of the names in it.
        found: String,
    },
    /// There is no log in the directory.
    #[error("{} is no data directory of a node: there is no log in it", dir.display())]
    NoLog {
        /// The directory.
        dir: PathBuf,
    },
    /// A node runs on the directory, or a command works on it.
    #[error(
        "{} is in use: a node runs on it, or another command works on it; stop that first",
        dir.display()
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// A new state was decided on, and is not in its place yet.
    #[error(
        "{} holds a new cluster that was made before and is not in its place yet: start the node on it, which goes on with that",
        dir.display()
    )]
    Unfinished {
        /// The directory.
        dir: PathBuf,
    },
    /// A file system is mounted in the data directory: what is there cannot be moved.
    #[error(
        "a file system is mounted at {}, so nothing else can get its place; copy what is in it into a data directory without \
         mounts (the log with `cp -a`, and stop the node before), and use that",
        part.display()
    )]
    Mounted {
        /// Where.
        part: PathBuf,
    },
    /// A new state was decided on, and cannot be put into its place.
    #[error(
        "{} holds a new cluster, {cluster_id}, from now on, which is not in its place yet: put right what is in the way, then start \
         the node on it, which goes on with that; do not make another one",
        dir.display()
    )]
    NotInPlace {
        /// The directory.
        dir: PathBuf,
        /// The new cluster.
        cluster_id: ClusterId,
        /// What is in the way.
        #[source]
        source: io::Error,
    },
    /// A log is read in a copy, for which there is no room, or which cannot be opened.
    #[error(
        "the log in {} is read in a copy, which cannot be made or opened in {}; that says nothing against the log: \
         set TMPDIR to a directory with some MiB more room than the logs take",
        dir.display(),
        copy.display()
    )]
    Copy {
        /// The data directory.
        dir: PathBuf,
        /// The copy.
        copy: PathBuf,
        /// Why.
        #[source]
        source: Source,
    },
    /// The log cannot be read.
    #[error("the log in {} cannot be read; recover from another node's directory, or restore a backup", dir.display())]
    Log {
        /// The data directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: OpenError,
    },
    /// A snapshot that the log needs is not there.
    #[error("the snapshot in {} is missing or older than the log needs it; recover from another node's directory, or restore a backup", dir.display())]
    NoSnapshot {
        /// The data directory.
        dir: PathBuf,
    },
    /// A snapshot that the log needs is damaged.
    #[error("the snapshot in {} cannot be read; recover from another node's directory, or restore a backup", dir.display())]
    Snapshot {
        /// The data directory.
        dir: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Source,
    },
    /// The clock of this machine is behind what was written last.
    #[error(
        "the clock of this machine says {}, but {} was last written at {}: nothing was changed; set the clock, since by it nodes of the \
         old cluster that come back end or go on (if the clock is right and the times of the files are not: \
         find {}/log {}/snapshots -type f -exec touch {{}} +)",
        wall::format(*now),
        dir.display(),
        wall::format(*written),
        dir.display(),
        dir.display()
    )]
    ClockBehind {
        /// The data directory.
        dir: PathBuf,
        /// Now, by the clock, since 1970.
        now: Duration,
        /// When the newest file of the log and the snapshots was written, since 1970.
        written: Duration,
    },
    /// The new log cannot be written.
    #[error("cannot write the new log in {}", dir.display())]
    Write {
        /// The data directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: Source,
    },
}

/// What is behind the head of a backup is not what was written there.
#[derive(Debug, thiserror::Error)]
#[error("it is damaged or cut off")]
struct Damaged(#[source] Source);

/// Opening a log writes to it. Without room that can look like damage.
const ROOM_TO_OPEN: u64 = 4 * 1024 * 1024;

fn is_full(dir: &Path) -> bool {
    rustix::fs::statvfs(dir).is_ok_and(|it| it.f_bavail * it.f_frsize < ROOM_TO_OPEN)
}

/// Names what was tried, and on what.
pub(super) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RescueError {
    let path = path.to_owned();
    move |source| RescueError::Io { operation, path, source }
}

impl RescueError {
    pub(super) fn head(path: &Path, error: HeadError) -> Self {
        match error {
            HeadError::Io(source) => io("read", path)(source),
            HeadError::Mark => Self::NoBackup { path: path.to_owned() },
            HeadError::Version { .. } | HeadError::Unknown => {
                Self::OtherRelease { path: path.to_owned(), source: error.into() }
            }
            HeadError::Checksum => Self::Backup { path: path.to_owned(), source: error.into() },
        }
    }

    /// Of what is behind the head of a backup.
    pub(super) fn content(path: &Path, fault: impl Into<Fault>) -> Self {
        let path = path.to_owned();
        match fault.into() {
            Fault::Io(source) => io("read", &path)(source),
            Fault::OtherRelease(source) => Self::OtherRelease { path, source },
            Fault::Damaged(source) => Self::Backup { path, source: Damaged(source).into() },
        }
    }

    /// Of the snapshot in a data directory.
    pub(super) fn snapshot(dir: &Path, fault: impl Into<Fault>) -> Self {
        match fault.into() {
            Fault::Io(source) => io("read the snapshot in", dir)(source),
            Fault::OtherRelease(source) => Self::OtherRelease { path: dir.join(SNAPSHOTS), source },
            Fault::Damaged(source) => Self::Snapshot { dir: dir.to_owned(), source },
        }
    }

    /// Of the log in a data directory, of which a copy was opened.
    pub(super) fn log(dir: &Path, copy: &Path, error: OpenError) -> Self {
        match error {
            OpenError::NewerFormat { .. }
            | OpenError::OlderFormat { .. }
            | OpenError::Unknown { .. } => {
                Self::OtherRelease { path: dir.join(LOG), source: error.into() }
            }
            error if error.may_pass() || is_full(copy) => Self::copy(dir, copy)(error),
            source => Self::Log { dir: dir.to_owned(), source },
        }
    }

    /// Names the copy, and not what is copied.
    pub(super) fn copy<E: Into<Source>>(dir: &Path, copy: &Path) -> impl FnOnce(E) -> Self {
        let (dir, copy) = (dir.to_owned(), copy.to_owned());
        move |source| Self::Copy { dir, copy, source: source.into() }
    }

    pub(super) fn write(dir: &Path) -> impl Fn(Written) -> Self {
        let dir = dir.to_owned();
        move |Written(source)| Self::Write { dir: dir.clone(), source }
    }
}

/// What is wrong with a snapshot: only damage is a reason to look for another one.
pub(super) enum Fault {
    Io(io::Error),
    OtherRelease(Source),
    Damaged(Source),
}

impl From<SnapshotError> for Fault {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::Io { source, .. } => Self::Io(source),
            SnapshotError::NewerFormat { .. } => Self::OtherRelease(error.into()),
            // The whole message says that it is damaged.
            SnapshotError::Damaged { problem: problem @ SnapshotProblem::Unknown, .. } => {
                Self::OtherRelease(problem.into())
            }
            error => Self::Damaged(error.into()),
        }
    }
}

impl From<ContentError> for Fault {
    fn from(error: ContentError) -> Self {
        match error {
            // The system said it, and not who unpacks what was read.
            ContentError::Io { source, .. } if source.raw_os_error().is_some() => Self::Io(source),
            ContentError::Unknown { .. } | ContentError::Version { .. } => {
                Self::OtherRelease(error.into())
            }
            error => Self::Damaged(error.into()),
        }
    }
}

/// Any error of writing a log or a snapshot.
pub(super) struct Written(Source);

macro_rules! written {
    ($($error:ty),*) => {$(
        impl From<$error> for Written {
            fn from(error: $error) -> Self {
                Self(Box::new(error))
            }
        }
    )*};
}

written!(io::Error, OpenError, LogError, StampError, SnapshotError);

#[cfg(test)]
mod tests;
