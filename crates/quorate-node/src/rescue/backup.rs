//! A backup that was read from its first byte to its last, and checked.

use std::io::BufReader;
use std::path::Path;

use quorate_log::SnapshotFile;
use quorate_proto::ClusterId;
use quorate_state::{Counts, Instance, Registry, Status, read_snapshot};

use crate::backup::{Head, HeadError};
use crate::rescue::error::RescueError;
use crate::types::{LogId, TypeConfig};

/// A backup that was read and checked.
#[derive(Debug)]
pub struct Backup {
    head: Head,
    pub(super) registry: Registry,
    pub(super) last: Option<LogId>,
    cluster_id: ClusterId,
    bytes: u64,
}

/// One instance in a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackedUp {
    /// Its namespace.
    pub namespace: String,
    /// Its service.
    pub service: String,
    /// Its id.
    pub id: String,
    /// Its status: the operator's where there is one.
    pub status: &'static str,
    /// Its lease's TTL, ms.
    pub ttl_ms: u64,
    /// Its endpoints.
    pub endpoints: Vec<(String, String)>,
}

impl Backup {
    /// Reads a backup whole. Blocks.
    ///
    /// # Errors
    /// It cannot be read, is no backup, is damaged or cut off, or was written by a newer release.
    pub fn read(path: &Path) -> Result<Self, RescueError> {
        let (head, start, snapshot) = open(path)?;
        let registry = read_snapshot(&mut BufReader::new(snapshot.body()));
        let registry = registry.map_err(|error| RescueError::content(path, error))?;
        let cluster_id = registry.cluster_id().map(ClusterId::from);
        let cluster_id =
            cluster_id.ok_or_else(|| RescueError::Unfounded { path: path.to_owned() })?;
        let last = snapshot.meta().last_log_id;
        Ok(Self { head, registry, last, cluster_id, bytes: start + snapshot.len_bytes() })
    }

    /// Reads a backup whole, and compares its checksums; what is in it takes no memory. Blocks.
    ///
    /// # Errors
    /// As [`Backup::read`], but for what only those see who unpack it.
    pub fn check(path: &Path) -> Result<(), RescueError> {
        open(path).map(drop)
    }

    /// Whether a file begins as a backup, whole or not. Blocks.
    pub fn begins_in(path: &Path) -> bool {
        !matches!(Head::read(path), Err(HeadError::Mark | HeadError::Io(_)))
    }

    /// The cluster that it is of.
    pub fn cluster_id(&self) -> ClusterId {
        self.cluster_id
    }

    /// That cluster's name.
    pub fn cluster_name(&self) -> &str {
        &self.head.cluster_name
    }

    /// The clusters that were restored or recovered to become that one, the latest last.
    pub fn predecessors(&self) -> Vec<ClusterId> {
        let before = self.registry.predecessors().iter();
        before.map(|old| ClusterId::from(old.cluster_id)).collect()
    }

    /// When it was taken, by the clock of the node that made it, ms since 1970: all that was
    /// acknowledged before is in it. `None`: nobody knows.
    pub fn taken_ms(&self) -> Option<u64> {
        Some(self.head.taken_ms).filter(|taken_ms| *taken_ms != 0)
    }

    /// The node that made it.
    pub fn node_id(&self) -> u64 {
        self.head.node_id
    }

    /// The version of that node's software.
    pub fn software(&self) -> &str {
        &self.head.software
    }

    /// The last change in it.
    pub fn revision(&self) -> u64 {
        self.registry.revision().0
    }

    /// The log index that it covers.
    pub fn applied_index(&self) -> u64 {
        self.last.map_or(0, |last| last.index())
    }

    /// The size of the file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Services, instances and leases in it.
    pub fn counts(&self) -> [usize; 3] {
        let Counts { services, instances, leases, .. } = self.registry.counts();
        [services, instances, leases]
    }

    /// The instances in it, by namespace, service and id.
    pub fn instances(&self) -> impl Iterator<Item = BackedUp> {
        let services = self.registry.all_services();
        services.flat_map(|(_, service)| service.instances.values()).map(|it| self.told(it))
    }

    fn told(&self, instance: &Instance) -> BackedUp {
        let lease = self.registry.lease(instance.lease);
        let text = |(name, uri): (&str, &str)| (name.to_owned(), uri.to_owned());
        BackedUp {
            namespace: instance.key.service.namespace.to_string(),
            service: instance.key.service.name.to_string(),
            id: instance.key.id.to_string(),
            status: match instance.status() {
                Status::Starting => "STARTING",
                Status::Up => "UP",
                Status::Draining => "DRAINING",
                Status::OutOfService => "OUT_OF_SERVICE",
            },
            ttl_ms: lease.map_or(0, |lease| lease.ttl.as_ms()),
            endpoints: instance.spec.endpoints().iter().map(text).collect(),
        }
    }

    /// The term of its last entry.
    pub(super) fn term(&self) -> u64 {
        self.last.map_or(0, |last| last.committed_leader_id().term)
    }
}

/// Its head, where the rest begins, and that, checked.
fn open(path: &Path) -> Result<(Head, u64, SnapshotFile<TypeConfig>), RescueError> {
    let (head, start) = Head::read(path).map_err(|error| RescueError::head(path, error))?;
    let snapshot = SnapshotFile::open_behind(path, start);
    Ok((head, start, snapshot.map_err(|error| RescueError::content(path, error))?))
}
