//! The Registry service, all but Watch (`api/grpc/watch.rs`).

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt, stream};
use quorate_proto::encoded::v1::registry_server::Registry;
use quorate_proto::encoded::v1::{EncodedFetchResponse, EncodedWatchResponse};
use quorate_proto::v1::{
    DeregisterRequest, DeregisterResponse, FetchRequest, Instance, ListDependentsRequest,
    ListDependentsResponse, ListMembersRequest, ListMembersResponse, ListServicesRequest,
    ListServicesResponse, RegisterRequest, RegisterResponse, RenewRequest, RenewResponse,
    ResponseHeader, ServiceSummary, UpdateRequest, UpdateResponse, WatchRequest, WatchSubscribe,
};
use quorate_state::{LeaseId, Register, Rejection, ServiceName, Status as State};
use tonic::{Request, Response, Status, Streaming};

use crate::api::grpc::convert;
use crate::api::grpc::door::{self, Call, Method};
use crate::api::grpc::fetch::{self, Local};
use crate::api::grpc::pages;
use crate::api::grpc::told::{granted, standing};
use crate::api::grpc::watch::{Asks, Watching};
use crate::api::grpc::{age_ms, header, is_foreign, min_revision, rights};
use crate::api::incarnations;
use crate::error::{CallError, NodeError};
use crate::net::watched::OfWatch;
use crate::node::Node;

/// Names in one answer of ListServices.
const LIST_MAX: usize = 10_000;

/// Handles calls to the Registry service.
#[derive(Clone)]
pub(crate) struct RegistryService {
    pub(crate) node: Arc<Node>,
}

