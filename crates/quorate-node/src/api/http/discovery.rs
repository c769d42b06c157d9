//! Prometheus' service discovery over HTTP: the instances of a namespace as targets to scrape. Of
//! what this node has, and only as long as it is not too old to be told: a list that is empty or
//! short by mistake would end scrapes, and a refusal lets Prometheus keep what it has.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use bytes::Bytes;
use quorate_proto::limits::ANSWER_BYTES;
use quorate_proto::v1::FetchRequest;
use quorate_state::{
    Health, Instance, Namespace, Registry, ServiceName, Status, TextMap, host_and_port,
};
use serde::Serialize;
use tonic::Code;
use utoipa::ToSchema;

use crate::api::grpc::Local;
use crate::api::http::asked::Asked;
use crate::api::http::described::Targets;
use crate::api::http::large::{self, Source, Until};
use crate::api::http::problem::Problem;
use crate::api::http::query;
use crate::api::http::routes::{Answered, Api};
use crate::applied::wire_size::instance_bytes;
use crate::error::CallError;
use crate::node::reads::CURRENT_MS;

/// Older state than this is not told, where the request does not say: longer than nodes are without
/// a leader, and shorter than a fleet takes to become another one.
const MAX_AGE: Duration = Duration::from_secs(3_600);

/// The list without a target.
const NONE: &[u8] = b"[]";

/// Instances of which is found out what they take.
const SAMPLE: usize = 1_000;

/// What a target's labels begin with that Prometheus drops unless they are relabelled.
const META: &str = "__meta_quorate_";

/// What Prometheus takes: addresses, and what holds for each of them.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = TargetGroup)]
pub(super) struct Group {
    targets: [String; 1],
    labels: BTreeMap<String, String>,
}

/// Instances as targets, for Prometheus' `http_sd_configs`.
#[utoipa::path(
    get,
    path = "/prometheus",
    params(Targets),
    responses((status = 200, body = Vec<Group>))
)]
pub(super) async fn prometheus(State(api): State<Api>, mut asked: Asked) -> Answered {
    let query = &mut asked.query;
    let request = FetchRequest {
        namespace: query.text("namespace")?.unwrap_or_default(),
        prefix: query.text("prefix")?.unwrap_or_default(),
        ..FetchRequest::default()
    };
    let endpoint = query.text("endpoint")?.filter(|name| !name.is_empty());
    let max_age = match query.text("max_age")? {
        None => MAX_AGE,
        Some(text) => query::duration("max_age", &text)?,
    };
    asked.query.done()?;
    if let Some(name) = &endpoint {
        ServiceName::new("endpoint", name).map_err(CallError::from)?;
    }
    let prefix = request.prefix.clone();
    let local = api.registry.local(asked.call(request)).await?.into_inner();
    check_age(&local, max_age)?;
    let Local { registry, namespace, age_ms } = local;
    if !api.node.is_settled(&registry) {
        let ms = api.node.tunables().deny_after_ms;
        let new = format!(
            "this cluster was founded less than {ms} ms ago, and services may be on their way here"
        );
        return Err(too_old(new));
    }
    let source = Source::uncounted(estimate(&registry, &namespace, &prefix));
    let until = Until::both(asked.deadline(&api.node));
    let make = move || written(&registry, &namespace, &prefix, endpoint.as_deref());
    let answers = api.node.answers();
    let (text, reserved) = large::made(answers, &asked.line, until, source, make).await?;
    if &text[..] == NONE && age_ms > CURRENT_MS {
        return Err(too_old("what this node knows nothing of may be there by now".to_owned()));
    }
    Ok(large::response(text, reserved))
}

/// # Errors
/// What this node has is too old to be told, or nobody knows how old it is.
fn check_age(local: &Local, max_age: Duration) -> Result<(), Problem> {
    let max_ms = u64::try_from(max_age.as_millis()).unwrap_or(u64::MAX);
    let age = match local.age_ms {
        u64::MAX => "this node does not know how old its state is".to_owned(),
        age if age <= max_ms => return Ok(()),
        age => format!("the state of this node is {age} ms old, and max_age is {max_ms} ms"),
    };
    Err(too_old(age))
}

fn too_old(why: String) -> Problem {
    let detail = format!("{why}: keep what you have, or ask another node");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, detail).later()
}

/// About what the list is made of, bytes.
fn estimate(registry: &Registry, namespace: &Namespace, prefix: &str) -> usize {
    let services = || registry.services(namespace, prefix, None).map(|(_, service)| service);
    let count: usize = services().map(|service| service.instances.len()).sum();
    let some = services().flat_map(|service| service.instances.values()).take(SAMPLE);
    let bytes: usize = some.map(|instance| instance_bytes(instance)).sum();
    (bytes / count.clamp(1, SAMPLE) * count).min(ANSWER_BYTES)
}

