//! The fake's pages.

use quorate_proto::v1::*;
use tonic::Status;

use super::State;

/// So many instances in order, of which none fit into an answer that is no page.
pub(super) fn page(
    state: &State,
    header: ResponseHeader,
    request: &FetchRequest,
) -> Result<FetchResponse, Status> {
    if request.limit == 0 {
        return Err(Status::resource_exhausted("too large for one answer"));
    }
    let place = |instance: &Instance| format!("{}/{}", instance.service, instance.id);
    let asked = |instance: &&Instance| request.services.contains(&instance.service);
    let later = |instance: &&Instance| place(instance) > request.after;
    let mut left = state.instances.values().filter(asked).filter(later).peekable();
    let mut services: Vec<Service> = Vec::new();
    let mut last = String::new();
    for instance in left.by_ref().take(state.page_of) {
        last = place(instance);
        if services.last().is_none_or(|service| service.name != instance.service) {
            let (name, revision) = (instance.service.clone(), state.revision);
            services.push(Service { name, known: true, revision, ..Service::default() });
        }
        services.last_mut().expect("one at least").instances.push(instance.clone());
    }
    let next = if left.peek().is_some() { last } else { String::new() };
    Ok(FetchResponse { header: Some(header), services, next, ..Default::default() })
}
