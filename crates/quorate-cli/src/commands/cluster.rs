//! `cluster`: what operators do with the cluster itself.

mod overrides;
mod partial;
pub(super) mod status;
mod upgrade;
pub(super) mod verdict;

use std::path::Path;
use std::time::Duration;

use quorate_client::{Admin, Error, Member, MemberRole};
use quorate_node::rescue::{Backup, RescueError};
use serde_json::json;
use tempfile::NamedTempFile;
use tokio::fs;
use tokio::io::AsyncWriteExt;

use crate::args::{ClientArgs, ClusterCommand};
use crate::commands::cluster::status::voter_warnings;
use crate::commands::rescue::ago;
use crate::connect::{Stay, client};
use crate::failure::{Failure, chain};
use crate::files;
use crate::json;
use crate::output::{self, Format, Table};
use crate::patience::{told, trying};
use crate::signals::Stop;

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
            let admin = answering_alone(&client, "cluster snapshot").await?;
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
        ClusterCommand::Backup { file, local, client } => {
            let admin = match local {
                true => answering_alone(&client, "cluster backup").await?,
                false => answering(&client, "cluster backup").await?,
            };
            let what = "cluster backup: waiting for a node to have sent it".to_owned();
            told(what, backup(&file, local, &client, &admin)).await
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

/// An [`admin`] for what may take longer than `--timeout`: that is only begun where a quorum
/// answers.
async fn answering(args: &ClientArgs, what: &'static str) -> Result<Admin, Failure> {
    let client = client(args, Stay::Once).await?;
    // A small answer that takes a quorum.
    let asked = told(trying(what, args), client.dependents("quorate")).await;
    asked.map_err(|error| of_command(what, error))?;
    Ok(client.admin())
}

/// The same for what one node does.
async fn answering_alone(args: &ClientArgs, what: &'static str) -> Result<Admin, Failure> {
    let admin = admin(args).await?;
    told(trying(what, args), admin.status(true)).await?;
    Ok(admin)
}

/// What was asked for first was not what the operator wanted.
fn of_command(operation: &'static str, error: Error) -> Error {
    match error {
        Error::Unreachable { within, tried, .. } => Error::Unreachable { operation, within, tried },
        Error::Rejected { code, message, .. } => Error::Rejected { operation, code, message },
        error => error,
    }
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

/// Writes to a file of its own beside the one named, which only gets its name when it is whole and
/// on the disk. Nobody but its owner can read it, for all that is registered stands in it.
async fn backup(file: &Path, local: bool, args: &ClientArgs, admin: &Admin) -> Result<(), Failure> {
    let exists = fs::try_exists(file).await.map_err(|error| on_file(file, &error))?;
    if exists {
        return Err(is_there(file));
    }
    // Caught from here on: a process that a signal ends takes nothing away.
    let mut stop = Stop::listen()?;
    let dir = files::dir_of(file);
    partial::remove_left(dir);
    let partial = partial::begin(file).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            Failure::failed(format!("{}: there is no such directory", dir.display()))
        }
        _ => on_file(dir, &error),
    })?;
    let Sent { bytes, index, node, age_ms } = tokio::select! {
        written = write_backup(&partial, local, admin) => written?,
        () = stop.requested() => {
            return Err(Failure::failed("the backup was interrupted; nothing is left of it"));
        }
    };
    files::name(partial, file, false).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => is_there(file),
        _ => on_file(file, &error),
    })?;
    match args.output {
        Format::Json => output::json(&json!({
            "file": file.display().to_string(),
            "bytes": bytes,
            "applied_index": index,
            "node_id": node,
            "age_ms": Some(age_ms).filter(|age_ms| *age_ms != u64::MAX),
        }))?,
        Format::Table => {
            let file = file.display();
            output::line(&format!(
                "{file}: {bytes} bytes of node {node}, up to log index {index}"
            ))?;
        }
    }
    match age_ms {
        0 => {}
        u64::MAX => output::note(&format!(
            "warning: nobody knows how old that is: no leader has told node {node} how far it is since that node started"
        )),
        age_ms => output::note(&format!(
            "warning: what was acknowledged within the last {} may be missing: node {node} has not heard of it",
            ago(Duration::from_millis(age_ms).max(Duration::from_secs(1)))
        )),
    }
    Ok(())
}

/// A backup that has come whole.
#[derive(Default)]
struct Sent {
    bytes: u64,
    index: u64,
    /// The node that sent it.
    node: u64,
    /// How old it may be; the maximum: nobody knows.
    age_ms: u64,
}

async fn write_backup(
    partial: &NamedTempFile,
    local: bool,
    admin: &Admin,
) -> Result<Sent, Failure> {
    let mut backup = if local { admin.backup_local().await? } else { admin.backup().await? };
    let (out, partial) = (partial.as_file().try_clone(), partial.path());
    let mut out = fs::File::from_std(out.map_err(|error| on_file(partial, &error))?);
    let mut bytes = 0;
    let mut promised = None;
    while let Some(chunk) = backup.next().await? {
        // The first one speaks for the whole.
        let header = chunk.header.unwrap_or_default();
        let (node, age_ms) = (header.node_id, header.age_ms);
        promised.get_or_insert((
            chunk.total_bytes,
            Sent { bytes: 0, index: chunk.applied_index, node, age_ms },
        ));
        out.write_all(&chunk.data).await.map_err(|error| on_file(partial, &error))?;
        bytes += chunk.data.len() as u64;
    }
    let (expected, sent) = promised.unwrap_or_default();
    if bytes != expected || bytes == 0 {
        return Err(Failure::failed(format!(
            "the backup broke off after {bytes} of {expected} bytes\n  next: try again"
        )));
    }
    // What came of the last write is told by the flush alone, not by the sync.
    out.flush().await.map_err(|error| on_file(partial, &error))?;
    out.sync_all().await.map_err(|error| on_file(partial, &error))?;
    let written = out.metadata().await.map_err(|error| on_file(partial, &error))?.len();
    if written != bytes {
        let said = format!("{}: {written} of {bytes} bytes are in it", partial.display());
        return Err(Failure::failed(said));
    }
    check(partial, sent.node).await?;
    Ok(Sent { bytes, ..sent })
}

/// Reads it as `restore` will: who found it damaged then would have no other.
async fn check(partial: &Path, node: u64) -> Result<(), Failure> {
    let path = partial.to_owned();
    let checked = tokio::task::spawn_blocking(move || Backup::check(&path)).await;
    match checked.map_err(|error| Failure::failed(format!("cannot check the backup: {error}")))? {
        Ok(()) => Ok(()),
        // Nodes may be newer than who takes their backups.
        Err(RescueError::OtherRelease { .. }) => {
            output::note(&format!(
                "warning: node {node} is of a newer release than this command, which cannot check its backup: let \
                 `quorate backup inspect` of that release do so"
            ));
            Ok(())
        }
        Err(error @ RescueError::Io { .. }) => Err(Failure::failed(format!("{:#}", chain(error)))),
        Err(error) => Err(Failure::failed(format!(
            "the backup that node {node} sent came damaged, and nothing of it is kept: {}\n  \
             next: take it from another node (--nodes ADDRESS); if node {node} sends such a one again, its disk or its memory is bad: \
             replace it",
            chain(error).root_cause()
        ))),
    }
}

fn is_there(file: &Path) -> Failure {
    let next = "name another file, or move that one away";
    Failure::failed(format!("{} exists\n  next: {next}", file.display()))
}

fn on_file(file: &Path, error: &std::io::Error) -> Failure {
    Failure::failed(format!("{}: {error}", file.display()))
}
