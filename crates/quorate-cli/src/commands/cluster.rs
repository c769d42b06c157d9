//! `cluster`: what operators do with the cluster itself.

mod overrides;
mod verdict;

use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_client::{Admin, Member, MemberRole, MemberStatus, NodeState};
use quorate_proto::v1::StatusResponse;
use serde_json::json;
use tokio::fs;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep};

use crate::args::{ClientArgs, ClusterCommand};
use crate::commands::cluster::verdict::{Verdict, verdict};
use crate::connect::{Stay, client};
use crate::failure::Failure;
use crate::json;
use crate::output::{self, Format, Table};
use crate::patience::{SAY_AFTER, told, trying};

/// A command that waits for the members asks this often.
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub(crate) async fn run(command: ClusterCommand) -> Result<(), Failure> {
    match command {
        ClusterCommand::Status { wait, exit_code, client } => {
            status(wait, exit_code, &client).await
        }
        ClusterCommand::Add { id, address, observer, client } => {
            let admin = answering(&client, "cluster add").await?;
            let what = format!("cluster add: waiting until node {id} has caught up");
            let members = told(what, admin.add_node(id, &address, observer)).await?;
            members_now(&client, &format!("node {id} is in"), &members)
        }
        ClusterCommand::Remove { id, client } => {
            let admin = admin(&client).await?;
            let removal = admin.remove_node(id);
            let members = told(trying("cluster remove", &client), removal).await?;
            members_now(&client, &format!("node {id} is out"), &members)
        }
        ClusterCommand::Replace { old, new, address, client } => {
            let admin = answering(&client, "cluster replace").await?;
            let what = format!("cluster replace: waiting until node {new} has caught up");
            let members = told(what, admin.replace_node(old, new, &address)).await?;
            members_now(&client, &format!("node {new} is in, node {old} is out"), &members)
        }
        ClusterCommand::TransferLeader { id, client } => {
            let admin = admin(&client).await?;
            let transfer = admin.transfer_leader(id);
            let leader = told(trying("cluster transfer-leader", &client), transfer).await?;
            match client.output {
                Format::Json => output::json(&json!({ "leader_id": leader }))?,
                Format::Table => output::line(&format!("node {leader} leads"))?,
            }
            Ok(())
        }
        ClusterCommand::Snapshot { client } => {
            let admin = admin(&client).await?;
            let what = "cluster snapshot: waiting for a node to have built it".to_owned();
            let answer = told(what, admin.trigger_snapshot()).await?;
            let (node, index) = (answer.header.unwrap_or_default().node_id, answer.snapshot_index);
            match client.output {
                Format::Json => output::json(&json!({ "node_id": node, "snapshot_index": index }))?,
                Format::Table => {
                    output::line(&format!("node {node} has a snapshot up to log index {index}"))?;
                }
            }
            Ok(())
        }
        ClusterCommand::Backup { file, client } => {
            let what = "cluster backup: waiting for a node to have sent it".to_owned();
            told(what, backup(&file, &client)).await
        }
        ClusterCommand::Override(args) => {
            told(trying("cluster override", &args.client), overrides::set(args)).await
        }
        ClusterCommand::Overrides { client } => {
            told(trying("cluster overrides", &client), overrides::list(&client)).await
        }
    }
}

async fn admin(args: &ClientArgs) -> Result<Admin, Failure> {
    Ok(client(args, Stay::Once).await?.admin())
}

/// The same for what may take longer than `--timeout`: that is only begun where a quorum answers.
async fn answering(args: &ClientArgs, what: &str) -> Result<Admin, Failure> {
    let client = client(args, Stay::Once).await?;
    // A small answer that takes a quorum.
    told(trying(what, args), client.dependents("quorate")).await?;
    Ok(client.admin())
}

