//! What can go wrong with snapshot files.

use std::io;
use std::path::PathBuf;

/// Why a snapshot could not be written, read or installed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The file system refused.
    #[error("cannot {operation} {}", .path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The file is not what was written.
    #[error("snapshot {} is damaged at offset {offset_bytes}: {problem}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where: the field that is wrong, or the end for a checksum over everything before it.
        offset_bytes: u64,
        /// What is wrong there.
        problem: SnapshotProblem,
    },
    /// The file was written by a newer release.
    #[error(
        "snapshot {} has format version {found}, this release reads up to {supported}",
        .path.display()
    )]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Version found.
        found: u32,
        /// Newest version this release reads.
        supported: u32,
    },
    /// The metadata could not be encoded.
    #[error("cannot encode the metadata of snapshot {}", .path.display())]
    Encode {
        /// The file being written.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: postcard::Error,
    },
}

impl SnapshotError {
    /// Whether opening the snapshots again, as they are, may go better.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Io { .. } => true,
            Self::Damaged { .. } | Self::NewerFormat { .. } | Self::Encode { .. } => false,
        }
    }
}

/// In what way a snapshot file is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotProblem {
    /// It is shorter than its parts.
    #[error("it ends too early")]
    TooShort,
    /// It does not begin or end with the marks of a snapshot.
    #[error("this is not the mark of a snapshot file")]
    Mark,
    /// A length does not match the file.
    #[error("the recorded length does not match the file")]
    Length,
    /// A checksum does not match the bytes before it.
    #[error("the checksum does not match")]
    Checksum,
    /// The metadata cannot be decoded.
    #[error("the metadata cannot be decoded")]
    Metadata,
    /// The metadata is sound, but holds what only a newer release knows.
    #[error("the metadata holds what this release does not know; a newer one wrote it")]
    Unknown,
}

impl From<SnapshotError> for io::Error {
    /// Keeps the kind of an underlying IO error and the whole chain of causes.
    fn from(error: SnapshotError) -> Self {
        let kind = match &error {
            SnapshotError::Io { source, .. } => source.kind(),
            SnapshotError::Damaged { .. } => io::ErrorKind::InvalidData,
            SnapshotError::NewerFormat { .. } => io::ErrorKind::Unsupported,
            SnapshotError::Encode { .. } => io::ErrorKind::InvalidInput,
        };
        Self::new(kind, error)
    }
}
