//! Logging to stderr.

use clap::ValueEnum;
use tracing_subscriber::filter::{LevelFilter, ParseError, Targets};
use tracing_subscriber::prelude::*;

use crate::variables;

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// What a node logs unless QUORATE_LOG or RUST_LOG says otherwise.
pub(crate) const NODE: &str = "info";
/// What the nodes of `dev` log: its addresses and commands should stay in sight, and nodes that all
/// stop at once complain about each other.
pub(crate) const DEV: &str = "warn,quorate_node::server=error";
/// What the other commands log: their errors are written by themselves.
pub(crate) const CLIENT: &str = "error";

/// The Raft library's own lines are left out where nobody names it: while a peer is away they
/// repeat many times a second what the node says once, and what stops Raft is an error of the node.
const RAFT: &str = "openraft";

/// Starts logging; to be called once.
///
/// # Errors
/// QUORATE_LOG says what cannot be; in words. A log that is not as it was asked for would be missed
/// only later.
pub(crate) fn start(default: &str, format: LogFormat) -> Result<(), String> {
    let told = variables::text("QUORATE_LOG")?;
    // It is for all programs of its kind, and what `run` starts may take more of it.
    let common = variables::text("RUST_LOG").unwrap_or_default();
    let filter = filter(default, told, common)?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry();
    // Fails only where a test has installed another before.
    let _already_started = match format {
        LogFormat::Text => registry.with(lines.with_ansi(false).with_filter(filter)).try_init(),
        LogFormat::Json => registry.with(lines.json().with_filter(filter)).try_init(),
    };
    Ok(())
}

/// What is logged: as QUORATE_LOG says it, or RUST_LOG, or by default. An empty one is not set.
fn filter(default: &str, told: Option<String>, common: Option<String>) -> Result<Targets, String> {
    let is_set = |text: &String| !text.trim().is_empty();
    if let Some(text) = told.filter(is_set) {
        return parse(&text).map_err(|fault| format!("QUORATE_LOG={text}: {fault}"));
    }
    let common = common.filter(is_set).and_then(|text| targets(&text).ok());
    match common {
        Some(targets) => Ok(targets),
        None => targets(default),
    }
}

/// As [`targets`], but for words that would be taken for a part of the program and silence all
/// others.
fn parse(text: &str) -> Result<Targets, String> {
    for directive in directives(text) {
        let (part, level) = match directive.split_once('=') {
            Some((part, level)) => (Some(part), level),
            None => (None, directive),
        };
        if part == Some("") || level.parse::<LevelFilter>().is_err() {
            return Err(format!(
                "\"{directive}\" is neither a level (off, error, warn, info, debug, trace) nor a part with a level, as in info,quorate_node=debug"
            ));
        }
    }
    targets(text)
}

fn directives(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|directive| !directive.is_empty())
}

fn targets(text: &str) -> Result<Targets, String> {
    let names_raft = text.contains(RAFT);
    // The parser takes a space for a part of the name.
    let text = directives(text).collect::<Vec<_>>().join(",");
    // `EnvFilter` could also filter by span and field; it would bring a regex engine to be built.
    let targets: Targets = text.parse().map_err(|error: ParseError| error.to_string())?;
    Ok(if names_raft { targets } else { targets.with_target(RAFT, LevelFilter::OFF) })
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    const PEER: &str = "quorate_node::peers";
    const REPLICATION: &str = "openraft::replication";

    fn filtered(told: &str, common: &str) -> Result<Targets, String> {
        filter(NODE, Some(told.to_owned()), Some(common.to_owned()))
    }

    #[test]
    fn the_raft_library_is_silent_unless_it_is_named() {
        for (told, common, debug, raft) in [
            ("", "", false, false),
            (" ", "", false, false),
            ("debug", "", true, false),
            ("info,quorate_node=debug", "", true, false),
            ("info, quorate_node=DEBUG,", "", true, false),
            ("", "info,quorate_node=debug", true, false),
            ("info", "debug", false, false),
            ("debug,openraft=debug", "", true, true),
            ("info,openraft::replication=debug", "", false, true),
            // What is only for others.
            ("", "[span{field=1}]=debug", false, false),
        ] {
            let filter = filtered(told, common).unwrap();
            let is_on = |target: &str, level: Level| filter.would_enable(target, &level);
            assert!(is_on(PEER, Level::INFO), "{told}; {common}");
            assert_eq!(is_on(PEER, Level::DEBUG), debug, "{told}; {common}");
            assert_eq!(is_on(REPLICATION, Level::DEBUG), raft, "{told}; {common}");
            assert!(raft || !is_on(REPLICATION, Level::ERROR), "{told}; {common}");
        }
        let dev = filter(DEV, None, None).unwrap();
        assert!(dev.would_enable(PEER, &Level::WARN) && !dev.would_enable(PEER, &Level::INFO));
        assert!(!dev.would_enable(REPLICATION, &Level::ERROR));
    }

    /// It would silence all, or be passed over.
    #[test]
    fn what_cannot_be_is_refused() {
        for (told, named) in [
            ("debg", "\"debg\""),
            ("quorate_node", "\"quorate_node\""),
            ("info,quorate_node=debg", "\"quorate_node=debg\""),
            ("info,=debug", "\"=debug\""),
            ("info;debug", "\"info;debug\""),
        ] {
            let refused = filtered(told, "info").unwrap_err();
            assert!(refused.starts_with(&format!("QUORATE_LOG={told}: {named}")), "{refused}");
        }
    }
}
