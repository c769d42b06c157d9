//! Derived: what the full names of services (`SERVICE.NAMESPACE`) end in, so that a name of DNS is
//! known to have names below it without a look at all services.

use std::sync::Arc;

use imbl::OrdMap;

use crate::types::{Namespace, ServiceKey};

/// How many services of which namespace end so, by what follows each dot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NameEnds(OrdMap<Arc<str>, OrdMap<Namespace, usize>>);

impl NameEnds {
    pub(crate) fn add(&mut self, key: &ServiceKey) {
        let name = format!("{}.{}", key.name, key.namespace);
        for end in ends(&name) {
            let ending = self.0.entry(end.into()).or_default();
            *ending.entry(key.namespace.clone()).or_default() += 1;
        }
    }

    pub(crate) fn remove(&mut self, key: &ServiceKey) {
        let name = format!("{}.{}", key.name, key.namespace);
        for end in ends(&name) {
            let Some(ending) = self.0.get_mut(end) else { continue };
            match ending.get_mut(&key.namespace) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(ending.remove(&key.namespace)),
            }
            if ending.is_empty() {
                self.0.remove(end);
            }
        }
    }

    pub(crate) fn namespaces(&self, end: &str) -> impl Iterator<Item = &Namespace> {
        self.0.get(end).into_iter().flat_map(OrdMap::keys)
    }
}

fn ends(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('.').map(|(dot, _)| &name[dot + 1..])
}
