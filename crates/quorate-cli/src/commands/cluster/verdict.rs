//! What a status means, in one line, and what to do about it.

use std::collections::BTreeSet;

use quorate_client::{Condition, MemberRole, MemberStatus, Standing, WritesRefused};
use quorate_proto::v1::StatusResponse;

use crate::commands::cluster::status::ends as ends_in;
use crate::commands::view::{View, several_clusters};

/// How a cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Health {
    Ok,
    Degraded,
    NoWrites,
    NoQuorum,
}

impl Verdict {
    /// The first line; `partial`: of the view that it is on.
    pub(super) fn line(&self, partial: bool) -> String {
        let word = match self.health {
            Health::Ok if partial => AS_FAR,
            health => health.word(),
        };
        format!("{word}: {}", self.meaning)
    }
}

impl Health {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Degraded => "DEGRADED",
            Self::NoWrites => "NO WRITES",
            Self::NoQuorum => "NO QUORUM",
        }
    }

    /// For `--exit-code`.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Degraded => 1,
            Self::NoWrites | Self::NoQuorum => 2,
        }
    }
}

/// What others say of an OK that is not about all there is.
pub(in crate::commands) const AS_FAR: &str = "OK as far as this caller may see";
/// Who sees all.
pub(in crate::commands) const RIGHTS: &str = "takes the role operator, or to read all namespaces";

/// How it is, what that means, and what to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) health: Health,
    pub(super) meaning: String,
    /// Empty: nothing.
    pub(super) next: String,
}

/// A member that has not applied this many entries that another one has, lags: more than a moment's
/// work under load, and as many as leaders keep for slow followers.
pub(in crate::commands) const LAG_MAX: u64 = 5_000;
/// Registry time that stands still for longer is held up: an election and its grace take less, ms.
pub(in crate::commands) const CLOCK_HELD_MAX_MS: u64 = 5_000;
/// A certificate that ends within this is to be replaced now: a week.
const CERTIFICATE_ENDS_S: i64 = 7 * 86_400;

/// The verdict on what is seen; `faults`: what is wrong with single members.
pub(super) fn verdict(view: &View, faults: &[String]) -> Verdict {
    let status = &view.status;
    let voters: Vec<_> = status.members.iter().filter(|status| votes(status)).collect();
    let silent: Vec<&MemberStatus> = voters.iter().filter(|it| !it.reachable).copied().collect();
    let (all, answer) = (voters.len(), voters.len() - silent.len());
    let by_tls = by_certificates(status, &silent);
    let needed = all / 2 + 1;
    let first = silent.first().map(|it| id(it));
    let silent = silent.iter().map(|it| id(it).to_string()).collect::<Vec<_>>().join(", ");
    if let Some(verdict) = of_strangers(view) {
        return verdict;
    }
    if answer < needed {
        return Verdict {
            health: Health::NoQuorum,
            meaning: format!(
                "{answer} of {all} voters answer, {needed} are needed: no writes; local reads go on, and nothing expires"
            ),
            next: by_tls.map_or_else(
                || format!("start node {silent} again; only if their disks are lost for good: `quorate recover` (docs/operations.md)"),
                str::to_owned,
            ),
        };
    }
    let Some(leader) = leader(status) else {
        return Verdict {
            health: Health::NoQuorum,
            meaning: format!("no node leads, although {answer} of {all} voters answer: no writes"),
            next: "look again in a few seconds; if it stays, the logs of the nodes say why"
                .to_owned(),
        };
    };
    if let Some((meaning, next)) = no_writes(status) {
        return Verdict { health: Health::NoWrites, meaning, next };
    }
    let down = first.map(|first| {
        let spare = answer - needed;
        let meaning = format!(
            "{answer} of {all} voters answer: all goes on, and so it does with {spare} more down"
        );
        let next = by_tls.map_or_else(|| start_or_replace(&silent, first), str::to_owned);
        (meaning, next)
    });
    let is_ok = || (format!("node {leader} leads, {answer} of {all} voters answer"), String::new());
    let (meaning, next) = several_clusters(view)
        .map(|(meaning, next)| (meaning, next.to_owned()))
        .or_else(|| disagree(status).map(of_states))
        .or_else(|| of_disks(status, leader))
        .or_else(|| of_refused(status))
        .or(down)
        .or_else(|| (!faults.is_empty()).then(|| of_faults(faults)))
        .or_else(|| of_members(status))
        .unwrap_or_else(is_ok);
    let health = if next.is_empty() { Health::Ok } else { Health::Degraded };
    let next = match health {
        Health::Ok if status.partial => format!("to see the rest {RIGHTS}"),
        _ => next,
    };
    Verdict { health, meaning, next }
}

