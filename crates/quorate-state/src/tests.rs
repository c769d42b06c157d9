//! Tests of the state machine. Most read like a transcript: at this time, this command, gives this
//! reply and these events, written as one line of text (see [`Transcript`]); after each line all
//! invariants are checked.

mod anew;
mod checking;
mod deregistering;
mod forwarding;
mod golden;
mod invariants;
mod kept;
mod leases;
mod level;
mod limits;
mod loading;
mod model;
mod nodes;
mod properties;
mod reading;
mod registering;
mod repeating;
mod snapshots;
mod updating;
mod writing;

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use crate::tests::invariants::check_invariants;
use crate::*;

/// A registry, and the commands it was given.
#[derive(Default)]
struct Transcript {
    registry: Registry,
}

impl Transcript {
    /// At this time, this command gives this reply and these events (see [`told`]).
    #[track_caller]
    fn at(&mut self, clock: u64, op: impl Into<Op>, expected: &str) -> &mut Self {
        let applied = self.apply(clock, op);
        assert_eq!(told(&applied), expected);
        self
    }

    #[track_caller]
    fn apply(&mut self, clock: u64, op: impl Into<Op>) -> Applied {
        let applied = self.registry.apply(&Command::new(Clock(clock), op.into()));
        check_invariants(&self.registry);
        applied
    }

    #[track_caller]
    fn instance(&self, name: &str) -> &Instance {
        self.registry.instance(&key(name)).expect("registered")
    }

    /// Every instance with its incarnation and lease.
    fn instances(&self) -> String {
        let services = self.registry.services(&Namespace::default(), "", None);
        services
            .flat_map(|(_, service)| service.instances.values())
            .map(|i| format!("{}@{} L{}", name(&i.key), i.incarnation.0, i.lease.0))
            .collect::<Vec<_>>()
            .join(", ")
    }
}

/// A reply and its events in one line, e.g. `registered L1 15000ms @7 | #1 added web/a@7`.
fn told(applied: &Applied) -> String {
    let mut told = match &applied.reply {
        Reply::Done => "done".to_owned(),
        Reply::Registered { lease, ttl, incarnation } => {
            format!("registered L{} {}ms @{}", lease.0, ttl.as_ms(), incarnation.0)
        }
        Reply::Renewed { unknown } if unknown.is_empty() => "renewed".to_owned(),
        Reply::Renewed { unknown } => {
            let unknown: Vec<_> = unknown.iter().map(|id| format!("L{}", id.0)).collect();
            format!("renewed but {}", unknown.join(" "))
        }
        Reply::Deregistered { removed } => format!("deregistered {removed}"),
        Reply::Updated => "updated".to_owned(),
        Reply::Rejected(rejection) => format!("rejected: {rejection}"),
    };
    for event in &applied.events {
        told += &format!(" | #{} {}", event.revision.0, change(&event.change));
    }
    told
}

fn change(change: &Change) -> String {
    let run = |i: &Instance| format!("{}@{}", name(&i.key), i.incarnation.0);
    match change {
        Change::Added { after } => format!("added {}", run(after)),
        Change::Modified { before, after } if before.incarnation != after.incarnation => {
            format!("{} taken over by @{}", run(before), after.incarnation.0)
        }
        Change::Modified { after, .. } => format!("changed {}", run(after)),
        Change::Removed { before, reason: RemoveReason::Expired } => {
            format!("expired {}", run(before))
        }
        Change::Removed { before, reason: RemoveReason::Deregistered } => {
            format!("removed {}", run(before))
        }
    }
}

fn found(cluster_id: u64, lease_base: u64) -> Op {
    let cluster_id = NonZeroU64::new(cluster_id).unwrap();
    Op::Found { cluster_id, lease_base }
}

/// `web/a` for default/web/a, the whole key in other namespaces.
fn name(key: &InstanceKey) -> String {
    let text = key.to_string();
    text.strip_prefix("default/").map(str::to_owned).unwrap_or(text)
}

/// `web/a` or `namespace/web/a`.
fn key(name: &str) -> InstanceKey {
    let (service, id) = name.rsplit_once('/').expect("service/id");
    InstanceKey { service: service_key(service), id: InstanceId::new("id", id).unwrap() }
}

