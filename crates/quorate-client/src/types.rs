//! What callers hand in and get back. Most of it is the wire contract itself, re-exported; here
//! stand the builders, so that no caller has to spell out protobuf's "not set".

mod checks;

use std::time::Duration;

use quorate_proto::ClusterId;
use quorate_proto::v1;

pub use checks::HealthCheck;
pub use quorate_proto::v1::{
    Condition, Consistency, Health, Instance, InstanceOverride, InstanceSpec, InstanceStatus,
    Member, MemberRole, MemberStatus, NodeState, OverriddenInstance, RemoveReason, ResponseHeader,
    Service, ServiceSummary, Standing, WritesRefused,
};

/// Describes one instance.
///
/// ```
/// let instance = quorate_client::InstanceBuilder::new("orders", "orders-1")
///     .endpoint("http", "http://10.0.0.1:8080")
///     .zone("eu-1a")
///     .meta("commit", "3f9c");
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceBuilder(InstanceSpec);

impl InstanceBuilder {
    /// An instance of `service`. The id is to be unique within the service, and the same after a
    /// restart.
    pub fn new(service: impl Into<String>, id: impl Into<String>) -> Self {
        let (service, id) = (service.into(), id.into());
        Self(InstanceSpec { service, id, ..InstanceSpec::default() })
    }

    /// A named URI under which it is called. At least one is needed.
    #[must_use]
    pub fn endpoint(mut self, name: impl Into<String>, uri: impl Into<String>) -> Self {
        self.0.endpoints.insert(name.into(), uri.into());
        self
    }

    /// Its failure domain.
    #[must_use]
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.0.zone = zone.into();
        self
    }

    /// The software's version.
    #[must_use]
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.0.version = version.into();
        self
    }

    /// Its share of calls relative to others; 100 unless set, 0 for no calls.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.0.weight = Some(weight);
        self
    }

    /// How loaded it is to begin with, 0 to 1,000,000; see [`Update::load`]. 0 unless set.
    #[must_use]
    pub fn load(mut self, load: u32) -> Self {
        self.0.load = load;
        self
    }

    /// Its status; UP unless set.
    #[must_use]
    pub fn status(mut self, status: InstanceStatus) -> Self {
        self.0.set_status(status);
        self
    }

    /// One metadata entry.
    #[must_use]
    pub fn meta(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.metadata.insert(key.into(), value.into());
        self
    }

    /// A service that it depends on.
    #[must_use]
    pub fn requires(mut self, service: impl Into<String>) -> Self {
        self.0.requires.push(service.into());
        self
    }

    /// A short label, e.g. `canary`; up to 32.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.0.tags.push(tag.into());
        self
    }

    /// Several of them.
    #[must_use]
    pub fn tags<S: Into<String>>(mut self, tags: impl IntoIterator<Item = S>) -> Self {
        self.0.tags.extend(tags.into_iter().map(Into::into));
        self
    }

    /// How the cluster is to find out whether it works; up to 4.
    #[must_use]
    pub fn check(mut self, check: HealthCheck) -> Self {
        self.0.checks.push(check.0);
        self
    }

    /// The instance as it goes over the wire.
    pub fn build(self) -> InstanceSpec {
        self.0
    }
}

/// What one process registers: one or many instances, kept by one lease.
///
/// ```
/// use quorate_client::{InstanceBuilder, Registration};
/// let web = InstanceBuilder::new("web", "web-1").endpoint("http", "http://10.0.0.1:80");
/// let admin = InstanceBuilder::new("web-admin", "web-1").endpoint("http", "http://10.0.0.1:81");
/// let both = Registration::new(web).and(admin).ttl(std::time::Duration::from_secs(10));
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Registration {
    pub(crate) instances: Vec<InstanceSpec>,
    pub(crate) ttl: Option<Duration>,
    pub(crate) renew_every: Option<Duration>,
}

impl Registration {
    /// A registration of one instance.
    pub fn new(instance: InstanceBuilder) -> Self {
        Self { instances: vec![instance.build()], ttl: None, renew_every: None }
    }

    /// One more instance under the same lease.
    #[must_use]
    pub fn and(mut self, instance: InstanceBuilder) -> Self {
        self.instances.push(instance.build());
        self
    }

    /// The status of all instances that it has by now to begin with; UP unless set.
    #[must_use]
    pub fn status(mut self, status: InstanceStatus) -> Self {
        self.instances.iter_mut().for_each(|instance| instance.set_status(status));
        self
    }

