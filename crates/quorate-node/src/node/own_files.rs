//! Which of a node's own files other users of its machine may read or change. Only looks. A group
//! is one that an operator chose, who may let it read; what everybody may do, nobody meant.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::config::Config;
use crate::runtime::Reads;

/// Nobody waits longer for a look, nor for that of another: what a mount that hangs has may stay
/// unknown for ever.
const LOOK_WITHIN: Duration = Duration::from_millis(250);

/// What everybody may do, of a file's permissions.
const READ: u32 = 0o004;
const WRITE: u32 = 0o002;
const ENTER: u32 = 0o001;

/// In the data directory: what is registered stands in both. A data directory that is there keeps
/// its mode, and may be open as long as these are not.
const OF_DATA: [&str; 2] = ["log", "snapshots"];

/// What is open, by setting.
type Open = BTreeMap<String, String>;

/// The files of a node's settings that hold secrets, or say who has which rights.
#[derive(Debug)]
pub(crate) struct OwnFiles {
    files: Arc<Files>,
    /// Of whoever looks: one look at most is under way.
    turn: Semaphore,
    reads: Reads,
    /// What was found last.
    found: Mutex<Open>,
}

#[derive(Debug)]
struct Files {
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
        let files = Arc::new(Files { data_dir: config.data_dir.clone(), files });
        let (turn, reads, found) = (Semaphore::new(1), Reads::default(), Mutex::default());
        Self { files, turn, reads, found }
    }

    /// Those that are open; where the file system does not answer in time, as it was last found.
    pub(crate) async fn open(&self) -> Open {
        let files = self.files.clone();
        self.told(move || files.open()).await
    }

    async fn told(&self, look: impl FnOnce() -> Open + Send + 'static) -> Open {
        let turn = timeout(LOOK_WITHIN, self.turn.acquire()).await;
        let looked = match turn {
            Ok(_) => self.reads.read(&self.files.data_dir, LOOK_WITHIN, |_| look()).await.ok(),
            Err(_elapsed) => None,
        };
        let mut found = self.found.lock().expect("invariant: nothing panics under this lock");
        if let Some(looked) = looked {
            *found = looked;
        }
        found.clone()
    }
}

impl Files {
    /// Asks the file system.
    fn open(&self) -> Open {
        let files = self.files.iter().filter(|(_, path, bits)| allows(path, *bits));
        let mut open: Open =
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
        inside.find(|path| allows(path, READ | ENTER | WRITE))
    }
}

/// Whether everybody gets there, and may do any of this. One that cannot be looked at is nobody's.
fn allows(path: &Path, bits: u32) -> bool {
    let may = |path: &Path, bits| {
        std::fs::metadata(path).is_ok_and(|it| it.permissions().mode() & bits != 0)
    };
    // Where it is: links on the way there have no mode of their own.
    let Ok(place) = path.canonicalize() else { return false };
    may(&place, bits) && place.ancestors().skip(1).all(|above| may(above, ENTER))
}

/// As a command on that machine needs it.
fn shown(path: &Path) -> String {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    whole.display().to_string()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;

    use futures_util::future::{join, join_all};
    use tokio::time::Instant;

    use super::*;
    use crate::config::Tls;

    #[test]
    fn what_everybody_may_read_or_change_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::set_permissions(dir.path(), Permissions::from_mode(0o711)).unwrap();
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
        let own = OwnFiles::of(&config).files;
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

    /// As cert-manager, kubelet and most who make them do it: the directory keeps others out.
    #[test]
    fn what_nobody_gets_to_is_not_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let mode = |name: &str, mode| {
            fs::set_permissions(path(name), Permissions::from_mode(mode)).unwrap();
        };
        fs::create_dir_all(path("keys/one")).unwrap();
        fs::write(path("keys/one/key"), "").unwrap();
        fs::create_dir(path("links")).unwrap();
        std::os::unix::fs::symlink("../keys/one/key", path("links/key")).unwrap();
        mode("keys/one/key", 0o644);
        for name in ["keys/one/key", "links/key"] {
            for (above, keys, one, links, expected) in [
                (0o711, 0o755, 0o711, 0o755, true),
                (0o711, 0o700, 0o755, 0o755, false),
                (0o711, 0o755, 0o750, 0o755, false),
                (0o700, 0o755, 0o755, 0o755, false),
                // The link is not needed to get there.
                (0o711, 0o755, 0o755, 0o700, true),
            ] {
                for (name, of_it) in
                    [("", above), ("keys", keys), ("keys/one", one), ("links", links)]
                {
                    mode(name, of_it);
                }
                let found = allows(&path(name), READ);
                assert_eq!(found, expected, "{name} {above:o} {keys:o} {one:o} {links:o}");
            }
        }
    }

    /// A mount that hung took a thread for each status, and each waited for it.
    #[tokio::test]
    async fn a_file_system_that_hangs_is_asked_once_and_not_waited_for() {
        let listen = "127.0.0.1:0".parse().unwrap();
        let own = OwnFiles::of(&Config::new(1, "/no/such".into(), listen, listen));
        let open = |path: &str| Open::from([("tls.key".to_owned(), path.to_owned())]);
        let found = |path: &'static str| move || open(path);
        assert_eq!(own.told(found("a")).await, open("a"));
        let (back, comes_back) = mpsc::channel::<()>();
        let begun = Instant::now();
        let hung = own.told(move || {
            let _until_then = comes_back.recv();
            open("b")
        });
        let looked = Arc::new(AtomicU32::new(0));
        let looks = (0..50).map(|_| {
            let looked = looked.clone();
            own.told(move || {
                looked.fetch_add(1, Ordering::Relaxed);
                open("c")
            })
        });
        // At once: none of them knows yet that the first one hangs.
        let (hung, looks) = join(hung, join_all(looks)).await;
        assert_eq!(hung, open("a"), "what was found last");
        assert_eq!(looks, vec![open("a"); 50]);
        assert!(begun.elapsed() < LOOK_WITHIN * 10, "all together: {:?}", begun.elapsed());
        assert_eq!(looked.load(Ordering::Relaxed), 0, "no thread more hangs");
        back.send(()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while own.told(found("d")).await != open("d") {
            assert!(Instant::now() < deadline, "it answers again");
        }
    }
}
