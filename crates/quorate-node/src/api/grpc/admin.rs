//! The Admin service.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt, stream};
use quorate_log::NodeId;
use quorate_proto::encoded::v1::admin_server::Admin;
use quorate_proto::v1 as wire;
use quorate_proto::v1::{
    AddNodeRequest, AddNodeResponse, BackupChunk, BackupRequest, InspectServiceRequest,
    InspectServiceResponse, InstanceName, ListOverridesRequest, ListOverridesResponse, Member,
    MemberStatus, OverriddenInstance, RemoveNodeRequest, RemoveNodeResponse, ReplaceNodeRequest,
    ReplaceNodeResponse, SetOverrideRequest, SetOverrideResponse, StatusRequest, StatusResponse,
    TransferLeaderRequest, TransferLeaderResponse, TriggerSnapshotRequest, TriggerSnapshotResponse,
    UpgradeAction, UpgradeRequest, UpgradeResponse,
};
use quorate_state::{Invalid, Level};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::access::{Reach, Role};
use crate::api::grpc::backup::{AsOf, Backup, Sending};
use crate::api::grpc::convert;
use crate::api::grpc::door::{self, Call, Method};
use crate::api::grpc::told::standing;
use crate::api::grpc::{header, inspect, rights, until_stopped};
use crate::error::{CallError, NodeError};
use crate::node::membership::{LeadCall, LevelChange, MembershipCall};
use crate::node::{Consistency, MemberInfo, Node};
use crate::peers::ADDRESS_MAX;
use crate::wall;

/// Overrides in one answer: with reasons and names at their limits, 1.8 MB.
const OVERRIDES_MAX: usize = 1_000;

/// Handles calls to the Admin service.
#[derive(Clone)]
pub(crate) struct AdminService {
    pub(crate) node: Arc<Node>,
}

type Answer<T> = Result<Response<T>, Status>;
type Handled<T> = Result<Response<T>, CallError>;

#[tonic::async_trait]
impl Admin for AdminService {
    type BackupStream = Pin<Box<dyn Stream<Item = Result<BackupChunk, Status>> + Send>>;

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        door::answer(&self.node, Method::Status, request, |call| self.on_status(call)).await
    }

    async fn add_node(&self, request: Request<AddNodeRequest>) -> Answer<AddNodeResponse> {
        door::answer(&self.node, Method::AddNode, request, |call| self.on_add_node(call)).await
    }

    async fn remove_node(&self, request: Request<RemoveNodeRequest>) -> Answer<RemoveNodeResponse> {
        door::answer(&self.node, Method::RemoveNode, request, |call| self.on_remove_node(call))
            .await
    }

    async fn replace_node(
        &self,
        request: Request<ReplaceNodeRequest>,
    ) -> Answer<ReplaceNodeResponse> {
        door::answer(&self.node, Method::ReplaceNode, request, |call| self.on_replace_node(call))
            .await
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Answer<TransferLeaderResponse> {
        door::answer(&self.node, Method::TransferLeader, request, |call| {
            self.on_transfer_leader(call)
        })
        .await
    }

    async fn upgrade(&self, request: Request<UpgradeRequest>) -> Answer<UpgradeResponse> {
        door::answer(&self.node, Method::Upgrade, request, |call| self.on_upgrade(call)).await
    }

    async fn trigger_snapshot(
        &self,
        request: Request<TriggerSnapshotRequest>,
    ) -> Answer<TriggerSnapshotResponse> {
        door::answer(&self.node, Method::TriggerSnapshot, request, |call| {
            self.on_trigger_snapshot(call)
        })
        .await
    }

    async fn backup(&self, request: Request<BackupRequest>) -> Answer<Self::BackupStream> {
        door::answer(&self.node, Method::Backup, request, |call| self.on_backup(call)).await
    }

    async fn set_override(
        &self,
        request: Request<SetOverrideRequest>,
    ) -> Answer<SetOverrideResponse> {
        door::answer(&self.node, Method::SetOverride, request, |call| self.on_set_override(call))
            .await
    }

    async fn list_overrides(
        &self,
        request: Request<ListOverridesRequest>,
    ) -> Answer<ListOverridesResponse> {
        door::answer(&self.node, Method::ListOverrides, request, |call| {
            self.on_list_overrides(call)
        })
        .await
    }

    async fn inspect_service(
        &self,
        request: Request<InspectServiceRequest>,
    ) -> Answer<InspectServiceResponse> {
        door::answer(&self.node, Method::InspectService, request, |call| {
            std::future::ready(inspect::answer(&self.node, call))
        })
        .await
    }
}

