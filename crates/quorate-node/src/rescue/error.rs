//! Why a backup or a data directory cannot be used. What to do next is part of the message.

use std::io;
use std::path::{Path, PathBuf};

use quorate_log::{LogError, OpenError, StampError};

use crate::backup::HeadError;

/// Why a backup or a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
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
    #[error("{} {problem}; nothing in it is to be trusted: take another backup", path.display())]
    Backup {
        /// The file.
        path: PathBuf,
        /// In what way it is none.
        problem: String,
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
    /// The log cannot be read.
    #[error("the log in {} cannot be read; recover from another node's directory, or restore a backup", dir.display())]
    Log {
        /// The data directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: OpenError,
    },
    /// A snapshot that the log needs is missing or damaged.
    #[error("the snapshot in {} {problem}; recover from another node's directory, or restore a backup", dir.display())]
    Snapshot {
        /// The data directory.
        dir: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The new log cannot be written.
    #[error("cannot write the new log in {}", dir.display())]
    Write {
        /// The data directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
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
            problem => Self::Backup { path: path.to_owned(), problem: problem.to_string() },
        }
    }

    pub(super) fn content(path: &Path, error: &dyn std::error::Error) -> Self {
        let problem = format!("is damaged or cut off: {}", with_causes(error));
        Self::Backup { path: path.to_owned(), problem }
    }

    pub(super) fn snapshot(dir: &Path, error: &dyn std::error::Error) -> Self {
        let problem = format!("cannot be read: {}", with_causes(error));
        Self::Snapshot { dir: dir.to_owned(), problem }
    }

    pub(super) fn write(dir: &Path) -> impl Fn(Written) -> Self {
        let dir = dir.to_owned();
        move |Written(source)| Self::Write { dir: dir.clone(), source }
    }
}

/// Any error of writing a log or a snapshot.
pub(super) struct Written(Box<dyn std::error::Error + Send + Sync>);

macro_rules! written {
    ($($error:ty),*) => {$(
        impl From<$error> for Written {
            fn from(error: $error) -> Self {
                Self(Box::new(error))
            }
        }
    )*};
}

written!(io::Error, OpenError, LogError, StampError, quorate_log::SnapshotError);

fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |told, cause| format!("{told}: {cause}"))
}
