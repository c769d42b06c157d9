//! HTTP/1.1 on a listener of its own, for operators' tools: bounded like the others, in
//! connections, calls, headers and time.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt};
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::transport::server::Connected;
use tower::ServiceExt;

use crate::net::calls::{Apart, CountedBody, FindApart, UnderWay, ends};
use crate::net::connections::{Admitted, Line};
use crate::net::tls::Security;

/// All headers of a request, bytes: a token and what tools add. More is refused.
const HEADERS_MAX: usize = 16 * 1024;
/// A request's headers have this long to arrive; a connection without a request ends then, too.
const HEADERS_WITHIN: Duration = Duration::from_secs(30);
/// A request is answered within this time, or refused.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// What begins so is bounded by what answers it: each call has a deadline, and some are to wait.
const BOUNDED_BY_ITSELF: [&str; 2] = ["/api/", "/sd/"];
/// A connection that is to end has this long for the answer that is under way.
const END_GRACE: Duration = Duration::from_secs(5);

type Count = Arc<dyn Fn(&Method, StatusCode) + Send + Sync>;

/// What answers on a listener.
#[derive(Clone)]
pub(crate) struct Tools {
    pub(crate) router: Router,
    /// How a request is answered that there is no room for.
    pub(crate) refused: fn(Status) -> Response,
    /// Counts an answer that the router did not give.
    pub(crate) count: Count,
    pub(crate) calls: Arc<UnderWay>,
    /// Those of nobody who is known.
    pub(crate) apart: FindApart<Incoming>,
    /// Calls that are bounded by what answers them, each until its answer has been sent.
    pub(crate) under_way: TaskTracker,
}

/// Serves each connection that arrives and can be secured, until the stop has come and none is
/// left. Each has a task of its own: where one is busy, the others are answered.
pub(crate) async fn serve(
    tools: Tools,
    arriving: impl Stream<Item = (Admitted, CancellationToken)>,
    security: Security,
    stop: CancellationToken,
) {
    let mut arriving = pin!(arriving.take_until(stop.cancelled()));
    let mut connections = JoinSet::new();
    loop {
        let ended = tokio::select! {
            arrived = arriving.next() => {
                let Some((connection, leave)) = arrived else { break };
                let (tools, security, stop) = (tools.clone(), security.clone(), stop.clone());
                connections.spawn(serve_one(tools, connection, leave, security, stop));
                continue;
            }
            Some(ended) = connections.join_next() => ended,
        };
        ended.expect("invariant: none is aborted, and a panic ends the process");
    }
    connections.join_all().await;
}

async fn serve_one(
    tools: Tools,
    connection: Admitted,
    leave: CancellationToken,
    security: Security,
    stop: CancellationToken,
) {
    let secured = tokio::select! {
        secured = security.secure(connection) => secured,
        () = stop.cancelled() => None,
    };
    let Some(secured) = secured else { return };
    let line = secured.connect_info();
    let end = ends(leave, stop, line.clone(), security.clone());
    let service = service_fn(|request| answer(tools.clone(), line.clone(), request));
    let mut transport = http1::Builder::new();
    transport.timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN);
    transport.max_buf_size(HEADERS_MAX);
    let mut served = pin!(transport.serve_connection(TokioIo::new(secured), service));
    tokio::select! {
        // Its other end is gone, or speaks no HTTP: nobody to tell.
        _ = served.as_mut() => {}
        () = end => {
            served.as_mut().graceful_shutdown();
            let _ = timeout(END_GRACE, served).await;
        }
    }
}

async fn answer(
    Tools { router, refused, count, calls, apart, under_way }: Tools,
    line: Arc<Line>,
    mut request: Request<Incoming>,
) -> Result<Response, Infallible> {
    request.extensions_mut().insert(line.clone());
    let begun = match apart(&request) {
        None => calls.begin(line),
        Some(Apart { under_way, refusal, .. }) => {
            under_way.begin(line).map_err(|full| refusal.unwrap_or(full))
        }
    };
    let call = match begun {
        Ok(call) => call,
        Err(status) => {
            let refused = refused(status);
            count(request.method(), refused.status());
            return Ok(refused);
        }
    };
    let (path, method) = (request.uri().path(), request.method().clone());
    if BOUNDED_BY_ITSELF.iter().any(|place| path.starts_with(place)) {
        let token = under_way.token();
        let answered = router.oneshot(request).await?;
        // Its body may go on for long.
        let whole = |body| {
            let body = CountedBody::new(tonic::body::Body::new(body), call, token);
            axum::body::Body::new(body)
        };
        return Ok(answered.map(whole));
    }
    match timeout(ANSWER_WITHIN, router.oneshot(request)).await {
        Ok(answered) => answered,
        Err(_elapsed) => {
            let (late, status) = (ANSWER_WITHIN.as_secs(), StatusCode::SERVICE_UNAVAILABLE);
            count(&method, status);
            Ok((status, format!("no answer within {late} s\n")).into_response())
        }
    }
}
