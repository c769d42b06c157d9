//! Which room inside a crate may name which. A room is a file of `src/` with its folder. It names
//! rooms that stand below it in its crate's table, and so none that names it.

use crate::circles::{Module, paths};
use crate::no_faults;
use crate::sources::{Source, file, rust};

/// A room and the rooms that it may name. Another arrow needs an argument in the commit that adds
/// it here.
type Room = (&'static str, &'static [&'static str]);

/// Of each crate with rooms, from the top down. `lib.rs` and `main.rs` may name all.
const ROOMS: [(&str, &[Room]); 7] = [
    (
        "quorate-node",
        &[
            (
                "server",
                &[
                    "api",
                    "upkeep",
                    "rescue",
                    "reload",
                    "node",
                    "access",
                    "audit",
                    "raft",
                    "peers",
                    "applied",
                    "net",
                    "meters",
                    "clock",
                    "free_space",
                    "error",
                    "config",
                    "types",
                    "runtime",
                ],
            ),
            (
                "api",
                &[
                    "node", "access", "audit", "raft", "peers", "applied", "net", "meters",
                    "error", "backup", "config", "types", "runtime", "wall",
                ],
            ),
            (
                "upkeep",
                &[
                    "node", "raft", "peers", "net", "clock", "error", "config", "types", "runtime",
                    "wall",
                ],
            ),
            ("rescue", &["applied", "backup", "types", "runtime", "wall"]),
            ("reload", &["access", "net", "error"]),
            (
                "node",
                &[
                    "access",
                    "audit",
                    "raft",
                    "peers",
                    "applied",
                    "net",
                    "meters",
                    "clock",
                    "free_space",
                    "error",
                    "config",
                    "types",
                    "runtime",
                ],
            ),
            ("access", &["net", "error", "runtime", "wall"]),
            ("audit", &["free_space", "error", "runtime"]),
            ("raft", &["peers", "applied", "meters", "free_space", "error", "types", "runtime"]),
            ("peers", &["net"]),
            ("applied", &["types"]),
            // What a simulation needs to be the same each time.
            ("net", &["error", "config", "runtime", "wall"]),
            ("meters", &[]),
            ("clock", &[]),
            ("free_space", &["error"]),
            ("error", &["config", "types"]),
            ("backup", &[]),
            ("config", &[]),
            ("types", &["runtime"]),
            ("runtime", &[]),
            ("wall", &[]),
        ],
    ),
    (
        "quorate-state",
        &[
            ("snapshot", &["registry", "spec", "level", "optional", "types"]),
            (
                "registry",
                &[
                    "event", "command", "hash", "tables", "checks", "spec", "level", "limits",
                    "types",
                ],
            ),
            ("forwarded", &["command", "spec", "limits", "types"]),
            ("event", &["command", "spec", "types"]),
            ("command", &["checks", "spec", "load", "level", "limits", "types"]),
            ("spec", &["checks", "load", "optional", "texts", "limits", "types"]),
            ("checks", &["limits", "types"]),
            ("load", &["limits"]),
            ("tables", &["types"]),
            ("hash", &[]),
            ("level", &[]),
            ("optional", &[]),
            ("texts", &[]),
            ("types", &["limits"]),
            ("limits", &[]),
        ],
    ),
    (
        "quorate-log",
        &[
            ("store", &["opening", "disk", "memory", "error", "panics", "stats"]),
            ("snapshots", &["opening", "disk", "error"]),
            ("opening", &["disk", "error", "panics"]),
            ("disk", &["error"]),
            ("identity", &["error"]),
            ("memory", &[]),
            ("error", &[]),
            ("panics", &[]),
            ("stats", &[]),
        ],
    ),
    (
        "quorate-client",
        &[
            ("environment", &["client", "nodes", "error"]),
            (
                "client",
                &[
                    "admin",
                    "calling",
                    "registering",
                    "following",
                    "reading",
                    "core",
                    "nodes",
                    "types",
                    "counters",
                    "error",
                ],
            ),
            ("admin", &["core", "nodes", "types", "error"]),
            ("calling", &["following", "nodes", "types", "error"]),
            ("registering", &["core", "nodes", "types", "counters", "error", "clock"]),
            ("following", &["reading", "core", "nodes", "types", "counters", "error", "clock"]),
            ("reading", &["nodes", "types", "error"]),
            ("core", &["nodes"]),
            ("nodes", &["counters", "error", "clock"]),
            ("types", &["error"]),
            ("counters", &[]),
            ("error", &[]),
            ("clock", &[]),
        ],
    ),
    (
        "quorate-dns",
        &[
            ("message", &["answer"]),
            ("answer", &["found", "names", "settings"]),
            ("found", &["names", "settings"]),
            ("names", &["settings"]),
            ("settings", &[]),
        ],
    ),
    (
        "quorate-cli",
        &[
            (
                "commands",
                &[
                    "connect",
                    "contexts",
                    "patience",
                    "config",
                    "args",
                    "authority",
                    "files",
                    "instance",
                    "parse",
                    "descriptors",
                    "failure",
                    "json",
                    "logging",
                    "output",
                    "signals",
                    "supervisor",
                    "token",
                    "variables",
                ],
            ),
            ("connect", &["args", "failure", "logging", "output", "variables"]),
            ("contexts", &["args", "failure", "parse"]),
            ("panics", &["failure", "output"]),
            ("patience", &["args", "output"]),
            ("config", &["args", "parse"]),
            ("args", &["instance", "parse", "logging", "output"]),
            ("authority", &["files"]),
            ("json", &["instance"]),
            ("instance", &["parse"]),
            ("descriptors", &[]),
            ("failure", &[]),
            ("files", &[]),
            ("logging", &["variables"]),
            ("output", &[]),
            ("parse", &[]),
            ("signals", &[]),
            ("supervisor", &[]),
            ("token", &[]),
            ("variables", &[]),
        ],
    ),
    (
        "quorate-bench",
        &[
            (
                "measure",
                &[
                    "report", "outcome", "table", "machine", "rows", "ceiling", "args", "workload",
                    "sample", "cluster", "disk", "programs", "wire", "certs", "output",
                ],
            ),
            (
                "scraping",
                &["args", "cluster", "disk", "machine", "number", "output", "programs", "workload"],
            ),
            ("report", &["outcome", "table", "rows", "number", "sample"]),
            ("outcome", &["machine", "rows", "ceiling"]),
            ("table", &["rows", "number", "sample"]),
            ("machine", &[]),
            ("rows", &["targets", "ceiling", "sample", "wire"]),
            ("targets", &["ceiling"]),
            (
                "ceiling",
                &["args", "number", "load", "disk", "ports", "process", "wire", "certs", "output"],
            ),
            ("args", &["workload"]),
            ("number", &[]),
            ("workload", &["sample", "load", "cluster", "process", "wire", "certs", "item"]),
            ("sample", &["load"]),
            ("load", &["cluster", "process"]),
            ("cluster", &["disk", "ports", "process", "programs", "wire", "certs", "output"]),
            ("disk", &[]),
            ("ports", &[]),
            ("process", &[]),
            ("programs", &["output"]),
            ("wire", &["certs", "item"]),
            ("certs", &[]),
            ("item", &[]),
            ("output", &[]),
        ],
    ),
];

/// The crates of the table.
pub(crate) fn crates_with_rooms() -> impl Iterator<Item = &'static str> {
    ROOMS.iter().map(|(name, _)| *name)
}

/// The room of a file, whether it is shipped or only compiled for tests; of what is not in `src/`,
/// its folder.
pub(crate) fn room_of(source: &Source) -> &str {
    let inside = source.path.splitn(3, '/').nth(2).unwrap_or_default();
    let inside = inside.strip_prefix("src/").unwrap_or(inside);
    inside.split('/').next().unwrap_or_default().trim_end_matches(".rs")
}

/// `crates/NAME/src/ROOM.rs` and below: the crate and the room. None for what is only compiled for
/// tests.
fn place(source: &Source) -> Option<(&str, &str)> {
    let (name, inside) = source.path.strip_prefix("crates/")?.split_once("/src/")?;
    let room = inside.split('/').next()?.trim_end_matches(".rs");
    if ["lib", "main"].contains(&room) {
        return None;
    }
    let is_program = ["quorate-cli", "quorate-bench"].contains(&name);
    let root = if is_program { "main" } else { "lib" };
    let root = file(&format!("crates/{name}/src/{root}.rs"));
    let for_tests = root.text.contains(&format!("#[cfg(test)]\nmod {room};"));
    (!for_tests).then_some((name, room))
}

/// The rooms that a line names: what stands behind each `crate::`, also in braces.
fn named(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    line.split("crate::").skip(1).for_each(|rest| paths(&[], rest, &mut found));
    found.into_iter().filter_map(|path: Module| path.into_iter().next()).collect()
}

#[test]
fn rooms_name_only_what_is_below_them() {
    let mut faults = Vec::new();
    for source in rust() {
        let of_rooms =
            |(name, _): &&(&str, _)| source.path.starts_with(&format!("crates/{name}/src/"));
        let Some((_, rooms)) = ROOMS.iter().find(of_rooms) else { continue };
        let Some((_, room)) = place(&source) else { continue };
        let Some((_, below)) = rooms.iter().find(|(of, _)| *of == room) else {
            faults.push(source.fault(1, &format!("the room {room} is not in ROOMS of tests/tidy")));
            continue;
        };
        for (line, text) in source.shipped_code() {
            let is_room = |other: &String| rooms.iter().any(|(of, _)| of == other);
            for other in named(text).into_iter().filter(is_room) {
                if other != room && !below.contains(&other.as_str()) {
                    let what =
                        format!("{room} names {other}; move it to a room that both may name");
                    faults.push(source.fault(line, &what));
                }
            }
        }
    }
    no_faults(&faults);
}

#[test]
fn names_of_rooms_are_found() {
    let line = "use crate::a::{B, c::D}; use crate::{e, f::G}; pub(in crate::h) fn i() {}";
    assert_eq!(named(line), ["a", "a", "e", "f", "h"]);
}

#[test]
fn the_table_of_rooms_has_no_circle() {
    for (name, rooms) in ROOMS {
        for (at, (room, below)) in rooms.iter().enumerate() {
            for other in *below {
                let place = rooms.iter().position(|(of, _)| of == other);
                assert!(
                    place > Some(at),
                    "{name}: {room} names {other}, which stands above it, or nowhere"
                );
            }
        }
    }
}
