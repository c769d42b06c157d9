//! Where cargo has put the binaries of the Rust examples, and scripts of `.ci` what they install.
//! Shared by the targets that run them.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The root of the repository: as cargo says when it runs the test, so that another copy can be
/// checked, too.
pub(crate) fn root() -> PathBuf {
    let package = std::env::var("CARGO_MANIFEST_DIR");
    let package = package.unwrap_or(env!("CARGO_MANIFEST_DIR").to_owned());
    Path::new(&package).join("../..").canonicalize().unwrap()
}

/// An example's binary. `cargo test` has built it; `cargo test --test readme` has not, so then it
/// is built here.
pub(crate) fn example(name: &str) -> PathBuf {
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_quorate"));
    let example = binary.parent().unwrap().join("examples").join(name);
    let source = format!("{name}.rs");
    let sources = [&source, "shared/calls.rs", "shared/registry.rs", "shared/text.rs"];
    let sources = sources.map(|source| root().join("cluster-examples").join(source));
    let changed = |path: &PathBuf| path.metadata().and_then(|metadata| metadata.modified()).ok();
    if changed(&example) < sources.iter().map(changed).max().flatten() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "-p", "quorate-cli", "--example", name]);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        let target = binary.parent().and_then(Path::parent).unwrap();
        let built = build.current_dir(root()).env("CARGO_TARGET_DIR", target).status().unwrap();
        assert!(built.success(), "cargo build --example {name}: {built}");
    }
    example
}

/// Where a script of `.ci` has put what it installs; why it cannot, otherwise.
pub(crate) fn installed(script: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(root().join(script)).args(args).output();
    let output = output.map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}
