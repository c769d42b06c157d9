//! What the registry keeps, as JSON shows it: the names of the contract; ids, revisions and
//! incarnations as texts, as JavaScript would round them; clusters' ids and state hashes in
//! hexadecimal digits.

use std::collections::BTreeMap;

use quorate_proto::v1::{
    Change, ChangeKind, Health, HealthCheck, Instance, InstanceOverride, InstanceStatus, Member,
    MemberRole, RemoveReason, ResponseHeader, Service, ServiceSummary, health_check,
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::http::schemas;

/// Where an answer comes from, and how fresh it is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Header {
    #[schema(schema_with = schemas::cluster_id)]
    cluster_id: String,
    #[schema(schema_with = schemas::digits)]
    node_id: String,
    term: u64,
    /// "0": none.
    #[schema(schema_with = schemas::digits)]
    leader_id: String,
    leader_address: String,
    #[schema(schema_with = schemas::digits)]
    revision: String,
    /// `null`: nobody knows.
    pub(super) age_ms: Option<u64>,
}

impl Header {
    pub(super) fn of(header: Option<ResponseHeader>) -> Self {
        let header = header.unwrap_or_default();
        Self {
            cluster_id: hex(header.cluster_id),
            node_id: header.node_id.to_string(),
            term: header.term,
            leader_id: header.leader_id.to_string(),
            leader_address: header.leader_address,
            revision: header.revision.to_string(),
            age_ms: known(header.age_ms),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Instance)]
pub(super) struct ShownInstance {
    namespace: String,
    service: String,
    pub(super) id: String,
    endpoints: BTreeMap<String, String>,
    zone: String,
    version: String,
    /// Effective: an operator's, where there is an override.
    weight: u32,
    /// Effective, too.
    #[schema(schema_with = schemas::shown_status)]
    status: &'static str,
    metadata: BTreeMap<String, String>,
    tags: Vec<String>,
    requires: Vec<String>,
    load: u32,
    #[schema(schema_with = schemas::digits)]
    incarnation: String,
    #[schema(schema_with = schemas::digits)]
    lease_id: String,
    #[schema(schema_with = schemas::digits)]
    create_revision: String,
    #[schema(schema_with = schemas::digits)]
    modify_revision: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#override: Option<ShownOverride>,
    /// `null`: it has no checks.
    #[schema(schema_with = schemas::health)]
    health: Option<&'static str>,
    health_reason: String,
    checks: Vec<ShownCheck>,
}

impl From<Instance> for ShownInstance {
    fn from(instance: Instance) -> Self {
        Self {
            status: status(instance.status()),
            health: match instance.health() {
                Health::Unspecified => None,
                Health::Unknown => Some("UNKNOWN"),
                Health::Passing => Some("PASSING"),
                Health::Critical => Some("CRITICAL"),
            },
            namespace: instance.namespace,
            service: instance.service,
            id: instance.id,
            endpoints: instance.endpoints,
            zone: instance.zone,
            version: instance.version,
            weight: instance.weight,
            metadata: instance.metadata,
            tags: instance.tags,
            requires: instance.requires,
            load: instance.load,
            incarnation: instance.incarnation.to_string(),
            lease_id: instance.lease_id.to_string(),
            create_revision: instance.create_revision.to_string(),
            modify_revision: instance.modify_revision.to_string(),
            r#override: instance.r#override.map(ShownOverride::from),
            health_reason: instance.health_reason,
            checks: instance.checks.into_iter().map(ShownCheck::from).collect(),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Override)]
pub(super) struct ShownOverride {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schemas::status)]
    status: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<u32>,
    reason: String,
}

impl From<InstanceOverride> for ShownOverride {
    fn from(decision: InstanceOverride) -> Self {
        let is_set = decision.status() != InstanceStatus::Unspecified;
        let status = is_set.then(|| status(decision.status()));
        Self { status, weight: decision.weight, reason: decision.reason }
    }
}

/// One of `http`, `tcp` and `grpc` is there.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Check)]
struct ShownCheck {
    #[serde(skip_serializing_if = "Option::is_none")]
    http: Option<HttpCheck>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tcp: Option<TcpCheck>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc: Option<GrpcCheck>,
    endpoint: String,
    interval_ms: u32,
    timeout_ms: u32,
    failures_before_critical: u32,
    successes_before_passing: u32,
}

#[derive(Debug, Serialize, ToSchema)]
struct HttpCheck {
    path: String,
}

