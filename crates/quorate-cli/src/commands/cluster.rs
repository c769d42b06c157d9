//! `cluster`: what operators do with the cluster itself.

mod overrides;
pub(super) mod status;
mod upgrade;
pub(super) mod verdict;

use std::path::{Path, PathBuf};

use quorate_client::{Admin, Member, MemberRole};
use serde_json::json;
use tokio::fs;
use tokio::io::AsyncWriteExt;

use crate::args::{ClientArgs, ClusterCommand};
use crate::commands::cluster::status::voter_warnings;
use crate::connect::{Stay, client};
use crate::failure::Failure;
use crate::json;
use crate::output::{self, Format, Table};
use crate::patience::{told, trying};

pub(crate) async fn run(command: ClusterCommand) -> Result<(), Failure> {
    match command {
        ClusterCommand::Status { wait, exit_code, client } => {
            status::run(wait, exit_code, &client).await
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
        ClusterCommand::Upgrade { command } => upgrade::run(command).await,
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
