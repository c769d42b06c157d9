//! Whether a caller may do what it asks for: decided for the whole request before anything that it
//! names is looked up, but the instances of a lease, of which nothing is told.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use http::HeaderValue;
use quorate_state::{
    InstanceId, InstanceKey, LeaseId, Namespace, Op, Registry, Rejection, Reply, Scope, ServiceKey,
    ServiceName, Share, limits,
};
use tokio::time::{Instant, sleep};
use tonic::Status;

use crate::access::{Denied, Principal, Reach, Role};
use crate::api::grpc::arrived::Arrived;
use crate::api::grpc::door::{Call, Caller, Method};
use crate::api::grpc::told;
use crate::api::grpc::touched::{Touched, What};
use crate::audit::Subject;
use crate::error::NodeError;
use crate::node::requests::share_of;
use crate::node::{Consistency, Node};
use crate::wall;

/// The end of a credential is looked for so often at least: the wall clock that says so may jump.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Lets a request in, or says what its caller lacks. All of a batch, or nothing.
///
/// # Errors
/// PERMISSION_DENIED.
pub(super) fn check(
    principal: &Principal,
    needed: Option<Role>,
    touched: &Touched<'_>,
) -> Result<(), Status> {
    let Some(role) = needed else { return Ok(()) };
    let (now, namespace) = (wall::now(), touched.namespace());
    if principal.may_all(role, now) {
        return Ok(());
    }
    let may = |reach: Reach<'_>| match principal.may(role, reach, now) {
        true => Ok(()),
        false => Err(denied(principal, role, &format!(" for {reach}"))),
    };
    let service = |name| may(Reach::Service { namespace, name });
    match &touched.what {
        What::Nothing if principal.may_some(role, now) => Ok(()),
        What::Nothing => Err(denied(principal, role, "")),
        What::Cluster(_) => may(Reach::Cluster),
        What::Member(id) => may(Reach::Member(*id)),
        What::Instances(names) => names.iter().try_for_each(|(name, _)| service(name)),
        What::Services(names) => names.iter().try_for_each(|name| service(name)),
        What::Prefix(prefix) => may(Reach::Prefix { namespace, prefix }),
    }
}

/// Whether a caller may see how much the cluster holds, and how it works inside: those who look
/// after it, and those who may read all of it.
pub(super) fn sees_cluster(principal: &Principal) -> bool {
    let now = wall::now();
    principal.may_some(Role::Operator, now) || principal.may_all(Role::Read, now)
}

fn denied(principal: &Principal, role: Role, what: &str) -> Status {
    Denied { caller: principal.name().to_owned(), role, what: what.to_owned() }.into()
}

/// Whether the leases that a request works with are the caller's. A lease is worth what its holder
/// may do to the instances that it keeps: one that keeps others' is as good as one that is not
/// there, in what is answered, in what that takes, and in what it leaves in the log (nothing).
///
/// # Errors
/// There is no such lease, as far as the caller may know; the state of now cannot be read.
pub(super) async fn check_lease<T: Arrived>(
    node: &Node,
    call: &Call<T>,
    touched: &Touched<'_>,
) -> Result<(), Status> {
    let (principal, deadline) = (&call.caller.principal, call.deadline);
    if principal.may_all(Role::Register, wall::now()) {
        return Ok(());
    }
    let Some(id) = touched.lease else { return check_same_run(node, principal, touched) };
    // What is removed or joined must be what it keeps now.
    let (registry, _) = node.read(Consistency::Linearizable, 0, deadline).await?;
    if is_own(&registry, principal, id) {
        return Ok(());
    }
    // One that has been is nobody's for ever; one that has not may come to be another's.
    let is_dead = registry.lease(id).is_none() && id.0 <= registry.last_lease();
    let refusal = match repeated(node, &registry, call) {
        Some(Reply::Rejected(rejection)) => rejection,
        // The state machine answers as it did the first time, when the lease was there.
        Some(_) if is_dead => return Ok(()),
        _ => Rejection::UnknownLease(id),
    };
    let refusal = NodeError::Rejected(refusal).into();
    Err(if is_dead { refusal } else { told::not_theirs(refusal) })
}

/// What a write that has a name is answered where it is none to be done.
fn repeated<T: Arrived>(node: &Node, registry: &Registry, call: &Call<T>) -> Option<Reply> {
    let (mut op, id) = call.message.named_write()?;
    if let Op::Register(register) = &mut op {
        register.within = within(node, &call.caller);
    }
    registry.repeated(&node.named(&op, id, registry.clock())?)
}

/// What the caller may register, where that is not everything. The state machine looks at it again
/// when it applies the command: a lease may come to be between the check and that.
pub(super) fn within(node: &Node, caller: &Caller) -> Option<Vec<Scope>> {
    let (principal, now) = (&caller.principal, wall::now());
    if !node.access().is_checked() || principal.may_all(Role::Register, now) {
        return None;
    }
    // A namespace that cannot be is no instance's.
    let scope = |(namespace, prefix): (Option<&str>, &str)| {
        let namespace = namespace.map(|name| Namespace::new("namespace", name)).transpose().ok()?;
        Some(Scope { namespace, prefix: prefix.into() })
    };
    let scopes = principal.scopes(Role::Register, now).filter_map(scope);
    Some(scopes.take(limits::SCOPES).collect())
}

