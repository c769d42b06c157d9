//! [`RegistrationHandle`]: what an application holds of its registration. The work is done by the
//! keeper's task (`registering/keeper.rs`), to which the handle only sends commands: so a
//! deregistration and a renewal can never cross.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quorate_proto::ClusterId;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::claims::Claim;
use super::keeper::Keeper;
use crate::error::{Error, LONGEST};
use crate::types::{InstanceStatus, Update};

/// Commands that wait for the task. Each caller waits for its answer, so more would only be many
/// callers at once.
const COMMANDS_MAX: usize = 8;

/// What the registry granted.
///
/// An example is at [`RegistrationState`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lease {
    /// The cluster that granted it. Id and revision mean nothing in another one.
    pub cluster_id: ClusterId,
    /// The lease that keeps the registration.
    pub id: u64,
    /// The revision at which it stands: a read with this as its minimum sees it on any node.
    pub revision: u64,
    /// How long it lives without a renewal, as granted.
    pub ttl: Duration,
}

/// How a registration stands.
///
/// ```no_run
/// use quorate_client::{Gone, RegistrationHandle, RegistrationState};
/// # async fn example(registration: RegistrationHandle) {
/// let mut state = registration.watch_state();
/// while state.changed().await.is_ok() {
///     match &*state.borrow_and_update() {
///         RegistrationState::Registered(lease) => println!("registered for {:?}", lease.ttl),
///         RegistrationState::Retrying { last_error: Some(error), .. } => println!("soon: {error}"),
///         RegistrationState::Gone(Gone::Superseded { .. }) => println!("another run has taken over"),
///         _ => {}
///     }
/// }
/// # }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum RegistrationState {
    /// The registry has it.
    Registered(Lease),
    /// The registry may not have it, or not all of it, or soon not have it any more; the task goes
    /// on trying, for ever. With [`Error::OtherCluster`] when another cluster answers, where it is
    /// being registered anew; with [`Error::Stopped`], its runtime was shut down, and it has ended.
    Retrying {
        /// Since when.
        since: Instant,
        /// What the last attempt came to; `None` before the first one ended.
        last_error: Option<Error>,
    },
    /// It is being deregistered, or that failed: it is not renewed any more.
    Draining,
    /// The registry does not have it any more, and this registration will not bring it back: the
    /// task has stopped.
    Gone(Gone),
}

/// Why a registration is gone.
///
/// An example is at [`RegistrationState`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Gone {
    /// Its handle deregistered it.
    Deregistered,
    /// A newer run of the process holds the instance, or another client deregistered it. In the
    /// background, an older one whose clock was too far ahead to take over from is waited for
    /// before: it may be over, and its lease not yet. Every second or two, this registration asks
    /// again, for twice its TTL, and for 130 s at least.
    Superseded {
        /// The incarnation that holds it, where the registry named it.
        current: Option<u64>,
    },
}

/// What the handle asks for. Small: every registration has a queue with room for 32 of them,
/// whatever its bound.
#[derive(Debug)]
pub(super) enum Command {
    Update {
        change: Box<Wanted>,
        deadline: tokio::time::Instant,
        reply: oneshot::Sender<Result<(), Error>>,
    },
    Deregister {
        deadline: tokio::time::Instant,
        reply: oneshot::Sender<Result<(), Error>>,
    },
}

/// A change of what the application wants.
#[derive(Debug)]
pub(super) struct Wanted {
    /// The service and id of the only instance that changes; `None`: all do.
    pub(super) only: Option<(String, String)>,
    pub(super) update: Update,
}

/// A registration that a background task keeps alive: it renews the lease, registers again when the
/// registry has lost it, and never gives up because of an outage.
///
/// Dropping the handle stops the task at once and sends nothing: the registration then runs out
/// with its TTL. To leave properly, await [`RegistrationHandle::deregister`] first; once that was
/// called, it goes on until its deadline, also without the handle, while the runtime lives.
#[derive(Debug)]
pub struct RegistrationHandle {
    commands: mpsc::Sender<Command>,
    state: watch::Receiver<RegistrationState>,
    claim: Arc<Claim>,
    incarnation: Arc<AtomicU64>,
    call_timeout: Duration,
    leaving: CancellationToken,
    /// `None`: it was let go.
    task: Option<AbortOnDropHandle<()>>,
}

