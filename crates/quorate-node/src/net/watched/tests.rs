//! What is not taken holds up nobody who takes, and is bounded.

use std::sync::atomic::AtomicBool;
use std::task::Waker;

use http_body::Body as _;

use crate::net::connections::Counts;

use super::*;

fn line() -> Arc<Line> {
    Line::of(&http::Extensions::new())
}

/// A watch whose messages have this many bytes where there is room.
fn watch(line: &Arc<Line>, bytes: usize) -> Body {
    of(line, move |cx, may| {
        let most = ready!(may(cx, 0));
        Poll::Ready(Ok(vec![b'x'; bytes.min(most)].into()))
    })
}

/// A watch whose messages have one instance of this many bytes.
fn of_one_instance(line: &Arc<Line>, bytes: usize) -> Body {
    of(line, move |cx, may| {
        ready!(may(cx, bytes));
        Poll::Ready(Ok(vec![b'x'; bytes].into()))
    })
}

fn of(
    line: &Arc<Line>,
    messages: impl FnMut(&mut Context<'_>, &mut May<'_>) -> Poll<Result<Bytes, Status>> + Send + 'static,
) -> Body {
    let mut response = Response::new(Body::empty());
    response.extensions_mut().insert(OfWatch::new(line.clone(), Box::new(messages)));
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
    assert_eq!(line.watches.large.available_permits(), OF_CONNECTION_MAX);
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

/// What a watch has yet to tell stays with the node for as long.
#[tokio::test(start_paused = true)]
async fn a_watch_that_takes_nothing_of_its_small_messages_ends_its_connection() {
    let line = line();
    let mut unread = watch(&line, 1_000);
    let mut held: Vec<_> = std::iter::from_fn(|| taken(&mut unread)).take(100).collect();
    let is_overdue = || line.answers().is_overdue(Instant::now());
    tokio::time::advance(GOES_ON_WITHIN - Duration::from_secs(1)).await;
    assert!(!is_overdue(), "a slow one has that time");
    held.clear();
    let few = taken(&mut unread);
    tokio::time::advance(2 * GOES_ON_WITHIN).await;
    assert!(few.is_some() && !is_overdue(), "nothing waits for that");
    held.extend(std::iter::from_fn(|| taken(&mut unread)).take(100));
    tokio::time::advance(2 * GOES_ON_WITHIN).await;
    assert!(is_overdue());
    drop(held);
    assert!(!is_overdue());
}

/// Else HTTP/2 keeps many of each, however few places there are.
#[tokio::test]
async fn a_watch_makes_no_message_while_much_of_it_was_not_taken() {
    let line = line();
    let mut small = watch(&line, 1_000);
    let mut held: Vec<_> = std::iter::from_fn(|| taken(&mut small)).take(100).collect();
    assert_eq!(held.len(), (UNTAKEN_MAX + LOOSE_MAX).div_ceil(1_000));
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
async fn large_instances_that_are_not_taken_hold_up_those_of_their_connection_alone() {
    let counts = Arc::<Counts>::default();
    let mut unread = watches(CONNECTIONS, PIECE, &counts);
    let _held: Vec<_> = unread.iter_mut().filter_map(taken).collect();
    let [line, other] = [(); 2].map(|()| Arc::new(Line::new(None, counts.clone())));
    let mut alone: Vec<_> =
        (0..=OF_CONNECTION_MAX).map(|_| of_one_instance(&line, PIECE)).collect();
    let mut last = alone.pop().unwrap();
    let mut held: Vec<_> = alone.iter_mut().filter_map(taken).collect();
    assert_eq!(held.len(), OF_CONNECTION_MAX);
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    let mut next = || Pin::new(&mut last).poll_frame(&mut Context::from_waker(&waker));
    assert!(next().is_pending());
    for _ in 0..3 {
        assert_eq!(taken(&mut of_one_instance(&other, PIECE)).map(|it| it.len()), Some(PIECE));
        assert_eq!(taken(&mut watch(&line, PIECE)).map(|it| it.len()), Some(COUNTED_FROM));
    }
    assert!(next().is_pending());
    drop(held.pop());
    assert!(woken.0.load(Ordering::Relaxed) && next().is_ready(), "when one was taken");
    drop((held, alone, last));
    assert_eq!(line.watches.alone.available_permits(), OF_CONNECTION_MAX);
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
