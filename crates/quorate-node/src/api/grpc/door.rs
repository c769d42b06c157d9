//! The one way in for calls of clients. What holds for every call (its size, its deadline, its
//! caller, a name for it in the log) is done here, once; a handler gets a [`Call`] and answers it.

mod ahead;

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderValue;
use prost::Message;
use quorate_proto::{limits, trailers};
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};
use tracing::{Instrument, Span};

use crate::access::{self, Principal, Role};
use crate::api::grpc::arrived::Arrived;
use crate::api::grpc::codes::caller_gone;
pub(in crate::api) use crate::api::grpc::door::ahead::check_ahead;
pub(super) use crate::api::grpc::door::ahead::check_known;
pub(crate) use crate::api::grpc::door::ahead::{Open, is_unknown, open};
use crate::api::grpc::rights;
use crate::api::grpc::told::{self, Told};
use crate::audit::Subject;
use crate::config::Tunables;
use crate::error::CallError;
use crate::net::connections::Line;
use crate::node::Node;

/// What the transport lets through, bytes: more than a request may have, so that the answer can say
/// what is too large.
pub(crate) const TRANSPORT_MAX: usize = 4 * limits::REQUEST_BYTES;

/// No call may take longer, whatever deadline it names.
pub(in crate::api) const DEADLINE_MAX: Duration = Duration::from_secs(60);

/// A membership change or a snapshot without a deadline of its own: a learner may need a snapshot
/// first.
const LONG: Duration = Duration::from_secs(55);

/// A call is answered at least a tenth of its time before its caller gives up: the refusal has its
/// way to go, and a busy machine lets it wait. No more than this ...
const MARGIN_MAX: Duration = Duration::from_millis(500);
/// ... and no less than this, where that leaves the call two thirds of its time.
const MARGIN_MIN: Duration = Duration::from_millis(150);

/// In which header a caller says how long it waits (gRPC over HTTP/2, section Requests).
pub(in crate::api) const TIMEOUT: &str = "grpc-timeout";

/// The paths of our own services begin so.
const OWN: &str = "/quorate.v1.";
/// Its one call is a stream, in each version.
const REFLECTION: &str = "grpc.reflection.";

/// This much of the name that a caller gives its call stands in the log, bytes.
const REQUEST_ID_MAX: usize = 64;

const ANYBODY: Option<Role> = None;
const READ: Option<Role> = Some(Role::Read);
const REGISTER: Option<Role> = Some(Role::Register);
const OPERATOR: Option<Role> = Some(Role::Operator);
const ADMIN: Option<Role> = Some(Role::Admin);

macro_rules! methods {
    ($($service:literal: $($method:ident $name:literal $kind:ident $needed:ident,)*)*) => {
        /// Each call that the listener for clients takes, but health and reflection: those are open
        /// to all, as probes have no credentials and the contract is no secret.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(in crate::api) enum Method { $($($method,)*)* }

        impl Method {
            pub(super) const ALL: &[Self] = &[$($(Self::$method,)*)*];

            /// As it stands in the contract: service and method.
            pub(super) fn path(self) -> &'static str {
                match self { $($(Self::$method => concat!("quorate.v1.", $service, "/", $name),)*)* }
            }

            /// By which its calls are counted: its path, and whether the caller and the node
            /// send streams.
            pub(super) fn measured(self) -> (&'static str, (bool, bool)) {
                let sends = SEND_STREAMS.contains(&self);
                (self.path(), (sends, sends || self == Self::Backup))
            }

            fn kind(self) -> Kind {
                match self { $($(Self::$method => Kind::$kind,)*)* }
            }

            /// The role that it takes, for what its request touches; `None`: any identity.
            pub(super) fn needed(self) -> Option<Role> {
                match self { $($(Self::$method => $needed,)*)* }
            }
        }
    };
}