/// Each new one takes the place of one.
fn start_or_replace(silent: &str, first: u64) -> String {
    let it = if silent.contains(',') { "them, one after the other" } else { "it" };
    format!(
        "start node {silent} again, or replace {it}: `quorate cluster replace {first} NEW-ID ADDRESS`"
    )
}

pub(in crate::commands) fn votes(status: &MemberStatus) -> bool {
    status.member.as_ref().is_some_and(|member| member.role() == MemberRole::Voter)
}

pub(crate) fn id(status: &MemberStatus) -> u64 {
    status.member.as_ref().map_or(0, |member| member.id)
}

/// Who leads, as the node that answers sees it.
pub(in crate::commands) fn leader(status: &StatusResponse) -> Option<u64> {
    let id = status.header.as_ref()?.leader_id;
    (id != 0).then_some(id)
}

/// Why a member refuses writes, if it does.
pub(in crate::commands) fn refusal(status: &MemberStatus) -> WritesRefused {
    status.condition.as_ref().map_or(WritesRefused::Unspecified, Condition::writes_refused)
}

/// What to do where nodes do not answer for their certificates' sake, or for a clock's: they run,
/// and nothing of them is lost.
pub(in crate::commands) fn by_certificates(
    status: &StatusResponse,
    silent: &[&MemberStatus],
) -> Option<&'static str> {
    let says = |it: &&MemberStatus| it.error.contains("certificate") || it.error.contains("TLS");
    let own = status.condition.as_ref().and_then(|own| own.certificate_ends_in_s);
    (!silent.is_empty() && (silent.iter().any(says) || own.is_some_and(|left| left < 0))).then_some(
        "look at the certificates and at the clocks of the nodes, which may all run (docs/operations.md#certificates-that-have-ended, #a-wrong-clock)",
    )
}

type Found = (String, String);

/// What to do about an audit log that cannot be written.
pub(in crate::commands) const AUDIT_NEXT: &str = "make room for that file, or let the node write it; it goes on by itself (docs/operations.md#writes-that-are-refused)";
/// What to do about a registry that has its size.
pub(in crate::commands) const FULL_NEXT: &str =
    "`quorate services` says who has so many instances; docs/operations.md#a-full-registry";

/// Where no member answers: nothing is known of the cluster.
fn of_strangers(view: &View) -> Option<Verdict> {
    let only = view.speaker()?;
    let (answering, reason) = (only.id, &only.condition.reason);
    let (meaning, next) = match only.condition.standing() {
        // There may be no cluster yet.
        Standing::Waiting => (
            format!("node {answering} is in no cluster yet: {reason}"),
            "do what it waits for; if the cluster is there, name nodes of it: --nodes",
        ),
        _ => (
            format!("no member of the cluster answers: node {answering} is none: {reason}"),
            "name nodes that are members: --nodes",
        ),
    };
    Some(Verdict { health: Health::NoQuorum, meaning, next: next.to_owned() })
}

/// Two members that have applied the same, and have different states. Leaders remember more of
/// their own than they tell, and so find it also while much is written.
pub(super) fn disagree(status: &StatusResponse) -> Option<(u64, u64)> {
    let up: Vec<_> = status.members.iter().filter(|member| member.reachable).collect();
    let differ = |a: &MemberStatus, b: &MemberStatus| {
        a.state_hash_index == b.state_hash_index && a.state_hash != b.state_hash
    };
    let pairs = up.iter().enumerate().flat_map(|(at, a)| up[at + 1..].iter().map(move |b| (a, b)));
    let now = pairs.into_iter().find(|(a, b)| differ(a, b)).map(|(a, b)| (id(a), id(b)));
    let found = up.iter().find_map(|it| Some((id(it), *differing(it).first()?)));
    now.or(found)
}

/// The members that this one, which leads, has found to have another state than its own.
pub(in crate::commands) fn differing(leader: &MemberStatus) -> &[u64] {
    leader.condition.as_ref().map_or(&[], |it| it.states_differ.as_slice())
}

fn of_states((a, b): (u64, u64)) -> Found {
    (
        format!(
            "nodes {a} and {b} disagree: after the same entries, their states differ, and so do their answers"
        ),
        format!(
            "keep the data directories of all nodes and report it; take a backup of node {a} and one of node {b} now: `quorate cluster backup FILE --nodes ITS-ADDRESS`"
        ),
    )
}

