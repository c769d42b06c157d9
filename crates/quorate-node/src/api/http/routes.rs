//! The routes of the JSON API, below `/api/v1`, and of Prometheus' discovery, below `/sd`. Each
//! makes a message of the contract, calls the service's method of that message, and shows the
//! answer: identity, rights, audit, limits and meters are those of gRPC (`api/grpc/door.rs`).
//!
//! | path | methods |
//! |---|---|
//! | `/me`, `/members`, `/status` | GET |
//! | `/namespaces/NS/services` | GET |
//! | `/namespaces/NS/services/SERVICE` | GET, with `index` and `wait` once it changes |
//! | `/namespaces/NS/services/SERVICE/dependents`, `.../inspection` | GET |
//! | `/namespaces/NS/services/SERVICE/instances/ID` | GET, PUT (register), PATCH (update), DELETE |
//! | `/namespaces/NS/services/SERVICE/instances/ID/override` | PUT, DELETE |
//! | `/namespaces/NS/watch` | GET: a stream of events |
//! | `/leases` | PUT (renew many) |
//! | `/leases/LEASE` | PUT (renew), DELETE |
//! | `/transfer-leader`, `/snapshot` | POST |
//! | `/namespaces/NS/overrides` | GET |

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::HeaderValue;
use axum::http::StatusCode;
use axum::http::header::CACHE_CONTROL;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tonic::Code;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::grpc::admin::AdminService;
use crate::api::grpc::registry::RegistryService;
use crate::api::http::problem::Problem;
use crate::api::http::query::Query;
use crate::api::http::watching::Texts;
use crate::api::http::{described, discovery, reading, watching, writing};
use crate::error::{CallError, NodeError};
use crate::net::arriving::Arriving;
use crate::node::Node;

/// What handlers call.
#[derive(Clone)]
pub(super) struct Api {
    pub(super) node: Arc<Node>,
    pub(super) registry: RegistryService,
    pub(super) admin: AdminService,
    /// One permit for each answer that is long in coming: streams, and reads that wait.
    long: Arc<Semaphore>,
    long_max: usize,
    /// Bodies.
    pub(super) arriving: Arc<Arriving>,
    pub(super) texts: Arc<Texts>,
}

impl Api {
    pub(super) fn of(node: Arc<Node>) -> Self {
        let registry = RegistryService { node: node.clone() };
        let admin = AdminService { node: node.clone() };
        let long_max = node.tunables().http_streams_max();
        let long = Arc::new(Semaphore::new(long_max));
        let arriving = Arc::new(Arriving::new(node.meters().refused("arriving")));
        Self { node, registry, admin, long, long_max, arriving, texts: Arc::default() }
    }

    /// A place for an answer that is long in coming.
    ///
    /// # Errors
    /// There is none left.
    pub(super) fn long(&self) -> Result<OwnedSemaphorePermit, Problem> {
        self.long.clone().try_acquire_owned().map_err(|_| {
            let max = self.long_max;
            let detail = format!("{max} streams and waiting reads are under way at this node");
            let status = StatusCode::TOO_MANY_REQUESTS;
            let limit = format!("{max} streams and waiting reads at this node");
            Problem::new(status, Code::ResourceExhausted, detail).at_most(limit).later()
        })
    }
}

/// What a handler answers.
pub(super) type Answered = Result<Response, Problem>;

/// The routes below `/api/v1` and below `/sd`, and what there is to say of them: both of the
/// attributes of the handlers, so that neither has what the other has not.
pub(super) fn routers<S>(node: Arc<Node>) -> (Router<S>, Router<S>, [(&'static str, OpenApi); 2]) {
    let api = Api::of(node);
    let (sd, of_sd) = OpenApiRouter::new().routes(routes!(discovery::prometheus)).split_for_parts();
    let (router, of_api) = OpenApiRouter::new()
        .routes(routes!(reading::me))
        .routes(routes!(reading::members))
        .routes(routes!(reading::status))
        .routes(routes!(reading::services))
        .routes(routes!(reading::service))
        .routes(routes!(reading::dependents))
        .routes(routes!(reading::inspection))
        .routes(routes!(reading::instance, writing::register, writing::update, writing::deregister))
        .routes(routes!(writing::set_override, writing::clear_override))
        .routes(routes!(writing::renew_many))
        .routes(routes!(writing::renew, writing::end_lease))
        .routes(routes!(writing::transfer_leader))
        .routes(routes!(writing::snapshot))
        .routes(routes!(watching::watch))
        .routes(routes!(reading::overrides))
        .split_for_parts();
    let finish = |router: Router<Api>, at: &'static str| {
        router
            .fallback(move || async move {
                let place = described::PLACE;
                Problem::not_found(format!(
                    "there is no such path below {at}; {place} has them all"
                ))
            })
            .method_not_allowed_fallback(|| async {
                let status = StatusCode::METHOD_NOT_ALLOWED;
                let detail = "this path does not take that method; see the header allow";
                Problem::new(status, Code::Unimplemented, detail)
            })
            .layer(middleware::from_fn(in_time))
            .layer(middleware::from_fn_with_state(api.node.clone(), while_it_serves))
            .layer(middleware::map_response(for_no_cache))
            .with_state(api.clone())
    };
    let routers = (finish(router, described::API), finish(sd, described::SD));
    (routers.0, routers.1, [(described::API, of_api), (described::SD, of_sd)])
}

/// A node that stops takes no new call, as by gRPC; those under way have the time of its stop.
async fn while_it_serves(State(node): State<Arc<Node>>, request: Request, next: Next) -> Response {
    match node.stop().is_cancelled() {
        true => {
            let stopping = CallError::from(NodeError::Stopping { node: node.id() });
            Problem::from(stopping).into_response()
        }
        false => next.run(request).await,
    }
}

/// No caller that says how long it waits is left without an answer then. Most calls end a little
/// before, with a reason (`door::deadline_in`); a body may still be on its way in.
async fn in_time(request: Request, next: Next) -> Response {
    let query = Query::parse(request.uri().query().unwrap_or_default());
    // What is wrong with it says the route.
    let Some(wait) = query.ok().and_then(|mut query| query.timeout().ok().flatten()) else {
        return next.run(request).await;
    };
    timeout(wait, next.run(request)).await.unwrap_or_else(|_elapsed| {
        let detail = format!("no answer within {} ms, as asked for", wait.as_millis());
        let status = StatusCode::GATEWAY_TIMEOUT;
        Problem::new(status, Code::DeadlineExceeded, detail).into_response()
    })
}

/// Nothing of this is to be kept on the way.
async fn for_no_cache(mut response: Response) -> Response {
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

#[cfg(test)]
mod tests {
    /// What is not in the description cannot be found there: another way to add a route is none.
    #[test]
    fn each_route_comes_with_its_description() {
        let text = include_str!("routes.rs");
        let (shipped, _) = text.split_once("#[cfg(test)]").unwrap();
        for way in [".route(", ".route_service(", ".nest(", ".nest_service(", ".merge("] {
            assert!(!shipped.contains(way), "{way}");
        }
        assert!(shipped.matches(".routes(routes!(").count() > 10);
    }
}
