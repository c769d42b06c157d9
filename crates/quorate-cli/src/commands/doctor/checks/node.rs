//! What concerns single nodes: their disks, clocks, certificates, listeners, and who uses them.

use std::time::Duration;

use quorate_client::{MemberStatus, Standing, WritesRefused};

use super::super::facts::Facts;
use super::super::findings::{Found, Severity};
use super::answering;
use crate::commands::cluster::status::{ends, size};
use crate::commands::cluster::verdict::{
    AUDIT_NEXT, CLOCK_HELD_MAX_MS, FULL_NEXT, id, leader, refusal, why,
};
use crate::commands::rescue::ago;
use crate::commands::view::standing;

/// A sync takes less than 10 ms where all is well; from here on it is felt, us.
const SYNC_SLOW_US: u64 = 100_000;
/// Of fewer, one in a hundred says nothing.
const SYNCS_MIN: u64 = 100;
/// Two weeks.
const CERTIFICATE_ENDS_S: i64 = 14 * 86_400;
/// Watches that fell behind within a minute or two: more than a client that stood still.
const RESETS_MANY: u64 = 10;
/// Of fewer connections than this, half from one address is no hot spot.
const CONNECTIONS_MANY: u64 = 200;

/// Those that disks and clocks do not tell of.
pub(super) fn writes(facts: &Facts, found: &mut Found) -> Result<(), String> {
    for (member, _) in answering(facts) {
        let (node, why) = (id(member), why(member));
        match refusal(member) {
            WritesRefused::Audit => {
                let meaning = format!("node {node} refuses the writes that come to it: {why}");
                found.of(node, Severity::Critical, meaning, AUDIT_NEXT);
            }
            WritesRefused::StateFull => {
                let meaning = format!("registrations are refused, the rest goes on: {why}");
                found.of(node, Severity::Critical, meaning, FULL_NEXT);
            }
            _ => {}
        }
    }
    Ok(())
}

pub(super) fn disks(facts: &Facts, found: &mut Found) -> Result<(), String> {
    let leader = leader(&facts.view.status);
    let next = "make room where its data directory is; it goes on by itself (docs/operations.md#a-full-disk)";
    for (member, condition) in answering(facts) {
        let (node, free) = (id(member), member.disk_free_bytes);
        let reserve = condition.disk_reserve_bytes;
        let (free_words, reserve_words) = (size(free), size(reserve));
        if member.disk_low && Some(node) == leader && leads(facts, member) {
            let (below, then) = match refusal(member) {
                WritesRefused::DiskFloor => {
                    ("a quarter of its reserve", "nothing is written, and no lease ends")
                }
                _ => ("its reserve", "no registrations"),
            };
            let meaning = format!(
                "the disk of node {node}, which leads, has {free_words} free, below {below} of {reserve_words}: {then}"
            );
            found.of(node, Severity::Critical, meaning, next);
        } else if member.disk_low {
            let meaning = format!(
                "the disk of node {node} has {free_words} free, below its reserve of {reserve_words}: it could take no registrations as leader, and below a quarter of that it falls behind"
            );
            found.of(node, Severity::Warning, meaning, next);
        } else if free < reserve.saturating_mul(2) {
            let meaning = format!(
                "the disk of node {node} has {free_words} free; its reserve is {reserve_words}"
            );
            found.of(node, Severity::Warning, meaning, next);
        }
    }
    Ok(())
}

/// Whether a member leads the others: one that they do not answer only takes itself for the leader.
fn leads(facts: &Facts, member: &MemberStatus) -> bool {
    let leader = leader(&facts.view.status);
    leader == Some(id(member)) && standing(member.condition.as_ref()) != Standing::CutOff
}

pub(super) fn syncs(facts: &Facts, found: &mut Found) -> Result<(), String> {
    for (member, condition) in answering(facts) {
        let is_slow = condition.syncs >= SYNCS_MIN && condition.sync_p99_us >= SYNC_SLOW_US;
        if !is_slow {
            continue;
        }
        let node = id(member);
        let took = match condition.sync_p99_us {
            u64::MAX => "longer than a second".to_owned(),
            us => format!("up to {} ms", us / 1_000),
        };
        found.of(
            node,
            Severity::Warning,
            format!("one of a hundred syncs of node {node} takes {took} (of {} of late): writes wait for it", condition.syncs),
            "look for what else uses that disk, or give the lead away: `quorate cluster transfer-leader` (docs/operations.md#a-slow-cluster)",
        );
    }
    Ok(())
}

