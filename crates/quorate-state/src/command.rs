//! The whole vocabulary of the state machine: commands in, replies out.
//!
//! Commands stand in the log as postcard: variants are only ever appended, fields only added as
//! optional ones at the end of a record (`optional.rs`). The golden-bytes tests in
//! `tests/golden.rs` guard this.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

use crate::checks::HealthReport;
use crate::level::Level;
use crate::limits::Invalid;
use crate::load::Load;
use crate::record;
use crate::spec::{InstanceSpec, NewValues, Override, Status, check_metadata, check_weight};
use crate::types::{Clock, Incarnation, InstanceKey, LeaseId, Namespace, ServiceKey, Ttl};

/// One log entry: what time it is, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The leader's clock when it proposed this. A lower one than the state machine's does not turn
    /// that back.
    pub clock: Clock,
    /// Which call it is for, where it must not be done twice.
    pub request: Option<Request>,
    /// What to do, after what is due by then has expired (a bounded part of it).
    pub op: Op,
}

record!(Command { clock, op } { request });

impl Command {
    /// A command that may be done twice: the same again changes nothing, or it is never handed in
    /// again.
    pub fn new(clock: Clock, op: Op) -> Self {
        Self { clock, request: None, op }
    }
}

/// Names one write, the same for each attempt at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The process that makes it: a random number for each of its runs.
    pub origin: u64,
    /// Which of its requests it is.
    pub number: u64,
    /// All of its requests with lower numbers are over: answered or given up.
    pub done_below: u64,
    /// Registry time when the first attempt was made, or earlier.
    pub since: Clock,
    /// A digest of the write, which shows that an origin gave two writes one number; 0: none is
    /// needed.
    pub digest: u64,
    /// In whose share of what is remembered its origin counts.
    pub share: Share,
}

/// Who asks, as far as it takes to share out what is remembered of writes (`registry/replies.rs`):
/// a digest of a name. Different callers may have the same, and a write may come again with another
/// one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Share(pub u16);

/// For logs: the clock and the kind, without the content.
impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.op {
            Op::Tick => "tick",
            Op::Register(_) => "register",
            Op::Renew(_) => "renew",
            Op::Deregister(_) => "deregister",
            Op::Update(_) => "update",
            Op::Override { .. } => "override",
            Op::Grace { .. } => "grace",
            Op::SetHealth(_) => "set health",
            Op::Found { .. } => "found",
            Op::SetLevel(_) => "set level",
        };
        write!(f, "{kind} at {} ms", self.clock.0)
    }
}

/// What a command does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Nothing but letting time pass: ends what is due (a bounded part of it).
    Tick,
    /// Registers instances under one lease, all or none.
    Register(Register),
    /// Renews leases: one command for many.
    Renew(Vec<LeaseId>),
    /// Removes instances.
    Deregister(Deregister),
    /// Changes a live instance.
    Update(Update),
    /// Sets or clears an operator's override.
    Override {
        /// The instance, which need not be registered.
        key: InstanceKey,
        /// `None` clears.
        value: Option<Override>,
    },
    /// Gives every lease at least `min(grace_ms, its TTL)` from now; never more than that beyond
    /// its TTL since its last renewal, however often it is given.
    Grace {
        /// In ms.
        grace_ms: u64,
    },
    /// Sets what the health checks of instances say, and why. Nothing happens where the run of the
    /// instance is not there, has no checks, or is known to be so for this reason.
    SetHealth(Vec<HealthReport>),
    /// Gives a new cluster its identity. The first one counts, any other changes nothing; what is
    /// random in it was drawn by the leader that proposed it.
    Found {
        /// The cluster's id.
        cluster_id: NonZeroU64,
        /// Lease ids begin behind this, so that those of two clusters do not meet.
        lease_base: u64,
    },
    /// Raises the cluster's level, or leaves it where it is if this is lower, and sets whether it
    /// is held.
    SetLevel(Level),
}

impl Op {
    /// The level that a cluster must have for it.
    pub fn level(&self) -> u32 {
        match self {
            Self::Tick
            | Self::Register(_)
            | Self::Renew(_)
            | Self::Deregister(_)
            | Self::Update(_)
            | Self::Override { .. }
            | Self::Grace { .. }
            | Self::SetHealth(_)
            | Self::Found { .. }
            | Self::SetLevel(_) => 1,
        }
    }
}

