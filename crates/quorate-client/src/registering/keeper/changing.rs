//! What a caller waits for: a first registration, and changes of what is wanted.

use std::time::Duration;

use quorate_proto::v1::RegisterRequest;
use tokio::time::Instant;
use tonic::{Request, Status};

use super::Keeper;
use crate::error::Error;
use crate::nodes::call::{CallError, call};
use crate::nodes::endpoints::Target;
use crate::nodes::retry::{Decision, is_wrong, is_wrong_incarnation};
use crate::nodes::stub::registry;
use crate::nodes::write::Write;
use crate::types::{InstanceSpec, Update};

/// What a change may be of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Status,
    Weight,
    Load,
    Metadata,
}

/// In this order they are made, where they are made apart: who drains is not to get calls
/// meanwhile.
const FIELDS: [Field; 4] = [Field::Status, Field::Weight, Field::Load, Field::Metadata];

impl Field {
    /// Those that differ.
    fn of_difference(from: &[InstanceSpec], to: &[InstanceSpec]) -> Vec<Self> {
        let differs = |field: &Self| {
            let mut changed = from.to_vec();
            field.copy(to, &mut changed);
            changed != from
        };
        FIELDS.into_iter().filter(differs).collect()
    }

    /// Both have the same instances, in the same order.
    fn copy(self, from: &[InstanceSpec], to: &mut [InstanceSpec]) {
        for (from, to) in from.iter().zip(to) {
            match self {
                Self::Status => to.status = from.status,
                Self::Weight => to.weight = from.weight,
                Self::Load => to.load = from.load,
                Self::Metadata => to.metadata.clone_from(&from.metadata),
            }
        }
    }
}

/// Changes that no node took together, perhaps for one of them: each is made by itself.
#[derive(Debug)]
pub(super) struct Apart {
    all: Vec<InstanceSpec>,
    /// What comes after that which is being made.
    left: std::vec::IntoIter<Field>,
}

/// A call to register failed.
#[derive(Debug)]
pub(in crate::registering) struct NotRegistered {
    pub(in crate::registering) error: Error,
    /// Whether an attempt may have done it all the same.
    may_be_done: bool,
    /// It was refused for its incarnation, and not for what was wanted: ask again after this.
    again_in: Option<Duration>,
}

impl NotRegistered {
    /// Whether no node takes what was wanted.
    fn is_wrong(&self) -> bool {
        matches!(&self.error, Error::Rejected { code, .. } if is_wrong(*code))
            && self.again_in.is_none()
    }
}

impl Keeper {
    /// Registers, over all nodes, until it is done or the deadline has passed. Unless it is the
    /// first time, it is for a change, which may be what is wrong where nodes do not say that it is
    /// the incarnation.
    pub(in crate::registering) async fn register_now(
        &mut self,
        deadline: Instant,
        is_first: bool,
    ) -> Result<(), NotRegistered> {
        let core = self.core();
        loop {
            let plan = core.plan("register", Target::Leader).until(deadline);
            let write = Write::begin(&core.origin);
            let send = |channel, mut request: Request<RegisterRequest>| {
                request.get_mut().request_id = write.id();
                async move { registry(channel).register(request).await }
            };
            let request = self.register_request();
            let call = call(&core.endpoints, &plan, &request, send);
            match self.beside_renewals(call).await {
                Ok(answer) => {
                    return self.accept(&answer).map_err(|error| NotRegistered {
                        error,
                        may_be_done: true,
                        again_in: None,
                    });
                }
                Err(CallError::Refused { decision: Decision::Superseded, status, .. })
                    if self.take_higher_incarnation(&status) => {}
                // Once: its own number is not left, and none is taken over after that.
                Err(CallError::Refused { status, .. })
                    if (is_first || is_wrong_incarnation(&status))
                        && self.leave_higher_incarnation(&status) => {}
                Err(error) => return Err(self.not_registered(error, is_first)),
            }
        }
    }

    fn not_registered(&mut self, error: CallError, is_first: bool) -> NotRegistered {
        let again_in = match &error {
            CallError::Refused { decision: Decision::Superseded, status, .. } if !is_first => {
                self.wait_for_older_run(status)
            }
            CallError::Refused { status, .. } if !is_first && is_wrong_incarnation(status) => {
                Some(self.rounds.wait_whole_round())
            }
            CallError::Unreachable(_) => {
                self.hears_nothing_of_older_run();
                None
            }
            CallError::Refused { .. } => None,
        };
        let may_be_done = match &error {
            CallError::Unreachable(_) => true,
            // What every node finds wrong, none has done.
            CallError::Refused { status, retried, .. } => *retried && !is_wrong(status.code()),
        };
        let error = match error {
            CallError::Refused { decision: Decision::Superseded, status, .. }
                if again_in.is_none() =>
            {
                Error::superseded(&status)
            }
            error if is_first => error.into_write_error("register"),
            error => error.into_error("register"),
        };
        NotRegistered { error, may_be_done, again_in }
    }

