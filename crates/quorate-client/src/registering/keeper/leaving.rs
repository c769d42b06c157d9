//! The end of a registration that is wanted: its instances are deregistered, wherever they are.

use quorate_proto::v1::{DeregisterRequest, InstanceRef};
use tokio::time::Instant;
use tonic::Request;

use super::{Held, Keeper};
use crate::error::Error;
use crate::nodes::call::{CallError, call};
use crate::nodes::endpoints::Target;
use crate::nodes::retry::Decision;
use crate::nodes::stub::registry;
use crate::nodes::write::Write;

impl Keeper {
    pub(super) async fn deregister(&mut self, deadline: Instant) -> Result<(), Error> {
        let instances = self.wanted.iter().map(|instance| InstanceRef {
            service: instance.service.clone(),
            id: instance.id.clone(),
            incarnation: self.incarnation(),
        });
        // By instance, not by lease: an attempt to register whose answer was lost may have made
        // another lease.
        let request = DeregisterRequest {
            namespace: self.core.options.namespace.clone(),
            instances: instances.collect(),
            ..DeregisterRequest::default()
        };
        match self.deregister_call(deadline, &request).await {
            Err(CallError::Refused { decision: Decision::Superseded, status, .. }) => {
                if let Some(Held { lease, .. }) = self.lease.filter(|_| self.wanted.len() > 1) {
                    // Another run has some of the instances; the rest goes with the lease.
                    let request = DeregisterRequest {
                        lease_id: lease.id,
                        cluster_id: lease.cluster_id.get(),
                        ..DeregisterRequest::default()
                    };
                    self.deregister_call(deadline, &request)
                        .await
                        .map_err(|error| error.into_write_error("deregister"))?;
                }
                Err(Error::superseded(&status))
            }
            Err(error) => Err(error.into_write_error("deregister")),
            Ok(()) => Ok(()),
        }
    }

    async fn deregister_call(
        &self,
        deadline: Instant,
        request: &DeregisterRequest,
    ) -> Result<(), CallError> {
        let plan = self.core.plan("deregister", Target::Leader).until(deadline);
        let write = Write::begin(&self.core.origin);
        let send = |channel, mut request: Request<DeregisterRequest>| {
            request.get_mut().request_id = write.id();
            async move { registry(channel).deregister(request).await }
        };
        match call(&self.core.endpoints, &plan, request, send).await {
            Ok(_) => Ok(()),
            // It had run out, or an earlier call that was given up has removed it: it is not there.
            Err(CallError::Refused { decision: Decision::Reregister, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
