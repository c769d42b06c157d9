//! The registry itself, and what each command does to it ([`Registry::apply`]). Instances are kept
//! in `registry/instances.rs`, leases in `registry/leases.rs`; deregistering is in
//! `registry/deregister.rs`, reading in `registry/read.rs`. The nodes that were members
//! once are in `registry/nodes.rs`: those change with the membership, by no command.
//!
//! Invariants: the clock never goes back; revisions are dense and belong to one event each; every
//! instance is kept by one lease, which lists it; a lease without instances does not exist; nothing
//! of an older incarnation changes what a newer one holds; a refused command changes nothing but
//! the clock and what that makes due (two exceptions: deregistering a run of an instance that is
//! not there is remembered, see `registry/deregister.rs`, and so is the refusal of a request and
//! what its origin needs no more, see `registry/replies.rs`).
//!
//! All maps are ordered and persistent (structure is shared between clones), so cloning a registry
//! costs almost nothing: snapshots and long reads work on a clone while commands go on.

mod anew;
mod checked;
pub(crate) mod deregister;
pub(crate) mod instances;
mod lease_table;
pub(crate) mod leases;
pub(crate) mod nodes;
mod read;
pub(crate) mod replies;
pub(crate) mod size;

pub use anew::{Founding, OldNode, Predecessor};
pub use checked::CheckedInstances;
pub use instances::Service;
pub use leases::Lease;
pub use nodes::Removal;
pub use read::Counts;

use std::num::NonZeroU64;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use crate::checks::HealthReport;
use crate::command::{Command, Op, Register, Rejection, Reply, Update};
use crate::event::{Applied, Event};
use crate::hash::{Kind, StateHash};
use crate::level::Level;
use crate::limits;
use crate::registry::deregister::Tombstone;
use crate::registry::lease_table::LeaseTable;
use crate::registry::nodes::RemovedNodes;
use crate::registry::replies::{Known, Replies};
use crate::spec::{Instance, Override};
use crate::tables::deadlines::Deadlines;
use crate::tables::name_ends::NameEnds;
use crate::types::{Clock, Incarnation, InstanceKey, LeaseId, Revision, ServiceKey, Ttl};

/// The whole replicated state.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    /// Whose state this is; `None`: not founded yet.
    pub(crate) cluster_id: Option<NonZeroU64>,
    /// The clusters whose registrations it has taken over, the latest last.
    pub(crate) predecessors: Arc<[Predecessor]>,
    pub(crate) level: Level,
    pub(crate) clock: Clock,
    pub(crate) revision: Revision,
    /// The highest id of a lease that was given out, or what ids begin behind.
    pub(crate) last_lease: u64,
    /// The highest revision of a service that was forgotten since.
    pub(crate) forgotten: Revision,
    pub(crate) services: OrdMap<ServiceKey, Service>,
    pub(crate) leases: LeaseTable,
    pub(crate) overrides: OrdMap<InstanceKey, Override>,
    pub(crate) tombstones: OrdMap<InstanceKey, Tombstone>,
    pub(crate) replies: Replies,
    /// By the last of each.
    pub(crate) removed: OrdMap<u64, RemovedNodes>,
    /// Derived: every deadline there is.
    pub(crate) deadlines: Deadlines,
    /// Derived: (required service, instance that requires it).
    pub(crate) dependents: OrdSet<(ServiceKey, InstanceKey)>,
    /// Derived: the instances that have health checks.
    pub(crate) checked: OrdMap<InstanceKey, Arc<Instance>>,
    /// Derived: names with dots, by what they end in.
    pub(crate) name_ends: NameEnds,
    /// Derived: how many instances there are.
    pub(crate) instances: usize,
    /// Derived: about what they take.
    pub(crate) bytes: usize,
    /// Derived: of everything that is not derived.
    pub(crate) hash: StateHash,
}

impl Registry {
    /// An empty registry at time zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Applies one command: lets time pass, ends what is due (a bounded part of it), then does what
    /// the command says, unless that was done before: then it is answered as it was then.
    pub fn apply(&mut self, command: &Command) -> Applied {
        let mut events = Vec::new();
        self.clock = self.clock.max(command.clock);
        self.expire_due(&mut events);
        let Some(request) = &command.request else {
            let reply = self.perform(&command.op, &mut events);
            return Applied { reply, events, revision: self.revision };
        };
        let may_be_done = match self.replies.find(request) {
            Known::Done(done) => {
                return Applied { reply: done.reply.clone(), events, revision: done.revision };
            }
            Known::Refused(rejection) => Err(rejection),
            Known::New => self.replies.check_room(request),
        };
        let reply = match may_be_done {
            Err(rejection) => Reply::Rejected(rejection),
            Ok(()) => {
                let reply = self.perform(&command.op, &mut events);
                self.note_origin(request);
                self.keep_reply(request, &reply);
                reply
            }
        };
        Applied { reply, events, revision: self.revision }
    }

