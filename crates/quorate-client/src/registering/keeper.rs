//! The task behind a registration: makes the registry have what the application wants, for ever.
//!
//! It is one loop that does one thing at a time: an attempt to register or a command, never both. A
//! deregistration cuts short what is under way, and none of it follows: what is still on its way to
//! a node then is done no more once that has succeeded, since the incarnation has ended. (If it
//! fails, an attempt to register may be done yet; its lease then runs out.) Renewals go with the
//! renewals of the client's other registrations (`registering/renewals.rs`); one may still be under
//! way then, and is not listened to any more: it brings nothing back.
//!
//! A lease is renewed until the registry does not know it any more, whatever becomes of attempts to
//! register and of changes beside it, and also while they wait for an answer: a registry that takes
//! no changes renews all the same.

mod changing;
mod incarnation;
mod leaving;
mod renewing;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quorate_proto::ClusterId;
use quorate_proto::v1::{RegisterRequest, RegisterResponse};
use tokio::sync::oneshot::error::RecvError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};

use self::changing::Apart;
use self::incarnation::OlderRun;
use super::claims::{Claim, new_incarnation};
use super::handle::{Command, Gone, Lease, RegistrationState};
use super::renewals::{Outcome, Renewals, next_renewal};
use crate::clock::Moment;
use crate::core::Core;
use crate::error::{Error, current_incarnation};
use crate::nodes::call::{Failure, Rounds, attempt};
use crate::nodes::endpoints::Target;
use crate::nodes::retry::{BACKGROUND, Decision, is_wrong_incarnation, retry_after, rights_pause};
use crate::nodes::stub::registry;
use crate::nodes::write::Write;
use crate::types::{InstanceSpec, Registration};

/// How often a first registration takes the next higher incarnation, should others do the same
/// meanwhile.
const FIRST_INCARNATIONS_MAX: u32 = 3;

/// What an undisturbed keeper has waited for.
#[derive(Debug)]
enum Event {
    /// A renewal is due, or an attempt to register.
    Due,
    /// The renewal under way was answered, or failed on all nodes; `Err`: the task that renews is
    /// gone.
    Renewed(Result<Outcome, RecvError>),
    /// The machine was suspended, and the lease may soon be over.
    Resumed,
    /// Another cluster answers than the one that granted the lease.
    OtherCluster { is: ClusterId },
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
pub(super) struct Keeper {
    core: Arc<Core>,
    claim: Arc<Claim>,
    /// What the application wants to stand in the registry.
    wanted: Vec<InstanceSpec>,
    ttl: Option<Duration>,
    renew_every: Option<Duration>,
    /// Its handle says it.
    incarnation: Arc<AtomicU64>,
    /// This host's clock when the keeper began, as an incarnation, and when that was.
    began: (u64, Moment),
    /// How many more times a higher incarnation may be taken; 0 after the first success.
    higher_incarnations: u32,
    older_run: OlderRun,
    /// Set while the registration is there, as far as is known.
    lease: Option<Held>,
    /// Set while there is a lease and no node takes its incarnation all the same: an instance is
    /// not there, or they would. It is left with the lease.
    is_incomplete: bool,
    /// What the registry took last; before that, what the application began with.
    accepted: Vec<InstanceSpec>,
    apart: Option<Apart>,
    /// Whether it was there before.
    was_there: bool,
    /// When the next renewal is due, while there is a lease. Commands that fail must not be able to
    /// put it off.
    renew_at: Instant,
    /// When to register next; `None`: what is there is what is wanted, as far as is known. With a
    /// lease, it may be something else: an attempt may have been made whose answer was lost.
    register_at: Option<Instant>,
    renewals: Arc<Renewals>,
    /// Changes soon after the machine was suspended.
    resumed: watch::Receiver<()>,
    /// A renewal under way.
    renewing: Option<oneshot::Receiver<Outcome>>,
    /// The cluster that answers.
    cluster: watch::Receiver<Option<ClusterId>>,
    state: watch::Sender<RegistrationState>,
    rounds: Rounds,
    /// Cancelled as soon as the handle wants to deregister.
    leaving: CancellationToken,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    lease: Lease,
    interval: Duration,
}

impl Keeper {
    pub(super) fn new(
        core: Arc<Core>,
        claim: Arc<Claim>,
        renewals: Arc<Renewals>,
        registration: Registration,
        state: watch::Sender<RegistrationState>,
    ) -> Self {
        let incarnation = new_incarnation();
        Self {
            resumed: renewals.resumed(),
            renewals,
            cluster: core.endpoints.watch_cluster(),
            core,
            claim,
            accepted: registration.instances.clone(),
            apart: None,
            was_there: false,
            wanted: registration.instances,
            ttl: registration.ttl,
            renew_every: registration.renew_every,
            incarnation: Arc::new(AtomicU64::new(incarnation)),
            began: (incarnation, Moment::now()),
            higher_incarnations: FIRST_INCARNATIONS_MAX,
            older_run: OlderRun::Unknown,
            lease: None,
            is_incomplete: false,
            renew_at: Instant::now(),
            register_at: Some(Instant::now()),
            renewing: None,
            state,
            rounds: Rounds::new(BACKGROUND),
            leaving: CancellationToken::new(),
        }
    }

