//! [`Instances`]: what a live view shows at one moment, as an immutable value; and which instances
//! it shows. Knows nothing of streams.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use hashbrown::HashTable;

use crate::types::{Health, Instance, InstanceStatus};

/// Which instances of which service a [`crate::Discovery`] shows: unless set otherwise, the ones
/// that can be called.
///
/// ```
/// use quorate_client::Selector;
/// let selector = Selector::service("payments").zone("eu-1a").meta("tier", "gold");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    pub(super) service: String,
    pub(super) namespace: Option<String>,
    zone: Option<String>,
    version: Option<String>,
    metadata: BTreeMap<String, String>,
    tags: Vec<String>,
    /// Empty: any.
    statuses: Vec<InstanceStatus>,
    /// Empty: any.
    healths: Vec<Health>,
}

impl Selector {
    /// The instances of a service that can be called: their effective status is UP, and their
    /// health checks, if they declare some, do not fail.
    pub fn service(name: impl Into<String>) -> Self {
        Self {
            service: name.into(),
            namespace: None,
            zone: None,
            version: None,
            metadata: BTreeMap::new(),
            tags: Vec::new(),
            statuses: vec![InstanceStatus::Up],
            healths: vec![Health::Unspecified, Health::Unknown, Health::Passing],
        }
    }

    /// In this namespace, not in the client's.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// Only in this zone. (To prefer a zone and not to insist on it, set it at the balancer.)
    #[must_use]
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// Only of this version.
    #[must_use]
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = Some(version.into());
        self
    }

    /// Only with this metadata entry; can be repeated.
    #[must_use]
    pub fn meta(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// Only with this tag; can be repeated.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tags.push(tag.into());
        self
    }

    /// Only with one of these effective statuses, not only UP ones; with none named, any.
    #[must_use]
    pub fn statuses(mut self, statuses: impl IntoIterator<Item = InstanceStatus>) -> Self {
        self.statuses = statuses.into_iter().collect();
        self
    }

    /// Only with one of these healths, not all but [`Health::Critical`]; with none named, any.
    ///
    /// ```
    /// use quorate_client::{Health, Selector};
    /// let proven = Selector::service("payments").healths([Health::Passing]);
    /// ```
    #[must_use]
    pub fn healths(mut self, healths: impl IntoIterator<Item = Health>) -> Self {
        self.healths = healths.into_iter().collect();
        self
    }

    pub(super) fn admits(&self, instance: &Instance) -> bool {
        let is = |wanted: &Option<String>, value: &str| {
            wanted.as_deref().is_none_or(|wanted| wanted == value)
        };
        is(&self.zone, &instance.zone)
            && is(&self.version, &instance.version)
            && (self.statuses.is_empty() || self.statuses.contains(&instance.status()))
            && (self.healths.is_empty() || self.healths.contains(&instance.health()))
            && self.metadata.iter().all(|(key, value)| instance.metadata.get(key) == Some(value))
            && self.tags.iter().all(|tag| instance.tags.contains(tag))
    }
}

impl From<&str> for Selector {
    fn from(service: &str) -> Self {
        Self::service(service)
    }
}

/// Where what is known came from.
///
/// An example is at [`Instances`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// Nowhere yet: nothing is known, and empty means nothing.
    Nowhere,
    /// A file of an earlier run of this process or another on this machine; the registry was not
    /// reached since.
    Cache,
    /// The registry.
    Registry,
}

/// The instances that a live view shows, as of one revision, ordered by id. It never changes; the
/// view has a new one after each change.
///
/// ```no_run
/// # async fn example(client: quorate_client::Client) -> Result<(), quorate_client::Error> {
/// use quorate_client::Origin;
/// let payments = client.discover("payments")?.usable().await?;
/// let old = payments.origin() == Origin::Cache;
/// println!("{} can be called, from a file: {old}", payments.len());
/// println!("one of them: {:?}", payments.get("payments-1"));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Instances {
    pub(super) origin: Origin,
    pub(super) revision: u64,
    pub(super) known: bool,
    all: Vec<Arc<Instance>>,
    /// Places in `all`, by id.
    by_id: HashTable<u32>,
    hasher: RandomState,
}

