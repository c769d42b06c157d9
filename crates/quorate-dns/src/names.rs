//! Which name is what: of the domain, a service, an instance, an endpoint of either, a filter, or
//! an address. Knows nothing of types and records.
//!
//! Names of the registry may have dots in them, and are then several labels. Of all ways to read
//! the labels that are of something, the longest namespace wins, then the longest service: whoever
//! registers in `prod` answers for no name of `eu.prod`. A name that has names below it exists too
//! (RFC 8020), also if it has no records itself. Where that would take a long look at a service's
//! instances, it counts as existing: a resolver may take the names below one that does not exist
//! for gone.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::Name;
use quorate_state::{Instance, InstanceId, Namespace, Registry, Service, ServiceKey, ServiceName};

use crate::settings::{ADDR, NS, SVC, Settings};

/// Labels of a name below `svc` that are looked at; a longer name is that of nothing.
const LABELS_MAX: usize = 24;
/// Labels of a namespace.
const NAMESPACE_LABELS_MAX: usize = 4;
/// Instances that are looked through for whether one of them is below a name.
const LOOK_MAX: usize = 10_000;

/// What a name is.
#[derive(Debug)]
pub(crate) enum Asked<'a> {
    /// Not of this domain.
    Outside,
    /// Of a namespace that is not answered for.
    NotAllowed,
    /// The domain itself.
    Domain,
    /// Its name server.
    NameServer,
    /// The name of an address, which has no other one here.
    Host(IpAddr),
    /// It has no records, but names below it.
    Branch,
    /// It does not exist.
    Nothing,
    /// A service or a part of one.
    Part(Part<'a>),
    /// An address, backwards.
    Address(IpAddr),
}

/// Instances of a service.
#[derive(Debug)]
pub(crate) struct Part<'a> {
    pub(crate) key: ServiceKey,
    pub(crate) service: &'a Service,
    /// Only this one.
    pub(crate) instance: Option<&'a Instance>,
    /// Only this endpoint of theirs, in lower case.
    pub(crate) endpoint: Option<String>,
    /// Only those with all of these.
    pub(crate) filters: Vec<Filter>,
}

/// What an instance must have, in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Filter {
    Zone(String),
    Version(String),
    Tag(String),
}

impl Filter {
    /// `z-eu`, `v-2`, `t-canary`; `None`: no filter begins so.
    fn begins(label: &str) -> Option<Self> {
        let (kind, value) = label.split_at_checked(2)?;
        let value = value.to_owned();
        match kind {
            _ if value.is_empty() => None,
            "z-" => Some(Self::Zone(value)),
            "v-" => Some(Self::Version(value)),
            "t-" => Some(Self::Tag(value)),
            _ => None,
        }
    }

    fn value_mut(&mut self) -> &mut String {
        match self {
            Self::Zone(value) | Self::Version(value) | Self::Tag(value) => value,
        }
    }
}

/// What a name is; names of the registry are found in lower case. `looked` counts the instances
/// that are looked at.
pub(crate) fn look_up<'a>(
    name: &Name,
    registry: &'a Registry,
    settings: &Settings,
    looked: &Cell<usize>,
) -> Asked<'a> {
    let Some(labels) = labels(name) else {
        return if settings.domain.zone_of(name) { Asked::Nothing } else { Asked::Outside };
    };
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    if !settings.domain.zone_of(name) {
        return backwards(&labels).map_or(Asked::Outside, Asked::Address);
    }
    let below = labels.len() - usize::from(settings.domain.num_labels());
    match &labels[..below] {
        [] => Asked::Domain,
        [ns] if *ns == NS => Asked::NameServer,
        [addr] if *addr == ADDR => Asked::Branch,
        [hex, addr] if *addr == ADDR => address(hex).map_or(Asked::Nothing, Asked::Host),
        [rest @ .., svc] if *svc == SVC => below_svc(rest, registry, settings, looked),
        _ => Asked::Nothing,
    }
}

/// In lower case; `None`: one of them cannot be a part of any name of the registry.
fn labels(name: &Name) -> Option<Vec<String>> {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let text = |label: &[u8]| {
        let label = label.iter().all(allowed).then(|| label.to_ascii_lowercase())?;
        String::from_utf8(label).ok()
    };
    name.iter().map(text).collect()
}

/// `4.3.2.1.in-addr.arpa`, and the same for IPv6 in nibbles.
fn backwards(labels: &[&str]) -> Option<IpAddr> {
    match labels {
        [d, c, b, a, "in-addr", "arpa"] => {
            let part = |text: &str| text.parse::<u8>().ok();
            Some(Ipv4Addr::new(part(a)?, part(b)?, part(c)?, part(d)?).into())
        }
        [nibbles @ .., "ip6", "arpa"] if nibbles.len() == 32 => {
            let digit = |text: &&str| {
                let digit = text.chars().next().filter(|_| text.len() == 1)?.to_digit(16)?;
                Some(u128::from(digit))
            };
            let digits: Option<Vec<u128>> = nibbles.iter().map(digit).collect();
            let bits = digits?.into_iter().rev().fold(0, |bits, digit| bits << 4 | digit);
            Some(Ipv6Addr::from(bits).into())
        }
        _ => None,
    }
}

/// The name of an address below the domain: `0a000007.addr`.
pub(crate) fn host_labels(address: IpAddr) -> [String; 2] {
    let hex = match address {
        IpAddr::V4(address) => format!("{:08x}", address.to_bits()),
        IpAddr::V6(address) => format!("{:032x}", address.to_bits()),
    };
    [hex, ADDR.to_owned()]
}