/// # Errors
/// It would be too large.
fn written(
    registry: &Registry,
    namespace: &Namespace,
    prefix: &str,
    endpoint: Option<&str>,
) -> Result<Bytes, CallError> {
    let mut text = vec![b'['];
    for group in targets(registry, namespace, prefix, endpoint) {
        if text.len() > 1 {
            text.push(b',');
        }
        serde_json::to_writer(&mut text, &group).expect("invariant: texts can be written");
        if text.len() > ANSWER_BYTES {
            let (what, bytes, limit) = ("the list of targets", text.len(), ANSWER_BYTES);
            return Err(CallError::TooLarge { what, bytes, limit, instead: "use a prefix" });
        }
    }
    text.push(b']');
    Ok(text.into())
}

/// All instances of a namespace and a prefix, by service and id, whatever their status: one group
/// for each endpoint that has a host and a port, or for the one of this name.
fn targets<'a>(
    registry: &'a Registry,
    namespace: &Namespace,
    prefix: &'a str,
    endpoint: Option<&'a str>,
) -> impl Iterator<Item = Group> + use<'a> {
    let services = registry.services(namespace, prefix, None);
    let instances = services.flat_map(|(_, service)| service.instances.values());
    instances.flat_map(move |instance| of_instance(instance, endpoint))
}

fn of_instance(instance: &Arc<Instance>, endpoint: Option<&str>) -> Vec<Group> {
    let all = instance.spec.endpoints().iter();
    let wanted = all.filter(|(name, _)| endpoint.is_none_or(|wanted| *name == wanted));
    let group = |(name, uri)| {
        let targets = [address(uri)?];
        Some(Group { targets, labels: labels(instance, name, uri) })
    };
    wanted.filter_map(group).collect()
}

/// As Prometheus has it: an IPv6 address in brackets.
fn address(uri: &str) -> Option<String> {
    let (host, port) = host_and_port(uri)?;
    Some(match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    })
}

/// What is not there, or empty, is no label.
fn labels(instance: &Instance, endpoint: &str, uri: &str) -> BTreeMap<String, String> {
    let (key, spec) = (&instance.key, &instance.spec);
    let tags: Vec<&str> = spec.tags().collect();
    let own = [
        ("namespace", key.service.namespace.as_str()),
        ("service", key.service.name.as_str()),
        ("id", key.id.as_str()),
        ("endpoint", endpoint),
        ("zone", spec.zone()),
        ("version", spec.version()),
        ("status", status(instance.status())),
        ("health", instance.health().map_or("", health)),
        // Between commas, so that each tag can be looked for: a tag has none.
        ("tags", &if tags.is_empty() { String::new() } else { format!(",{},", tags.join(",")) }),
    ]
    .map(|(name, text)| (format!("{META}{name}"), text.to_owned()));
    let mut labels = BTreeMap::from(own);
    labels.extend(metadata(spec.metadata()));
    labels.extend(way(uri));
    labels.retain(|_, text| !text.is_empty());
    labels
}

/// Keys that are the same as labels: the one that is a label's name already has it, or else the
/// first.
fn metadata(metadata: TextMap<'_>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    for is_name in [true, false] {
        for (key, text) in metadata.iter().filter(|(key, _)| (label(key) == *key) == is_name) {
            let name = format!("{META}metadata_{}", label(key));
            labels.entry(name).or_insert_with(|| text.to_owned());
        }
    }
    labels
}

/// What of a key can stand in the name of a label.
fn label(key: &str) -> String {
    key.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

/// How an endpoint of HTTP is scraped. Of others Prometheus' own configuration says how, and so
/// where there is no path.
fn way(uri: &str) -> Vec<(String, String)> {
    let Some((scheme, rest)) = uri.split_once("://") else { return Vec::new() };
    let scheme = scheme.to_ascii_lowercase();
    if !["http", "https"].contains(&&*scheme) {
        return Vec::new();
    }
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let path = rest.find('/').map_or("", |at| &rest[at..]);
    let mut way = vec![("__scheme__".to_owned(), scheme)];
    if path.len() > 1 {
        way.push(("__metrics_path__".to_owned(), path.to_owned()));
    }
    way
}

fn status(status: Status) -> &'static str {
    match status {
        Status::Starting => "STARTING",
        Status::Up => "UP",
        Status::Draining => "DRAINING",
        Status::OutOfService => "OUT_OF_SERVICE",
    }
}

fn health(health: Health) -> &'static str {
    match health {
        Health::Unknown => "UNKNOWN",
        Health::Passing => "PASSING",
        Health::Critical => "CRITICAL",
    }
}

#[cfg(test)]
mod tests;
