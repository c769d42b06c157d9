//! Which commands one node may hand to another, and that they are within the limits: reading bytes builds types without
//! their constructors, so what a client's call was checked for has to be checked again.

use std::collections::{BTreeMap, BTreeSet};

use crate::checks::Checks;
use crate::command::{Deregister, InstanceRef, Op, Register, Update};
use crate::limits::{self, Invalid};
use crate::spec::{InstanceSpec, Override, SpecParts};
use crate::types::{InstanceKey, Ttl, check_name};

impl Op {
    /// Whether this is what a client's call may become, within the same limits. All else only a leader proposes, by itself.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_forwarded(&self) -> Result<(), Invalid> {
        let own = |op: &str| Err(Invalid::text("op", op, "only a leader proposes this, by itself"));
        match self {
            Self::Register(register) => check_register(register, &BTreeMap::new()),
            Self::RegisterChecked { register, checks } => check_register(register, checks),
            Self::RegisterLoaded { register, checks, loads } => {
                check_places("loads", loads, register)?;
                check_register(register, checks)
            }
            Self::Deregister(Deregister::Lease(_)) => Ok(()),
            Self::Deregister(Deregister::Instances(targets)) => {
                check_count(targets.len())?;
                targets.iter().try_for_each(|InstanceRef { key, .. }| check_key(key))
            }
            Self::Update(update) | Self::UpdateLoad { update, .. } => {
                check_key(&update.target.key)?;
                Update::check(update.clone()).map(drop)
            }
            Self::Override { key, value } => {
                check_key(key)?;
                let value = value.clone().map(|it| Override::new(it.status, it.weight, it.reason));
                value.transpose().map(drop)
            }
            Self::Tick => own("tick"),
            Self::Renew(_) => own("renew"),
            Self::Grace { .. } => own("grace"),
            Self::SetHealth(_) => own("set health"),
            Self::Found { .. } => own("found"),
        }
    }
}

fn check_count(instances: usize) -> Result<(), Invalid> {
    if (1..=limits::INSTANCES_PER_CALL).contains(&instances) {
        return Ok(());
    }
    let limit = format!("1 to {} in one call", limits::INSTANCES_PER_CALL);
    Err(Invalid::number("instances", instances, limit))
}

fn check_key(key: &InstanceKey) -> Result<(), Invalid> {
    check_name("namespace", key.service.namespace.as_str())?;
    check_name("service", key.service.name.as_str())?;
    check_name("id", key.id.as_str())
}

/// What stands beside instances, by their places, is of one of them.
fn check_places<T>(
    field: &str,
    all: &BTreeMap<u32, T>,
    register: &Register,
) -> Result<(), Invalid> {
    let instances = register.instances.len();
    match all.keys().next_back().filter(|last| **last as usize >= instances) {
        None => Ok(()),
        Some(last) => {
            let limit = format!("the place of one of {instances} instances, from 0");
            Err(Invalid::number(field, u64::from(*last), limit))
        }
    }
}

fn check_register(register: &Register, checks: &BTreeMap<u32, Checks>) -> Result<(), Invalid> {
    check_count(register.instances.len())?;
    check_places("checks", checks, register)?;
    register.ttl.map(|ttl| Ttl::from_ms(ttl.as_ms())).transpose()?;
    let mut keys = BTreeSet::new();
    for (place, (key, spec)) in (0_u32..).zip(&register.instances) {
        check_key(key)?;
        if !keys.insert(key) {
            return Err(Invalid::text("id", key.id.as_str(), "stands twice in one call"));
        }
        let field = format!("instances[{place}]");
        check_spec(&field, spec)?;
        if let Some(checks) = checks.get(&place) {
            Checks::new(&field, spec, checks.iter().cloned().collect())?;
        }
    }
    Ok(())
}

fn check_spec(field: &str, spec: &InstanceSpec) -> Result<(), Invalid> {
    let owned = |(name, text): (&str, &str)| (name.to_owned(), text.to_owned());
    for service in spec.requires() {
        check_name(format_args!("{field}.requires"), service.as_str())?;
    }
    let parts = SpecParts {
        endpoints: spec.endpoints().iter().map(owned).collect(),
        zone: spec.zone().to_owned(),
        version: spec.version().to_owned(),
        weight: Some(spec.weight),
        metadata: spec.metadata().iter().map(owned).collect(),
        requires: spec.requires().collect(),
        ..SpecParts::default()
    };
    InstanceSpec::new(field, parts).map(drop)
}
