//! The calls of one listener: how many of them, watches and other streams among them, may be under
//! way, and until when each connection is served.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tower::Service;

use crate::error::CallError;
use crate::net::connections::{Admitted, Lane, Line, Refusals};
use crate::net::tls::{Secured, Security};
use crate::runtime::random;

/// Calls under way on one connection; a process needs a few, a proxy for many processes some
/// thousands. An answer that is not sent yet counts, too, so this also bounds what is kept for one
/// whose calls are refused.
pub(crate) const PER_CONNECTION_MAX: u32 = 4_096;
/// Refused calls are logged at most this often, all in one line.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// How many are under way.
pub(crate) struct UnderWay {
    whose: &'static str,
    max: usize,
    per_address_max: usize,
    refusals: Refusals,
    lane: Lane,
    count: AtomicUsize,
    told: Mutex<Option<Instant>>,
}

/// A call that counts until its answer, or its stream of answers, has ended.
pub(crate) struct Call {
    line: Arc<Line>,
    of: Arc<UnderWay>,
}

impl UnderWay {
    pub(crate) fn new(
        (whose, lane): (&'static str, Lane),
        max: usize,
        per_address_max: usize,
        refusals: Refusals,
    ) -> Arc<Self> {
        let (count, told) = (AtomicUsize::new(0), Mutex::default());
        Arc::new(Self { whose, max, per_address_max, refusals, lane, count, told })
    }

    /// # Errors
    /// There are too many already.
    pub(super) fn begin(self: &Arc<Self>, line: Arc<Line>) -> Result<Call, Status> {
        // Counted first: two that begin at once do not share the last place.
        let of_address = line.begin_call(self.lane);
        let before = self.count.fetch_add(1, Ordering::Relaxed);
        let call = Call { line, of: self.clone() };
        let Refusals { in_all, of_address: of_one, .. } = &self.refusals;
        for (under_way, limit, place, refused) in [
            (before, self.max, "at this node", in_all),
            (of_address, self.per_address_max, "from this address", of_one),
        ] {
            if under_way >= limit {
                refused.inc();
                self.tell(limit, place);
                return Err(CallError::CallsUnderWay { limit, place }.into());
            }
        }
        Ok(call)
    }

    fn tell(&self, max: usize, place: &str) {
        let mut told = self.told.lock().expect("invariant: nothing panics under this lock");
        if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            *told = Some(Instant::now());
            let of = self.whose;
            tracing::warn!(of, max, place, "too many calls: new ones are refused");
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.of.count.fetch_sub(1, Ordering::Relaxed);
        self.line.end_call(self.of.lane);
    }
}

/// A connection that has reached its age has this long for the calls that are under way; streams
/// end with it.
const AGE_GRACE: Duration = Duration::from_secs(5);

/// Serves each connection that arrives and can be secured, until it has ended or is to end; then a
/// GOAWAY goes out, it takes no new call, and its calls end. Returns when the stop has come and no
/// connection is left. `open` makes of it what the transport reads.
///
/// # Errors
/// The transport's.
pub(crate) async fn serve<IO, S>(
    transport: Server,
    calls: Counted<S>,
    arriving: impl Stream<Item = (Admitted, CancellationToken)>,
    security: Security,
    open: impl Fn(Secured) -> IO,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error>
where
    IO: AsyncRead + AsyncWrite + Connected<ConnectInfo = Arc<Line>> + Unpin + Send + 'static,
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Unpin + Send,
{
    let (security, open) = (&security, &open);
    let arriving = arriving.take_until(stop.cancelled()).map(Ok);
    let serve = |(connection, leave): (Admitted, CancellationToken)| {
        let (transport, calls, stop) = (transport.clone(), calls.clone(), stop.clone());
        async move {
            let secured = tokio::select! {
                secured = security.secure(connection) => secured,
                () = stop.cancelled() => None,
            };
            let Some(secured) = secured else { return Ok(()) };
            let line = secured.connect_info();
            let end = ends(leave, stop, line, security.clone());
            // One of its own for each connection: the transport ends all connections of a server at
            // once.
            let connection = stream::iter([Ok::<_, Infallible>(open(secured))]);
            let connection = connection.chain(stream::pending());
            transport.serve_with_incoming_shutdown(calls, connection, end).await
        }
    };
    arriving.try_for_each_concurrent(None, serve).await
}

/// Resolves when a connection is to end. One that has reached its age is cut off some time later.
pub(super) async fn ends(
    leave: CancellationToken,
    stop: CancellationToken,
    line: Arc<Line>,
    security: Security,
) {
    let aged = async {
        match security.age() {
            Some(age) => sleep(up_to_a_tenth_sooner(age)).await,
            None => std::future::pending().await,
        }
    };
    let told = async {
        tokio::select! {
            () = leave.cancelled() => {}
            () = stop.cancelled() => {}
        }
    };
    tokio::select! {
        () = told => {}
        () = aged => line.end_in(AGE_GRACE),
        outlived = security.outlived(&line) => {
            let (from, why) = (line.address(), outlived.why);
            tracing::info!(?from, why, "a connection ends");
            line.end_in(outlived.grace);
        }
    }
    // Also where the node stops.
    leave.cancel();
}

/// Connections that began together do not end together.
fn up_to_a_tenth_sooner(age: Duration) -> Duration {
    age - age.mul_f64(0.1 * fraction())
}

/// At random, at least 0 and below 1.
fn fraction() -> f64 {
    (random() >> 11) as f64 / (1_u64 << 53) as f64
}

/// A service whose calls are counted.
#[derive(Clone)]
pub(crate) struct Counted<S> {
    service: S,
    under_way: Arc<UnderWay>,
    apart: Option<FindApart>,
}

/// A call that is counted apart, so that strangers do not take the places of known callers.
pub(crate) struct Apart {
    pub(crate) under_way: Arc<UnderWay>,
    /// Its answer ends after this time.
    pub(crate) within: Option<Duration>,
    /// How it is refused where there is no place; `None`: for want of a place.
    pub(crate) refusal: Option<Status>,
}

/// Finds out whether a call is counted apart.
pub(crate) type FindApart<B = Body> = Arc<dyn Fn(&Request<B>) -> Option<Apart> + Send + Sync>;

impl<S> Counted<S> {
    pub(crate) fn new(service: S, under_way: Arc<UnderWay>) -> Self {
        Self { service, under_way, apart: None }
    }

    pub(crate) fn apart(self, apart: FindApart) -> Self {
        Self { apart: Some(apart), ..self }
    }
}

impl<S> Service<Request<Body>> for Counted<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Unpin,
{
    type Response = Response<CountedBody>;
    type Error = Infallible;
    type Future = Answer<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let line = Line::of(request.extensions());
        let apart = self.apart.as_ref().and_then(|find| find(&request));
        let (call, within) = match apart {
            None => (self.under_way.begin(line), None),
            Some(Apart { under_way, within, refusal }) => {
                (under_way.begin(line).map_err(|full| refusal.unwrap_or(full)), within)
            }
        };
        match call {
            Ok(call) => Answer::Coming(self.service.call(request), Some(call), within),
            Err(status) => Answer::Refused(Some(status)),
        }
    }
}

/// The answer to a call, to be.
pub(crate) enum Answer<F> {
    Coming(F, Option<Call>, Option<Duration>),
    Refused(Option<Status>),
}

impl<F> Future for Answer<F>
where
    F: Future<Output = Result<Response<Body>, Infallible>> + Unpin,
{
    type Output = Result<Response<CountedBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (response, call, within) = match &mut *self {
            Self::Coming(answer, call, within) => {
                (ready!(Pin::new(answer).poll(cx))?, call.take(), *within)
            }
            Self::Refused(status) => {
                let status = status.take().expect("invariant: what has ended is not polled");
                (status.into_http(), None, None)
            }
        };
        let late = within.map(|within| (Box::pin(sleep(within)), within));
        Poll::Ready(Ok(response.map(|body| CountedBody {
            body,
            late,
            _call: call,
            _under_way: None,
        })))
    }
}

