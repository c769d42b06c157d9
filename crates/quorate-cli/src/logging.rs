//! Logging to stderr.

use clap::ValueEnum;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// What a node logs unless QUORATE_LOG or RUST_LOG says otherwise. The Raft library's own lines are
/// left out: while a peer is away they repeat many times a second what the node says once, and what
/// stops Raft is an error of the node.
pub(crate) const NODE: &str = "info,openraft=off";
/// What the nodes of `dev` log: its addresses and commands should stay in sight, and nodes that all
/// stop at once complain about each other.
pub(crate) const DEV: &str = "warn,openraft=off,quorate_node::server=error";
/// What the other commands log: their errors are written by themselves.
pub(crate) const CLIENT: &str = "error";

/// Starts logging; to be called once.
pub(crate) fn start(default: &str, format: LogFormat) {
    let variables = ["QUORATE_LOG", "RUST_LOG"];
    let told = variables.iter().find_map(|name| std::env::var(name).ok()?.parse().ok());
    // `EnvFilter` could also filter by span and field; it would bring a regex engine to be built.
    let filter: Targets = told.or_else(|| default.parse().ok()).unwrap_or_default();
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry();
    // Fails only where a test has installed another before.
    let _already_started = match format {
        LogFormat::Text => registry.with(lines.with_ansi(false).with_filter(filter)).try_init(),
        LogFormat::Json => registry.with(lines.json().with_filter(filter)).try_init(),
    };
}
