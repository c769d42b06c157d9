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
use crate::node::snapshot::{Count, encode};
use crate::node::{Consistency, Node};
use crate::raft::network::{CHUNK_BYTES, read_chunks};
use crate::runtime::blocking;
use crate::types::{LogId, SnapshotMeta, TypeConfig};
use crate::wall;

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
    sending: Sending,
    failed: bool,
}

/// How much a backup has.
#[derive(Debug, Clone, Copy)]
pub(super) struct AsOf {
    /// What was acknowledged more than this long before it was asked for is in it, ms; the maximum:
    /// nobody knows.
    pub(super) age_ms: u64,
    /// The same as a moment, ms since 1970; 0: nobody knows.
    taken_ms: u64,
    /// When it was asked for.
    begun: Instant,
    /// A quorum has said so, and nobody has to look at how old it is.
    is_confirmed: bool,
}

impl AsOf {
    /// Of a backup that is asked for now; `local`: of what this node has.
    ///
    /// # Errors
    /// This node is no member, or no quorum answers.
    pub(super) async fn now(
        node: &Node,
        local: bool,
        deadline: Instant,
    ) -> Result<Self, CallError> {
        let (begun, now_ms) = (Instant::now(), wall::since_1970().as_millis() as u64);
        if local {
            node.check_member()?;
            let age_ms = node.age_ms();
            let is_known = age_ms != u64::MAX;
            let taken_ms = if is_known { now_ms.saturating_sub(age_ms) } else { 0 };
            return Ok(Self { age_ms, taken_ms, begun, is_confirmed: false });
        }
        // As long as any read; what is left is for the snapshot.
        let deadline = deadline.min(Instant::now() + node.tunables().request_timeout());
        match node.read(Consistency::Linearizable, 0, deadline).await {
            Ok(_) => Ok(Self { age_ms: 0, taken_ms: now_ms, begun, is_confirmed: true }),
            Err(why) if why.is_late() => Err(CallError::BackupUnconfirmed(why)),
            Err(why) => Err(why.into()),
        }
    }
}

/// To whom a backup goes, and that it is taken in time.
pub(super) struct Sending {
    node: Arc<Node>,
    caller: Caller,
    as_of: AsOf,
    until: Instant,
    /// When the chunk that the transport has is to be taken, while it has one.
    due: Option<Instant>,
    _place: OwnedSemaphorePermit,
}

impl Sending {
    /// # Errors
    /// Too many backups are under way.
    pub(super) fn begin(node: &Arc<Node>, caller: Caller, as_of: AsOf) -> Result<Self, CallError> {
        let place = node.answers().begin_backup()?;
        let until = Instant::now() + SENT_WITHIN;
        Ok(Self { node: node.clone(), caller, as_of, until, due: None, _place: place })
    }

    /// What stands before the snapshot.
    fn head(&self) -> Vec<u8> {
        let (name, id) = (self.node.access().cluster(), self.node.id().get());
        Head::new(name, id, self.as_of.taken_ms).encode()
    }

    /// All of it has gone. One that may be old is not to quiet those who look for a backup.
    fn done(&self) {
        if self.as_of.is_confirmed {
            self.node.seen().backup_taken(self.as_of.begun);
        }
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
        let asked = BackupRequest::default();
        let touched = asked.touches();
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
        Self { first, chunks: Chunks { receiver, sending, failed: false } }
    }

    pub(super) fn of_file(
        sending: Sending,
        meta: &SnapshotMeta,
        file: SnapshotFile<TypeConfig>,
    ) -> Self {
        let head = sending.head();
        let total_bytes = head.len() as u64 + file.len_bytes();
        Self::new(sending, meta.last_log_id, total_bytes, move |sender| {
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
        let head = sending.head();
        let total_bytes = head.len() as u64 + total_bytes.await?.map_err(CallError::Backup)?;
        Ok(Self::new(sending, meta.last_log_id, total_bytes, move |sender| {
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
            None => self.sending.done(),
            Some(Ok(_)) => self.sending.handed_over(),
            Some(Err(_)) => self.failed = true,
        }
        chunk
    }
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