/// The body of an answer; its call ends with it.
pub(crate) struct CountedBody {
    body: Body,
    /// When it ends at the latest, and how long after it began that is.
    late: Option<(Pin<Box<Sleep>>, Duration)>,
    _call: Option<Call>,
    /// Whoever stops the node waits for it.
    _under_way: Option<TaskTrackerToken>,
}

impl CountedBody {
    pub(super) fn new(body: Body, call: Call, under_way: TaskTrackerToken) -> Self {
        Self { body, late: None, _call: Some(call), _under_way: Some(under_way) }
    }
}

impl http_body::Body for CountedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some((late, within)) = &mut self.late
            && late.as_mut().poll(cx).is_ready()
        {
            let end: Status = CallError::Ended { within: *within }.into();
            (self.body, self.late) = (Body::empty(), None);
            let mut trailers = http::HeaderMap::new();
            return Poll::Ready(Some(
                end.add_header(&mut trailers).map(|()| Frame::trailers(trailers)),
            ));
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tonic::Code;

    use super::*;

    /// Its answers never end.
    #[derive(Clone)]
    struct Endless;

    impl Service<Request<Body>> for Endless {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Response<Body>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            let never = stream::pending::<Result<Frame<Bytes>, Status>>();
            let body = Body::new(http_body_util::StreamBody::new(never));
            std::future::ready(Ok(Response::new(body)))
        }
    }

    /// With this many places for what is counted apart.
    fn counted(places: usize, refusal: Option<Status>) -> Counted<Endless> {
        let lane = |lane, max| UnderWay::new(("tests", lane), max, max, Refusals::default());
        let (known, streams) = (lane(Lane::Known, 8), lane(Lane::Streams, places));
        Counted::new(Endless, known).apart(Arc::new(move |call: &Request<Body>| {
            let apart = || Apart {
                under_way: streams.clone(),
                within: Some(Duration::from_secs(600)),
                refusal: refusal.clone(),
            };
            (call.uri().path() == "/apart").then(apart)
        }))
    }

    fn status(headers: &http::HeaderMap) -> Option<Code> {
        Status::from_header_map(headers).map(|status| status.code())
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_is_counted_apart_ends_by_time() {
        let mut calls = counted(1, None);
        let call = |path: &str| Request::builder().uri(path).body(Body::empty()).unwrap();
        let known = calls.call(call("/known")).await.unwrap();
        let apart = calls.call(call("/apart")).await.unwrap();
        let refused = calls.call(call("/apart")).await.unwrap();
        assert_eq!(status(refused.headers()), Some(Code::ResourceExhausted));
        let begun = Instant::now();
        let ended = apart.into_body().collect().await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), 600);
        assert_eq!(status(ended.trailers().unwrap()), Some(Code::Unavailable));
        let again = calls.call(call("/apart")).await.unwrap();
        assert_eq!(status(again.headers()), None, "its place is free");
        let longer = Duration::from_secs(6_000);
        assert!(tokio::time::timeout(longer, known.into_body().collect()).await.is_err());
    }

    /// Who is told that there is no place tries elsewhere; who has no credential has to get one.
    #[tokio::test]
    async fn where_there_is_no_place_the_refusal_is_the_calls_own() {
        let mut calls = counted(0, Some(Status::unauthenticated("who?")));
        let call = Request::builder().uri("/apart").body(Body::empty()).unwrap();
        let refused = calls.call(call).await.unwrap();
        assert_eq!(status(refused.headers()), Some(Code::Unauthenticated));
    }

    #[test]
    fn connections_end_over_a_tenth_of_their_age() {
        let age = Duration::from_secs(1_000);
        let mut ends: Vec<_> = (0..1_000).map(|_| up_to_a_tenth_sooner(age)).collect();
        ends.sort_unstable();
        assert!(ends[0] > age * 9 / 10 && *ends.last().unwrap() <= age, "{ends:?}");
        // No second of these hundred has more than four times its share, nor has what comes after.
        let most =
            (900..=1_000).map(|second| ends.iter().filter(|end| end.as_secs() == second).count());
        assert!(most.max() <= Some(40), "{ends:?}");
    }
}
