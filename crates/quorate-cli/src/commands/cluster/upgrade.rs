//! `cluster upgrade`: the cluster's level, which says what its log and snapshots may hold.

use quorate_client::MemberStatus;
use quorate_proto::v1::StatusResponse;
use serde_json::json;

use crate::args::{ClientArgs, UpgradeCommand};
use crate::commands::cluster::verdict::id;
use crate::commands::view::look;
use crate::connect::{Stay, client};
use crate::failure::Failure;
use crate::output::{self, Format, Table};
use crate::patience::{told, trying};

pub(super) async fn run(command: UpgradeCommand) -> Result<(), Failure> {
    match command {
        UpgradeCommand::Status { client: args } => {
            let client = client(&args, Stay::Once).await?;
            let seen = look(&client, &args, false);
            show(&told(trying("cluster upgrade status", &args), seen).await?.status, &args)
        }
        UpgradeCommand::Finalize { client } => set(false, &client).await,
        UpgradeCommand::Hold { client } => set(true, &client).await,
    }
}

async fn set(hold: bool, args: &ClientArgs) -> Result<(), Failure> {
    let admin = client(args, Stay::Once).await?.admin();
    let level = told(trying("cluster upgrade", args), admin.upgrade(hold)).await?.level;
    let said = match hold {
        true => {
            format!("the cluster stays at level {level} until `quorate cluster upgrade finalize`")
        }
        false => {
            format!("the cluster is at level {level}, the highest that every member works at")
        }
    };
    match args.output {
        Format::Json => output::json(&json!({ "level": level, "held": hold }))?,
        Format::Table => output::line(&said)?,
    }
    Ok(())
}

fn show(status: &StatusResponse, args: &ClientArgs) -> Result<(), Failure> {
    if status.partial {
        return Err(Failure::failed(
            "the level is told to callers with the role operator; use such a token or certificate",
        ));
    }
    match args.output {
        Format::Json => output::json(&json!({
            "level": status.level,
            "held": status.level_held,
            "next": next(status),
            "members": status.members.iter().map(|member| json!({
                "id": id(member),
                "reachable": member.reachable,
                "version": member.version,
                "level_min": member.level_min,
                "level_max": member.level_max,
            })).collect::<Vec<_>>(),
        }))?,
        Format::Table => {
            let held = if status.level_held { ", and is held there" } else { "" };
            output::line(&format!("the cluster is at level {}{held}", status.level))?;
            output::line(&format!("  next: {}", next(status)))?;
            output::line("")?;
            let mut table = Table::new(["ID", "VERSION", "LEVELS"]);
            for member in &status.members {
                table.row(match member.reachable {
                    true => [
                        id(member).to_string(),
                        member.version.clone(),
                        format!("{} to {}", member.level_min, member.level_max),
                    ],
                    false => [id(member).to_string(), "DOWN".to_owned(), "-".to_owned()],
                });
            }
            table.print()?;
        }
    }
    Ok(())
}

/// What has to happen before the level rises.
fn next(status: &StatusResponse) -> String {
    let ids = |found: Vec<&MemberStatus>| {
        found.into_iter().map(|it| id(it).to_string()).collect::<Vec<_>>().join(", ")
    };
    let (up, down): (Vec<_>, Vec<_>) = status.members.iter().partition(|it| it.reachable);
    let highest = up.iter().map(|it| it.level_max).max().unwrap_or(status.level);
    let behind = up.iter().copied().filter(|it| it.level_max < highest).collect::<Vec<_>>();
    match highest > status.level {
        false => "nothing: no member works at a higher one".to_owned(),
        true if !behind.is_empty() => {
            let behind = ids(behind);
            format!("run a release that works at level {highest} on node {behind} too; each node can still go back")
        }
        true if !down.is_empty() => {
            format!("start node {}, or take it out: every member has to answer", ids(down))
        }
        true if status.level_held => {
            "`quorate cluster upgrade finalize` raises it; until then each node can go back to its release of before".to_owned()
        }
        true => format!(
            "it rises to {highest} by itself when all have worked at that for a while ([tunables] upgrade_after_ms), or with `quorate cluster upgrade finalize`; `quorate cluster upgrade hold` keeps it"
        ),
    }
}

#[cfg(test)]
mod tests {
    use quorate_client::Member;

    use super::*;

    #[test]
    fn what_comes_next_names_the_nodes_that_hold_it_up() {
        let status = |level_held, members: &[(bool, u32)]| {
            let members = (1..).zip(members).map(|(id, (reachable, level_max))| MemberStatus {
                member: Some(Member { id, ..Default::default() }),
                reachable: *reachable,
                level_min: 1,
                level_max: *level_max,
                ..Default::default()
            });
            StatusResponse { level: 1, level_held, members: members.collect(), ..<_>::default() }
        };
        for (status, words) in [
            (status(false, &[(true, 1); 3]), "nothing: no member"),
            (status(false, &[(true, 2), (true, 1), (true, 1)]), "on node 2, 3 too"),
            (status(false, &[(true, 2), (true, 2), (false, 0)]), "start node 3, or take"),
            (status(true, &[(true, 2); 3]), "finalize` raises it"),
            (status(false, &[(true, 2); 3]), "rises to 2 by itself"),
        ] {
            assert!(next(&status).contains(words), "{} for {words}", next(&status));
        }
    }
}
