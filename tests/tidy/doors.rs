//! Every call enters by a door: what holds for all of them stands there, and in no handler.

use crate::no_faults;
use crate::sources::{Source, file, rust};

const HANDLERS: [(&str, &str, &[&str]); 3] = [
    (
        "crates/quorate-node/src/api/grpc/registry.rs",
        "impl Registry for ",
        &["door::answer(&self.node, Method::"],
    ),
    (
        "crates/quorate-node/src/api/grpc/admin.rs",
        "impl Admin for ",
        &["door::answer(&self.node, Method::"],
    ),
    ("crates/quorate-node/src/api/grpc/peer.rs", "impl Peer for ", &["self.enter(PeerMethod::"]),
];

/// "list_services" is "ListServices".
fn method_of(function: &str) -> String {
    let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
    function.split('_').map(capital).collect()
}

/// The handlers of a service: line and name, and the first line of the body.
fn handlers<'a>(source: &'a Source, service: &str) -> Vec<(usize, &'a str, &'a str)> {
    let mut lines =
        (1..).zip(source.text.lines()).skip_while(|(_, line)| !line.starts_with(service));
    let mut found = Vec::new();
    while let Some((number, line)) = lines.next() {
        if line == "}" {
            break;
        }
        let Some(function) = line.trim_start().strip_prefix("async fn ") else { continue };
        let name = function.split('(').next().unwrap();
        if !line.ends_with('{') {
            lines.by_ref().find(|(_, line)| line.ends_with('{'));
        }
        let (_, body) = lines.next().unwrap();
        found.push((number, name, body));
    }
    found
}

/// What a cluster's level does not know never comes into its log: one place writes, and looks
/// first.
#[test]
fn what_is_proposed_is_held_to_the_clusters_level() {
    let proposing = "crates/quorate-node/src/node/propose.rs";
    let mut writes = Vec::new();
    for source in rust() {
        for (line, text) in source.shipped_code() {
            if text.contains(".client_write") {
                writes.push((source.path.clone(), line));
            }
        }
    }
    let [(path, line)] = &writes[..] else { panic!("{writes:?}; propose by {proposing} alone") };
    assert_eq!(path, proposing);
    let source = file(proposing);
    let before: Vec<_> = source.text.lines().take(*line).collect();
    let begin = before.iter().rposition(|text| text.contains("async fn ")).unwrap();
    let looks = before[begin..].iter().any(|text| text.contains("match check_level(op.level(), "));
    assert!(looks, "{}", source.fault(begin + 1, "it does not look at the level first"));
}

#[test]
fn each_handler_begins_with_the_door() {
    let mut faults = Vec::new();
    for (path, service, doors) in HANDLERS {
        let source = file(path);
        let all = handlers(&source, service);
        assert!(all.len() > 5, "{path} has the handlers of {service}");
        for (line, name, body) in all {
            let method = method_of(name);
            let enters = |door: &&str| {
                body.split_once(door).is_some_and(|(_, rest)| {
                    rest.trim_start_matches(&method).starts_with([',', ' '])
                        && rest.starts_with(&method)
                })
            };
            if !doors.iter().any(&enters) {
                let what = format!("{name} does not begin with {}{method}", doors[0]);
                faults.push(source.fault(line, &format!("{what}; what it skips holds for all")));
            }
        }
    }
    no_faults(&faults);
}
