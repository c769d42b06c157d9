//! What can go wrong with the log: when it is opened ([`OpenError`]) and later ([`LogError`]). A
//! variant names the operation that failed and where; what an operator should do is part of the
//! message.

use std::io;
use std::path::PathBuf;

/// Why a stored value cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The value is shorter than its header says.
    #[error("it is {found_bytes} bytes long, at least {expected_bytes} are needed")]
    TooShort {
        /// Length found.
        found_bytes: usize,
        /// Length needed.
        expected_bytes: usize,
    },
    /// The value was written by a newer release.
    #[error("its format version is {found}, this release reads up to {supported}")]
    NewerFormat {
        /// Version found.
        found: u32,
        /// Newest version this release reads.
        supported: u32,
    },
    /// The bytes are not those that were written.
    #[error("its checksum is {found:08x}, but its bytes give {computed:08x}")]
    Checksum {
        /// Checksum found in the value.
        found: u32,
        /// Checksum of the value's bytes.
        computed: u32,
    },
    /// The value lies under a key that is not its own.
    #[error("it lies under another key than the one it was written for")]
    Misplaced,
    /// The checksum is right and the structure is not: a bug, or a format that only claims to be
    /// ours.
    #[error("its structure is inconsistent")]
    Malformed,
    /// The value is sound but its content is not of the type that belongs here.
    #[error("its content cannot be decoded")]
    Content(#[source] postcard::Error),
    /// The value is sound and its content well-formed, but there is more in it than this release
    /// knows.
    #[error("its content holds what this release does not know")]
    Unknown,
}

