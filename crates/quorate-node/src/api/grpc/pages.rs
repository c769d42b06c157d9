//! Pages of what reads: instances in the order of service and id, as many at a time as a client
//! with the usual limits takes in an answer.

use std::ops::Bound;
use std::sync::Arc;

use quorate_state::{
    Instance, InstanceId, InstanceKey, Invalid, Namespace, Registry, Service, ServiceKey,
    ServiceName,
};

use crate::applied::hub::{Filter, Selection};
use crate::applied::subscription::Part;
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

const MUST: &str = "must be the `next` of an answer";

/// Reads the `after` of a request; `None`: from the beginning.
pub(super) fn after(text: &str) -> Result<Option<After>, Invalid> {
    if text.is_empty() {
        return Ok(None);
    }
    let (service, id) = text.split_once('/').ok_or_else(|| Invalid::text("after", text, MUST))?;
    let service = ServiceName::new("after", service)?;
    let id = if id.is_empty() { None } else { Some(InstanceId::new("after", id)?) };
    Ok(Some(After { service, id }))
}

/// The same where answers have instances alone.
pub(super) fn after_instance(
    namespace: &Namespace,
    text: &str,
) -> Result<Option<InstanceKey>, Invalid> {
    let Some(After { service: name, id }) = after(text)? else { return Ok(None) };
    let id = id.ok_or_else(|| Invalid::text("after", text, MUST))?;
    Ok(Some(InstanceKey { service: ServiceKey { namespace: namespace.clone(), name }, id }))
}

/// How many instances a page has at most; 0: as many as there may be.
fn limit_of(limit: u32) -> usize {
    match limit as usize {
        0 => INSTANCES_MAX,
        limit => limit.min(INSTANCES_MAX),
    }
}

/// As many of these as are a page, and what the next one goes on after.
pub(super) fn some_of<'a>(
    found: impl Iterator<Item = &'a Arc<Instance>>,
    limit: u32,
) -> (Vec<Arc<Instance>>, String) {
    let (limit, mut bytes) = (limit_of(limit), 0);
    let mut page: Vec<Arc<Instance>> = Vec::new();
    for instance in found {
        bytes += instance_bytes(instance);
        if let Some(InstanceKey { service, id }) = page.last().map(|last| &last.key)
            && (page.len() == limit || bytes > PAGE_BYTES)
        {
            let next = format!("{}/{id}", service.name);
            return (page, next);
        }
        page.push(instance.clone());
    }
    (page, String::new())
}

/// The page of this many instances at most (0: as many as there may be) that follows `after`;
/// `None`: more than `looks` services and instances have to be looked at for it.
pub(super) fn page(
    registry: &Registry,
    filter: &Filter,
    (limit, looks): (u32, usize),
    after: Option<&After>,
) -> Option<Page> {
    let limit = limit_of(limit);
    let mut page = Page { services: Vec::new(), next: String::new() };
    let (mut instances, mut bytes, mut looked) = (0, 0, 0);
    let mut last = String::new();
    for (key, service) in services(registry, filter, after) {
        let begun = after.filter(|after| after.service == key.name);
        let id = begun.and_then(|after| after.id.as_ref());
        bytes += service_bytes(&key);
        if bytes > PAGE_BYTES {
            page.next = last;
            return Some(page);
        }
        let mut part = empty(key, service);
        let mut rest = false;
        looked += 1;
        for instance in behind(service, id) {
            looked += 1;
            if looked > looks {
                return None;
            }
            if !filter.covers_instance(instance) {
                continue;
            }
            instances += 1;
            bytes += instance_bytes(instance);
            rest = instances > 1 && (instances > limit || bytes > PAGE_BYTES);
            if rest {
                break;
            }
            part.instances.push(instance.clone());
        }
        if part.instances.is_empty() {
            if rest {
                page.next = last;
                return Some(page);
            }
            if begun.is_some() {
                continue;
            }
        }
        let id = part.instances.last().map_or("", |instance| instance.key.id.as_str());
        last = format!("{}/{id}", part.key.name);
        page.services.push(part);
        if rest {
            page.next = last;
            return Some(page);
        }
    }
    page.services.extend(of_an_empty_page(registry, filter, &page));
    Some(page)
}

