//! `cluster status`: how the cluster is in one line, then each member, then what else there is to
//! know.

use std::io;
use std::time::Duration;

use quorate_client::{Member, MemberRole, MemberStatus, NodeState, Standing};
use quorate_proto::v1::{Predecessor, StatusResponse};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::args::ClientArgs;
use crate::authority::rfc3339;
use crate::commands::cluster::verdict::{Verdict, disagree, leader, verdict};
use crate::commands::rescue::ago;
use crate::commands::view::{Outsider, View, look, standing};
use crate::connect::{Stay, client};
use crate::failure::{FAILED, Failure};
use crate::json;
use crate::output::{self, Format, Table};
use crate::patience::{SAY_AFTER, told, trying};

/// A command that waits for the members asks this often.
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub(super) async fn run(wait: bool, exit_code: bool, args: &ClientArgs) -> Result<(), Failure> {
    let deadline = Instant::now() + args.timeout;
    let client = client(args, Stay::Once).await?;
    let mut view = told(trying("cluster status", args), look(&client, args, false)).await?;
    let mut goal = goal(&view.status);
    let mut said = false;
    while wait && !lacking(&view.status, goal).is_empty() && Instant::now() < deadline {
        if !said && deadline.duration_since(Instant::now()) + SAY_AFTER < args.timeout {
            said = true;
            let lacking = lacking(&view.status, goal).join("; ");
            output::note(&format!("waiting for up to {:?}: {lacking}", args.timeout));
        }
        sleep(LOOK_EVERY).await;
        view = look(&client, args, false).await?;
        goal = goal.or_else(|| self::goal(&view.status));
    }
    // Without a goal, nobody lags.
    let verdict = verdict(&view, &lacking(&view.status, Some(0)));
    output::as_far_as_read(show(&view, &verdict, args))?;
    let lacking = if wait { lacking(&view.status, goal) } else { Vec::new() };
    if lacking.is_empty() {
        return match verdict.health.code() {
            0 => Ok(()),
            code if exit_code => Err(Failure::of_program(code)),
            // The question was about the cluster, and nobody has answered it.
            _ if view.is_of_strangers() => Err(Failure::of_program(FAILED)),
            _ => Ok(()),
        };
    }
    Err(Failure::failed(format!(
        "not every member is there and follows a leader after {:?}:\n  {}\n  next: the log of such a node says why; --timeout waits longer",
        args.timeout,
        lacking.join("\n  ")
    )))
}

/// What every member is to have applied: what the furthest had when a leader was first seen.
fn goal(status: &StatusResponse) -> Option<u64> {
    let led = status.members.iter().any(|member| member.state() == NodeState::Leader);
    led.then(|| status.members.iter().map(|member| member.applied_index).max().unwrap_or(0))
}

/// Nothing is wrong with a member.
pub(in crate::commands) fn is_settled(status: &StatusResponse) -> bool {
    lacking(status, Some(0)).is_empty()
}

/// What is wrong, if not: a node leads, every member answers, has a part in it and what it should,
/// and has reported its address for clients.
fn lacking(status: &StatusResponse, goal: Option<u64>) -> Vec<String> {
    let Some(goal) = goal.filter(|_| leader(status).is_some() && !status.members.is_empty()) else {
        return vec!["no node leads".to_owned()];
    };
    let fault = |status: &MemberStatus| {
        let member = status.member.clone().unwrap_or_default();
        let (state, id) = (status.state(), member.id);
        let follows = matches!(state, NodeState::Leader | NodeState::Follower | NodeState::Learner)
            && standing(status.condition.as_ref()) != Standing::CutOff;
        if !status.reachable {
            Some(format!("node {id} does not answer: {}", status.error))
        } else if member.role() == MemberRole::Voter && state == NodeState::Learner {
            Some(format!(
                "node {id} should vote and has no part in the log: if its disk was lost, `quorate cluster replace {id} NEW-ID ADDRESS`"
            ))
        } else if !status.recovering.is_empty() {
            Some(format!("node {id}: {}", status.recovering))
        } else if !follows {
            Some(format!("node {id} follows no leader"))
        } else if status.applied_index < goal {
            Some(format!("node {id} lags: it has applied {} of {goal}", status.applied_index))
        } else if member.client_address.is_empty() {
            Some(format!("node {id} has not reported its addresses"))
        } else {
            None
        }
    };
    status.members.iter().filter_map(fault).collect()
}

