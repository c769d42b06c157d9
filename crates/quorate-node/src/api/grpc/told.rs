//! What the audit log is told of a call.

use std::error::Error;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use quorate_state::{InstanceKey, LeaseId};
use tonic::{Code, Response, Status};

use crate::access::Principal;
use crate::api::grpc::door::Method;
use crate::api::grpc::touched::Touched;
use crate::audit::{Decision, Event, NAMES_MAX, Place, Subject, Written};
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

/// Where a write stands, and the lease that it was granted; in the extensions of its answer.
#[derive(Debug, Clone, Copy)]
struct Stands(u64, Option<LeaseId>);

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
    response.extensions_mut().insert(Stands(revision, None));
    response
}

/// The same of a registration, under this lease.
pub(super) fn granted<A>(revision: u64, lease: LeaseId, answer: A) -> Response<A> {
    let mut response = Response::new(answer);
    response.extensions_mut().insert(Stands(revision, Some(lease)));
    response
}

/// What a line says of what a request touches. The end of a lease is that of the instances that it
/// keeps, as far as this node knows.
pub(super) fn subject(node: &Node, method: Method, touched: &Touched<'_>) -> Subject {
    let subject = touched.subject();
    let (Method::Deregister, Some(id)) = (method, touched.lease) else { return subject };
    let registry = node.applied().registry();
    let Some(lease) = registry.lease(id) else { return subject };
    of_instances(subject, lease.instances())
}

/// Names them, the first ones: with the namespace in front, where there are several.
fn of_instances<'a>(
    subject: Subject,
    mut instances: impl Iterator<Item = &'a InstanceKey>,
) -> Subject {
    let first: Vec<&InstanceKey> = instances.by_ref().take(NAMES_MAX).collect();
    let Some(namespace) = first.first().map(|key| &key.service.namespace) else { return subject };
    let of_one = first.iter().all(|key| key.service.namespace == *namespace);
    let name = |key: &&InstanceKey| match of_one {
        true => format!("{}/{}", key.service.name, key.id),
        false => format!("{}/{}/{}", key.service.namespace, key.service.name, key.id),
    };
    Subject {
        namespace: of_one.then(|| namespace.to_string()),
        names: first.iter().map(name).collect(),
        count: Some(first.len() + instances.count()),
        ..subject
    }
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
        let mut subject = about.map_or(subject, |About(subject)| subject.clone());
        if let Some(Stands(_, Some(lease))) = stands {
            subject.leases = vec![lease.0];
        }
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
            revision: stands.map(|Stands(revision, _)| *revision),
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
    use quorate_state::{InstanceId, Namespace, ServiceKey, ServiceName};

    use super::*;

    #[test]
    fn the_instances_of_a_lease_are_named_with_their_namespaces_where_these_differ() {
        let key = |namespace: &str, at: usize| {
            let namespace = Namespace::new("", namespace).unwrap();
            let service = ServiceKey { namespace, name: ServiceName::new("", "web").unwrap() };
            InstanceKey { service, id: InstanceId::new("", &format!("i{at}")).unwrap() }
        };
        let of = |keys: &[InstanceKey]| of_instances(Subject::default(), keys.iter());
        assert_eq!(of(&[]), Subject::default());
        let shop: Vec<_> = (0..12).map(|at| key("shop", at)).collect();
        let named = of(&shop);
        assert_eq!((named.namespace.as_deref(), named.count), (Some("shop"), Some(12)));
        assert_eq!((named.names.len(), named.names[0].as_str()), (NAMES_MAX, "web/i0"));
        let named = of(&[key("shop", 1), key("default", 2)]);
        assert_eq!((named.namespace, named.count), (None, Some(2)));
        assert_eq!(named.names, ["shop/web/i1", "default/web/i2"]);
    }

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
