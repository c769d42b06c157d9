//! Who watches all services whose names begin with something, found by the name of one: its
//! beginnings are looked up, as many as there are lengths. To compare it with every prefix held the
//! lock for 0.1 ms a change where 10,000 were watched.

use std::collections::BTreeMap;

use quorate_state::{Namespace, ServiceKey};

/// Watchers by prefix. In order, so that a simulation wakes in the same order again.
#[derive(Debug, Default)]
pub(super) struct Prefixes(BTreeMap<Namespace, OfNamespace>);

#[derive(Debug, Default)]
struct OfNamespace {
    watchers: BTreeMap<String, Vec<u64>>,
    /// How many prefixes have each length.
    lengths: BTreeMap<usize, usize>,
}

impl Prefixes {
    pub(super) fn add(&mut self, namespace: &Namespace, prefix: &str, id: u64) {
        let of = self.0.entry(namespace.clone()).or_default();
        if let Some(watchers) = of.watchers.get_mut(prefix) {
            return watchers.push(id);
        }
        of.watchers.insert(prefix.to_owned(), vec![id]);
        *of.lengths.entry(prefix.len()).or_default() += 1;
    }

    pub(super) fn remove(&mut self, namespace: &Namespace, prefix: &str, id: u64) {
        let Some(of) = self.0.get_mut(namespace) else { return };
        let Some(watchers) = of.watchers.get_mut(prefix) else { return };
        watchers.retain(|other| *other != id);
        if !watchers.is_empty() {
            return;
        }
        of.watchers.remove(prefix);
        match of.lengths.get_mut(&prefix.len()) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(of.lengths.remove(&prefix.len())),
        }
        if of.watchers.is_empty() {
            self.0.remove(namespace);
        }
    }

    /// The prefixes that a service's name begins with, the shortest first, and who watches each.
    pub(super) fn of<'a>(
        &'a self,
        service: &'a ServiceKey,
    ) -> impl Iterator<Item = (&'a str, &'a [u64])> + Clone + use<'a> {
        let name = service.name.as_str();
        let of = self.0.get(&service.namespace).into_iter();
        of.flat_map(move |of| {
            let beginnings = of.lengths.keys().filter_map(move |length| name.get(..*length));
            beginnings.filter_map(|beginning| {
                let (prefix, watchers) = of.watchers.get_key_value(beginning)?;
                Some((prefix.as_str(), watchers.as_slice()))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use quorate_state::ServiceName;

    use super::*;

    #[test]
    fn a_name_finds_the_prefixes_that_it_begins_with() {
        let namespaces = ["default", "other"].map(|name| Namespace::new("n", name).unwrap());
        let all = ["", "w", "web", "web-", "web-1", "x", "wéb", "api", "web-12"];
        let mut prefixes = Prefixes::default();
        for (id, prefix) in (0..).zip(all.into_iter().chain(all)) {
            prefixes.add(&namespaces[0], prefix, id);
        }
        prefixes.add(&namespaces[1], "we", 99);
        let found = |prefixes: &Prefixes, namespace: usize, name: &str| {
            let name = ServiceName::new("service", name).unwrap();
            let key = ServiceKey { namespace: namespaces[namespace].clone(), name };
            let found: Vec<_> =
                prefixes.of(&key).map(|(prefix, ids)| (prefix.to_owned(), ids.to_vec())).collect();
            found
        };
        let expected = |wanted: &[&str]| {
            let ids = |prefix: &str| all.iter().position(|other| *other == prefix).unwrap() as u64;
            let both = |prefix: &&str| ((*prefix).to_owned(), vec![ids(prefix), ids(prefix) + 9]);
            wanted.iter().map(both).collect::<Vec<_>>()
        };
        assert_eq!(found(&prefixes, 0, "web-1"), expected(&["", "w", "web", "web-", "web-1"]));
        assert_eq!(found(&prefixes, 0, "web"), expected(&["", "w", "web"]));
        assert_eq!(found(&prefixes, 0, "y"), expected(&[""]));
        assert_eq!(found(&prefixes, 1, "web"), [("we".to_owned(), vec![99])]);
        for (id, prefix) in (0..).zip(all.into_iter().chain(all)) {
            prefixes.remove(&namespaces[0], prefix, id);
            prefixes.remove(&namespaces[0], prefix, id);
        }
        assert!(found(&prefixes, 0, "web-1").is_empty());
        prefixes.remove(&namespaces[1], "we", 99);
        assert!(prefixes.0.is_empty());
    }
}
