//! Which crate may depend on which.

use std::process::Command;

use crate::no_faults;
use crate::sources::{Source, file, manifests, root};

/// Each package with the packages of ours that it may name, in any kind of dependency. Another edge
/// needs an argument in the commit that adds it here.
const EDGES: [(&str, &[&str]); 8] = [
    ("quorate-proto", &[]),
    ("quorate-state", &[]),
    ("quorate-log", &[]),
    ("quorate-client", &["quorate-proto"]),
    // Reads the registry, and nothing else of ours.
    ("quorate-dns", &["quorate-state"]),
    ("quorate-node", &["quorate-proto", "quorate-state", "quorate-log", "quorate-dns"]),
    ("quorate-cli", &["quorate-node", "quorate-client", "quorate-proto"]),
    // Drives the server as a stranger would: by its binary, the wire contract and the client.
    ("quorate-bench", &["quorate-client", "quorate-proto"]),
];

/// What a package must not name as a normal dependency: only quorate-node sees Raft, gRPC and the
/// registry together.
const FORBIDDEN: [(&str, &[&str]); 6] = [
    ("quorate-proto", &["tokio", "openraft", "sled", "serde"]),
    ("quorate-log", &["tonic", "prost"]),
    ("quorate-client", &["openraft", "sled"]),
    // No sockets, no runtime.
    ("quorate-dns", &["tokio", "tonic", "prost", "openraft", "sled", "rand"]),
    ("quorate-cli", &["openraft", "sled"]),
    ("quorate-bench", &["openraft", "sled"]),
];

/// What must be nowhere below quorate-state: it is synchronous, deterministic, and does no input or
/// output.
const NOT_BELOW_STATE: [&str; 7] =
    ["tokio", "tonic", "prost", "openraft", "sled", "rand", "tracing"];

/// The name of a manifest's package.
fn package(manifest: &Source) -> &str {
    let name = manifest.text.lines().find_map(|line| line.strip_prefix("name = "));
    name.expect("a manifest names its package").trim_matches('"')
}

/// The dependencies that a manifest names: line, section, name.
fn dependencies(manifest: &Source) -> Vec<(usize, &str, &str)> {
    let mut section = "";
    let mut found = Vec::new();
    for (number, line) in (1..).zip(manifest.text.lines()) {
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']);
            // "[dependencies.name]"
            if let Some((section, name)) = section.split_once("dependencies.")
                && !section.starts_with("workspace")
            {
                found.push((number, "dependencies", name));
            }
        } else if section.ends_with("dependencies")
            && !section.starts_with("workspace")
            && let Some((name, _)) = line.split_once(['=', '.'])
            && !line.starts_with('#')
        {
            found.push((number, section, name.trim()));
        }
    }
    found
}

#[test]
fn packages_depend_on_whom_they_may() {
    let mut faults = Vec::new();
    let manifests = manifests();
    for manifest in &manifests {
        let package = package(manifest);
        let allowed = EDGES.iter().find(|(name, _)| *name == package).map(|(_, allowed)| *allowed);
        let forbidden = FORBIDDEN.iter().find(|(name, _)| *name == package);
        let forbidden = forbidden.map_or(&[] as &[&str], |(_, forbidden)| *forbidden);
        let Some(allowed) = allowed else {
            faults.push(manifest.fault(1, "a new package; add it to EDGES in tests/tidy"));
            continue;
        };
        for (line, section, name) in dependencies(manifest) {
            if name.starts_with("quorate-") && !allowed.contains(&name) {
                let what = format!("{package} may not know {name}; move what it needs, or argue");
                faults.push(manifest.fault(line, &what));
            }
            if section == "dependencies" && forbidden.contains(&name) {
                let what = format!("{package} may not use {name}; that belongs to quorate-node");
                faults.push(manifest.fault(line, &what));
            }
        }
        if !manifest.text.contains("[lints]\nworkspace = true") && package != "quorate-proto" {
            faults.push(manifest.fault(1, "no workspace lints; add [lints] workspace = true"));
        }
    }
    assert_eq!(manifests.len(), EDGES.len(), "every package of EDGES is there");
    no_faults(&faults);
}

#[test]
fn the_state_machine_does_no_io() {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "-p", "quorate-state", "-e", "normal", "--prefix", "none"])
        .current_dir(root())
        .output()
        .unwrap();
    let (text, stderr) =
        (String::from_utf8_lossy(&tree.stdout), String::from_utf8_lossy(&tree.stderr));
    assert!(tree.status.success() && text.starts_with("quorate-state "), "cargo tree: {stderr}");
    let below = text.lines().filter_map(|line| line.split(' ').next());
    let found: Vec<_> = below.filter(|name| NOT_BELOW_STATE.contains(name)).collect();
    let message = "crates/quorate-state/Cargo.toml:1: these came in; `cargo tree -p quorate-state -e \
                   normal -i NAME` tells by whom";
    assert!(found.is_empty(), "{message}: {found:?}");
}

/// The fuzzer has a lock of its own, which says what version ours have: with another one, it is not
/// built (`--locked`).
#[test]
fn the_fuzzer_locks_our_own_version() {
    let (workspace, lock) = (file("Cargo.toml"), file("crates/quorate-dns/fuzz/Cargo.lock"));
    let version = workspace.text.lines().find(|line| line.starts_with("version = \""));
    let version = version.expect("the workspace has a version");
    for name in ["quorate-dns", "quorate-state"] {
        let locked = lock.text.split_once(&format!("name = \"{name}\"\n"));
        let (_, locked) = locked.unwrap_or_else(|| panic!("{}: no {name}", lock.path));
        let what = "run `cargo update --workspace` there";
        assert_eq!(locked.lines().next(), Some(version), "{}: {name}; {what}", lock.path);
    }
}
