//! Which commands one node may hand to another, and that they are within the limits: reading bytes
//! builds types without their constructors, so what a client's call was checked for has to be
//! checked again.

use std::collections::BTreeSet;

use crate::command::{Deregister, InstanceRef, Op, Register, Update};
use crate::limits::{self, Invalid};
use crate::spec::Override;
use crate::types::{InstanceKey, Ttl, check_name};

impl Op {
    /// Whether this is what a client's call may become, within the same limits. All else only a
    /// leader proposes, by itself.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_forwarded(&self) -> Result<(), Invalid> {
        let own = |op: &str| Err(Invalid::text("op", op, "only a leader proposes this, by itself"));
        match self {
            Self::Register(register) => check_register(register),
            Self::Deregister(Deregister::Lease(_)) => Ok(()),
            Self::Deregister(Deregister::Instances(targets)) => {
                check_count(targets.len())?;
                targets.iter().try_for_each(|InstanceRef { key, .. }| check_key(key))
            }
            Self::Update(update) => {
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
            Self::SetLevel(_) => own("set level"),
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

fn check_register(register: &Register) -> Result<(), Invalid> {
    check_count(register.instances.len())?;
    register.ttl.map(|ttl| Ttl::from_ms(ttl.as_ms())).transpose()?;
    let scopes = register.within.as_ref().map_or(0, Vec::len);
    if scopes > limits::SCOPES {
        return Err(Invalid::number("within", scopes, format!("at most {}", limits::SCOPES)));
    }
    let mut keys = BTreeSet::new();
    for (place, (key, spec)) in register.instances.iter().enumerate() {
        check_key(key)?;
        if !keys.insert(key) {
            return Err(Invalid::text("id", key.id.as_str(), "stands twice in one call"));
        }
        spec.check(format_args!("instances[{place}]"))?;
    }
    Ok(())
}
