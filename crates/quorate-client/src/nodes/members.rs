//! Keeps the list of nodes up to date: asks for the members every now and then, and soon after a
//! node failed.

use std::sync::Arc;
use std::time::Duration;

use quorate_proto::v1::ListMembersRequest;
use tokio::time::{sleep, timeout};

use crate::nodes::call::{Plan, call};
use crate::nodes::endpoints::Endpoints;
use crate::nodes::retry::jittered;
use crate::nodes::stub::registry;

/// After a failure the members are looked up no sooner than this; twice as long after each lookup
/// that fails too.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Runs until it is aborted. An answer that fails or is empty leaves the list as it is.
pub(crate) async fn refresh(endpoints: Arc<Endpoints>, interval: Duration, plan: Plan) {
    let shortest_pause = PAUSE_AFTER_FAILURE.min(interval);
    let mut pause = shortest_pause;
    loop {
        let send = |channel, request| async move { registry(channel).list_members(request).await };
        match call(&endpoints, &plan, &ListMembersRequest {}, send).await {
            Ok(answer) => {
                let addresses = answer.members.iter().map(|m| m.client_address.as_str());
                endpoints.replace_members(addresses);
                pause = shortest_pause;
            }
            Err(error) => {
                let error = error.into_error(plan.operation);
                tracing::debug!(%error, "the list of nodes stays as it is");
                pause = (pause * 2).min(interval);
            }
        }
        sleep(pause).await;
        let rest = jittered(interval).saturating_sub(pause);
        let _asked_for_or_due = timeout(rest, endpoints.failure.notified()).await;
    }
}
