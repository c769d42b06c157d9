//! Who inside a crate may name whom. A room is a file of `src/` with its folder; it uses rooms below it, and never one that
//! uses it.

use std::collections::{BTreeMap, BTreeSet};

use crate::no_faults;
use crate::sources::{Source, rust};

/// Each room of a crate with the rooms that it may name. Another arrow needs an argument in the commit that adds it here.
/// `lib.rs` and `main.rs` may name all.
type Rooms = &'static [(&'static str, &'static [&'static str])];

const ROOMS: [(&str, Rooms); 4] = [
    (
        "quorate-node",
        &[
            (
                "server",
                &[
                    "api", "upkeep", "node", "raft", "peers", "applied", "net", "clock", "config",
                    "error", "free_space", "types", "runtime",
                ],
            ),
            (
                "api",
                &["node", "raft", "peers", "applied", "net", "config", "error", "types", "runtime"],
            ),
            (
                "upkeep",
                &[
                    "node", "raft", "peers", "applied", "net", "clock", "config", "error", "types",
                    "runtime",
                ],
            ),
            (
                "node",
                &[
                    "raft", "peers", "applied", "net", "clock", "config", "error", "free_space",
                    "types", "runtime",
                ],
            ),
            ("raft", &["peers", "applied", "error", "free_space", "types", "runtime"]),
            ("peers", &["net", "error"]),
            ("applied", &["types"]),
            ("net", &["error"]),
            ("clock", &[]),
            ("free_space", &["error"]),
            ("error", &["config"]),
            ("config", &[]),
            ("types", &["runtime"]),
            ("runtime", &[]),
        ],
    ),
    (
        "quorate-log",
        &[
            ("store", &["disk", "opening", "memory", "error", "stats"]),
            ("snapshots", &["disk", "opening"]),
            // `error` says which record is damaged. The writer reports to the store's own signals.
            ("opening", &["disk", "error", "panics"]),
            ("disk", &["error", "panics", "store"]),
            ("error", &["disk"]),
            ("identity", &["error"]),
            ("memory", &[]),
            ("panics", &[]),
            ("stats", &[]),
        ],
    ),
    (
        "quorate-state",
        &[
            ("snapshot", &["registry", "replies", "checks", "spec", "types"]),
            ("registry", &["command", "event", "replies", "tables", "hash", "checks", "spec", "limits", "types"]),
            ("forwarded", &["command", "checks", "spec", "limits", "types"]),
        ],
    ),
    ("quorate-cli", &[]),
];
