//! The operators' calls. Knows their deadlines and nothing of what the cluster does with them.

use std::sync::Arc;
use std::time::Duration;

use quorate_proto::v1::{
    AddNodeRequest, BackupChunk, BackupRequest, InstanceName, ListMembersRequest,
    ListOverridesRequest, RemoveNodeRequest, ReplaceNodeRequest, SetOverrideRequest, StatusRequest,
    StatusResponse, TransferLeaderRequest, TriggerSnapshotRequest, TriggerSnapshotResponse,
    UpgradeAction, UpgradeRequest, UpgradeResponse,
};
use tokio::time::{Instant, timeout};
use tonic::{Request, Status, Streaming};

use crate::core::Core;
use crate::error::{Attempt, Error};
use crate::nodes::call::{CallError, Plan, Rounds, call, no_answer};
use crate::nodes::endpoints::Target;
use crate::nodes::retry::{Decision, FOREGROUND, decide};
use crate::nodes::stub::{admin as stub, registry};
use crate::nodes::write::Write;
use crate::types::{InstanceOverride, Member, OverriddenInstance};

/// Taking a node in waits until it has caught up, a snapshot waits for the disk. One node gets all
/// of it: the connection's keep-alive finds out sooner when it hangs.
const LONG_CALL: Duration = Duration::from_secs(60);
/// The answering node gives each member 1 s, so it may itself need a little more.
const STATUS_ATTEMPT: Duration = Duration::from_millis(2_500);
/// A backup in which nothing arrives for this long has failed.
const BACKUP_IDLE: Duration = Duration::from_secs(30);

/// Up to 0.2.0, a node sends what it has, and says how old that may be.
const OF_OLD_RELEASE: &str = "its release cannot tell whether it has all that was acknowledged: ask a node that was upgraded, or for what this one has (`quorate cluster backup --local`)";

/// The operators' calls, from [`crate::Client::admin`].
///
/// ```no_run
/// use quorate_client::{Client, InstanceOverride, InstanceStatus, MemberRole};
/// # async fn example(client: Client) -> Result<(), quorate_client::Error> {
/// let admin = client.admin();
/// for node in admin.status(false).await?.members {
///     let member = node.member.clone().unwrap_or_default();
///     let votes = member.role() == MemberRole::Voter;
///     println!("{} {} votes: {votes}, {:?}", member.id, member.client_address, node.state());
/// }
/// let mut out = InstanceOverride { reason: "a bad disk".to_owned(), ..Default::default() };
/// out.set_status(InstanceStatus::OutOfService);
/// admin.set_override("orders", "orders-1", out).await?;
/// let mut backup = admin.backup().await?;
/// while let Some(chunk) = backup.next().await? {
///     println!("{} bytes", chunk.data.len());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Admin {
    core: Arc<Core>,
}

/// One unary call: `send!(self, plan, request, method)`.
macro_rules! send {
    ($self:ident, $plan:expr, $request:expr, $method:ident) => {{
        let plan: Plan = $plan;
        let send = |channel, request| async move { stub(channel).$method(request).await };
        call(&$self.core.endpoints, &plan, &$request, send)
            .await
            .map_err(|error| error.into_error(plan.operation))
    }};
}

impl Admin {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// All members as they are now; with `local_only`, just the answering node. What that says of
    /// itself is in `condition`: a node that was removed, or waits to be taken in, answers too, and
    /// what it knows of members is old.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Rejected`].
    pub async fn status(&self, local_only: bool) -> Result<StatusResponse, Error> {
        let plan = self.core.plan("status", Target::Any);
        let attempt = STATUS_ATTEMPT.min(plan.within);
        send!(self, Plan { attempt, ..plan }, StatusRequest { local_only }, status)
    }

    /// Takes a running, empty node in and waits until it votes (or, with `learner_only`,
    /// replicates). `peer_address` is where it listens for peers. Answers with the members.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Rejected`] (among others when the node has another id or
    /// cluster).
    pub async fn add_node(
        &self,
        id: u64,
        peer_address: &str,
        learner_only: bool,
    ) -> Result<Vec<Member>, Error> {
        let request = AddNodeRequest { id, peer_address: peer_address.to_owned(), learner_only };
        let answer = send!(self, long("add node"), request, add_node)?;
        Ok(self.learned(answer.members))
    }

    /// The members as an answer names them: a client that changes them is not to depend on nodes
    /// that it has taken out.
    fn learned(&self, members: Vec<Member>) -> Vec<Member> {
        let addresses = members.iter().map(|member| member.client_address.as_str());
        self.core.endpoints.replace_members(addresses);
        members
    }

