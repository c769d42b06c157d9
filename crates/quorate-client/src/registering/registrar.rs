//! [`Registrar`]: what the registrations of a client share, and how one begins. Also changes
//! instances that others registered.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use quorate_proto::v1::{DeregisterRequest, InstanceRef, UpdateRequest};
use tokio::sync::watch;
use tonic::Request;

use super::claims::Claims;
use super::handle::{RegistrationHandle, RegistrationState, spawn};
use super::keeper::Keeper;
use super::renewals::Renewals;
use crate::core::Core;
use crate::error::Error;
use crate::nodes::call::call;
use crate::nodes::endpoints::Target;
use crate::nodes::stub::registry;
use crate::nodes::write::Write;
use crate::types::{Registration, Update};

/// The TTL that the registry grants when none is asked for.
pub(super) const DEFAULT_TTL: Duration = Duration::from_secs(15);

/// What the registrations of a client share.
#[derive(Debug)]
pub(crate) struct Registrar {
    core: Arc<Core>,
    claims: Claims,
    /// What renews for all registrations; they hold it.
    renewals: Mutex<Weak<Renewals>>,
}

impl Registrar {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core, claims: Claims::default(), renewals: Mutex::default() }
    }

    pub(crate) async fn register(
        &self,
        registration: Registration,
    ) -> Result<RegistrationHandle, Error> {
        let (mut keeper, state) = self.prepare(registration)?;
        let deadline = tokio::time::Instant::now() + self.core.options.call_timeout;
        let registered = keeper.register_now(deadline, true).await;
        registered.map_err(|failed| failed.error)?;
        Ok(spawn(keeper, state))
    }

    pub(crate) fn register_in_background(
        &self,
        registration: Registration,
    ) -> Result<RegistrationHandle, Error> {
        let (keeper, state) = self.prepare(registration)?;
        Ok(spawn(keeper, state))
    }

    pub(super) fn prepare(
        &self,
        registration: Registration,
    ) -> Result<(Keeper, watch::Receiver<RegistrationState>), Error> {
        if let Some(value) = registration.renew_every {
            let ttl = registration.ttl.unwrap_or(DEFAULT_TTL);
            if value.is_zero() || value > ttl / 2 {
                let must = "must be more than 0 and at most half of the TTL";
                return Err(Error::InvalidOption { option: "renew_every", value, must });
            }
        }
        let claim = Arc::new(self.claims.claim(&registration.instances)?);
        let started = RegistrationState::Retrying { since: Instant::now(), last_error: None };
        let (state, observer) = watch::channel(started);
        let core = self.core.clone();
        Ok((Keeper::new(core, claim, self.renewals(), registration, state), observer))
    }

    /// Where leases are renewed. It ends with the last registration that has it.
    fn renewals(&self) -> Arc<Renewals> {
        let mut shared = self.renewals.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let Core { endpoints, options, runtime, .. } = &*self.core;
            let started = Renewals::start(runtime, endpoints.clone(), options.attempt_timeout);
            let started = Arc::new(started);
            *shared = Arc::downgrade(&started);
            started
        })
    }

    /// Changes an instance that this client need not have registered.
    pub(crate) async fn update_foreign(
        &self,
        service: &str,
        id: &str,
        update: &Update,
    ) -> Result<(), Error> {
        let Core { endpoints, options, origin, .. } = &*self.core;
        let plan = self.core.plan("update", Target::Leader);
        let request = update.request(&options.namespace, instance_ref(service, id));
        let write = Write::begin(origin);
        let send = |channel, mut request: Request<UpdateRequest>| {
            request.get_mut().request_id = write.id();
            async move { registry(channel).update(request).await }
        };
        match call(endpoints, &plan, &request, send).await {
            Ok(_) => Ok(()),
            Err(error) => Err(error.into_write_error(plan.operation)),
        }
    }

    /// Removes an instance that this client need not have registered.
    pub(crate) async fn deregister_foreign(&self, service: &str, id: &str) -> Result<(), Error> {
        let Core { endpoints, options, origin, .. } = &*self.core;
        let plan = self.core.plan("deregister", Target::Leader);
        let request = DeregisterRequest {
            namespace: options.namespace.clone(),
            instances: vec![instance_ref(service, id)],
            ..DeregisterRequest::default()
        };
        let write = Write::begin(origin);
        let send = |channel, mut request: Request<DeregisterRequest>| {
            request.get_mut().request_id = write.id();
            async move { registry(channel).deregister(request).await }
        };
        match call(endpoints, &plan, &request, send).await {
            Ok(_) => Ok(()),
            Err(error) => Err(error.into_write_error(plan.operation)),
        }
    }
}

fn instance_ref(service: &str, id: &str) -> InstanceRef {
    InstanceRef { service: service.to_owned(), id: id.to_owned(), ..InstanceRef::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::suspend;
    use crate::types::InstanceBuilder;

    /// Timers stand still while a machine is suspended, and leases go on.
    #[tokio::test(start_paused = true)]
    async fn all_leases_are_renewed_when_a_machine_was_suspended() {
        let registrar = Registrar::new(Arc::new(Core::for_tests()));
        let instance = InstanceBuilder::new("s", "a").endpoint("http", "http://h:1");
        let (mut keeper, _state) = registrar.prepare(instance.into()).unwrap();
        let hour = Duration::from_secs(3_600);
        keeper.pretend_registered(hour);
        assert!(!keeper.renews_within(Duration::from_secs(5)).await, "nothing is due");
        suspend(hour);
        assert!(keeper.renews_within(Duration::from_secs(5)).await);
    }
}
