//! What the book's references say of settings, errors and counters is what stands in the code. The
//! pages have marks; between them is what this makes of the sources. With QUORATE_WRITE_DOCS=1, the
//! test writes it.

use std::collections::BTreeSet;

use crate::no_faults;
use crate::sources::{file, root};

const NODE: &str = "crates/quorate-node/src/config.rs";
const NODE_TLS: &str = "crates/quorate-node/src/config/tls.rs";
const NODE_DNS: &str = "crates/quorate-node/src/config/dns.rs";
const FLAGS: &str = "crates/quorate-cli/src/args/serve.rs";
const LAYERS: &str = "crates/quorate-cli/src/config.rs";
const CONTRACT: &str = "proto/quorate/v1/registry.proto";
const CODES: &str = "crates/quorate-node/src/api/grpc/codes.rs";

/// Names with what their comments say, from the line that begins so to the one that closes it.
fn documented(path: &str, begin: &str) -> Vec<(String, String)> {
    let source = file(path);
    let (_, rest) = source.text.split_once(begin).unwrap_or_else(|| panic!("{path}: no {begin}"));
    let mut found = Vec::new();
    let mut comment = Vec::new();
    for line in rest.lines().skip(1).take_while(|line| line.is_empty() || line.starts_with("    "))
    {
        // What stands further in is of a field's own.
        let Some(line) = line.strip_prefix("    ").filter(|line| !line.starts_with(' ')) else {
            continue;
        };
        if let Some(text) = line.strip_prefix("///") {
            comment.push(text.trim());
        } else if !line.starts_with(['#', ')']) && !comment.is_empty() {
            let name = line.trim_start_matches("pub(crate) ").trim_start_matches("pub ");
            let name: String =
                name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            found.push((name, plain(&comment.join(" "))));
            comment.clear();
        }
    }
    found
}

/// A comment without its links, as a cell of a table.
fn plain(comment: &str) -> String {
    let mut parts = comment.split("[`");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (code, rest) = part.split_once("`]").expect("a link ends");
        let rest = match rest.strip_prefix('(').and_then(|target| target.split_once(')')) {
            Some((_, rest)) => rest,
            None => rest,
        };
        text += &format!("`{code}`{rest}");
    }
    text.replace('|', "\\|")
}

fn meaning<'a>(of: &'a [(String, String)], name: &str) -> &'a str {
    let found = of.iter().find(|(known, _)| known == name);
    &found.unwrap_or_else(|| panic!("{name} says nothing of itself")).1
}

/// The settings of a file, but for the tunables.
fn settings() -> String {
    let (layers, flags) = (file(LAYERS).text, file(FLAGS).text);
    let node = documented(NODE, "pub struct Config {");
    let told = documented(FLAGS, "pub(crate) struct ServeArgs {");
    let (_, keys) = layers.split_once("struct File {\n").expect("the file has a type");
    let keys = keys.lines().map_while(|line| line.trim().split_once(": Option<"));
    let keys: Vec<_> = keys.map(|(key, _)| key).filter(|key| *key != "tunables").collect();
    assert!(keys.len() > 15, "{LAYERS}: the keys are found");
    let mut table = "| in the file | flag | variable | |\n|---|---|---|---|\n".to_owned();
    let mut row = |key: &str, name: &str, meaning: &str| {
        let flag = name.replace('_', "-");
        let flag = if flags.contains(&format!(" {name}: ")) {
            format!("`--{flag}`")
        } else {
            String::new()
        };
        let variable = format!("QUORATE_{}", name.to_uppercase());
        let is_read = layers.contains(&format!("\"{variable}\""));
        let variable = if is_read { format!("`{variable}`") } else { String::new() };
        table += &format!("| `{key}` | {flag} | {variable} | {meaning} |\n");
    };
    for key in keys {
        let inner = match key {
            "tls" => documented(NODE_TLS, "pub struct Tls {"),
            "audit" => documented(NODE, "pub struct Audit {"),
            "dns" => documented(NODE_DNS, "pub struct Dns {"),
            "health_checks" => documented(NODE, "pub struct HealthChecks {"),
            "bootstrap" | "join" | "observer" => {
                row(key, key, meaning(&told, key));
                continue;
            }
            _ => {
                row(key, key, meaning(&node, key));
                continue;
            }
        };
        for (name, meaning) in inner {
            let flag = match (key, name.strip_prefix("peer_")) {
                ("audit", _) if name == "file" => key.to_owned(),
                ("tls", Some(rest)) => format!("peer_tls_{rest}"),
                _ => format!("{key}_{name}"),
            };
            row(&format!("{key}.{name}"), &flag, &meaning);
        }
    }
    table
}

