//! Pages of other origins that an operator lets in (`http_cors_origins`). A browser asks first what
//! such a page may do; without these answers it keeps everything from it. No credentials of the
//! browser's own (cookies, certificates) are allowed, only a token that the page has.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
    VARY,
};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// In a request that a page of an allowed origin makes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowed;

const METHODS: &str = "GET, PUT, POST, PATCH, DELETE";
/// What a request may have beside what a page may send to anyone.
const HEADERS: &str = "authorization, content-type, if-none-match, last-event-id, x-request-id";
/// What the page may read of an answer.
const EXPOSED: &str = "etag, retry-after";
/// A browser remembers for so long what it was told, s.
const MAX_AGE: &str = "600";

pub(super) async fn answered(
    State(origins): State<Arc<[String]>>,
    mut request: Request,
    next: Next,
) -> Response {
    if origins.is_empty() {
        return next.run(request).await;
    }
    let is_allowed = |origin: &&HeaderValue| origins.iter().any(|of| of == *origin);
    let origin = request.headers().get(ORIGIN).filter(is_allowed).cloned();
    let asks_first = request.method() == Method::OPTIONS
        && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = match &origin {
        Some(_) if asks_first => {
            let allowed = [
                (ACCESS_CONTROL_ALLOW_METHODS, METHODS),
                (ACCESS_CONTROL_ALLOW_HEADERS, HEADERS),
                (ACCESS_CONTROL_MAX_AGE, MAX_AGE),
            ];
            (StatusCode::NO_CONTENT, allowed).into_response()
        }
        Some(_) => {
            request.extensions_mut().insert(Allowed);
            let mut response = next.run(request).await;
            let exposed = HeaderValue::from_static(EXPOSED);
            response.headers_mut().insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
            response
        }
        None => next.run(request).await,
    };
    if let Some(origin) = origin {
        response.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    }
    // A cache may not give to one origin what another was told.
    response.headers_mut().append(VARY, HeaderValue::from_static("origin"));
    response
}
