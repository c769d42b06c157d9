//! `backup`, `restore`: what is done with backups, without a cluster.

use std::path::Path;
use std::time::Duration;

use quorate_node::NodeId;
use quorate_node::rescue::{self, Backup, Founded};
use serde_json::json;

use crate::args::{BackupCommand, RestoreArgs};
use crate::authority::{now, rfc3339};
use crate::failure::{Failure, chain, denied};
use crate::output::{self, Format, Table};

pub(crate) fn backup(command: &BackupCommand) -> Result<(), Failure> {
    let BackupCommand::Inspect { file, instances, output } = command;
    let backup = Backup::read(file).map_err(refused)?;
    match output {
        Format::Json => output::json(&as_json(&backup, file, *instances))?,
        Format::Table => {
            for line in lines(&backup) {
                output::line(&line)?;
            }
            if *instances {
                output::line("")?;
                table(&backup).print()?;
            }
        }
    }
    Ok(())
}

pub(crate) async fn restore(args: &RestoreArgs) -> Result<(), Failure> {
    let RestoreArgs { file, data_dir, id, output } = args;
    let id = NodeId::new(*id).ok_or_else(|| Failure::usage("--id 0: must be at least 1"))?;
    let backup = Backup::read(file).map_err(refused)?;
    let founded = rescue::restore(&backup, data_dir, id).await.map_err(refused)?;
    match output {
        Format::Json => output::json(&json!({
            "cluster_id": founded.cluster_id.to_string(),
            "node_id": founded.node_id.get(),
            "data_dir": data_dir.display().to_string(),
            "revision": founded.revision,
            "backup": as_json(&backup, file, false),
        }))?,
        Format::Table => {
            let [services, instances, leases] = backup.counts();
            output::line(&format!(
                "{} is a new cluster, {}, with what cluster {} had {}: {services} services, {instances} \
                 instances, {leases} leases",
                data_dir.display(),
                founded.cluster_id,
                backup.cluster_id(),
                age_of(&backup)
            ))?;
            output::line(
                "what was registered since then comes back by itself from clients that run; what nobody renews is gone \
                 after its TTL",
            )?;
            let name = match backup.cluster_name() {
                "quorate" => String::new(),
                name => format!(" --cluster-name {name}"),
            };
            start(&founded, data_dir, &name)?;
        }
    }
    Ok(())
}

/// What is to be done with a new cluster of one; `name`: the flag with its name, if it needs one.
pub(super) fn start(founded: &Founded, dir: &Path, name: &str) -> Result<(), Failure> {
    let (id, dir) = (founded.node_id, dir.display());
    if rustix::process::geteuid().is_root() {
        output::line(&format!(
            "  first: what was written there is root's; if the node runs as another user: chown -R USER {dir}"
        ))?;
    }
    output::line(&format!(
        "  next: quorate serve --id {id} --data-dir {dir}{name} --listen IP:PORT --peer-listen IP:PORT ...\n  \
         then: let two others join it, with empty directories: quorate serve --id NEW --join ITS-CLIENT-ADDRESS ..."
    ))?;
    Ok(())
}

fn lines(backup: &Backup) -> Vec<String> {
    let [services, instances, leases] = backup.counts();
    let taken = match taken(backup) {
        Some(at) => format!("{at} ({})", age_of(backup)),
        None => "nobody knows when (--local)".to_owned(),
    };
    let mut lines = vec![
        format!("cluster    {} ({})", backup.cluster_name(), backup.cluster_id()),
        format!("taken      {taken}, by node {}, quorate {}", backup.node_id(), backup.software()),
        format!("revision   {}, log index {}", backup.revision(), backup.applied_index()),
        format!("holds      {services} services, {instances} instances, {leases} leases"),
        format!("file       {} bytes, checksums verified", backup.bytes()),
    ];
    if let Some(before) = backup.predecessors().last() {
        lines.push(format!("before     this cluster was made from cluster {before}"));
    }
    lines
}

fn table(backup: &Backup) -> Table {
    let heading = ["NAMESPACE", "SERVICE", "ID", "STATUS", "TTL", "ENDPOINTS"];
    let mut table = Table::new(heading);
    for instance in backup.instances() {
        let endpoints: Vec<String> =
            instance.endpoints.iter().map(|(name, uri)| format!("{name}={uri}")).collect();
        table.row([
            instance.namespace,
            instance.service,
            instance.id,
            instance.status.to_owned(),
            format!("{:?}", Duration::from_millis(instance.ttl_ms)),
            endpoints.join("\n"),
        ]);
    }
    table
}

fn as_json(backup: &Backup, file: &Path, with_instances: bool) -> serde_json::Value {
    let [services, instances, leases] = backup.counts();
    let predecessors: Vec<String> = backup.predecessors().iter().map(ToString::to_string).collect();
    let mut value = json!({
        "file": file.display().to_string(),
        "bytes": backup.bytes(),
        "checksums": "verified",
        "cluster_name": backup.cluster_name(),
        "cluster_id": backup.cluster_id().to_string(),
        "predecessors": predecessors,
        "taken": taken(backup),
        "node_id": backup.node_id(),
        "version": backup.software(),
        "revision": backup.revision(),
        "applied_index": backup.applied_index(),
        "services": services,
        "instances": instances,
        "leases": leases,
    });
    if with_instances {
        let listed = backup.instances().map(|instance| {
            let endpoints: serde_json::Map<String, serde_json::Value> =
                instance.endpoints.into_iter().map(|(name, uri)| (name, uri.into())).collect();
            json!({
                "namespace": instance.namespace,
                "service": instance.service,
                "id": instance.id,
                "status": instance.status,
                "ttl_ms": instance.ttl_ms,
                "endpoints": endpoints,
            })
        });
        value["list"] = listed.collect();
    }
    value
}

/// When all was acknowledged that is in it; `None`: nobody knows.
fn taken(backup: &Backup) -> Option<String> {
    backup.taken_ms().map(|ms| rfc3339(Duration::from_millis(ms)))
}

/// How long ago that was, in the two largest units.
fn age_of(backup: &Backup) -> String {
    match backup.taken_ms() {
        Some(ms) => format!("{} ago", ago(now().saturating_sub(Duration::from_millis(ms)))),
        None => "at a time that nobody knows".to_owned(),
    }
}

pub(super) fn ago(age: Duration) -> String {
    let seconds = age.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

pub(super) fn refused(error: rescue::RescueError) -> Failure {
    let message = format!("{:#}", chain(error));
    Failure::failed(match denied(&message) {
        Some(who) => {
            format!("{message}\n  {who}\n  next: run this as the user that the node runs as")
        }
        None => message,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_told_in_two_units() {
        let told = |seconds| ago(Duration::from_secs(seconds));
        assert_eq!(told(0), "0 s");
        assert_eq!(told(59), "59 s");
        assert_eq!(told(60), "1 min");
        assert_eq!(told(7_260), "2 h 1 min");
        assert_eq!(told(90_000), "1 d 1 h");
    }
}
