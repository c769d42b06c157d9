//! The calls that only read.

use quorate_proto::ClusterId;
use quorate_proto::v1::{
    FetchRequest, ListDependentsRequest, ListMembersRequest, ListServicesRequest,
};

use super::Client;
use crate::error::Error;
use crate::nodes::call::call;
use crate::nodes::endpoints::Target;
use crate::nodes::stub::registry;
use crate::reading::{check_cluster, read};
use crate::types::{
    Consistency, FetchOptions, Fetched, Health, Instance, InstanceStatus, Member, Selection,
    Service, ServiceSummary,
};

impl Client {
    /// The instances of a service that can be called now: their effective status is UP and their
    /// health checks do not fail. For all of them, use [`Client::fetch_with`].
    ///
    /// # Errors
    /// [`Error::UnknownService`], [`Error::NoInstances`], [`Error::Unreachable`],
    /// [`Error::Rejected`]: never an empty list.
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

    /// Reads services as the options say. Absent services and services without instances are no
    /// errors here. What is too large for one answer (32 MiB) is read in pages, each with the whole
    /// call timeout; [`Fetched::mixed_until`] says if something of it changed meanwhile.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Rejected`], [`Error::OtherCluster`] between two pages.
    pub async fn fetch_with(&self, options: &FetchOptions) -> Result<Fetched, Error> {
        let request = FetchRequest {
            consistency: options.consistency as i32,
            min_revision: options.min_revision,
            not_modified_since: options.not_modified_since,
            cluster_id: ClusterId::to_wire(options.cluster_id),
            ..options.selection.fetch(&self.core.options.namespace)
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
        let (mut all, mut last) = (Vec::new(), None);
        loop {
            let send =
                |channel, request| async move { registry(channel).list_services(request).await };
            let answer = call(&self.core.endpoints, &plan, &request, send)
                .await
                .map_err(|error| error.into_error(plan.operation))?;
            let header = answer.header.unwrap_or_default();
            // A list with a part of another cluster would belong to neither.
            if let Some(last) = &last {
                check_cluster(plan.operation, last, &header)?;
            }
            all.extend(answer.services);
            // Each page begins after the one before it, so this ends even with a node that repeats
            // itself.
            if answer.next <= request.after {
                return Ok(all);
            }
            request.after = answer.next;
            // The pages may come from different nodes: none may be older than the first.
            request.min_revision = request.min_revision.max(header.revision);
            request.cluster_id = header.cluster_id;
            last = Some(header);
        }
    }

    /// The instances that declare that they require `service`, ordered by service and id, however
    /// many there are.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Rejected`], [`Error::OtherCluster`] between two pages.
    pub async fn dependents(&self, service: &str) -> Result<Vec<Instance>, Error> {
        let mut request = ListDependentsRequest {
            namespace: self.core.options.namespace.clone(),
            service: service.to_owned(),
            ..ListDependentsRequest::default()
        };
        let plan = self.core.plan("list dependents", Target::Any);
        let send =
            |channel, request| async move { registry(channel).list_dependents(request).await };
        let (mut all, mut last) = (Vec::new(), None);
        loop {
            let answer = call(&self.core.endpoints, &plan, &request, send)
                .await
                .map_err(|error| error.into_error(plan.operation))?;
            let header = answer.header.unwrap_or_default();
            if let Some(last) = &last {
                check_cluster(plan.operation, last, &header)?;
            }
            all.extend(answer.instances);
            // As with services; compared as pairs, for "a-b/1" comes after "a/1".
            if answer.next.split_once('/') <= request.after.split_once('/') {
                return Ok(all);
            }
            request.after = answer.next;
            request.min_revision = request.min_revision.max(header.revision);
            request.cluster_id = header.cluster_id;
            last = Some(header);
        }
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
        self.core.endpoints.learn_members(&answer);
        Ok(answer.members)
    }
}
