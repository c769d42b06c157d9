//! Reads services: in one answer, or in pages where one cannot hold them.

mod pages;

pub(crate) use pages::check_cluster;

use quorate_proto::v1::{FetchRequest, FetchResponse};

use crate::error::Error;
use crate::nodes::call::{CallError, Plan, call};
use crate::nodes::endpoints::Endpoints;
use crate::nodes::retry::is_too_large;
use crate::nodes::stub::registry;
use crate::types::Fetched;

/// Reads what is asked for, in pages if it is too large for one answer.
pub(crate) async fn read(
    endpoints: &Endpoints,
    plan: &Plan,
    request: FetchRequest,
) -> Result<Fetched, Error> {
    let answer = match fetch_once(endpoints, plan, &request).await {
        Err(CallError::Refused { status, .. }) if is_too_large(&status) => {
            return pages::fetch(endpoints, plan, request).await;
        }
        answer => answer.map_err(|error| error.into_error(plan.operation))?,
    };
    let missing = |missing| Error::BadAnswer { operation: plan.operation, missing };
    let header = answer.header.ok_or(missing("header"))?;
    if !answer.not_modified && answer.services.len() < request.services.len() {
        return Err(missing("service"));
    }
    let services = (!answer.not_modified).then_some(answer.services);
    Ok(Fetched { header, services, mixed_until: None })
}

/// One answer, which may be a page.
async fn fetch_once(
    endpoints: &Endpoints,
    plan: &Plan,
    request: &FetchRequest,
) -> Result<FetchResponse, CallError> {
    let send = |channel, request| async move { registry(channel).fetch(request).await };
    call(endpoints, plan, request, send).await
}
