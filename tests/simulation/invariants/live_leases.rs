//! No lease ends before its time: since the last acknowledged renewal began, registry time cannot
//! have moved on by a whole TTL unless that much time went by in which a quorum was possible.

use std::collections::BTreeMap;

use quorate_proto::v1::{ChangeKind, RemoveReason};

use crate::simulation::history::{Answer, Ask, History, Notes};
use crate::simulation::membership::Quorums;
use crate::simulation::plan::Ms;

/// What a leader may count of an outage (`AHEAD_MAX` in quorate-node's clock.rs).
const SLACK: Ms = 1_000;

pub(crate) fn check(quorums: &Quorums<'_>, notes: &Notes, history: &History) -> Vec<String> {
    // By lease: its TTL, and when its last acknowledged renewal began.
    let mut leases: BTreeMap<u64, (Ms, Ms)> = BTreeMap::new();
    for call in &notes.calls {
        let (lease, ttl) = match (&call.ask, &call.answer) {
            (Ask::Register { ttl_ms, .. }, Answer::Done { lease, .. }) => (*lease, *ttl_ms),
            (Ask::Renew { lease }, Answer::Done { .. }) => (*lease, 0),
            _ => continue,
        };
        let (known_ttl, renewed) = leases.entry(lease).or_default();
        *known_ttl = ttl.max(*known_ttl);
        *renewed = call.from.max(*renewed);
    }
    let expired = history.iter().filter(|(_, _, told)| {
        told.kind == ChangeKind::Removed && told.reason == RemoveReason::Expired
    });
    let mut wrong = Vec::new();
    for (revision, at, told) in expired {
        let Some((ttl, renewed)) = leases.get(&told.held.lease) else { continue };
        let passed = quorums.registry_ms_max(*renewed, at, SLACK);
        if passed + 10 < *ttl {
            wrong.push(format!(
                "revision {revision}: {} expired at {at} ms, renewed at {renewed} ms, TTL {ttl} ms, at \
                 most {passed} ms of registry time since",
                told.key
            ));
        }
    }
    wrong
}