    fn perform(&mut self, op: &Op, events: &mut Vec<Arc<Event>>) -> Reply {
        let done = match op {
            Op::Tick => Ok(Reply::Done),
            Op::Register(register) => self.register(register, events),
            Op::Renew(leases) => Ok(self.renew(leases)),
            Op::Deregister(deregister) => self.deregister(deregister, events),
            Op::Update(update) => self.update(update, events),
            Op::Override { key, value } => self.set_override(key, value, events),
            Op::Grace { grace_ms } => {
                self.give_grace(*grace_ms);
                Ok(Reply::Done)
            }
            Op::SetHealth(reports) => Ok(self.set_healths(reports, events)),
            Op::Found { cluster_id, lease_base } => {
                self.found(*cluster_id, *lease_base);
                Ok(Reply::Done)
            }
            Op::SetLevel(Level { number, held }) => {
                self.level = Level { number: self.level.number.max(*number), held: *held };
                Ok(Reply::Done)
            }
        };
        done.unwrap_or_else(Reply::Rejected)
    }

    /// The first one counts. A lease that is there (from commands before it, in logs made by hand)
    /// is never given out again.
    fn found(&mut self, cluster_id: NonZeroU64, lease_base: u64) {
        if self.cluster_id.is_none() {
            self.cluster_id = Some(cluster_id);
            self.last_lease = self.last_lease.max(lease_base);
        }
    }

    fn register(
        &mut self,
        register: &Register,
        events: &mut Vec<Arc<Event>>,
    ) -> Result<Reply, Rejection> {
        let held = self.held(register);
        let incarnation = self.admit(register, &held)?;
        let lease = match self.lease_for(register, &held, incarnation)? {
            Some(lease) => {
                self.renew_lease(lease, register.ttl);
                lease
            }
            None => self.add_lease(register.ttl.unwrap_or(Ttl::DEFAULT)),
        };
        let ttl = self.leases.get(lease).map_or(Ttl::DEFAULT, |lease| lease.ttl);
        for (key, spec) in &register.instances {
            self.put_instance(key, spec.clone(), incarnation, lease, events);
        }
        Ok(Reply::Registered { lease, ttl, incarnation })
    }

    /// Whether a command would be refused now, whatever it brings.
    pub fn refuses(&self, op: &Op) -> bool {
        match op {
            Op::Register(register) => {
                let held = self.held(register);
                let admitted = self.admit(register, &held);
                admitted.and_then(|run| self.lease_for(register, &held, run)).is_err()
            }
            Op::Update(update) => self.to_update(update).is_err(),
            _ => false,
        }
    }

    /// What has the instances' keys now.
    fn held(&self, register: &Register) -> Vec<Option<Arc<Instance>>> {
        let instance = |(key, _): &(InstanceKey, _)| self.instance(key).cloned();
        register.instances.iter().map(instance).collect()
    }

    /// The incarnation to register with, if nothing newer stands against it; `held`: what has the
    /// instances' keys now.
    fn admit(
        &self,
        register: &Register,
        held: &[Option<Arc<Instance>>],
    ) -> Result<Incarnation, Rejection> {
        let ended = |key: &InstanceKey| self.tombstones.get(key).map(|ended| ended.incarnation);
        let held = held.iter().map(|held| held.as_ref().map(|held| held.incarnation));
        let known =
            register.instances.iter().zip(held).map(|((key, _), held)| (key, held, ended(key)));
        let wanted = register.incarnation.unwrap_or_else(|| {
            let highest = known.clone().filter_map(|(_, held, ended)| held.max(ended)).max();
            Incarnation(highest.unwrap_or_default().0.saturating_add(1))
        });
        for (key, held, ended) in known {
            if let Some(current) = held.filter(|current| *current > wanted) {
                return Err(Rejection::NewerIncarnation { key: key.clone(), current });
            }
            if let Some(current) = ended.filter(|ended| *ended >= wanted) {
                return Err(Rejection::Deregistered { key: key.clone(), current });
            }
        }
        Ok(wanted)
    }

