//! The files of the repository, as the checks read them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A text file.
pub(crate) struct Source {
    /// From the root of the repository, with slashes.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl Source {
    /// A fault in it.
    pub(crate) fn fault(&self, line: usize, what: &str) -> String {
        format!("{}:{line}: {what}", self.path)
    }

    /// Its lines that are no comments, with their numbers.
    pub(crate) fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = (1..).zip(self.text.lines());
        lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    /// The code without what is only compiled for tests: tests stand at the end of a file, or in a
    /// file of their own.
    pub(crate) fn shipped_code(&self) -> impl Iterator<Item = (usize, &str)> {
        let crates_source = self.path.starts_with("crates/") && self.path.contains("/src/");
        let own_file = self.path.contains("/tests/") || self.path.ends_with("tests.rs");
        let shipped = crates_source && !own_file;
        self.code().take_while(move |(_, line)| shipped && line.trim() != "#[cfg(test)]")
    }
}

/// The root of the repository: as cargo says when it runs the test, so that another copy can be
/// checked, too.
pub(crate) fn root() -> PathBuf {
    let package = std::env::var("CARGO_MANIFEST_DIR");
    let package = package.unwrap_or(env!("CARGO_MANIFEST_DIR").to_owned());
    Path::new(&package).join("../..").canonicalize().unwrap()
}

/// A file by its path.
pub(crate) fn file(path: &str) -> Source {
    let text = fs::read_to_string(root().join(path));
    Source { path: path.to_owned(), text: text.unwrap_or_else(|error| panic!("{path}: {error}")) }
}

/// The files that git has or would add; all, where there is no git.
pub(crate) fn paths() -> Vec<String> {
    let mut git = Command::new("git");
    git.args(["ls-files", "--cached", "--others", "--exclude-standard"]);
    let mut paths: Vec<String> = match git.current_dir(root()).output() {
        Ok(listed) if listed.status.success() => {
            String::from_utf8(listed.stdout).unwrap().lines().map(str::to_owned).collect()
        }
        _ => {
            let mut all = Vec::new();
            walk(&root(), &mut |path| all.push(path.to_owned()));
            all
        }
    };
    paths.retain(|path| root().join(path).is_file());
    paths.sort();
    paths
}

/// All Rust files of ours.
pub(crate) fn rust() -> Vec<Source> {
    let mut paths = paths();
    paths.retain(|path| path.ends_with(".rs"));
    assert!(paths.len() > 50, "the sources are found");
    paths.iter().map(|path| file(path)).collect()
}

/// All manifests of packages, the root's first.
pub(crate) fn manifests() -> Vec<Source> {
    let crates = fs::read_dir(root().join("crates")).unwrap();
    let mut names: Vec<_> =
        crates.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let members = names.iter().map(|name| format!("crates/{name}/Cargo.toml"));
    std::iter::once("Cargo.toml".to_owned()).chain(members).map(|path| file(&path)).collect()
}

fn walk(directory: &Path, visit: &mut impl FnMut(&str)) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let is_hidden = name.starts_with('.') && name != ".ci";
        if is_hidden || ["target", "node_modules"].contains(&name.as_str()) {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            walk(&entry.path(), visit);
        } else {
            let path = entry.path();
            visit(path.strip_prefix(root()).unwrap().to_str().unwrap());
        }
    }
}
