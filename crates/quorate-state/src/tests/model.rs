//! The same registry as simple as can be, written from the specification (ARCHITECTURE.md, the
//! proto files, `command.rs`) and not from the code: flat lists, full scans, a copy of everything
//! to go back to where a command is refused.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use crate::registry::leases::{EMPTY_SERVICES_MAX, ENDED_PER_COMMAND, TOMBSTONES_MAX};
use crate::*;

const TOMBSTONE_MS: u64 = 2 * 60 * 1_000;
const EMPTY_SERVICE_MS: u64 = 60 * 60 * 1_000;

#[derive(Clone, Default)]
pub(super) struct Model {
    pub(super) cluster_id: Option<NonZeroU64>,
    pub(super) clock: u64,
    pub(super) revision: u64,
    pub(super) forgotten: u64,
    pub(super) instances: Vec<Instance>,
    pub(super) leases: Vec<ModelLease>,
    pub(super) services: BTreeMap<ServiceKey, ModelService>,
    pub(super) leases_given: u64,
    pub(super) overrides: Vec<(InstanceKey, Override)>,
    pub(super) ended: Vec<Ended>,
    events: Vec<Event>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct ModelLease {
    pub(super) id: u64,
    pub(super) ttl: u64,
    pub(super) renewed: u64,
    pub(super) deadline: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct ModelService {
    pub(super) revision: u64,
    pub(super) emptied: Option<u64>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ended {
    pub(super) key: InstanceKey,
    pub(super) incarnation: u64,
    pub(super) until: u64,
}

/// What can be due, in the order in which it goes where it is due at the same time.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Time {
    Lease(u64),
    Ended(InstanceKey),
    Service(ServiceKey),
}

impl Model {
    fn found(&mut self, cluster_id: NonZeroU64, lease_base: u64) -> Reply {
        if self.cluster_id.is_none() {
            self.cluster_id = Some(cluster_id);
            self.leases_given = self.leases_given.max(lease_base);
        }
        Reply::Done
    }

    pub(super) fn apply(&mut self, command: &Command) -> (Reply, Vec<Event>) {
        if command.clock.0 > self.clock {
            self.clock = command.clock.0;
        }
        self.expire();
        let before = self.clone();
        let outcome = match &command.op {
            Op::Tick => Ok(Reply::Done),
            Op::Register(register) => self.register(register),
            Op::SetHealth(reports) => Ok(self.set_health(reports)),
            Op::Renew(leases) => Ok(self.renew(leases)),
            Op::Deregister(Deregister::Lease(id)) => self.deregister_lease(*id),
            Op::Deregister(Deregister::Instances(targets)) => self.deregister(targets),
            Op::Update(update) => self.update(update),
            Op::Override { key, value } => self.set_override(key, value),
            Op::Grace { grace_ms } => Ok(self.grace(*grace_ms)),
            Op::Found { cluster_id, lease_base } => Ok(self.found(*cluster_id, *lease_base)),
            Op::SetLevel(_) => Ok(Reply::Done),
        };
        self.drop_empty_leases();
        let reply = match outcome {
            Ok(reply) => reply,
            // Remembering what was deregistered before it came is not undone.
            Err(rejection @ Rejection::UnknownInstance(_)) => Reply::Rejected(rejection),
            Err(rejection) => {
                *self = before;
                Reply::Rejected(rejection)
            }
        };
        (reply, std::mem::take(&mut self.events))
    }

    /// What is due, leases first, each in order, until a command's share has ended.
    fn expire(&mut self) {
        let leases = self.leases.iter().map(|lease| (lease.deadline, Time::Lease(lease.id)));
        let ended = self.ended.iter().map(|ended| (ended.until, Time::Ended(ended.key.clone())));
        let services = self.services.iter().filter_map(|(key, service)| {
            Some((service.emptied?.saturating_add(EMPTY_SERVICE_MS), Time::Service(key.clone())))
        });
        let mut due: Vec<_> = leases.chain(ended).chain(services).collect();
        due.retain(|(at, _)| *at <= self.clock);
        due.sort();
        due.sort_by_key(|(_, what)| !matches!(what, Time::Lease(_)));
        let mut done = 0;
        for (_, what) in due {
            if done >= ENDED_PER_COMMAND {
                break;
            }
            if matches!(&what, Time::Service(key) if !self.services.contains_key(key)) {
                // It made room for one that lost its last instance just now.
                continue;
            }
            done += 1;
            match what {
                Time::Lease(id) => {
                    let keys = self.keys_of(id);
                    done += keys.len() - 1;
                    for key in keys {
                        self.remove(&key, RemoveReason::Expired);
                    }
                }
                Time::Ended(key) => self.ended.retain(|ended| ended.key != key),
                Time::Service(key) => self.forget_service(&key),
            }
        }
        self.drop_empty_leases();
    }

    fn register(&mut self, register: &Register) -> Result<Reply, Rejection> {
        let mut incarnation = 1;
        for (key, _) in &register.instances {
            incarnation = incarnation.max(self.held(key).unwrap_or(0) + 1);
            incarnation = incarnation.max(self.ended(key).unwrap_or(0) + 1);
        }
        let incarnation = register.incarnation.map_or(incarnation, |named| named.0);
        for (key, _) in &register.instances {
            let (key, held, ended) = (key.clone(), self.held(key), self.ended(key));
            if let Some(current) = held.filter(|held| *held > incarnation) {
                return Err(Rejection::NewerIncarnation { key, current: Incarnation(current) });
            }
            if let Some(current) = ended.filter(|ended| *ended >= incarnation) {
                return Err(Rejection::Deregistered { key, current: Incarnation(current) });
            }
        }
        let mut id = register.lease.map(|id| id.0);
        for (key, _) in &register.instances {
            let held = self.find(key).filter(|held| held.incarnation.0 == incarnation);
            id = id.or(held.map(|held| held.lease.0));
        }
        let id = match id {
            None if register.instances.is_empty() => {
                return Err(Rejection::NothingToKeep);
            }
            None => {
                self.leases_given += 1;
                let (id, now) = (self.leases_given, self.clock);
                self.leases.push(ModelLease { id, ttl: 15_000, renewed: now, deadline: now });
                id
            }
            Some(id) => id,
        };
        let now = self.clock;
        let keys = self.keys_of(id);
        let Some(lease) = self.leases.iter_mut().find(|lease| lease.id == id) else {
            return Err(Rejection::UnknownLease(LeaseId(id)));
        };
        let may = |key: &InstanceKey| {
            register.within.as_ref().is_none_or(|all| all.iter().any(|it| it.covers(key)))
        };
        if !keys.iter().all(may) {
            return Err(register.lease.map_or(Rejection::ForeignLease, Rejection::UnknownLease));
        }
        lease.ttl = register.ttl.map_or(lease.ttl, Ttl::as_ms);
        lease.renewed = now;
        lease.deadline = now + lease.ttl;
        let ttl = Ttl::from_ms(lease.ttl).unwrap();
        let lease = LeaseId(id);
        for (key, spec) in &register.instances {
            let same_run = self.held(key) == Some(incarnation);
            self.put(key, |instance| {
                if !same_run || spec.checks().is_none() {
                    instance.found = None;
                }
                instance.spec = spec.clone();
                instance.incarnation = Incarnation(incarnation);
                instance.lease = lease;
            });
        }
        Ok(Reply::Registered { lease, ttl, incarnation: Incarnation(incarnation) })
    }

    fn renew(&mut self, leases: &[LeaseId]) -> Reply {
        let now = self.clock;
        let mut unknown = Vec::new();
        for id in leases {
            match self.leases.iter_mut().find(|lease| lease.id == id.0) {
                Some(lease) => (lease.renewed, lease.deadline) = (now, now + lease.ttl),
                None => unknown.push(*id),
            }
        }
        Reply::Renewed { unknown }
    }

    fn deregister_lease(&mut self, id: LeaseId) -> Result<Reply, Rejection> {
        let keys = self.keys_of(id.0);
        for key in &keys {
            let incarnation = self.held(key).unwrap();
            self.remove(key, RemoveReason::Deregistered);
            self.remember(key, incarnation);
        }
        match keys.len() {
            0 => Err(Rejection::UnknownLease(id)),
            removed => Ok(Reply::Deregistered { removed: removed as u32 }),
        }
    }

    fn deregister(&mut self, targets: &[InstanceRef]) -> Result<Reply, Rejection> {
        for target in targets {
            self.refuse_older(target)?;
        }
        let mut removed = 0;
        for target in targets {
            let held = self.held(&target.key);
            if held.is_some() {
                self.remove(&target.key, RemoveReason::Deregistered);
                removed += 1;
            }
            if let Some(incarnation) = target.incarnation.map(|named| named.0).or(held) {
                self.remember(&target.key, incarnation);
            }
        }
        match targets.first() {
            Some(first) if removed == 0 => Err(Rejection::UnknownInstance(first.key.clone())),
            _ => Ok(Reply::Deregistered { removed }),
        }
    }

    /// Refuses this incarnation of the instance and all before it for a while; the highest one ever
    /// remembered stands.
    fn remember(&mut self, key: &InstanceKey, incarnation: u64) {
        if self.ended(key).is_some_and(|ended| ended > incarnation) {
            return;
        }
        self.ended.retain(|ended| ended.key != *key);
        let until = self.clock + TOMBSTONE_MS;
        self.ended.push(Ended { key: key.clone(), incarnation, until });
        if self.ended.len() > TOMBSTONES_MAX {
            let first = (0..self.ended.len())
                .min_by_key(|at| (self.ended[*at].until, self.ended[*at].key.clone()))
                .unwrap();
            self.ended.remove(first);
        }
    }

    fn update(&mut self, update: &Update) -> Result<Reply, Rejection> {
        let key = &update.target.key;
        self.refuse_older(&update.target)?;
        let held = self
            .find(key)
            .filter(|held| update.target.incarnation.is_none_or(|named| named == held.incarnation));
        let Some(held) = held else { return Err(Rejection::UnknownInstance(key.clone())) };
        let spec = InstanceSpec::new(
            "",
            SpecParts {
                endpoints: held.spec.endpoints().to_map(),
                zone: held.spec.zone().to_owned(),
                version: held.spec.version().to_owned(),
                weight: update.weight.or(Some(without_override(held).weight())),
                status: update.status.unwrap_or(without_override(held).status()),
                metadata: update.metadata.clone().unwrap_or(held.spec.metadata().to_map()),
                requires: held.spec.requires().collect(),
                load: update.load.unwrap_or(held.spec.load()).get(),
                checks: held.checks().into_iter().flat_map(Checks::iter).cloned().collect(),
                tags: held.spec.tags().map(str::to_owned).collect(),
            },
        );
        let spec = spec.unwrap();
        self.put(key, |instance| instance.spec = spec);
        Ok(Reply::Updated)
    }

    fn set_override(
        &mut self,
        key: &InstanceKey,
        value: &Option<Override>,
    ) -> Result<Reply, Rejection> {
        if value.is_none() && !self.overrides.iter().any(|(other, _)| other == key) {
            return Err(Rejection::NoOverride(key.clone()));
        }
        self.overrides.retain(|(other, _)| other != key);
        self.overrides.extend(value.iter().map(|value| (key.clone(), value.clone())));
        if self.find(key).is_some() {
            self.put(key, |_| ());
        }
        Ok(Reply::Done)
    }

    fn set_health(&mut self, reports: &[HealthReport]) -> Reply {
        for report in reports {
            let found = self.find(&report.key).filter(|i| i.incarnation == report.incarnation);
            if found.is_some_and(|instance| instance.checks().is_some()) {
                self.put(&report.key, |instance| {
                    let (health, reason) = (report.health, report.reason.clone());
                    let finding = match health {
                        Health::Unknown => None,
                        Health::Passing => Some(Finding { health, reason: None }),
                        Health::Critical => Some(Finding { health, reason }),
                    };
                    instance.found = finding.map(Box::new);
                });
            }
        }
        Reply::Done
    }

    fn grace(&mut self, grace_ms: u64) -> Reply {
        for lease in &mut self.leases {
            let grace = grace_ms.min(lease.ttl);
            let wanted = self.clock + grace;
            let allowed = lease.renewed + lease.ttl + grace;
            lease.deadline = lease.deadline.max(wanted.min(allowed));
        }
        Reply::Done
    }

    fn refuse_older(&self, target: &InstanceRef) -> Result<(), Rejection> {
        match (target.incarnation, self.held(&target.key)) {
            (Some(named), Some(held)) if named.0 < held => {
                let current = Incarnation(held);
                Err(Rejection::NewerIncarnation { key: target.key.clone(), current })
            }
            _ => Ok(()),
        }
    }

    /// Makes or changes an instance; an event only if that made a difference.
    fn put(&mut self, key: &InstanceKey, change: impl FnOnce(&mut Instance)) {
        let next = Revision(self.revision + 1);
        let before = self.find(key).cloned();
        let mut after = before.clone().unwrap_or_else(|| Instance {
            key: key.clone(),
            spec: super::spec(super::parts()),
            incarnation: Incarnation(0),
            lease: LeaseId(0),
            created: next,
            modified: next,
            overridden: None,
            found: None,
        });
        change(&mut after);
        let overridden = self.overrides.iter().find(|(other, _)| other == key);
        after.overridden = overridden.map(|(_, value)| value.clone().into());
        if before.as_ref() == Some(&after) {
            return;
        }
        after.modified = next;
        self.instances.retain(|instance| instance.key != *key);
        self.instances.push(after.clone());
        let after = after.into();
        self.tell(match before {
            None => Change::Added { after },
            Some(before) => Change::Modified { before: before.into(), after },
        });
    }

    fn remove(&mut self, key: &InstanceKey, reason: RemoveReason) {
        let before = self.find(key).unwrap().clone().into();
        self.instances.retain(|instance| instance.key != *key);
        self.tell(Change::Removed { before, reason });
    }

    fn tell(&mut self, change: Change) {
        self.revision += 1;
        let event = Event { revision: Revision(self.revision), change };
        let service = event.key().service.clone();
        let empty = !self.instances.iter().any(|instance| instance.key.service == service);
        let emptied = empty.then_some(self.clock);
        self.services.insert(service, ModelService { revision: self.revision, emptied });
        let mut empty: Vec<_> = self
            .services
            .iter()
            .filter_map(|(key, service)| Some((service.emptied?, key.clone())))
            .collect();
        empty.sort();
        if empty.len() > EMPTY_SERVICES_MAX {
            self.forget_service(&empty[0].1);
        }
        self.events.push(event);
    }

    fn forget_service(&mut self, key: &ServiceKey) {
        let service = self.services.remove(key).unwrap();
        self.forgotten = self.forgotten.max(service.revision);
    }

    fn drop_empty_leases(&mut self) {
        let Self { leases, instances, .. } = self;
        leases.retain(|lease| instances.iter().any(|instance| instance.lease.0 == lease.id));
    }

    fn find(&self, key: &InstanceKey) -> Option<&Instance> {
        self.instances.iter().find(|instance| instance.key == *key)
    }

    fn held(&self, key: &InstanceKey) -> Option<u64> {
        self.find(key).map(|instance| instance.incarnation.0)
    }

    fn ended(&self, key: &InstanceKey) -> Option<u64> {
        self.ended.iter().find(|ended| ended.key == *key).map(|ended| ended.incarnation)
    }

    fn keys_of(&self, lease: u64) -> Vec<InstanceKey> {
        let kept = self.instances.iter().filter(|instance| instance.lease.0 == lease);
        let mut keys: Vec<_> = kept.map(|instance| instance.key.clone()).collect();
        keys.sort();
        keys
    }
}

fn without_override(instance: &Instance) -> Instance {
    Instance { overridden: None, ..instance.clone() }
}
