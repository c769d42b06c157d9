//! Every conversion between the wire's types and ours, with the limits of a call. Knows no node and
//! no clock.

mod admin;
mod checks;
mod status;

use std::collections::{BTreeSet, HashSet};
use std::fmt::Display;

use quorate_proto::v1 as wire;
use quorate_state::{
    Change, Deregister, Event, Incarnation, Instance, InstanceId, InstanceKey, InstanceRef,
    InstanceSpec, Invalid, LeaseId, Load, Namespace, Op, Override, Register, RemoveReason,
    ServiceKey, ServiceName, SetOverride, Share, SpecParts, Status, Ttl, Update, limits,
};

pub(super) use self::status::{condition_to_wire, member_status, predecessors_to_wire};
use crate::api::grpc::touched::{Touched, Touches, What};
use crate::applied::hub::{Filter, Selection};
use crate::applied::shared_event::View;
use crate::applied::subscription::Part;
use crate::node::requests::GivenName;
use crate::node::{Consistency, MemberInfo};

pub(super) fn namespace(name: &str) -> Result<Namespace, Invalid> {
    if name.is_empty() { Ok(Namespace::default()) } else { Namespace::new("namespace", name) }
}

pub(super) fn service_key(namespace: &Namespace, name: &str) -> Result<ServiceKey, Invalid> {
    let name = ServiceName::new("service", name)?;
    Ok(ServiceKey { namespace: namespace.clone(), name })
}

pub(super) fn instance_key(
    field: impl Display + Copy,
    namespace: &Namespace,
    service: &str,
    id: &str,
) -> Result<InstanceKey, Invalid> {
    let name = ServiceName::new(format_args!("{field}service"), service)?;
    let service = ServiceKey { namespace: namespace.clone(), name };
    Ok(InstanceKey { service, id: InstanceId::new(format_args!("{field}id"), id)? })
}

/// The lease that a request names; 0 on the wire: none.
pub(super) fn lease_id(number: u64) -> Option<LeaseId> {
    (number != 0).then_some(LeaseId(number))
}

/// `share`: of the caller.
pub(super) fn request_id(id: Option<wire::RequestId>, share: Share) -> Option<GivenName> {
    let wire::RequestId { origin, number, done_below, age_ms } = id?;
    Some(GivenName { origin, number, done_below, age_ms, share })
}

pub(super) fn register(request: wire::RegisterRequest) -> Result<Register, Invalid> {
    let namespace = namespace(&request.namespace)?;
    count("instances", request.instances.len(), 1, limits::INSTANCES_PER_CALL)?;
    let ttl = match request.ttl_ms {
        0 => None,
        ms => Some(Ttl::from_ms(ms)?),
    };
    let mut seen = BTreeSet::new();
    let mut instances = Vec::with_capacity(request.instances.len());
    for (index, spec) in request.instances.into_iter().enumerate() {
        let field = format_args!("instances[{index}]");
        let key = instance_key(format_args!("{field}."), &namespace, &spec.service, &spec.id)?;
        if !seen.insert(key.clone()) {
            return Err(Invalid::text(field, &key.to_string(), "stands twice in the request"));
        }
        instances.push((key, instance_spec(field, spec)?));
    }
    let lease = lease_id(request.lease_id);
    let incarnation = incarnation(request.incarnation);
    Ok(Register { lease, ttl, incarnation, instances, within: None })
}

impl Touches for wire::RegisterRequest {
    fn touches(&self) -> Touched<'_> {
        let names = self.instances.iter().map(|spec| (spec.service.as_str(), spec.id.as_str()));
        let what = What::Instances(names.collect());
        let run = incarnation(self.incarnation);
        Touched::of(&self.namespace, what).under(lease_id(self.lease_id), run)
    }

    fn write(&self) -> Option<(Op, GivenName)> {
        let id = request_id(self.request_id, Share::default())?;
        Some((register(Self { request_id: None, ..self.clone() }).ok()?.into(), id))
    }
}

fn instance_spec(
    field: impl Display + Copy,
    spec: wire::InstanceSpec,
) -> Result<InstanceSpec, Invalid> {
    let requires = spec
        .requires
        .iter()
        .map(|name| ServiceName::new(format_args!("{field}.requires"), name))
        .collect::<Result<_, _>>()?;
    let parts = SpecParts {
        status: status(format_args!("{field}.status"), spec.status)?.unwrap_or_default(),
        endpoints: spec.endpoints,
        zone: spec.zone,
        version: spec.version,
        weight: spec.weight,
        metadata: spec.metadata,
        requires,
        load: spec.load,
        checks: checks::checks(field, spec.checks)?,
        tags: spec.tags.into_iter().collect(),
    };
    InstanceSpec::new(field, parts)
}

