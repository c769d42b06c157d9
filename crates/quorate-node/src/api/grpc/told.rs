//! What the audit log is told of a call.

use std::error::Error;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use tonic::{Code, Response, Status};

use crate::access::Principal;
use crate::api::grpc::door::Method;
use crate::audit::{Decision, Event, Place, Subject, Written};
use crate::node::Node;
use crate::wall;

/// A call as long as it is under way.
pub(super) struct Told {
    method: Method,
    subject: Subject,
    request: Option<Arc<str>>,
    from: Option<IpAddr>,
    pub(super) principal: Option<Arc<Principal>>,
    /// Where no write is to be without a line.
    pub(super) place: Option<Place>,
}

/// Where a write stands; in the extensions of its answer.
#[derive(Debug, Clone, Copy)]
struct Stands(u64);

/// That a refusal which looks like another one is for want of a right. The caller is not told.
#[derive(Debug)]
struct NotTheirs;

impl fmt::Display for NotTheirs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it keeps what is another's")
    }
}

impl Error for NotTheirs {}

/// What was refused, where the call did not begin with it: the first message of a stream had it.
#[derive(Debug)]
struct About(Subject);

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it is about what the stream asked for")
    }
}

impl Error for About {}

/// An answer to a write that stands at this revision.
pub(super) fn standing<A>(revision: u64, answer: A) -> Response<A> {
    let mut response = Response::new(answer);
    response.extensions_mut().insert(Stands(revision));
    response
}

/// A refusal for want of a right, whatever it looks like.
pub(super) fn not_theirs(mut refusal: Status) -> Status {
    refusal.set_source(Arc::new(NotTheirs));
    refusal
}

/// A refusal, and what it is about.
pub(super) fn about(mut refusal: Status, subject: Subject) -> Status {
    refusal.set_source(Arc::new(About(subject)));
    refusal
}

impl Told {
    pub(super) fn new(
        method: Method,
        subject: Subject,
        request: Option<Arc<str>>,
        from: Option<IpAddr>,
    ) -> Self {
        Self { method, subject, request, from, principal: None, place: None }
    }

    /// Tells what came of it, if that is worth a line; the line, where the call waits for it.
    pub(super) fn tell<A>(
        self,
        node: &Node,
        answer: &Result<Response<A>, Status>,
    ) -> Option<Written> {
        let refused = answer.as_ref().err();
        let is_denied = refused.is_some_and(|status| {
            matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied)
                || status.source().is_some_and(|source| source.is::<NotTheirs>())
        });
        if !is_denied && !self.method.is_audited() {
            return None;
        }
        let stands = answer.as_ref().ok().and_then(|answer| answer.extensions().get::<Stands>());
        let decision = if is_denied { Decision::Denied } else { Decision::Allowed };
        let Self { method, subject, request, from, principal, place } = self;
        let about = refused.and_then(|status| status.source()?.downcast_ref::<About>());
        let subject = about.map_or(subject, |About(subject)| subject.clone());
        let event = Event {
            time: wall::stamp(),
            node: node.id(),
            request: request.as_deref().unwrap_or_default().to_owned(),
            principal: principal.map(|principal| principal.name().to_owned()),
            method: method.path(),
            subject,
            decision,
            code: name(refused.map_or(Code::Ok, Status::code)),
            reason: refused.map(|status| status.message().chars().take(REASON_MAX).collect()),
            revision: stands.map(|stands| stands.0),
            from,
            left_out: 0,
        };
        node.audit().tell(event, place)
    }
}

/// Characters of the reason for a refusal in one line, at most.
pub(super) const REASON_MAX: usize = 512;

/// As everybody writes it: `PERMISSION_DENIED`.
pub(in crate::api) fn name(code: Code) -> String {
    if code == Code::Ok {
        return "OK".to_owned();
    }
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_their_usual_names() {
        for (code, expected) in [
            (Code::Ok, "OK"),
            (Code::NotFound, "NOT_FOUND"),
            (Code::PermissionDenied, "PERMISSION_DENIED"),
            (Code::Unauthenticated, "UNAUTHENTICATED"),
        ] {
            assert_eq!(name(code), expected);
        }
    }
}
