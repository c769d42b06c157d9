//! Where the clusters keep their data while they are measured: a directory on a real disk, removed
//! afterwards.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// What statfs says of file systems that live in memory: nothing measured there would say anything
/// of disks.
const IN_MEMORY: [(i64, &str); 2] = [(0x0102_1994, "tmpfs"), (0x8584_58f6, "ramfs")];

/// A directory of one run; its drop removes it.
pub(crate) struct Workspace {
    path: PathBuf,
    keep: bool,
}

impl Workspace {
    /// Makes `base/run-PID`. Without a base: beside our own executable's profile folder,
    /// `target/bench`.
    pub(crate) fn create(base: Option<&Path>, keep: bool) -> Result<Self> {
        let base = match base {
            Some(base) => base.to_owned(),
            None => {
                let own = std::env::current_exe().context("finding our own executable")?;
                let target = own.parent().and_then(Path::parent);
                target.context("our executable is in no directory")?.join("bench")
            }
        };
        let path = base.join(format!("run-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        let workspace = Self { path, keep };
        let kind =
            rustix::fs::statfs(&workspace.path).context("asking for the file system")?.f_type;
        if let Some((_, name)) = IN_MEMORY.iter().find(|(magic, _)| *magic == kind) {
            bail!("{} is a {name}; choose a real disk with --data-dir", base.display());
        }
        Ok(workspace)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if !self.keep {
            let _nothing_to_do = fs::remove_dir_all(&self.path);
        }
    }
}

/// Bytes that the files below a directory occupy on their disk. Room that is reserved counts: etcd
/// lays out its log in files of 61 MiB and keeps an empty one, so of a state, take the growth.
pub(crate) fn used(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(data) if data.is_dir() => used(&entry.path()),
        // stat counts in 512 bytes, whatever the file system's blocks.
        Ok(data) => data.blocks() * 512,
        // Files come and go while servers run.
        Err(_) => 0,
    };
    entries.flatten().map(of).sum()
}
