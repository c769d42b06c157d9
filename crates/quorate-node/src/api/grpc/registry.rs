//! The Registry service, all but Watch (`api/grpc/watch.rs`).

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use quorate_proto::encoded::v1::registry_server::Registry;
use quorate_proto::encoded::v1::{EncodedFetchResponse, EncodedWatchResponse};
use quorate_proto::v1::{
    DeregisterRequest, DeregisterResponse, FetchRequest, ListDependentsRequest,
    ListDependentsResponse, ListMembersRequest, ListMembersResponse, ListServicesRequest,
    ListServicesResponse, RegisterRequest, RegisterResponse, RenewRequest, RenewResponse,
    ServiceSummary, UpdateRequest, UpdateResponse, WatchRequest,
};
use quorate_state::{LeaseId, Rejection, Reply, ServiceName, Status as State};
use tonic::{Request, Response, Status, Streaming};

use crate::api::grpc::convert;
use crate::api::grpc::{
    age_ms, counted, deadline, header, is_foreign, line, min_revision, open, until_stopped,
};
use crate::error::{CallError, NodeError};
use crate::node::Node;
use crate::node::renewals::Patience;
use crate::types::Outcome;

/// Names in one answer of ListServices.
const LIST_MAX: usize = 10_000;

/// Handles calls to the Registry service.
#[derive(Clone)]
pub(crate) struct RegistryService {
    pub(crate) node: Arc<Node>,
}