    pub(super) fn core(&self) -> Arc<Core> {
        self.core.clone()
    }

    pub(super) fn claim(&self) -> Arc<Claim> {
        self.claim.clone()
    }

    fn incarnation(&self) -> u64 {
        self.incarnation.load(Ordering::Relaxed)
    }

    pub(super) fn incarnation_of_now(&self) -> Arc<AtomicU64> {
        self.incarnation.clone()
    }

    pub(super) fn leaving(&self) -> CancellationToken {
        self.leaving.clone()
    }

    /// Runs until the registration has ended or the handle is gone.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let leaving = self.leaving();
        let mut next = Next::Keep;
        while next != Next::Stop {
            if leaving.is_cancelled() && next == Next::Keep {
                self.begin_leaving();
                next = Next::Idle;
            }
            let command = if next == Next::Idle {
                commands.recv().await
            } else {
                tokio::select! {
                    command = commands.recv() => command,
                    event = self.wait(self.register_at) => {
                        let reaction = leaving.run_until_cancelled(self.react(event)).await;
                        next = reaction.unwrap_or(Next::Keep);
                        continue;
                    }
                }
            };
            let Some(command) = command else { break };
            // Boxed, as is an attempt to register: these calls would be most of what an idle
            // registration takes.
            next = Box::pin(self.obey(command)).await;
        }
        self.claim.release();
    }

    async fn obey(&mut self, command: Command) -> Next {
        match command {
            Command::Update { reply, .. } if reply.is_closed() => Next::Keep,
            Command::Update { change, deadline, reply } => {
                let leaving = self.leaving();
                let update = self.update(change.only.as_ref(), &change.update, deadline);
                let result = leaving.run_until_cancelled(update).await;
                let result = result.unwrap_or(Err(Error::AlreadyDeregistered));
                let next = match &result {
                    Err(Error::Superseded { current }) => self.superseded(*current),
                    _ => Next::Keep,
                };
                let _caller_gone = reply.send(result);
                next
            }
            Command::Deregister { deadline, reply } => {
                self.begin_leaving();
                let result = self.deregister(deadline).await;
                let next = match &result {
                    Ok(()) => {
                        self.state.send_replace(RegistrationState::Gone(Gone::Deregistered));
                        Next::Stop
                    }
                    Err(Error::Superseded { current }) => self.superseded(*current),
                    Err(_) => Next::Idle,
                };
                if next == Next::Stop {
                    // Before the answer, so that the caller can register the same instance again at
                    // once.
                    self.claim.release();
                }
                let _caller_gone = reply.send(result);
                next
            }
        }
    }

    fn begin_leaving(&mut self) {
        self.renewing = None;
        self.state.send_replace(RegistrationState::Draining);
    }

