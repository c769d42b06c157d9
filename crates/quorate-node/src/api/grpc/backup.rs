//! Backups: a head, then the bytes of a snapshot file, read from one, or, where there is no room
//! for one, made while they are sent. A caller that does not read it, or loses its right, loses it.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use quorate_log::SnapshotFile;
use quorate_proto::v1::{BackupChunk, BackupRequest};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;
use tonic::Status;

use crate::api::grpc::door::{Caller, Method};
use crate::api::grpc::rights;
use crate::api::grpc::touched::Touches as _;
use crate::backup::Head;
use crate::error::CallError;
use crate::node::Node;
use crate::node::snapshot::{Count, encode};
use crate::raft::network::{CHUNK_BYTES, read_chunks};
use crate::runtime::blocking;
use crate::types::{LogId, SnapshotMeta, TypeConfig};

/// Chunks that are made ahead of the network: 1 MiB.
const CHUNKS_AHEAD: usize = 4;
/// A caller takes the next chunk within this time, and the grace that all answers have, or its
/// connection ends.
const TAKEN_WITHIN: Duration = Duration::from_secs(3);
/// A backup that is not sent by then is given up, however well its caller reads.
const SENT_WITHIN: Duration = Duration::from_secs(600);

type Chunk = Result<BackupChunk, Status>;

/// A backup on its way: its first chunk, and where the others come from.
pub(super) struct Backup {
    pub(super) first: BackupChunk,
    chunks: Chunks,
}

struct Chunks {
    receiver: mpsc::Receiver<Chunk>,
    /// When the backup was begun, ms since 1970; noted when all of it has gone.
    taken_ms: u64,
    sending: Sending,
    failed: bool,
}

/// To whom a backup goes, and that it is taken in time.
pub(super) struct Sending {
    node: Arc<Node>,
    caller: Caller,
    until: Instant,
    /// When the chunk that the transport has is to be taken, while it has one.
    due: Option<Instant>,
    _place: OwnedSemaphorePermit,
}

impl Sending {
    /// # Errors
    /// Too many backups are under way.
    pub(super) fn begin(node: &Arc<Node>, caller: Caller) -> Result<Self, CallError> {
        let place = node.answers().begin_backup()?;
        let until = Instant::now() + SENT_WITHIN;
        Ok(Self { node: node.clone(), caller, until, due: None, _place: place })
    }

    /// The transport has the next chunk. Only the time of it counts, not its bytes.
    fn handed_over(&mut self) {
        let due = self.until.min(Instant::now() + TAKEN_WITHIN);
        self.caller.line.answers().add(0, 1, due);
        self.due = Some(due);
    }

    fn taken(&mut self) {
        if let Some(due) = self.due.take() {
            self.caller.line.answers().remove(1, due);
        }
    }

    /// Whether more of it may go to the caller.
    ///
    /// # Errors
    /// It has lost its right, or takes too long.
    fn check(&self) -> Result<(), Status> {
        if Instant::now() >= self.until {
            let what = "the backup was not sent";
            return Err(CallError::Late { what, within: SENT_WITHIN }.into());
        }
        if !self.node.access().is_checked() {
            return Ok(());
        }
        let touched = BackupRequest {}.touches();
        let (method, node) = (Method::Backup, &self.node);
        let judged = self.caller.again(node);
        let judged =
            judged.and_then(|now| rights::check(&now.principal, method.needed(), &touched));
        judged.inspect_err(|why| self.caller.refused(node, method, touched.subject(), why))
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.taken();
    }
}

impl Backup {
    fn new(
        mut sending: Sending,
        taken_ms: u64,
        last_log_id: Option<LogId>,
        total_bytes: u64,
        make: impl FnOnce(&mpsc::Sender<Chunk>) -> io::Result<()> + Send + 'static,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = make(&sender) {
                // A caller that is gone needs no answer.
                let _ = sender.blocking_send(Err(CallError::Backup(error).into()));
            }
        });
        let applied_index = last_log_id.map_or(0, |log_id| log_id.index());
        let first = BackupChunk { applied_index, total_bytes, ..BackupChunk::default() };
        sending.handed_over();
        Self { first, chunks: Chunks { receiver, taken_ms, sending, failed: false } }
    }

    pub(super) fn of_file(
        sending: Sending,
        meta: &SnapshotMeta,
        file: SnapshotFile<TypeConfig>,
    ) -> Self {
        let (head, taken_ms) = head(&sending.node);
        let total_bytes = head.len() as u64 + file.len_bytes();
        Self::new(sending, taken_ms, meta.last_log_id, total_bytes, move |sender| {
            send(sender, head)?;
            read_chunks(&file, |data| send(sender, data.to_vec()).is_ok())
        })
    }

    /// Made twice: its length has to be sent first, and it may be too large to be kept.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub(super) async fn of_memory(sending: Sending) -> Result<Self, CallError> {
        let (registry, meta) = sending.node.state();
        let (counted, of) = (registry.clone(), meta.clone());
        let total_bytes = blocking(move || encode(&counted, &of, Count(0)).map(|count| count.0));
        let (head, taken_ms) = head(&sending.node);
        let total_bytes = head.len() as u64 + total_bytes.await?.map_err(CallError::Backup)?;
        Ok(Self::new(sending, taken_ms, meta.last_log_id, total_bytes, move |sender| {
            send(sender, head)?;
            let chunk = Vec::with_capacity(CHUNK_BYTES);
            let Chunking { chunk, .. } = encode(&registry, &meta, Chunking { chunk, sender })?;
            send(sender, chunk)
        }))
    }

    pub(super) fn rest(self) -> impl Stream<Item = Chunk> {
        stream::unfold(self.chunks, |mut chunks| async {
            let chunk = chunks.next().await?;
            Some((chunk, chunks))
        })
    }
}

impl Chunks {
    async fn next(&mut self) -> Option<Chunk> {
        if self.failed {
            return None;
        }
        self.sending.taken();
        let chunk = self.receiver.recv().await;
        let chunk = chunk.map(|chunk| self.sending.check().and(chunk));
        match &chunk {
            None => {
                self.sending.node.meters().backup_time.set(self.taken_ms as f64 / 1_000.0);
            }
            Some(Ok(_)) => self.sending.handed_over(),
            Some(Err(_)) => self.failed = true,
        }
        chunk
    }
}

/// What stands before the snapshot, and when that is, ms since 1970.
fn head(node: &Node) -> (Vec<u8>, u64) {
    let head = Head::now(node.access().cluster(), node.id().get());
    (head.encode(), head.taken_ms)
}

fn send(sender: &mpsc::Sender<Chunk>, data: Vec<u8>) -> io::Result<()> {
    let chunk = BackupChunk { data, ..BackupChunk::default() };
    sender.blocking_send(Ok(chunk)).map_err(|_| io::Error::other("the caller is gone"))
}

/// Sends what is written, in chunks.
struct Chunking<'a> {
    chunk: Vec<u8>,
    sender: &'a mpsc::Sender<Chunk>,
}

impl Write for Chunking<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK_BYTES - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..taken]);
        if self.chunk.len() == CHUNK_BYTES {
            let full = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK_BYTES));
            send(self.sender, full)?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