fn of_disks(status: &StatusResponse, leader: u64) -> Option<Found> {
    let low: Vec<_> = status.members.iter().filter(|it| it.disk_low).map(id).collect();
    let nodes = low.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
    let meaning = match low.contains(&leader) {
        _ if low.is_empty() => return None,
        true => format!(
            "the disk of node {nodes} is nearly full, and node {leader} leads: no registrations; the rest goes on"
        ),
        false => format!("the disk of node {nodes} is nearly full: writes may be refused"),
    };
    Some((meaning, "make room there; it goes on by itself".to_owned()))
}

/// Where every node that answers refuses all writes.
fn no_writes(status: &StatusResponse) -> Option<Found> {
    let up: Vec<_> = status.members.iter().filter(|it| it.reachable).collect();
    let refuse = |why| up.iter().filter(move |it| refusal(it) == why);
    // Only a leader says so.
    if let Some(leader) = refuse(WritesRefused::DiskFloor).next() {
        let why =
            "has less free than a quarter of its reserve: nothing is written, and no lease ends";
        let meaning = format!("the disk of node {}, which leads, {why}", id(leader));
        let next = "make room there; it goes on by itself (docs/operations.md#a-full-disk)";
        return Some((meaning, next.to_owned()));
    }
    let all_refuse = !up.is_empty() && refuse(WritesRefused::Audit).count() == up.len();
    all_refuse.then(|| {
        let why = up.first().map_or("", |it| why(it));
        (format!("every node that answers refuses writes: {why}"), AUDIT_NEXT.to_owned())
    })
}

/// In the node's own words.
pub(in crate::commands) fn why(status: &MemberStatus) -> &str {
    status.condition.as_ref().map_or("", |it| it.writes_refused_why.as_str())
}

/// Where some writes are refused. Of disks and of time that stands still, others tell.
fn of_refused(status: &StatusResponse) -> Option<Found> {
    let refuse = |why| status.members.iter().filter(move |it| it.reachable && refusal(it) == why);
    let audit = refuse(WritesRefused::Audit).map(|it| {
        let meaning = format!("node {} refuses the writes that come to it: {}", id(it), why(it));
        (meaning, AUDIT_NEXT.to_owned())
    });
    let full = refuse(WritesRefused::StateFull).map(|it| {
        (format!("registrations are refused, the rest goes on: {}", why(it)), FULL_NEXT.to_owned())
    });
    audit.chain(full).next()
}

fn of_faults(faults: &[String]) -> Found {
    (faults.join("; "), "the log of that node says why".to_owned())
}

/// What is wrong with members that answer and follow the leader.
fn of_members(status: &StatusResponse) -> Option<Found> {
    let members = || status.members.iter().filter(|it| it.reachable);
    let condition = |it: &MemberStatus| it.condition.clone().unwrap_or_default();
    let lags = members().find(|it| it.lag > LAG_MAX).map(|it| {
        let meaning = format!("node {} lags: it has {} entries to apply", id(it), it.lag);
        (meaning, "its log says why: a full or slow disk, or a slow network".to_owned())
    });
    let held = members().find(|it| condition(it).clock_held_ms > CLOCK_HELD_MAX_MS).map(|it| {
        let seconds = condition(it).clock_held_ms / 1_000;
        let meaning = format!("registry time stands still for {seconds} s: no lease ends");
        (meaning, format!("the log of node {}, which leads, says why; `quorate doctor`", id(it)))
    });
    let ends = |it: &MemberStatus| condition(it).certificate_ends_in_s;
    let certificate = members()
        .filter_map(|it| Some((ends(it).filter(|left| *left < CERTIFICATE_ENDS_S)?, id(it))))
        .min()
        .map(|(left, id)| {
            let meaning = match left {
                ..0 => format!("the certificate of node {id} has ended: others refuse it"),
                _ => format!("the certificate of node {id} ends in {}", ends_in(left)),
            };
            let next = format!(
                "make a new one where the CA is, for the hosts of the old one (`quorate certs node {id} --force`), and copy both files to the node"
            );
            (meaning, next)
        });
    let versions: BTreeSet<&str> = members().map(|it| it.version.as_str()).collect();
    let mixed = (versions.len() > 1).then(|| {
        let versions: Vec<_> = versions.into_iter().collect();
        let meaning = format!("the nodes run different versions: {}", versions.join(", "));
        (meaning, "let all run the same: start each again with the new one".to_owned())
    });
    lags.or(held).or(certificate).or(mixed)
}

#[cfg(test)]
mod tests;