    /// How long the registration outlives its process, 1 s to 24 h; 15 s unless set.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// How often to renew; a third of the TTL unless set, and never more than half of it.
    #[must_use]
    pub fn renew_every(mut self, interval: Duration) -> Self {
        self.renew_every = Some(interval);
        self
    }
}

impl From<InstanceBuilder> for Registration {
    fn from(instance: InstanceBuilder) -> Self {
        Self::new(instance)
    }
}

/// A change to an instance; what is not set stays.
///
/// ```no_run
/// use quorate_client::{InstanceStatus, RegistrationHandle, Update};
/// # async fn example(registration: RegistrationHandle) -> Result<(), quorate_client::Error> {
/// let busy = Update::new().weight(50).load(80).metadata([("cache", "cold")]);
/// registration.update(busy).await?;
/// registration.set_status(InstanceStatus::OutOfService).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Update {
    pub(crate) status: Option<InstanceStatus>,
    pub(crate) weight: Option<u32>,
    pub(crate) metadata: Option<v1::Metadata>,
    pub(crate) load: Option<u32>,
}

impl Update {
    /// A change of nothing, to be filled.
    pub fn new() -> Self {
        Self::default()
    }

    /// The new status.
    #[must_use]
    pub fn status(mut self, status: InstanceStatus) -> Self {
        self.status = Some(status);
        self
    }

    /// The new weight.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = Some(weight);
        self
    }

    /// The new load, 0 to 1,000,000, in a unit that the service agrees on; a balancer that goes by
    /// load ([`crate::Policy::LeastLoaded`]) takes it for calls in flight. Every change is a write
    /// that all followers of the service get: say it when it has changed by much, a few times a
    /// minute, not with every call.
    #[must_use]
    pub fn load(mut self, load: u32) -> Self {
        self.load = Some(load);
        self
    }

    /// The new metadata, instead of all that there was.
    #[must_use]
    pub fn metadata<K: Into<String>, V: Into<String>>(
        mut self,
        entries: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        let entries = entries.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        self.metadata = Some(v1::Metadata { entries });
        self
    }

    pub(crate) fn apply_to(&self, instance: &mut InstanceSpec) {
        if let Some(status) = self.status {
            instance.set_status(status);
        }
        if let Some(weight) = self.weight {
            instance.weight = Some(weight);
        }
        if let Some(metadata) = &self.metadata {
            instance.metadata.clone_from(&metadata.entries);
        }
        if let Some(load) = self.load {
            instance.load = load;
        }
    }

    pub(crate) fn request(&self, namespace: &str, instance: v1::InstanceRef) -> v1::UpdateRequest {
        v1::UpdateRequest {
            namespace: namespace.to_owned(),
            instance: Some(instance),
            status: self.status.unwrap_or(InstanceStatus::Unspecified) as i32,
            weight: self.weight,
            metadata: self.metadata.clone(),
            load: self.load,
            request_id: None,
        }
    }
}

/// Which services to read or follow: exact names, or all with a prefix.
///
/// An example is at [`crate::Watch`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    pub(crate) services: Vec<String>,
    pub(crate) prefix: String,
    pub(crate) statuses: Vec<InstanceStatus>,
    tags: Vec<String>,
    zones: Vec<String>,
}

impl Selection {
    /// One service.
    pub fn service(name: impl Into<String>) -> Self {
        Self::services([name])
    }

    /// Several services, up to 1,000. No names at all select nothing but an error: use
    /// [`Selection::prefix`] for all.
    pub fn services<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Self {
        let services: Vec<String> = names.into_iter().map(Into::into).collect();
        // With no names, the wire contract reads the prefix. An empty name is refused, which is
        // what is wanted here.
        let services = if services.is_empty() { vec![String::new()] } else { services };
        Self { services, ..Self::anything() }
    }

