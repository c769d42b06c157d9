//! Directories whose names survive a power cut.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

#[cfg(test)]
use crate::observe;

/// Makes a directory, and those above it that are missing, for its owner only: also what sled makes
/// in it cannot be read by others. The names of those that it made are durable then.
///
/// # Errors
/// One cannot be made, or the directory that lists it cannot be synced.
pub fn make_dir(dir: &Path) -> io::Result<()> {
    // One that cannot be looked at cannot be made either.
    let is_missing = |dir: &&Path| !dir.as_os_str().is_empty() && !dir.exists();
    let missing: Vec<&Path> = dir.ancestors().take_while(is_missing).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    missing.into_iter().filter_map(listing).try_for_each(sync)
}

/// Sync the directories in which `dir` and its parent are listed: both may be new, and made by
/// others.
pub(crate) fn sync_parents(dir: &Path) -> io::Result<()> {
    dir.ancestors().take(2).filter_map(listing).try_for_each(sync)
}

/// The directory in which this one is listed; `None`: it is the root, or not named.
fn listing(dir: &Path) -> Option<&Path> {
    let parent = dir.parent()?;
    Some(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()?;
    #[cfg(test)]
    observe::tell(observe::Event::SyncedNames(dir));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::path::PathBuf;
    use std::rc::Rc;

    use super::*;

    /// The directories that are synced meanwhile, in order.
    fn synced(work: impl FnOnce() -> io::Result<()>) -> Vec<PathBuf> {
        let synced = Rc::new(RefCell::new(Vec::new()));
        let told = synced.clone();
        observe::set(Some(Box::new(move |event| {
            if let observe::Event::SyncedNames(dir) = event {
                told.borrow_mut().push(dir.to_owned());
            }
        })));
        let done = work();
        observe::set(None);
        done.unwrap();
        synced.take()
    }

    #[test]
    fn every_directory_that_is_made_has_its_name_synced() {
        let there = tempfile::tempdir().unwrap();
        let there = there.path();
        let dir = there.join("a/b/data");
        let listings = [there.join("a/b"), there.join("a"), there.to_owned()];
        assert_eq!(synced(|| make_dir(&dir)), listings);
        assert!(dir.is_dir());
        assert_eq!(synced(|| make_dir(&dir)).len(), 0, "it was there before");
    }

    #[test]
    fn what_has_no_directory_before_its_name_is_listed_in_this_one() {
        let synced = |dir: &str| synced(|| sync_parents(Path::new(dir)));
        assert_eq!(synced("src"), [Path::new(".")]);
        assert_eq!(synced("src/disk"), [Path::new("src"), Path::new(".")]);
        assert_eq!(synced("src/disk/journal"), [Path::new("src/disk"), Path::new("src")]);
        assert_eq!(synced("/"), [] as [PathBuf; 0]);
    }
}