impl AdminService {
    async fn on_status(&self, call: Call<StatusRequest>) -> Handled<StatusResponse> {
        let Call { message: request, caller, .. } = call;
        // First: a node that says that it was removed is to have asked nobody.
        let condition = Some(convert::condition_to_wire(&self.node.condition().await));
        let all = match request.local_only {
            true => Arc::new(self.node.own_reports().await),
            false => self.node.cluster_status().await,
        };
        let furthest = all.iter().filter_map(|(_, report)| report.as_ref().ok());
        let furthest = furthest.map(|report| report.status.last_log_index).max().unwrap_or(0);
        let (counts, revision, level, predecessors) = {
            let registry = &self.node.applied().lock().registry;
            let predecessors = convert::predecessors_to_wire(registry.predecessors());
            (registry.counts(), registry.revision().0, registry.level(), predecessors)
        };
        let members =
            all.iter().map(|(member, report)| convert::member_status(member, report, furthest));
        let header = header(&self.node, revision, self.node.age_ms());
        if !rights::sees_cluster(&caller.principal) {
            let members = members.map(for_all).collect();
            let (partial, condition) = (true, condition.map(standing_only));
            return Ok(Response::new(StatusResponse {
                header,
                members,
                partial,
                condition,
                ..<_>::default()
            }));
        }
        Ok(Response::new(StatusResponse {
            header,
            members: members.collect(),
            services: counts.services as u64,
            instances: counts.instances as u64,
            leases: counts.leases as u64,
            partial: false,
            condition,
            level: level.number,
            level_held: level.held,
            cluster_name: self.node.access().cluster().to_owned(),
            predecessors,
        }))
    }

    async fn on_add_node(&self, call: Call<AddNodeRequest>) -> Handled<AddNodeResponse> {
        let AddNodeRequest { id, peer_address, learner_only } = call.message;
        let by_itself = !call.caller.principal.may(Role::Admin, Reach::Cluster, wall::now());
        let id = node_id("id", id)?;
        check_address("peer_address", &peer_address)?;
        let change = MembershipCall::Add { id, peer_address, learner_only, by_itself };
        let members = self.node.on_leader(change, call.deadline, &mut 0).await?;
        let members = members.iter().map(convert::member_to_wire).collect();
        Ok(Response::new(AddNodeResponse { header: self.header(), members }))
    }

    async fn on_remove_node(&self, call: Call<RemoveNodeRequest>) -> Handled<RemoveNodeResponse> {
        let id = node_id("id", call.message.id)?;
        let members = self.take_out(id, MembershipCall::Remove { id }, call.deadline).await?;
        let members = members.iter().map(convert::member_to_wire).collect();
        Ok(Response::new(RemoveNodeResponse { header: self.header(), members }))
    }

