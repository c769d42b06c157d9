//! What watches keep here, by address: names of services for as long as a watch lasts, and messages
//! that were made and are not taken yet. HTTP/2 takes a message of each stream, however small its
//! window is, and keeps it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::{HeaderMap, Response};
use http_body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
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
/// Of those watches, messages of one instance that is larger than a small message. A watch that
/// would have one more is ended: its caller may go elsewhere.
const ALONE_MAX: usize = 1_024;
/// What a watch may have handed on and is not taken yet when its next message is made, bytes:
/// HTTP/2 keeps up to 400 KiB of each.
const UNTAKEN_MAX: usize = 4 * 1024;
/// A connection that has not taken a large message in this time ends, with the grace that others
/// have: all that an address may have need 2 Mbit/s for that.
const TAKEN_WITHIN: Duration = Duration::from_secs(60);

/// Of one address.
#[derive(Debug)]
pub(crate) struct Watched {
    names: AtomicUsize,
    large: Arc<Semaphore>,
    alone: Arc<Semaphore>,
}

impl Default for Watched {
    fn default() -> Self {
        let [large, alone] = [LARGE_MAX, ALONE_MAX].map(|max| Arc::new(Semaphore::new(max)));
        Self { names: AtomicUsize::new(0), large, alone }
    }
}

pub(super) fn places_of_connection() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(OF_CONNECTION_MAX))
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

/// How large a watch's next message may be: the watch asks before it makes one.
#[derive(Debug, Clone)]
pub(crate) struct Room(Arc<AtomicUsize>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(usize::MAX)))
    }
}

impl Room {
    /// In bytes. Pending: the small message that was made is handed on first.
    pub(crate) fn poll_take(&self, cx: &Context<'_>) -> Poll<usize> {
        match self.0.load(Ordering::Relaxed) {
            0 => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            usize::MAX => Poll::Ready(usize::MAX),
            small => {
                self.0.store(0, Ordering::Relaxed);
                Poll::Ready(small)
            }
        }
    }

    /// As large as messages get; else one small message.
    fn set(&self, large: bool) {
        self.0.store(if large { usize::MAX } else { COUNTED_FROM }, Ordering::Relaxed);
    }
}

/// Says of a response that it is a watch's, on this connection.
#[derive(Clone)]
pub(crate) struct OfWatch {
    pub(crate) line: Arc<Line>,
    pub(crate) room: Room,
}

/// A watch's response whose messages are small where too many large ones of its connection or
/// address were not taken yet.
pub(crate) fn paced(mut response: Response<Body>) -> Response<Body> {
    match response.extensions_mut().remove::<OfWatch>() {
        None => response,
        Some(of) => {
            let (untaken, rest) = (Arc::new(Untaken::default()), None);
            response.map(|body| Body::new(Paced { body, of, untaken, rest, ended: false }))
        }
    }
}

struct Paced {
    body: Body,
    of: OfWatch,
    untaken: Arc<Untaken>,
    /// Of a message, what was not handed on yet.
    rest: Option<(Bytes, Option<Arc<Large>>)>,
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

/// A large message that is under way: it has its places, and its connection ends when it is
/// overdue.
struct Large {
    line: Arc<Line>,
    deadline: Instant,
    _places: Places,
}

/// Of the connection, and of the address.
type Places = [Option<OwnedSemaphorePermit>; 2];

struct Piece {
    bytes: Bytes,
    untaken: Arc<Untaken>,
    _of: Option<Arc<Large>>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.untaken.bytes.fetch_sub(self.bytes.len(), Ordering::AcqRel);
        self.untaken.watch.wake();
    }
}

impl Large {
    fn begin(line: Arc<Line>, places: Places) -> Arc<Self> {
        let deadline = Instant::now() + TAKEN_WITHIN;
        line.answers().expect_by(deadline);
        Arc::new(Self { line, deadline, _places: places })
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        self.line.answers().was_taken(self.deadline);
    }
}

fn place(of: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    of.clone().try_acquire_owned().ok()
}

/// A place of the connection and one of the address, if there are.
fn places(line: &Line) -> Option<Places> {
    Some([Some(place(&line.large)?), Some(place(&line.watched().large)?)])
}

impl Paced {
    /// Takes in a message that was made, with the places that there were for it.
    ///
    /// # Errors
    /// It is too large for the others that were not taken yet.
    fn begin(&mut self, message: Bytes, places: Option<Places>) -> Result<(), CallError> {
        let line = &self.of.line;
        let large = match (message.len() >= COUNTED_FROM, places) {
            (false, _) => None,
            (true, Some(places)) => Some(Large::begin(line.clone(), places)),
            (true, None) => {
                let alone = place(&line.watched().alone);
                let alone = alone.ok_or(CallError::MessagesUntaken { limit: ALONE_MAX })?;
                Some(Large::begin(line.clone(), [Some(alone), None]))
            }
        };
        self.rest = Some((message, large));
        Ok(())
    }