type Answer<T> = Result<Response<T>, Status>;
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Registry for RegistryService {
    type RenewStreamStream = Answers<RenewResponse>;
    type WatchStream = Answers<EncodedWatchResponse>;

    async fn register(&self, request: Request<RegisterRequest>) -> Answer<RegisterResponse> {
        let (mut request, deadline) = open(request, &self.node)?;
        let id = request.request_id.take();
        let (lease_id, cluster_id) = (request.lease_id, request.cluster_id);
        let op = convert::register(request).map_err(CallError::from)?;
        self.check_lease(lease_id, cluster_id)?;
        let Outcome { reply, revision } = self.node.propose(op, id, deadline).await?;
        let Reply::Registered { lease, ttl, incarnation } = reply else {
            return Err(self.node.mismatched(&reply).into());
        };
        Ok(Response::new(RegisterResponse {
            header: header(&self.node, revision.0, 0),
            lease_id: lease.0,
            ttl_ms: ttl.as_ms(),
            incarnation: incarnation.0,
        }))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Answer<RenewResponse> {
        let (request, deadline) = open(request, &self.node)?;
        let leases = convert::renewals(&request).map_err(CallError::from)?;
        let (asked, first) = (leases.len(), leases[0]);
        self.check_lease(first.0, request.cluster_id)?;
        let renewed = self.node.renew(leases, Patience::Window, deadline).await?;
        if renewed.unknown.len() == asked {
            return Err(NodeError::Rejected(Rejection::UnknownLease(first)).into());
        }
        Ok(Response::new(super::renew::answer(&self.node, renewed.unknown, renewed.revision)))
    }

    async fn renew_stream(
        &self,
        request: Request<Streaming<RenewRequest>>,
    ) -> Answer<Self::RenewStreamStream> {
        let answers = super::renew::answers(self.node.clone(), request.into_inner());
        Ok(Response::new(until_stopped(answers, &self.node).boxed()))
    }

    async fn deregister(&self, request: Request<DeregisterRequest>) -> Answer<DeregisterResponse> {
        let (mut request, deadline) = open(request, &self.node)?;
        let id = request.request_id.take();
        let (lease_id, cluster_id) = (request.lease_id, request.cluster_id);
        let op = convert::deregister(request).map_err(CallError::from)?;
        self.check_lease(lease_id, cluster_id)?;
        let Outcome { reply, revision } = self.node.propose(op, id, deadline).await?;
        let Reply::Deregistered { removed } = reply else {
            return Err(self.node.mismatched(&reply).into());
        };
        let header = header(&self.node, revision.0, 0);
        Ok(Response::new(DeregisterResponse { header, removed }))
    }

    async fn update(&self, request: Request<UpdateRequest>) -> Answer<UpdateResponse> {
        let (mut request, deadline) = open(request, &self.node)?;
        let id = request.request_id.take();
        let op = convert::update(request).map_err(CallError::from)?;
        let revision = self.node.propose(op, id, deadline).await?.revision.0;
        Ok(Response::new(UpdateResponse { header: header(&self.node, revision, 0) }))
    }

    async fn fetch(&self, request: Request<FetchRequest>) -> Answer<EncodedFetchResponse> {
        super::fetch::answer(&self.node, request).await
    }

    async fn list_services(
        &self,
        request: Request<ListServicesRequest>,
    ) -> Answer<ListServicesResponse> {
        let line = line(&request);
        let (request, deadline) = open(request, &self.node)?;
        let consistency = convert::consistency(request.consistency).map_err(CallError::from)?;
        let namespace = convert::namespace(&request.namespace).map_err(CallError::from)?;
        let prefix = convert::checked_prefix(&request.prefix).map_err(CallError::from)?;
        let after = match request.after.as_str() {
            "" => None,
            name => Some(ServiceName::new("after", name).map_err(CallError::from)?),
        };
        let limit = match request.limit as usize {
            0 => LIST_MAX,
            limit => limit.min(LIST_MAX),
        };
        let min_revision = min_revision(&self.node, request.min_revision, request.cluster_id);
        let (registry, fresh_at) = self.node.read(consistency, min_revision, deadline).await?;
        let mut found = registry.services(&namespace, &prefix, after.as_ref());
        let services: Vec<_> = found
            .by_ref()
            .take(limit)
            .map(|(key, service)| {
                let instances = || service.instances.values();
                let up = || instances().filter(|instance| instance.status() == State::Up);
                let usable = up().filter(|instance| !instance.is_critical()).count();
                ServiceSummary {
                    name: key.name.to_string(),
                    revision: service.revision.0,
                    instances: instances().count() as u32,
                    up: up().count() as u32,
                    usable: usable as u32,
                }
            })
            .collect();
        let last = services.last().map(|service| service.name.clone());
        let next = found.next().and(last).unwrap_or_default();
        let header = header(&self.node, registry.revision().0, age_ms(fresh_at, consistency));
        let answer = ListServicesResponse { header, services, next };
        Ok(counted(&self.node, &line, deadline, answer)?)
    }

    async fn list_dependents(
        &self,
        request: Request<ListDependentsRequest>,
    ) -> Answer<ListDependentsResponse> {
        let line = line(&request);
        let (request, deadline) = open(request, &self.node)?;
        let consistency = convert::consistency(request.consistency).map_err(CallError::from)?;
        let namespace = convert::namespace(&request.namespace).map_err(CallError::from)?;
        let target = convert::service_key(&namespace, &request.service).map_err(CallError::from)?;
        let min_revision = min_revision(&self.node, request.min_revision, request.cluster_id);
        let (registry, fresh_at) = self.node.read(consistency, min_revision, deadline).await?;
        let dependents = registry.dependents(&target);
        let instances = dependents.map(|i| convert::instance_to_wire(i)).collect();
        let header = header(&self.node, registry.revision().0, age_ms(fresh_at, consistency));
        let answer = ListDependentsResponse { header, instances };
        Ok(counted(&self.node, &line, deadline, answer)?)
    }

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Answer<Self::WatchStream> {
        let deadline = deadline(request.metadata(), self.node.tunables.request_timeout());
        let answers = super::watch::answers(self.node.clone(), request.into_inner(), deadline);
        Ok(Response::new(answers.await?.boxed()))
    }

    async fn list_members(
        &self,
        request: Request<ListMembersRequest>,
    ) -> Answer<ListMembersResponse> {
        open(request, &self.node)?;
        let members = self.node.members().iter().map(convert::member_to_wire).collect();
        let age_ms = self.node.age_ms();
        let revision = self.node.applied.position().revision;
        let header = header(&self.node, revision, age_ms);
        Ok(Response::new(ListMembersResponse { header, members }))
    }
}

impl RegistryService {
    /// Refuses a lease of another cluster: here, its id may be a stranger's. 0: no lease is named.
    fn check_lease(&self, lease_id: u64, cluster_id: u64) -> Result<(), NodeError> {
        match lease_id != 0 && is_foreign(&self.node, cluster_id) {
            true => Err(NodeError::Rejected(Rejection::UnknownLease(LeaseId(lease_id)))),
            false => Ok(()),
        }
    }
}
