//! What watches keep here, by address: names of services for as long as a watch lasts, and messages
//! that were made and are not taken yet. HTTP/2 takes a message of each stream, however small its
//! window is, and keeps it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
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
/// (`applied/subscription.rs`). Where there are so many, all its watches wait, as it is not known
/// of a message how large it will be.
const LARGE_MAX: usize = 64;
/// For one connection, so that one alone does not hold up the others of its address.
const OF_CONNECTION_MAX: usize = 16;
/// A connection that has not taken a large message in this time ends, with the grace that others
/// have: all that an address may have need 2 Mbit/s for that.
const TAKEN_WITHIN: Duration = Duration::from_secs(60);

/// Of one address.
#[derive(Debug)]
pub(crate) struct Watched {
    names: AtomicUsize,
    large: Arc<Semaphore>,
}

impl Default for Watched {
    fn default() -> Self {
        Self { names: AtomicUsize::new(0), large: Arc::new(Semaphore::new(LARGE_MAX)) }
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

/// Says of a response that it is a watch's, on this connection.
#[derive(Clone)]
pub(crate) struct OfWatch(pub(crate) Arc<Line>);

/// A watch's response whose large messages wait until others of its address were taken.
pub(crate) fn paced(mut response: Response<Body>) -> Response<Body> {
    match response.extensions_mut().remove::<OfWatch>() {
        None => response,
        Some(OfWatch(line)) => {
            let (turns, own, rest) = ([None, None], None, None);
            response.map(|body| Body::new(Paced { body, line, turns, own, rest }))
        }
    }
}

struct Paced {
    body: Body,
    line: Arc<Line>,
    /// There was no place for the connection, or for the address, and it waits for one.
    turns: [Option<PollSemaphore>; 2],
    /// The connection's place, while it waits for the address's.
    own: Option<OwnedSemaphorePermit>,
    /// Of a large message, what was not handed on yet.
    rest: Option<(Bytes, Arc<Large>)>,
}

/// A large message that is under way: it has its place, and its connection ends when it is overdue.
struct Large {
    line: Arc<Line>,
    deadline: Instant,
    _places: Places,
}

/// Of the connection, and of the address.
type Places = [OwnedSemaphorePermit; 2];

struct Piece {
    bytes: Bytes,
    _of: Arc<Large>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
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

impl Paced {
    fn poll_places(&mut self, cx: &mut Context<'_>) -> Poll<Places> {
        let [own_turn, turn] = &mut self.turns;
        let own = match self.own.take() {
            Some(own) => own,
            None => ready!(poll_place(own_turn, &self.line.large, cx)),
        };
        match poll_place(turn, &self.line.watched().large, cx) {
            Poll::Ready(place) => Poll::Ready([own, place]),
            Poll::Pending => {
                self.own = Some(own);
                Poll::Pending
            }
        }
    }

    fn next_piece(&mut self) -> Option<Frame<Bytes>> {
        let (rest, of) = self.rest.as_mut()?;
        let bytes = rest.split_to(rest.len().min(PIECE));
        let piece = Piece { bytes, _of: of.clone() };
        if rest.is_empty() {
            self.rest = None;
        }
        Some(Frame::data(Bytes::from_owner(piece)))
    }
}

/// A place among these; `turn`: it waits for one.
fn poll_place(
    turn: &mut Option<PollSemaphore>,
    of: &Arc<Semaphore>,
    cx: &mut Context<'_>,
) -> Poll<OwnedSemaphorePermit> {
    if turn.is_none()
        && let Ok(place) = of.clone().try_acquire_owned()
    {
        return Poll::Ready(place);
    }
    let waiting = turn.get_or_insert_with(|| PollSemaphore::new(of.clone()));
    let place = ready!(waiting.poll_acquire(cx)).expect("invariant: never closed");
    *turn = None;
    Poll::Ready(place)
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
        // Before a message is made. They are given back at once where none is, or a small one.
        let places = ready!(self.poll_places(cx));
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            end => return Poll::Ready(end),
        };
        match frame.into_data() {
            Ok(data) if data.len() >= COUNTED_FROM => {
                let large = Large::begin(self.line.clone(), places);
                self.rest = Some((data, large));
                Poll::Ready(self.next_piece().map(Ok))
            }
            Ok(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
            Err(trailers) => Poll::Ready(Some(Ok(trailers))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use futures_util::stream;
    use http_body::Body as _;
    use http_body_util::StreamBody;

    use crate::net::connections::Counts;

    use super::*;

    fn line() -> Arc<Line> {
        Line::of(&http::Extensions::new())
    }

    /// A watch whose messages all have this many bytes.
    fn watch(line: &Arc<Line>, bytes: usize) -> Body {
        let message = move |_| Ok::<_, Status>(Frame::data(Bytes::from(vec![b'x'; bytes])));
        let messages = stream::iter(std::iter::repeat_with(|| ()).map(message));
        let mut response = Response::new(Body::new(StreamBody::new(messages)));
        response.extensions_mut().insert(OfWatch(line.clone()));
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

    #[test]
    fn one_connection_does_not_hold_up_the_others_of_its_address() {
        let counts = Arc::<Counts>::default();
        let line = Arc::new(Line::new(None, counts.clone()));
        let mut unread: Vec<Body> = (0..LARGE_MAX).map(|_| watch(&line, PIECE)).collect();
        let held: Vec<_> = unread.iter_mut().filter_map(taken).collect();
        assert_eq!(held.len(), OF_CONNECTION_MAX);
        assert!(taken(&mut watches(1, PIECE, &counts)[0]).is_some());
        drop((held, unread));
        assert_eq!(line.large.available_permits(), OF_CONNECTION_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn large_messages_of_an_address_wait_for_others_to_be_taken() {
        let counts = Arc::<Counts>::default();
        let line = Arc::new(Line::new(None, counts.clone()));
        let mut unread = watches(CONNECTIONS - 1, PIECE + 1, &counts);
        unread.extend((0..OF_CONNECTION_MAX).map(|_| watch(&line, PIECE + 1)));
        let mut others = watches(CONNECTIONS, COUNTED_FROM, &counts);
        let mut first: Vec<_> = unread.iter_mut().filter_map(taken).collect();
        assert_eq!(first.len(), LARGE_MAX);
        assert_eq!(others.iter_mut().filter_map(taken).count(), 0, "they are not made");
        let last_pieces: Vec<_> = unread.iter_mut().map(|it| taken(it).unwrap().len()).collect();
        assert_eq!(last_pieces, [1; LARGE_MAX], "what has begun goes on");
        // The first piece of one is still held.
        drop(first.drain(..LARGE_MAX - 1));
        assert_eq!(others.iter_mut().filter_map(taken).count(), LARGE_MAX, "taken at once");
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
