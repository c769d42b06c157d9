//! Wire types as JSON, and the words that tables share with it. Numbers that JSON readers would
//! round (cluster ids, state hashes) are hexadecimal texts.

use quorate_client::{
    Condition, Member, MemberRole, MemberStatus, NodeState, OverriddenInstance, RemoveReason,
    ResponseHeader, Service, ServiceSummary, Standing, WritesRefused,
};
use quorate_proto::v1::Predecessor;
use serde_json::{Value, json};

use crate::instance;
pub(crate) use crate::instance::{health, status};

pub(crate) fn overridden(found: &OverriddenInstance) -> Value {
    let decision = found.r#override.clone().unwrap_or_default();
    json!({
        "service": found.service,
        "id": found.id,
        "registered": found.registered,
        "override": instance::r#override(&decision),
    })
}

pub(crate) fn service(service: &Service) -> Value {
    json!({
        "namespace": service.namespace,
        "name": service.name,
        "known": service.known,
        "revision": service.revision,
        "instances": service.instances.iter().map(instance::json).collect::<Vec<_>>(),
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
        "level_min": status.level_min,
        "level_max": status.level_max,
        "condition": status.condition.as_ref().map(condition),
    })
}

pub(crate) fn condition(condition: &Condition) -> Value {
    json!({
        "standing": standing(condition.standing()),
        "reason": condition.reason,
        "clock_held_ms": condition.clock_held_ms,
        "snapshot_written_ms": condition.snapshot_written_ms,
        "backup_age_ms": condition.backup_age_ms,
        "certificate_ends_in_s": condition.certificate_ends_in_s,
        "files_refused": condition.files_refused,
        "disk_reserve_bytes": condition.disk_reserve_bytes,
        "open_listeners": condition.open_listeners,
        "counted_ms": condition.counted_ms,
        "syncs": condition.syncs,
        // Longer than a second: there is no number for that.
        "sync_p99_us": (condition.sync_p99_us != u64::MAX).then_some(condition.sync_p99_us),
        "watch_resets": condition.watch_resets,
        "probes_refused": condition.probes_refused,
        "connections": condition.connections,
        "busiest_address": condition.busiest_address,
        "busiest_connections": condition.busiest_connections,
        "busiest_calls": condition.busiest_calls,
        "connections_per_address_max": condition.connections_per_address_max,
        "open_files": condition.open_files,
        "writes_refused": writes_refused(condition.writes_refused()),
        "writes_refused_why": condition.writes_refused_why,
        "states_differ": condition.states_differ,
    })
}

/// `None`: none is.
fn writes_refused(refused: WritesRefused) -> Option<&'static str> {
    match refused {
        WritesRefused::Unspecified => None,
        WritesRefused::DiskFloor => Some("disk_floor"),
        WritesRefused::Audit => Some("audit"),
        WritesRefused::Stalled => Some("stalled"),
        WritesRefused::DiskFull => Some("disk_full"),
        WritesRefused::StateFull => Some("state_full"),
    }
}

pub(crate) fn predecessor(before: &Predecessor) -> Value {
    json!({
        "cluster_id": hex(before.cluster_id),
        "taken_over_ms": before.taken_over_ms,
    })
}

pub(crate) fn standing(standing: Standing) -> &'static str {
    match standing {
        Standing::Unspecified => "unknown",
        Standing::Member => "member",
        Standing::Waiting => "waiting",
        Standing::Joining => "joining",
        Standing::Removed => "removed",
        Standing::CutOff => "cut off",
        Standing::Stopping => "stopping",
    }
}

pub(crate) fn hex(number: u64) -> String {
    format!("{number:016x}")
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