methods! {
    "Registry":
        Register "Register" Write REGISTER,
        Renew "Renew" Write REGISTER,
        RenewStream "RenewStream" Write REGISTER,
        Deregister "Deregister" Write REGISTER,
        Update "Update" Write REGISTER,
        Fetch "Fetch" Read READ,
        ListServices "ListServices" Read READ,
        ListDependents "ListDependents" Read READ,
        Watch "Watch" Read READ,
        ListMembers "ListMembers" Read ANYBODY,
    "Admin":
        Status "Status" Read ANYBODY,
        AddNode "AddNode" Operate ADMIN,
        RemoveNode "RemoveNode" Operate ADMIN,
        ReplaceNode "ReplaceNode" Operate ADMIN,
        TransferLeader "TransferLeader" Operate ADMIN,
        Upgrade "Upgrade" Operate ADMIN,
        TriggerSnapshot "TriggerSnapshot" Operate ADMIN,
        Backup "Backup" Operate ADMIN,
        SetOverride "SetOverride" Operate OPERATOR,
        ListOverrides "ListOverrides" Read OPERATOR,
        InspectService "InspectService" Read OPERATOR,
}

/// What a method is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    /// Of operators, and so rare that each stands in the log.
    Operate,
}

impl Method {
    /// Whether each call has a line in the audit log, and not only one that was refused for want of
    /// a right. Renewals change nothing, and come by the thousand.
    pub(super) fn is_audited(self) -> bool {
        !matches!(self, Self::Renew | Self::RenewStream) && self.kind() != Kind::Read
    }

    /// How long a call may take whose caller names no deadline.
    fn patience(self, tunables: &Tunables) -> Duration {
        match self {
            Self::AddNode | Self::RemoveNode | Self::ReplaceNode => LONG,
            Self::TriggerSnapshot | Self::Backup => LONG,
            _ => tunables.request_timeout(),
        }
    }
}

/// Who calls.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// The connection that the call came on.
    pub(super) line: Arc<Line>,
    authorization: Option<HeaderValue>,
    /// What the call goes by in logs, where that is kept.
    name: Option<Arc<str>>,
    /// Who that is.
    pub(super) principal: Arc<Principal>,
}

impl Caller {
    /// # Errors
    /// Nobody who is known.
    fn identify(node: &Node, line: Arc<Line>, metadata: &MetadataMap) -> Result<Self, Status> {
        let access = node.access();
        let authorization = match access.is_checked() {
            true => access::authorization(metadata.as_ref())?,
            false => None,
        };
        let principal = access.identify(line.certificate(), authorization)?;
        if access.is_checked() {
            Span::current().record("principal", principal.name());
        }
        let authorization = rights::kept(authorization);
        Ok(Self { line, authorization, name: None, principal })
    }

    /// Tells the audit log that something was refused which the call did not begin with.
    pub(super) fn refused(&self, node: &Node, method: Method, subject: Subject, why: &Status) {
        if node.audit().is_on() {
            let mut told = Told::new(method, subject, self.name.clone(), self.line.address());
            told.principal = Some(self.principal.clone());
            let _nobody_waits = told.tell::<()>(node, &Err(why.clone()));
        }
    }

    /// The same caller as of now, when rights may have changed since it came in.
    ///
    /// # Errors
    /// It is not known any more.
    pub(super) fn again(&self, node: &Node) -> Result<Self, Status> {
        let authorization = self.authorization.as_ref();
        let principal = node.access().identify(self.line.certificate(), authorization)?;
        Ok(Self { principal, ..self.clone() })
    }

    /// An answer to it whose bytes count as long as they are under way.
    ///
    /// # Errors
    /// Too many are.
    pub(super) fn counted<A: Message>(
        &self,
        node: &Node,
        deadline: Instant,
        answer: A,
    ) -> Result<Response<A>, CallError> {
        let mut reserved = node.answers().begin(&self.line, deadline)?;
        reserved.add(answer.encoded_len())?;
        let mut response = Response::new(answer);
        reserved.attach(response.extensions_mut());
        Ok(response)
    }
}

