//! What a node alone knows of a service: who watches it here, and, of a leader, how long its leases
//! still have.

use std::net::IpAddr;

use quorate_proto::v1::{InspectServiceRequest, InspectServiceResponse, LeaseLeft, Watcher};
use quorate_state::Service;
use tonic::Response;

use crate::api::grpc::convert;
use crate::api::grpc::door::Call;
use crate::api::grpc::header;
use crate::applied::hub::Follower;
use crate::error::CallError;
use crate::node::Node;

/// Watchers in one answer.
const WATCHERS_MAX: usize = 1_000;
/// Leases in one answer: with ids at their limits, 2.7 MB.
const LEASES_MAX: usize = 10_000;

/// Answers a call.
///
/// # Errors
/// What it names is no service's name.
pub(super) fn answer(
    node: &Node,
    call: Call<InspectServiceRequest>,
) -> Result<Response<InspectServiceResponse>, CallError> {
    let Call { message: request, deadline, caller } = call;
    let key = convert::service_key(&convert::namespace(&request.namespace)?, &request.service)?;
    node.check_member()?;
    let leads = node.leads() && node.quorum_silence() <= node.silence_max();
    let (registry, (followers, watchers_in_all)) = {
        let state = node.applied().lock();
        let now = state.registry.revision();
        (state.registry.clone(), state.hub.followers(&key, now, WATCHERS_MAX))
    };
    let clock = node.read_clock();
    let left = |service: &Service| {
        let instances = service.instances.values().take(LEASES_MAX);
        let left = instances.filter_map(|instance| {
            let lease = registry.lease(instance.lease)?;
            let left_ms = lease.deadline.0.saturating_sub(clock.0);
            Some(LeaseLeft { id: instance.key.id.to_string(), lease_id: lease.id.0, left_ms })
        });
        left.collect()
    };
    let answer = InspectServiceResponse {
        header: header(node, registry.revision().0, node.age_ms()),
        watchers: followers.into_iter().map(watcher).collect(),
        watchers_in_all: watchers_in_all as u64,
        leads,
        leases: registry.service(&key).filter(|_| leads).map(left).unwrap_or_default(),
    };
    caller.counted(node, deadline, answer)
}

fn watcher(of: Follower) -> Watcher {
    Watcher {
        // An IPv4 address as such, also where the listener is of IPv6.
        address: of.from.map_or_else(String::new, |from: IpAddr| from.to_canonical().to_string()),
        prefix: of.prefix,
        since_revision: of.since.0,
        sent_revision: of.sent.0,
        queued: of.queued as u32,
        behind: of.behind,
    }
}
