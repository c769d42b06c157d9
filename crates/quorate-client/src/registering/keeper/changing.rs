//! What a caller waits for: a first registration, and changes of what is wanted.

use quorate_proto::v1::RegisterRequest;
use tokio::time::Instant;
use tonic::Request;

use super::Keeper;
use crate::error::Error;
use crate::nodes::call::{CallError, call};
use crate::nodes::endpoints::Target;
use crate::nodes::retry::{Decision, is_wrong};
use crate::nodes::stub::registry;
use crate::nodes::write::Write;
use crate::types::{InstanceSpec, Update};

impl Keeper {
    /// Registers, over all nodes, until it is done or the call timeout has passed.
    pub(in crate::registering) async fn register_now(&mut self) -> Result<(), Error> {
        let plan = self.core.plan("register", Target::Leader);
        loop {
            let write = Write::begin(&self.core.origin);
            let send = |channel, mut request: Request<RegisterRequest>| {
                request.get_mut().request_id = write.id();
                async move { registry(channel).register(request).await }
            };
            match call(&self.core.endpoints, &plan, &self.register_request(), send).await {
                Ok(answer) => return self.accept(&answer),
                Err(CallError::Refused { decision: Decision::Superseded, status, .. }) => {
                    if !self.take_higher_incarnation(&status) {
                        return Err(Error::superseded(&status));
                    }
                }
                Err(error) => return Err(error.into_error(plan.operation)),
            }
        }
    }

    pub(super) async fn update(
        &mut self,
        only: Option<&(String, String)>,
        update: &Update,
    ) -> Result<(), Error> {
        let before = self.wanted.clone();
        let chosen = |instance: &&mut InstanceSpec| {
            only.is_none_or(|(service, id)| *service == instance.service && *id == instance.id)
        };
        let mut changed = 0;
        for instance in self.wanted.iter_mut().filter(chosen) {
            update.apply_to(instance);
            changed += 1;
        }
        if let (0, Some((service, id))) = (changed, only) {
            return Err(Error::NoSuchInstance { service: service.clone(), id: id.clone() });
        }
        // Registering again under the same incarnation changes all instances in one write, renews
        // the lease, and also works when the lease is gone.
        let result = self.register_now().await;
        match &result {
            Ok(()) | Err(Error::Superseded { .. }) => {}
            // Every node found the request wrong: none has done it.
            Err(Error::Rejected { code, .. }) if is_wrong(*code) => self.wanted = before,
            Err(Error::Rejected { .. }) => {
                self.wanted = before;
                let wait = self.rounds.wait_whole_round();
                self.register_anew(self.due.min(Instant::now() + wait));
            }
            Err(error) => {
                self.register_anew(Instant::now());
                self.retrying(error.clone());
            }
        }
        result
    }

    /// What the registry has is not known, since an attempt may have been made whose answer was
    /// lost: register, not renew, until it is.
    fn register_anew(&mut self, at: Instant) {
        self.lease = None;
        self.renewing = None;
        self.due = at;
    }
}