async fn status(wait: bool, exit_code: bool, args: &ClientArgs) -> Result<(), Failure> {
    let deadline = Instant::now() + args.timeout;
    let admin = admin(args).await?;
    let mut status = told(trying("cluster status", args), admin.status(false)).await?;
    let mut goal = goal(&status);
    let mut said = false;
    while wait && !lacking(&status, goal).is_empty() && Instant::now() < deadline {
        if !said && deadline.duration_since(Instant::now()) + SAY_AFTER < args.timeout {
            said = true;
            let lacking = lacking(&status, goal).join("; ");
            output::note(&format!("waiting for up to {:?}: {lacking}", args.timeout));
        }
        sleep(LOOK_EVERY).await;
        status = admin.status(false).await?;
        goal = goal.or_else(|| self::goal(&status));
    }
    // Without a goal, nobody lags.
    let verdict = verdict(&status, &lacking(&status, Some(0)));
    show_status(&status, &verdict, args)?;
    let lacking = if wait { lacking(&status, goal) } else { Vec::new() };
    if lacking.is_empty() {
        return match verdict.health.code() {
            0 => Ok(()),
            code if exit_code => Err(Failure::of_program(code)),
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

/// What is wrong, if not: a node leads, every member answers, has a part in it and what it should,
/// and has reported its address for clients.
fn lacking(status: &StatusResponse, goal: Option<u64>) -> Vec<String> {
    let led = status.header.as_ref().is_some_and(|header| header.leader_id != 0);
    let Some(goal) = goal.filter(|_| led && !status.members.is_empty()) else {
        return vec!["no node leads".to_owned()];
    };
    let fault = |status: &MemberStatus| {
        let member = status.member.clone().unwrap_or_default();
        let (state, id) = (status.state(), member.id);
        let follows = matches!(state, NodeState::Leader | NodeState::Follower | NodeState::Learner);
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
fn voter_warnings(voters: usize, answer: usize) -> Vec<String> {
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

fn show_status(
    status: &StatusResponse,
    verdict: &Verdict,
    args: &ClientArgs,
) -> Result<(), Failure> {
    match args.output {
        Format::Json => output::json(&json!({
            "health": verdict.health.word(),
            "meaning": verdict.meaning,
            "next": verdict.next,
            "header": json::header(&status.header.clone().unwrap_or_default()),
            "members": status.members.iter().map(json::member_status).collect::<Vec<_>>(),
            "services": status.services,
            "instances": status.instances,
            "leases": status.leases,
            "partial": status.partial,
        }))?,
        Format::Table => {
            output::line(&format!("{}: {}", verdict.health.word(), verdict.meaning))?;
            if !verdict.next.is_empty() {
                output::line(&format!("  next: {}", verdict.next))?;
            }
            output::line("")?;
            table(status).print()?;
            output::line("")?;
            for line in summary(status) {
                output::line(&line)?;
            }
        }
    }
    Ok(())
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
            if status.reachable { json::state(status.state()) } else { "DOWN" }.to_owned(),
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

/// What the table does not show, and what an operator should know of it.
fn summary(status: &StatusResponse) -> Vec<String> {
    let header = status.header.clone().unwrap_or_default();
    let leader = match header.leader_id {
        0 => "NO LEADER".to_owned(),
        id => format!("leader {id}"),
    };
    let mut lines = vec![
        format!(
            "cluster {}, {leader}, as node {} sees it",
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
    let up: Vec<_> = status.members.iter().filter(|member| member.reachable).collect();
    let differ = |a: &&MemberStatus, b: &&MemberStatus| {
        a.state_hash_index == b.state_hash_index && a.state_hash != b.state_hash
    };
    if up.iter().any(|a| up.iter().any(|b| differ(a, b))) {
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

fn members_now(args: &ClientArgs, what: &str, members: &[Member]) -> Result<(), Failure> {
    match args.output {
        Format::Json => {
            let members: Vec<_> = members.iter().map(json::member).collect();
            output::json(&json!({ "members": members }))?;
        }
        Format::Table => {
            output::line(what)?;
            let mut table = Table::new(["ID", "ROLE", "CLIENTS", "PEERS"]);
            for member in members {
                table.row([
                    member.id.to_string(),
                    json::role(member.role()).to_owned(),
                    member.client_address.clone(),
                    member.peer_address.clone(),
                ]);
            }
            table.print()?;
        }
    }
    // Which voters answer is not known here: the silent ones were no reason to refuse.
    let voters = members.iter().filter(|member| member.role() == MemberRole::Voter).count();
    for warning in voter_warnings(voters, voters) {
        output::note(&warning);
    }
    Ok(())
}

/// Writes to a file beside the one named, which only gets its name when it is whole and on the
/// disk.
async fn backup(file: &Path, args: &ClientArgs) -> Result<(), Failure> {
    let exists = fs::try_exists(file).await.map_err(|error| on_file(file, &error))?;
    if exists {
        return Err(Failure::failed(format!(
            "{} exists\n  next: name another file, or move that one away",
            file.display()
        )));
    }
    let mut partial = file.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let written = write_backup(&partial, args).await;
    let result = match written {
        Ok(written) => fs::rename(&partial, file)
            .await
            .map_err(|error| on_file(file, &error))
            .map(|()| written),
        Err(failure) => Err(failure),
    };
    let (bytes, index) = match result {
        Ok(written) => written,
        Err(failure) => {
            // It may not even have been made.
            let _best_effort = fs::remove_file(&partial).await;
            return Err(failure);
        }
    };
    match args.output {
        Format::Json => output::json(&json!({
            "file": file.display().to_string(),
            "bytes": bytes,
            "applied_index": index,
        }))?,
        Format::Table => {
            let file = file.display();
            output::line(&format!("{file}: {bytes} bytes, up to log index {index}"))?;
        }
    }
    Ok(())
}

async fn write_backup(partial: &Path, args: &ClientArgs) -> Result<(u64, u64), Failure> {
    let mut backup = admin(args).await?.backup().await?;
    let mut out = fs::File::create(partial).await.map_err(|error| on_file(partial, &error))?;
    let mut bytes = 0;
    let mut promised = None;
    while let Some(chunk) = backup.next().await? {
        // The first one speaks for the whole.
        promised.get_or_insert((chunk.total_bytes, chunk.applied_index));
        out.write_all(&chunk.data).await.map_err(|error| on_file(partial, &error))?;
        bytes += chunk.data.len() as u64;
    }
    let (expected, index) = promised.unwrap_or_default();
    if bytes != expected || bytes == 0 {
        return Err(Failure::failed(format!(
            "the backup broke off after {bytes} of {expected} bytes\n  next: try again"
        )));
    }
    out.sync_all().await.map_err(|error| on_file(partial, &error))?;
    Ok((bytes, index))
}

fn on_file(file: &Path, error: &std::io::Error) -> Failure {
    Failure::failed(format!("{}: {error}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_client::ResponseHeader;

    fn member(id: u64, reachable: bool, state_hash: u64) -> MemberStatus {
        let member = Member {
            id,
            client_address: format!("10.0.0.{id}:7001"),
            peer_address: format!("10.0.0.{id}:7101"),
            role: 1,
        };
        let (member, error) = (Some(member), "connection refused".to_owned());
        let (state, applied_index) = (NodeState::Follower.into(), 40);
        MemberStatus {
            member,
            reachable,
            error,
            state,
            state_hash,
            applied_index,
            ..Default::default()
        }
    }

    #[test]
    fn a_cluster_is_whole_when_it_is_led_and_all_are_there() {
        let header = |leader_id| Some(ResponseHeader { leader_id, ..Default::default() });
        let whole = |leader_id, members| {
            let header = header(leader_id);
            let status = StatusResponse { header, members, ..Default::default() };
            lacking(&status, Some(40)).is_empty()
        };
        assert!(whole(2, vec![member(1, true, 5), member(2, true, 5)]));
        assert!(!whole(0, vec![member(1, true, 5), member(2, true, 5)]));
        assert!(!whole(2, vec![member(1, false, 5), member(2, true, 5)]));
        assert!(!whole(2, Vec::new()));
        let candidate = MemberStatus { state: NodeState::Candidate.into(), ..member(1, true, 5) };
        assert!(!whole(2, vec![candidate, member(2, true, 5)]));
        let mut unannounced = member(1, true, 5);
        unannounced.member.as_mut().unwrap().client_address.clear();
        assert!(!whole(2, vec![unannounced, member(2, true, 5)]));
        let lagging = MemberStatus { applied_index: 39, ..member(1, true, 5) };
        assert!(!whole(2, vec![lagging, member(2, true, 5)]), "its log lags");
        let blank = MemberStatus { state: NodeState::Learner.into(), ..member(1, true, 5) };
        assert!(!whole(2, vec![blank.clone(), member(2, true, 5)]), "a voter without its disk");
        let mut observer = blank;
        observer.member.as_mut().unwrap().set_role(MemberRole::Learner);
        assert!(whole(2, vec![observer, member(2, true, 5)]));
    }

    #[test]
    fn the_goal_is_set_when_a_leader_is_seen() {
        let status = |members| StatusResponse { members, ..Default::default() };
        assert_eq!(goal(&status(vec![member(1, true, 5)])), None);
        let leader = MemberStatus {
            state: NodeState::Leader.into(),
            applied_index: 44,
            ..member(2, true, 5)
        };
        assert_eq!(goal(&status(vec![member(1, true, 5), leader])), Some(44));
    }

    #[test]
    fn voters_that_leave_no_room_for_failures_are_warned_of() {
        let warned = |voters, answer| voter_warnings(voters, answer).join("\n");
        assert_eq!([warned(3, 3), warned(5, 4)], [""; 2]);
        assert!(warned(1, 1).contains("one voter"));
        assert!(warned(2, 2).contains("no more failures than 1"));
        assert!(warned(4, 4).contains("no more failures than 3"));
        assert!(warned(3, 2).contains("2 of 3 voters answer: no failure to spare"));
        assert!(warned(5, 3).contains("no failure to spare"));
    }

    #[test]
    fn an_operator_sees_what_is_wrong() {
        let header = Some(ResponseHeader { cluster_id: 0xab, node_id: 1, ..Default::default() });
        let members = vec![member(1, true, 5), member(2, true, 6), member(3, false, 0)];
        let text = summary(&StatusResponse { header, members, ..Default::default() }).join("\n");
        assert!(text.contains("NO LEADER"), "{text}");
        assert!(text.contains("node 3 does not answer: connection refused"), "{text}");
        assert!(text.contains("NODES DISAGREE"), "{text}");

        let members = vec![member(1, true, 5), member(2, true, 5), member(3, false, 0)];
        let header = Some(ResponseHeader { leader_id: 2, ..Default::default() });
        let text = summary(&StatusResponse { header, members, ..Default::default() }).join("\n");
        assert!(text.contains("leader 2") && !text.contains("DISAGREE"), "{text}");
    }
}
