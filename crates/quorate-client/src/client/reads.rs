//! The calls that only read.

mod pages;

use quorate_proto::v1::{
    FetchRequest, FetchResponse, ListDependentsRequest, ListMembersRequest, ListServicesRequest,
};
use tonic::{Code, Status};

use crate::client::{Client, registry};
use crate::error::Error;
use crate::nodes::call::{CallError, Plan, call};
use crate::nodes::endpoints::{Endpoints, Target};
use crate::nodes::retry::retry_after;
use crate::types::{
    Consistency, FetchOptions, Fetched, Health, Instance, InstanceStatus, Member, Selection,
    Service, ServiceSummary,
};

impl Client {
    /// The instances of a service that can be called now: those whose effective status is UP and whose health checks do not
    /// fail. For all of them, use [`Client::fetch_with`].
    ///
    /// # Errors
    /// [`Error::UnknownService`], [`Error::NoInstances`], [`Error::Unreachable`], [`Error::Rejected`]: never an empty list.
    pub async fn fetch(&self, service: &str) -> Result<Service, Error> {
        let selection = Selection::service(service).statuses([InstanceStatus::Up]);
        let fetched = self.fetch_with(&FetchOptions::new(selection)).await?;
        let found = fetched.services.into_iter().flatten().next();
        let mut found = found.ok_or(Error::BadAnswer { operation: "fetch", missing: "service" })?;
        found.instances.retain(|instance| instance.health() != Health::Critical);
        if !found.known {
            return Err(Error::UnknownService { service: service.to_owned() });
        }
        if found.instances.is_empty() {
            return Err(Error::NoInstances { service: service.to_owned() });
        }
        Ok(found)
    }

    /// Reads services as the options say. Absent services and services without instances are no errors here. What is too large
    /// for one answer (32 MiB) is read in pages, each with the whole call timeout; [`Fetched::mixed_until`] tells if something
    /// of it changed meanwhile.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Rejected`], [`Error::OtherCluster`] between two pages.
    pub async fn fetch_with(&self, options: &FetchOptions) -> Result<Fetched, Error> {
        let request = FetchRequest {
            namespace: self.core.options.namespace.clone(),
            services: options.selection.services.clone(),
            prefix: options.selection.prefix.clone(),
            statuses: options.selection.status_numbers(),
            consistency: options.consistency as i32,
            min_revision: options.min_revision,
            not_modified_since: options.not_modified_since,
            cluster_id: options.cluster_id,
            ..FetchRequest::default()
        };
        read(&self.core.endpoints, &self.core.plan("fetch", Target::Any), request).await
    }

    /// The services whose name begins with `prefix`, ordered by name, however many there are.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Rejected`].
    pub async fn list_services(
        &self,
        prefix: &str,
        consistency: Consistency,
    ) -> Result<Vec<ServiceSummary>, Error> {
        let plan = self.core.plan("list services", Target::Any);
        let mut request = ListServicesRequest {
            namespace: self.core.options.namespace.clone(),
            prefix: prefix.to_owned(),
            consistency: consistency as i32,
            ..ListServicesRequest::default()
        };
        let mut all = Vec::new();
        loop {
            let send =
                |channel, request| async move { registry(channel).list_services(request).await };
            let answer = call(&self.core.endpoints, &plan, &request, send)
                .await
                .map_err(|error| error.into_error(plan.operation))?;
            let header = answer.header.unwrap_or_default();
            // A list of which one part is another cluster's would be nobody's.
            if !request.after.is_empty() && header.cluster_id != request.cluster_id {
                let (was, is) = (request.cluster_id, header.cluster_id);
                return Err(Error::OtherCluster { was, is });
            }
            all.extend(answer.services);
            // Each page begins after the one before it, so this ends even with a node that repeats itself.
            if answer.next <= request.after {
                return Ok(all);
            }
            request.after = answer.next;
            // The pages may come from different nodes: none may be older than the first.
            request.min_revision = request.min_revision.max(header.revision);
            request.cluster_id = header.cluster_id;
        }
    }

    /// The instances that declare that they require `service`, ordered by service and id.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Rejected`].
    pub async fn dependents(&self, service: &str) -> Result<Vec<Instance>, Error> {
        let request = ListDependentsRequest {
            namespace: self.core.options.namespace.clone(),
            service: service.to_owned(),
            ..ListDependentsRequest::default()
        };
        let plan = self.core.plan("list dependents", Target::Any);
        let send =
            |channel, request| async move { registry(channel).list_dependents(request).await };
        let answer = call(&self.core.endpoints, &plan, &request, send)
            .await
            .map_err(|error| error.into_error(plan.operation))?;
        Ok(answer.instances)
    }

    /// The nodes of the cluster.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Rejected`].
    pub async fn members(&self) -> Result<Vec<Member>, Error> {
        let plan = self.core.plan("list members", Target::Any);
        let send = |channel, request| async move { registry(channel).list_members(request).await };
        let answer = call(&self.core.endpoints, &plan, &ListMembersRequest {}, send)
            .await
            .map_err(|error| error.into_error(plan.operation))?;
        self.core
            .endpoints
            .replace_members(answer.members.iter().map(|member| member.client_address.as_str()));
        Ok(answer.members)
    }
}

/// Reads what is asked for, in pages if it is too large for one answer.
pub(crate) async fn read(
    endpoints: &Endpoints,
    plan: &Plan,
    request: FetchRequest,
) -> Result<Fetched, Error> {
    let answer = match fetch_once(endpoints, plan, &request).await {
        Err(CallError::Refused { status, .. }) if is_too_large(&status) => {
            return pages::fetch(endpoints, plan, request).await;
        }
        answer => answer.map_err(|error| error.into_error(plan.operation))?,
    };
    let missing = |missing| Error::BadAnswer { operation: plan.operation, missing };
    let header = answer.header.ok_or(missing("header"))?;
    if !answer.not_modified && answer.services.len() < request.services.len() {
        return Err(missing("service"));
    }
    let services = (!answer.not_modified).then_some(answer.services);
    Ok(Fetched { header, services, mixed_until: None })
}

/// One answer, which may be a page.
async fn fetch_once(
    endpoints: &Endpoints,
    plan: &Plan,
    request: &FetchRequest,
) -> Result<FetchResponse, CallError> {
    let send = |channel, request| async move { registry(channel).fetch(request).await };
    call(endpoints, plan, request, send).await
}

/// Whether the answer was refused for its own size, not for what else is under way.
fn is_too_large(status: &Status) -> bool {
    status.code() == Code::ResourceExhausted && retry_after(status).is_none()
}
