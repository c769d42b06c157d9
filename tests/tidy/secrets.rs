//! No secret that could be used stands in what people copy. Nacos #10060, #14862: published keys
//! and passwords stayed in use. There is no password and no signing key among our settings, so what
//! could be copied is a token, the digest of one in an access file, a JWT, and a private key: all
//! of `docs/`, `cluster-examples/` and `ops/`, and the README, are looked through for these four.

use std::fs;
use std::path::Path;

use crate::no_faults;
use crate::sources::{Source, file, root};

const FOLDERS: [&str; 3] = ["docs", "cluster-examples", "ops"];

/// How much of a secret of each kind has to follow its mark: less is nobody's. A digest is used
/// whole or not at all.
const TOKEN: (&str, usize) = ("qrt_", 16);
const JWT: (&str, usize) = ("eyJ", 16);
const DIGEST: (&str, usize) = ("sha256:", 64);
const PRIVATE_KEY: &str = "PRIVATE KEY-----";

fn files(folder: &Path, all: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, all);
        } else {
            let path = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            all.push(file(&path));
        }
    }
}

/// What of a line could be used.
fn secret(line: &str) -> Option<&'static str> {
    let follows = |(mark, length): (&str, usize)| {
        let long = |rest: &str| {
            let word = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
            rest.chars().take_while(|c| word(*c)).count() >= length
        };
        // An image's digest is no secret's.
        line.match_indices(mark).any(|(at, _)| {
            let of_image = mark == DIGEST.0 && line[..at].ends_with('@');
            !of_image && long(&line[at + mark.len()..])
        })
    };
    match () {
        () if follows(TOKEN) => Some("a token"),
        () if follows(JWT) => Some("a JWT"),
        () if follows(DIGEST) => Some("a token's digest"),
        () if line.contains(PRIVATE_KEY) => Some("a private key"),
        () => None,
    }
}

#[test]
fn examples_hold_no_secret_that_could_be_used() {
    let mut all = vec![file("README.md")];
    FOLDERS.iter().for_each(|folder| files(&root().join(folder), &mut all));
    assert!(all.len() > 30, "the examples are found");
    let mut faults = Vec::new();
    for source in &all {
        for (line, text) in (1..).zip(source.text.lines()) {
            if let Some(what) = secret(text) {
                faults.push(source.fault(line, &format!("{what}; write \"...\" in its place")));
            }
        }
    }
    no_faults(&faults);
}

#[test]
fn secrets_are_recognised() {
    let digits = "0123456789abcdef".repeat(4);
    for (line, found) in [
        ("token = \"qrt_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8\"", Some("a token")),
        ("Bearer eyJhbGciOiJFUzI1NiJ9.e30.c2ln", Some("a JWT")),
        (&format!("digest = \"sha256:{digits}\""), Some("a token's digest")),
        ("-----BEGIN EC PRIVATE KEY-----", Some("a private key")),
        (&format!("FROM debian@sha256:{digits}"), None),
        ("digest = \"sha256:...\"", None),
        ("`qrt_` and a checksum", None),
    ] {
        assert_eq!(secret(line), found, "{line}");
    }
}
