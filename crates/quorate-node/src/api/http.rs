//! What the HTTP listener answers: whether the node lives, whether it is ready, and what it
//! measures. Probes have no credentials, so the first two are open to all and tell no secret.
//!
//! | path | answer |
//! |---|---|
//! | `/healthz` | 200 as long as the process answers at all |
//! | `/readyz` | 200, or 503 and why calls should go to another node |
//! | `/console/` | a page for people, open to all: what it shows comes with their rights |
//! | `/metrics` | everything that is measured, for Prometheus; needs the role `read` for everything |
//! | `/api/v1/...` | what gRPC answers, in JSON (`api/http/routes.rs`) |
//! | `/sd/prometheus` | instances as targets of Prometheus, with the rights of a fetch |
//! | `/openapi.json` | a description of that, open to all: it tells nothing of this cluster |

mod asked;
mod body;
mod console;
mod cors;
mod described;
mod discovery;
mod door;
mod json;
mod known;
mod large;
mod problem;
mod query;
mod reading;
mod routes;
mod schemas;
mod scrape;
mod shown;
mod shown_inspection;
mod shown_status;
mod watching;
mod writing;

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Extension, MatchedPath, Request, State};
use axum::http::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use quorate_log::SnapshotStore;
use tokio::sync::Semaphore;
use tonic::Status;

use crate::access::Role;
use crate::api::grpc::door::is_unknown;
use crate::api::http::described::Document;
use crate::api::http::problem::Problem;
use crate::meters::{Meters, OfRoute};
use crate::net::connections::{Connections, Line};
use crate::net::tls::Tls;
use crate::node::Node;
use crate::node::condition::Obstacle;
use crate::node::reads::CURRENT_MS;
use crate::runtime::blocking;
use crate::types::{LogStore, TypeConfig};

/// Version 0.0.4 of Prometheus' text format.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What there is to look at.
#[derive(Clone)]
pub(crate) struct Observed {
    pub(crate) node: Arc<Node>,
    pub(crate) log: LogStore,
    pub(crate) snapshots: Arc<SnapshotStore<TypeConfig>>,
    pub(crate) tls: Option<Arc<Tls>>,
    /// Of clients.
    pub(crate) connections: Arc<Connections>,
    /// One is made at a time.
    pub(crate) scrapes: Arc<Semaphore>,
    /// Origins whose pages may call.
    pub(crate) origins: Arc<[String]>,
}

pub(crate) fn router(observed: Observed) -> Router {
    let (api, sd, routes) = routes::routers(observed.node.clone());
    let document = Arc::new(Document::of(routes));
    for (method, route) in document.operations() {
        // There from the start: an increase from nothing to 1 is one that Prometheus does not see.
        let of = OfRoute { method, route: route.clone(), code: 200 };
        observed.node.meters().http_requests.get_or_create_owned(&of);
    }
    Router::new()
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .nest(described::API, api)
        .nest(described::SD, sd)
        .route(
            described::PLACE,
            get(|headers: HeaderMap| async move { document.answer(&headers) }),
        )
        .merge(console::router())
        .fallback(|| async {
            let here = "there are /api/v1/, /sd/prometheus, /openapi.json, /console/, /healthz, /readyz and /metrics here\n";
            (StatusCode::NOT_FOUND, here)
        })
        .layer(middleware::from_fn_with_state(observed.origins.clone(), cors::answered))
        .layer(middleware::map_response(for_own_pages))
        .layer(middleware::from_fn_with_state(observed.node.clone(), counted))
        .with_state(observed)
}

/// Pages of other origins do not get to run an answer as a script, or to show it as a picture.
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

async fn for_own_pages(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(RESOURCE_POLICY, HeaderValue::from_static("same-origin"));
    response
}

/// What is answered where there is no room for a request.
pub(crate) fn refused(status: Status) -> Response {
    Problem::from(status).into_response()
}

/// Counts a request that took no route: it was refused before, or its answer was given up.
pub(crate) fn count_unrouted(meters: &Meters, method: &Method, status: StatusCode) {
    let (method, route) = (method_name(method), "none".to_owned());
    meters.requested(&OfRoute { method, route, code: status.as_u16() });
}

fn method_name(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "PUT" => "PUT",
        "POST" => "POST",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        _ => "other",
    }
}

/// Counts a request by the route that it took.
async fn counted(State(node): State<Arc<Node>>, request: Request, next: Next) -> Response {
    let method = method_name(request.method());
    let route = request.extensions().get::<MatchedPath>();
    let route = route.map_or("none", MatchedPath::as_str).to_owned();
    let response = next.run(request).await;
    node.meters().requested(&OfRoute { method, route, code: response.status().as_u16() });
    response
}

async fn readyz(State(observed): State<Observed>, request: Request) -> Response {
    let is_known = !is_unknown(&observed.node, &request);
    let problems = problems(&observed.node, is_known);
    if problems.is_empty() {
        return "ready\n".into_response();
    }
    let mut text = "not ready\n".to_owned();
    for problem in problems {
        let _ = writeln!(text, "- {problem}");
    }
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

/// Why calls should go to another node; nothing: they need not. `is_known`: who asks may know where
/// this node keeps its files.
pub(crate) fn problems(node: &Node, is_known: bool) -> Vec<String> {
    if node.stop().is_cancelled() {
        return vec!["it is stopping".to_owned()];
    }
    if node.leadership().is_removed() {
        return vec!["it was removed from its cluster".to_owned()];
    }
    if !node.is_founded() {
        return vec!["it is not in a cluster yet: it waits to be founded or added".to_owned()];
    }
    let mut problems = Vec::new();
    match node.leadership().leader() {
        None => problems.push("it has no leader in sight: no quorum, or cut off".to_owned()),
        Some(_) => match node.age_ms() {
            age if age <= CURRENT_MS => {}
            u64::MAX => problems.push("it does not know yet how old its state is".to_owned()),
            age => problems.push(format!("its state is {age} ms old: it is not caught up")),
        },
    }
    let words = |Obstacle { whole, to_strangers, .. }| match is_known {
        true => whole,
        false => to_strangers.to_owned(),
    };
    problems.extend(node.write_obstacle().map(words));
    problems
}

async fn metrics(
    State(observed): State<Observed>,
    Extension(line): Extension<Arc<Line>>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    if let Err(problem) = asked::check_host(&observed.node, &uri, &headers) {
        return problem.into_response();
    }
    // The names of services are among what is measured.
    let refused = door::refusal(&observed.node, "GET /metrics", Role::Read, &line, &headers);
    if let Some(refused) = refused {
        return refused;
    }
    // One at a time, as they would be anyway: threads that wait for each other are no others'.
    let turn = observed.scrapes.clone().acquire_owned().await;
    let made = blocking(move || {
        let _turn = turn;
        scrape::text(&observed)
    });
    match made.await {
        Ok(text) => ([(CONTENT_TYPE, PROMETHEUS)], text).into_response(),
        Err(panicked) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{panicked}\n")).into_response()
        }
    }
}