    async fn on_replace_node(
        &self,
        call: Call<ReplaceNodeRequest>,
    ) -> Handled<ReplaceNodeResponse> {
        let ReplaceNodeRequest { old_id: old, new_id: new, peer_address } = call.message;
        let (old, new) = (node_id("old_id", old)?, node_id("new_id", new)?);
        check_address("peer_address", &peer_address)?;
        if old == new {
            let must = "must differ from old_id: a node whose disk was lost gets a new id";
            return Err(Invalid::number("new_id", new.get(), must).into());
        }
        let change = MembershipCall::Replace { old, new, peer_address };
        let members = self.take_out(old, change, call.deadline).await?;
        let members = members.iter().map(convert::member_to_wire).collect();
        Ok(Response::new(ReplaceNodeResponse { header: self.header(), members }))
    }

    async fn on_transfer_leader(
        &self,
        call: Call<TransferLeaderRequest>,
    ) -> Handled<TransferLeaderResponse> {
        let to = match NodeId::new(call.message.to_id) {
            None => self.node.on_leader(LeadCall::Successor, call.deadline, &mut 0).await?,
            Some(id) => id,
        };
        let leader_id =
            self.node.on_leader(LeadCall::Transfer { to }, call.deadline, &mut 0).await?.get();
        Ok(Response::new(TransferLeaderResponse { header: self.header(), leader_id }))
    }

    async fn on_upgrade(&self, call: Call<UpgradeRequest>) -> Handled<UpgradeResponse> {
        let change = match call.message.action() {
            UpgradeAction::Finalize => LevelChange::Raise,
            UpgradeAction::Hold => LevelChange::Hold,
            UpgradeAction::Unspecified => {
                return Err(Invalid::number(
                    "action",
                    call.message.action,
                    "must be FINALIZE or HOLD",
                )
                .into());
            }
        };
        let set = MembershipCall::SetLevel(change);
        self.node.on_leader(set, call.deadline, &mut 0).await?;
        let (registry, _) = self.node.read(Consistency::Linearizable, 0, call.deadline).await?;
        let Level { number: level, held } = registry.level();
        let header = header(&self.node, registry.revision().0, 0);
        Ok(Response::new(UpgradeResponse { header, level, held }))
    }

    async fn on_trigger_snapshot(
        &self,
        call: Call<TriggerSnapshotRequest>,
    ) -> Handled<TriggerSnapshotResponse> {
        let snapshot_index = self.node.compact(call.deadline).await?;
        Ok(Response::new(TriggerSnapshotResponse { header: self.header(), snapshot_index }))
    }

    async fn on_backup(&self, call: Call<BackupRequest>) -> Handled<<Self as Admin>::BackupStream> {
        let Call { message: BackupRequest { local }, deadline, caller } = call;
        let as_of = AsOf::now(&self.node, local, deadline).await?;
        let sending = Sending::begin(&self.node, caller, as_of)?;
        let backup = match self.node.snapshot(deadline).await {
            Ok(_index) => {
                let (meta, file) = self.node.newest_snapshot().await?;
                Backup::of_file(sending, &meta, file)
            }
            Err(NodeError::DiskFull { .. } | NodeError::NoRoomForSnapshot { .. }) => {
                Backup::of_memory(sending).await?
            }
            Err(error) => return Err(error.into()),
        };
        let header = header(&self.node, self.node.applied().position().revision, as_of.age_ms);
        let first = BackupChunk { header, ..backup.first.clone() };
        let chunks = stream::once(std::future::ready(Ok(first))).chain(backup.rest());
        Ok(Response::new(until_stopped(chunks, &self.node).boxed()))
    }

    async fn on_set_override(
        &self,
        call: Call<SetOverrideRequest>,
    ) -> Handled<SetOverrideResponse> {
        let Call { message: mut request, deadline, caller } = call;
        let id = convert::request_id(request.request_id.take(), rights::share(&self.node, &caller));
        let write = convert::set_override(request)?;
        let ((), revision) = self.node.propose(write, id, deadline).await?;
        let header = header(&self.node, revision.0, 0);
        Ok(standing(revision.0, SetOverrideResponse { header }))
    }

