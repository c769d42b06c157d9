//! The checks: a table, and for each a function that looks at the facts and says what it finds.

mod client;
mod cluster;
mod node;

use quorate_client::{Condition, MemberStatus};

use super::facts::Facts;
use super::findings::{Check, Found};

const fn check(name: &'static str, find: fn(&Facts, &mut Found) -> Result<(), String>) -> Check {
    Check { name, needs_rights: true, find }
}

const fn open_to_all(
    name: &'static str,
    find: fn(&Facts, &mut Found) -> Result<(), String>,
) -> Check {
    Check { name, needs_rights: false, find }
}

/// In the order in which they are read.
pub(in crate::commands) const CHECKS: [Check; 17] = [
    open_to_all("quorum", cluster::quorum),
    check("lag", cluster::lag),
    check("state hash", cluster::hash),
    check("versions", cluster::versions),
    check("snapshots", cluster::snapshots),
    check("backups", cluster::backups),
    check("writes", node::writes),
    check("disks", node::disks),
    check("syncs", node::syncs),
    check("clock", node::clock),
    check("certificates", node::certificates),
    check("listeners", node::listeners),
    check("health checks", node::probes),
    check("watches", node::watches),
    check("hot spots", node::hot_spots),
    open_to_all("endpoints", client::endpoints),
    open_to_all("files", client::files),
];

/// The members that answer, with what they say of themselves.
fn answering(facts: &Facts) -> impl Iterator<Item = (&MemberStatus, &Condition)> {
    let members = facts.view.status.members.iter().filter(|member| member.reachable);
    members.filter_map(|member| Some((member, member.condition.as_ref()?)))
}