/// Each lease once, however often it is named: what is looked up for a lease may take long.
pub(super) fn renewals(request: &wire::RenewRequest) -> Result<Vec<LeaseId>, Invalid> {
    count("renewals", request.renewals.len(), 1, limits::LEASES_PER_CALL)?;
    let mut leases: Vec<_> = request.renewals.iter().map(|it| LeaseId(it.lease_id)).collect();
    if leases.len() > 1 {
        let mut seen = HashSet::with_capacity(leases.len());
        leases.retain(|lease| seen.insert(*lease));
    }
    Ok(leases)
}

/// Each lease is looked at by the handler: those that are not the caller's are unknown to it.
impl Touches for wire::RenewRequest {
    fn touches(&self) -> Touched<'_> {
        Touched::nothing()
    }
}

pub(super) fn deregister(request: wire::DeregisterRequest) -> Result<Deregister, Invalid> {
    let namespace = namespace(&request.namespace)?;
    let lease = lease_id(request.lease_id);
    if lease.is_none() == request.instances.is_empty() {
        let given = format!("{} and {} instances", request.lease_id, request.instances.len());
        let must = "exactly one of lease_id and instances must be set";
        return Err(Invalid::text("lease_id", &given, must));
    }
    if let Some(lease) = lease {
        return Ok(Deregister::Lease(lease));
    }
    count("instances", request.instances.len(), 1, limits::INSTANCES_PER_CALL)?;
    let refs = request.instances.into_iter().enumerate().map(|(index, instance)| {
        instance_ref(format_args!("instances[{index}]."), &namespace, &instance)
    });
    Ok(Deregister::Instances(refs.collect::<Result<_, _>>()?))
}

impl Touches for wire::DeregisterRequest {
    fn touches(&self) -> Touched<'_> {
        let what = match self.instances.as_slice() {
            [] => What::Nothing,
            instances => What::Instances(instances.iter().map(of_instance).collect()),
        };
        Touched::of(&self.namespace, what).under(lease_id(self.lease_id), None)
    }

    fn write(&self) -> Option<(Op, GivenName)> {
        let id = request_id(self.request_id, Share::default())?;
        Some((deregister(Self { request_id: None, ..self.clone() }).ok()?.into(), id))
    }
}

fn instance_ref(
    field: impl Display + Copy,
    namespace: &Namespace,
    instance: &wire::InstanceRef,
) -> Result<InstanceRef, Invalid> {
    let key = instance_key(field, namespace, &instance.service, &instance.id)?;
    Ok(InstanceRef { key, incarnation: incarnation(instance.incarnation) })
}

/// The one that a request names, if it does. How high it may be, `api/incarnations.rs` says.
fn incarnation(named: u64) -> Option<Incarnation> {
    (named != 0).then_some(Incarnation(named))
}

fn of_instance(instance: &wire::InstanceRef) -> (&str, &str) {
    (&instance.service, &instance.id)
}

pub(super) fn update(request: wire::UpdateRequest) -> Result<Update, Invalid> {
    let namespace = namespace(&request.namespace)?;
    let instance = request.instance.unwrap_or_default();
    let update = Update {
        target: instance_ref("instance.", &namespace, &instance)?,
        status: status("status", request.status)?,
        weight: request.weight,
        metadata: request.metadata.map(|metadata| metadata.entries),
        load: request.load.map(|load| Load::new("load", load)).transpose()?,
    };
    update.check()
}

impl Touches for wire::UpdateRequest {
    fn touches(&self) -> Touched<'_> {
        let instance = self.instance.as_ref().map(of_instance);
        Touched::of(&self.namespace, What::Instances(vec![instance.unwrap_or_default()]))
    }
}

pub(super) fn set_override(request: wire::SetOverrideRequest) -> Result<SetOverride, Invalid> {
    let namespace = namespace(&request.namespace)?;
    let key = instance_key("", &namespace, &request.service, &request.id)?;
    let value = match request.r#override {
        None => None,
        Some(value) => {
            let status = status("override.status", value.status)?;
            Some(Override::new(status, value.weight, value.reason)?)
        }
    };
    Ok(SetOverride { key, value })
}

impl Touches for wire::SetOverrideRequest {
    fn touches(&self) -> Touched<'_> {
        Touched::of(&self.namespace, What::Instances(vec![(&self.service, &self.id)]))
    }
}

