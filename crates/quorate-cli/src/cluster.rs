//! `cluster`: what operators do with the cluster itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_client::{Admin, InstanceOverride, InstanceStatus, Member, MemberStatus, NodeState};
use quorate_proto::v1::StatusResponse;
use serde_json::json;
use tokio::fs;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep};

use crate::args::{ClientArgs, ClusterCommand, OverrideArgs};
use crate::failure::Failure;
use crate::json;
use crate::output::{self, Format, Table};
use crate::register::{Stay, client, done};

/// Who waits for the members asks this often.
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub(crate) async fn run(command: ClusterCommand) -> Result<(), Failure> {
    match command {
        ClusterCommand::Status { wait, client } => status(wait, &client).await,
        ClusterCommand::Add { id, address, observer, client } => {
            let members = admin(&client).await?.add_node(id, &address, observer).await?;
            members_now(&client, &format!("node {id} is in"), &members)
        }
        ClusterCommand::Remove { id, client } => {
            let members = admin(&client).await?.remove_node(id).await?;
            members_now(&client, &format!("node {id} is out"), &members)
        }
        ClusterCommand::Replace { old, new, address, client } => {
            let members = admin(&client).await?.replace_node(old, new, &address).await?;
            members_now(&client, &format!("node {new} is in, node {old} is out"), &members)
        }
        ClusterCommand::TransferLeader { id, client } => {
            let leader = admin(&client).await?.transfer_leader(id).await?;
            match client.output {
                Format::Json => output::json(&json!({ "leader_id": leader }))?,
                Format::Table => output::line(&format!("node {leader} leads"))?,
            }
            Ok(())
        }
        ClusterCommand::Snapshot { client } => {
            let answer = admin(&client).await?.trigger_snapshot().await?;
            let (node, index) = (answer.header.unwrap_or_default().node_id, answer.snapshot_index);
            match client.output {
                Format::Json => output::json(&json!({ "node_id": node, "snapshot_index": index }))?,
                Format::Table => {
                    output::line(&format!("node {node} has a snapshot up to log index {index}"))?;
                }
            }
            Ok(())
        }
        ClusterCommand::Backup { file, client } => backup(&file, &client).await,
        ClusterCommand::Override(args) => set_override(args).await,
    }
}

async fn admin(args: &ClientArgs) -> Result<Admin, Failure> {
    Ok(client(args, Stay::Once).await?.admin())
}

async fn status(wait: bool, args: &ClientArgs) -> Result<(), Failure> {
    let deadline = Instant::now() + args.timeout;
    let admin = admin(args).await?;
    let mut status = admin.status(false).await?;
    while wait && !is_whole(&status) && Instant::now() < deadline {
        sleep(LOOK_EVERY).await;
        status = admin.status(false).await?;
    }
    show_status(&status, args)?;
    if wait && !is_whole(&status) {
        return Err(Failure::failed(format!(
            "not every member is there and follows a leader after {:?}\n  next: the log of a node that is DOWN tells why; --timeout waits longer",
            args.timeout
        )));
    }
    Ok(())
}

/// Whether a node leads, every member answers and has a part in it, and clients can be told where.
fn is_whole(status: &StatusResponse) -> bool {
    let led = status.header.as_ref().is_some_and(|header| header.leader_id != 0);
    let is_there = |status: &MemberStatus| {
        let told = status.member.as_ref().is_some_and(|member| !member.client_address.is_empty());
        let state = status.state();
        let follows = matches!(state, NodeState::Leader | NodeState::Follower | NodeState::Learner);
        told && status.reachable && follows
    };
    led && !status.members.is_empty() && status.members.iter().all(is_there)
}

fn show_status(status: &StatusResponse, args: &ClientArgs) -> Result<(), Failure> {
    match args.output {
        Format::Json => output::json(&json!({
            "header": json::header(&status.header.clone().unwrap_or_default()),
            "members": status.members.iter().map(json::member_status).collect::<Vec<_>>(),
            "services": status.services,
            "instances": status.instances,
            "leases": status.leases,
        }))?,
        Format::Table => {
            table(&status.members).print()?;
            output::line("")?;
            for line in summary(status) {
                output::line(&line)?;
            }
        }
    }
    Ok(())
}

fn table(members: &[MemberStatus]) -> Table {
    let mut table =
        Table::new(["ID", "STATE", "CLIENTS", "PEERS", "TERM", "APPLIED", "LAG", "HASH"]);
    for status in members {
        let member = status.member.clone().unwrap_or_default();
        let known = |value: u64| if status.reachable { value.to_string() } else { "-".to_owned() };
        let hash = json::hex(status.state_hash);
        table.row([
            member.id.to_string(),
            if status.reachable { json::state(status.state()) } else { "DOWN" }.to_owned(),
            member.client_address,
            member.peer_address,
            known(status.term),
            known(status.applied_index),
            known(status.lag),
            if status.reachable { hash[..8].to_owned() } else { "-".to_owned() },
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
        format!(
            "revision {}: {} services, {} instances, {} leases",
            header.revision, status.services, status.instances, status.leases
        ),
    ];
    for down in status.members.iter().filter(|member| !member.reachable) {
        let id = down.member.as_ref().map_or(0, |member| member.id);
        lines.push(format!("node {id} does not answer: {}", down.error));
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
    Ok(())
}

/// Writes to a file beside the one named, which only gets its name when it is whole and on the disk.
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

async fn set_override(args: OverrideArgs) -> Result<(), Failure> {
    let admin = admin(&args.client).await?;
    if args.clear {
        admin.clear_override(&args.service, &args.id).await?;
        return done(&args.client, "cleared the override of", &args.service, &args.id);
    }
    let decision = InstanceOverride {
        status: args.status.unwrap_or(InstanceStatus::Unspecified) as i32,
        weight: args.weight,
        reason: args.reason,
    };
    admin.set_override(&args.service, &args.id, decision).await?;
    done(&args.client, "overrode", &args.service, &args.id)
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
        MemberStatus { member, reachable, error, state: 2, state_hash, ..Default::default() }
    }

    #[test]
    fn a_cluster_is_whole_when_it_is_led_and_all_are_there() {
        let header = |leader_id| Some(ResponseHeader { leader_id, ..Default::default() });
        let whole = |leader_id, members| {
            let header = header(leader_id);
            is_whole(&StatusResponse { header, members, ..Default::default() })
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