pub(super) fn clock(facts: &Facts, found: &mut Found) -> Result<(), String> {
    let held = answering(facts).filter(|(_, it)| it.clock_held_ms > CLOCK_HELD_MAX_MS);
    for (member, condition) in held {
        let (node, age) = (id(member), ago(Duration::from_millis(condition.clock_held_ms)));
        let leads = if leads(facts, member) { ", which leads" } else { "" };
        found.of(
            node,
            Severity::Warning,
            format!("registry time has stood still for {age} on node {node}{leads}: no lease ends, so the dead stay listed"),
            "its log says why: no majority commits, or its disk is full (docs/operations.md#a-slow-cluster)",
        );
    }
    Ok(())
}

pub(super) fn certificates(facts: &Facts, found: &mut Found) -> Result<(), String> {
    for (member, condition) in answering(facts) {
        let node = id(member);
        let next = format!(
            "make a new one where the CA is, for the hosts of the old one (`quorate certs node {node} --force`), and copy both files to the node, which takes them within ten seconds (docs/operations.md#certificates-that-end)"
        );
        match condition.certificate_ends_in_s {
            Some(left) if left < 0 => {
                let meaning = format!("the certificate of node {node} has ended: others refuse it");
                found.of(node, Severity::Critical, meaning, next);
            }
            Some(left) if left < CERTIFICATE_ENDS_S => {
                let meaning = format!("the certificate of node {node} ends in {}", ends(left));
                found.of(node, Severity::Warning, meaning, next);
            }
            _ => {}
        }
        if condition.files_refused {
            let meaning = format!(
                "node {node} cannot use its TLS files or its access file as they are now: what was in use before stays"
            );
            found.of(node, Severity::Warning, meaning, "its log names the file and what is wrong");
        }
    }
    Ok(())
}

pub(super) fn listeners(facts: &Facts, found: &mut Found) -> Result<(), String> {
    for (member, condition) in answering(facts).filter(|(_, it)| !it.open_listeners.is_empty()) {
        let node = id(member);
        found.of(
            node,
            Severity::Warning,
            format!("node {node} listens where other machines reach it: {}", condition.open_listeners),
            "`quorate certs init`, `quorate token new`, then serve --tls-cert ... --access FILE (docs/security.md), unless the network keeps strangers out",
        );
    }
    Ok(())
}

pub(super) fn probes(facts: &Facts, found: &mut Found) -> Result<(), String> {
    for (member, condition) in answering(facts).filter(|(_, it)| it.probes_refused > 0) {
        let (node, refused) = (id(member), condition.probes_refused);
        let over = ago(Duration::from_millis(condition.counted_ms));
        found.of(
            node,
            Severity::Warning,
            format!("node {node} did not make {refused} health checks within {over}: their targets are in no network that it may probe, so nobody sees those instances fail"),
            "allow their networks on every node: [health_checks] allow, or QUORATE_HEALTH_CHECKS_ALLOW",
        );
    }
    Ok(())
}

pub(super) fn watches(facts: &Facts, found: &mut Found) -> Result<(), String> {
    for (member, condition) in answering(facts).filter(|(_, it)| it.watch_resets >= RESETS_MANY) {
        let (node, resets) = (id(member), condition.watch_resets);
        let over = ago(Duration::from_millis(condition.counted_ms));
        found.of(
            node,
            Severity::Warning,
            format!("{resets} watches at node {node} fell so far behind within {over} that they were given snapshots: clients are too slow, or too much changes"),
            "`quorate watch --prefix \"\" -o json` shows what changes (docs/operations.md#watchers-that-fall-behind)",
        );
    }
    Ok(())
}

pub(super) fn hot_spots(facts: &Facts, found: &mut Found) -> Result<(), String> {
    for (member, condition) in answering(facts) {
        let (node, busiest) = (id(member), condition.busiest_connections);
        let (all, max) = (condition.connections, condition.connections_per_address_max);
        let is_near = max > 0 && busiest * 2 > max;
        if !is_near && (all < CONNECTIONS_MANY || busiest * 2 <= all) {
            continue;
        }
        let severity = if is_near { Severity::Warning } else { Severity::Note };
        let (address, calls) = (&condition.busiest_address, condition.busiest_calls);
        found.of(
            node,
            severity,
            format!("{busiest} of {all} connections to node {node} are from {address}, with {calls} calls under way; {max} are allowed from one address"),
            "one client that dials too often, or a proxy in front of many: docs/operations.md#too-many-connections",
        );
    }
    Ok(())
}