/// What an operator should know of `voters` voters, of which `answer` answer.
pub(super) fn voter_warnings(voters: usize, answer: usize) -> Vec<String> {
    let mut warnings = Vec::new();
    if voters == 1 {
        warnings.push(
            "warning: one voter: when its disk is lost, so is everything; add two nodes (`quorate cluster add`)"
                .to_owned(),
        );
    } else if voters.is_multiple_of(2) && voters > 0 {
        warnings.push(format!(
            "warning: {voters} voters survive no more failures than {}: add a node, or remove one",
            voters - 1
        ));
    }
    if voters > 2 && answer == voters / 2 + 1 {
        warnings.push(format!(
            "warning: {answer} of {voters} voters answer: no failure to spare; bring the others back, or replace them"
        ));
    }
    warnings
}

fn show(view: &View, verdict: &Verdict, args: &ClientArgs) -> io::Result<()> {
    match args.output {
        Format::Json => output::json(&as_json(view, verdict))?,
        Format::Table => {
            output::line(&verdict.line(view.status.partial))?;
            if !verdict.next.is_empty() {
                output::line(&format!("  next: {}", verdict.next))?;
            }
            let header = view.status.header.clone().unwrap_or_default();
            if header.cluster_id == 0 {
                let others = view.outsiders.iter().filter(|other| other.id != header.node_id);
                for Outsider { id, condition } in others {
                    output::line(&format!("node {id} is in none either: {}", condition.reason))?;
                }
                return Ok(());
            }
            output::line("")?;
            table(&view.status).print()?;
            output::line("")?;
            if !view.status.partial {
                machines(&view.status, now()).print()?;
                output::line("")?;
            }
            for line in summary(view) {
                output::line(&line)?;
            }
        }
    }
    Ok(())
}

/// All that is known, for programs.
fn as_json(view: &View, verdict: &Verdict) -> serde_json::Value {
    let status = &view.status;
    let outsiders = view.outsiders.iter().map(
        |outsider| json!({ "id": outsider.id, "condition": json::condition(&outsider.condition) }),
    );
    json!({
        "health": verdict.health.word(),
        "meaning": verdict.meaning,
        "next": verdict.next,
        "header": json::header(&status.header.clone().unwrap_or_default()),
        "members": status.members.iter().map(json::member_status).collect::<Vec<_>>(),
        "outsiders": outsiders.collect::<Vec<_>>(),
        "services": status.services,
        "instances": status.instances,
        "leases": status.leases,
        "partial": status.partial,
        "level": status.level,
        "level_held": status.level_held,
        "cluster_name": status.cluster_name,
        "predecessors": status.predecessors.iter().map(json::predecessor).collect::<Vec<_>>(),
    })
}

/// The same, with its verdict.
pub(in crate::commands) fn judged(view: &View) -> serde_json::Value {
    as_json(view, &verdict(view, &lacking(&view.status, Some(0))))
}

/// What a member is now, in a word.
fn state(status: &MemberStatus) -> &'static str {
    let role = status.member.as_ref().map_or(MemberRole::Unspecified, Member::role);
    match (standing(status.condition.as_ref()), status.state()) {
        _ if !status.reachable => "DOWN",
        (Standing::CutOff, _) => "NO LEADER",
        (Standing::Joining, _) => "joining",
        (_, NodeState::Learner) if role == MemberRole::Learner => "observer",
        (_, state) => json::state(state),
    }
}

fn table(whole: &StatusResponse) -> Table {
    let mut table =
        Table::new(["ID", "STATE", "CLIENTS", "PEERS", "TERM", "APPLIED", "LAG", "HASH@INDEX"]);
    for status in &whole.members {
        let member = status.member.clone().unwrap_or_default();
        let is_known = status.reachable && !whole.partial;
        let known = |value: u64| if is_known { value.to_string() } else { "-".to_owned() };
        // Comparable between nodes at the same index only.
        let hash = format!("{}@{}", &json::hex(status.state_hash)[..8], status.state_hash_index);
        table.row([
            member.id.to_string(),
            state(status).to_owned(),
            member.client_address,
            if whole.partial { "-".to_owned() } else { member.peer_address },
            known(status.term),
            known(status.applied_index),
            known(status.lag),
            if is_known { hash } else { "-".to_owned() },
        ]);
    }
    table
}