/// A call that has come in.
#[derive(Debug)]
pub(super) struct Call<T> {
    pub(super) message: T,
    /// When it has to be answered.
    pub(super) deadline: Instant,
    pub(super) caller: Caller,
}

/// Methods whose callers may send more than one message.
const SEND_STREAMS: [Method; 2] = [Method::RenewStream, Method::Watch];

/// Whether the caller of a path may send more than one message.
pub(super) fn sends_stream(path: &str) -> bool {
    let path = path.strip_prefix('/').unwrap_or(path);
    SEND_STREAMS.iter().any(|method| method.path() == path) || path.starts_with(REFLECTION)
}

/// Answers a call.
///
/// # Errors
/// Why it is not let in, or what its handler says.
pub(super) async fn answer<T, A, E, F>(
    node: &Node,
    method: Method,
    request: Request<T>,
    handle: impl FnOnce(Call<T>) -> F,
) -> Result<Response<A>, Status>
where
    T: Arrived,
    E: Into<Status>,
    F: Future<Output = Result<Response<A>, E>>,
{
    let since = Instant::now();
    node.meters().started(method as usize);
    let deadline = deadline(request.metadata(), method.patience(node.tunables()));
    let line = Line::of(request.extensions());
    let is_told = node.audit().is_on();
    let subject = is_told.then(|| told::subject(node, method, &request.get_ref().touched()));
    let name = subject.is_some().then(|| name_of(request.metadata()).unwrap_or_else(next_number));
    let span = span(method, request.metadata(), name.as_deref(), line.address());
    let told =
        subject.map(|subject| Box::new(Told::new(method, subject, name.clone(), line.address())));
    let mut telling = Telling { node, told };
    let answer = async {
        let mut caller = Caller::identify(node, line, request.metadata())?;
        if let Some(told) = &mut telling.told {
            told.principal = Some(caller.principal.clone());
            caller.name = name;
            if method.is_audited() {
                told.place = node.audit().reserve().map_err(CallError::from)?;
            }
        }
        let call = Call { message: request.into_inner(), deadline, caller };
        call.message.check_size()?;
        // What a stream is about comes with its first message, and is judged then.
        if node.access().is_checked() && method != Method::Watch {
            let touched = call.message.touched();
            rights::check(&call.caller.principal, method.needed(), &touched)?;
            if touched.lease.is_some() || touched.incarnation.is_some() {
                Box::pin(rights::check_lease(node, &call, &touched)).await?;
            }
        }
        handle(call).await.map_err(Into::into)
    };
    let answer = match span.is_disabled() {
        true => answer.await,
        false => {
            let answer = answer.instrument(span.clone()).await;
            span.in_scope(|| log(method, answer.as_ref().err()));
            answer
        }
    };
    let answer = match telling.told.take().and_then(|told| told.tell(node, &answer)) {
        Some(line) if answer.is_ok() => {
            let written = node.audit().written(line, deadline).await;
            written.map_err(CallError::from).map_err(Status::from).and(answer)
        }
        _ => answer,
    };
    let code = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
    node.meters().handled(method as usize, code, since.elapsed());
    answer
}

/// What is to be told of a call that is under way. Its caller may go away under it, and it may be
/// done nevertheless.
struct Telling<'a> {
    node: &'a Node,
    told: Option<Box<Told>>,
}

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        if let Some(told) = self.told.take() {
            let _nobody_waits = told.tell::<()>(self.node, &Err(caller_gone()));
        }
    }
}

/// What the log says of a call is in this: which one it is, by the name that its caller gave it or
/// a number of this process.
fn span(method: Method, metadata: &MetadataMap, name: Option<&str>, from: Option<IpAddr>) -> Span {
    macro_rules! span {
        ($level:ident) => {
            tracing::span!(
                tracing::Level::$level,
                "call",
                method = method.path(),
                id = tracing::field::Empty,
                from = tracing::field::Empty,
                principal = tracing::field::Empty
            )
        };
    }
    let span = match method.kind() {
        Kind::Operate => span!(INFO),
        Kind::Read | Kind::Write => span!(DEBUG),
    };
    if !span.is_disabled() {
        match name {
            Some(name) => span.record("id", name),
            None => span.record("id", &*name_of(metadata).unwrap_or_else(next_number)),
        };
        if let Some(from) = from {
            span.record("from", tracing::field::display(from));
        }
    }
    span
}