pub(super) fn spawn(
    keeper: Keeper,
    state: watch::Receiver<RegistrationState>,
) -> RegistrationHandle {
    let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
    let core = keeper.core();
    RegistrationHandle {
        commands,
        state,
        claim: keeper.claim(),
        incarnation: keeper.incarnation_of_now(),
        call_timeout: core.options.call_timeout,
        leaving: keeper.leaving(),
        task: Some(AbortOnDropHandle::new(core.runtime.spawn(keeper.run(inbox)))),
    }
}

impl RegistrationHandle {
    /// How the registration stands now.
    pub fn state(&self) -> RegistrationState {
        self.state.borrow().clone()
    }

    /// Follows how the registration stands.
    pub fn watch_state(&self) -> watch::Receiver<RegistrationState> {
        self.state.clone()
    }

    /// The incarnation that it has, or asks for, now: this host's clock when it began. A higher one
    /// was taken over from a run before it whose clock was ahead; it goes back to its own where no
    /// node takes that any more.
    pub fn incarnation(&self) -> u64 {
        self.incarnation.load(Ordering::Relaxed)
    }

    /// Waits until the registry has it. Returns what was granted.
    ///
    /// # Errors
    /// [`Error::Superseded`], [`Error::AlreadyDeregistered`]: then it never will.
    pub async fn registered(&self) -> Result<Lease, Error> {
        let mut state = self.state.clone();
        loop {
            match &*state.borrow_and_update() {
                RegistrationState::Registered(lease) => return Ok(*lease),
                RegistrationState::Gone(Gone::Superseded { current }) => {
                    return Err(Error::Superseded { current: *current });
                }
                RegistrationState::Draining | RegistrationState::Gone(Gone::Deregistered) => {
                    return Err(Error::AlreadyDeregistered);
                }
                RegistrationState::Retrying { .. } => {}
            }
            state.changed().await.map_err(|_closed| Error::Stopped)?;
        }
    }

    /// For processes that should rather die than run without being registered: resolves when the
    /// registration, or a part of it, could not be confirmed for longer than `after`, counted from
    /// the first attempt that failed, with what the last one came to; when a newer run took its
    /// place, at once. The registration goes on trying all the same. Never resolves after a
    /// deregistration, nor when the handle is dropped.
    ///
    /// ```no_run
    /// # async fn example(registration: quorate_client::RegistrationHandle, serving: impl Future<Output = ()>) {
    /// tokio::select! {
    ///     () = serving => {}
    ///     error = registration.on_lost(std::time::Duration::from_secs(300)) => panic!("lost: {error}"),
    /// }
    /// # }
    /// ```
    pub fn on_lost(&self, after: Duration) -> impl Future<Output = Error> + Send + use<> {
        lost(self.state.clone(), after)
    }

    /// Changes the status of all instances: [`RegistrationHandle::update`] in short.
    ///
    /// # Errors
    /// As [`RegistrationHandle::update`].
    pub async fn set_status(&self, status: InstanceStatus) -> Result<(), Error> {
        self.update(Update::new().status(status)).await
    }

    /// Changes the weight of all instances: [`RegistrationHandle::update`] in short.
    ///
    /// # Errors
    /// As [`RegistrationHandle::update`].
    pub async fn set_weight(&self, weight: u32) -> Result<(), Error> {
        self.update(Update::new().weight(weight)).await
    }

    /// Changes the load that all instances say they have, 0 to 1,000,000:
    /// [`RegistrationHandle::update`] in short. What it means, and how often to say it:
    /// [`Update::load`].
    ///
    /// ```no_run
    /// # async fn example(registration: quorate_client::RegistrationHandle, in_flight: u32) -> Result<(), quorate_client::Error> {
    /// registration.set_load(in_flight).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`RegistrationHandle::update`].
    pub async fn set_load(&self, load: u32) -> Result<(), Error> {
        self.update(Update::new().load(load)).await
    }

    /// Replaces the metadata of all instances: [`RegistrationHandle::update`] in short.
    ///
    /// # Errors
    /// As [`RegistrationHandle::update`].
    pub async fn set_metadata<K: Into<String>, V: Into<String>>(
        &self,
        entries: impl IntoIterator<Item = (K, V)>,
    ) -> Result<(), Error> {
        self.update(Update::new().metadata(entries)).await
    }

