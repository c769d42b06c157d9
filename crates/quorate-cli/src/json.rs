//! Wire types as JSON, and the words that tables share with it. Numbers that JSON readers would round (cluster ids, state
//! hashes) are hexadecimal texts.

use quorate_client::{
    Health, Instance, InstanceOverride, InstanceStatus, Member, MemberRole, MemberStatus,
    NodeState, OverriddenInstance, RemoveReason, ResponseHeader, Service, ServiceSummary,
};
use quorate_proto::v1;
use quorate_proto::v1::health_check::Kind;
use serde_json::{Value, json};

pub(crate) fn instance(instance: &Instance) -> Value {
    let mut value = json!({
        "namespace": instance.namespace,
        "service": instance.service,
        "id": instance.id,
        "endpoints": instance.endpoints,
        "zone": instance.zone,
        "version": instance.version,
        "weight": instance.weight,
        "status": status(instance.status()),
        "metadata": instance.metadata,
        "requires": instance.requires,
        "incarnation": instance.incarnation,
        "lease_id": instance.lease_id,
        "create_revision": instance.create_revision,
        "modify_revision": instance.modify_revision,
    });
    if instance.load > 0 {
        value["load"] = json!(instance.load);
    }
    if let Some(decision) = &instance.r#override {
        value["override"] = r#override(decision);
    }
    if !instance.checks.is_empty() {
        value["health"] = json!(health(instance));
        if !instance.health_reason.is_empty() {
            value["health_reason"] = json!(instance.health_reason);
        }
        value["checks"] = instance.checks.iter().map(check).collect();
    }
    value
}

fn check(check: &v1::HealthCheck) -> Value {
    let kind = match &check.kind {
        Some(Kind::Http(http)) => json!({ "http": { "path": http.path } }),
        Some(Kind::Tcp(_)) => json!({ "tcp": {} }),
        Some(Kind::Grpc(grpc)) => json!({ "grpc": { "service": grpc.service } }),
        // Of a newer registry.
        None => json!({}),
    };
    let mut value = json!({
        "endpoint": check.endpoint,
        "interval_ms": check.interval_ms,
        "timeout_ms": check.timeout_ms,
        "failures_before_critical": check.failures_before_critical,
        "successes_before_passing": check.successes_before_passing,
    });
    for (name, of) in kind.as_object().into_iter().flatten() {
        value[name] = of.clone();
    }
    value
}

/// What its health checks say; empty without any.
pub(crate) fn health(instance: &Instance) -> &'static str {
    match instance.health() {
        Health::Unspecified => "",
        Health::Unknown => "UNKNOWN",
        Health::Passing => "PASSING",
        Health::Critical => "CRITICAL",
    }
}

fn r#override(decision: &InstanceOverride) -> Value {
    let mut value = json!({ "reason": decision.reason });
    if decision.status() != InstanceStatus::Unspecified {
        value["status"] = json!(status(decision.status()));
    }
    if let Some(weight) = decision.weight {
        value["weight"] = json!(weight);
    }
    value
}

pub(crate) fn overridden(instance: &OverriddenInstance) -> Value {
    let decision = instance.r#override.clone().unwrap_or_default();
    json!({
        "service": instance.service,
        "id": instance.id,
        "registered": instance.registered,
        "override": r#override(&decision),
    })
}

pub(crate) fn service(service: &Service) -> Value {
    json!({
        "namespace": service.namespace,
        "name": service.name,
        "known": service.known,
        "revision": service.revision,
        "instances": service.instances.iter().map(instance).collect::<Vec<_>>(),
    })
}

pub(crate) fn summary(summary: &ServiceSummary) -> Value {
    json!({
        "name": summary.name,
        "revision": summary.revision,
        "instances": summary.instances,
        "up": summary.up,
        "usable": summary.usable,
    })
}

pub(crate) fn header(header: &ResponseHeader) -> Value {
    json!({
        "cluster_id": hex(header.cluster_id),
        "node_id": header.node_id,
        "term": header.term,
        "leader_id": header.leader_id,
        "leader_address": header.leader_address,
        "revision": header.revision,
        // Never heard from a leader: there is no number for that.
        "age_ms": (header.age_ms != u64::MAX).then_some(header.age_ms),
    })
}

pub(crate) fn member(member: &Member) -> Value {
    json!({
        "id": member.id,
        "client_address": member.client_address,
        "peer_address": member.peer_address,
        "role": role(member.role()),
    })
}

pub(crate) fn member_status(status: &MemberStatus) -> Value {
    let known = status.member.clone().unwrap_or_default();
    if !status.reachable {
        return json!({ "member": member(&known), "reachable": false, "error": status.error });
    }
    json!({
        "member": member(&known),
        "reachable": true,
        "state": state(status.state()),
        "term": status.term,
        "last_log_index": status.last_log_index,
        "applied_index": status.applied_index,
        "lag": status.lag,
        "revision": status.revision,
        "state_hash": hex(status.state_hash),
        "state_hash_index": status.state_hash_index,
        "snapshot_index": status.snapshot_index,
        "purged_index": status.purged_index,
        "disk_free_bytes": status.disk_free_bytes,
        "version": status.version,
        "uptime_ms": status.uptime_ms,
        "probes_made": status.probes_made,
        "probes_refused": status.probes_refused,
        "health_checks": status.health_checks,
        "recovering": status.recovering,
        "disk_low": status.disk_low,
    })
}

pub(crate) fn hex(number: u64) -> String {
    format!("{number:016x}")
}

pub(crate) fn status(status: InstanceStatus) -> &'static str {
    match status {
        InstanceStatus::Unspecified => "UNKNOWN",
        InstanceStatus::Starting => "STARTING",
        InstanceStatus::Up => "UP",
        InstanceStatus::Draining => "DRAINING",
        InstanceStatus::OutOfService => "OUT_OF_SERVICE",
    }
}

pub(crate) fn role(role: MemberRole) -> &'static str {
    match role {
        MemberRole::Unspecified => "unknown",
        MemberRole::Voter => "voter",
        MemberRole::Learner => "learner",
    }
}

pub(crate) fn state(state: NodeState) -> &'static str {
    match state {
        NodeState::Unspecified => "unknown",
        NodeState::Leader => "leader",
        NodeState::Follower => "follower",
        NodeState::Candidate => "candidate",
        NodeState::Learner => "learner",
        NodeState::ShuttingDown => "stopping",
    }
}

pub(crate) fn reason(reason: RemoveReason) -> &'static str {
    match reason {
        RemoveReason::Unspecified => "unknown",
        RemoveReason::Deregistered => "deregistered",
        RemoveReason::Expired => "expired",
        RemoveReason::Filtered => "filtered",
    }
}
