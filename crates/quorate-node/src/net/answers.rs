//! Large answers that are under way: how many bytes of them there may be, in all and on one
//! connection, and by when each must have been taken. An answer counts until its last byte has gone
//! to the connection, however slowly it is read.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::{Extensions, Response};
use http_body::{Frame, SizeHint};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};
use tonic::body::Body;

use crate::error::{CallError, NodeError};
use crate::net::connections::Line;

/// Smaller answers are not counted, and go out as they are: with as many calls as a connection may
/// have, they take no more than its share.
pub(super) const COUNTED_FROM: usize = 16 * 1024;
/// Answers are handed to the connection in pieces of this size, bytes: what it has no room for
/// stays whole and is not copied.
pub(super) const PIECE: usize = 64 * 1024;
/// Answers of many instances that are encoded, or made into JSON, at the same time; others wait,
/// and keep no thread busy.
const ENCODED_AT_ONCE: usize = 2;
/// Backups under way: each keeps a thread while its caller does not read. Those of the pool also
/// read the access file and write the audit log.
const BACKUPS_AT_ONCE: usize = 4;

/// What is under way at a node.
pub(crate) struct Answers {
    bytes: AtomicUsize,
    max: usize,
    max_per_connection: usize,
    /// What an instance took in the last large answer.
    instance_bytes: AtomicUsize,
    encoding: Semaphore,
    backups: Arc<Semaphore>,
    pub(crate) refused: Refused,
}

/// Counts the answers that were refused.
#[derive(Debug, Default)]
pub(crate) struct Refused {
    pub(crate) in_all: Counter,
    pub(crate) of_connection: Counter,
    /// Their turn to be encoded did not come in time.
    pub(crate) encoding: Counter,
    pub(crate) backups: Counter,
}

/// The bytes of one answer; they are given back with it.
pub(crate) struct Reserved {
    bytes: usize,
    deadline: Instant,
    of: Arc<Answers>,
    line: Arc<Line>,
}

impl Answers {
    pub(crate) fn new(max: usize, max_per_connection: usize, refused: Refused) -> Self {
        let encoding = Semaphore::new(ENCODED_AT_ONCE);
        let backups = Arc::new(Semaphore::new(BACKUPS_AT_ONCE));
        let (bytes, instance_bytes) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { bytes, max, max_per_connection, instance_bytes, encoding, backups, refused }
    }

    /// Begins an answer that is to be taken by the deadline.
    ///
    /// # Errors
    /// There are too many bytes under way already.
    pub(crate) fn begin(
        self: &Arc<Self>,
        line: &Arc<Line>,
        deadline: Instant,
    ) -> Result<Reserved, CallError> {
        let reserved = Reserved { bytes: 0, deadline, of: self.clone(), line: line.clone() };
        reserved.check(0)?;
        Ok(reserved)
    }

    /// Whether there is room for a large event of a stream. Streams may have it for longer than
    /// calls have their answers, and so no more than half of the room: those who read slowly hold
    /// up each other, and no calls.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn check_event(&self) -> Result<(), CallError> {
        let (under_way, limit) = (self.bytes.load(Ordering::Relaxed), self.max / 2);
        if under_way <= limit {
            return Ok(());
        }
        self.refused.in_all.inc();
        Err(CallError::AnswersUnderWay { under_way, limit, place: "at this node" })
    }

    /// A turn to make a large answer.
    ///
    /// # Errors
    /// None came in time.
    pub(crate) async fn turn(&self, deadline: Instant) -> Result<SemaphorePermit<'_>, CallError> {
        let turn = timeout_at(deadline, self.encoding.acquire()).await;
        match turn {
            Ok(turn) => Ok(turn.expect("invariant: never closed")),
            Err(_elapsed) => {
                self.refused.encoding.inc();
                Err(NodeError::Overloaded { waiting: 1 }.into())
            }
        }
    }

    /// A place for a backup, which counts until it has been sent or has failed.
    ///
    /// # Errors
    /// There are too many already.
    pub(crate) fn begin_backup(&self) -> Result<OwnedSemaphorePermit, CallError> {
        self.backups.clone().try_acquire_owned().map_err(|_| {
            self.refused.backups.inc();
            CallError::BackupsUnderWay { limit: BACKUPS_AT_ONCE }
        })
    }

    /// How many bytes an answer may have where nothing else is under way.
    pub(crate) fn max_of_one(&self) -> usize {
        self.max.min(self.max_per_connection)
    }

    /// About what this number of instances takes, going by the last ones.
    pub(crate) fn estimate(&self, instances: usize) -> usize {
        instances * self.instance_bytes.load(Ordering::Relaxed)
    }

    /// Notes that `instances` instances took `bytes` bytes.
    pub(crate) fn learn(&self, instances: usize, bytes: usize) {
        self.instance_bytes.store(bytes / instances.max(1), Ordering::Relaxed);
    }
}