impl From<Register> for Op {
    fn from(register: Register) -> Self {
        Self::Register(register)
    }
}

impl From<Deregister> for Op {
    fn from(deregister: Deregister) -> Self {
        Self::Deregister(deregister)
    }
}

impl From<Update> for Op {
    fn from(update: Update) -> Self {
        Self::Update(update)
    }
}

/// Registers instances under one lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Register {
    /// The lease to add them to; `None`: the one that holds them with this incarnation, else a new
    /// one.
    pub lease: Option<LeaseId>,
    /// The lease's TTL; `None`: as it is, or the default for a new one.
    pub ttl: Option<Ttl>,
    /// The run of the process; `None`: one more than the highest known of these instances.
    pub incarnation: Option<Incarnation>,
    /// Instances, at least one, each at most once.
    pub instances: Vec<(InstanceKey, InstanceSpec)>,
    /// What the caller may register, where that is not everything: a lease that keeps something
    /// else is not joined. At most
    /// [`crate::limits::SCOPES`].
    pub within: Option<Vec<Scope>>,
}

record!(Register { instances } { lease, ttl, incarnation, within });

/// Services of one namespace, or of all, by the beginning of their names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// `None`: all.
    pub namespace: Option<Namespace>,
    /// Of the services' names; empty: all.
    pub prefix: Box<str>,
}

impl Scope {
    /// Whether an instance is of these services.
    pub fn covers(&self, key: &InstanceKey) -> bool {
        let ServiceKey { namespace, name } = &key.service;
        self.namespace.as_ref().is_none_or(|covered| covered == namespace)
            && name.as_str().starts_with(&*self.prefix)
    }
}

/// Removes a lease with all of its instances, or single instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Deregister {
    /// A lease with all of its instances.
    Lease(LeaseId),
    /// Single instances, all or none.
    Instances(Vec<InstanceRef>),
}

/// Names an instance, and which run of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceRef {
    /// Which instance.
    pub key: InstanceKey,
    /// Not if a newer run than this has it; `None`: whichever. An update wants exactly this run, a
    /// deregistration takes an older one along.
    pub incarnation: Option<Incarnation>,
}

record!(InstanceRef { key } { incarnation });

/// Changes a live instance; what is `None` stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// Which instance.
    pub target: InstanceRef,
    /// Its new status.
    pub status: Option<Status>,
    /// Its new weight.
    pub weight: Option<u32>,
    /// All of its new metadata.
    pub metadata: Option<BTreeMap<String, String>>,
    /// Its new load.
    pub load: Option<Load>,
}

record!(Update { target } { status, weight, metadata, load });

impl Update {
    /// Changes nothing yet.
    pub fn of(target: InstanceRef) -> Self {
        Self { target, status: None, weight: None, metadata: None, load: None }
    }

    /// Checks the new values.
    ///
    /// # Errors
    /// Weight or metadata out of their limits.
    pub fn check(self) -> Result<Self, Invalid> {
        if let Some(weight) = self.weight {
            check_weight("weight", weight)?;
        }
        if let Some(metadata) = &self.metadata {
            check_metadata("metadata", metadata)?;
        }
        Ok(self)
    }

    pub(crate) fn new_values(&self) -> NewValues<'_> {
        let Self { status, weight, load, .. } = *self;
        NewValues { status, weight, metadata: self.metadata.as_ref(), load }
    }
}

/// What came of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Time passed, the cluster was founded, or a grace was given, or an override or healths were
    /// set.
    Done,
    /// Registered.
    Registered {
        /// The lease that keeps the instances.
        lease: LeaseId,
        /// Its TTL.
        ttl: Ttl,
        /// The incarnation that they have.
        incarnation: Incarnation,
    },
    /// Renewed, except for these, which are unknown.
    Renewed {
        /// In the order of the command.
        unknown: Vec<LeaseId>,
    },
    /// The instances that were removed.
    Deregistered {
        /// At least one, unless the command named none.
        removed: u32,
    },
    /// Updated.
    Updated,
    /// Refused; nothing changed, except that deregistering what is not there is remembered, and,
    /// where the command is of a request, that it was refused.
    Rejected(Rejection),
}

/// A command that somebody waits for, and its answer where it is not refused.
pub trait Write: Into<Op> {
    /// What it is answered.
    type Answer;

    /// `None`: that is the reply to another one.
    fn read(reply: Reply) -> Option<Self::Answer>;
}