/// A table of names and what they say of themselves.
fn table(path: &str, begin: &str, least: usize) -> String {
    let rows = documented(path, begin);
    assert!(rows.len() >= least, "{path}: {begin}: only {rows:?}");
    let rows = rows.iter().map(|(name, meaning)| format!("| `{name}` | {meaning} |\n"));
    "| | |\n|---|---|\n".to_owned() + &rows.collect::<String>()
}

/// The codes of the contract's head, with what they mean.
fn codes_of_contract() -> Vec<(String, String)> {
    let text = file(CONTRACT).text;
    let (_, rest) = text.split_once("// Errors, the same for every call:\n").expect("it has them");
    let mut codes: Vec<(String, String)> = Vec::new();
    for line in rest.lines().map_while(|line| line.strip_prefix("//   ")) {
        match (line.split_once("  "), codes.last_mut()) {
            (Some((code, meaning)), _) if !code.is_empty() => {
                codes.push((code.to_owned(), meaning.trim().to_owned()));
            }
            (_, Some((_, meaning))) => {
                meaning.push(' ');
                meaning.push_str(line.trim());
            }
            (_, None) => panic!("{CONTRACT}: {line}"),
        }
    }
    codes
}

/// What stands between two marks of a page is what is wanted there.
fn made(page: &str, name: &str, wanted: &str) -> Option<String> {
    let text = file(page).text;
    let (begin, end) = (format!("<!-- {name}: made -->\n\n"), format!("\n<!-- {name}: end -->\n"));
    let cut =
        text.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(&end)?)));
    let Some((before, (there, after))) = cut else {
        return Some(format!("{page}: no marks of {name}"));
    };
    if std::env::var_os("QUORATE_WRITE_DOCS").is_some() {
        let text = format!("{before}{begin}{wanted}{end}{after}");
        std::fs::write(root().join(page), text).unwrap();
        return None;
    }
    let what = "is not what the code says; QUORATE_WRITE_DOCS=1 writes it";
    (there != wanted).then(|| format!("{page}: {name} {what}"))
}

#[test]
fn the_references_are_what_the_code_says() {
    let codes = codes_of_contract();
    let codes: String =
        codes.iter().map(|(code, meaning)| format!("| {code} | {meaning} |\n")).collect();
    let client = "crates/quorate-client/src";
    let faults = [
        made("docs/configuration.md", "settings", &settings()),
        made("docs/configuration.md", "tunables", &table(NODE, "pub struct Tunables {", 20)),
        made("docs/errors.md", "codes", &format!("| code | |\n|---|---|\n{codes}")),
        made(
            "docs/errors.md",
            "client",
            &table(&format!("{client}/error.rs"), "pub enum Error {", 15),
        ),
        made(
            "docs/client-guide.md",
            "counters",
            &table(&format!("{client}/counters.rs"), "\ncounters! {", 15),
        ),
    ];
    no_faults(&faults.into_iter().flatten().collect::<Vec<_>>());
}

/// What to do is written by hand, for each code that a client may meet.
#[test]
fn there_is_advice_for_every_code() {
    let source = file(CODES).text;
    // What only other nodes are told.
    let (shared, peers) =
        source.split_once("impl From<PeerError>").expect("peers' errors are there");
    let (_, after) = peers.split_once("\nfn code(").expect("the table is there");
    let used = [shared, after].into_iter().flat_map(|part| part.split("Code::").skip(1));
    let name = |rest: &str| rest.chars().take_while(char::is_ascii_alphabetic).collect::<String>();
    let mut wanted: BTreeSet<_> = used.map(name).map(|name| screaming(&name)).collect();
    wanted.extend(codes_of_contract().into_iter().map(|(code, _)| code));
    let page = file("docs/errors.md").text;
    let (_, advice) = page.split_once("\n## What to do\n").expect("it has advice");
    let advice = advice.split("\n## ").next().unwrap();
    let rows = advice.lines().filter_map(|line| line.strip_prefix("| ")?.split(" |").next());
    let given: BTreeSet<_> = rows.filter(|code| *code != "code").map(str::to_owned).collect();
    assert_eq!(given, wanted, "docs/errors.md, \"What to do\"");
}

/// `NotFound`, as gRPC writes it: `NOT_FOUND`.
fn screaming(name: &str) -> String {
    let mut written = String::new();
    for (at, c) in name.chars().enumerate() {
        if at > 0 && c.is_ascii_uppercase() {
            written.push('_');
        }
        written.push(c.to_ascii_uppercase());
    }
    written
}
