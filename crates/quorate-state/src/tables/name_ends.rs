//! Derived: the names with dots, backwards ("web.acme.com" for "com.acme.web"), so that those with
//! one end stand together. A name of DNS is known to have names below it without a look at all
//! services; a name without dots takes nothing here.

use arcstr::ArcStr;
use imbl::{OrdMap, OrdSet};

use crate::types::{Namespace, ServiceKey};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NameEnds {
    /// Services.
    names: OrdSet<(Namespace, ArcStr)>,
    /// Namespaces, and how many services each has.
    namespaces: OrdMap<ArcStr, usize>,
}

impl NameEnds {
    pub(crate) fn add(&mut self, key: &ServiceKey) {
        if let Some(name) = backwards(key.name.as_str()) {
            self.names.insert((key.namespace.clone(), name));
        }
        if let Some(namespace) = backwards(key.namespace.as_str()) {
            *self.namespaces.entry(namespace).or_default() += 1;
        }
    }

    pub(crate) fn remove(&mut self, key: &ServiceKey) {
        if let Some(name) = backwards(key.name.as_str()) {
            self.names.remove(&(key.namespace.clone(), name));
        }
        let Some(namespace) = backwards(key.namespace.as_str()) else { return };
        match self.namespaces.get_mut(&namespace) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(self.namespaces.remove(&namespace)),
        }
    }

    /// Whether a service of the namespace has a name `….end`.
    pub(crate) fn has_name(&self, namespace: &Namespace, end: &str) -> bool {
        let first = (namespace.clone(), begin(end));
        let found = self.names.range(first.clone()..).next();
        found.is_some_and(|(of, name)| of == namespace && name.starts_with(&*first.1))
    }

    /// Whether a namespace with services has a name `….end`.
    pub(crate) fn has_namespace(&self, end: &str) -> bool {
        let first = begin(end);
        self.namespaces
            .range(first.clone()..)
            .next()
            .is_some_and(|(name, _)| name.starts_with(&*first))
    }
}

/// `None`: it has no dots.
fn backwards(name: &str) -> Option<ArcStr> {
    name.contains('.').then(|| labels_backwards(name).into())
}

/// What all names `….end` begin with, backwards.
fn begin(end: &str) -> ArcStr {
    (labels_backwards(end) + ".").into()
}

fn labels_backwards(name: &str) -> String {
    let labels: Vec<&str> = name.rsplit('.').collect();
    labels.join(".")
}