    fn next_piece(&mut self) -> Option<Frame<Bytes>> {
        let (rest, of) = self.rest.as_mut()?;
        let bytes = rest.split_to(rest.len().min(PIECE));
        self.untaken.bytes.fetch_add(bytes.len(), Ordering::AcqRel);
        let piece = Piece { bytes, untaken: self.untaken.clone(), _of: of.clone() };
        if rest.is_empty() {
            self.rest = None;
        }
        Some(Frame::data(Bytes::from_owner(piece)))
    }
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
        // Before a message is made. They are given back at once where none is, or a small one.
        let places = places(&self.of.line);
        self.of.room.set(places.is_some());
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            end => return Poll::Ready(end),
        };
        let message = match frame.into_data() {
            Ok(message) => message,
            Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
        };
        Poll::Ready(match self.begin(message, places) {
            Ok(()) => self.next_piece().map(Ok),
            Err(refused) => {
                self.ended = true;
                let mut trailers = HeaderMap::new();
                Status::from(refused).add_header(&mut trailers)?;
                Some(Ok(Frame::trailers(trailers)))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_none() && (self.ended || self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::task::Waker;

    use futures_util::{TryStreamExt as _, stream};
    use http_body::Body as _;
    use http_body_util::StreamBody;

    use crate::net::connections::Counts;

    use super::*;

    fn line() -> Arc<Line> {
        Line::of(&http::Extensions::new())
    }

    /// A watch whose messages have this many bytes where there is room.
    fn watch(line: &Arc<Line>, bytes: usize) -> Body {
        let of = OfWatch { line: line.clone(), room: Room::default() };
        let room = of.room.clone();
        let messages = stream::poll_fn(move |cx| {
            let most = ready!(room.poll_take(cx));
            let message = Bytes::from(vec![b'x'; bytes.min(most)]);
            Poll::Ready(Some(Ok::<_, Status>(Frame::data(message))))
        });
        paced_body(Body::new(StreamBody::new(messages)), of)
    }

    /// A watch whose messages have this many bytes, however little room there is.
    fn of_one_instance(line: &Arc<Line>, bytes: usize) -> Body {
        let messages = stream::repeat_with(move || Ok::<_, Status>(Frame::data(vec![b'x'; bytes])));
        let messages = messages.map_ok(|frame| frame.map_data(Bytes::from));
        let of = OfWatch { line: line.clone(), room: Room::default() };
        paced_body(Body::new(StreamBody::new(messages)), of)
    }

    fn paced_body(body: Body, of: OfWatch) -> Body {
        let mut response = Response::new(body);
        response.extensions_mut().insert(of);
        paced(response).into_body()
    }

    /// What the transport takes, as long as it has it; `None`: it has to wait.
    fn taken(watch: &mut Body) -> Option<Bytes> {
        match Pin::new(watch).poll_frame(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(Ok(frame))) => Some(frame.into_data().expect("data")),
            Poll::Ready(_) => panic!("it goes on"),
            Poll::Pending => None,
        }
    }

    const CONNECTIONS: usize = LARGE_MAX / OF_CONNECTION_MAX;

    /// Watches of this number of connections from one address, as many as each may have large
    /// messages.
    fn watches(connections: usize, bytes: usize, counts: &Arc<Counts>) -> Vec<Body> {
        let lines = (0..connections).map(|_| Arc::new(Line::new(None, counts.clone())));
        lines.flat_map(|line| (0..OF_CONNECTION_MAX).map(move |_| watch(&line, bytes))).collect()
    }

    /// The lengths of what is taken.
    fn lengths(watches: &mut [Body]) -> Vec<usize> {
        watches.iter_mut().filter_map(taken).map(|bytes| bytes.len()).collect()
    }

    #[test]
    fn one_connection_does_not_hold_up_the_others_of_its_address() {
        let counts = Arc::<Counts>::default();
        let line = Arc::new(Line::new(None, counts.clone()));
        let mut unread: Vec<Body> = (0..LARGE_MAX).map(|_| watch(&line, PIECE)).collect();
        let held: Vec<_> = unread.iter_mut().filter_map(taken).collect();
        assert_eq!(held.iter().filter(|it| it.len() == PIECE).count(), OF_CONNECTION_MAX);
        assert_eq!(lengths(&mut watches(1, PIECE, &counts)), [PIECE; OF_CONNECTION_MAX]);
        drop((held, unread));
        assert_eq!(line.large.available_permits(), OF_CONNECTION_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn where_many_large_messages_are_not_taken_others_are_small() {
        let counts = Arc::<Counts>::default();
        let line = Arc::new(Line::new(None, counts.clone()));
        let mut unread = watches(CONNECTIONS - 1, PIECE + 1, &counts);
        unread.extend((0..OF_CONNECTION_MAX).map(|_| watch(&line, PIECE + 1)));
        let mut others = watches(CONNECTIONS, PIECE, &counts);
        let mut first: Vec<_> = unread.iter_mut().filter_map(taken).collect();
        assert_eq!(first.len(), LARGE_MAX);
        for _ in 0..3 {
            assert_eq!(lengths(&mut others), [COUNTED_FROM; LARGE_MAX], "they go on");
        }
        assert_eq!(lengths(&mut unread), [1; LARGE_MAX], "what has begun goes on");
        // The first piece of one is still held.
        drop(first.drain(..LARGE_MAX - 1));
        assert_eq!(lengths(&mut others), [PIECE; LARGE_MAX], "taken at once");
        assert!(!line.answers().is_overdue(Instant::now() + TAKEN_WITHIN));
        tokio::time::advance(2 * TAKEN_WITHIN).await;
        assert!(line.answers().is_overdue(Instant::now()), "one was not");
        drop((first, unread, others));
        assert!(!line.answers().is_overdue(Instant::now()));
        assert_eq!(line.watched().large.available_permits(), LARGE_MAX);
    }

    #[tokio::test]
    async fn small_messages_do_not_count() {
        let line = line();
        let mut watches: Vec<Body> = (0..3 * LARGE_MAX).map(|_| watch(&line, 1_000)).collect();
        let held: Vec<_> = watches.iter_mut().filter_map(taken).collect();
        assert_eq!(held.len(), watches.len());
    }

    /// Else HTTP/2 keeps many of each, however few places there are.
    #[tokio::test]
    async fn a_watch_makes_no_message_while_much_of_it_was_not_taken() {
        let line = line();
        let mut small = watch(&line, 1_000);
        let mut held: Vec<_> = std::iter::from_fn(|| taken(&mut small)).take(100).collect();
        assert_eq!(held.len(), UNTAKEN_MAX.div_ceil(1_000));
        drop(held.pop());
        assert!(taken(&mut small).is_some());
        let mut large = watch(&line, PIECE + 1);
        let pieces = [PIECE, 1].map(|len| taken(&mut large).filter(|piece| piece.len() == len));
        assert!(pieces.iter().all(Option::is_some), "one message is handed on whole");
        assert!(taken(&mut large).is_none());
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut next = || Pin::new(&mut large).poll_frame(&mut Context::from_waker(&waker));
        assert!(next().is_pending());
        drop(pieces);
        assert!(woken.0.load(Ordering::Relaxed) && next().is_ready(), "when it was taken");
    }

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// An instance alone may be larger than a small message.
    #[tokio::test]
    async fn a_watch_ends_where_too_many_large_instances_are_not_taken() {
        let counts = Arc::<Counts>::default();
        let mut unread = watches(CONNECTIONS, PIECE, &counts);
        let _held: Vec<_> = unread.iter_mut().filter_map(taken).collect();
        let line = Arc::new(Line::new(None, counts.clone()));
        let mut alone: Vec<_> = (0..=ALONE_MAX).map(|_| of_one_instance(&line, PIECE)).collect();
        let mut last = alone.pop().unwrap();
        let held: Vec<_> = alone.iter_mut().filter_map(taken).collect();
        assert_eq!(held.len(), ALONE_MAX);
        let mut poll = || Pin::new(&mut last).poll_frame(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(Some(Ok(end))) = poll() else { panic!() };
        let status = Status::from_header_map(end.trailers_ref().unwrap()).unwrap();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert!(matches!(poll(), Poll::Ready(None)));
        drop((held, alone));
        assert_eq!(line.watched().alone.available_permits(), ALONE_MAX);
    }

    #[test]
    fn the_names_of_an_address_have_a_limit_and_are_given_back() {
        let line = line();
        let half = Names::begin(&line, NAMES_MAX / 2).unwrap();
        let other = Names::begin(&line, NAMES_MAX / 2).unwrap();
        let refused = Names::begin(&line, 1).map(drop).unwrap_err();
        assert!(matches!(refused, CallError::NamesWatched { .. }), "{refused:?}");
        drop(half);
        Names::begin(&line, NAMES_MAX / 2).expect("room");
        drop(other);
        assert_eq!(line.watched().names.load(Ordering::Relaxed), 0);
    }
}