type Answer<T> = Result<Response<T>, Status>;
type Handled<T> = Result<Response<T>, CallError>;
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Registry for RegistryService {
    type RenewStreamStream = Answers<RenewResponse>;
    type WatchStream = Answers<EncodedWatchResponse>;

    async fn register(&self, request: Request<RegisterRequest>) -> Answer<RegisterResponse> {
        door::answer(&self.node, Method::Register, request, |call| self.on_register(call)).await
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Answer<RenewResponse> {
        door::answer(&self.node, Method::Renew, request, |call| self.on_renew(call)).await
    }

    async fn renew_stream(
        &self,
        request: Request<Streaming<RenewRequest>>,
    ) -> Answer<Self::RenewStreamStream> {
        door::answer(&self.node, Method::RenewStream, request, |call| self.on_renew_stream(call))
            .await
    }

    async fn deregister(&self, request: Request<DeregisterRequest>) -> Answer<DeregisterResponse> {
        door::answer(&self.node, Method::Deregister, request, |call| self.on_deregister(call)).await
    }

    async fn update(&self, request: Request<UpdateRequest>) -> Answer<UpdateResponse> {
        door::answer(&self.node, Method::Update, request, |call| self.on_update(call)).await
    }

    async fn fetch(&self, request: Request<FetchRequest>) -> Answer<EncodedFetchResponse> {
        door::answer(&self.node, Method::Fetch, request, |call| self.on_fetch(call)).await
    }

    async fn list_services(
        &self,
        request: Request<ListServicesRequest>,
    ) -> Answer<ListServicesResponse> {
        door::answer(&self.node, Method::ListServices, request, |call| self.on_list_services(call))
            .await
    }

    async fn list_dependents(
        &self,
        request: Request<ListDependentsRequest>,
    ) -> Answer<ListDependentsResponse> {
        door::answer(&self.node, Method::ListDependents, request, |call| {
            self.on_list_dependents(call)
        })
        .await
    }

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Answer<Self::WatchStream> {
        door::answer(&self.node, Method::Watch, request.map(Asks::new), |call| self.on_watch(call))
            .await
    }

    async fn list_members(
        &self,
        request: Request<ListMembersRequest>,
    ) -> Answer<ListMembersResponse> {
        door::answer(&self.node, Method::ListMembers, request, |call| self.on_list_members(call))
            .await
    }
}

impl RegistryService {
    async fn on_register(&self, call: Call<RegisterRequest>) -> Handled<RegisterResponse> {
        let Call { message: mut request, deadline, caller } = call;
        let id = convert::request_id(request.request_id.take(), rights::share(&self.node, &caller));
        let (lease, cluster_id) = (convert::lease_id(request.lease_id), request.cluster_id);
        let within = rights::within(&self.node, &caller);
        let register = Register { within, ..convert::register(request)? };
        let check = || incarnations::check_register(&register, incarnations::held(&self.node));
        incarnations::check_entering(&self.node, deadline, check).await?;
        self.check_lease(lease, cluster_id)?;
        let (registered, revision) = self.node.propose(register, id, deadline).await?;
        let answer = RegisterResponse {
            header: header(&self.node, revision.0, 0),
            lease_id: registered.lease.0,
            ttl_ms: registered.ttl.as_ms(),
            incarnation: registered.incarnation.0,
        };
        Ok(granted(revision.0, registered.lease, answer))
    }

    async fn on_renew(&self, call: Call<RenewRequest>) -> Handled<RenewResponse> {
        let Call { message: request, deadline, caller } = call;
        let leases = convert::renewals(&request)?;
        let (asked, first) = (leases.len(), leases[0]);
        self.check_lease(Some(first), request.cluster_id)?;
        let own = rights::own_leases(&self.node, &caller, leases, deadline).await?;
        let (leases, mut unknown) = own;
        let unknown_lease = || NodeError::Rejected(Rejection::UnknownLease(first)).into();
        if leases.is_empty() {
            return Err(unknown_lease());
        }
        let patience =
            super::renew::patience(&self.node, |window| caller.line.calls_in_turn(window));
        let renewed = self.node.renew(leases, patience, deadline).await?;
        unknown.extend(renewed.unknown);
        if unknown.len() == asked {
            return Err(unknown_lease());
        }
        Ok(Response::new(super::renew::answer(&self.node, unknown, renewed.revision)))
    }

    async fn on_renew_stream(
        &self,
        call: Call<Streaming<RenewRequest>>,
    ) -> Handled<Answers<RenewResponse>> {
        let answers = super::renew::answers(self.node.clone(), call.caller, call.message);
        Ok(Response::new(answers.boxed()))
    }

    async fn on_deregister(&self, call: Call<DeregisterRequest>) -> Handled<DeregisterResponse> {
        let Call { message: mut request, deadline, caller } = call;
        let id = convert::request_id(request.request_id.take(), rights::share(&self.node, &caller));
        let (lease, cluster_id) = (convert::lease_id(request.lease_id), request.cluster_id);
        let deregister = convert::deregister(request)?;
        let check = || incarnations::check_deregister(&deregister, incarnations::held(&self.node));
        incarnations::check_entering(&self.node, deadline, check).await?;
        self.check_lease(lease, cluster_id)?;
        let (removed, revision) = self.node.propose(deregister, id, deadline).await?;
        let header = header(&self.node, revision.0, 0);
        Ok(standing(revision.0, DeregisterResponse { header, removed }))
    }

    async fn on_update(&self, call: Call<UpdateRequest>) -> Handled<UpdateResponse> {
        let Call { message: mut request, deadline, caller } = call;
        let id = convert::request_id(request.request_id.take(), rights::share(&self.node, &caller));
        let update = convert::update(request)?;
        let ((), revision) = self.node.propose(update, id, deadline).await?;
        let header = header(&self.node, revision.0, 0);
        Ok(standing(revision.0, UpdateResponse { header }))
    }

    async fn on_fetch(&self, call: Call<FetchRequest>) -> Handled<EncodedFetchResponse> {
        fetch::answer(&self.node, call).await
    }

    async fn on_list_services(
        &self,
        call: Call<ListServicesRequest>,
    ) -> Handled<ListServicesResponse> {
        let Call { message: request, deadline, caller } = call;
        let consistency = convert::consistency(request.consistency)?;
        let namespace = convert::namespace(&request.namespace)?;
        let prefix = convert::checked_prefix(&request.prefix)?;
        let after = match request.after.as_str() {
            "" => None,
            name => Some(ServiceName::new("after", name)?),
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
        caller.counted(&self.node, deadline, answer)
    }

    async fn on_list_dependents(
        &self,
        call: Call<ListDependentsRequest>,
    ) -> Handled<ListDependentsResponse> {
        let Call { message: request, deadline, caller } = call;
        let consistency = convert::consistency(request.consistency)?;
        let namespace = convert::namespace(&request.namespace)?;
        let target = convert::service_key(&namespace, &request.service)?;
        let after = pages::after_instance(&namespace, &request.after)?;
        let min_revision = min_revision(&self.node, request.min_revision, request.cluster_id);
        let (registry, fresh_at) = self.node.read(consistency, min_revision, deadline).await?;
        let (found, next) =
            pages::some_of(registry.dependents(&target, after.as_ref()), request.limit);
        let header = header(&self.node, registry.revision().0, age_ms(fresh_at, consistency));
        let count = found.len();
        let make = move || found.iter().map(|it| convert::instance_to_wire(it)).collect();
        let instances = fetch::made(&self.node, count, deadline, make).await?;
        let answer = ListDependentsResponse { header, instances, next };
        caller.counted(&self.node, deadline, answer)
    }

    /// A fetch of one instance: of the one service that the request names, the one with this id.
    pub(in crate::api) async fn fetch_instance(
        &self,
        request: Request<FetchRequest>,
        id: &str,
    ) -> Answer<(Option<ResponseHeader>, Option<Instance>)> {
        door::answer(&self.node, Method::Fetch, request, |call| {
            fetch::instance(&self.node, call, id)
        })
        .await
    }

    /// A fetch of what this node has of the services with a prefix, as the state machine has it.
    pub(in crate::api) async fn local(&self, request: Request<FetchRequest>) -> Answer<Local> {
        door::answer(&self.node, Method::Fetch, request, |call| fetch::local(&self.node, call))
            .await
    }

    /// A watch of one that only listens. `oldest`: to all changes that this node still has.
    pub(in crate::api) async fn watch_one(
        &self,
        request: Request<WatchSubscribe>,
        oldest: bool,
    ) -> Answer<Answers<EncodedWatchResponse>> {
        let request = request.map(|subscribe| Asks::one(subscribe, oldest));
        door::answer(&self.node, Method::Watch, request, async |call| {
            let watching = Watching::begin(self.node.clone(), call).await?;
            Ok::<_, Status>(Response::new(watching.into_stream().boxed()))
        })
        .await
    }

    /// Its messages are no stream of tonic's: `net/watched.rs` frames them.
    async fn on_watch(&self, call: Call<Asks>) -> Answer<Answers<EncodedWatchResponse>> {
        let line = call.caller.line.clone();
        let watching = Watching::begin(self.node.clone(), call).await?;
        let mut response = Response::new(stream::empty().boxed());
        response.extensions_mut().insert(OfWatch::new(line, watching.into_messages()));
        Ok(response)
    }

    async fn on_list_members(
        &self,
        call: Call<ListMembersRequest>,
    ) -> Handled<ListMembersResponse> {
        let age_ms = self.node.age_ms();
        let revision = self.node.applied().position().revision;
        // Before the members: they are no older than it says.
        let header = header(&self.node, revision, age_ms);
        let mut members: Vec<_> = self.node.members().iter().map(convert::member_to_wire).collect();
        if !rights::sees_cluster(&call.caller.principal) {
            members.iter_mut().for_each(|member| member.peer_address.clear());
        }
        Ok(Response::new(ListMembersResponse { header, members }))
    }

    /// Refuses a lease of another cluster: here, its id may be a stranger's.
    fn check_lease(&self, lease: Option<LeaseId>, cluster_id: u64) -> Result<(), NodeError> {
        match lease.filter(|_| is_foreign(&self.node, cluster_id)) {
            Some(lease) => Err(NodeError::Rejected(Rejection::UnknownLease(lease))),
            None => Ok(()),
        }
    }
}