/// Why a log could not be opened. Nothing was changed that a later attempt would miss.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process, or another `LogStore` of this one, has the log open.
    #[error(
        "log {} is in use by another process; stop it, or choose another data directory",
        .path.display()
    )]
    Locked {
        /// The log's directory.
        path: PathBuf,
    },
    /// A file or directory of the log could not be created, opened or synced.
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
    /// sled refused the directory for a reason other than damage.
    #[error("sled cannot {operation} in {}", .path.display())]
    Sled {
        /// What was tried.
        operation: &'static str,
        /// The log's directory.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: sled::Error,
    },
    /// sled found damage in its own file.
    #[error("{} is damaged{}; {RESTORE_NODE}", .path.display(), at_offset(.offset_bytes))]
    Damaged {
        /// The damaged file.
        path: PathBuf,
        /// Where, if sled knows.
        offset_bytes: Option<u64>,
        /// What sled found.
        #[source]
        source: sled::Error,
    },
    /// sled panicked over the file, which it does on some kinds of damage.
    #[error(
        "sled panicked while reading {}: {message}; the file is damaged; {RESTORE_NODE}",
        .path.display()
    )]
    Panicked {
        /// sled's file.
        path: PathBuf,
        /// The panic's message.
        message: String,
    },
    /// sled got no memory. That says nothing against the file.
    #[error(
        "no memory was left to read {}: {message}; the file may be sound: start the node again with more memory",
        .path.display()
    )]
    NoMemory {
        /// sled's file.
        path: PathBuf,
        /// The panic's message.
        message: String,
    },
    /// A batch of entries is not what was written.
    #[error(
        "in {}, the batch of entries beginning at index {first_index} is damaged; \
         {RESTORE_NODE}",
        .path.display()
    )]
    Batch {
        /// sled's file.
        path: PathBuf,
        /// The batch's key: the index of its first entry.
        first_index: u64,
        /// What is wrong with it.
        #[source]
        source: RecordError,
    },
    /// What the journal holds is not what was written, though its checksum is right.
    #[error("the journal in {} is damaged; {RESTORE_NODE}", .path.display())]
    Journal {
        /// The log's directory.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: RecordError,
    },
    /// A key in the log is not one of ours.
    #[error(
        "in {}, the log has a key of {key_bytes} bytes that this program never writes; \
         {RESTORE_NODE}",
        .path.display()
    )]
    ForeignKey {
        /// sled's file.
        path: PathBuf,
        /// Its length.
        key_bytes: usize,
    },
    /// One of the single values (vote, identity, ...) is not what was written.
    #[error("in {}, the stored {key} is damaged; {RESTORE_NODE}", .path.display())]
    Meta {
        /// sled's file.
        path: PathBuf,
        /// Which value.
        key: &'static str,
        /// What is wrong with it.
        #[source]
        source: RecordError,
    },
    /// What is stored is sound, but holds what only a newer release knows.
    #[error(
        "in log {}, {what} holds what this release does not know; run the newer release that wrote it",
        .path.display()
    )]
    Unknown {
        /// The log's directory.
        path: PathBuf,
        /// Which entry or value.
        what: String,
    },
    /// The directory was written by an older release, before there was one to be taken over.
    #[error(
        "log {} has format version {found}, this release reads {supported}; run the release that wrote it, or begin with \
         an empty directory",
        .path.display()
    )]
    OlderFormat {
        /// The log's directory.
        path: PathBuf,
        /// Version found.
        found: u32,
        /// The version this release reads.
        supported: u32,
    },
    /// The directory was written by a newer release.
    #[error(
        "log {} has format version {found}, this release reads up to {supported}; run the \
         newer release",
        .path.display()
    )]
    NewerFormat {
        /// The log's directory.
        path: PathBuf,
        /// Version found.
        found: u32,
        /// Newest version this release reads.
        supported: u32,
    },
    /// Entries are missing between others, or between the purged ones and the first.
    #[error(
        "in {}, entry {expected_index} is missing (the next one found is {found_index}); \
         {RESTORE_NODE}",
        .path.display()
    )]
    Hole {
        /// sled's file.
        path: PathBuf,
        /// The entry that should be there.
        expected_index: u64,
        /// The entry that was found instead.
        found_index: u64,
    },
    /// Entries that the cluster had committed are gone.
    #[error(
        "in {}, entries up to index {committed_index} were committed but the log ends at {}; \
         {RESTORE_NODE}",
        .path.display(), end_of(.last_index)
    )]
    CommittedLost {
        /// sled's file.
        path: PathBuf,
        /// The last entry known to be committed.
        committed_index: u64,
        /// The last entry found.
        last_index: Option<u64>,
    },
    /// How far the log was acknowledged is not known.
    #[error(
        "{} is missing or damaged: it says how far the log was acknowledged; without it nobody knows whether the log, \
         which ends with write {found_seq}, has lost its end; {RESTORE_NODE}. To take the log as it is instead, and lose \
         what it may lack, write the word accept into that file",
        .path.display()
    )]
    NoWitness {
        /// The file.
        path: PathBuf,
        /// Sequence number of the last write found.
        found_seq: u64,
    },
    /// Writes that had been reported as durable (entries, or a vote) are gone.
    #[error(
        "in {}, write {acknowledged_seq} was acknowledged but the last one found is \
         {found_seq}: the file, or the journal beside it, lost its end; {RESTORE_NODE}",
        .path.display()
    )]
    AcknowledgedLost {
        /// sled's file.
        path: PathBuf,
        /// Sequence number of the last write known to be acknowledged.
        acknowledged_seq: u64,
        /// Sequence number of the last write found.
        found_seq: u64,
    },
}

impl OpenError {
    /// Whether opening the log again, as it is, may go better: another process may have ended, a
    /// disk may be back.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Locked { .. } | Self::Io { .. } | Self::Sled { .. } | Self::NoMemory { .. } => {
                true
            }
            Self::Damaged { .. }
            | Self::Panicked { .. }
            | Self::Batch { .. }
            | Self::Journal { .. }
            | Self::ForeignKey { .. }
            | Self::Meta { .. }
            | Self::Unknown { .. }
            | Self::OlderFormat { .. }
            | Self::NewerFormat { .. }
            | Self::Hole { .. }
            | Self::CommittedLost { .. }
            | Self::NoWitness { .. }
            | Self::AcknowledgedLost { .. } => false,
        }
    }
}