/// `web` or `namespace/web`.
fn service_key(name: &str) -> ServiceKey {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    ServiceKey {
        namespace: Namespace::new("namespace", namespace).unwrap(),
        name: ServiceName::new("service", name).unwrap(),
    }
}

/// The parts of a valid instance.
fn parts() -> SpecParts {
    SpecParts {
        endpoints: BTreeMap::from([("http".to_owned(), "http://10.0.0.1:8080".to_owned())]),
        ..SpecParts::default()
    }
}

fn spec(parts: SpecParts) -> InstanceSpec {
    InstanceSpec::new("instance", parts).unwrap()
}

/// Registers instances (`"web/a web/b"`) of this incarnation; 0: none is named.
fn register(names: &str, incarnation: u64) -> Register {
    Register {
        lease: None,
        ttl: None,
        incarnation: (incarnation != 0).then_some(Incarnation(incarnation)),
        instances: names.split_whitespace().map(|name| (key(name), spec(parts()))).collect(),
        within: None,
    }
}

/// Connects to the only endpoint every 10 s.
fn tcp_check() -> HealthCheck {
    HealthCheck {
        kind: CheckKind::Tcp,
        endpoint: "".into(),
        interval_ms: 10_000,
        timeout_ms: 2_000,
        failures_before_critical: 3,
        successes_before_passing: 1,
    }
}

/// These instances, and each has these checks.
fn with_checks(names: &str, incarnation: u64, checks: &[HealthCheck]) -> Register {
    let spec = spec(SpecParts { checks: checks.to_vec(), ..parts() });
    let mut register = register(names, incarnation);
    register.instances.iter_mut().for_each(|(_, of)| *of = spec.clone());
    register
}

/// `web/a@7` of each.
fn set_health(names: &str, health: Health) -> Op {
    let reports = names.split_whitespace().map(|name| {
        let InstanceRef { key, incarnation } = target(name);
        HealthReport { key, incarnation: incarnation.unwrap(), health, reason: None }
    });
    Op::SetHealth(reports.collect())
}

/// `web/a@7`, with a reason.
fn set_health_because(name: &str, health: Health, reason: &str) -> Op {
    let InstanceRef { key, incarnation } = target(name);
    let reason = Some(HealthReason::new(reason));
    Op::SetHealth(vec![HealthReport { key, incarnation: incarnation.unwrap(), health, reason }])
}

fn load(load: u32) -> Load {
    Load::new("load", load).unwrap()
}

/// These instances with these loads, in order; those behind them have none.
fn with_loads(names: &str, incarnation: u64, all: &[u32]) -> Register {
    let mut register = register(names, incarnation);
    for ((_, of), load) in register.instances.iter_mut().zip(all) {
        *of = spec(SpecParts { load: *load, ..parts() });
    }
    register
}

fn update_load(name: &str, value: u32) -> Update {
    Update { load: Some(load(value)), ..update(name) }
}

fn ttl(ms: u64) -> Option<Ttl> {
    Some(Ttl::from_ms(ms).unwrap())
}

fn renew(leases: &[u64]) -> Op {
    Op::Renew(leases.iter().copied().map(LeaseId).collect())
}

/// `web/a`, or `web/a@7` for one run of it.
fn target(name: &str) -> InstanceRef {
    let (name, run) = name.split_once('@').map_or((name, None), |(name, run)| (name, Some(run)));
    let incarnation = run.map(|run| Incarnation(run.parse().unwrap()));
    InstanceRef { key: key(name), incarnation }
}

/// `"web/a web/b@7"`.
fn deregister(names: &str) -> Deregister {
    Deregister::Instances(names.split_whitespace().map(target).collect())
}

/// Changes nothing of this instance, yet.
fn update(name: &str) -> Update {
    Update::of(target(name))
}

fn set_override(name: &str, status: Status) -> Op {
    let value = Override::new(Some(status), None, "because".to_owned()).unwrap();
    Op::Override { key: key(name), value: Some(value) }
}