#[derive(Debug, Serialize, ToSchema)]
struct TcpCheck {}

#[derive(Debug, Serialize, ToSchema)]
struct GrpcCheck {
    service: String,
}

impl From<HealthCheck> for ShownCheck {
    fn from(check: HealthCheck) -> Self {
        let (mut http, mut tcp, mut grpc) = (None, None, None);
        match check.kind {
            Some(health_check::Kind::Http(kind)) => http = Some(HttpCheck { path: kind.path }),
            Some(health_check::Kind::Tcp(_)) => tcp = Some(TcpCheck {}),
            Some(health_check::Kind::Grpc(kind)) => {
                grpc = Some(GrpcCheck { service: kind.service });
            }
            None => {}
        }
        Self {
            http,
            tcp,
            grpc,
            endpoint: check.endpoint,
            interval_ms: check.interval_ms,
            timeout_ms: check.timeout_ms,
            failures_before_critical: check.failures_before_critical,
            successes_before_passing: check.successes_before_passing,
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Service)]
pub(super) struct ShownService {
    namespace: String,
    pub(super) name: String,
    known: bool,
    #[schema(schema_with = schemas::digits)]
    revision: String,
    pub(super) instances: Vec<ShownInstance>,
}

impl From<Service> for ShownService {
    fn from(service: Service) -> Self {
        Self {
            namespace: service.namespace,
            name: service.name,
            known: service.known,
            revision: service.revision.to_string(),
            instances: service.instances.into_iter().map(ShownInstance::from).collect(),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ServiceSummary)]
pub(super) struct ShownSummary {
    name: String,
    #[schema(schema_with = schemas::digits)]
    revision: String,
    instances: u32,
    up: u32,
    usable: u32,
}

impl From<ServiceSummary> for ShownSummary {
    fn from(summary: ServiceSummary) -> Self {
        let ServiceSummary { name, revision, instances, up, usable } = summary;
        Self { name, revision: revision.to_string(), instances, up, usable }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Member)]
pub(super) struct ShownMember {
    id: String,
    client_address: String,
    peer_address: String,
    #[schema(schema_with = schemas::role)]
    role: &'static str,
}

impl From<Member> for ShownMember {
    fn from(member: Member) -> Self {
        Self {
            id: member.id.to_string(),
            role: match member.role() {
                MemberRole::Unspecified => "unknown",
                MemberRole::Voter => "voter",
                MemberRole::Learner => "learner",
            },
            client_address: member.client_address,
            peer_address: member.peer_address,
        }
    }
}

/// What became of an instance.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Change)]
pub(super) struct ShownChange {
    #[schema(schema_with = schemas::digits)]
    revision: String,
    /// `added`, `modified` or `removed`.
    #[schema(schema_with = schemas::kind)]
    kind: &'static str,
    /// Why it was removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schemas::removal)]
    reason: Option<&'static str>,
    instance: Option<ShownInstance>,
}

impl From<Change> for ShownChange {
    fn from(change: Change) -> Self {
        Self {
            revision: change.revision.to_string(),
            kind: match change.kind() {
                ChangeKind::Unspecified => "unknown",
                ChangeKind::Added => "added",
                ChangeKind::Modified => "modified",
                ChangeKind::Removed => "removed",
            },
            reason: match change.reason() {
                RemoveReason::Unspecified => None,
                RemoveReason::Deregistered => Some("deregistered"),
                RemoveReason::Expired => Some("expired"),
                RemoveReason::Filtered => Some("filtered"),
            },
            instance: change.instance.map(ShownInstance::from),
        }
    }
}

fn status(status: InstanceStatus) -> &'static str {
    match status {
        InstanceStatus::Unspecified => "UNKNOWN",
        InstanceStatus::Starting => "STARTING",
        InstanceStatus::Up => "UP",
        InstanceStatus::Draining => "DRAINING",
        InstanceStatus::OutOfService => "OUT_OF_SERVICE",
    }
}

/// A cluster's id or a hash.
pub(super) fn hex(number: u64) -> String {
    format!("{number:016x}")
}

/// `CLUSTER-REVISION`.
pub(super) fn position(cluster_id: u64, revision: u64) -> String {
    format!("{}-{revision}", hex(cluster_id))
}

/// The highest number says that there is none.
pub(super) fn known(number: u64) -> Option<u64> {
    (number != u64::MAX).then_some(number)
}
