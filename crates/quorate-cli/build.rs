//! What `quorate --version` says: the version, and for builds that are kept the commit and its
//! date.
//!
//! `QUORATE_COMMIT` (for example "3f9c1d2e0 2026-11-28") says it where there is no git, as in a
//! container.

#[path = "src/version.rs"]
mod version;

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=QUORATE_COMMIT");
    let version = env!("CARGO_PKG_VERSION");
    let given = std::env::var("QUORATE_COMMIT").ok();
    // A build for tests would be a new one after each commit.
    let kept = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let git: fn() -> Option<String> = commit;
    let text = version::text(version, given, kept.then_some(git));
    println!("cargo::rustc-env=QUORATE_VERSION={text}");
}

/// The commit that is built, and its day.
fn commit() -> Option<String> {
    let head = git(&["rev-parse", "--absolute-git-dir"])?;
    let moves = format!("{head}/logs/HEAD");
    if std::fs::exists(&moves).unwrap_or(false) {
        println!("cargo::rerun-if-changed={moves}");
    }
    git(&["log", "-1", "--abbrev=9", "--format=%h %cs"])
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
