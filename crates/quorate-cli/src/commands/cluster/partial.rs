//! The file that a backup is written to before it gets its name, and those that were left.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use quorate_node::rescue::Backup;
use tempfile::NamedTempFile;

use crate::authority::now;
use crate::files;
use crate::output;

const SUFFIX: &str = ".partial";

/// A node gives a backup up after ten minutes: what is older has no writer.
const LEFT_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// Beside `file`, `.FILE-XXXXXX.partial`.
pub(super) fn begin(file: &Path) -> io::Result<NamedTempFile> {
    let name = format!(".{}-", file.file_name().unwrap_or_default().to_string_lossy());
    tempfile::Builder::new().prefix(&name).suffix(SUFFIX).tempfile_in(files::dir_of(file))
}

/// Removes what backups into this directory left there that were killed, or whose machine stopped:
/// each may be as large as a backup. What cannot be looked at or removed stays.
pub(super) fn remove_left(dir: &Path) {
    let Ok(listed) = fs::read_dir(dir) else { return };
    for path in listed.flatten().map(|item| item.path()).filter(|path| is_left(path)) {
        if fs::remove_file(&path).is_ok() {
            output::note(&format!("removed {}, which a killed backup had left", path.display()));
        }
    }
}

/// It is called as one, was not written for long, and begins as a backup.
fn is_left(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let modified = path.symlink_metadata().and_then(|found| found.modified());
    let since = modified.ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    name.starts_with('.')
        && name.ends_with(SUFFIX)
        && since.is_some_and(|since| since + LEFT_AFTER < now())
        && Backup::begins_in(path)
}
