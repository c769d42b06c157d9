//! `pub(crate)` is for what other rooms use. What only its own room uses is `pub(super)`,
//! `pub(in crate::room)`, or private. By names: an item whose name stands in another room for
//! something else passes, too. Types are left out: others may have them from a function without
//! naming them, and then the compiler wants them to be seen.

use std::collections::HashSet;

use crate::no_faults;
use crate::rooms::{crates_with_rooms, room_of};
use crate::sources::{Source, rust};

/// The name of the `pub(crate)` item or field that a line declares.
fn declared(line: &str) -> Option<&str> {
    const BEFORE: [&str; 3] = ["async", "const", "unsafe"];
    const KINDS: [&str; 4] = ["fn", "const", "static", "mod"];
    let rest = line.trim_start().strip_prefix("pub(crate) ")?;
    let words: Vec<&str> = rest.split(' ').collect();
    let kind = words.iter().rposition(|word| KINDS.contains(word));
    match kind.filter(|kind| words[..*kind].iter().all(|word| BEFORE.contains(word))) {
        Some(kind) => words.get(kind + 1)?.split(is_no_letter).next(),
        None => {
            rest.split_once(": ").map(|(field, _)| field).filter(|it| !it.contains(is_no_letter))
        }
    }
}

fn is_no_letter(c: char) -> bool {
    !c.is_alphanumeric() && c != '_'
}

fn words(source: &Source) -> impl Iterator<Item = &str> {
    source.code().flat_map(|(_, line)| line.split(is_no_letter))
}

#[test]
fn what_only_a_room_uses_is_seen_by_it_alone() {
    let sources = rust();
    let mut faults = Vec::new();
    for name in crates_with_rooms() {
        let within = format!("crates/{name}/");
        let files = sources.iter().filter(|source| {
            source.path.strip_prefix(&within).is_some_and(|inside| !inside.starts_with("tests/"))
        });
        let files: Vec<(&str, &Source)> = files.map(|source| (room_of(source), source)).collect();
        let words: Vec<(&str, HashSet<&str>)> =
            files.iter().map(|(room, source)| (*room, words(source).collect())).collect();
        for (room, source) in files {
            let is_door = source.path == format!("{within}src/{room}.rs");
            if is_door || !source.path.starts_with(&format!("{within}src/{room}/")) {
                continue;
            }
            for (line, text) in source.shipped_code() {
                let Some(item) = declared(text) else { continue };
                let mut others = words.iter().filter(|(other, _)| *other != room);
                if !others.any(|(_, words)| words.contains(item)) {
                    let what = format!("only {room} uses {item}; make it pub(super), or private");
                    faults.push(source.fault(line, &what));
                }
            }
        }
    }
    no_faults(&faults);
}

#[test]
fn declarations_are_found() {
    for (line, name) in [
        ("    pub(crate) async fn a_b(&self) {", Some("a_b")),
        ("pub(crate) const fn c() {", Some("c")),
        ("pub(crate) const D: u64 = 1;", Some("D")),
        ("pub(crate) struct E<T> {", None),
        ("    pub(crate) f: Vec<u8>,", Some("f")),
        ("pub(crate) mod g;", Some("g")),
        ("pub(crate) use h::I;", None),
        ("pub(super) fn j() {", None),
    ] {
        assert_eq!(declared(line), name, "{line}");
    }
}