impl Instances {
    pub(super) fn new(origin: Origin, revision: u64, known: bool, all: Vec<Arc<Instance>>) -> Self {
        let hasher = RandomState::new();
        let mut by_id = HashTable::with_capacity(all.len());
        for (place, instance) in (0_u32..).zip(&all) {
            let hash = |place: &u32| hasher.hash_one(all[*place as usize].id.as_str());
            by_id.insert_unique(hasher.hash_one(instance.id.as_str()), place, hash);
        }
        Self { origin, revision, known, all, by_id, hasher }
    }

    pub(crate) fn none() -> Self {
        Self::new(Origin::Nowhere, 0, false, Vec::new())
    }

    /// Where this came from.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The revision that this shows.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether the registry knows the service: it has, or lately had, instances, whether they are
    /// shown or not.
    pub fn is_known(&self) -> bool {
        self.known
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// All, ordered by id.
    pub fn as_slice(&self) -> &[Arc<Instance>] {
        &self.all
    }

    /// All, ordered by id.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Instance>> {
        self.all.iter()
    }

    /// One, by its id, in constant time.
    pub fn get(&self, id: &str) -> Option<&Arc<Instance>> {
        let same = |place: &u32| self.all[*place as usize].id == id;
        let place = self.by_id.find(self.hasher.hash_one(id), same)?;
        Some(&self.all[*place as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_admits_what_it_says() {
        let mut instance = Instance {
            zone: "a".to_owned(),
            version: "1.2".to_owned(),
            status: InstanceStatus::Up as i32,
            metadata: [("k".to_owned(), "v".to_owned())].into(),
            tags: vec!["canary".to_owned(), "gpu".to_owned()],
            ..Instance::default()
        };
        let plain = Selector::service("s");
        for (selector, admits) in [
            (plain.clone(), true),
            (plain.clone().zone("a").version("1.2").meta("k", "v"), true),
            (plain.clone().zone("b"), false),
            (plain.clone().version("1"), false),
            (plain.clone().meta("k", "w"), false),
            (plain.clone().meta("l", "v"), false),
            (plain.clone().tag("gpu").tag("canary"), true),
            (plain.clone().tag("gpu").tag("arm"), false),
            (plain.clone().statuses([InstanceStatus::Draining]), false),
        ] {
            assert_eq!(selector.admits(&instance), admits, "{selector:?}");
        }
        instance.set_status(InstanceStatus::Draining);
        assert!(!plain.admits(&instance), "what drains gets no new calls"); // S0.11
        assert!(plain.statuses([]).admits(&instance));
    }

    #[test]
    fn what_its_checks_found_dead_is_not_called() {
        let plain = Selector::service("s");
        for (health, admitted) in [
            (Health::Unspecified, true),
            (Health::Unknown, true),
            (Health::Passing, true),
            (Health::Critical, false),
        ] {
            let (status, health) = (InstanceStatus::Up as i32, health as i32);
            let instance = Instance { status, health, ..Instance::default() };
            assert_eq!(plain.admits(&instance), admitted, "{health:?}");
            assert!(plain.clone().healths([]).admits(&instance), "{health:?}");
            let critical = plain.clone().healths([Health::Critical]);
            assert_eq!(critical.admits(&instance), !admitted, "{health:?}");
        }
    }

    #[test]
    fn each_is_found_by_its_id() {
        let all = (0..1_000).map(|n| format!("i{n:04}"));
        let all = all.map(|id| Arc::new(Instance { id, ..Instance::default() }));
        let instances = Instances::new(Origin::Registry, 7, true, all.collect());
        for instance in instances.iter() {
            assert!(Arc::ptr_eq(instances.get(&instance.id).unwrap(), instance));
        }
        assert!(instances.get("i1000").is_none() && instances.get("").is_none());
    }
}
