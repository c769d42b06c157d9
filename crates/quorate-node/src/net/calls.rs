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
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tower::Service;

use crate::error::CallError;
use crate::net::connections::{Admitted, Line, Refusals};
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
    /// These calls are open to all, or of callers that are not known.
    is_open: bool,
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
        whose: &'static str,
        max: usize,
        per_address_max: usize,
        refusals: Refusals,
    ) -> Arc<Self> {
        Arc::new(Self::of(whose, max, per_address_max, refusals, false))
    }

    /// Calls that are counted apart, so that strangers do not take the places of known callers.
    pub(crate) fn open(
        whose: &'static str,
        max: usize,
        per_address_max: usize,
        refusals: Refusals,
    ) -> Arc<Self> {
        Arc::new(Self::of(whose, max, per_address_max, refusals, true))
    }

    fn of(
        whose: &'static str,
        max: usize,
        per_address_max: usize,
        refusals: Refusals,
        is_open: bool,
    ) -> Self {
        let (count, told) = (AtomicUsize::new(0), Mutex::default());
        Self { whose, max, per_address_max, refusals, is_open, count, told }
    }

    /// # Errors
    /// There are too many already.
    pub(super) fn begin(self: &Arc<Self>, line: Arc<Line>) -> Result<Call, Status> {
        // Counted first: two that begin at once do not share the last place.
        let of_address = line.begin_call(self.is_open);
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
        self.line.end_call(self.of.is_open);
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
    open: Option<Open>,
}

type IsOpen<B> = dyn Fn(&Request<B>) -> bool + Send + Sync;

/// The calls that are counted apart, and which they are.
pub(crate) struct Open<B = Body> {
    pub(crate) under_way: Arc<UnderWay>,
    pub(crate) is_open: Arc<IsOpen<B>>,
}

impl<B> Clone for Open<B> {
    fn clone(&self) -> Self {
        Self { under_way: self.under_way.clone(), is_open: self.is_open.clone() }
    }
}

impl<S> Counted<S> {
    pub(crate) fn new(service: S, under_way: Arc<UnderWay>) -> Self {
        Self { service, under_way, open: None }
    }

    pub(crate) fn apart(self, open: Open) -> Self {
        Self { open: Some(open), ..self }
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
        let open = self.open.as_ref().filter(|open| (open.is_open)(&request));
        let under_way = open.map_or(&self.under_way, |open| &open.under_way);
        match under_way.begin(Line::of(request.extensions())) {
            Ok(call) => Answer::Coming(self.service.call(request), Some(call)),
            Err(status) => Answer::Refused(Some(status)),
        }
    }
}

/// The answer to a call, to be.
pub(crate) enum Answer<F> {
    Coming(F, Option<Call>),
    Refused(Option<Status>),
}

impl<F> Future for Answer<F>
where
    F: Future<Output = Result<Response<Body>, Infallible>> + Unpin,
{
    type Output = Result<Response<CountedBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (response, call) = match &mut *self {
            Self::Coming(answer, call) => (ready!(Pin::new(answer).poll(cx))?, call.take()),
            Self::Refused(status) => {
                let status = status.take().expect("invariant: what has ended is not polled");
                (status.into_http(), None)
            }
        };
        Poll::Ready(Ok(response.map(|body| CountedBody { body, _call: call })))
    }
}

/// The body of an answer; its call ends with it.
pub(crate) struct CountedBody {
    body: Body,
    _call: Option<Call>,
}

impl CountedBody {
    pub(super) fn new(body: Body, call: Call) -> Self {
        Self { body, _call: Some(call) }
    }
}

impl http_body::Body for CountedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
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
    use super::*;

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
