//! What sled keeps beside its file, and nothing is lost with: its settings, which are always the
//! same, and its page table, which it works out again from the file. Where the checksum of one does
//! not fit, it is removed, and sled writes another. What comes of the file then is checked as ever.

use std::fs;
use std::path::{Path, PathBuf};

/// sled's settings. It only warns of their checksum, and goes on with what it makes of them.
pub(super) fn damaged_settings(dir: &Path) -> Option<PathBuf> {
    let path = dir.join("conf");
    let bytes = fs::read(&path).ok()?;
    let is_sound = bytes.split_last_chunk().is_some_and(|(rest, crc)| is_of(rest, *crc));
    (!is_sound).then_some(path)
}

/// sled's page tables, `snap.*`: of the last one that it wrote, or of one that it was still writing
/// when the process died, it says that it is damaged, and not which file that is.
pub(super) fn damaged_page_tables(dir: &Path) -> Vec<PathBuf> {
    let Ok(listing) = fs::read_dir(dir) else { return Vec::new() };
    let paths = listing.filter_map(|item| item.ok().map(|item| item.path()));
    let is_table = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"snap."))
    };
    let is_damaged = |path: &PathBuf| {
        // The table, its length if it were not compressed (8), the table's checksum.
        let table = |bytes: Vec<u8>| {
            let (rest, crc) = bytes.split_last_chunk()?;
            let (table, _) = rest.split_last_chunk::<8>()?;
            Some(!table.is_empty() && is_of(table, *crc))
        };
        fs::read(path).is_ok_and(|bytes| table(bytes) != Some(true))
    };
    paths.filter(is_table).filter(is_damaged).collect()
}

fn is_of(bytes: &[u8], crc: [u8; 4]) -> bool {
    crc32fast::hash(bytes) == u32::from_le_bytes(crc)
}

/// Whether one was removed.
pub(super) fn remove(paths: impl IntoIterator<Item = PathBuf>) -> bool {
    let mut is_removed = false;
    for path in paths {
        let shown = path.display();
        match fs::remove_file(&path) {
            Ok(()) => {
                tracing::warn!(path = %shown, "a damaged file is made anew: nothing is lost with it");
                is_removed = true;
            }
            Err(error) => tracing::warn!(path = %shown, %error, "cannot remove a damaged file"),
        }
    }
    is_removed
}
