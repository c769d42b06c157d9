//! Which files of a crate name each other in a circle. Such files can only be read together, so
//! each circle stands here with the reason why it is none the worse for that. A file that names the
//! file of its own folder (`node/reads.rs` what `node.rs` defines) is a part of it, and no circle.

use std::collections::{BTreeMap, BTreeSet};

use crate::no_faults;
use crate::sources::{Source, rust};

/// A crate, the files that name each other, and why.
const CIRCLES: &[(&str, &[&str], &str)] = &[
    (
        "quorate-cli",
        &["commands/cluster/status", "commands/cluster/verdict", "commands/view"],
        "the first line of a table, its rows, and whose table it is",
    ),
    (
        "quorate-cli",
        &["commands/doctor/checks", "commands/doctor/findings"],
        "a check makes findings, and a finding names its check",
    ),
    (
        "quorate-client",
        &["following/discovery/audit", "following/discovery/cache", "following/discovery/hub"],
        "what the hub does now and then, each as a part of its `impl`",
    ),
    (
        "quorate-client",
        &["nodes/dial", "nodes/endpoints", "nodes/rebalance", "nodes/tls"],
        "how nodes are dialled and changed, each as a part of the `impl` of their list",
    ),
    (
        "quorate-client",
        &["registering/handle", "registering/keeper", "registering/renewals"],
        "the two ends of one task: what a handle asks of it, and what it tells the handle",
    ),
    (
        "quorate-node",
        &[
            "api/grpc/admin",
            "api/grpc/arrived",
            "api/grpc/backup",
            "api/grpc/codes",
            "api/grpc/door",
            "api/grpc/door/ahead",
            "api/grpc/forwarded",
            "api/grpc/guard",
            "api/grpc/inspect",
            "api/grpc/peer",
            "api/grpc/peer_door",
            "api/grpc/peer_error",
            "api/grpc/rights",
            "api/grpc/told",
            "api/grpc/watch",
        ],
        "handlers enter by the two doors, and the doors know what each method's message touches; \
         it could be cut between the two listeners",
    ),
    (
        "quorate-node",
        &[
            "api/http/asked",
            "api/http/described",
            "api/http/discovery",
            "api/http/large",
            "api/http/reading",
            "api/http/routes",
            "api/http/watching",
            "api/http/writing",
        ],
        "the list of routes names each handler, and handlers what a route hands them",
    ),
    (
        "quorate-node",
        &["net/tls/error", "net/tls/files", "net/tls/lists", "net/tls/pem", "net/tls/verify"],
        "what can be wrong with files names which file it is",
    ),
    (
        "quorate-node",
        &[
            "node/calls",
            "node/calls/wire",
            "node/forwards",
            "node/queues",
            "node/reads",
            "node/renewals",
        ],
        "one file has all queues that calls wait in, each with the loop that empties it",
    ),
    (
        "quorate-node",
        &[
            "upkeep/health/grpc",
            "upkeep/health/http",
            "upkeep/health/lookup",
            "upkeep/health/probe",
        ],
        "a probe looks a name up and is one of the kinds, and each of these ends in a probe's verdict",
    ),
];

/// A file by its modules: `net/tls/files.rs` is `["net", "tls", "files"]`.
pub(crate) type Module = Vec<String>;

/// What each file of a crate names.
type Names = BTreeMap<Module, BTreeSet<Module>>;

/// The crate and the module of a file that is shipped.
fn module(source: &Source) -> Option<(&str, Module)> {
    let (name, inside) = source.path.strip_prefix("crates/")?.split_once("/src/")?;
    let inside = inside.strip_suffix(".rs")?;
    let for_tests = inside.ends_with("tests") || inside.contains("tests/");
    let is_root = ["lib", "main"].contains(&inside) || inside.starts_with("bin/");
    (!for_tests && !is_root).then(|| (name, inside.split('/').map(str::to_owned).collect()))
}

/// The paths that begin with this one, as a `use` has them: `a::{b, c::d}` names two.
pub(crate) fn paths(begin: &[String], text: &str, found: &mut Vec<Module>) {
    let text = text.trim_start();
    if let Some(inside) = text.strip_prefix('{') {
        let (mut depth, mut from) = (0, 0);
        for (at, c) in inside.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => return paths(begin, &inside[from..at], found),
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    paths(begin, &inside[from..at], found);
                    from = at + 1;
                }
                _ => {}
            }
        }
        return;
    }
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let path = [begin, &[text[..end].to_owned()]].concat();
    match text[end..].strip_prefix("::") {
        Some(rest) if end > 0 => paths(&path, rest, found),
        _ => found.push(path),
    }
}

