//! The way in for requests that need a right to everything. Who is not let in is told to the logs,
//! as of a call that is refused.

use axum::http::header::WWW_AUTHENTICATE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use quorate_proto::trailers;

use crate::access::{self, Role};
use crate::audit::{Decision, Event, Subject};
use crate::net::connections::Line;
use crate::node::Node;
use crate::wall;

/// Characters of what a caller calls its request, and of the reason, in one line, at most: as for
/// gRPC (`REQUEST_ID_MAX` of its door, `REASON_MAX` of `api/grpc/told.rs`), so that lines of both
/// are bounded alike.
const NAME_MAX: usize = 64;
const REASON_MAX: usize = 512;

/// The answer to a request whose caller does not have this role for all that there is; `None`: it
/// has. `route`: its method and path, for the logs.
pub(super) fn refusal(
    node: &Node,
    route: &'static str,
    role: Role,
    line: &Line,
    headers: &HeaderMap,
) -> Option<Response> {
    let access = node.access();
    if !access.is_checked() {
        return None;
    }
    let known = access::authorization(headers)
        .and_then(|authorization| access.identify(line.certificate(), authorization));
    let (principal, status, code, why) = match known {
        Ok(principal) if principal.may_all(role, wall::now()) => return None,
        Ok(principal) => {
            let why = format!("{} needs the role {role} for all namespaces", principal.name());
            (Some(principal), StatusCode::FORBIDDEN, "PERMISSION_DENIED", why)
        }
        Err(unidentified) => (None, StatusCode::UNAUTHORIZED, NOBODY, unidentified.to_string()),
    };
    let principal = principal.map(|principal| principal.name().to_owned());
    tell(node, Refused { route, principal, code, why: &why }, line, headers);
    let how = (status == StatusCode::UNAUTHORIZED).then_some([(WWW_AUTHENTICATE, "Bearer")]);
    Some((status, how, format!("{why}\n")).into_response())
}

/// The code of a request of nobody who is known.
pub(super) const NOBODY: &str = "UNAUTHENTICATED";

/// A request that no call of the contract was made of.
pub(super) struct Refused<'a> {
    /// Its method and path.
    pub(super) route: &'static str,
    pub(super) principal: Option<String>,
    pub(super) code: &'static str,
    pub(super) why: &'a str,
}

/// Tells the logs of a request that was refused.
pub(super) fn tell(node: &Node, refused: Refused<'_>, line: &Line, headers: &HeaderMap) {
    let Refused { route, principal, code, why } = refused;
    let from = line.address();
    tracing::debug!(method = route, ?from, principal, code, why, "refused");
    if !node.audit().is_on() {
        return;
    }
    let name = headers.get(trailers::REQUEST_ID).and_then(|name| name.to_str().ok());
    let event = Event {
        time: wall::stamp(),
        node: node.id(),
        request: name.unwrap_or_default().chars().take(NAME_MAX).collect(),
        principal,
        method: route,
        subject: Subject::default(),
        decision: Decision::Denied,
        code: code.to_owned(),
        reason: Some(why.chars().take(REASON_MAX).collect()),
        revision: None,
        from,
        left_out: 0,
    };
    let _nobody_waits = node.audit().tell(event, None);
}