/// Why an operation on an open log failed. After a failed write the log accepts no more: the node
/// must stop.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The disk or sled refused a read or a write.
    #[error("cannot {operation} {}", .path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: std::sync::Arc<io::Error>,
    },
    /// sled panicked.
    #[error("sled panicked while the log tried to {operation} {}: {message}", .path.display())]
    Panicked {
        /// What was tried.
        operation: &'static str,
        /// sled's file.
        path: PathBuf,
        /// The panic's message.
        message: String,
    },
    /// A batch of entries is not what was written.
    #[error(
        "in {}, the batch of entries beginning at index {first_index} is damaged; \
         {RESTORE_NODE}",
        .path.display()
    )]
    Batch {
        /// sled's file.
        path: PathBuf,
        /// The batch's key.
        first_index: u64,
        /// What is wrong with it.
        #[source]
        source: RecordError,
    },
    /// A key in the log is not one of ours.
    #[error(
        "in {}, the log has a key of {key_bytes} bytes that this program never writes; \
         {RESTORE_NODE}",
        .path.display()
    )]
    ForeignKey {
        /// sled's file.
        path: PathBuf,
        /// Its length.
        key_bytes: usize,
    },
    /// An entry that the log should contain is not there.
    #[error("in {}, entry {index} is missing; {RESTORE_NODE}", .path.display())]
    Missing {
        /// sled's file.
        path: PathBuf,
        /// The entry's index.
        index: u64,
    },
    /// The caller tried to append entries that do not follow the last one.
    #[error("entry {found_index} cannot be appended: the log continues at {expected_index}")]
    NotConsecutive {
        /// The index that must come next.
        expected_index: u64,
        /// The index that came.
        found_index: u64,
    },
    /// An entry, vote or log id could not be encoded.
    #[error("cannot encode {what}")]
    Encode {
        /// What was to be encoded.
        what: &'static str,
        /// What went wrong.
        #[source]
        source: postcard::Error,
    },
    /// The log was closed.
    #[error("log {} is closed", .path.display())]
    Closed {
        /// The log's directory.
        path: PathBuf,
    },
    /// An earlier write failed, so nothing more is accepted.
    #[error("log {} takes no more writes since an earlier one failed", .path.display())]
    Failed {
        /// The log's directory.
        path: PathBuf,
        /// The failure.
        #[source]
        source: Box<Self>,
    },
}

pub(crate) const RESTORE_NODE: &str = "replace this node: start one with a new id and an empty directory, then `quorate cluster replace ID NEW-ID ADDRESS`";

fn at_offset(offset_bytes: &Option<u64>) -> String {
    offset_bytes.map(|offset| format!(" at offset {offset}")).unwrap_or_default()
}

fn end_of(last_index: &Option<u64>) -> String {
    last_index.map_or_else(|| "nothing".to_owned(), |index| index.to_string())
}

/// The message of a caught panic.
pub(crate) fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    payload
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| payload.downcast_ref::<&str>().map(|message| (*message).to_owned()))
        .unwrap_or_else(|| "no message".to_owned())
}

impl From<LogError> for io::Error {
    /// Keeps the kind of an underlying IO error (a full disk stays recognisable) and the whole
    /// chain of causes.
    fn from(error: LogError) -> Self {
        let kind = match &error {
            LogError::Io { source, .. } => source.kind(),
            LogError::Batch { .. } | LogError::ForeignKey { .. } | LogError::Missing { .. } => {
                io::ErrorKind::InvalidData
            }
            LogError::NotConsecutive { .. } | LogError::Encode { .. } => {
                io::ErrorKind::InvalidInput
            }
            LogError::Panicked { .. } | LogError::Closed { .. } | LogError::Failed { .. } => {
                io::ErrorKind::Other
            }
        };
        Self::new(kind, error)
    }
}
