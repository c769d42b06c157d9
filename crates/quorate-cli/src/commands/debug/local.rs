//! What this machine has of a node: the end of its log, its configuration, its files. Only read;
//! the node may run.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde_json::{Value, json};

use super::{Parts, safe};
use crate::args::BundleArgs;
use crate::config;

/// Of a log, this much of its end, bytes.
const LOG_MAX: u64 = 1024 * 1024;
/// A configuration is shorter, bytes.
const CONFIG_MAX: u64 = 1024 * 1024;
/// Files of a data directory that are listed, and how deep.
const FILES_MAX: usize = 1_000;
const DEPTH_MAX: usize = 4;
/// The first bytes of a file: what it is, its version.
const HEAD: usize = 32;

pub(super) fn add(args: &BundleArgs, parts: &mut Parts) {
    for (number, log) in (1..).zip(&args.logs) {
        let name = log.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        parts.add(&format!("logs/{number}-{}", safe(&name)), end_of(log));
    }
    if args.logs.is_empty() {
        parts.add("logs", Err("--log was not given".to_owned()));
    }
    let not_given = |flag: &str| Err(format!("{flag} was not given"));
    let config = args.config.as_deref();
    parts.add("config.toml", config.map_or_else(|| not_given("--config"), configuration));
    let dir = args.data_dir.as_deref();
    parts.add("data-dir.json", dir.map_or_else(|| not_given("--data-dir"), listed));
}

fn on(path: &Path, error: &std::io::Error) -> String {
    format!("{}: {error}", path.display())
}

/// The last lines of a log.
fn end_of(log: &Path) -> Result<String, String> {
    let read = || -> std::io::Result<_> {
        let mut file = File::open(log)?;
        let from = file.metadata()?.len().saturating_sub(LOG_MAX);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(LOG_MAX).read_to_end(&mut bytes)?;
        Ok((from, bytes))
    };
    let (from, bytes) = read().map_err(|error| on(log, &error))?;
    let text = String::from_utf8_lossy(&bytes);
    // The first line is cut.
    let whole = if from > 0 { text.split_once('\n').map_or("", |(_, rest)| rest) } else { &*text };
    Ok(whole.to_owned())
}

/// A configuration file as it is understood: without comments, and, if it says what no node knows,
/// without any text.
fn configuration(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(CONFIG_MAX).read_to_string(&mut text));
    read.map_err(|error| on(path, &error))?;
    // The error would show the line.
    let mut table: toml::Table =
        toml::from_str(&text).map_err(|_| format!("{}: is no TOML", path.display()))?;
    if !config::is_known(&text) {
        table.iter_mut().for_each(|(_, value)| hide(value));
    }
    toml::to_string(&table).map_err(|error| error.to_string())
}

fn hide(value: &mut toml::Value) {
    match value {
        toml::Value::String(text) => *text = "(redacted)".to_owned(),
        toml::Value::Array(values) => values.iter_mut().for_each(hide),
        toml::Value::Table(table) => table.iter_mut().for_each(|(_, value)| hide(value)),
        _ => {}
    }
}

/// The files of a data directory. What is in them is of the node that has them open.
fn listed(dir: &Path) -> Result<String, String> {
    let mut files = Vec::new();
    let is_cut = !list(dir, dir, 0, &mut files).map_err(|error| on(dir, &error))?;
    let listed = json!({ "dir": dir.display().to_string(), "files": files, "cut": is_cut });
    Ok(format!("{listed:#}\n"))
}

/// False: there are more. What goes meanwhile is left out.
fn list(root: &Path, dir: &Path, depth: usize, files: &mut Vec<Value>) -> std::io::Result<bool> {
    let mut entries: Vec<_> = fs::read_dir(dir)?.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    for path in entries {
        let Ok(metadata) = path.symlink_metadata() else { continue };
        if files.len() >= FILES_MAX || metadata.is_dir() && depth >= DEPTH_MAX {
            return Ok(false);
        }
        if metadata.is_dir() {
            match list(root, &path, depth + 1, files) {
                Ok(true) | Err(_) => continue,
                Ok(false) => return Ok(false),
            }
        }
        let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        let is_ours = metadata.is_file() && OURS.iter().any(|begin| name.starts_with(begin));
        let head = if is_ours { head_of(&path) } else { None };
        files.push(json!({ "name": name, "bytes": metadata.len(), "head": head }));
    }
    Ok(true)
}

/// What a node writes begins so. Of other files nothing is shown: somebody may keep a key there.
const OURS: [&str; 2] = ["log/", "snapshots/"];

fn head_of(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(HEAD as u64).read_to_end(&mut bytes).ok()?;
    let shown = bytes.iter().map(|byte| format!("{byte:02x}"));
    Some(shown.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_has_no_secrets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.toml");
        let known = "# CANARY\nid = 1\nlisten = '127.0.0.1:7001'\n[tunables]\nheartbeat_ms = 50\n";
        fs::write(&path, known).unwrap();
        let shown = configuration(&path).unwrap();
        assert!(shown.contains("127.0.0.1:7001") && shown.contains("heartbeat_ms = 50"), "{shown}");
        assert!(!shown.contains("CANARY"), "{shown}");
        for (text, kept) in [
            ("id = 1\npassword = 'CANARY'\n", "id = 1"),
            ("id = 1\n[more]\nkeys = ['CANARY', { a = 'CANARY' }]\n", "(redacted)"),
        ] {
            fs::write(&path, text).unwrap();
            let shown = configuration(&path).unwrap();
            assert!(shown.contains(kept) && !shown.contains("CANARY"), "{shown}");
        }
        fs::write(&path, "password = CANARY").unwrap();
        let refused = configuration(&path).unwrap_err();
        assert!(refused.contains("no TOML") && !refused.contains("CANARY"), "{refused}");
    }

    #[test]
    fn of_a_log_its_end_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "one\ntwo\n").unwrap();
        assert_eq!(end_of(&path).unwrap(), "one\ntwo\n");
        let long = "0123456789\n".repeat(200_000);
        fs::write(&path, format!("{long}last\n")).unwrap();
        let end = end_of(&path).unwrap();
        assert!(end.len() as u64 <= LOG_MAX && end.ends_with("9\nlast\n"));
        assert!(end.starts_with("0123456789\n"), "whole lines");
        assert!(end_of(&dir.path().join("none")).unwrap_err().contains("none"));
    }

    #[test]
    fn of_a_data_directory_files_are_listed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("log")).unwrap();
        fs::write(dir.path().join("log/db"), [0xab; 100]).unwrap();
        fs::write(dir.path().join("log/empty"), b"").unwrap();
        fs::write(dir.path().join("token"), b"qrt_CANARY").unwrap();
        let shown: Value = serde_json::from_str(&listed(dir.path()).unwrap()).unwrap();
        let head = "ab".repeat(HEAD);
        assert_eq!(shown["files"][0], json!({ "name": "log/db", "bytes": 100, "head": head }));
        assert_eq!(shown["files"][1], json!({ "name": "log/empty", "bytes": 0, "head": "" }));
        assert_eq!(
            shown["files"].as_array().unwrap().last(),
            Some(&json!({ "name": "token", "bytes": 10, "head": null }))
        );
        assert_eq!(shown["cut"], false);
        assert!(listed(&dir.path().join("none")).unwrap_err().contains("none"));
    }
}