/// In whose share of what is remembered the caller's writes count: the principal's, or, where all
/// are one principal, the address's.
pub(super) fn share(node: &Node, caller: &Caller) -> Share {
    if node.access().is_checked() {
        return share_of(caller.principal.name().as_bytes());
    }
    match caller.line.address().map(|address| address.to_canonical()) {
        Some(IpAddr::V4(address)) => share_of(&address.octets()),
        // Whoever has one has all of its network.
        Some(IpAddr::V6(address)) => share_of(&address.octets()[..8]),
        None => share_of(b""),
    }
}

/// A registration of the run that holds an instance already joins the lease that it has, and sets
/// its TTL.
fn check_same_run(node: &Node, principal: &Principal, touched: &Touched<'_>) -> Result<(), Status> {
    let What::Instances(names) = &touched.what else { return Ok(()) };
    let Some(run) = touched.incarnation else { return Ok(()) };
    // What is too much, or no name, is refused by the handler.
    if names.len() > limits::INSTANCES_PER_CALL {
        return Ok(());
    }
    let Ok(namespace) = Namespace::new("", touched.namespace()) else { return Ok(()) };
    let registry = node.applied().registry();
    let mut own = BTreeSet::new();
    for (service, id) in names {
        let (name, id) = (ServiceName::new("", service), InstanceId::new("", id));
        let (Ok(name), Ok(id)) = (name, id) else { return Ok(()) };
        let key = InstanceKey { service: ServiceKey { namespace: namespace.clone(), name }, id };
        let held = registry.instance(&key);
        let same = held.filter(|held| held.incarnation == run);
        let Some(lease) = same.map(|held| held.lease) else { continue };
        if own.insert(lease) && !is_own(&registry, principal, lease) {
            let what = " for all that the lease of this run keeps";
            return Err(denied(principal, Role::Register, what));
        }
    }
    Ok(())
}

/// Whether the lease is there, and all that it keeps is the principal's to register. A lease may
/// keep many thousands: they are in order, so each service is looked at once.
fn is_own(registry: &Registry, principal: &Principal, id: LeaseId) -> bool {
    let now = wall::now();
    let Some(lease) = registry.lease(id) else { return false };
    let mut last = None;
    for InstanceKey { service, .. } in lease.instances() {
        if last.replace(service) == Some(service) {
            continue;
        }
        let (namespace, name) = (service.namespace.as_str(), service.name.as_str());
        if !principal.may(Role::Register, Reach::Service { namespace, name }, now) {
            return false;
        }
    }
    true
}

/// The leases among these that the caller may renew, and those that are unknown to it.
///
/// # Errors
/// The state of now cannot be read.
pub(super) async fn own_leases(
    node: &Node,
    caller: &Caller,
    mut leases: Vec<LeaseId>,
    deadline: Instant,
) -> Result<(Vec<LeaseId>, Vec<LeaseId>), NodeError> {
    let principal = &caller.principal;
    if !node.access().is_checked() || principal.may_all(Role::Register, wall::now()) {
        return Ok((leases, Vec::new()));
    }
    // Messages of one stream may name the same.
    leases.sort_unstable();
    leases.dedup();
    let registry = node.applied().registry();
    let split = |registry: &Registry, leases: Vec<LeaseId>| {
        leases.into_iter().partition::<Vec<_>, _>(|id| is_own(registry, principal, *id))
    };
    let (mut own, rest) = split(&registry, leases);
    if rest.is_empty() {
        return Ok((own, rest));
    }
    // This node may be behind. Foreign ones take the same way as those that are not there.
    let (registry, _) = node.read(Consistency::Linearizable, 0, deadline).await?;
    let (more, unknown) = split(&registry, rest);
    own.extend(more);
    let foreign: Vec<_> =
        unknown.iter().copied().filter(|id| registry.lease(*id).is_some()).collect();
    if let Some(first) = foreign.first() {
        let refusal = NodeError::Rejected(Rejection::UnknownLease(*first)).into();
        let subject = Subject::of_leases(foreign.iter().map(|id| id.0));
        caller.refused(node, Method::Renew, subject, &told::not_theirs(refusal));
    }
    Ok((own, unknown))
}

/// Waits until a caller that follows something loses its right to; why.
pub(super) async fn lost(
    node: &Node,
    caller: &Caller,
    method: Method,
    touched: &Touched<'_>,
) -> Status {
    let status = until_lost(node, caller, method, touched).await;
    caller.refused(node, method, touched.subject(), &status);
    status
}

async fn until_lost(node: &Node, caller: &Caller, method: Method, touched: &Touched<'_>) -> Status {
    let access = node.access();
    if !access.is_checked() {
        std::future::pending::<()>().await;
    }
    let mut changes = access.changes();
    loop {
        changes.mark_unchanged();
        let principal = match caller.again(node) {
            Ok(caller) => caller.principal,
            Err(status) => return status,
        };
        if let Err(status) = check(&principal, method.needed(), touched) {
            return status;
        }
        let now = wall::now();
        let ends_in = principal.next_end(now).map(|end| Duration::from_secs(end - now));
        tokio::select! {
            _ = changes.changed() => {}
            () = sleep(ends_in.unwrap_or(LOOK_AGAIN).min(LOOK_AGAIN)) => {}
        }
    }
}

/// What proved who calls, to be judged again; shown to nobody.
pub(super) fn kept(authorization: Option<&HeaderValue>) -> Option<HeaderValue> {
    let mut kept = authorization?.clone();
    kept.set_sensitive(true);
    Some(kept)
}
