//! What watches keep here, by address: names of services for as long as a watch lasts, and messages
//! that were made and are not taken yet. HTTP/2 takes a message of each stream, however small its
//! window is, and keeps it.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::{HeaderMap, Response};
use http_body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::PollSemaphore;
use tonic::Status;
use tonic::body::Body;

use crate::error::CallError;
use crate::net::answers::{COUNTED_FROM, PIECE};
use crate::net::connections::Line;

/// Names that the watches of one address have together, a prefix being one: as many calls as it may
/// have watch thirty each. A name takes some hundred bytes.
const NAMES_MAX: usize = 512 * 1024;
/// Large messages that are made for one address and not taken yet. Each has some 256 KiB at most
/// (`applied/subscription.rs`). Where there are so many, its other watches are sent small ones, one
/// after the other: who does not read holds up nobody who does.
const LARGE_MAX: usize = 64;
/// For one connection, so that one alone does not hold up the others of its address.
const OF_CONNECTION_MAX: usize = 16;
/// Of those watches, messages of one instance that is larger than a small message (113 KiB at
/// most). Where there are so many, or [`OF_CONNECTION_MAX`] of its connection, a watch waits with
/// such an instance, in turn, also where there are places for large messages again meanwhile; those
/// that were not taken end with their connection.
const ALONE_MAX: usize = 256;
/// What a watch may have handed on and is not taken yet when its next message is made, bytes:
/// HTTP/2 keeps up to 400 KiB of each.
const UNTAKEN_MAX: usize = 4 * 1024;
/// Of small messages, so many bytes are counted together: to count each costs more than to send it.
const LOOSE_MAX: usize = UNTAKEN_MAX / 4;
/// A connection that has not taken a large message in this time ends, with the grace that others
/// have: all that an address may have need 6 Mbit/s for that.
const TAKEN_WITHIN: Duration = Duration::from_secs(60);
/// The same for what a watch waits for before its next message, where that is small. There may be
/// one such of each watch: 16 KiB of each of 4,096 need 2 Mbit/s. What else the watch has to tell,
/// a whole snapshot perhaps, is kept meanwhile.
const GOES_ON_WITHIN: Duration = Duration::from_secs(300);

/// Of one address, or of one connection.
#[derive(Debug)]
pub(crate) struct Watched {
    /// Of an address alone.
    names: AtomicUsize,
    large: Arc<Semaphore>,
    alone: Arc<Semaphore>,
}

impl Default for Watched {
    fn default() -> Self {
        Self::new(LARGE_MAX, ALONE_MAX)
    }
}

impl Watched {
    pub(super) fn of_connection() -> Self {
        Self::new(OF_CONNECTION_MAX, OF_CONNECTION_MAX)
    }

    fn new(large: usize, alone: usize) -> Self {
        let [large, alone] = [large, alone].map(|max| Arc::new(Semaphore::new(max)));
        Self { names: AtomicUsize::new(0), large, alone }
    }
}

/// The names of one watch; they are given back with it.
pub(crate) struct Names {
    count: usize,
    line: Arc<Line>,
}

impl Names {
    /// # Errors
    /// The address has too many.
    pub(crate) fn begin(line: &Arc<Line>, count: usize) -> Result<Self, CallError> {
        let before = line.watched().names.fetch_add(count, Ordering::Relaxed);
        let names = Self { count, line: line.clone() };
        match before + count > NAMES_MAX {
            true => Err(CallError::NamesWatched { limit: NAMES_MAX }),
            false => Ok(names),
        }
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.line.watched().names.fetch_sub(self.count, Ordering::Relaxed);
    }
}

/// Says how large a watch's next message may be, in bytes, given what it has at least. Pending: not
/// yet, and its waker is kept.
pub(crate) type May<'a> = dyn FnMut(&mut Context<'_>, usize) -> Poll<usize> + 'a;

/// The next message of a watch, as it goes out, made once it may be; or what ends the watch.
pub(crate) type Messages =
    Box<dyn FnMut(&mut Context<'_>, &mut May<'_>) -> Poll<Result<Bytes, Status>> + Send>;

/// Says of a response that it is a watch's, on this connection. Its body is made of these messages:
/// tonic's keeps the room of the largest message as long as the stream lasts.
#[derive(Clone)]
pub(crate) struct OfWatch {
    line: Arc<Line>,
    messages: Arc<Mutex<Option<Messages>>>,
}

impl OfWatch {
    pub(crate) fn new(line: Arc<Line>, messages: Messages) -> Self {
        Self { line, messages: Arc::new(Mutex::new(Some(messages))) }
    }

    fn take(self) -> Option<Paced> {
        let messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(Paced::new(self.line, messages))
    }
}

/// A watch's response, whose messages are small where too many large ones of its connection or
/// address were not taken yet.
pub(crate) fn paced(mut response: Response<Body>) -> Response<Body> {
    match response.extensions_mut().remove::<OfWatch>().and_then(OfWatch::take) {
        None => response,
        Some(paced) => response.map(|_empty| Body::new(paced)),
    }
}

struct Paced {
    line: Arc<Line>,
    messages: Messages,
    untaken: Arc<Untaken>,
    /// Of a message, what was not handed on yet.
    rest: Option<(Bytes, Option<Arc<Due>>)>,
    /// Handed on, and counted with what comes next.
    loose: usize,
    /// While an instance alone needs more than a small message.
    alone: Option<Alone>,
    ended: bool,
}

/// Bytes of a watch that were handed on and are not taken yet.
#[derive(Debug, Default)]
struct Untaken {
    bytes: AtomicUsize,
    watch: AtomicWaker,
}

