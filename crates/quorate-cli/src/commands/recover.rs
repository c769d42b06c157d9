//! `recover`: what is left of a cluster that lost its majority, and a new cluster from the best of
//! it.

use std::time::{Duration, UNIX_EPOCH};

use quorate_node::NodeId;
use quorate_node::rescue::{self, Founded, Remains};
use serde_json::{Value, json};

use crate::args::RecoverArgs;
use crate::authority::{now, rfc3339};
use crate::commands::rescue::{ago, refused, start};
use crate::failure::Failure;
use crate::output::{self, Format, Table};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) async fn recover(args: &RecoverArgs) -> Result<(), Failure> {
    let scratch = tempfile::Builder::new().prefix("quorate-recover-").tempdir();
    let scratch = scratch.map_err(|error| {
        Failure::failed(format!(
            "cannot make a directory for copies of the logs in {}: {error}\n  next: set TMPDIR to a directory with some MiB more \
             room than the logs take",
            std::env::temp_dir().display()
        ))
    })?;
    let mut found = Vec::new();
    for (number, dir) in args.data_dirs.iter().enumerate() {
        if args.data_dirs[..number].contains(dir) {
            return Err(Failure::failed(format!("{} is named twice", dir.display())));
        }
        let copy = scratch.path().join(number.to_string());
        found.push(Remains::of(dir, &copy).await.map_err(refused)?);
    }
    let best = best(&found)?;
    let majority = majority(best, &found);
    let founded = match (args.accept_data_loss, &majority) {
        (true, Some(majority)) => return Err(not_needed(best, majority)),
        (true, None) => {
            is_not_before(now(), built_on(env!("QUORATE_VERSION")))?;
            Some(rescue::recover(best).await.map_err(refused)?)
        }
        (false, _) => None,
    };
    let loss = loss(best, &found, majority.as_deref());
    match args.output {
        Format::Json => output::json(&as_json(best, &found, &loss, founded))?,
        Format::Table => {
            table(&found).print()?;
            output::line("")?;
            for line in loss {
                output::line(&line)?;
            }
            match founded {
                None if majority.is_some() => output::line("nothing was changed")?,
                None => output::line(
                    "nothing was changed\n  next: the same command with --accept-data-loss, if the others are lost for good",
                )?,
                Some(founded) => {
                    output::line(&format!(
                        "{} is a new cluster, {}; what was there is in before-{} in it",
                        best.dir().display(),
                        founded.cluster_id,
                        founded.cluster_id
                    ))?;
                    start(&founded, best.dir(), " --cluster-name NAME")?;
                    output::line("  NAME: as before; leave that away if it had none")?;
                }
            }
        }
    }
    Ok(())
}

/// The day of the commit that this was built from, where the version has it.
fn built_on(version: &str) -> Option<&str> {
    let day = version.strip_suffix(')')?.rsplit(' ').next()?;
    let is_day =
        |at, byte: u8| if at == 4 || at == 7 { byte == b'-' } else { byte.is_ascii_digit() };
    (day.len() == 10 && day.bytes().enumerate().all(|(at, byte)| is_day(at, byte))).then_some(day)
}

/// Where the directory was copied with this clock, its files are as wrong. A commit's day is of
/// where it was made: it may begin up to a day before that of UTC.
fn is_not_before(now: Duration, built_on: Option<&str>) -> Result<(), Failure> {
    match built_on {
        Some(day) if rfc3339(now + DAY).as_str() < day => Err(Failure::failed(format!(
            "the clock of this machine says {}, but this program was built from a commit of {day}: nothing was changed\n  \
             next: set the clock; by it nodes of the old cluster that come back end or go on",
            rfc3339(now)
        ))),
        _ => Ok(()),
    }
}

/// The one whose log goes furthest, as Raft compares logs.
fn best(found: &[Remains]) -> Result<&Remains, Failure> {
    let first = &found[0];
    if let Some(other) = found.iter().find(|it| it.cluster_id() != first.cluster_id()) {
        return Err(Failure::failed(format!(
            "{} is of cluster {}, {} of cluster {}\n  next: name directories of one cluster",
            first.dir().display(),
            first.cluster_id(),
            other.dir().display(),
            other.cluster_id()
        )));
    }
    for (number, it) in found.iter().enumerate() {
        if let Some(same) = found[..number].iter().find(|same| same.node_id() == it.node_id()) {
            return Err(Failure::failed(format!(
                "{} and {} are both of node {}: one of them is a copy\n  next: name the one that the node ran on last",
                same.dir().display(),
                it.dir().display(),
                it.node_id()
            )));
        }
    }
    Ok(found.iter().max_by_key(|it| it.reaches()).unwrap_or(first))
}

