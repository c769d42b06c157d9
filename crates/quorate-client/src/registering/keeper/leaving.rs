//! The end of a registration that is wanted: its instances are deregistered, wherever they are.

use quorate_proto::v1::{DeregisterRequest, InstanceRef};
use tokio::time::Instant;
use tonic::Request;

use super::{Held, Keeper};
use crate::error::Error;
use crate::nodes::call::{CallError, call};
use crate::nodes::endpoints::Target;
use crate::nodes::retry::{Decision, is_wrong};
use crate::nodes::stub::registry;
use crate::nodes::write::Write;

impl Keeper {
    pub(super) async fn deregister(&mut self, deadline: Instant) -> Result<(), Error> {
        // By instance, not by lease: an attempt to register whose answer was lost may have made
        // another lease.
        let by_instance = self.by_instance();
        let Err(error) = self.deregister_call(deadline, &by_instance).await else { return Ok(()) };
        let CallError::Refused { decision, status, .. } = &error else {
            return Err(not_deregistered(error));
        };
        let is_superseded = *decision == Decision::Superseded;
        let goes_with_lease = is_superseded && self.wanted.len() > 1 || is_wrong(status.code());
        match self.lease.filter(|_| goes_with_lease) {
            // Another run has some of the instances, or one is not there, and no node takes the
            // incarnation for it; the rest goes with the lease.
            Some(Held { lease, .. }) => {
                let request = DeregisterRequest {
                    lease_id: lease.id,
                    cluster_id: lease.cluster_id.get(),
                    ..DeregisterRequest::default()
                };
                self.deregister_call(deadline, &request).await.map_err(not_deregistered)?;
                if is_superseded { Err(not_deregistered(error)) } else { Ok(()) }
            }
            None if self.leave_higher_incarnation(status) => {
                let by_own = self.by_instance();
                self.deregister_call(deadline, &by_own).await.map_err(not_deregistered)
            }
            None => Err(not_deregistered(error)),
        }
    }

    fn by_instance(&self) -> DeregisterRequest {
        let instances = self.wanted.iter().map(|instance| InstanceRef {
            service: instance.service.clone(),
            id: instance.id.clone(),
            incarnation: self.incarnation(),
        });
        DeregisterRequest {
            namespace: self.core.options.namespace.clone(),
            instances: instances.collect(),
            ..DeregisterRequest::default()
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

fn not_deregistered(error: CallError) -> Error {
    match error {
        CallError::Refused { decision: Decision::Superseded, status, .. } => {
            Error::superseded(&status)
        }
        error => error.into_write_error("deregister"),
    }
}