    async fn on_list_overrides(
        &self,
        call: Call<ListOverridesRequest>,
    ) -> Handled<ListOverridesResponse> {
        let Call { message: request, deadline, caller } = call;
        let namespace = convert::namespace(&request.namespace)?;
        let after = request.after.map(|InstanceName { service, id }| {
            convert::instance_key("after.", &namespace, &service, &id)
        });
        let after = after.transpose()?;
        let limit = match request.limit as usize {
            0 => OVERRIDES_MAX,
            limit => limit.min(OVERRIDES_MAX),
        };
        let (registry, _) = self.node.read(Consistency::Linearizable, 0, deadline).await?;
        let mut found = registry.overrides(&namespace, after.as_ref());
        let overrides: Vec<_> = found
            .by_ref()
            .take(limit)
            .map(|(key, value)| OverriddenInstance {
                service: key.service.name.to_string(),
                id: key.id.to_string(),
                r#override: Some(convert::override_to_wire(value)),
                registered: registry.instance(key).is_some(),
            })
            .collect();
        let last = overrides
            .last()
            .map(|last| InstanceName { service: last.service.clone(), id: last.id.clone() });
        let next = found.next().and(last);
        let header = header(&self.node, registry.revision().0, 0);
        let answer = ListOverridesResponse { header, overrides, next };
        caller.counted(&self.node, deadline, answer)
    }

    fn header(&self) -> Option<quorate_proto::v1::ResponseHeader> {
        header(&self.node, self.node.applied().position().revision, self.node.age_ms())
    }

    /// Has the leader do what takes a node out. An attempt may have done so without its answer: it
    /// was lost with its leader, or this node led, and took itself out before it could answer.
    async fn take_out(
        &self,
        id: NodeId,
        change: MembershipCall,
        deadline: Instant,
    ) -> Result<Vec<MemberInfo>, NodeError> {
        let successor = match change {
            MembershipCall::Replace { new, .. } => Some(new),
            _ => None,
        };
        let mut attempts = 0;
        let error = match self.node.on_leader(change, deadline, &mut attempts).await {
            Ok(members) => return Ok(members),
            Err(error) => error,
        };
        let is_own = id == self.node.id();
        let is_out = match error {
            _ if error.unknown_node().is_some() => attempts > 1 && error.unknown_node() == Some(id),
            NodeError::NotMember { node } => attempts > 0 && node == id,
            _ => false,
        };
        let members = self.node.members();
        // What this node knows of its own removal may be hearsay: then the operator asks another.
        let is_known = !is_own || members.iter().all(|info| info.id != id);
        let is_in = |new| members.iter().any(|info| info.id == new && info.voter);
        match is_out && is_known && successor.is_none_or(is_in) {
            true => Ok(members.iter().filter(|info| info.id != id).cloned().collect()),
            false => Err(error),
        }
    }
}

fn node_id(field: &str, id: u64) -> Result<NodeId, CallError> {
    NodeId::new(id).ok_or_else(|| Invalid::number(field, id, "must be at least 1").into())
}

pub(super) fn check_address(field: &str, address: &str) -> Result<(), Invalid> {
    if address.len() > ADDRESS_MAX {
        let limit = format!("at most {ADDRESS_MAX} bytes");
        return Err(Invalid::number(field, address.len(), limit));
    }
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    if port.is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
        let must = "must be host:port, where the node listens";
        return Err(Invalid::text(field, address, must));
    }
    Ok(())
}

/// What every known caller may see of that: reasons name addresses.
fn standing_only(condition: wire::Condition) -> wire::Condition {
    wire::Condition { standing: condition.standing, ..<_>::default() }
}

/// What every known caller may see of a member.
fn for_all(status: MemberStatus) -> MemberStatus {
    let mut shown = MemberStatus { reachable: status.reachable, ..MemberStatus::default() };
    shown.state = status.state;
    shown.condition = status.condition.map(standing_only);
    shown.member = status.member.map(|it| Member { peer_address: String::new(), ..it });
    shown
}