/// What a file names behind `crate::` and `super::`.
fn named(module: &Module, text: &str) -> Vec<Module> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        paths(&[], &text[at + "crate::".len()..], &mut found);
    }
    for (at, _) in text.match_indices("super::") {
        if text[..at].ends_with("super::") {
            continue;
        }
        let (mut above, mut rest) = (module.len(), &text[at..]);
        while let Some(behind) = rest.strip_prefix("super::") {
            (above, rest) = (above.saturating_sub(1), behind);
        }
        paths(&module[..above], rest, &mut found);
    }
    found
}

/// Of each crate, which file names which, but for what it is a part of.
fn names() -> BTreeMap<String, Names> {
    let mut crates: BTreeMap<String, Vec<(Module, String)>> = BTreeMap::new();
    for source in rust() {
        let Some((name, module)) = module(&source) else { continue };
        let code: Vec<_> = source.shipped_code().map(|(_, line)| line).collect();
        crates.entry(name.to_owned()).or_default().push((module, code.join("\n")));
    }
    let of_crate = |files: Vec<(Module, String)>| -> Names {
        let all: BTreeSet<Module> = files.iter().map(|(module, _)| module.clone()).collect();
        let names_of = |(module, code): &(Module, String)| {
            let others = named(module, code).into_iter().filter_map(|path| {
                let longest = (1..=path.len()).rev().map(|len| path[..len].to_vec());
                longest.into_iter().find(|file| all.contains(file))
            });
            let others = others.filter(|other| !module.starts_with(other)).collect();
            (module.clone(), others)
        };
        files.iter().map(names_of).collect()
    };
    crates.into_iter().map(|(name, files)| (name, of_crate(files))).collect()
}

/// All that a file names, what those name, and so on.
fn reached(names: &Names, from: &Module) -> BTreeSet<Module> {
    let (mut reached, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(module) = open.pop() {
        for other in &names[module] {
            if reached.insert(other.clone()) {
                open.push(other);
            }
        }
    }
    reached
}

/// The circles of a crate, each as its files in order.
fn circles(names: &Names) -> BTreeSet<Vec<String>> {
    let reached: BTreeMap<&Module, _> = names.keys().map(|it| (it, reached(names, it))).collect();
    let circle_of = |module: &Module| {
        let with = reached[module].iter().filter(|other| reached[other].contains(module));
        with.map(|file| file.join("/")).collect::<Vec<_>>()
    };
    names.keys().map(circle_of).filter(|circle| !circle.is_empty()).collect()
}

#[test]
fn files_that_name_each_other_stand_here_with_the_reason() {
    let mut faults = Vec::new();
    for (name, names) in names() {
        let known = CIRCLES.iter().filter(|(of, ..)| *of == name);
        let known: BTreeSet<Vec<String>> = known
            .map(|(_, files, _)| files.iter().map(|file| file.to_string()).collect())
            .collect();
        let there = circles(&names);
        for circle in there.difference(&known) {
            let files = circle.join(", ");
            faults.push(format!(
                "crates/{name}/src: {files} name each other; move what the first needs of the last \
                 to a file that both may name, or say why in CIRCLES of tests/tidy/circles.rs"
            ));
        }
        for circle in known.difference(&there) {
            let files = circle.join(", ");
            faults.push(format!("tests/tidy/circles.rs: {name}: {files} are no circle (any more)"));
        }
    }
    for (name, files, why) in CIRCLES {
        if why.is_empty() {
            faults.push(format!("tests/tidy/circles.rs: {name}: {files:?} has no reason"));
        }
    }
    no_faults(&faults);
}

#[test]
fn a_circle_is_seen() {
    let module = |text: &str| text.split('/').map(str::to_owned).collect::<Module>();
    let files = [
        ("a", "use crate::{b::{c, D}, e};"),
        ("b", ""),
        ("b/c", "use super::super::e::F;\nuse super::D;"),
        ("e", "fn f(a: crate::a::G) {}"),
    ];
    let found = named(&module("b/c"), files[2].1);
    assert_eq!(found, [module("e/F"), module("b/D")]);
    let found = named(&module("a"), files[0].1);
    assert_eq!(found, [module("b/c"), module("b/D"), module("e")]);
    let names: Names = [
        (module("a"), [module("b/c"), module("b")].into()),
        (module("b"), [].into()),
        (module("b/c"), [module("e")].into()),
        (module("e"), [module("a")].into()),
    ]
    .into();
    assert_eq!(circles(&names), [["a", "b/c", "e"].map(str::to_owned).to_vec()].into());
}
