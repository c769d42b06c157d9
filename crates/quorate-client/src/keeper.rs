//! The task behind a registration: makes the registry have what the application wants, for ever. The one place that renews.
//!
//! It is one loop that does one thing at a time: an attempt (bounded by its timeout) or a command, never both. So once a
//! deregistration has begun, no renewal or registration of ours is under way or follows.

use std::sync::Arc;
use std::time::Duration;

use quorate_proto::v1::{
    DeregisterRequest, InstanceRef, LeaseRenewal, RegisterRequest, RegisterResponse, RenewRequest,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use crate::call::{CallError, Failure, Plan, Rounds, attempt, call};
use crate::claims::{Claim, incarnation_at_least, new_incarnation};
use crate::client::{Core, registry};
use crate::endpoints::Target;
use crate::error::{Error, current_incarnation};
use crate::registration::{Lease, RegistrationState};
use crate::retry::{BACKGROUND, Decision, jittered};
use crate::types::{InstanceSpec, Registration, Update};

/// A renewal gets no less than this on one node, however short the TTL.
const SHORTEST_RENEWAL: Duration = Duration::from_millis(100);
/// How often a first registration takes the next higher incarnation, should others do the same meanwhile.
const FIRST_INCARNATIONS_MAX: u32 = 3;

/// What the handle asks for.
#[derive(Debug)]
pub(crate) enum Command {
    Update {
        only: Option<(String, String)>,
        update: Update,
        reply: oneshot::Sender<Result<(), Error>>,
    },
    Deregister {
        deadline: Instant,
        reply: oneshot::Sender<Result<(), Error>>,
    },
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// An attempt when it is due, and commands.
    Keep,
    /// Only commands: it is leaving.
    Idle,
    /// Nothing: it is superseded or deregistered.
    Stop,
}

#[derive(Debug)]
pub(crate) struct Keeper {
    core: Arc<Core>,
    claim: Arc<Claim>,
    /// What the application wants to stand in the registry.
    wanted: Vec<InstanceSpec>,
    ttl: Option<Duration>,
    renew_every: Option<Duration>,
    incarnation: u64,
    /// How many more times a higher incarnation may be taken; 0 after the first success.
    higher_incarnations: u32,
    /// Set while the registry has what is wanted, as far as is known.
    lease: Option<Held>,
    /// When the next attempt is due. Only attempts move it: commands must not be able to put a renewal off.
    due: Instant,
    state: watch::Sender<RegistrationState>,
    rounds: Rounds,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    lease: Lease,
    interval: Duration,
}

impl Keeper {
    pub(crate) fn new(
        core: Arc<Core>,
        claim: Arc<Claim>,
        registration: Registration,
        state: watch::Sender<RegistrationState>,
    ) -> Self {
        Self {
            core,
            claim,
            wanted: registration.instances,
            ttl: registration.ttl,
            renew_every: registration.renew_every,
            incarnation: new_incarnation(),
            higher_incarnations: FIRST_INCARNATIONS_MAX,
            lease: None,
            due: Instant::now(),
            state,
            rounds: Rounds::new(BACKGROUND),
        }
    }

    pub(crate) fn core(&self) -> Arc<Core> {
        self.core.clone()
    }

    pub(crate) fn claim(&self) -> Arc<Claim> {
        self.claim.clone()
    }

    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Runs until the registration has ended or the handle is gone.
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut next = Next::Keep;
        loop {
            let command = match next {
                Next::Stop => break,
                Next::Idle => Ok(commands.recv().await),
                Next::Keep => timeout_at(self.due, commands.recv()).await,
            };
            next = match command {
                Ok(Some(command)) => self.obey(command).await,
                Ok(None) => break,
                Err(_elapsed) => self.reconcile().await,
            };
        }
        self.claim.release();
    }

    /// Registers, over all nodes, until it is done or the call timeout has passed.
    pub(crate) async fn register_now(&mut self) -> Result<(), Error> {
        let plan = self.core.plan("register", Target::Leader);
        loop {
            let send = |channel, request| async move { registry(channel).register(request).await };
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

    async fn obey(&mut self, command: Command) -> Next {
        let leaving = matches!(*self.state.borrow(), RegistrationState::Leaving);
        match command {
            Command::Update { reply, .. } if leaving => {
                let _caller_gone = reply.send(Err(Error::AlreadyDeregistered));
                Next::Idle
            }
            Command::Update { only, update, reply } => {
                let result = self.update(only.as_ref(), &update).await;
                let next = match &result {
                    Err(Error::Superseded { current }) => self.superseded(*current),
                    _ => Next::Keep,
                };
                let _caller_gone = reply.send(result);
                next
            }
            Command::Deregister { deadline, reply } => {
                self.state.send_replace(RegistrationState::Leaving);
                let result = self.deregister(deadline).await;
                let next = match &result {
                    Ok(()) => {
                        self.state.send_replace(RegistrationState::Deregistered);
                        Next::Stop
                    }
                    Err(Error::Superseded { current }) => self.superseded(*current),
                    Err(_) => Next::Idle,
                };
                if next == Next::Stop {
                    // Before the answer, so that the caller can register the same instance again at once.
                    self.claim.release();
                }
                let _caller_gone = reply.send(result);
                next
            }
        }
    }

    /// One attempt on one node to bring the registry to what is wanted.
    async fn reconcile(&mut self) -> Next {
        let failure = match self.lease {
            Some(lease) => self.renew(lease).await.err(),
            None => self.register_once().await.err(),
        };
        let Some(failure) = failure else { return Next::Keep };
        let Failure { decision, status, .. } = &failure;
        let wait = match decision {
            Decision::RetryElsewhere | Decision::TryOthers => {
                self.rounds.wait(&self.core.endpoints)
            }
            // The lease is gone: whether the instance is another's now, registering will tell.
            Decision::Reregister | Decision::Superseded if self.lease.take().is_some() => {
                Duration::ZERO
            }
            Decision::Superseded if self.take_higher_incarnation(status) => Duration::ZERO,
            Decision::Superseded => return self.superseded(current_incarnation(status)),
            Decision::Reregister | Decision::Exhausted | Decision::Fail => {
                self.rounds.wait_whole_round()
            }
        };
        self.due = Instant::now() + wait;
        self.retrying(failure.into_error());
        Next::Keep
    }

    async fn renew(&mut self, held: Held) -> Result<(), Failure> {
        let plan = self.attempt_plan("renew", (held.interval / 2).max(SHORTEST_RENEWAL));
        let request = RenewRequest { renewals: vec![LeaseRenewal { lease_id: held.lease.id }] };
        let send = |channel, request| async move { registry(channel).renew(request).await };
        let deadline = Instant::now() + plan.within;
        let answer =
            attempt(&self.core.endpoints, &plan, &mut self.rounds, deadline, &request, send)
                .await?;
        if answer.unknown_lease_ids.contains(&held.lease.id) {
            return Err(Failure::answered(&plan, Status::not_found("the lease is gone")));
        }
        self.due = Instant::now() + jittered(held.interval);
        if matches!(*self.state.borrow(), RegistrationState::Retrying { .. }) {
            let revision = answer.header.map_or(0, |header| header.revision);
            self.registered(Lease { revision, ..held.lease });
        }
        Ok(())
    }

    async fn register_once(&mut self) -> Result<(), Failure> {
        let plan = self.attempt_plan("register", self.core.options.attempt_timeout);
        let request = self.register_request();
        let send = |channel, request| async move { registry(channel).register(request).await };
        let deadline = Instant::now() + plan.within;
        let answer =
            attempt(&self.core.endpoints, &plan, &mut self.rounds, deadline, &request, send)
                .await?;
        self.accept(&answer)
            .map_err(|error| Failure::answered(&plan, Status::out_of_range(error.to_string())))
    }

    async fn update(
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
        // Registering again under the same incarnation changes all instances in one write, renews the lease, and also
        // works when the lease is gone.
        let result = self.register_now().await;
        match &result {
            Ok(()) | Err(Error::Superseded { .. }) => {}
            Err(Error::Rejected { .. }) => self.wanted = before,
            Err(error) => {
                // Whether the registry has it is not known: register, not renew, until it is.
                self.lease = None;
                self.due = Instant::now();
                self.retrying(error.clone());
            }
        }
        result
    }

    async fn deregister(&mut self, deadline: Instant) -> Result<(), Error> {
        let instances = self.wanted.iter().map(|instance| InstanceRef {
            service: instance.service.clone(),
            id: instance.id.clone(),
            incarnation: self.incarnation,
        });
        // By instance, not by lease: an attempt to register whose answer was lost may have made another lease.
        let request = DeregisterRequest {
            namespace: self.core.options.namespace.clone(),
            lease_id: 0,
            instances: instances.collect(),
        };
        match self.deregister_call(deadline, &request).await {
            Err(CallError::Refused { decision: Decision::Superseded, status, .. }) => {
                if let Some(Held { lease: Lease { id: lease_id, .. }, .. }) =
                    self.lease.filter(|_| self.wanted.len() > 1)
                {
                    // Another run has some of the instances; the rest goes with the lease.
                    let request = DeregisterRequest { lease_id, ..DeregisterRequest::default() };
                    self.deregister_call(deadline, &request)
                        .await
                        .map_err(|error| error.into_error("deregister"))?;
                }
                Err(Error::superseded(&status))
            }
            Err(error) => Err(error.into_error("deregister")),
            Ok(()) => Ok(()),
        }
    }

    async fn deregister_call(
        &self,
        deadline: Instant,
        request: &DeregisterRequest,
    ) -> Result<(), CallError> {
        let within = deadline.saturating_duration_since(Instant::now());
        let plan = self.core.plan("deregister", Target::Leader);
        let plan = Plan { within, attempt: plan.attempt.min(within), ..plan };
        let send = |channel, request| async move { registry(channel).deregister(request).await };
        match call(&self.core.endpoints, &plan, request, send).await {
            Ok(_) => Ok(()),
            // It had run out, or an attempt whose answer was lost has removed it: it is not there.
            Err(CallError::Refused { decision: Decision::Reregister, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn register_request(&self) -> RegisterRequest {
        RegisterRequest {
            namespace: self.core.options.namespace.clone(),
            instances: self.wanted.clone(),
            ttl_ms: self.ttl.map_or(0, |ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)),
            incarnation: self.incarnation,
            lease_id: 0,
        }
    }

    /// A single attempt in the background.
    fn attempt_plan(&self, operation: &'static str, limit: Duration) -> Plan {
        let attempt = self.core.options.attempt_timeout.min(limit);
        Plan { operation, target: Target::Leader, attempt, within: attempt }
    }

    fn accept(&mut self, answer: &RegisterResponse) -> Result<(), Error> {
        let missing = |missing| Error::BadAnswer { operation: "register", missing };
        let header = answer.header.as_ref().ok_or(missing("header"))?;
        if answer.lease_id == 0 || answer.ttl_ms == 0 {
            return Err(missing("lease"));
        }
        let granted = Duration::from_millis(answer.ttl_ms);
        let interval = self.renew_every.unwrap_or(granted / 3).min(granted / 2);
        let lease = Lease { id: answer.lease_id, revision: header.revision, ttl: granted };
        self.lease = Some(Held { lease, interval });
        self.due = Instant::now() + jittered(interval);
        self.higher_incarnations = 0;
        self.registered(lease);
        Ok(())
    }

    /// On a first registration only: the host's clock went back since the process before this one started, so go above
    /// what that one had. Later on, a higher incarnation is a newer run, to which this one gives way.
    fn take_higher_incarnation(&mut self, status: &Status) -> bool {
        let Some(current) = current_incarnation(status) else { return false };
        if self.higher_incarnations == 0 || current < self.incarnation {
            return false;
        }
        self.higher_incarnations -= 1;
        self.incarnation = incarnation_at_least(current.saturating_add(1));
        true
    }

    fn registered(&self, lease: Lease) {
        self.state.send_replace(RegistrationState::Registered(lease));
    }

    fn retrying(&self, error: Error) {
        let since = match &*self.state.borrow() {
            RegistrationState::Retrying { since, .. } => *since,
            _ => {
                tracing::warn!(%error, "the registration is not kept up at the moment; going on trying");
                std::time::Instant::now()
            }
        };
        self.state.send_replace(RegistrationState::Retrying { since, last_error: Some(error) });
    }

    fn superseded(&self, current: Option<u64>) -> Next {
        tracing::warn!(current, "a newer run holds the instance, or it was deregistered: stopping");
        self.state.send_replace(RegistrationState::Superseded { current });
        Next::Stop
    }
}