    /// All services whose name begins with `prefix`; all of the namespace with "".
    pub fn prefix(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), ..Self::anything() }
    }

    /// Only instances with one of these (effective) statuses; all unless set.
    #[must_use]
    pub fn statuses(mut self, statuses: impl IntoIterator<Item = InstanceStatus>) -> Self {
        self.statuses = statuses.into_iter().collect();
        self
    }

    /// Only instances that have this tag, too.
    #[must_use]
    pub fn tag(self, tag: impl Into<String>) -> Self {
        self.tags([tag])
    }

    /// Only instances that have all of these tags, up to 32.
    #[must_use]
    pub fn tags<S: Into<String>>(mut self, tags: impl IntoIterator<Item = S>) -> Self {
        self.tags.extend(tags.into_iter().map(Into::into));
        self
    }

    /// Only instances in this zone, or in another one that is named.
    #[must_use]
    pub fn zone(self, zone: impl Into<String>) -> Self {
        self.zones([zone])
    }

    /// Only instances in one of these zones, up to 32. Nodes of versions before 0.3 answer with
    /// those of all zones.
    #[must_use]
    pub fn zones<S: Into<String>>(mut self, zones: impl IntoIterator<Item = S>) -> Self {
        self.zones.extend(zones.into_iter().map(Into::into));
        self
    }

    fn anything() -> Self {
        Self {
            services: Vec::new(),
            prefix: String::new(),
            statuses: Vec::new(),
            tags: Vec::new(),
            zones: Vec::new(),
        }
    }

    /// Reads this, however fresh.
    pub(crate) fn fetch(&self, namespace: &str) -> v1::FetchRequest {
        v1::FetchRequest {
            namespace: namespace.to_owned(),
            services: self.services.clone(),
            prefix: self.prefix.clone(),
            statuses: self.status_numbers(),
            tags: self.tags.clone(),
            zones: self.zones.clone(),
            ..v1::FetchRequest::default()
        }
    }

    /// Follows this, from the beginning.
    pub(crate) fn subscribe(&self, namespace: &str) -> v1::WatchSubscribe {
        v1::WatchSubscribe {
            namespace: namespace.to_owned(),
            services: self.services.clone(),
            prefix: self.prefix.clone(),
            statuses: self.status_numbers(),
            tags: self.tags.clone(),
            zones: self.zones.clone(),
            ..v1::WatchSubscribe::default()
        }
    }

    fn status_numbers(&self) -> Vec<i32> {
        self.statuses.iter().map(|status| *status as i32).collect()
    }
}

impl From<&str> for Selection {
    fn from(service: &str) -> Self {
        Self::service(service)
    }
}

/// How to read.
///
/// ```no_run
/// use quorate_client::{Client, Consistency, FetchOptions, Selection};
/// # async fn example(client: Client) -> Result<(), quorate_client::Error> {
/// let all = Selection::prefix("pay");
/// let fetched = client.fetch_with(&FetchOptions::new(all).consistency(Consistency::Local)).await?;
/// println!("as of {} ms ago:", fetched.header.age_ms);
/// for service in fetched.services.iter().flatten() {
///     println!("{} has {} instances", service.name, service.instances.len());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchOptions {
    pub(crate) selection: Selection,
    pub(crate) consistency: Consistency,
    pub(crate) min_revision: u64,
    pub(crate) not_modified_since: u64,
    pub(crate) cluster_id: Option<ClusterId>,
}

impl FetchOptions {
    /// A linearizable read of these services.
    pub fn new(selection: impl Into<Selection>) -> Self {
        Self {
            selection: selection.into(),
            consistency: Consistency::Linearizable,
            min_revision: 0,
            not_modified_since: 0,
            cluster_id: None,
        }
    }

    /// How fresh the answer has to be.
    #[must_use]
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.consistency = consistency;
        self
    }

    /// The answer holds at least this revision: with the one of a write, that write is seen, on any
    /// node.
    #[must_use]
    pub fn min_revision(mut self, revision: u64) -> Self {
        self.min_revision = revision;
        self
    }

    /// No services in the answer if nothing of them changed after this revision.
    #[must_use]
    pub fn not_modified_since(mut self, revision: u64) -> Self {
        self.not_modified_since = revision;
        self
    }

    /// The cluster that these revisions are of, from the lease or the header that they are from:
    /// where another one answers, they are passed over.
    #[must_use]
    pub fn of_cluster(mut self, cluster_id: impl Into<Option<ClusterId>>) -> Self {
        self.cluster_id = cluster_id.into();
        self
    }
}

/// What was read.
///
/// An example is at [`FetchOptions`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Fetched {
    /// The node that answered, and at which revision.
    pub header: ResponseHeader,
    /// `None`: nothing changed after the revision named in the request. With names, one service for
    /// each, in the order asked, [`Service::known`] or not; with a prefix, the known ones.
    pub services: Option<Vec<Service>>,
    /// `None`: all of it is as of the header's revision. Else it was too large for one answer, and
    /// something of it changed while it was read in pages: each part is as of some revision from
    /// the header's to this one.
    pub mixed_until: Option<u64>,
}
