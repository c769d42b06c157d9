//! Nodes that have applied the same entries have the same state. The leader asks the others for a
//! hash of theirs, now and then, and compares each with the one that it had at the same log index
//! itself. Only says what it finds: which of two states is right, nobody can tell from a hash.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use quorate_log::NodeId;

use crate::error::RunError;
use crate::node::status::Report;
use crate::node::{MemberInfo, Node};

/// The others are asked this often. A difference stays, so that to look seldom is enough.
const COMPARE_EVERY: Duration = Duration::from_secs(5);

pub(crate) async fn run(node: Arc<Node>) -> Result<(), RunError> {
    let mut differing = BTreeSet::new();
    loop {
        tokio::time::sleep(COMPARE_EVERY).await;
        match node.leads() {
            true => compare(&node, &node.ask_all().await, &mut differing),
            false => differing.clear(),
        }
        node.meters().states_differ.set(differing.len() as i64);
        node.seen().differ(&differing);
    }
}

/// One that cannot be compared now (it does not answer, it is too far behind or has applied what
/// this node has not yet) stays what it was found to be.
fn compare(
    node: &Node,
    reports: &[(MemberInfo, Result<Report, String>)],
    differing: &mut BTreeSet<NodeId>,
) {
    differing.retain(|id| reports.iter().any(|(member, _)| member.id == *id));
    for (member, report) in reports {
        let Ok(report) = report else { continue };
        let (index, hash) = (report.status.state_hash_index, report.status.state_hash);
        // At 0 nothing is applied, and this node is nobody to compare itself with.
        if index == 0 || member.id == node.id() {
            continue;
        }
        let Some(ours) = node.applied().lock().marks.at(index) else { continue };
        node.meters().states_compared.inc();
        if ours == hash {
            differing.remove(&member.id);
        } else if differing.insert(member.id) {
            tracing::error!(
                other = member.id.get(),
                index,
                ours = format!("{ours:016x}"),
                theirs = format!("{hash:016x}"),
                "nodes disagree: after the same entries, another one has another state; keep the data \
                 directories of both and report it (docs/operations.md)"
            );
        }
    }
}
