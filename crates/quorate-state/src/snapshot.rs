//! The whole state as a stream of records: each a length (u32, little endian) and postcard bytes,
//! headed by a version and ended by a count and the state's hash. Derived indexes are not written;
//! reading builds them anew.
//!
//! Every record ends with its optional fields, also where there are none yet, so that each can grow
//! (`optional.rs`). What cannot be said so gets a new version.

use std::io::{Read, Write};
use std::num::NonZeroU64;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::level::Level;
use crate::optional::{Optional, read_whole};
use crate::record;
use crate::registry::deregister::Tombstone;
use crate::registry::instances::Service;
use crate::registry::leases::Lease;
use crate::registry::nodes::RemovedNodes;
use crate::registry::replies::{Done, Origin};
use crate::registry::{Predecessor, Registry};
use crate::spec::{Instance, Override};
use crate::types::{Clock, InstanceKey, Revision, ServiceKey};

/// The only version.
const VERSION: u32 = 1;

/// No record is larger: an instance at all of its limits takes about 100 KiB.
const RECORD_BYTES_MAX: u32 = 1024 * 1024;

#[derive(Serialize, Deserialize)]
enum Record {
    Head(Head),
    Service(ServiceHead),
    Instance(Arc<Instance>),
    Lease(Lease, Optional<()>),
    Override(InstanceKey, Override),
    Tombstone(Tombstone, Optional<()>),
    Origin(Origin, Optional<()>),
    /// Stands behind its origin.
    Done(Arc<Done>, Optional<()>),
    End {
        records: u64,
        hash: u64,
    },
    Removed(RemovedNodes, Optional<()>),
}

/// Begins with the version, whatever comes after that in others.
struct Head {
    version: u32,
    clock: Clock,
    revision: Revision,
    last_lease: u64,
    forgotten: Revision,
    /// 0: none.
    cluster_id: u64,
    forgotten_origins: Option<Clock>,
    /// Never empty.
    predecessors: Option<Arc<[Predecessor]>>,
    /// Never that of a new cluster.
    level: Option<Level>,
}

record!(
    Head { version, clock, revision, last_lease, forgotten, cluster_id }
    { forgotten_origins, predecessors, level }
);

/// Stands before its instances.
struct ServiceHead {
    key: ServiceKey,
    revision: Revision,
    empty_since: Option<Clock>,
}

record!(ServiceHead { key, revision } { empty_since });

/// Why a snapshot cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// Reading the bytes failed.
    #[error("reading record {record} of the snapshot failed")]
    Io {
        /// Counted from 0.
        record: u64,
        /// What failed.
        #[source]
        source: std::io::Error,
    },
    /// The bytes are no record.
    #[error("record {record} of the snapshot is damaged")]
    Damaged {
        /// Counted from 0.
        record: u64,
    },
    /// The bytes are sound, and hold what this version does not know.
    #[error(
        "record {record} of the snapshot holds what this version does not know: a newer one wrote it"
    )]
    Unknown {
        /// Counted from 0.
        record: u64,
    },
    /// It was written by another version.
    #[error("the snapshot has format version {found}, this software reads version {VERSION}")]
    Version {
        /// The version it has.
        found: u32,
    },
    /// It is not what was written.
    #[error("the snapshot's content does not match its own count and hash")]
    Mismatch,
}

/// Writes the whole state. Equal states give equal bytes.
///
/// # Errors
/// Those of `out`.
pub fn write_snapshot(registry: &Registry, out: &mut impl Write) -> std::io::Result<()> {
    let Registry { clock, revision, last_lease, forgotten, .. } = *registry;
    let (version, cluster_id) = (VERSION, registry.cluster_number());
    let forgotten_origins = registry.replies.forgotten;
    let predecessors = Some(registry.predecessors.clone()).filter(|ids| !ids.is_empty());
    let level = Some(registry.level).filter(|level| *level != Level::default());
    let head = Record::Head(Head {
        version,
        clock,
        revision,
        last_lease,
        forgotten,
        cluster_id,
        forgotten_origins,
        predecessors,
        level,
    });
    let none = Optional(());
    let leases = registry.leases.values().map(|lease| Record::Lease(lease.clone(), none));
    let overrides = registry.overrides.iter();
    let overrides = overrides.map(|(key, value)| Record::Override(key.clone(), value.clone()));
    let tombstones = registry.tombstones.values().map(|it| Record::Tombstone(it.clone(), none));
    let origins = registry.replies.origins().map(|origin| Record::Origin(*origin, none));
    let replies = registry.replies.done().map(|done| Record::Done(done.clone(), none));
    let removed = registry.removed.values().map(|it| Record::Removed(it.clone(), none));
    let services = registry.services.iter().flat_map(|(key, service)| {
        let Service { revision, empty_since, .. } = *service;
        let head = Record::Service(ServiceHead { key: key.clone(), revision, empty_since });
        let instances = service.instances.values().map(|it| Record::Instance(it.clone()));
        std::iter::once(head).chain(instances)
    });
    let (mut records, mut scratch) = (0, Vec::new());
    let all = std::iter::once(head).chain(leases).chain(overrides).chain(tombstones);
    for record in all.chain(origins).chain(replies).chain(removed).chain(services) {
        write_record(out, &mut scratch, &record)?;
        records += 1;
    }
    write_record(out, &mut scratch, &Record::End { records, hash: registry.hash() })
}

