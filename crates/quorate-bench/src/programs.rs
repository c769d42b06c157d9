//! Where the servers' programs are, and what to do when they are not.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::output;

/// `quorate`: as given, else beside our own executable, where cargo puts both. Built if it is not
/// there; and whenever cargo started us, so that nobody measures yesterday's server.
pub(crate) fn quorate(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = given {
        ensure!(path.is_file(), "{} is not there", path.display());
        return Ok(path.to_owned());
    }
    let own = std::env::current_exe().context("finding our own executable")?;
    let profile = profile(&own)?;
    if profile != "dist" {
        output::note(&format!(
            "profile {profile}: for figures, cargo run --profile dist -p quorate-bench"
        ));
    }
    let beside = own.with_file_name("quorate");
    if !beside.is_file() || std::env::var_os("CARGO").is_some() {
        build(&profile)?;
    }
    ensure!(beside.is_file(), "cargo made no {}; name the server with --quorate", beside.display());
    Ok(beside)
}

/// The profile that we were built with: cargo's folder for it.
fn profile(own: &Path) -> Result<String> {
    let folder = own.parent().and_then(Path::file_name).context("no profile folder")?;
    let name = folder.to_string_lossy();
    Ok(if name == "debug" { "dev".to_owned() } else { name.into_owned() })
}

fn build(profile: &str) -> Result<()> {
    output::note(&format!("building quorate, if it is not up to date (profile {profile})"));
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "-p", "quorate-cli", "--profile", profile])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .status()
        .context("starting cargo; build the server yourself and name it with --quorate")?;
    ensure!(status.success(), "cargo build -p quorate-cli failed");
    Ok(())
}

/// etcd's server.
#[derive(Debug, Clone)]
pub(crate) struct Etcd {
    pub(crate) path: PathBuf,
    /// It can listen for HTTP apart from gRPC.
    pub(crate) http_apart: bool,
}

/// As given, else `etcd` of the PATH.
pub(crate) fn etcd(given: Option<&Path>) -> Result<Etcd> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut all = std::env::split_paths(&path).map(|folder| folder.join("etcd"));
    let path = match given {
        Some(path) => Some(path.to_owned()).filter(|path| path.is_file()),
        None => all.find(|path| path.is_file()),
    };
    let path = path.context(
        "there is no etcd; install it (apt-get install etcd-server), or name it with --etcd",
    )?;
    let help = Command::new(&path).arg("--help").output().context("starting etcd --help")?;
    let help = [help.stdout, help.stderr].concat();
    let http_apart = String::from_utf8_lossy(&help).contains("--listen-client-http-urls");
    Ok(Etcd { path, http_apart })
}
