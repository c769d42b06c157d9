//! The Registry service, all but Watch (`grpc/watch.rs`).

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use prost::Message;
use quorate_proto::v1::registry_server::Registry;
use quorate_proto::v1::{
    DeregisterRequest, DeregisterResponse, FetchRequest, FetchResponse, ListDependentsRequest,
    ListDependentsResponse, ListMembersRequest, ListMembersResponse, ListServicesRequest,
    ListServicesResponse, RegisterRequest, RegisterResponse, RenewRequest, RenewResponse,
    ServiceSummary, UpdateRequest, UpdateResponse, WatchRequest, WatchResponse,
};
use quorate_state::{Op, Rejection, Reply, Revision, ServiceName, Status as State};
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use crate::convert;
use crate::error::{CallError, NodeError};
use crate::grpc::{deadline, header, open, until_stopped};
use crate::node::{Consistency, Node};
use crate::raft::types::Outcome;
use crate::renewals::Patience;
use crate::subscription::{Part, covered};
use crate::watch::{Filter, Selection};

/// Names in one answer of ListServices.
const LIST_MAX: usize = 10_000;
/// An answer of Fetch at most, bytes.
const FETCH_MAX: usize = 32 * 1024 * 1024;

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
    type WatchStream = Answers<WatchResponse>;

    async fn register(&self, request: Request<RegisterRequest>) -> Answer<RegisterResponse> {
        let (request, deadline) = open(request, &self.node)?;
        let op = convert::register(request).map_err(CallError::from)?;
        let Outcome { reply, revision } = self.node.propose(op, deadline).await?;
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
        let (request, deadline) = open(request, &self.node)?;
        let op = convert::deregister(request).map_err(CallError::from)?;
        let Outcome { reply, revision } = self.node.propose(op, deadline).await?;
        let Reply::Deregistered { removed } = reply else {
            return Err(self.node.mismatched(&reply).into());
        };
        let header = header(&self.node, revision.0, 0);
        Ok(Response::new(DeregisterResponse { header, removed }))
    }

    async fn update(&self, request: Request<UpdateRequest>) -> Answer<UpdateResponse> {
        let (request, deadline) = open(request, &self.node)?;
        let op = convert::update(request).map_err(CallError::from)?;
        let revision = self.write(op, deadline).await?;
        Ok(Response::new(UpdateResponse { header: header(&self.node, revision, 0) }))
    }

    async fn fetch(&self, request: Request<FetchRequest>) -> Answer<FetchResponse> {
        let (request, deadline) = open(request, &self.node)?;
        let consistency = convert::consistency(request.consistency).map_err(CallError::from)?;
        let FetchRequest { namespace, services, prefix, statuses, .. } = &request;
        let filter = convert::filter(namespace, services, prefix, statuses);
        let filter = filter.map_err(CallError::from)?;
        let registry = self.node.read(consistency, request.min_revision, deadline).await?;
        let header = header(&self.node, registry.revision().0, self.age_ms(consistency));
        let since = Revision(request.not_modified_since);
        let parts = covered(&registry, &filter);
        let changed = |part: &Part| part.revision.is_some_and(|revision| revision > since);
        if since > Revision(0) && !registry.forgot_after(since) && !parts.iter().any(changed) {
            let services = Vec::new();
            return Ok(Response::new(FetchResponse { header, not_modified: true, services }));
        }
        let parts = in_order_asked(&parts, &filter, services).into_iter();
        let services = parts.map(convert::service_to_wire).collect();
        let response = FetchResponse { header, not_modified: false, services };
        let bytes = response.encoded_len();
        if bytes > FETCH_MAX {
            let instead = "use a narrower prefix, or Watch";
            let (what, limit) = ("the answer", FETCH_MAX);
            return Err(CallError::TooLarge { what, bytes, limit, instead }.into());
        }
        Ok(Response::new(response))
    }

    async fn list_services(
        &self,
        request: Request<ListServicesRequest>,
    ) -> Answer<ListServicesResponse> {
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
        let registry = self.node.read(consistency, request.min_revision, deadline).await?;
        let mut found = registry.services(&namespace, &prefix, after.as_ref());
        let services: Vec<_> = found
            .by_ref()
            .take(limit)
            .map(|(key, service)| ServiceSummary {
                name: key.name.to_string(),
                revision: service.revision.0,
                instances: service.instances.len() as u32,
                up: service.instances.values().filter(|i| i.status() == State::Up).count() as u32,
            })
            .collect();
        let last = services.last().map(|service| service.name.clone());
        let next = found.next().and(last).unwrap_or_default();
        let header = header(&self.node, registry.revision().0, self.age_ms(consistency));
        Ok(Response::new(ListServicesResponse { header, services, next }))
    }

    async fn list_dependents(
        &self,
        request: Request<ListDependentsRequest>,
    ) -> Answer<ListDependentsResponse> {
        let (request, deadline) = open(request, &self.node)?;
        let consistency = convert::consistency(request.consistency).map_err(CallError::from)?;
        let namespace = convert::namespace(&request.namespace).map_err(CallError::from)?;
        let target = convert::service_key(&namespace, &request.service).map_err(CallError::from)?;
        let registry = self.node.read(consistency, request.min_revision, deadline).await?;
        let dependents = registry.dependents(&target);
        let instances = dependents.map(|i| convert::instance_to_wire(i)).collect();
        let header = header(&self.node, registry.revision().0, self.age_ms(consistency));
        Ok(Response::new(ListDependentsResponse { header, instances }))
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
        let revision = self.node.applied.position().revision;
        let header = header(&self.node, revision, self.node.age_ms());
        Ok(Response::new(ListMembersResponse { header, members }))
    }
}

impl RegistryService {
    async fn write(&self, op: Op, deadline: Instant) -> Result<u64, NodeError> {
        Ok(self.node.propose(op, deadline).await?.revision.0)
    }

    fn age_ms(&self, consistency: Consistency) -> u64 {
        match consistency {
            Consistency::Linearizable => 0,
            Consistency::Local => self.node.age_ms(),
        }
    }
}

/// One for each name, in the order asked: the filter's set has its own order, and each name once.
fn in_order_asked<'a>(parts: &'a [Part], filter: &Filter, asked: &[String]) -> Vec<&'a Part> {
    if matches!(filter.selection, Selection::Prefix(_)) {
        return parts.iter().collect();
    }
    let by_name: HashMap<&str, &Part> =
        parts.iter().map(|part| (part.key.name.as_str(), part)).collect();
    asked.iter().filter_map(|name| by_name.get(name.as_str()).copied()).collect()
}