impl Reserved {
    /// Adds this many bytes.
    ///
    /// # Errors
    /// Too many are under way. What is reserved already is given back with this value.
    pub(crate) fn add(&mut self, bytes: usize) -> Result<(), CallError> {
        let before = self.counted();
        self.bytes += bytes;
        let more = self.counted() - before;
        if more == 0 {
            return Ok(());
        }
        self.line.answers().add(before, more, self.deadline);
        self.of.bytes.fetch_add(more, Ordering::Relaxed);
        self.check(0)
    }

    /// How many of its bytes are counted.
    pub(crate) fn counted(&self) -> usize {
        if self.bytes < COUNTED_FROM { 0 } else { self.bytes }
    }

    /// Whether `more` bytes may be under way besides.
    ///
    /// # Errors
    /// They may not.
    pub(crate) fn check(&self, more: usize) -> Result<(), CallError> {
        let Answers { max, max_per_connection, refused, .. } = &*self.of;
        let on_line = self.line.answers().bytes() + more;
        let in_all = self.of.bytes.load(Ordering::Relaxed) + more;
        for (under_way, &limit, place, refused) in [
            (on_line, max_per_connection, "on this connection", &refused.of_connection),
            (in_all, max, "at this node", &refused.in_all),
        ] {
            if under_way > limit {
                refused.inc();
                return Err(CallError::AnswersUnderWay { under_way, limit, place });
            }
        }
        Ok(())
    }

    /// Ties what was reserved to an answer.
    pub(crate) fn attach(self, extensions: &mut Extensions) {
        if self.counted() > 0 {
            extensions.insert(Arc::new(self));
        }
    }

    /// These bytes in pieces, as they go out, each of which holds what was reserved for them.
    pub(crate) fn hold(self, mut bytes: Bytes) -> impl Iterator<Item = Bytes> + Send {
        let reserved = (self.counted() > 0).then(|| Arc::new(self));
        std::iter::from_fn(move || {
            let len = if reserved.is_some() { bytes.len().min(PIECE) } else { bytes.len() };
            let piece = Some(bytes.split_to(len)).filter(|piece| !piece.is_empty())?;
            Some(match &reserved {
                Some(reserved) => held(piece, reserved),
                None => piece,
            })
        })
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let counted = self.counted();
        if counted > 0 {
            self.of.bytes.fetch_sub(counted, Ordering::Relaxed);
            self.line.answers().remove(counted, self.deadline);
        }
    }
}

/// The answer, in pieces that hold what was reserved for it until each of them is gone.
pub(crate) fn in_pieces(mut response: Response<Body>) -> Response<Body> {
    match response.extensions_mut().remove::<Arc<Reserved>>() {
        None => response,
        Some(reserved) => {
            response.map(|body| Body::new(InPieces { body, reserved, rest: Bytes::new() }))
        }
    }
}

struct InPieces {
    body: Body,
    reserved: Arc<Reserved>,
    rest: Bytes,
}

struct Piece {
    bytes: Bytes,
    _reserved: Arc<Reserved>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl http_body::Body for InPieces {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        if !self.rest.has_remaining() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
        let len = self.rest.len().min(PIECE);
        let piece = self.rest.split_to(len);
        Poll::Ready(Some(Ok(Frame::data(held(piece, &self.reserved)))))
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        match self.body.size_hint().exact() {
            Some(bytes) => SizeHint::with_exact(bytes + rest),
            None => SizeHint::default(),
        }
    }
}

fn held(bytes: Bytes, reserved: &Arc<Reserved>) -> Bytes {
    Bytes::from_owner(Piece { bytes, _reserved: reserved.clone() })
}
