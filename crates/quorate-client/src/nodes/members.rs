//! Keeps the list of nodes up to date: asks for the members every now and then, soon after a node
//! failed, and at once when a node tells of a change of them, in the header of an answer.

use std::sync::Arc;
use std::time::Duration;

use quorate_proto::v1::ListMembersRequest;
use tokio::time::{sleep, timeout};

use crate::nodes::call::{Plan, call};
use crate::nodes::endpoints::Endpoints;
use crate::nodes::retry::jittered;
use crate::nodes::stub::registry;

/// The members are looked up no more often than this; after a failure, twice as long after each
/// lookup that fails too.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);

/// Runs until it is aborted. An answer that fails or is empty leaves the list as it is.
pub(crate) async fn refresh(endpoints: Arc<Endpoints>, interval: Duration, plan: Plan) {
    let shortest_pause = SHORTEST_PAUSE.min(interval);
    let mut pause = shortest_pause;
    loop {
        let send = |channel, request| async move { registry(channel).list_members(request).await };
        let in_vain = match call(&endpoints, &plan, &ListMembersRequest {}, send).await {
            Ok(answer) => {
                endpoints.learn_members(&answer);
                // The node that told of a change may be gone, and this one behind it.
                endpoints.is_behind()
            }
            Err(error) => {
                let error = error.into_error(plan.operation);
                tracing::debug!(%error, "the list of nodes stays as it is");
                true
            }
        };
        pause = if in_vain { (pause * 2).min(interval) } else { shortest_pause };
        sleep(shortest_pause).await;
        let rest = async {
            sleep(pause - shortest_pause).await;
            let rest = jittered(interval).saturating_sub(pause);
            if !endpoints.is_behind() {
                let _asked_for_or_due = timeout(rest, endpoints.failure.notified()).await;
            }
        };
        tokio::select! {
            () = rest => {}
            () = endpoints.members_changed() => {
                // All clients of a node hear of it in the same moment.
                sleep(shortest_pause.mul_f64(rand::random())).await;
                pause = shortest_pause;
            }
        }
    }
}