    /// Waits until there is something to do; an attempt to register at this time. Can be
    /// cancelled.
    async fn wait(&mut self, register_at: Option<Instant>) -> Event {
        let Self { lease, renewing, cluster, renew_at, resumed, .. } = self;
        let renew_at = lease.map(|_| *renew_at).filter(|_| renewing.is_none());
        let due = [renew_at, register_at].into_iter().flatten().min();
        let granted_by = lease.map(|held| held.lease.cluster_id);
        let other_cluster = async {
            let is_other = |is: &Option<ClusterId>| granted_by.is_some() && *is != granted_by;
            match cluster.wait_for(is_other).await.map(|is| *is) {
                Ok(Some(is)) => is,
                // None only before there can be a lease.
                Ok(None) | Err(_) => std::future::pending().await, // not while this has the core
            }
        };
        let renewed = async {
            match renewing {
                Some(outcome) => outcome.await,
                None => std::future::pending().await,
            }
        };
        let resumed = async {
            if resumed.changed().await.is_err() {
                std::future::pending::<()>().await; // the runtime is being shut down
            }
        };
        let is_due = async {
            match due {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let timed = async {
            tokio::select! {
                biased;
                () = resumed => Event::Resumed,
                () = is_due => Event::Due,
            }
        };
        tokio::select! {
            biased; // there, the lease is unknown, which says less
            is = other_cluster => Event::OtherCluster { is },
            outcome = renewed => Event::Renewed(outcome),
            event = timed => event,
        }
    }

    async fn react(&mut self, event: Event) -> Next {
        match event {
            Event::Due => match self.lease.filter(|_| self.renewal_is_next()) {
                Some(held) => {
                    self.renew(held);
                    Next::Keep
                }
                None => match Box::pin(self.register_once()).await {
                    Ok(()) => Next::Keep,
                    Err(failure) => self.registration_failed(failure),
                },
            },
            Event::OtherCluster { is } => {
                self.other_cluster(is);
                Next::Keep
            }
            Event::Resumed => {
                self.renew_at = Instant::now();
                Next::Keep
            }
            Event::Renewed(outcome) => self.renewal_ended(outcome),
        }
    }

    /// Of what is due, renewals are first: they only have to be handed in.
    fn renewal_is_next(&self) -> bool {
        let is_first = |at: Instant| self.renew_at <= at.max(Instant::now());
        self.renewing.is_none() && self.register_at.is_none_or(is_first)
    }

    /// Decides what a failed attempt to register calls for.
    fn registration_failed(&mut self, failure: Failure) -> Next {
        let Failure { decision, status, .. } = &failure;
        // Where the incarnation is what is wrong, a change is not.
        let gives_up_change = !is_wrong_incarnation(status) && self.give_up_change(status);
        if gives_up_change || self.leave_higher_incarnation(status) {
            self.register_at = Some(Instant::now());
            return Next::Keep;
        }
        let wait = match decision {
            Decision::RetryElsewhere | Decision::TryOthers => {
                self.hears_nothing_of_older_run();
                self.rounds.wait(&self.core.endpoints)
            }
            Decision::Superseded if self.take_higher_incarnation(status) => Duration::ZERO,
            Decision::Superseded => match self.wait_for_older_run(status) {
                Some(wait) => wait,
                None => return self.superseded(current_incarnation(status)),
            },
            decision => self.pause(*decision),
        };
        self.register_at = Some(Instant::now() + wait.max(retry_after(status).unwrap_or_default()));
        // What has a lease is kept up all the same.
        self.is_incomplete |= self.lease.is_some() && is_wrong_incarnation(status);
        if self.lease.is_none() || self.is_incomplete {
            self.retrying(failure.into_error());
        }
        Next::Keep
    }

    /// The wait after a failure that the next node would answer with too.
    fn pause(&mut self, decision: Decision) -> Duration {
        let wait = self.rounds.wait_whole_round();
        // Whatever was refused, the registration is wanted: the right may come (back).
        if decision.is_of_rights() { rights_pause(wait) } else { wait }
    }

    async fn register_once(&mut self) -> Result<(), Failure> {
        // A single attempt.
        let core = self.core();
        let plan = core.plan("register", Target::Leader);
        let request = self.register_request();
        let write = Write::begin(&core.origin);
        let send = |channel, mut request: Request<RegisterRequest>| {
            request.get_mut().request_id = write.id();
            async move { registry(channel).register(request).await }
        };
        let deadline = Instant::now() + plan.within;
        let endpoints = &core.endpoints;
        let token = endpoints.token_changes();
        let mut rounds = std::mem::replace(&mut self.rounds, Rounds::new(BACKGROUND));
        let attempt = attempt(endpoints, &plan, &mut rounds, deadline, &request, send);
        let answer = self.beside_renewals(attempt).await;
        self.rounds = rounds;
        let answer = match answer {
            Ok(answer) => answer,
            Err(failure) => {
                if failure.decision == Decision::Reauthenticate {
                    // The next attempt takes it, if there is another one.
                    endpoints.has_other_token(token).await;
                }
                return Err(failure);
            }
        };
        self.accept(&answer)
            .map_err(|error| Failure::answered("register", Status::out_of_range(error.to_string())))
    }

    fn register_request(&self) -> RegisterRequest {
        RegisterRequest {
            namespace: self.core.options.namespace.clone(),
            instances: self.wanted.clone(),
            ttl_ms: self.ttl.map_or(0, |ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)),
            incarnation: self.incarnation(),
            ..RegisterRequest::default()
        }
    }

    fn accept(&mut self, answer: &RegisterResponse) -> Result<(), Error> {
        let missing = |missing| Error::BadAnswer { operation: "register", missing };
        let header = answer.header.as_ref().ok_or(missing("header"))?;
        if answer.lease_id == 0 || answer.ttl_ms == 0 {
            return Err(missing("lease"));
        }
        let granted = Duration::from_millis(answer.ttl_ms);
        let interval = self.renew_every.unwrap_or(granted / 3).min(granted / 2);
        let cluster_id = ClusterId::of(header).ok_or(missing("cluster id"))?;
        let revision = header.revision;
        let lease = Lease { cluster_id, id: answer.lease_id, revision, ttl: granted };
        let counts = &self.core.endpoints.counts;
        counts.wrote(cluster_id, revision);
        counts.registrations.one_more();
        if std::mem::replace(&mut self.was_there, true) && self.lease.is_none() {
            counts.reregistrations.one_more();
        }
        self.lease = Some(Held { lease, interval });
        // A registration that is renewed often has to be back soon after an outage, too.
        self.rounds.cap(interval);
        self.renewing = None;
        self.renew_at = Instant::now() + next_renewal(interval);
        (self.register_at, self.is_incomplete) = (None, false);
        self.accepted();
        (self.higher_incarnations, self.older_run) = (0, OlderRun::Unknown);
        self.registered(lease);
        Ok(())
    }

    fn registered(&self, lease: Lease) {
        self.state.send_replace(RegistrationState::Registered(lease));
    }

    fn retrying(&self, error: Error) {
        let since = match &*self.state.borrow() {
            RegistrationState::Retrying { since, .. } => *since,
            _ => {
                // Of another cluster, the client has said so.
                if !matches!(error, Error::OtherCluster { .. }) {
                    tracing::warn!(%error, "the registration is not kept up at the moment; going on trying");
                }
                std::time::Instant::now()
            }
        };
        self.state.send_replace(RegistrationState::Retrying { since, last_error: Some(error) });
    }

    fn superseded(&self, current: Option<u64>) -> Next {
        tracing::warn!(current, "a newer run holds the instance, or it was deregistered: stopping");
        self.state.send_replace(RegistrationState::Gone(Gone::Superseded { current }));
        Next::Stop
    }
}

/// A runtime that is shut down ends it, too: nothing renews from then on.
impl Drop for Keeper {
    fn drop(&mut self) {
        self.state.send_if_modified(|state| {
            let is_kept = matches!(
                state,
                RegistrationState::Registered(_) | RegistrationState::Retrying { .. }
            );
            if is_kept {
                let (since, last_error) = (std::time::Instant::now(), Some(Error::Stopped));
                *state = RegistrationState::Retrying { since, last_error };
            }
            is_kept
        });
    }
}
