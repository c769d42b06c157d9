//! What concerns the cluster as a whole: its quorum, whether the members are alike, what is kept of
//! it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quorate_client::{MemberStatus, NodeState, Standing};

use super::super::facts::Facts;
use super::super::findings::{Found, Severity};
use super::answering;
use crate::commands::cluster::verdict::{LAG_MAX, by_certificates, differing, id, leader, votes};
use crate::commands::rescue::ago;
use crate::commands::view::{several_clusters, standing};

/// Entries since the newest snapshot, of which one is made every 50,000, unless configured.
const SNAPSHOT_DUE: u64 = 200_000;
/// A day, and two hours for a timer that is late.
const BACKUP_DUE: Duration = Duration::from_secs(26 * 3_600);

pub(super) fn quorum(facts: &Facts, found: &mut Found) -> Result<(), String> {
    let status = &facts.view.status;
    let voters: Vec<&MemberStatus> = status.members.iter().filter(|it| votes(it)).collect();
    let down: Vec<&MemberStatus> = voters.iter().filter(|it| !it.reachable).copied().collect();
    let by_tls = by_certificates(status, &down);
    let (all, answer) = (voters.len(), voters.len() - down.len());
    let needed = all / 2 + 1;
    let is_led = leader(status).is_some();
    if all == 0 {
        let meaning = "no node that answers is a member of the cluster";
        let next = "do what they wait for, or name nodes that are: --nodes";
        found.of_all(Severity::Critical, meaning, next);
    } else if answer < needed {
        found.of_all(
            Severity::Critical,
            format!("no quorum: {answer} of {all} voters answer, {needed} are needed for any write"),
            by_tls.unwrap_or("start the others again; only if their disks are lost for good: `quorate recover --data-dir DIR...` (docs/operations.md)"),
        );
    } else if !is_led {
        found.of_all(
            Severity::Critical,
            format!(
                "no node leads, although {answer} of {all} voters answer: nothing can be written"
            ),
            "look again in a few seconds; if it stays, the logs of the nodes say why",
        );
    }
    for node in down.iter().map(|it| id(it)) {
        // Without a quorum, nobody can be replaced.
        let (then, next) = match answer.checked_sub(needed) {
            None => (String::new(), "start it again".to_owned()),
            Some(spare) => (
                format!("; {spare} more may fail before writes stop"),
                format!(
                    "start it again, or replace it: `quorate cluster replace {node} NEW-ID ADDRESS`"
                ),
            ),
        };
        let next = by_tls.map_or(next, str::to_owned);
        found.of(node, Severity::Warning, format!("node {node} does not answer{then}"), next);
    }
    if all == 1 {
        let meaning = "one voter: when its disk is lost, so is everything";
        found.of_all(Severity::Warning, meaning, "add two nodes: `quorate cluster add ID ADDRESS`");
    } else if all > 0 && all.is_multiple_of(2) {
        found.of_all(
            Severity::Warning,
            format!("{all} voters survive no more failures than {} would", all - 1),
            "add one: `quorate cluster add ID ADDRESS`; or take one out: `quorate cluster remove ID`",
        );
    }
    if let Some((meaning, next)) = several_clusters(&facts.view) {
        found.of_all(Severity::Critical, meaning, next);
    }
    members(facts, found, is_led);
    Ok(())
}

/// Members that answer, and do not take part as they should, and nodes that are none.
fn members(facts: &Facts, found: &mut Found, is_led: bool) {
    for member in facts.view.status.members.iter().filter(|it| !it.reachable && !votes(it)) {
        let node = id(member);
        let meaning = format!("node {node}, an observer, does not answer: {}", member.error);
        let next = format!("start it again, or take it out: `quorate cluster remove {node}`");
        found.of(node, Severity::Warning, meaning, next);
    }
    for member in facts.view.status.members.iter().filter(|it| it.reachable) {
        let node = id(member);
        let standing = standing(member.condition.as_ref());
        let reason = member.condition.as_ref().map_or("", |condition| condition.reason.as_str());
        if standing == Standing::CutOff && is_led {
            let next =
                "look at the network between the peers: docs/operations.md#a-node-that-is-cut-off";
            found.of(node, Severity::Warning, format!("node {node}: {reason}"), next);
        } else if votes(member) && member.state() == NodeState::Learner {
            found.of(
                node,
                Severity::Warning,
                format!("node {node} should vote and has no part in the log: its disk may be lost"),
                format!("`quorate cluster replace {node} NEW-ID ADDRESS`"),
            );
        } else if standing == Standing::Joining {
            let next = "wait: `quorate cluster status --wait --timeout 5m`";
            found.of(node, Severity::Note, format!("node {node}: {reason}"), next);
        }
        if !member.recovering.is_empty() {
            let next = "start the other voters, so that it catches up";
            let meaning = format!("node {node} does not vote as others do: {}", member.recovering);
            found.of(node, Severity::Warning, meaning, next);
        }
    }
    for (node, [a, b]) in &facts.view.twins {
        let meaning = format!(
            "two nodes have id {node}: {a} and {b}: each takes the other's place again and again"
        );
        let next = "stop one, and start it with an id that no node has had, and an empty directory";
        found.of(*node, Severity::Critical, meaning, next);
    }
    for outsider in &facts.view.outsiders {
        let next = match outsider.condition.standing() {
            Standing::Removed => "stop it, and take its address out of --nodes",
            Standing::Joining => "its log says who refuses it and why",
            _ => "do that, or stop it",
        };
        let (node, reason) = (outsider.id, &outsider.condition.reason);
        let meaning = format!("node {node} is no member: {reason}");
        found.of(node, Severity::Warning, meaning, next);
    }
}

