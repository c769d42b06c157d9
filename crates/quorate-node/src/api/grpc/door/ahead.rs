//! What is refused before a request's body is read.

use std::sync::Arc;
use std::time::Duration;

use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use crate::access::{self, Principal, Unidentified};
use crate::api::grpc::arrived::Arrived;
use crate::api::grpc::door::{Caller, Method, OWN, log, name_of, next_number, span};
use crate::api::grpc::rights;
use crate::api::grpc::told::Told;
use crate::audit::Subject;
use crate::net::connections::{Lane, Line};
use crate::node::Node;

/// Asks once, and is answered at once.
const CHECK: &str = "/grpc.health.v1.Health/Check";

/// A call of nobody who is known.
pub(crate) struct Open {
    pub(crate) lane: Lane,
    /// How it is refused, if it is one that only known callers may make.
    pub(crate) refusal: Option<Status>,
}

/// Whether a call is of nobody who is known, or, where nobody has to be, one of health or
/// reflection.
pub(crate) fn open<B>(node: &Node, request: &http::Request<B>) -> Option<Open> {
    let path = request.uri().path();
    let is_own = path.starts_with(OWN);
    if !node.access().is_checked() {
        return (!is_own).then_some(Open { lane: Lane::Strangers, refusal: None });
    }
    let unidentified = unidentified(node, request)?;
    Some(match path {
        _ if is_own => Open { lane: Lane::Strangers, refusal: Some(unidentified.into()) },
        CHECK => Open { lane: Lane::Checks, refusal: None },
        _ => Open { lane: Lane::Streams, refusal: None },
    })
}

/// Whether a call is of nobody who is known, where callers have to be.
pub(crate) fn is_unknown<B>(node: &Node, request: &http::Request<B>) -> bool {
    unidentified(node, request).is_some()
}

fn unidentified<B>(node: &Node, request: &http::Request<B>) -> Option<Unidentified> {
    if !node.access().is_checked() {
        return None;
    }
    let line = Line::of(request.extensions());
    let known = access::authorization(request.headers())
        .and_then(|authorization| node.access().identify(line.certificate(), authorization));
    known.err()
}

/// Refuses a call of nobody who is known, by its headers alone. Those of health and reflection are
/// open to all.
///
/// # Errors
/// UNAUTHENTICATED.
pub(in crate::api::grpc) fn check_known<B>(
    node: &Node,
    request: &http::Request<B>,
) -> Result<(), Status> {
    if !node.access().is_checked() {
        return Ok(());
    }
    let path = request.uri().path().strip_prefix('/');
    let method = Method::ALL.iter().find(|method| Some(method.path()) == path);
    let Some(method) = method.copied() else { return Ok(()) };
    let Some(unidentified) = unidentified(node, request) else { return Ok(()) };
    let line = Line::of(request.extensions());
    let status = Status::from(unidentified);
    let metadata = MetadataMap::from_headers(request.headers().clone());
    tell(node, method, &metadata, &line, (None, Subject::default()), &status);
    Err(status)
}

/// Refuses a call by what is known of it before its body is read: who calls, and whether they may
/// do that to what the request names so far. The door asks again, of the whole request.
///
/// # Errors
/// UNAUTHENTICATED, PERMISSION_DENIED.
pub(in crate::api) fn check_ahead<T: Arrived>(
    node: &Node,
    method: Method,
    request: &Request<T>,
) -> Result<(), Status> {
    if !node.access().is_checked() {
        return Ok(());
    }
    let line = Line::of(request.extensions());
    let touched = request.get_ref().touched();
    let (principal, status) = match Caller::identify(node, line.clone(), request.metadata()) {
        Err(status) => (None, status),
        Ok(caller) => match rights::check(&caller.principal, method.needed(), &touched) {
            Ok(()) => return Ok(()),
            Err(status) => (Some(caller.principal), status),
        },
    };
    tell(node, method, request.metadata(), &line, (principal, touched.subject()), &status);
    Err(status)
}

/// Tells the logs and the meters of a call that was refused.
fn tell(
    node: &Node,
    method: Method,
    metadata: &MetadataMap,
    line: &Line,
    (principal, subject): (Option<Arc<Principal>>, Subject),
    refusal: &Status,
) {
    node.meters().started(method as usize);
    node.meters().handled(method as usize, refusal.code(), Duration::ZERO);
    let name = name_of(metadata).unwrap_or_else(next_number);
    span(method, metadata, Some(&name), line.address()).in_scope(|| log(method, Some(refusal)));
    if node.audit().is_on() {
        let mut told = Told::new(method, subject, Some(name), line.address());
        told.principal = principal;
        told.tell::<()>(node, &Err(refusal.clone()));
    }
}