    /// Changes all instances of the registration, and waits until that is committed. A change that
    /// has not begun yet is not made for a caller that does not wait any more.
    ///
    /// # Errors
    /// [`Error::Rejected`]: the change is given up, and undone if an attempt before the refused one
    /// has made it. It stays wanted where the registration itself cannot be made as it is: while an
    /// older run is waited for ([`Gone::Superseded`]), and while no node takes its incarnation.
    /// [`Error::Unreachable`]: the change stays wanted, and is made when the registry can be
    /// reached again, unless that finds it wrong. Where several have waited, only what is wrong is
    /// given up: status, weight, load and metadata are made one after the other then. The
    /// registration is renewed in both cases.
    /// [`Error::Superseded`], [`Error::AlreadyDeregistered`], also when that is called meanwhile.
    pub async fn update(&self, update: Update) -> Result<(), Error> {
        self.change(None, update).await
    }

    /// Changes one instance of the registration, as [`RegistrationHandle::update`].
    ///
    /// # Errors
    /// As [`RegistrationHandle::update`], and [`Error::NoSuchInstance`].
    pub async fn update_instance(
        &self,
        service: &str,
        id: &str,
        update: Update,
    ) -> Result<(), Error> {
        self.change(Some((service.to_owned(), id.to_owned())), update).await
    }

    async fn change(&self, only: Option<(String, String)>, update: Update) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        let change = Box::new(Wanted { only, update });
        let deadline = self.deadline();
        self.send(Command::Update { change, deadline, reply }, answer).await
    }

    /// Removes the registration and waits until that is committed. From the moment it is called
    /// nothing renews the registration or makes it again, also when it fails, and also when the
    /// caller stops waiting: it is then carried on in the background. Updates under way are cut
    /// short. After a failure it can be called again; it succeeds exactly once.
    ///
    /// # Errors
    /// [`Error::Unreachable`] at the deadline (the call timeout), or sooner for want of room after
    /// an attempt that got no answer, and may be done yet: the registration runs out with its TTL
    /// if not. [`Error::AlreadyDeregistered`] after a success. [`Error::Superseded`]: a newer run
    /// holds the instance, which was left alone.
    pub async fn deregister(&self) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        let deadline = self.deadline();
        self.leaving.cancel();
        self.send(Command::Deregister { deadline, reply }, answer).await
    }

    /// Of a call that begins now, whatever it has to wait for.
    fn deadline(&self) -> tokio::time::Instant {
        tokio::time::Instant::now() + self.call_timeout
    }

    async fn send(
        &self,
        command: Command,
        mut answer: oneshot::Receiver<Result<(), Error>>,
    ) -> Result<(), Error> {
        // A task that is gone (or goes while the command waits) has said why in the state.
        if self.commands.send(command).await.is_err() {
            return Err(self.why_stopped());
        }
        // A command that was sent just while the task ended stays in the channel, and its answer
        // stays open, for as long as this handle lives: so look at the end of the task as well.
        tokio::select! {
            biased; // an answer that is there counts, also when the task has ended since
            answered = &mut answer => answered.unwrap_or_else(|_gone| Err(self.why_stopped())),
            () = self.commands.closed() => {
                answer.try_recv().unwrap_or_else(|_none| Err(self.why_stopped()))
            }
        }
    }

    fn why_stopped(&self) -> Error {
        match self.state() {
            RegistrationState::Gone(Gone::Superseded { current }) => Error::Superseded { current },
            RegistrationState::Gone(Gone::Deregistered) => Error::AlreadyDeregistered,
            _ => Error::Stopped,
        }
    }
}

impl Drop for RegistrationHandle {
    fn drop(&mut self) {
        // The task's own share of the claim goes a moment later.
        self.claim.release();
        // It ends when the deregistration that was asked for has, or with the queue.
        if self.leaving.is_cancelled() {
            let _goes_on = self.task.take().map(AbortOnDropHandle::detach);
        }
    }
}

async fn lost(mut state: watch::Receiver<RegistrationState>, after: Duration) -> Error {
    loop {
        let retrying = match state.borrow_and_update().clone() {
            RegistrationState::Retrying { since, last_error } => Some((since, last_error)),
            RegistrationState::Gone(Gone::Superseded { current }) => {
                return Error::Superseded { current };
            }
            _ => None,
        };
        let changed = match retrying {
            Some((since, last_error)) => {
                let over = tokio::time::Instant::from_std(since) + after.min(LONGEST);
                match tokio::time::timeout_at(over, state.changed()).await {
                    Ok(changed) => changed,
                    Err(_elapsed) => return last_error.unwrap_or(Error::Stopped),
                }
            }
            None => state.changed().await,
        };
        if changed.is_err() {
            return std::future::pending().await;
        }
    }
}
