//! Which instances are told, in which order, and where their endpoints are. The same instances that
//! the client crate calls: UP, no failing health check, a weight.

use std::cell::Cell;
use std::net::IpAddr;

use quorate_state::{Instance, Registry, Status, host_and_port};

use crate::names::{Filter, Part};
use crate::settings::{AllFailing, Settings};

/// Instances that are looked through for an address: an address has no index.
const ADDRESS_LOOK_MAX: usize = 10_000;

/// One endpoint of an instance.
pub(crate) struct Endpoint<'a> {
    pub(crate) host: Host<'a>,
    pub(crate) port: u16,
}

pub(crate) enum Host<'a> {
    Address(IpAddr),
    Name(&'a str),
}

/// The instances of a part that can be called; `looked` counts those that are looked at.
pub(crate) fn usable<'a>(
    part: &Part<'a>,
    settings: &Settings,
    looked: &Cell<usize>,
) -> Vec<&'a Instance> {
    let one = part.instance;
    let all = one.is_none().then(|| part.service.instances.values().map(|instance| &**instance));
    let all = one.into_iter().chain(all.into_iter().flatten());
    let up = all.filter(|instance| {
        looked.update(|looked| looked + 1);
        instance.status() == Status::Up
            && instance.weight() > 0
            && part.filters.iter().all(|filter| passes(filter, instance))
    });
    let (failing, mut found): (Vec<_>, Vec<_>) = up.partition(|instance| instance.is_critical());
    if found.is_empty() && settings.all_failing == AllFailing::Serve {
        found = failing;
    }
    found
}

fn passes(filter: &Filter, instance: &Instance) -> bool {
    let spec = &instance.spec;
    match filter {
        Filter::Zone(zone) => spec.zone().eq_ignore_ascii_case(zone),
        Filter::Version(version) => spec.version().eq_ignore_ascii_case(version),
        Filter::Tag(tag) => spec.tags().any(|it| it.eq_ignore_ascii_case(tag)),
    }
}

/// The endpoints of an instance that have a host and a port, of this name only.
pub(crate) fn endpoints<'a>(
    instance: &'a Instance,
    name: Option<&str>,
) -> impl Iterator<Item = Endpoint<'a>> {
    let named = instance.spec.endpoints().iter();
    let named = named.filter(move |(it, _)| name.is_none_or(|name| it.eq_ignore_ascii_case(name)));
    named.filter_map(|(_, uri)| {
        let (host, port) = host_and_port(uri)?;
        let host = host.parse().map_or(Host::Name(host), Host::Address);
        Some(Endpoint { host, port })
    })
}

/// The instances at an address; `None`: there are too many instances to look for it.
pub(crate) fn at_address<'a>(
    address: IpAddr,
    registry: &'a Registry,
    settings: &Settings,
    looked: &Cell<usize>,
) -> Option<Vec<&'a Instance>> {
    if registry.counts().instances > ADDRESS_LOOK_MAX {
        return None;
    }
    let allowed = registry.all_services();
    let allowed = allowed.filter(|(key, _)| settings.allows(key.namespace.as_str()));
    let instances = allowed.flat_map(|(_, service)| service.instances.values());
    let is_there = |instance: &&Instance| {
        looked.update(|looked| looked + 1);
        endpoints(instance, None).any(|it| matches!(it.host, Host::Address(at) if at == address))
    };
    Some(instances.map(|instance| &**instance).filter(is_there).collect())
}

/// In random order, and no work for those that nobody takes. Every order has the same chance, as
/// far as the seed has.
pub(crate) fn shuffled<T: Copy>(mut list: Vec<T>, seed: u64) -> impl Iterator<Item = T> {
    let mut state = seed;
    (0..list.len()).map(move |first| {
        let left = (list.len() - first) as u64;
        list.swap(first, first + (next(&mut state) % left) as usize);
        list[first]
    })
}

/// SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