fn write_record(
    out: &mut impl Write,
    scratch: &mut Vec<u8>,
    record: &Record,
) -> std::io::Result<()> {
    scratch.clear();
    let bytes = postcard::to_extend(record, std::mem::take(scratch));
    let bytes = bytes.map_err(std::io::Error::other)?;
    out.write_all(&(bytes.len() as u32).to_le_bytes())?;
    out.write_all(&bytes)?;
    *scratch = bytes;
    Ok(())
}

/// Reads what [`write_snapshot`] wrote, and checks that it is that.
///
/// # Errors
/// Anything that is not a whole, undamaged snapshot of a known version.
pub fn read_snapshot(input: &mut impl Read) -> Result<Registry, SnapshotError> {
    let mut registry = Registry::new();
    for index in 0.. {
        let record = read_record(input, index)?;
        if (index == 0) != matches!(record, Record::Head(_)) {
            return Err(SnapshotError::Damaged { record: index });
        }
        match record {
            Record::Head(head) => {
                let Head { clock, revision, last_lease, forgotten, .. } = head;
                let cluster_id = NonZeroU64::new(head.cluster_id);
                let empty = Registry::new();
                registry = Registry { clock, revision, last_lease, forgotten, cluster_id, ..empty };
                registry.replies.forgotten = head.forgotten_origins;
                registry.predecessors = head.predecessors.unwrap_or_default();
                registry.level = head.level.unwrap_or_default();
            }
            Record::Service(ServiceHead { key, revision, empty_since }) => {
                let service = Service { revision, empty_since, ..Service::default() };
                registry.insert_service(key, service);
            }
            Record::Lease(lease, _) => {
                registry.insert_lease(lease);
            }
            Record::Instance(mut instance) => {
                if let Some(instance) = Arc::get_mut(&mut instance) {
                    instance.key = registry.with_known_names(&instance.key);
                }
                registry.insert_instance(instance);
            }
            Record::Override(key, value) => registry.insert_override(key, value),
            Record::Tombstone(tombstone, _) => registry.insert_tombstone(tombstone),
            Record::Origin(origin, _) => registry.insert_origin(origin),
            Record::Done(done, _) => {
                if registry.insert_reply(done).is_none() {
                    return Err(SnapshotError::Damaged { record: index });
                }
            }
            Record::Removed(removed, _) => registry.insert_removed(removed),
            Record::End { records, hash } => {
                let whole = records == index && hash == registry.hash();
                return if whole { Ok(registry) } else { Err(SnapshotError::Mismatch) };
            }
        }
    }
    unreachable!("invariant: the loop only ends by returning")
}

/// Whose state a snapshot is, from its first record; `None`: of a cluster that was not founded
/// yet.
///
/// # Errors
/// It does not begin as one of this version does.
pub fn read_snapshot_cluster(input: &mut impl Read) -> Result<Option<NonZeroU64>, SnapshotError> {
    match read_record(input, 0)? {
        Record::Head(head) => Ok(NonZeroU64::new(head.cluster_id)),
        _ => Err(SnapshotError::Damaged { record: 0 }),
    }
}

fn read_record(input: &mut impl Read, record: u64) -> Result<Record, SnapshotError> {
    let io = |source| SnapshotError::Io { record, source };
    let mut length = [0; 4];
    input.read_exact(&mut length).map_err(io)?;
    let length = u32::from_le_bytes(length);
    if length > RECORD_BYTES_MAX {
        return Err(SnapshotError::Damaged { record });
    }
    let mut bytes = vec![0; length as usize];
    input.read_exact(&mut bytes).map_err(io)?;
    if record == 0 {
        check_version(&bytes)?;
    }
    read_whole(&bytes).map_err(|error| match error {
        postcard::Error::SerdeDeCustom => SnapshotError::Unknown { record },
        _ => SnapshotError::Damaged { record },
    })
}

/// Before anything else is read of the first record, which may be another one in another version.
fn check_version(head: &[u8]) -> Result<(), SnapshotError> {
    match postcard::take_from_bytes::<(u32, u32)>(head) {
        Ok(((0, VERSION), _)) => Ok(()),
        Ok(((0, found), _)) => Err(SnapshotError::Version { found }),
        _ => Err(SnapshotError::Damaged { record: 0 }),
    }
}