    /// The lease to register under; `None`: a new one.
    fn lease_for(
        &self,
        register: &Register,
        held: &[Option<Arc<Instance>>],
        incarnation: Incarnation,
    ) -> Result<Option<LeaseId>, Rejection> {
        let of_same_run = || {
            let mut held = held.iter().flatten();
            held.find(|held| held.incarnation == incarnation).map(|held| held.lease)
        };
        let Some(id) = register.lease.or_else(of_same_run) else {
            if register.instances.is_empty() {
                return Err(Rejection::NothingToKeep);
            }
            check_room(LeaseId(self.last_lease + 1), register.instances.len())?;
            return Ok(None);
        };
        let lease = self.leases.get(id).ok_or(Rejection::UnknownLease(id))?;
        if let Some(within) = &register.within {
            let is_own = |key: &InstanceKey| within.iter().any(|scope| scope.covers(key));
            if !lease.instances.iter().all(is_own) {
                // One that was named is as good as unknown to the caller.
                let named = register.lease.map(Rejection::UnknownLease);
                return Err(named.unwrap_or(Rejection::ForeignLease));
            }
        }
        let new = register.instances.iter().filter(|(key, _)| !lease.instances.contains(key));
        check_room(id, lease.instances.len() + new.count())?;
        Ok(Some(id))
    }

    fn renew(&mut self, leases: &[LeaseId]) -> Reply {
        let mut unknown = Vec::new();
        for id in leases {
            if !self.renew_lease(*id, None) {
                unknown.push(*id);
            }
        }
        Reply::Renewed { unknown }
    }

    fn update(
        &mut self,
        update: &Update,
        events: &mut Vec<Arc<Event>>,
    ) -> Result<Reply, Rejection> {
        let held = self.to_update(update)?;
        let spec = held.spec.updated(update.new_values());
        self.put_instance(&held.key, spec, held.incarnation, held.lease, events);
        Ok(Reply::Updated)
    }

    /// The instance that an update names.
    fn to_update(&self, update: &Update) -> Result<Arc<Instance>, Rejection> {
        self.check_not_newer(&update.target)?;
        let key = &update.target.key;
        let named = update.target.incarnation;
        let held = self.instance(key).filter(|held| named.is_none_or(|it| it <= held.incarnation));
        held.cloned().ok_or_else(|| Rejection::UnknownInstance(key.clone()))
    }

    fn set_override(
        &mut self,
        key: &InstanceKey,
        value: &Option<Override>,
        events: &mut Vec<Arc<Event>>,
    ) -> Result<Reply, Rejection> {
        let registered = self.instance(key).is_some();
        let limit = if registered { limits::OVERRIDES } else { limits::OVERRIDES_AHEAD };
        match value {
            _ if self.overrides.contains_key(key) => {}
            None => return Err(Rejection::NoOverride(key.clone())),
            Some(_) if self.overrides.len() >= limit => {
                let (key, limit) = (key.clone(), limit as u64);
                return Err(Rejection::TooManyOverrides { key, registered, limit });
            }
            Some(_) => {}
        }
        if let Some(old) = self.overrides.remove(key) {
            self.hash.remove(Kind::Override, &(key, old));
        }
        if let Some(new) = value {
            self.insert_override(key.clone(), new.clone());
        }
        if let Some(held) = self.instance(key).cloned() {
            let spec = held.spec.clone();
            self.put_instance(key, spec, held.incarnation, held.lease, events);
        }
        Ok(Reply::Done)
    }

    fn set_healths(&mut self, reports: &[HealthReport], events: &mut Vec<Arc<Event>>) -> Reply {
        for report in reports {
            let held = self
                .instance(&report.key)
                .filter(|held| held.incarnation == report.incarnation && held.checks().is_some());
            let Some(held) = held.cloned() else { continue };
            let found = report.finding().map(Box::new);
            let after = Instance { found, ..Instance::clone(&held) };
            self.replace_instance(Some(held), after, events);
        }
        Reply::Done
    }

    pub(crate) fn insert_override(&mut self, key: InstanceKey, value: Override) {
        self.hash.add(Kind::Override, &(&key, &value));
        self.overrides.insert(key, value);
    }
}

fn check_room(lease: LeaseId, instances: usize) -> Result<(), Rejection> {
    if instances <= limits::INSTANCES_PER_LEASE {
        return Ok(());
    }
    let (instances, limit) = (instances as u64, limits::INSTANCES_PER_LEASE as u64);
    Err(Rejection::LeaseFull { lease, instances, limit })
}
