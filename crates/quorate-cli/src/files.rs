//! Files that are there whole or not at all, and secrets that only their owner can read.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// The users that may read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Its owner.
    Secret,
    /// All users.
    Public,
}

/// Makes the directory, and sees that what is to be written is not there, unless it may go.
pub(crate) fn make_room(dir: &Path, targets: &[PathBuf], overwrite: bool) -> Result<(), String> {
    std::fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    match targets.iter().find(|target| !overwrite && target.symlink_metadata().is_ok()) {
        Some(there) => Err(is_there(there)),
        None => Ok(()),
    }
}

fn is_there(path: &Path) -> String {
    format!("{} is there already\n  next: --force writes another in its place", path.display())
}

/// Writes a file beside where it is to be, and moves it there when it is on the disk.
pub(crate) fn write(
    path: &Path,
    content: &[u8],
    mode: Mode,
    overwrite: bool,
) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot write {}: {error}", path.display());
    // As tempfile makes it, only its owner can read it.
    let mut file = NamedTempFile::new_in(dir_of(path)).map_err(failed)?;
    file.write_all(content).map_err(failed)?;
    if mode == Mode::Public {
        file.as_file().set_permissions(Permissions::from_mode(0o644)).map_err(failed)?;
    }
    file.as_file().sync_all().map_err(failed)?;
    name(file, path, overwrite).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => is_there(path),
        _ => failed(error),
    })
}

/// Where a file with this name is.
pub(crate) fn dir_of(path: &Path) -> &Path {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// Gives a file whose content is on the disk its name, which then is, too.
pub(crate) fn name(file: NamedTempFile, path: &Path, overwrite: bool) -> io::Result<()> {
    match overwrite {
        true => file.persist(path),
        false => file.persist_noclobber(path),
    }
    .map_err(|error| error.error)?;
    let synced = File::open(dir_of(path)).and_then(|dir| dir.sync_all());
    // Of a directory that this user may only write into, and of file systems without such a sync,
    // no more can be known.
    use io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
    synced.or_else(|error| match error.kind() {
        PermissionDenied | InvalidInput | Unsupported => Ok(()),
        _ => Err(error),
    })
}