    /// Takes a node out, within the call timeout. Answers with the members.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Rejected`] (among others when there is no such member, or
    /// the rest would have no live quorum).
    pub async fn remove_node(&self, id: u64) -> Result<Vec<Member>, Error> {
        let plan = self.whole("remove node");
        let until = Instant::now() + plan.within;
        let was_member = self.is_member(id, plan.operation).await?;
        let within = until.saturating_duration_since(Instant::now());
        let plan = Plan { within, attempt: within, ..plan };
        let send = |channel, request| async move { stub(channel).remove_node(request).await };
        let request = RemoveNodeRequest { id };
        let members = match call(&self.core.endpoints, &plan, &request, send).await {
            Ok(answer) => answer.members,
            // An attempt before this one took it out, and its answer was lost.
            Err(CallError::Refused { decision: Decision::Reregister, retried: true, .. })
                if was_member =>
            {
                let members = self.status(false).await?.members;
                members.into_iter().filter_map(|status| status.member).collect()
            }
            Err(error) => return Err(error.into_error(plan.operation)),
        };
        Ok(self.learned(members))
    }

    /// Whether some node knows this one as a member.
    async fn is_member(&self, id: u64, operation: &'static str) -> Result<bool, Error> {
        let plan = self.core.plan(operation, Target::Any);
        let send = |channel, request| async move { registry(channel).list_members(request).await };
        let answer = call(&self.core.endpoints, &plan, &ListMembersRequest {}, send).await;
        let members = answer.map_err(|error| error.into_error(operation))?.members;
        Ok(members.iter().any(|member| member.id == id))
    }

    /// One node gets all of the call timeout: what it says at the end of it is worth more than
    /// asking others again.
    fn whole(&self, operation: &'static str) -> Plan {
        let plan = self.core.plan(operation, Target::Leader);
        Plan { attempt: plan.within, ..plan }
    }

    /// Takes a new node in and an old one out, in one change. Answers with the members.
    ///
    /// # Errors
    /// As [`Admin::add_node`] and [`Admin::remove_node`].
    pub async fn replace_node(
        &self,
        old_id: u64,
        new_id: u64,
        peer_address: &str,
    ) -> Result<Vec<Member>, Error> {
        let request = ReplaceNodeRequest { old_id, new_id, peer_address: peer_address.to_owned() };
        let answer = send!(self, long("replace node"), request, replace_node)?;
        Ok(self.learned(answer.members))
    }

    /// Hands the lead to this voter, or to the one that is furthest along, and waits until it
    /// leads. Answers with the leader's id.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Rejected`].
    pub async fn transfer_leader(&self, to_id: Option<u64>) -> Result<u64, Error> {
        let request = TransferLeaderRequest { to_id: to_id.unwrap_or(0) };
        let answer = send!(self, self.whole("transfer leader"), request, transfer_leader)?;
        Ok(answer.leader_id)
    }

    /// Raises the cluster's level to the highest that every member works at, or, to `hold` it,
    /// keeps it where it is until this is called without. The answer has the level of then.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Rejected`]: a member does not answer.
    pub async fn upgrade(&self, hold: bool) -> Result<UpgradeResponse, Error> {
        let action = if hold { UpgradeAction::Hold } else { UpgradeAction::Finalize };
        let request = UpgradeRequest { action: action.into() };
        send!(self, self.whole("upgrade"), request, upgrade)
    }

    /// Builds a snapshot on the answering node and purges the log behind it. The header names that
    /// node.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Rejected`].
    pub async fn trigger_snapshot(&self) -> Result<TriggerSnapshotResponse, Error> {
        let plan = Plan { target: Target::Any, ..long("snapshot") };
        send!(self, plan, TriggerSnapshotRequest {}, trigger_snapshot)
    }

    /// Overrides an instance's status or weight until it is cleared, whatever the instance
    /// registers meanwhile. The instance need not be registered yet.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Rejected`].
    pub async fn set_override(
        &self,
        service: &str,
        id: &str,
        decision: InstanceOverride,
    ) -> Result<(), Error> {
        self.put_override(service, id, Some(decision)).await
    }

    /// Clears the override of an instance; with [`tonic::Code::NotFound`] if there is none.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Rejected`].
    pub async fn clear_override(&self, service: &str, id: &str) -> Result<(), Error> {
        self.put_override(service, id, None).await
    }

    /// The overrides of the namespace, by service and id, also overrides of instances that are not
    /// registered.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Rejected`].
    pub async fn overrides(&self) -> Result<Vec<OverriddenInstance>, Error> {
        let plan = self.core.plan("list overrides", Target::Any);
        let namespace = self.core.options.namespace.clone();
        let mut request = ListOverridesRequest { namespace, ..ListOverridesRequest::default() };
        let mut all = Vec::new();
        loop {
            let answer = send!(self, plan, request, list_overrides)?;
            all.extend(answer.overrides);
            let place = |name: &Option<InstanceName>| {
                name.as_ref().map(|name| (name.service.clone(), name.id.clone()))
            };
            // Each page begins after the one before it, so this ends even with a node that repeats
            // itself.
            if place(&answer.next) <= place(&request.after) {
                return Ok(all);
            }
            request.after = answer.next;
        }
    }

