//! Now and then: whether what is shown is what the registry has. It always should be; a difference is a bug somewhere, which
//! is told, counted, and repaired by reading the service anew.

use std::sync::atomic::Ordering;

use quorate_proto::v1::{Consistency, FetchRequest, Service};

use super::hub::Shared;
use super::topics::Topics;
use crate::call::{Plan, call};
use crate::client::{Options, registry};
use crate::endpoints::{Endpoints, Target};

/// Compares with some node, which need not be the one that sends the changes. True: something is to be read anew.
pub(super) async fn finds_difference(
    shared: &Shared,
    endpoints: &Endpoints,
    options: &Options,
) -> bool {
    let request = {
        let topics = shared.topics();
        FetchRequest {
            namespace: shared.namespace().to_owned(),
            services: topics.names(),
            consistency: Consistency::Local as i32,
            // The node has at least what is known here.
            min_revision: topics.lowest(),
            ..FetchRequest::default()
        }
    };
    let (attempt, within) = (options.attempt_timeout, options.call_timeout);
    let plan = Plan { operation: "audit", target: Target::Any, attempt, within };
    let send = |channel, request| async move { registry(channel).fetch(request).await };
    match call(endpoints, &plan, &request, send).await {
        Ok(answer) => {
            let mut topics = shared.topics();
            let wrong: Vec<_> =
                answer.services.iter().filter(|service| differs(&topics, service)).collect();
            for service in &wrong {
                tracing::warn!(service = service.name, "a live view differed from the registry");
                topics.distrust(&service.name);
                options.counters.divergences.fetch_add(1, Ordering::Relaxed);
            }
            !wrong.is_empty()
        }
        // Not the audit's business: what follows the changes notices, too.
        Err(error) => {
            let error = error.into_error(plan.operation);
            tracing::debug!(%error, "no audit this time");
            false
        }
    }
}

/// Whether a service is shown otherwise than it is. Not if it changed after what is known here: that is still to come.
fn differs(topics: &Topics, service: &Service) -> bool {
    let Some((position, shown)) = topics.known(&service.name) else { return false };
    let same = shown.len() == service.instances.len()
        && shown.iter().zip(&service.instances).all(|(shown, is)| **shown == *is);
    service.revision <= position && !same
}