/// The instances of a service behind this one; all, where none is named.
fn behind<'a>(
    service: Option<&'a Service>,
    id: Option<&InstanceId>,
) -> Box<dyn Iterator<Item = &'a Arc<Instance>> + 'a> {
    match (service, id) {
        (None, _) => Box::new(std::iter::empty()),
        (Some(service), None) => Box::new(service.instances.values()),
        (Some(service), Some(id)) => Box::new(service.instances.after(id).map(|(_, found)| found)),
    }
}

fn empty(key: ServiceKey, service: Option<&Service>) -> Part {
    let revision = service.map(|service| service.revision);
    Part { key, revision, instances: Vec::new() }
}

/// Behind the last instance, the last service that was named, without instances: with none, the
/// page would look as if it were not known.
fn of_an_empty_page(registry: &Registry, filter: &Filter, page: &Page) -> Option<Part> {
    let Selection::Services(names) = &filter.selection else { return None };
    let name = names.last().filter(|_| page.services.is_empty())?;
    let key = ServiceKey { namespace: filter.namespace.clone(), name: name.clone() };
    let service = registry.service(&key);
    Some(empty(key, service))
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

#[cfg(test)]
mod tests {
    use quorate_state::{Clock, Command, InstanceSpec, Op, Register, SpecParts};

    use super::*;

    fn key(id: u32) -> InstanceKey {
        let name = ServiceName::new("service", "web").unwrap();
        let service = ServiceKey { namespace: Namespace::default(), name };
        InstanceKey { service, id: InstanceId::new("id", &format!("i{id:04}")).unwrap() }
    }

    /// A service with so many instances, every hundredth of which has a tag.
    fn registry(instances: u32) -> Registry {
        let mut registry = Registry::new();
        for id in 0..instances {
            let tags = if id % 100 == 0 { ["tagged".to_owned()].into() } else { [].into() };
            let endpoints = [("http".to_owned(), "http://10.0.0.1:80".to_owned())].into();
            let spec = InstanceSpec::new("", SpecParts { endpoints, tags, ..<_>::default() });
            let instances = vec![(key(id), spec.unwrap())];
            let (lease, ttl, incarnation, within) = (None, None, None, None);
            let register = Register { lease, ttl, incarnation, instances, within };
            registry.apply(&Command::new(Clock(0), Op::Register(register)));
        }
        registry
    }

    #[test]
    fn instances_of_any_service_come_in_pages() {
        let registry = registry(100);
        let all = || registry.all_services().flat_map(|(_, service)| service.instances.values());
        let (page, next) = some_of(all(), 30);
        assert_eq!((page.len(), next.as_str()), (30, "web/i0029"));
        assert_eq!(after_instance(&Namespace::default(), &next).unwrap(), Some(key(29)));
        let (page, next) = some_of(all().skip(90), 10);
        assert_eq!((page.len(), next.as_str()), (10, ""), "there are no more");
        assert_eq!(some_of(all(), 0).0.len(), 100);
        let one = all().next().unwrap();
        let (page, next) = some_of(std::iter::repeat(one), 0);
        assert_eq!(page.len(), INSTANCES_MAX.min(PAGE_BYTES / instance_bytes(one)));
        assert_eq!(next, "web/i0000");
        for none in ["web", "web/", "/i0001"] {
            after_instance(&Namespace::default(), none).unwrap_err();
        }
        assert_eq!(after_instance(&Namespace::default(), "").unwrap(), None);
    }

    /// Each page looked at the whole service.
    #[test]
    fn a_page_looks_at_no_more_than_it_has() {
        let registry = registry(3_000);
        let names = [key(0).service.name].into();
        let all = Filter::all_of(Namespace::default(), Selection::Services(names));
        let mut from: Option<After> = None;
        let mut ids = Vec::new();
        loop {
            // The service, ten instances, and the first of the next page.
            let page = page(&registry, &all, (10, 12), from.as_ref()).expect("a page");
            let parts = page.services.iter().flat_map(|part| &part.instances);
            ids.extend(parts.map(|instance| instance.key.id.clone()));
            if page.next.is_empty() {
                break;
            }
            from = after(&page.next).unwrap();
        }
        assert!(ids.into_iter().eq((0..3_000).map(|id| key(id).id)));

        let tagged = Filter { tags: ["tagged".to_owned()].into(), ..all };
        assert!(page(&registry, &tagged, (10, 1_001), None).is_none(), "a long scan");
        let page = page(&registry, &tagged, (10, 1_002), None).expect("a page");
        assert_eq!((page.services[0].instances.len(), page.next.as_str()), (10, "web/i0900"));
    }
}
