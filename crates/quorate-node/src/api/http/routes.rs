//! The routes of the JSON API, below `/api/v1`. Each makes a message of the contract, calls the
//! service's method of that message, and shows the answer: identity, rights, audit, limits and
//! meters are those of gRPC (`api/grpc/door.rs`).
//!
//! | path | methods |
//! |---|---|
//! | `/me`, `/members`, `/status` | GET |
//! | `/namespaces/NS/services` | GET |
//! | `/namespaces/NS/services/SERVICE` | GET, with `index` and `wait` once it changes |
//! | `/namespaces/NS/services/SERVICE/dependents` | GET |
//! | `/namespaces/NS/services/SERVICE/instances/ID` | GET, PUT (register), PATCH (update), DELETE |
//! | `/namespaces/NS/services/SERVICE/instances/ID/override` | PUT, DELETE |
//! | `/namespaces/NS/watch` | GET: a stream of events |
//! | `/leases/LEASE` | PUT (renew), DELETE |
//! | `/transfer-leader`, `/snapshot` | POST |
//! | `/namespaces/NS/overrides` | GET |

use std::sync::Arc;

use axum::Router;
use axum::http::HeaderValue;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, X_CONTENT_TYPE_OPTIONS};
use axum::response::Response;
use axum::routing::{get, post, put};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Code;

use crate::api::grpc::admin::AdminService;
use crate::api::grpc::registry::RegistryService;
use crate::api::http::problem::Problem;
use crate::api::http::watching::Texts;
use crate::api::http::{reading, watching, writing};
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
    /// A place for an answer that is long in coming.
    ///
    /// # Errors
    /// There is none left.
    pub(super) fn long(&self) -> Result<OwnedSemaphorePermit, Problem> {
        self.long.clone().try_acquire_owned().map_err(|_| {
            let max = self.long_max;
            let detail = format!("{max} streams and waiting reads are under way at this node");
            let status = StatusCode::TOO_MANY_REQUESTS;
            Problem::new(status, Code::ResourceExhausted, detail).later()
        })
    }
}

/// What a handler answers.
pub(super) type Answered = Result<Response, Problem>;

pub(super) fn router<S>(node: Arc<Node>) -> Router<S> {
    let registry = RegistryService { node: node.clone() };
    let admin = AdminService { node: node.clone() };
    let long_max = node.tunables().http_streams_max();
    let long = Arc::new(Semaphore::new(long_max));
    let arriving = Arc::new(Arriving::new(node.meters().refused("arriving")));
    let api = Api { node, registry, admin, long, long_max, arriving, texts: Arc::default() };
    let instance = "/namespaces/{ns}/services/{service}/instances/{id}";
    Router::new()
        .route("/me", get(reading::me))
        .route("/members", get(reading::members))
        .route("/status", get(reading::status))
        .route("/namespaces/{ns}/services", get(reading::services))
        .route("/namespaces/{ns}/services/{service}", get(reading::service))
        .route("/namespaces/{ns}/services/{service}/dependents", get(reading::dependents))
        .route(
            instance,
            get(reading::instance)
                .put(writing::register)
                .patch(writing::update)
                .delete(writing::deregister),
        )
        .route(
            "/namespaces/{ns}/services/{service}/instances/{id}/override",
            put(writing::set_override).delete(writing::clear_override),
        )
        .route("/leases/{lease_id}", put(writing::renew).delete(writing::end_lease))
        .route("/transfer-leader", post(writing::transfer_leader))
        .route("/snapshot", post(writing::snapshot))
        .route("/namespaces/{ns}/watch", get(watching::watch))
        .route("/namespaces/{ns}/overrides", get(reading::overrides))
        .fallback(|| async { Problem::not_found("there is no such path below /api/v1") })
        .method_not_allowed_fallback(|| async {
            let status = StatusCode::METHOD_NOT_ALLOWED;
            let detail = "this path does not take that method; see the header allow";
            Problem::new(status, Code::Unimplemented, detail)
        })
        .layer(axum::middleware::map_response(for_no_cache))
        .with_state(api)
}

/// Nothing of this is to be kept on the way, or taken for something else.
async fn for_no_cache(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
