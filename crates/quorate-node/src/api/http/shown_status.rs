//! The state of the cluster, as JSON shows it.

use std::collections::BTreeMap;

use quorate_proto::v1::{
    Condition, MemberStatus, NodeState, Predecessor, Standing, StatusResponse, WritesRefused,
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::http::schemas;
use crate::api::http::shown::{Header, ShownMember, hex, known};

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Status)]
pub(super) struct ShownStatus {
    header: Header,
    members: Vec<ShownMemberStatus>,
    services: u64,
    instances: u64,
    leases: u64,
    /// The caller may not see the whole cluster: most of this is left out.
    partial: bool,
    condition: Option<ShownCondition>,
    level: u32,
    level_held: bool,
    cluster_name: String,
    predecessors: Vec<ShownPredecessor>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Predecessor)]
struct ShownPredecessor {
    cluster_id: String,
    taken_over_ms: u64,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MemberStatus)]
struct ShownMemberStatus {
    member: Option<ShownMember>,
    /// Without it, `error` says why, and the rest says nothing.
    reachable: bool,
    error: String,
    state: &'static str,
    term: u64,
    last_log_index: u64,
    applied_index: u64,
    lag: u64,
    #[schema(schema_with = schemas::digits)]
    revision: String,
    state_hash: String,
    state_hash_index: u64,
    snapshot_index: u64,
    purged_index: u64,
    disk_free_bytes: u64,
    version: String,
    uptime_ms: u64,
    probes_made: u64,
    probes_refused: u64,
    health_checks: bool,
    recovering: String,
    disk_low: bool,
    condition: Option<ShownCondition>,
    level_min: u32,
    level_max: u32,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Condition)]
struct ShownCondition {
    standing: &'static str,
    reason: String,
    clock_held_ms: u64,
    snapshot_written_ms: Option<u64>,
    backup_age_ms: Option<u64>,
    certificate_ends_in_s: Option<i64>,
    files_refused: bool,
    disk_reserve_bytes: u64,
    open_listeners: String,
    counted_ms: u64,
    syncs: u64,
    /// `null`: longer than a second.
    sync_p99_us: Option<u64>,
    watch_resets: u64,
    probes_refused: u64,
    connections: u64,
    busiest_address: String,
    busiest_connections: u64,
    busiest_calls: u64,
    connections_per_address_max: u64,
    open_files: BTreeMap<String, String>,
    /// `null`: none.
    writes_refused: Option<&'static str>,
    writes_refused_why: String,
    states_differ: Vec<String>,
}

impl From<StatusResponse> for ShownStatus {
    fn from(status: StatusResponse) -> Self {
        Self {
            header: Header::of(status.header),
            members: status.members.into_iter().map(ShownMemberStatus::from).collect(),
            services: status.services,
            instances: status.instances,
            leases: status.leases,
            partial: status.partial,
            condition: status.condition.map(ShownCondition::from),
            level: status.level,
            level_held: status.level_held,
            cluster_name: status.cluster_name,
            predecessors: status.predecessors.into_iter().map(ShownPredecessor::from).collect(),
        }
    }
}

impl From<Predecessor> for ShownPredecessor {
    fn from(before: Predecessor) -> Self {
        Self { cluster_id: hex(before.cluster_id), taken_over_ms: before.taken_over_ms }
    }
}

impl From<MemberStatus> for ShownMemberStatus {
    fn from(status: MemberStatus) -> Self {
        Self {
            state: match status.state() {
                NodeState::Unspecified => "unknown",
                NodeState::Leader => "leader",
                NodeState::Follower => "follower",
                NodeState::Candidate => "candidate",
                NodeState::Learner => "learner",
                NodeState::ShuttingDown => "stopping",
            },
            member: status.member.map(ShownMember::from),
            reachable: status.reachable,
            error: status.error,
            term: status.term,
            last_log_index: status.last_log_index,
            applied_index: status.applied_index,
            lag: status.lag,
            revision: status.revision.to_string(),
            state_hash: hex(status.state_hash),
            state_hash_index: status.state_hash_index,
            snapshot_index: status.snapshot_index,
            purged_index: status.purged_index,
            disk_free_bytes: status.disk_free_bytes,
            version: status.version,
            uptime_ms: status.uptime_ms,
            probes_made: status.probes_made,
            probes_refused: status.probes_refused,
            health_checks: status.health_checks,
            recovering: status.recovering,
            disk_low: status.disk_low,
            condition: status.condition.map(ShownCondition::from),
            level_min: status.level_min,
            level_max: status.level_max,
        }
    }
}

impl From<Condition> for ShownCondition {
    fn from(condition: Condition) -> Self {
        Self {
            standing: match condition.standing() {
                Standing::Unspecified => "unknown",
                Standing::Member => "member",
                Standing::Waiting => "waiting",
                Standing::Joining => "joining",
                Standing::Removed => "removed",
                Standing::CutOff => "cut off",
                Standing::Stopping => "stopping",
            },
            writes_refused: match condition.writes_refused() {
                WritesRefused::Unspecified => None,
                WritesRefused::DiskFloor => Some("disk_floor"),
                WritesRefused::Audit => Some("audit"),
                WritesRefused::Stalled => Some("stalled"),
                WritesRefused::DiskFull => Some("disk_full"),
                WritesRefused::StateFull => Some("state_full"),
            },
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
            sync_p99_us: known(condition.sync_p99_us),
            watch_resets: condition.watch_resets,
            probes_refused: condition.probes_refused,
            connections: condition.connections,
            busiest_address: condition.busiest_address,
            busiest_connections: condition.busiest_connections,
            busiest_calls: condition.busiest_calls,
            connections_per_address_max: condition.connections_per_address_max,
            open_files: condition.open_files,
            writes_refused_why: condition.writes_refused_why,
            states_differ: condition.states_differ.iter().map(u64::to_string).collect(),
        }
    }
}
