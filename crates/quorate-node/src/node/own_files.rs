//! Which of a node's own files other users of its machine may read or change. Only looks. A group
//! is one that an operator chose, who may let it read; what everybody may do, nobody meant.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::config::Config;

/// What everybody may do, of a file's permissions.
const READ: u32 = 0o004;
const WRITE: u32 = 0o002;
const ENTER: u32 = 0o001;

/// In the data directory: what is registered stands in both. A data directory that is there keeps
/// its mode, and may be open as long as these are not.
const OF_DATA: [&str; 2] = ["log", "snapshots"];

/// The files of a node's settings that hold secrets, or say who has which rights.
#[derive(Debug)]
pub(crate) struct OwnFiles {
    data_dir: PathBuf,
    /// By setting, with what everybody may not do.
    files: Vec<(&'static str, PathBuf, u32)>,
}

impl OwnFiles {
    pub(crate) fn of(config: &Config) -> Self {
        let tls = config.tls.as_ref();
        let key = tls.map(|tls| ("tls.key", tls.key.clone(), READ | WRITE));
        let peer_key = tls.and_then(|tls| tls.peer_key.clone());
        let peer_key = peer_key.map(|path| ("tls.peer_key", path, READ | WRITE));
        // It has no secret, but hashes of what nobody can guess.
        let access = config.access.clone().map(|path| ("access", path, WRITE));
        let files = [key, peer_key, access].into_iter().flatten().collect();
        Self { data_dir: config.data_dir.clone(), files }
    }

    /// Those that are open, by setting. Asks the file system.
    pub(crate) fn open(&self) -> BTreeMap<String, String> {
        let files = self.files.iter().filter(|(_, path, bits)| allows(path, *bits));
        let mut open: BTreeMap<_, _> =
            files.map(|(setting, path, _)| ((*setting).to_owned(), shown(path))).collect();
        if let Some(path) = self.open_data() {
            open.insert("data_dir".to_owned(), shown(&path));
        }
        open
    }

    fn open_data(&self) -> Option<PathBuf> {
        if allows(&self.data_dir, WRITE) {
            return Some(self.data_dir.clone());
        }
        let mut inside = OF_DATA.iter().map(|name| self.data_dir.join(name));
        inside.find(|path| allows(&self.data_dir, ENTER) && allows(path, READ | ENTER | WRITE))
    }
}

/// Whether everybody may do any of this. One that cannot be looked at is nobody's.
fn allows(path: &Path, bits: u32) -> bool {
    std::fs::metadata(path).is_ok_and(|it| it.permissions().mode() & bits != 0)
}

/// As a command on that machine needs it.
fn shown(path: &Path) -> String {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    whole.display().to_string()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};

    use super::*;
    use crate::config::Tls;

    #[test]
    fn what_everybody_may_read_or_change_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let mode = |name: &str, mode| {
            fs::set_permissions(path(name), Permissions::from_mode(mode)).unwrap();
        };
        for name in ["key", "peer-key", "access"] {
            fs::write(path(name), "").unwrap();
        }
        for name in ["data/log", "data/snapshots"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        let listen = "127.0.0.1:0".parse().unwrap();
        let tls = Tls::new(path("cert"), path("key"), path("ca"));
        let config = Config {
            tls: Some(Tls { peer_key: Some(path("peer-key")), ..tls }),
            access: Some(path("access")),
            ..Config::new(1, path("data"), listen, listen)
        };
        let own = OwnFiles::of(&config);
        let all = ["key", "peer-key", "access", "data/log", "data/snapshots", "data"];
        // A key for a group, an access file for all to read, a data directory to be entered.
        let private = [0o640, 0o600, 0o644, 0o700, 0o750, 0o755];
        for (name, mode_of_it, expected) in [
            ("key", 0o640, None),
            ("key", 0o644, Some(("tls.key", "key"))),
            ("peer-key", 0o604, Some(("tls.peer_key", "peer-key"))),
            ("access", 0o646, Some(("access", "access"))),
            ("data", 0o777, Some(("data_dir", "data"))),
            ("data/log", 0o755, Some(("data_dir", "data/log"))),
            ("data/snapshots", 0o701, Some(("data_dir", "data/snapshots"))),
        ] {
            all.iter().zip(private).for_each(|(name, private)| mode(name, private));
            mode(name, mode_of_it);
            let found: Vec<_> = own.open().into_iter().collect();
            let expected = expected.map(|(of, name)| (of.to_owned(), shown(&path(name))));
            assert_eq!(found, Vec::from_iter(expected), "{name} {mode_of_it:o}");
        }
        mode("data", 0o700);
        mode("data/log", 0o755);
        fs::remove_file(path("key")).unwrap();
        assert_eq!(own.open(), BTreeMap::new(), "nobody gets there, and one is not there");
    }
}
