//! What nodes say of themselves, for the wire.

use quorate_proto::v1 as wire;
use quorate_proto::v1::{MemberStatus, NodeState};
use quorate_state::Predecessor;

use super::member_to_wire;
use crate::node::MemberInfo;
use crate::node::condition::{Condition, Refusal, Standing};
use crate::node::status::{RaftState, Report};

pub(in crate::api::grpc) fn member_status(
    member: &MemberInfo,
    report: &Result<Report, String>,
    furthest: u64,
) -> MemberStatus {
    let member = Some(member_to_wire(member));
    let (status, condition) = match report {
        Ok(Report { status, condition }) => (status, condition),
        Err(error) => {
            return MemberStatus { member, error: error.clone(), ..MemberStatus::default() };
        }
    };
    MemberStatus {
        member,
        reachable: true,
        error: String::new(),
        state: node_state(status.state()).into(),
        term: status.term,
        last_log_index: status.last_log_index,
        applied_index: status.applied_index,
        lag: furthest.saturating_sub(status.applied_index),
        revision: status.revision,
        state_hash: status.state_hash,
        state_hash_index: status.state_hash_index,
        snapshot_index: status.snapshot_index,
        purged_index: status.purged_index,
        disk_free_bytes: status.disk_free_bytes,
        version: status.version.clone(),
        uptime_ms: status.uptime_ms,
        probes_made: status.probes_made,
        probes_refused: status.probes_refused,
        health_checks: status.health_checks,
        recovering: status.recovering.clone(),
        disk_low: status.disk_low,
        condition: Some(condition_to_wire(condition)),
        level_min: status.level_min,
        level_max: status.level_max,
    }
}

pub(in crate::api::grpc) fn condition_to_wire(condition: &Condition) -> wire::Condition {
    let condition = condition.clone();
    wire::Condition {
        standing: match condition.standing() {
            Standing::Unknown => wire::Standing::Unspecified,
            Standing::Member => wire::Standing::Member,
            Standing::Waiting => wire::Standing::Waiting,
            Standing::Joining => wire::Standing::Joining,
            Standing::Removed => wire::Standing::Removed,
            Standing::CutOff => wire::Standing::CutOff,
            Standing::Stopping => wire::Standing::Stopping,
        }
        .into(),
        writes_refused: writes_refused(condition.writes_refused()).into(),
        reason: condition.reason,
        clock_held_ms: condition.clock_held_ms,
        snapshot_written_ms: condition.snapshot_written_ms,
        backup_age_ms: condition.backup_age_ms,
        certificate_ends_in_s: condition.certificate_ends_in_s,
        files_refused: condition.files_refused,
        disk_reserve_bytes: condition.disk_reserve_bytes,
        open_listeners: condition.open_listeners,
        counted_ms: condition.counted_ms,
        syncs: condition.syncs,
        sync_p99_us: condition.sync_p99_us,
        watch_resets: condition.watch_resets,
        probes_refused: condition.probes_refused,
        connections: condition.connections,
        busiest_address: condition.busiest_address,
        busiest_connections: condition.busiest_connections,
        busiest_calls: condition.busiest_calls,
        connections_per_address_max: condition.connections_per_address_max,
        open_files: condition.open_files,
        writes_refused_why: condition.writes_refused_why,
        states_differ: condition.states_differ,
    }
}

fn writes_refused(refusal: Refusal) -> wire::WritesRefused {
    match refusal {
        Refusal::Unknown => wire::WritesRefused::Unspecified,
        Refusal::DiskFloor => wire::WritesRefused::DiskFloor,
        Refusal::Audit => wire::WritesRefused::Audit,
        Refusal::Stalled => wire::WritesRefused::Stalled,
        Refusal::DiskFull => wire::WritesRefused::DiskFull,
        Refusal::StateFull => wire::WritesRefused::StateFull,
    }
}

pub(in crate::api::grpc) fn predecessors_to_wire(all: &[Predecessor]) -> Vec<wire::Predecessor> {
    let to_wire = |it: &Predecessor| wire::Predecessor {
        cluster_id: it.cluster_id.get(),
        taken_over_ms: it.wall_ms,
    };
    all.iter().map(to_wire).collect()
}

fn node_state(state: RaftState) -> NodeState {
    match state {
        RaftState::Unknown => NodeState::Unspecified,
        RaftState::Leader => NodeState::Leader,
        RaftState::Follower => NodeState::Follower,
        RaftState::Candidate => NodeState::Candidate,
        RaftState::Learner => NodeState::Learner,
        RaftState::ShuttingDown => NodeState::ShuttingDown,
    }
}
