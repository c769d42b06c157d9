//! A hash of the whole state that costs a few operations a change: the sum (modulo 2^64) of the
//! hashes of all records, so that a record can be taken out again and the order does not matter (an
//! additive multiset hash: Bellare and Micciancio, "A New Paradigm for Collision-Free Hashing",
//! 1997). It finds replicas that differ by accident; it is no defence against somebody who wants a
//! collision.

use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The sum so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct StateHash(u64);

/// Keeps equal bytes of different kinds of records apart.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Instance = 1,
    Lease = 2,
    Override = 3,
    Tombstone = 4,
    Service = 5,
    Head = 6,
    Origin = 7,
    Done = 8,
    Mark = 9,
    RemovedNodes = 10,
}

impl StateHash {
    pub(crate) fn add(&mut self, kind: Kind, record: &impl Serialize) {
        self.0 = self.0.wrapping_add(hash(kind, record));
    }

    pub(crate) fn remove(&mut self, kind: Kind, record: &impl Serialize) {
        self.0 = self.0.wrapping_sub(hash(kind, record));
    }

    /// A number of a record that changes oftener than the rest of it: costs a tenth of hashing the
    /// record anew.
    pub(crate) fn add_mark(&mut self, of: u64, number: u64) {
        self.0 = self.0.wrapping_add(mark(of, number));
    }

    pub(crate) fn remove_mark(&mut self, of: u64, number: u64) {
        self.0 = self.0.wrapping_sub(mark(of, number));
    }

    /// The sum, with the record that heads the state.
    pub(crate) fn with_head(self, head: &impl Serialize) -> u64 {
        self.0.wrapping_add(hash(Kind::Head, head))
    }
}

fn mark(of: u64, number: u64) -> u64 {
    let bytes = (u128::from(of) << 64 | u128::from(number)).to_le_bytes();
    xxh3_64_with_seed(&bytes, Kind::Mark as u64)
}

fn hash(kind: Kind, record: &impl Serialize) -> u64 {
    // Most records fit, and need no allocation then: every change hashes two to four of them. A
    // lease has four numbers of up to 10 bytes, an origin three, a reply that was kept up to seven;
    // clearing 1 KiB took a tenth of a renewal.
    let within = match kind {
        Kind::Lease | Kind::Origin => hash_within::<40>(kind, record),
        Kind::Done => hash_within::<80>(kind, record),
        _ => hash_within::<1_024>(kind, record),
    };
    within.unwrap_or_else(|| {
        let bytes = postcard::to_stdvec(record)
            .expect("invariant: our records have no type that postcard cannot write");
        xxh3_64_with_seed(&bytes, kind as u64)
    })
}

/// `None`: the record is larger than that.
fn hash_within<const BYTES: usize>(kind: Kind, record: &impl Serialize) -> Option<u64> {
    let mut buffer = [0; BYTES];
    let bytes = postcard::to_slice(record, &mut buffer).ok()?;
    Some(xxh3_64_with_seed(bytes, kind as u64))
}