fn address(hex: &str) -> Option<IpAddr> {
    match hex.len() {
        8 => Some(Ipv4Addr::from_bits(u32::from_str_radix(hex, 16).ok()?).into()),
        32 => Some(Ipv6Addr::from_bits(u128::from_str_radix(hex, 16).ok()?).into()),
        _ => None,
    }
}

fn below_svc<'a>(
    labels: &[&str],
    registry: &'a Registry,
    settings: &Settings,
    looked: &Cell<usize>,
) -> Asked<'a> {
    if labels.is_empty() {
        return Asked::Branch;
    }
    if labels.len() > LABELS_MAX {
        return Asked::Nothing;
    }
    let mut has_below = false;
    for of_namespace in (1..=labels.len().min(NAMESPACE_LABELS_MAX)).rev() {
        let (left, namespace) = labels.split_at(labels.len() - of_namespace);
        let Ok(namespace) = Namespace::new("namespace", &namespace.join(".")) else { continue };
        if !settings.allows(namespace.as_str()) {
            continue;
        }
        for from in 0..left.len() {
            let Ok(name) = ServiceName::new("service", &left[from..].join(".")) else { continue };
            let key = ServiceKey { namespace: namespace.clone(), name };
            let Some(service) = registry.service(&key) else { continue };
            match part(&left[..from], key, service, looked) {
                Asked::Nothing => {}
                Asked::Branch => has_below = true,
                part => return part,
            }
        }
        has_below |= match left.is_empty() {
            true => has_services(registry, &namespace),
            false => registry.has_service_below(&namespace, &left.join(".")),
        };
    }
    let name = labels.join(".");
    match has_below || has_namespace_below(&name, registry, settings) {
        true => Asked::Branch,
        false if is_answered_for(&name, settings) => Asked::Nothing,
        false => Asked::NotAllowed,
    }
}

/// Whether a name is that of a namespace that is answered for, or below it.
fn is_answered_for(name: &str, settings: &Settings) -> bool {
    let allowed = &settings.namespaces;
    let covers = |of: &String| name.eq_ignore_ascii_case(of) || is_end(name, of);
    allowed.is_empty() || allowed.iter().any(covers)
}

fn has_services(registry: &Registry, namespace: &Namespace) -> bool {
    registry.services(namespace, "", None).next().is_some()
}

/// Whether a namespace that is answered for has a name `….end`.
fn has_namespace_below(end: &str, registry: &Registry, settings: &Settings) -> bool {
    let has_services = |name: &String| {
        Namespace::new("namespace", name).is_ok_and(|it| has_services(registry, &it))
    };
    match &settings.namespaces[..] {
        [] => registry.has_namespace_below(end),
        allowed => allowed.iter().any(|name| is_end(name, end) && has_services(name)),
    }
}

/// Whether `name` is `….end`.
fn is_end(name: &str, end: &str) -> bool {
    let at = name.len().checked_sub(end.len() + 1);
    at.is_some_and(|at| {
        name.as_bytes()[at] == b'.'
            && name.as_bytes()[at + 1..].eq_ignore_ascii_case(end.as_bytes())
    })
}

/// What stands before a service.
fn part<'a>(
    labels: &[&str],
    key: ServiceKey,
    service: &'a Service,
    looked: &Cell<usize>,
) -> Asked<'a> {
    let (is_tcp, endpoint, labels) = match labels {
        ["_tcp", rest @ ..] => (true, None, rest),
        [endpoint, "_tcp", rest @ ..] => match endpoint.strip_prefix('_') {
            Some(name) if !name.is_empty() => (true, Some(name.to_owned()), rest),
            _ => return Asked::Nothing,
        },
        rest => (false, None, rest),
    };
    let mut part = Part { key, service, instance: None, filters: Vec::new(), endpoint };
    let before = labels.iter().take_while(|label| Filter::begins(label).is_none()).count();
    part.instance = match labels {
        [] => None,
        // A filter by what it says, but for an instance of just this name.
        id if before == 0 => exactly(&id.join("."), service),
        id => instance(&id.join("."), service, looked),
    };
    if part.instance.is_none() {
        for label in &labels[before..] {
            match (Filter::begins(label), part.filters.last_mut()) {
                (None, Some(last)) => {
                    let value = last.value_mut();
                    value.push('.');
                    value.push_str(label);
                }
                (begun, _) => part.filters.extend(begun),
            }
        }
        let end = labels[..before].join(".");
        if before > 0 {
            let is_branch = has_below(&end, service, looked);
            return if is_branch { Asked::Branch } else { Asked::Nothing };
        }
    }
    if is_tcp && part.endpoint.is_none() { Asked::Branch } else { Asked::Part(part) }
}

fn exactly<'a>(id: &str, service: &'a Service) -> Option<&'a Instance> {
    let id = InstanceId::new("instance", id).ok()?;
    service.instances.get(&id).map(|instance| &**instance)
}

/// An instance by its id, whose letters may be capitals: a look at all of them.
fn instance<'a>(id: &str, service: &'a Service, looked: &Cell<usize>) -> Option<&'a Instance> {
    let instances = &service.instances;
    let mut ids = instances.keys().inspect(|_| looked.update(|looked| looked + 1));
    exactly(id, service).or_else(|| {
        let same = ids.find(|key| key.as_str().eq_ignore_ascii_case(id))?;
        instances.get(same).map(|instance| &**instance)
    })
}

/// Whether an instance or a filter has a name that ends so.
fn has_below(end: &str, service: &Service, looked: &Cell<usize>) -> bool {
    let before = looked.get();
    service.instances.iter().any(|(id, instance)| {
        looked.update(|looked| looked + 1);
        let spec = &instance.spec;
        let texts = [id.as_str(), spec.zone(), spec.version()];
        looked.get() - before > LOOK_MAX
            || texts.into_iter().chain(spec.tags()).any(|text| is_end(text, end))
    })
}