    /// Gives up a change that no node takes: it was wanted while nobody could say so. Where there
    /// are several, each is tried by itself first.
    pub(super) fn give_up_change(&mut self, status: &Status) -> bool {
        if self.accepted == self.wanted || !is_wrong(status.code()) {
            return false;
        }
        match self.apart {
            None => self.take_apart(self.wanted.clone(), status.message()),
            Some(_) => {
                given_up(status.message());
                self.next_apart();
            }
        }
        true
    }

    /// No node takes all of this together.
    fn take_apart(&mut self, all: Vec<InstanceSpec>, why: &str) {
        let left = Field::of_difference(&self.accepted, &all);
        match left.len() {
            0 | 1 => given_up(why),
            _ => self.apart = Some(Apart { all, left: left.into_iter() }),
        }
        self.next_apart();
    }

    /// Goes on with the next one of what is made apart, if there is one.
    fn next_apart(&mut self) {
        self.wanted.clone_from(&self.accepted);
        match self.apart.as_mut().and_then(|apart| apart.left.next()) {
            Some(field) => {
                let all = &self.apart.as_ref().expect("invariant: the field is of it").all;
                field.copy(all, &mut self.wanted);
                self.register_at = Some(Instant::now());
            }
            None => self.apart = None,
        }
    }

    /// What was wanted is taken. Where it was made apart, the next one comes.
    pub(super) fn accepted(&mut self) {
        self.accepted.clone_from(&self.wanted);
        if self.apart.is_some() {
            self.next_apart();
        }
    }

    /// What is made apart is wanted again as a whole, but for what was found wrong.
    fn put_together(&mut self) {
        if let Some(Apart { all, left }) = self.apart.take() {
            left.for_each(|field| field.copy(&all, &mut self.wanted));
        }
    }

    pub(super) async fn update(
        &mut self,
        only: Option<&(String, String)>,
        update: &Update,
        deadline: Instant,
    ) -> Result<(), Error> {
        self.put_together();
        let before = self.wanted.clone();
        let changed = apply(update, only, &mut self.wanted);
        if let (0, Some((service, id))) = (changed, only) {
            return Err(Error::NoSuchInstance { service: service.clone(), id: id.clone() });
        }
        // Registering again under the same incarnation changes all instances in one write, renews
        // the lease, and also works when the lease is gone.
        // What is refused is undone here, so that it is no question whether it was done.
        let mut registered = self.register_now(deadline, false).await;
        if registered.as_ref().is_err_and(NotRegistered::is_wrong) && self.accepted != before {
            registered = self.register_without_what_waited(deadline, only, update).await;
        }
        let Err(NotRegistered { error, may_be_done, again_in }) = registered else {
            return Ok(());
        };
        match (&error, again_in) {
            // The change is right, for all that is known.
            (error, Some(wait)) => {
                self.register_at = Some(Instant::now() + wait);
                self.is_incomplete |= self.lease.is_some();
                self.retrying(error.clone());
            }
            (Error::Superseded { .. }, None) => {}
            (Error::Rejected { .. }, None) => {
                self.wanted = before;
                if may_be_done {
                    let undo_at = Instant::now() + self.rounds.wait_whole_round();
                    self.register_at = Some(self.register_at.map_or(undo_at, |at| at.min(undo_at)));
                }
            }
            (error, None) => {
                self.register_at = Some(Instant::now());
                self.retrying(error.clone());
            }
        }
        Err(error)
    }

    /// A change that has waited since an outage may be what no node takes. Without it, this one
    /// tells: where it is made alone, what has waited is taken apart.
    async fn register_without_what_waited(
        &mut self,
        deadline: Instant,
        only: Option<&(String, String)>,
        update: &Update,
    ) -> Result<(), NotRegistered> {
        let mut alone = self.accepted.clone();
        apply(update, only, &mut alone);
        let both = std::mem::replace(&mut self.wanted, alone);
        let registered = self.register_now(deadline, false).await;
        match &registered {
            Ok(()) => self.take_apart(both, "it has waited, and others are taken"),
            Err(_) => self.wanted = both,
        }
        registered
    }
}

fn given_up(why: &str) {
    tracing::warn!(why, "no node takes a change of a registration: it is given up");
}

/// Changes all of them or only one; how many that were.
fn apply(
    update: &Update,
    only: Option<&(String, String)>,
    instances: &mut [InstanceSpec],
) -> usize {
    let chosen = |instance: &&mut InstanceSpec| {
        only.is_none_or(|(service, id)| *service == instance.service && *id == instance.id)
    };
    instances.iter_mut().filter(chosen).map(|instance| update.apply_to(instance)).count()
}
