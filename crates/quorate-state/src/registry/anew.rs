//! The state of a cluster that is founded from another one's: from a backup, or from the directory
//! of a node whose cluster has lost its majority.
//!
//! The old cluster may have gone further than this state, and somebody may still hold what it said
//! then. So nothing that it can have said is said again with another meaning: revisions and lease
//! ids go on far behind what it can have reached, and each service counts as changed.

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::sync::Arc;

use crate::record;
use crate::registry::Registry;
use crate::registry::instances::Service;
use crate::registry::leases::Lease;
use crate::registry::replies::Origin;
use crate::tables::kept::Kept;
use crate::types::Revision;

/// The old cluster has made fewer changes since: at 100,000 a second they take 115 days. It
/// shows: revision 1000000000042 is 42 of the state before, and numbers stay exact in JSON for
/// 9,000 foundings.
const REVISIONS_AHEAD: u64 = 1_000_000_000_000;

/// It has granted fewer leases since.
const LEASES_AHEAD: u64 = 1 << 32;

/// Clusters before this one that are known, at most: the latest.
const PREDECESSORS_MAX: usize = 16;

/// Of so many of these, also the nodes are known ...
const WITH_NODES_MAX: usize = 4;

/// ... at most so many of each, the first ...
const NODES_MAX: usize = 16;

/// ... whose addresses are no longer than this; bytes. What is longer is no `host:port`.
const ADDRESS_BYTES_MAX: usize = 260;

/// What was done to found a cluster from another one's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Founding {
    /// The new cluster's id.
    pub cluster_id: NonZeroU64,
    /// Its only member, which may have been taken out of the old one.
    pub node_id: u64,
    /// When, ms since 1970, by the clock of whoever did it.
    pub wall_ms: u64,
    /// The nodes of the old cluster that may come back, and are to end then; none: it may run on.
    pub left: Vec<OldNode>,
}

/// A cluster whose registrations another one has taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Predecessor {
    /// Its id.
    pub cluster_id: NonZeroU64,
    /// When that was, ms since 1970, by the clock of whoever did it.
    pub wall_ms: u64,
    /// Its nodes that may come back, and are to end then; none: it may run on, or is one of long
    /// ago.
    pub left: Vec<OldNode>,
}

record!(Predecessor { cluster_id, wall_ms, left } {});

/// A node of a cluster whose registrations another one has taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldNode {
    /// Its id.
    pub id: u64,
    /// Where the others reached it, `host:port`.
    pub address: String,
}

record!(OldNode { id, address } {});

impl Registry {
    /// The same registrations in a new cluster, each lease with its whole TTL.
    #[must_use]
    pub fn founded_anew(&self, founding: Founding) -> Self {
        let revision = Revision(self.revision.0 + REVISIONS_AHEAD);
        let mut anew = Self {
            cluster_id: Some(founding.cluster_id),
            predecessors: self.predecessors_with_this(founding.wall_ms, founding.left).into(),
            level: self.level,
            clock: self.clock,
            revision,
            last_lease: self.last_lease + LEASES_AHEAD,
            forgotten: revision,
            ..Self::new()
        };
        anew.replies.forgotten = self.replies.forgotten;
        for lease in self.leases.values() {
            let (renewed, deadline) = (self.clock, self.clock.plus_ms(lease.ttl.as_ms()));
            let instances = Kept::None;
            anew.insert_lease(Lease { renewed, deadline, instances, ..lease.clone() });
        }
        for (key, service) in &self.services {
            let Service { empty_since, .. } = *service;
            anew.insert_service(
                key.clone(),
                Service { revision, empty_since, ..Service::default() },
            );
            service.instances.values().for_each(|it| anew.insert_instance(Arc::clone(it)));
        }
        for (key, value) in &self.overrides {
            anew.insert_override(key.clone(), value.clone());
        }
        self.tombstones.values().for_each(|it| anew.insert_tombstone(it.clone()));
        // Their certificates are as good for a cluster of the same name.
        self.removed.values().for_each(|it| anew.insert_removed(it.clone()));
        anew.members_changed(&BTreeSet::new(), &BTreeSet::from([founding.node_id]));
        self.replies.origins().for_each(|it| anew.insert_origin(Origin { kept: 0, ..*it }));
        for done in self.replies.done() {
            anew.insert_reply(done.clone());
        }
        anew
    }

    /// The clusters before one that is made from this one.
    fn predecessors_with_this(&self, wall_ms: u64, mut left: Vec<OldNode>) -> Vec<Predecessor> {
        left.retain(|node| node.address.len() <= ADDRESS_BYTES_MAX);
        left.truncate(NODES_MAX);
        let mut all = self.predecessors.to_vec();
        all.extend(self.cluster_id.map(|cluster_id| Predecessor { cluster_id, wall_ms, left }));
        let mut latest = all.split_off(all.len().saturating_sub(PREDECESSORS_MAX));
        let old = latest.len().saturating_sub(WITH_NODES_MAX);
        latest[..old].iter_mut().for_each(|it| it.left.clear());
        latest
    }

    /// The clusters whose registrations this one has taken over, the latest last.
    pub fn predecessors(&self) -> &[Predecessor] {
        &self.predecessors
    }
}