    async fn put_override(
        &self,
        service: &str,
        id: &str,
        r#override: Option<InstanceOverride>,
    ) -> Result<(), Error> {
        let request = SetOverrideRequest {
            namespace: self.core.options.namespace.clone(),
            service: service.to_owned(),
            id: id.to_owned(),
            r#override,
            request_id: None,
        };
        let plan = self.core.plan("override", Target::Leader);
        let write = Write::begin(&self.core.origin);
        let send = |channel, mut request: Request<SetOverrideRequest>| {
            request.get_mut().request_id = write.id();
            async move { stub(channel).set_override(request).await }
        };
        let done = call(&self.core.endpoints, &plan, &request, send).await;
        done.map(drop).map_err(|error| error.into_write_error(plan.operation))
    }

    /// Begins a copy of the whole state, with all that was acknowledged until now. Tries one node
    /// after the other until one begins to send; from then on a failure is the backup's, and the
    /// caller begins anew.
    ///
    /// # Errors
    /// [`Error::Unreachable`], also without a quorum; [`Error::Rejected`].
    pub async fn backup(&self) -> Result<Backup, Error> {
        self.begin_backup(BackupRequest { local: false }).await
    }

    /// The same of what the answering node has, for a cluster without a quorum. The header of the
    /// first chunk says how old that may be (`age_ms`; the maximum: nobody knows).
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Rejected`].
    pub async fn backup_local(&self) -> Result<Backup, Error> {
        self.begin_backup(BackupRequest { local: true }).await
    }

    async fn begin_backup(&self, request: BackupRequest) -> Result<Backup, Error> {
        let operation = "backup";
        let endpoints = &self.core.endpoints;
        let deadline = Instant::now() + LONG_CALL;
        let mut rounds = Rounds::new(FOREGROUND);
        let mut tried: Vec<Attempt> = Vec::new();
        let mut token = endpoints.token_changes();
        // Each node once: what keeps all of them from sending a backup will not pass within a
        // second.
        for _ in 0..endpoints.len() {
            let (address, channel) = rounds.pick(endpoints, Target::Any);
            let begin = async {
                let mut chunks = stub(channel).backup(request).await?.into_inner();
                let first = chunks.message().await?;
                let first = first.ok_or_else(|| Status::data_loss("the backup is empty"))?;
                let header = first.header.as_ref();
                if !request.local && header.is_none_or(|header| header.age_ms > 0) {
                    return Err(Status::unavailable(OF_OLD_RELEASE));
                }
                Ok::<_, Status>(Backup { address: address.to_string(), first: Some(first), chunks })
            };
            let left = deadline.saturating_duration_since(Instant::now());
            let given = BACKUP_IDLE.min(left);
            let begun = timeout(given, begin).await;
            let status = match begun {
                Ok(Ok(backup)) => return Ok(backup),
                Ok(Err(status)) => status,
                Err(_elapsed) => no_answer("nothing arrived", given),
            };
            let decision = decide(&status);
            if decision == Decision::Reauthenticate && endpoints.has_other_token(token).await {
                token = endpoints.token_changes();
                rounds.reset();
                continue;
            }
            if !decision.blames_node() {
                return Err(Error::rejected(operation, &status));
            }
            endpoints.failed(&address);
            tried.push(Attempt::of(&*address, &status));
        }
        let within = (Instant::now() >= deadline).then_some(LONG_CALL);
        Err(Error::Unreachable { operation, within, tried })
    }
}

fn long(operation: &'static str) -> Plan {
    Plan { operation, target: Target::Leader, attempt: LONG_CALL, within: LONG_CALL }
}

/// A backup on its way.
///
/// An example is at [`Admin`].
#[derive(Debug)]
pub struct Backup {
    address: String,
    first: Option<BackupChunk>,
    chunks: Streaming<BackupChunk>,
}

impl Backup {
    /// The next chunk; `None` after the last. What the first one says of itself holds for the
    /// whole: compare `total_bytes` with what arrived.
    ///
    /// # Errors
    /// [`Error::Unreachable`] or [`Error::Rejected`] when it broke off: what has arrived is
    /// worth nothing.
    pub async fn next(&mut self) -> Result<Option<BackupChunk>, Error> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        let status = match timeout(BACKUP_IDLE, self.chunks.message()).await {
            Ok(Ok(chunk)) => return Ok(chunk),
            Ok(Err(status)) => status,
            Err(_elapsed) => no_answer("nothing arrived", BACKUP_IDLE),
        };
        if !decide(&status).blames_node() {
            return Err(Error::rejected("backup", &status));
        }
        let tried = vec![Attempt::of(&self.address, &status)];
        Err(Error::Unreachable { operation: "backup", within: None, tried })
    }
}
