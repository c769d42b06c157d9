//! Pages of a Fetch: instances in the order of service and id, as many at a time as a client with
//! the usual limits takes in an answer.

use std::ops::Bound;
use std::sync::Arc;

use quorate_state::{Instance, InstanceId, Invalid, Registry, Service, ServiceKey, ServiceName};

use crate::applied::hub::{Filter, Selection};
use crate::applied::subscription::{Part, part_of};
use crate::applied::wire_size::{instance_bytes, service_bytes};

/// Instances in one page at most.
const INSTANCES_MAX: usize = 10_000;
/// What is in a page takes no more than about this, or is a single instance, bytes. gRPC's clients
/// take 4 MiB unless set otherwise, and the largest instance has about 100 KiB.
const PAGE_BYTES: usize = 3 * 1024 * 1024;

/// What a page goes on after: an instance, or a service that had none (no id).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct After {
    service: ServiceName,
    id: Option<InstanceId>,
}

/// One page.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) services: Vec<Part>,
    /// Empty: it is the last one.
    pub(super) next: String,
}

/// Reads the `after` of a request; `None`: from the beginning.
pub(super) fn after(text: &str) -> Result<Option<After>, Invalid> {
    if text.is_empty() {
        return Ok(None);
    }
    let must = "must be the `next` of an answer";
    let (service, id) = text.split_once('/').ok_or_else(|| Invalid::text("after", text, must))?;
    let service = ServiceName::new("after", service)?;
    let id = if id.is_empty() { None } else { Some(InstanceId::new("after", id)?) };
    Ok(Some(After { service, id }))
}

/// The page of this many instances at most (0: as many as there may be) that follows `after`.
pub(super) fn page(
    registry: &Registry,
    filter: &Filter,
    limit: u32,
    after: Option<&After>,
) -> Page {
    let limit = match limit as usize {
        0 => INSTANCES_MAX,
        limit => limit.min(INSTANCES_MAX),
    };
    let mut page = Page { services: Vec::new(), next: String::new() };
    let (mut instances, mut bytes) = (0, 0);
    let mut last = String::new();
    for (key, service) in services(registry, filter, after) {
        let begun = after.filter(|after| after.service == key.name);
        let mut part = part_of(&key, service, filter);
        if let Some(After { id, .. }) = begun {
            part.instances.retain(|instance| id.as_ref().is_none_or(|id| instance.key.id > *id));
            if part.instances.is_empty() {
                continue;
            }
        }
        let of_service = service_bytes(&key);
        if bytes + of_service > PAGE_BYTES {
            page.next = last;
            return page;
        }
        bytes += of_service;
        let fits = |instance: &&Arc<Instance>| {
            instances += 1;
            bytes += instance_bytes(instance);
            instances == 1 || (instances <= limit && bytes <= PAGE_BYTES)
        };
        let fit = part.instances.iter().take_while(fits).count();
        let rest = part.instances.len() > fit;
        part.instances.truncate(fit);
        if rest && fit == 0 {
            page.next = last;
            return page;
        }
        let id = part.instances.last().map_or("", |instance| instance.key.id.as_str());
        last = format!("{}/{id}", key.name);
        page.services.push(part);
        if rest {
            page.next = last;
            return page;
        }
    }
    page.services.extend(of_an_empty_page(registry, filter, &page));
    page
}

/// Behind the last instance, the last service that was named, without instances: with none, the
/// page would look as if it were not known.
fn of_an_empty_page(registry: &Registry, filter: &Filter, page: &Page) -> Option<Part> {
    let Selection::Services(names) = &filter.selection else { return None };
    let name = names.last().filter(|_| page.services.is_empty())?;
    let key = ServiceKey { namespace: filter.namespace.clone(), name: name.clone() };
    let mut part = part_of(&key, registry.service(&key), filter);
    part.instances.clear();
    Some(part)
}

/// The services that a filter covers, by name, from the one on that the last page ended in.
fn services<'a>(
    registry: &'a Registry,
    filter: &'a Filter,
    after: Option<&'a After>,
) -> Box<dyn Iterator<Item = (ServiceKey, Option<&'a Service>)> + 'a> {
    let key =
        |name: &ServiceName| ServiceKey { namespace: filter.namespace.clone(), name: name.clone() };
    match &filter.selection {
        Selection::Services(names) => {
            let from = after.map_or(Bound::Unbounded, |after| Bound::Included(&after.service));
            let names = names.range((from, Bound::Unbounded));
            Box::new(names.map(move |name| (key(name), registry.service(&key(name)))))
        }
        Selection::Prefix(prefix) => {
            let begun = after.map(|after| key(&after.service));
            let begun = begun.filter(|key| key.name.as_str().starts_with(prefix.as_str()));
            let begun =
                begun.and_then(|key| registry.service(&key).map(|found| (key, Some(found))));
            let name = after.map(|after| &after.service);
            let rest = registry.services(&filter.namespace, prefix, name);
            Box::new(begun.into_iter().chain(rest.map(|(key, found)| (key.clone(), Some(found)))))
        }
    }
}
