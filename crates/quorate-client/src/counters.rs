//! What the parts of a client note for each other, and what it counts for the application.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::cluster_id::ClusterId;

/// What the parts of a client note for each other and for the application.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// The cluster in which this client registered something last, and the latest revision at which
    /// that stands.
    written: Mutex<Option<(ClusterId, u64)>>,
    pub(crate) divergences: AtomicU64,
    pub(crate) bad_cache_files: AtomicU64,
}

impl Counts {
    /// For the application.
    pub(crate) fn shown(&self) -> Counters {
        Counters {
            divergences: self.divergences.load(Ordering::Relaxed),
            bad_cache_files: self.bad_cache_files.load(Ordering::Relaxed),
        }
    }

    /// A registration of this client stands at this revision.
    pub(crate) fn wrote(&self, cluster_id: ClusterId, revision: u64) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let latest = match *written {
            Some((cluster, latest)) if cluster == cluster_id => latest.max(revision),
            _ => revision,
        };
        *written = Some((cluster_id, latest));
    }

    /// The latest revision at which a registration of this client stands in this cluster; 0: none
    /// is known.
    pub(crate) fn written(&self, cluster_id: Option<ClusterId>) -> u64 {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let here = written.filter(|(cluster, _)| Some(*cluster) == cluster_id);
        here.map_or(0, |(_, revision)| revision)
    }
}

/// How often something happened that should not, since the client was made; an example is among the
/// [settings](crate#settings).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Live views that the audit found to differ from the registry, and repaired.
    pub divergences: u64,
    /// Cache files that were passed over: damaged, of another version or of another service.
    pub bad_cache_files: u64,
}