pub(super) fn fetch_filter(request: &wire::FetchRequest) -> Result<Filter, Invalid> {
    let wire::FetchRequest { namespace, services, prefix, statuses, tags, zones, .. } = request;
    let (statuses, tags) = (statuses_from_wire(statuses)?, tags_from_wire(tags)?);
    let zones = zones_from_wire(zones)?;
    Ok(Filter { statuses, tags, zones, ..services_filter(namespace, services, prefix)? })
}

impl Touches for wire::FetchRequest {
    fn touches(&self) -> Touched<'_> {
        Touched::of(&self.namespace, selected(&self.services, &self.prefix))
    }
}

pub(super) fn watch_filter(request: &wire::WatchSubscribe) -> Result<Filter, Invalid> {
    let wire::WatchSubscribe { namespace, services, prefix, statuses, tags, zones, .. } = request;
    let (statuses, tags) = (statuses_from_wire(statuses)?, tags_from_wire(tags)?);
    let zones = zones_from_wire(zones)?;
    Ok(Filter { statuses, tags, zones, ..services_filter(namespace, services, prefix)? })
}

impl Touches for wire::WatchSubscribe {
    fn touches(&self) -> Touched<'_> {
        Touched::of(&self.namespace, selected(&self.services, &self.prefix))
    }
}

/// Statuses that a request names, at most: each that there is, and some to come.
const STATUSES_MAX: usize = 16;

fn statuses_from_wire(statuses: &[i32]) -> Result<BTreeSet<Status>, Invalid> {
    count("statuses", statuses.len(), 0, STATUSES_MAX)?;
    statuses.iter().filter_map(|value| status("statuses", *value).transpose()).collect()
}

fn tags_from_wire(tags: &[String]) -> Result<BTreeSet<String>, Invalid> {
    count("tags", tags.len(), 0, limits::TAGS)?;
    let checked = |tag: &String| InstanceSpec::check_tag("tags", tag).map(|()| tag.clone());
    tags.iter().map(checked).collect()
}

/// Zones that a request names, at most.
const ZONES_MAX: usize = 32;

fn zones_from_wire(zones: &[String]) -> Result<BTreeSet<String>, Invalid> {
    count("zones", zones.len(), 0, ZONES_MAX)?;
    // As a service's name is.
    let checked = |zone: &String| ServiceName::new("zones", zone).map(|_| zone.clone());
    zones.iter().map(checked).collect()
}

/// Every instance of the services that are named, or of all with the prefix.
fn services_filter(
    namespace_name: &str,
    services: &[String],
    prefix: &str,
) -> Result<Filter, Invalid> {
    let namespace = namespace(namespace_name)?;
    count("services", services.len(), 0, limits::INSTANCES_PER_CALL)?;
    // Used or not: it stays with what it came with.
    let prefix = checked_prefix(prefix)?;
    let selection = if services.is_empty() {
        Selection::Prefix(prefix)
    } else {
        let names = services.iter().map(|name| ServiceName::new("services", name));
        Selection::Services(names.collect::<Result<_, _>>()?)
    };
    Ok(Filter::all_of(namespace, selection))
}

/// Exact names, or, without any, a prefix.
fn selected<'a>(services: &'a [String], prefix: &'a str) -> What<'a> {
    match services {
        [] => What::Prefix(prefix),
        names => What::Services(names.iter().map(String::as_str).collect()),
    }
}

pub(super) fn checked_prefix(prefix: &str) -> Result<String, Invalid> {
    if prefix.len() > limits::NAME_BYTES {
        let limit = format!("is {} bytes long, at most {}", prefix.len(), limits::NAME_BYTES);
        return Err(Invalid::text("prefix", prefix, limit));
    }
    let may_begin = prefix.is_empty() || prefix.starts_with(|c: char| c.is_ascii_alphanumeric());
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !may_begin || !prefix.chars().all(allowed) {
        return Err(Invalid::text("prefix", prefix, "no name can begin so"));
    }
    Ok(prefix.to_owned())
}

impl Touches for wire::ListServicesRequest {
    fn touches(&self) -> Touched<'_> {
        Touched::of(&self.namespace, What::Prefix(&self.prefix))
    }
}

/// Its answer may have instances of any service of the namespace, and a list that leaves some out
/// would look like a whole one.
impl Touches for wire::ListDependentsRequest {
    fn touches(&self) -> Touched<'_> {
        Touched::of(&self.namespace, What::Prefix(""))
    }
}