/// What a registration got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registered {
    /// The lease that keeps the instances.
    pub lease: LeaseId,
    /// Its TTL.
    pub ttl: Ttl,
    /// The incarnation that they have.
    pub incarnation: Incarnation,
}

/// Renews leases; those that are unknown are its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renew(pub Vec<LeaseId>);

impl From<Renew> for Op {
    fn from(Renew(leases): Renew) -> Self {
        Self::Renew(leases)
    }
}

/// Sets an operator's override.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetOverride {
    /// The instance, which need not be registered.
    pub key: InstanceKey,
    /// `None` clears.
    pub value: Option<Override>,
}

impl From<SetOverride> for Op {
    fn from(SetOverride { key, value }: SetOverride) -> Self {
        Self::Override { key, value }
    }
}

macro_rules! writes {
    ($($write:ty => $answer:ty: $reply:pat => $value:expr;)*) => {
        $(
            impl Write for $write {
                type Answer = $answer;

                fn read(reply: Reply) -> Option<$answer> {
                    match reply {
                        $reply => Some($value),
                        _ => None,
                    }
                }
            }
        )*
    };
}

writes! {
    Register => Registered: Reply::Registered { lease, ttl, incarnation } =>
        Registered { lease, ttl, incarnation };
    Renew => Vec<LeaseId>: Reply::Renewed { unknown } => unknown;
    Deregister => u32: Reply::Deregistered { removed } => removed;
    Update => (): Reply::Updated => ();
    SetOverride => (): Reply::Done => ();
}

/// Why a command was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    /// There is no such lease.
    #[error("lease {} is unknown: it expired, was deregistered or taken over; register again", .0.0)]
    UnknownLease(LeaseId),
    /// There is no such instance.
    #[error("instance {0} is not registered")]
    UnknownInstance(InstanceKey),
    /// A newer run of the process holds the instance.
    #[error("instance {key} is held by a newer incarnation, {}", current.0)]
    NewerIncarnation {
        /// Which instance.
        key: InstanceKey,
        /// The incarnation it has.
        current: Incarnation,
    },
    /// This run of the process was deregistered a short while ago.
    #[error("incarnation {} of instance {key} was deregistered; register with a higher one", current.0)]
    Deregistered {
        /// Which instance.
        key: InstanceKey,
        /// The incarnation that was deregistered.
        current: Incarnation,
    },
    /// The lease would hold too many instances.
    #[error("lease {} would hold {instances} instances, at most {limit} allowed", lease.0)]
    LeaseFull {
        /// Which lease.
        lease: LeaseId,
        /// How many it would hold.
        instances: u64,
        /// The limit.
        limit: u64,
    },
    /// Another request of the same origin had this number, or this one was changed since.
    #[error(
        "request_id.number = {number}: another request of this origin had it; number each write anew, and send it unchanged when it is tried again"
    )]
    RequestReused {
        /// The number.
        number: u64,
    },
    /// It was asked for before, too long ago for its reply to be kept.
    #[error(
        "this write was asked for before and may have been done: what came of it is not known any more; read what is there, then send a new one"
    )]
    RequestForgotten,
    /// The registry holds as many overrides as it may.
    #[error(
        "{key} cannot be overridden: there are {limit} overrides, which is the limit for one {}; clear those that are of no use any more",
        if *registered { "more" } else { "of an instance that is not registered" }
    )]
    TooManyOverrides {
        /// Which instance.
        key: InstanceKey,
        /// Whether it is registered.
        registered: bool,
        /// The limit that holds for it.
        limit: u64,
    },
    /// There is nothing to clear.
    #[error("instance {0} is not overridden: there is nothing to clear")]
    NoOverride(InstanceKey),
    /// The lease of this run keeps instances that the caller may not register.
    #[error("the lease of this run keeps instances that the caller may not register")]
    ForeignLease,
    /// It names neither a lease nor instances for a new one: a lease that keeps nothing is none.
    #[error("neither a lease nor an instance is named: there is nothing to register")]
    NothingToKeep,
    /// As many origins are remembered for this caller as there are places left.
    #[error(
        "request_id.origin: {origins} of this caller are remembered, and there is no room for one more now: number all writes of a process under one origin, or wait; each is forgotten 130 s after its last write"
    )]
    TooManyOrigins {
        /// How many of its are.
        origins: u64,
    },
}
