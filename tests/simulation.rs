//! A whole cluster, simulated from a seed: three nodes (real Raft, real gRPC, real state machine, real log on disk) on a
//! simulated network and simulated time (turmoil), with crashes, partitions, slow and stuck links and stalls, while
//! processes register, renew, restart and die, and others read and watch. Afterwards everything is healed, and has to
//! work again.
//!
//! - `cargo sim` (`cargo test -p quorate-cli --test simulation`) runs seeds 1, 2, ..
//! - `QUORATE_SIM_SEEDS=1000 cargo sim` runs so many of them.
//! - `QUORATE_SIM_SEED=123 cargo sim` runs one seed; a failing one prints this command.
//! - `QUORATE_SIM_LOG=info` shows what the nodes say.
//!
//! What a seed fixes: the faults and their moments, the network's delays, the election timeouts, what the processes do. What
//! it does not: in which order tokio polls the arms of a `select!` and hash maps iterate in libraries. So a replay has the
//! same faults at the same moments; a failure that needs a rare interleaving may take several replays.
//!
//! | file | duty |
//! |---|---|
//! | `plan` | what a seed means: the faults and when |
//! | `world` | one run |
//! | `net` | the simulated network under real gRPC |
//! | `process`, `reader`, `watcher` | the clients |
//! | `history` | what everybody did and saw |
//! | `invariants/*`, `liveness` | what must hold |

mod simulation {
    pub(crate) mod history;
    pub(crate) mod invariants;
    pub(crate) mod liveness;
    pub(crate) mod net;
    pub(crate) mod plan;
    pub(crate) mod process;
    pub(crate) mod reader;
    pub(crate) mod watcher;
    pub(crate) mod world;
}

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use simulation::plan::Plan;
use simulation::{invariants, world};

/// Seeds in a plain `cargo test`.
const SEEDS: u64 = 6;

#[test]
fn every_seed_keeps_every_promise() {
    init_log();
    let number = |name| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let (first, last) = match number("QUORATE_SIM_SEED") {
        Some(seed) => (seed, seed),
        None => (1, number("QUORATE_SIM_SEEDS").unwrap_or(SEEDS)),
    };
    let next = AtomicU64::new(first);
    let failed = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > last {
                        return;
                    }
                    if let Err(report) = run(seed) {
                        failed.lock().expect("no panic").push(report);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no panic");
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Runs a seed; what was wrong, and how to see it again.
fn run(seed: u64) -> Result<(), String> {
    let plan = Arc::new(Plan::new(seed));
    let started = Instant::now();
    let outcome = std::panic::catch_unwind(|| {
        let notes = world::run(&plan);
        let wrong = invariants::check(&plan, &notes);
        (notes, wrong)
    });
    let real_ms = started.elapsed().as_millis();
    let (notes, wrong) = outcome.map_err(|_| format!("panicked; {}", replay(seed, &plan)))?;
    say(&format!(
        "seed {seed}: {real_ms} ms, {} faults, {} revisions, {} writes, {} reads, {} resets, {} terms",
        plan.faults.len(),
        notes.told.len(),
        notes.calls.len(),
        notes.reads.len(),
        notes.resets,
        notes.leaders.len(),
    ));
    if wrong.is_empty() {
        return Ok(());
    }
    let trace = std::env::temp_dir().join(format!("quorate-sim-{seed}.log"));
    let _ = std::fs::write(&trace, notes.trace.join("\n"));
    let shown: Vec<_> = wrong.iter().take(20).map(|line| cut(line)).collect();
    Err(format!(
        "{} things wrong:\n  {}\n{}\nwhat happened: {}",
        wrong.len(),
        shown.join("\n  "),
        replay(seed, &plan),
        trace.display()
    ))
}

fn cut(line: &str) -> String {
    line.chars().take(800).collect()
}

fn replay(seed: u64, plan: &Plan) -> String {
    format!(
        "{plan}replay: QUORATE_SIM_SEED={seed} cargo test -p quorate-cli --test simulation every_seed"
    )
}

#[expect(
    clippy::print_stdout,
    reason = "the test's own report; shown with --nocapture or on failure"
)]
fn say(line: &str) {
    println!("{line}");
}

fn init_log() {
    let Ok(filter) = std::env::var("QUORATE_SIM_LOG") else { return };
    let log = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_timer(SimulatedTime)
        .with_writer(std::io::stderr);
    let _ = log.try_init();
}

struct SimulatedTime;

impl tracing_subscriber::fmt::time::FormatTime for SimulatedTime {
    fn format_time(
        &self,
        writer: &mut tracing_subscriber::fmt::format::Writer<'_>,
    ) -> std::fmt::Result {
        write!(writer, "{:>6} ms", simulation::history::now())
    }
}

#[test]
fn a_seed_has_one_plan() {
    for seed in 0..200 {
        let plan = Plan::new(seed);
        assert_eq!(plan, Plan::new(seed));
        assert!(plan.moments().iter().all(|at| *at <= simulation::plan::HEALED), "{plan}");
        assert!(plan.healthy(simulation::plan::HEALED), "{plan}");
    }
}