pub(super) fn consistency(value: i32) -> Result<Consistency, Invalid> {
    match wire::Consistency::try_from(value) {
        Ok(wire::Consistency::Unspecified | wire::Consistency::Linearizable) => {
            Ok(Consistency::Linearizable)
        }
        Ok(wire::Consistency::Local) => Ok(Consistency::Local),
        Err(_) => Err(Invalid::number("consistency", value, "is no known value")),
    }
}

fn status(field: impl Display + Copy, value: i32) -> Result<Option<Status>, Invalid> {
    use wire::InstanceStatus as Wire;
    match Wire::try_from(value) {
        Ok(Wire::Unspecified) => Ok(None),
        Ok(Wire::Starting) => Ok(Some(Status::Starting)),
        Ok(Wire::Up) => Ok(Some(Status::Up)),
        Ok(Wire::Draining) => Ok(Some(Status::Draining)),
        Ok(Wire::OutOfService) => Ok(Some(Status::OutOfService)),
        Err(_) => Err(Invalid::number(field, value, "is no known status")),
    }
}

fn status_to_wire(status: Status) -> i32 {
    let status = match status {
        Status::Starting => wire::InstanceStatus::Starting,
        Status::Up => wire::InstanceStatus::Up,
        Status::Draining => wire::InstanceStatus::Draining,
        Status::OutOfService => wire::InstanceStatus::OutOfService,
    };
    status.into()
}

fn count(
    field: impl Display + Copy,
    found: usize,
    least: usize,
    most: usize,
) -> Result<(), Invalid> {
    if (least..=most).contains(&found) {
        return Ok(());
    }
    Err(Invalid::number(field, found, format!("must be {least} to {most} in one call")))
}

pub(super) fn instance_to_wire(instance: &Instance) -> wire::Instance {
    let Instance { key, spec, .. } = instance;
    wire::Instance {
        namespace: key.service.namespace.to_string(),
        service: key.service.name.to_string(),
        id: key.id.to_string(),
        endpoints: spec.endpoints().to_map(),
        zone: spec.zone().to_owned(),
        version: spec.version().to_owned(),
        weight: instance.weight(),
        status: status_to_wire(instance.status()),
        metadata: spec.metadata().to_map(),
        requires: spec.requires().map(|name| name.to_string()).collect(),
        incarnation: instance.incarnation.0,
        lease_id: instance.lease.0,
        create_revision: instance.created.0,
        modify_revision: instance.modified.0,
        r#override: instance.overridden.as_deref().map(override_to_wire),
        load: spec.load().get(),
        checks: checks::checks_to_wire(instance),
        health: checks::health_to_wire(instance),
        health_reason: instance.health_reason().to_owned(),
        tags: spec.tags().map(str::to_owned).collect(),
    }
}

pub(super) fn override_to_wire(value: &Override) -> wire::InstanceOverride {
    wire::InstanceOverride {
        status: value.status.map_or(0, status_to_wire),
        weight: value.weight,
        reason: value.reason.clone(),
    }
}

pub(super) fn service_to_wire(part: &Part) -> wire::Service {
    wire::Service {
        namespace: part.key.namespace.to_string(),
        name: part.key.name.to_string(),
        known: part.revision.is_some(),
        revision: part.revision.unwrap_or_default().0,
        instances: part.instances.iter().map(|instance| instance_to_wire(instance)).collect(),
    }
}

/// The change in this view.
pub(super) fn change_to_wire(event: &Event, view: View) -> wire::Change {
    let kind = match view {
        View::Added => wire::ChangeKind::Added,
        View::Modified => wire::ChangeKind::Modified,
        View::Removed => wire::ChangeKind::Removed,
    };
    let instance = event.after().or(event.before());
    let reason = match &event.change {
        _ if view != View::Removed => wire::RemoveReason::Unspecified,
        Change::Removed { reason: RemoveReason::Deregistered, .. } => {
            wire::RemoveReason::Deregistered
        }
        Change::Removed { reason: RemoveReason::Expired, .. } => wire::RemoveReason::Expired,
        Change::Added { .. } | Change::Modified { .. } => wire::RemoveReason::Filtered,
    };
    wire::Change {
        revision: event.revision.0,
        kind: kind.into(),
        instance: instance.map(|instance| instance_to_wire(instance)),
        reason: reason.into(),
    }
}

pub(super) fn member_to_wire(info: &MemberInfo) -> wire::Member {
    let role = if info.voter { wire::MemberRole::Voter } else { wire::MemberRole::Learner };
    wire::Member {
        id: info.id.get(),
        client_address: info.member.client_address.clone(),
        peer_address: info.member.peer_address.clone(),
        role: role.into(),
    }
}