impl Untaken {
    /// Ready when there are few. Until then, the watch does not hear that it is to end, either: it
    /// sends nothing.
    fn poll_few(&self, cx: &Context<'_>) -> Poll<()> {
        if self.bytes.load(Ordering::Acquire) >= UNTAKEN_MAX {
            self.watch.register(cx.waker());
            // What was taken in between found no waker.
            if self.bytes.load(Ordering::Acquire) >= UNTAKEN_MAX {
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }
}

/// What has to be taken in time: a large message, with its places, if it needs any, or the last of
/// what a watch waits for. Its connection ends when it is overdue.
struct Due {
    line: Arc<Line>,
    deadline: Instant,
    _places: Places,
}

/// Of the connection, and of the address.
type Places = [Option<OwnedSemaphorePermit>; 2];

struct Piece {
    bytes: Bytes,
    /// Its bytes and those before it that were not counted.
    counted: usize,
    untaken: Arc<Untaken>,
    _of: Option<Arc<Due>>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let before = self.untaken.bytes.fetch_sub(self.counted, Ordering::AcqRel);
        if before >= UNTAKEN_MAX && before - self.counted < UNTAKEN_MAX {
            self.untaken.watch.wake();
        }
    }
}

impl Due {
    fn begin(line: Arc<Line>, places: Places, within: Duration) -> Arc<Self> {
        let deadline = Instant::now() + within;
        line.answers().expect_by(deadline);
        Arc::new(Self { line, deadline, _places: places })
    }
}

impl Drop for Due {
    fn drop(&mut self) {
        self.line.answers().was_taken(self.deadline);
    }
}

/// The places for large messages: those of a connection, and those of its address.
fn large(line: &Line) -> [&Arc<Semaphore>; 2] {
    [&line.watches.large, &line.watched().large]
}

/// Both, or none: where the connection has none, it takes none of the address.
fn free_places(line: &Line) -> Option<Places> {
    let [connection, address] = large(line).map(|of| of.clone().try_acquire_owned().ok());
    Some([Some(connection?), Some(address?)])
}

/// Places for a message of one large instance, as far as they have come.
struct Alone {
    waiting: [PollSemaphore; 2],
    places: Places,
}

impl Alone {
    fn new(line: &Line) -> Self {
        let of = [&line.watches.alone, &line.watched().alone];
        Self { waiting: of.map(|of| PollSemaphore::new(of.clone())), places: [None, None] }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for (waiting, place) in self.waiting.iter_mut().zip(&mut self.places) {
            if place.is_none() {
                *place = ready!(waiting.poll_acquire(cx));
            }
        }
        Poll::Ready(())
    }
}

impl Paced {
    fn new(line: Arc<Line>, messages: Messages) -> Self {
        Self {
            line,
            messages,
            untaken: Arc::default(),
            rest: None,
            loose: 0,
            alone: None,
            ended: false,
        }
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        let Self { line, messages, alone, .. } = self;
        let message = ready!(messages(cx, &mut |cx: &mut Context<'_>, least| {
            may(cx, line, alone, least)
        }));
        Poll::Ready(message.map(|message| self.begin(message)))
    }

    fn begin(&mut self, message: Bytes) {
        let alone = self.alone.take();
        let is_large = message.len() >= COUNTED_FROM;
        let large = is_large.then(|| {
            let free = || free_places(&self.line).unwrap_or_default();
            let places = alone.map_or_else(free, |alone| alone.places);
            Due::begin(self.line.clone(), places, TAKEN_WITHIN)
        });
        self.rest = Some((message, large));
    }

    fn next_piece(&mut self) -> Option<Frame<Bytes>> {
        let (rest, of) = self.rest.as_mut()?;
        let bytes = rest.split_to(rest.len().min(PIECE));
        let of = of.clone();
        if rest.is_empty() {
            self.rest = None;
        }
        self.loose += bytes.len();
        if of.is_none() && self.loose < LOOSE_MAX {
            return Some(Frame::data(bytes));
        }
        let counted = std::mem::take(&mut self.loose);
        let before = self.untaken.bytes.fetch_add(counted, Ordering::AcqRel);
        let waits_for_it = before < UNTAKEN_MAX && before + counted >= UNTAKEN_MAX;
        let last = || Due::begin(self.line.clone(), Places::default(), GOES_ON_WITHIN);
        let of = of.or_else(|| waits_for_it.then(last));
        let piece = Piece { bytes, counted, untaken: self.untaken.clone(), _of: of };
        Some(Frame::data(Bytes::from_owner(piece)))
    }
}

/// How large the next message of a watch may be that has so many bytes at least. Whether there are
/// places is only looked at: most messages need none.
fn may(cx: &mut Context<'_>, line: &Line, alone: &mut Option<Alone>, least: usize) -> Poll<usize> {
    if large(line).iter().all(|of| of.available_permits() > 0) {
        *alone = None;
        return Poll::Ready(usize::MAX);
    }
    if least <= COUNTED_FROM {
        return Poll::Ready(COUNTED_FROM);
    }
    ready!(alone.get_or_insert_with(|| Alone::new(line)).poll(cx));
    Poll::Ready(least)
}

impl http_body::Body for Paced {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(piece) = self.next_piece() {
            return Poll::Ready(Some(Ok(piece)));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        ready!(self.untaken.poll_few(cx));
        Poll::Ready(match ready!(self.poll_message(cx)) {
            Ok(()) => self.next_piece().map(Ok),
            Err(end) => {
                self.ended = true;
                let mut trailers = HeaderMap::new();
                end.add_header(&mut trailers)?;
                Some(Ok(Frame::trailers(trailers)))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_none() && self.ended
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests;