pub(super) fn lag(facts: &Facts, found: &mut Found) -> Result<(), String> {
    for (member, _) in answering(facts).filter(|(member, _)| member.lag > LAG_MAX) {
        let (node, lag) = (id(member), member.lag);
        found.of(
            node,
            Severity::Warning,
            format!("node {node} has {lag} entries to apply: local reads there are old, and it could not lead now"),
            "its log says why: a full or slow disk, or a slow network (docs/operations.md#a-slow-cluster)",
        );
    }
    Ok(())
}

const KEEP_BOTH: &str = "keep the data directories, take a backup of each side (`quorate cluster backup FILE --nodes ITS-ADDRESS`), and report it: `quorate debug bundle FILE`";

pub(super) fn hash(facts: &Facts, found: &mut Found) -> Result<(), String> {
    let mut hashes: BTreeMap<u64, BTreeMap<u64, Vec<u64>>> = BTreeMap::new();
    for (member, _) in answering(facts) {
        let of_index = hashes.entry(member.state_hash_index).or_default();
        of_index.entry(member.state_hash).or_default().push(id(member));
    }
    for (index, of_index) in hashes.iter().filter(|(_, of_index)| of_index.len() > 1) {
        let sides: Vec<String> = of_index.values().map(|nodes| format!("{nodes:?}")).collect();
        found.of_all(
            Severity::Critical,
            format!("nodes disagree on the state at entry {index}: {}", sides.join(" against ")),
            KEEP_BOTH,
        );
    }
    let seen_now = hashes.values().any(|of_index| of_index.len() > 1);
    for (leader, _) in answering(facts).filter(|(it, _)| !seen_now && !differing(it).is_empty()) {
        let (node, others) = (id(leader), differing(leader));
        let meaning = format!(
            "nodes disagree: {others:?} had another state than node {node}, which leads, after the same entries"
        );
        found.of_all(Severity::Critical, meaning, KEEP_BOTH);
    }
    Ok(())
}

pub(super) fn versions(facts: &Facts, found: &mut Found) -> Result<(), String> {
    let mut versions: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
    for (member, _) in answering(facts) {
        versions.entry(&member.version).or_default().insert(id(member));
    }
    if versions.len() > 1 {
        let sides = versions.iter().map(|(version, nodes)| format!("{version} on {nodes:?}"));
        found.of_all(
            Severity::Warning,
            format!(
                "the nodes run different versions: {}; older ones cannot read what newer ones write",
                sides.collect::<Vec<_>>().join(", ")
            ),
            "start each with the same version, one after the other: `quorate cluster status --wait --timeout 5m` between them, and go on only if it exits with 0",
        );
    }
    Ok(())
}

pub(super) fn snapshots(facts: &Facts, found: &mut Found) -> Result<(), String> {
    for (member, condition) in answering(facts) {
        let entries = member.last_log_index.saturating_sub(member.snapshot_index);
        if entries <= SNAPSHOT_DUE {
            continue;
        }
        let age = condition.snapshot_written_ms.map_or("it has none".to_owned(), |at| {
            format!("{} old", ago(Duration::from_millis(facts.now_ms.saturating_sub(at))))
        });
        let node = id(member);
        found.of(
            node,
            Severity::Warning,
            format!("the newest snapshot of node {node} is {entries} entries behind ({age}): its log grows, and a start takes long"),
            "have it build one: `quorate cluster snapshot --nodes ITS-ADDRESS`; if that fails, its log says why",
        );
    }
    Ok(())
}

/// Nodes forget at a restart what they have sent.
pub(super) fn backups(facts: &Facts, found: &mut Found) -> Result<(), String> {
    let newest = answering(facts).filter_map(|(_, condition)| condition.backup_age_ms).min();
    let up = answering(facts).map(|(member, _)| member.uptime_ms).max().unwrap_or(0);
    let (newest, up) = (newest.map(Duration::from_millis), Duration::from_millis(up));
    let next = "take one now, `quorate cluster backup FILE`, and one each day, by a timer that calls the script `backup-registry` (docs/operations.md#backups)";
    match newest {
        Some(age) if age > BACKUP_DUE => {
            let meaning = format!("the newest backup that the nodes know of is {} old", ago(age));
            found.of_all(Severity::Warning, meaning, next);
        }
        Some(_) => {}
        None => {
            let severity = if up > BACKUP_DUE { Severity::Warning } else { Severity::Note };
            let meaning = format!(
                "no backup was taken since the nodes started, at most {} ago: what is lost with all disks is lost",
                ago(up)
            );
            found.of_all(severity, meaning, next);
        }
    }
    Ok(())
}
