//! An instance on the command line: the arguments that describe one, the arguments that say which
//! are wanted, and its JSON.

use std::time::Duration;

use clap::Args;
use quorate_client::{
    Health, HealthCheck, Instance, InstanceBuilder, InstanceOverride, InstanceStatus, Registration,
    Selection,
};
use quorate_proto::v1;
use quorate_proto::v1::health_check::Kind;
use serde_json::{Value, json};

use crate::parse;

/// What an instance says of itself.
#[derive(Debug, Args)]
pub(crate) struct InstanceSettings {
    /// A named URI under which it is called (repeatable, up to 32)
    #[arg(long = "endpoint", value_name = "NAME=URI", required = true, value_parser = parse::endpoint)]
    pub(crate) endpoints: Vec<(String, String)>,
    /// How long it outlives this command: 1s to 24h, written like 10s, 2m30s or 1h [default: 15s]
    #[arg(long, value_parser = parse::ttl)]
    pub(crate) ttl: Option<Duration>,
    /// Its failure domain
    #[arg(long)]
    pub(crate) zone: Option<String>,
    /// Its share of calls, relative to others: 0 to 1000000 [default: 100]
    #[arg(long, value_parser = parse::weight())]
    pub(crate) weight: Option<u32>,
    /// Metadata (repeatable, up to 64 and 16 KiB in all)
    #[arg(long = "meta", value_name = "KEY=VALUE", value_parser = parse::pair)]
    pub(crate) metadata: Vec<(String, String)>,
    /// The software's version
    #[arg(long)]
    pub(crate) version_tag: Option<String>,
    /// A service that it depends on (repeatable, up to 64)
    #[arg(long, value_name = "SERVICE")]
    pub(crate) requires: Vec<String>,
    /// A short label, like canary (repeatable, up to 32 of 64 bytes)
    #[arg(long = "tag", value_name = "TAG")]
    pub(crate) tags: Vec<String>,
    /// A health check that the cluster makes, where its operator allows it: http=/path, tcp or
    /// grpc=SERVICE, then perhaps ,endpoint=NAME,every=10s,timeout=2s,failures=3,successes=1
    /// (repeatable, up to 4; every 1s to 1h)
    #[arg(long = "check", value_name = "CHECK", value_parser = parse::check)]
    pub(crate) checks: Vec<HealthCheck>,
}

/// Which instances are wanted.
#[derive(Debug, Args)]
pub(crate) struct Wanted {
    /// Only instances with this status (repeatable)
    #[arg(long = "status", value_parser = parse::status)]
    pub(crate) statuses: Vec<InstanceStatus>,
    /// Only instances with this tag (repeatable: with all of them)
    #[arg(long = "tag", value_name = "TAG")]
    pub(crate) tags: Vec<String>,
    /// Only instances in this zone (repeatable, up to 32: in one of them)
    #[arg(long = "zone", value_name = "ZONE")]
    pub(crate) zones: Vec<String>,
}

impl InstanceSettings {
    /// What is to be registered.
    pub(crate) fn registration(&self, service: &str, id: &str) -> Registration {
        let mut instance = InstanceBuilder::new(service, id).tags(&self.tags);
        for (name, uri) in &self.endpoints {
            instance = instance.endpoint(name, uri);
        }
        for (key, value) in &self.metadata {
            instance = instance.meta(key, value);
        }
        for service in &self.requires {
            instance = instance.requires(service);
        }
        for check in &self.checks {
            instance = instance.check(check.clone());
        }
        if let Some(zone) = &self.zone {
            instance = instance.zone(zone);
        }
        if let Some(version) = &self.version_tag {
            instance = instance.version(version);
        }
        if let Some(weight) = self.weight {
            instance = instance.weight(weight);
        }
        let registration = Registration::new(instance);
        match self.ttl {
            Some(ttl) => registration.ttl(ttl),
            None => registration,
        }
    }
}

impl Wanted {
    /// Only these of the selection's instances.
    pub(crate) fn of(&self, selection: Selection) -> Selection {
        let selection = selection.statuses(self.statuses.iter().copied());
        selection.tags(&self.tags).zones(&self.zones)
    }
}

/// As `-o json` shows it.
pub(crate) fn json(instance: &Instance) -> Value {
    let mut value = json!({
        "namespace": instance.namespace,
        "service": instance.service,
        "id": instance.id,
        "endpoints": instance.endpoints,
        "zone": instance.zone,
        "version": instance.version,
        "weight": instance.weight,
        "status": status(instance.status()),
        "metadata": instance.metadata,
        "requires": instance.requires,
        "incarnation": instance.incarnation,
        "lease_id": instance.lease_id,
        "create_revision": instance.create_revision,
        "modify_revision": instance.modify_revision,
    });
    if instance.load > 0 {
        value["load"] = json!(instance.load);
    }
    if !instance.tags.is_empty() {
        value["tags"] = json!(instance.tags);
    }
    if let Some(decision) = &instance.r#override {
        value["override"] = r#override(decision);
    }
    if !instance.checks.is_empty() {
        value["health"] = json!(health(instance));
        if !instance.health_reason.is_empty() {
            value["health_reason"] = json!(instance.health_reason);
        }
        value["checks"] = instance.checks.iter().map(check).collect();
    }
    value
}

fn check(check: &v1::HealthCheck) -> Value {
    let kind = match &check.kind {
        Some(Kind::Http(http)) => json!({ "http": { "path": http.path } }),
        Some(Kind::Tcp(_)) => json!({ "tcp": {} }),
        Some(Kind::Grpc(grpc)) => json!({ "grpc": { "service": grpc.service } }),
        // Of a newer registry.
        None => json!({}),
    };
    let mut value = json!({
        "endpoint": check.endpoint,
        "interval_ms": check.interval_ms,
        "timeout_ms": check.timeout_ms,
        "failures_before_critical": check.failures_before_critical,
        "successes_before_passing": check.successes_before_passing,
    });
    for (name, of) in kind.as_object().into_iter().flatten() {
        value[name] = of.clone();
    }
    value
}

/// What its health checks say; empty without any.
pub(crate) fn health(instance: &Instance) -> &'static str {
    match instance.health() {
        Health::Unspecified => "",
        Health::Unknown => "UNKNOWN",
        Health::Passing => "PASSING",
        Health::Critical => "CRITICAL",
    }
}

pub(crate) fn r#override(decision: &InstanceOverride) -> Value {
    let mut value = json!({ "reason": decision.reason });
    if decision.status() != InstanceStatus::Unspecified {
        value["status"] = json!(status(decision.status()));
    }
    if let Some(weight) = decision.weight {
        value["weight"] = json!(weight);
    }
    value
}

pub(crate) fn status(status: InstanceStatus) -> &'static str {
    match status {
        InstanceStatus::Unspecified => "UNKNOWN",
        InstanceStatus::Starting => "STARTING",
        InstanceStatus::Up => "UP",
        InstanceStatus::Draining => "DRAINING",
        InstanceStatus::OutOfService => "OUT_OF_SERVICE",
    }
}
