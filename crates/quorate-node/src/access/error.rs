//! Why the access file, or a file with keys, cannot be used. Shows no token.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use quorate_state::Invalid;
use tokio::task::JoinError;

/// The access file, or one with keys, at most: some ten thousand tokens, bytes.
pub(super) const FILE_MAX: u64 = 4 * 1024 * 1024;
/// A file that takes longer cannot be used: it may be a pipe, or of a server that is gone.
pub(super) const READ_WITHIN: Duration = Duration::from_secs(5);
/// A file that has changed is read again after this time, and counts if it is the same: one that is
/// being written may say more rights than it will.
pub(super) const SETTLES: Duration = Duration::from_millis(200);
/// Keys of one file.
pub(super) const KEYS_MAX: usize = 256;

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}", path.display())]
pub(crate) struct AccessError {
    pub(super) path: PathBuf,
    #[source]
    pub(super) problem: Problem,
}

/// What is wrong with it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error(transparent)]
    Read(#[from] io::Error),
    #[error("is no regular file")]
    NoFile,
    #[error("is larger than {FILE_MAX} bytes")]
    TooLarge,
    #[error("not read within {READ_WITHIN:?}")]
    Slow,
    #[error("it was another one {SETTLES:?} later, as one that is being written")]
    Unsettled,
    #[error("reading it panicked")]
    Panicked(#[source] JoinError),
    #[error("is no UTF-8")]
    NoText,
    /// What the parser says; its own error would show the line.
    #[error("{0}")]
    Syntax(String),
    #[error("there is no entry in it, so nobody could call")]
    Empty,
    #[error("line {line}")]
    Entry {
        line: usize,
        #[source]
        source: EntryError,
    },
    #[error(transparent)]
    Keys(#[from] KeysError),
}

/// What is wrong with an entry.
#[derive(Debug, thiserror::Error)]
pub(super) enum EntryError {
    /// Which field, and what it must be.
    #[error("{0}")]
    Field(String),
    #[error(transparent)]
    Namespace(#[from] Invalid),
    #[error("jwks")]
    Keys(#[source] Box<AccessError>),
}

impl From<String> for EntryError {
    fn from(field: String) -> Self {
        Self::Field(field)
    }
}

impl From<&str> for EntryError {
    fn from(field: &str) -> Self {
        Self::Field(field.to_owned())
    }
}

/// What is wrong with a JWKS.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeysError {
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error("has {found} keys, at most {KEYS_MAX} allowed")]
    Many { found: usize },
    #[error("two keys have the kid {kid:?}")]
    Twice { kid: String },
    #[error("has no key with a kid for EdDSA, ES256 or RS256")]
    None,
}
