//! Runs workloads, repetition by repetition, one peer after the other, and puts the figures
//! together.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::args::RunArgs;
use crate::ceiling;
use crate::certs::Certs;
use crate::cluster::{NODES, Programs};
use crate::disk::Workspace;
use crate::machine::Machine;
use crate::outcome::Outcome;
use crate::programs::Etcd;
use crate::rows::{counted, rows};
use crate::sample::Sample;
use crate::wire::Peer;
use crate::workload::{Setting, Workload};
use crate::{output, programs, report, table};

/// How long each limit of the machine is looked for.
const CEILING_SECONDS: f64 = 2.0;

/// Quorate alone.
pub(crate) async fn run(args: &RunArgs) -> Result<()> {
    let quorate = programs::quorate(args.quorate.as_deref())?;
    measure(args, args.tls, quorate, None, &[Peer::Quorate]).await
}

/// Quorate and etcd.
pub(crate) async fn compare(args: &RunArgs) -> Result<()> {
    // First what may not be there: to build ours takes minutes.
    let etcd = programs::etcd(args.etcd.as_deref())?;
    let quorate = programs::quorate(args.quorate.as_deref())?;
    measure(args, args.tls, quorate, Some(etcd), &[Peer::Quorate, Peer::Etcd]).await
}

/// Quorate with TLS and without.
pub(crate) async fn compare_with_plain(args: &RunArgs) -> Result<()> {
    let quorate = programs::quorate(args.quorate.as_deref())?;
    measure(args, true, quorate, None, &[Peer::Quorate, Peer::Plain]).await
}

async fn measure(
    args: &RunArgs,
    tls: bool,
    quorate: PathBuf,
    etcd: Option<Etcd>,
    peers: &[Peer],
) -> Result<()> {
    ensure!(args.scale > 0.0 && args.reps > 0 && args.connections > 0, "nothing to do");
    raise_file_limit();
    let workspace = Workspace::create(args.data_dir.as_deref(), args.keep)?;
    let machine = Machine::look(&quorate, etcd.as_ref().map(|etcd| etcd.path.as_path()));
    output::line(&machine.line());
    if peers.len() > 1 && args.reps % 2 == 1 {
        output::line("an odd number of repetitions: Quorate begins once more than the other");
    }
    if args.scale != 1.0 {
        output::line(&format!("scale {}: a look, not a figure", args.scale));
    }
    let certs = tls.then(|| Certs::make(&quorate, workspace.path(), NODES)).transpose()?;
    let programs = Programs { quorate, etcd, certs };
    let setting = Setting {
        programs: &programs,
        dir: workspace.path(),
        scale: args.scale,
        per_node: args.connections,
        large: args.large,
        keep: args.keep,
    };
    let workloads = if args.only.is_empty() { &Workload::ALL[..] } else { &args.only };
    let limits = if args.no_ceiling {
        Vec::new()
    } else {
        ceiling::measure(workspace.path(), setting.seconds(CEILING_SECONDS)).await?
    };
    ceiling::lines(&limits).iter().for_each(|line| output::line(line));
    let (samples, notes) = repeat(args.reps, workloads, peers, &setting).await;
    let outcome = Outcome {
        machine,
        repetitions: args.reps,
        scale: args.scale,
        connections_per_node: args.connections,
        tls,
        rows: rows(&samples, args.reps, &limits),
        limits,
        notes,
    };
    print(args, peers.get(1).map_or("-", |peer| peer.name()), &outcome)?;
    let faults = outcome.notes.len();
    ensure!(faults == 0, "{faults} times, a workload gave no figure");
    Ok(())
}

async fn repeat(
    reps: u32,
    workloads: &[Workload],
    peers: &[Peer],
    setting: &Setting<'_>,
) -> (Vec<(Peer, Sample)>, Vec<String>) {
    let (mut all, mut notes) = (Vec::new(), Vec::new());
    for repetition in 1..=reps {
        for workload in workloads {
            // The peer that begins alternates, so that neither always gets the machine as the other
            // left it.
            let turns: Vec<Peer> = if repetition % 2 == 1 {
                peers.to_vec()
            } else {
                peers.iter().rev().copied().collect()
            };
            for peer in turns {
                let begun = Instant::now();
                let ran = workload.run(setting, peer).await;
                let what = format!("{repetition}/{reps} {} {}", workload.name(), peer.name());
                output::note(&format!("{what}: {:.1} s", begun.elapsed().as_secs_f64()));
                match ran {
                    Ok(samples) => {
                        all.extend(samples.all.into_iter().map(|sample| (peer, sample)));
                    }
                    Err(error) => {
                        notes.push(format!("{what}: not measured: {error:#}"));
                        output::note(&notes[notes.len() - 1]);
                    }
                }
            }
        }
    }
    (all, notes)
}

fn print(args: &RunArgs, theirs: &str, outcome: &Outcome) -> Result<()> {
    table::table(&outcome.rows, theirs, args.details).iter().for_each(|line| output::line(line));
    output::line(&counted(&outcome.rows));
    outcome.notes.iter().for_each(|note| output::line(&format!("note: {note}")));
    let write = |path: &Option<PathBuf>, text: &dyn Fn() -> Result<String>| match path {
        Some(path) => {
            std::fs::write(path, text()?).with_context(|| format!("writing {}", path.display()))
        }
        None => Ok(()),
    };
    write(&args.json, &|| Ok(serde_json::to_string_pretty(outcome)?))?;
    write(&args.html, &|| Ok(report::html(outcome)))?;
    write(&args.markdown, &|| Ok(report::markdown(outcome, theirs)))
}

/// Thousands of connections need as many files as the system allows.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // What then does not fit fails by itself, with its reason.
    let _as_it_was = setrlimit(Resource::Nofile, raised);
}