/// That these directories are a majority's, if they are.
fn majority(best: &Remains, found: &[Remains]) -> Option<String> {
    let (voters, found): (_, Vec<_>) =
        (best.voters(), found.iter().map(Remains::node_id).collect());
    best.are_majority(&found).then(|| {
        let left = voters.iter().filter(|id| found.contains(id)).count();
        format!(
            "these are {left} of {} voters, a majority: nothing is lost, and nothing is to be recovered; start them again \
             (also on other machines: each with its own id and directory)",
            voters.len()
        )
    })
}

/// A new cluster would only leave the rest of the old one behind, which can run.
fn not_needed(best: &Remains, majority: &str) -> Failure {
    let alone = match best.voters().len() {
        1 => String::new(),
        _ => format!(
            "; if the others cannot run any more, name the best alone: --data-dir {}",
            best.dir().display()
        ),
    };
    Failure::failed(format!("{majority}\n  next: nothing was changed{alone}"))
}

/// What is known of what would be lost.
fn loss(best: &Remains, found: &[Remains], majority: Option<&str>) -> Vec<String> {
    let is_left = |id: &&NodeId| found.iter().any(|it| it.node_id() == **id);
    let lost: Vec<String> =
        best.voters().iter().filter(|id| !is_left(id)).map(ToString::to_string).collect();
    let (term, index) = best.reaches();
    let mut lines = vec![format!(
        "best: node {} in {}, up to entry {index} of term {term}",
        best.node_id(),
        best.dir().display()
    )];
    if let Some(majority) = majority {
        lines.push(majority.to_owned());
    } else {
        lines.push(format!(
            "may be lost: what was acknowledged by {} after entry {index} alone; how much that is, nobody can tell. \
             Registrations of clients that run come back by themselves; deregistrations, updates and overrides do not",
            match lost.as_slice() {
                [one] => format!("node {one}"),
                several => format!("nodes {}", several.join(", ")),
            }
        ));
        lines.push(
            "make sure that the others are off for good: with a majority of them running, there would be two clusters"
                .to_owned(),
        );
        lines.push(format!(
            "by this machine's clock it is {} now; set it before you go on, if that is wrong: by it nodes of the old cluster that come \
             back end or go on",
            rfc3339(now())
        ));
    }
    lines
}

fn written(remains: &Remains) -> Duration {
    remains.written().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn table(found: &[Remains]) -> Table {
    let heading =
        ["NODE", "TERM", "LAST", "COMMITTED", "REVISION", "INSTANCES", "WRITTEN", "DIRECTORY"];
    let mut table = Table::new(heading);
    for remains in found {
        let (term, index) = remains.reaches();
        let [_, instances, _] = remains.counts();
        table.row([
            remains.node_id().to_string(),
            term.to_string(),
            index.to_string(),
            remains.committed().to_string(),
            remains.revision().to_string(),
            instances.to_string(),
            format!("{} ago", ago(now().saturating_sub(written(remains)))),
            remains.dir().display().to_string(),
        ]);
    }
    table
}

fn as_json(best: &Remains, found: &[Remains], loss: &[String], founded: Option<Founded>) -> Value {
    let directories = found.iter().map(|remains| {
        let (term, index) = remains.reaches();
        let [services, instances, leases] = remains.counts();
        json!({
            "data_dir": remains.dir().display().to_string(),
            "node_id": remains.node_id(),
            "cluster_id": remains.cluster_id().to_string(),
            "term": term,
            "last_index": index,
            "committed_index": remains.committed(),
            "revision": remains.revision(),
            "services": services,
            "instances": instances,
            "leases": leases,
            "voters": remains.voters(),
            "written": rfc3339(written(remains)),
        })
    });
    json!({
        "directories": directories.collect::<Vec<_>>(),
        "best": best.dir().display().to_string(),
        "loss": loss,
        "founded": founded.map(|founded| json!({
            "cluster_id": founded.cluster_id.to_string(),
            "node_id": founded.node_id,
            "revision": founded.revision,
        })),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_from_before_this_program_was_made_is_wrong() {
        let built = built_on("0.2.0 (3f9c1d2e0 2026-11-28)");
        assert_eq!((built, built_on("0.2.0")), (Some("2026-11-28"), None));
        // As somebody who packages it may name the commit.
        for version in ["0.2.0 (unstable)", "0.2.0 (v2026-11-2)", "0.2.0 (deb 2026/11/28)"] {
            assert_eq!(built_on(version), None, "{version}");
        }
        let at = |days: u64| Duration::from_secs(days * 86_400);
        assert!(is_not_before(at(0), None).is_ok(), "nobody knows");
        // 1970, 2026-11-26, -27 and -28.
        let judged = [0, 20_783, 20_784, 20_785].map(|days| is_not_before(at(days), built).is_ok());
        assert_eq!(judged, [false, false, true, true]);
    }
}