/// What each member runs on; `now_ms` by the clock of this machine.
fn machines(whole: &StatusResponse, now_ms: u64) -> Table {
    let mut table = Table::new([
        "ID",
        "VERSION",
        "UP",
        "DISK FREE",
        "SNAPSHOT",
        "BACKUP",
        "CERTIFICATE",
        "CLOCK",
    ]);
    let none = || "-".to_owned();
    let since = |ms: u64| ago(Duration::from_millis(ms));
    for status in whole.members.iter().filter(|status| status.reachable) {
        let condition = status.condition.clone().unwrap_or_default();
        let low = if status.disk_low { " LOW" } else { "" };
        let leads = status.state() == NodeState::Leader;
        table.row([
            status.member.as_ref().map_or(0, |member| member.id).to_string(),
            status.version.clone(),
            since(status.uptime_ms),
            format!("{}{low}", size(status.disk_free_bytes)),
            condition.snapshot_written_ms.map_or_else(none, |at| since(now_ms.saturating_sub(at))),
            condition.backup_age_ms.map_or_else(none, since),
            condition.certificate_ends_in_s.map_or_else(none, ends),
            match condition.clock_held_ms {
                0 if leads => "runs".to_owned(),
                0 => none(),
                held => format!("HELD {}", since(held)),
            },
        ]);
    }
    table
}

/// When a certificate ends, in a word or two.
pub(crate) fn ends(in_s: i64) -> String {
    match u64::try_from(in_s) {
        Ok(left) => ago(Duration::from_secs(left)),
        Err(_) => "ENDED".to_owned(),
    }
}

/// Bytes for people.
pub(in crate::commands) fn size(bytes: u64) -> String {
    const MIB: u64 = 1024 * 1024;
    match bytes / MIB {
        mib if mib < 10 * 1024 => format!("{mib} MiB"),
        mib => format!("{} GiB", mib / 1024),
    }
}

fn now() -> u64 {
    crate::authority::now().as_millis() as u64
}

/// Its name, before its id; those who may not see the cluster are not told.
fn called(cluster_name: &str) -> String {
    match cluster_name {
        "" => String::new(),
        name => format!("{name} "),
    }
}

/// What the table does not show, and what an operator should know of it.
fn summary(view: &View) -> Vec<String> {
    let status = &view.status;
    let header = status.header.clone().unwrap_or_default();
    let leader = match leader(status) {
        None => "NO LEADER".to_owned(),
        Some(id) => format!("leader {id}"),
    };
    let mut lines = vec![
        format!(
            "cluster {}{}, {leader}, as node {} sees it",
            called(&status.cluster_name),
            json::hex(header.cluster_id),
            header.node_id
        ),
        match status.partial {
            true => "what it holds is told to operators, and to those who may read all".to_owned(),
            false => format!(
                "revision {}: {} services, {} instances, {} leases",
                header.revision, status.services, status.instances, status.leases
            ),
        },
    ];
    if let Some(Predecessor { cluster_id, taken_over_ms }) = status.predecessors.last() {
        let (before, at) = (json::hex(*cluster_id), rfc3339(Duration::from_millis(*taken_over_ms)));
        lines.push(format!("made from cluster {before} by `recover` or `restore`, {at}"));
    }
    for outsider in &view.outsiders {
        lines.push(format!("node {} is no member: {}", outsider.id, outsider.condition.reason));
    }
    for down in status.members.iter().filter(|member| !member.reachable) {
        let id = down.member.as_ref().map_or(0, |member| member.id);
        lines.push(format!("node {id} does not answer: {}", down.error));
    }
    for low in status.members.iter().filter(|member| member.disk_low) {
        let id = low.member.as_ref().map_or(0, |member| member.id);
        let mib = low.disk_free_bytes / 1024 / 1024;
        lines.push(format!(
            "warning: the disk of node {id} has {mib} MiB free, below its reserve: make room; it takes no registrations when it leads"
        ));
    }
    for recovering in status.members.iter().filter(|member| !member.recovering.is_empty()) {
        let id = recovering.member.as_ref().map_or(0, |member| member.id);
        lines.push(format!("node {id} does not vote as others do: {}", recovering.recovering));
    }
    if disagree(status).is_some() {
        lines.push(
            "NODES DISAGREE: same index, different hash; keep the data and report it".to_owned(),
        );
    }
    let votes = |status: &&MemberStatus| {
        status.member.as_ref().is_some_and(|member| member.role() == MemberRole::Voter)
    };
    let voters = status.members.iter().filter(votes);
    lines.extend(voter_warnings(voters.clone().count(), voters.filter(|v| v.reachable).count()));
    lines
}

#[cfg(test)]
mod tests;