/// What its caller calls a call.
fn name_of(metadata: &MetadataMap) -> Option<Arc<str>> {
    let name = metadata.get(trailers::REQUEST_ID)?.to_str().ok()?;
    Some(name.get(..REQUEST_ID_MAX).unwrap_or(name).into())
}

/// What it goes by that has no name.
fn next_number() -> Arc<str> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed).to_string().into()
}

fn log(method: Method, refused: Option<&Status>) {
    match (refused, method.kind()) {
        (None, Kind::Operate) => tracing::info!("done"),
        (None, Kind::Read | Kind::Write) => tracing::debug!("done"),
        (Some(status), kind) => {
            let (code, message) = (status.code(), status.message());
            match kind {
                Kind::Operate => tracing::warn!(?code, message, "refused"),
                _ if code == Code::Internal => tracing::warn!(?code, message, "failed"),
                _ => tracing::debug!(?code, message, "refused"),
            }
        }
    }
}

/// When a call has to be answered: a little before the caller gives up, so that it learns why.
fn deadline(metadata: &MetadataMap, default: Duration) -> Instant {
    let given = metadata.get(TIMEOUT).and_then(|value| parse_timeout(value.to_str().ok()?));
    deadline_in(given.unwrap_or(default))
}

/// When a call has to be answered whose caller gives up after this time.
pub(in crate::api) fn deadline_in(timeout: Duration) -> Instant {
    let timeout = timeout.min(DEADLINE_MAX);
    let margin = (timeout / 10).clamp(MARGIN_MIN.min(timeout / 3), MARGIN_MAX);
    Instant::now() + (timeout - margin)
}

/// Up to 8 digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let unit_at = text.len().checked_sub(1)?;
    let (digits, unit) = text.split_at_checked(unit_at)?;
    if digits.len() > 8 {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3_600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod cost_tests;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn reads_grpc_timeouts() {
        for (text, expected) in [
            ("5S", Some(Duration::from_secs(5))),
            ("250m", Some(Duration::from_millis(250))),
            ("1000000u", Some(Duration::from_secs(1))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3_600))),
            ("", None),
            ("S", None),
            ("5", None),
            ("123456789S", None),
            ("5é", None),
        ] {
            assert_eq!(parse_timeout(text), expected, "{text:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_answered_before_its_caller_gives_up() {
        for (timeout_ms, within_ms) in
            [(30, 20), (300, 200), (600, 450), (2_000, 1_800), (10_000, 9_500), (99_000, 59_500)]
        {
            let deadline = deadline_in(Duration::from_millis(timeout_ms));
            assert_eq!(deadline - Instant::now(), Duration::from_millis(within_ms), "{timeout_ms}");
        }
    }

    #[test]
    fn each_call_of_the_contract_has_a_row() {
        let descriptors = FileDescriptorSet::decode(quorate_proto::FILE_DESCRIPTOR_SET).unwrap();
        let mut of_contract = BTreeSet::new();
        for file in descriptors.file.iter().filter(|file| file.package() == "quorate.v1") {
            for service in &file.service {
                let path = |method: &str| format!("quorate.v1.{}/{method}", service.name());
                of_contract.extend(service.method.iter().map(|method| {
                    let streams = (method.client_streaming(), method.server_streaming());
                    (path(method.name()), streams)
                }));
            }
        }
        let rows = Method::ALL.iter().map(|method| method.measured());
        let rows: BTreeSet<_> = rows.map(|(path, streams)| (path.to_owned(), streams)).collect();
        assert_eq!(rows, of_contract);
        assert_eq!(rows.len(), Method::ALL.len(), "each has one");
    }
}
