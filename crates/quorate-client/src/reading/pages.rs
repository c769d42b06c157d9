//! A fetch that is too large for one answer: page after page, put together to what one answer would
//! have been, if nothing of it changed meanwhile.

use std::collections::BTreeMap;

use quorate_proto::ClusterId;
use quorate_proto::v1::{FetchRequest, FetchResponse, ResponseHeader, Service};

use super::fetch_once;
use crate::error::Error;
use crate::nodes::call::Plan;
use crate::nodes::endpoints::Endpoints;
use crate::types::Fetched;

/// Asks for the largest pages that there are.
const LARGEST: u32 = u32::MAX;

/// The services of all pages, by name.
type Services = BTreeMap<String, Service>;

pub(super) async fn fetch(
    endpoints: &Endpoints,
    plan: &Plan,
    asked: FetchRequest,
) -> Result<Fetched, Error> {
    let missing = |missing| Error::BadAnswer { operation: plan.operation, missing };
    let header_of = |page: &FetchResponse| page.header.clone().ok_or(missing("header"));
    let mut services = Services::new();
    let mut request = FetchRequest { limit: LARGEST, ..asked.clone() };
    let mut page = fetch_page(endpoints, plan, &request).await?;
    let mut header = header_of(&page)?;
    if page.not_modified {
        return Ok(Fetched { header, services: None, mixed_until: None });
    }
    let mut last = header.revision;
    loop {
        page.services.drain(..).for_each(|service| add(&mut services, service));
        if page.next.is_empty() {
            break;
        }
        // So this ends, also with a node that repeats itself.
        if place(&page.next) <= place(&request.after) {
            return Err(missing("next page"));
        }
        request.after = std::mem::take(&mut page.next);
        // The pages may come from different nodes: none may be older than the first.
        (request.min_revision, request.cluster_id) = (last, header.cluster_id);
        page = fetch_page(endpoints, plan, &request).await?;
        let of_page = header_of(&page)?;
        check_cluster(plan.operation, &header, &of_page)?;
        header.age_ms = header.age_ms.max(of_page.age_ms);
        last = of_page.revision;
    }
    let is_one_view =
        last == header.revision || is_unchanged(endpoints, plan, &asked, &header, last).await?;
    let services = match asked.services.is_empty() {
        true => services.into_values().collect(),
        // As one answer has them: in the order asked.
        false => asked
            .services
            .iter()
            .map(|name| services.get(name).cloned().ok_or(missing("service")))
            .collect::<Result<_, _>>()?,
    };
    let mixed_until = (!is_one_view).then_some(last);
    Ok(Fetched { header, services: Some(services), mixed_until })
}

/// Whether nothing of what was read changed from the first page to the last one.
async fn is_unchanged(
    endpoints: &Endpoints,
    plan: &Plan,
    asked: &FetchRequest,
    first: &ResponseHeader,
    last: u64,
) -> Result<bool, Error> {
    let request = FetchRequest {
        not_modified_since: first.revision,
        min_revision: last,
        cluster_id: first.cluster_id,
        limit: 1,
        ..asked.clone()
    };
    let answer = fetch_page(endpoints, plan, &request).await?;
    let missing = Error::BadAnswer { operation: plan.operation, missing: "header" };
    check_cluster(plan.operation, first, answer.header.as_ref().ok_or(missing)?)?;
    Ok(answer.not_modified)
}

async fn fetch_page(
    endpoints: &Endpoints,
    plan: &Plan,
    request: &FetchRequest,
) -> Result<FetchResponse, Error> {
    let page = fetch_once(endpoints, plan, request).await;
    page.map_err(|error| error.into_error(plan.operation))
}

fn add(services: &mut Services, part: Service) {
    match services.get_mut(&part.name) {
        None => {
            services.insert(part.name.clone(), part);
        }
        // It did not fit into the page before.
        Some(begun) => {
            begun.known |= part.known;
            begun.revision = begun.revision.max(part.revision);
            begun.instances.extend(part.instances);
        }
    }
}

/// Parts of two clusters would belong to neither.
pub(crate) fn check_cluster(
    operation: &'static str,
    was: &ResponseHeader,
    is: &ResponseHeader,
) -> Result<(), Error> {
    match (ClusterId::of(was), ClusterId::of(is)) {
        (was, is) if was == is => Ok(()),
        (Some(was), Some(is)) => Err(Error::OtherCluster { was, is }),
        _ => Err(Error::BadAnswer { operation, missing: "cluster id" }),
    }
}

/// A place in the order of the pages.
fn place(after: &str) -> (&str, &str) {
    after.split_once('/').unwrap_or((after, ""))
}
