//! The last known view of each service in a file, for a start while the registry is down.
//!
//! A file is written whole under another name and then renamed; it says what it is, of which
//! service, and ends with a checksum. One that is not what it should be is passed over, logged and
//! counted: never an empty view.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use prost::Message;
use quorate_proto::ClusterId;
use quorate_proto::v1::{Instance, Service};
use tokio::time::sleep;

use super::hub::Shared;

/// A service is written no more often than this.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// What the files begin with: "Quorate cache", version 2. The cluster follows, 8 bytes, little
/// endian.
const MAGIC: &[u8; 8] = b"QRTCACH2";
/// No larger file is written or read.
const FILE_MAX: u64 = 64 * 1024 * 1024;

/// The files of one namespace.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    dir: PathBuf,
    namespace: String,
}

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    #[error("it has {0} bytes, more than {FILE_MAX}")]
    TooLarge(u64),
    #[error("it is no cache file of this version")]
    Format,
    #[error("its checksum is wrong")]
    Checksum,
    #[error("it is of another service")]
    Foreign,
}

impl Cache {
    /// `None`: without a directory, nothing is kept.
    pub(super) fn new(dir: Option<&Path>, namespace: &str) -> Option<Self> {
        let namespace = if namespace.is_empty() { "default" } else { namespace };
        Some(Self { dir: dir?.to_owned(), namespace: namespace.to_owned() })
    }

    /// Names are of letters, digits, '.', '_' and '-', and begin with a letter or digit: so they
    /// are file names, too.
    fn file(&self, service: &str) -> PathBuf {
        self.dir.join(&self.namespace).join(format!("{service}.cache"))
    }

    /// Shows what an earlier run left, if nothing better is there by then.
    pub(super) fn load_in_background(&self, shared: &Arc<Shared>, service: String) {
        let (file, shared) = (self.file(&service), shared.clone());
        let namespace = self.namespace.clone();
        // No task waits for it: what it finds is either still of use then, or not.
        let runtime = shared.core.runtime.clone();
        let _task = runtime.spawn_blocking(move || match read(&file, &namespace, &service) {
            Ok(Some((cluster_id, instances))) => {
                shared.topics().take_cached(&service, cluster_id, instances);
            }
            Ok(None) => {}
            Err(error) => {
                shared.counters().bad_cache_files.one_more();
                let error = &error as &dyn std::error::Error;
                tracing::warn!(file = %file.display(), error, "a cache file was passed over");
            }
        });
    }
}

/// Writes what changed, for as long as the hub lives.
pub(super) async fn save(shared: Arc<Shared>) {
    let Some(cache) = shared.cache.clone() else { return };
    loop {
        shared.saving.notified().await;
        sleep(WRITE_EVERY).await;
        let unsaved =
            std::mem::take(&mut *shared.unsaved.lock().unwrap_or_else(PoisonError::into_inner));
        for service in unsaved {
            let (cluster_id, known) = {
                let topics = shared.topics();
                (topics.cluster_id, topics.known(&service))
            };
            let Some((revision, shown)) = known else { continue };
            let (file, namespace) = (cache.file(&service), cache.namespace.clone());
            let writing = tokio::task::spawn_blocking(move || {
                let instances = shown.iter().map(|instance| Instance::clone(instance)).collect();
                let name = service;
                let service = Service { namespace, name, known: true, revision, instances };
                write(&file, cluster_id, &service).map_err(|error| (file, error))
            });
            if let Ok(Err((file, error))) = writing.await {
                tracing::warn!(file = %file.display(), %error, "a view could not be cached");
            }
        }
    }
}

fn write(file: &Path, cluster_id: Option<ClusterId>, service: &Service) -> io::Result<()> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(ClusterId::to_wire(cluster_id).to_le_bytes());
    service.encode(&mut bytes).map_err(io::Error::other)?;
    if bytes.len() as u64 > FILE_MAX - 4 {
        return Err(io::Error::other("the service is too large to be cached"));
    }
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    if let Some(dir) = file.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let temporary = file.with_extension(format!("{}.new", std::process::id()));
    std::fs::write(&temporary, &bytes)?;
    std::fs::rename(&temporary, file)
}

/// What a file says: the cluster, and the instances.
type Found = (Option<ClusterId>, Vec<Instance>);

/// What is in a file; `None`: there is none.
fn read(file: &Path, namespace: &str, service: &str) -> Result<Option<Found>, Unusable> {
    let size = match std::fs::metadata(file) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Unusable::Read(error)),
    };
    if size > FILE_MAX {
        return Err(Unusable::TooLarge(size));
    }
    let bytes = std::fs::read(file).map_err(Unusable::Read)?;
    let body = bytes.strip_prefix(MAGIC).ok_or(Unusable::Format)?;
    let (body, checksum) = body.split_last_chunk::<4>().ok_or(Unusable::Format)?;
    if crc32fast::hash(&bytes[..bytes.len() - 4]) != u32::from_le_bytes(*checksum) {
        return Err(Unusable::Checksum);
    }
    let (cluster_id, body) = body.split_first_chunk::<8>().ok_or(Unusable::Format)?;
    let found = Service::decode(body).map_err(|_garbage| Unusable::Format)?;
    if found.namespace != namespace || found.name != service {
        return Err(Unusable::Foreign);
    }
    Ok(Some((ClusterId::new(u64::from_le_bytes(*cluster_id)), found.instances)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(instances: usize) -> Service {
        let instances =
            (0..instances).map(|n| Instance { id: n.to_string(), ..Instance::default() });
        let (namespace, name) = ("default".to_owned(), "s".to_owned());
        Service { namespace, name, instances: instances.collect(), ..Service::default() }
    }

    #[test]
    fn a_file_is_read_as_it_was_written_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(Some(dir.path()), "").unwrap();
        let file = cache.file("s");
        assert!(matches!(read(&file, "default", "s"), Ok(None)));
        write(&file, ClusterId::new(7), &service(3)).unwrap();
        write(&file, ClusterId::new(8), &service(2)).unwrap();
        let (cluster_id, instances) = read(&file, "default", "s").unwrap().unwrap();
        assert_eq!((cluster_id, instances.len()), (ClusterId::new(8), 2));
        assert!(matches!(read(&file, "default", "t"), Err(Unusable::Foreign)));
        assert!(matches!(read(&file, "other", "s"), Err(Unusable::Foreign)));
        let whole = std::fs::read(&file).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&file, &damaged).unwrap();
            assert!(read(&file, "default", "s").is_err(), "byte {at}");
            std::fs::write(&file, &whole[..at]).unwrap();
            assert!(read(&file, "default", "s").is_err(), "cut at {at}");
        }
    }
}
