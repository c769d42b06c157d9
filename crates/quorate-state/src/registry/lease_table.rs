//! All leases by id, in blocks of neighbours. Ids are given out in order, each once, so a B-tree of
//! single leases is half empty: a lease takes 70 bytes here where it took 160, and a renewal finds
//! it in fewer steps.

use std::sync::Arc;

use imbl::OrdMap;

use crate::registry::leases::Lease;
use crate::types::LeaseId;

/// The number of ids that share a block. A block is copied when one of its leases changes while a
/// clone shares it.
const BLOCK: u64 = 16;

/// Leases by id. Cheap to clone, like all that a registry is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LeaseTable {
    /// By id / [`BLOCK`]; none is empty. Leases in the order of their ids.
    blocks: OrdMap<u64, Arc<Vec<Lease>>>,
    len: usize,
}

impl LeaseTable {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn get(&self, id: LeaseId) -> Option<&Lease> {
        let block = self.blocks.get(&(id.0 / BLOCK))?;
        place(block, id).ok().map(|place| &block[place])
    }

    pub(crate) fn get_mut(&mut self, id: LeaseId) -> Option<&mut Lease> {
        let block = self.blocks.get_mut(&(id.0 / BLOCK))?;
        let place = place(block, id).ok()?;
        Arc::make_mut(block).get_mut(place)
    }

    /// In the order of their ids.
    pub(crate) fn values(&self) -> impl Iterator<Item = &Lease> {
        self.blocks.values().flat_map(|block| block.iter())
    }

    /// Puts a lease in, in the place of one with its id.
    pub(crate) fn insert(&mut self, lease: Lease) {
        let block = self.blocks.entry(lease.id.0 / BLOCK).or_default();
        match place(block, lease.id) {
            Ok(place) => Arc::make_mut(block)[place] = lease,
            Err(place) => {
                Arc::make_mut(block).insert(place, lease);
                self.len += 1;
            }
        }
    }

    pub(crate) fn remove(&mut self, id: LeaseId) -> Option<Lease> {
        let number = id.0 / BLOCK;
        let block = self.blocks.get_mut(&number)?;
        let place = place(block, id).ok()?;
        let block = Arc::make_mut(block);
        let lease = block.remove(place);
        self.len -= 1;
        if block.is_empty() {
            self.blocks.remove(&number);
        } else if block.capacity() >= 2 * block.len() + 4 {
            block.shrink_to_fit();
        }
        Some(lease)
    }
}

fn place(block: &[Lease], id: LeaseId) -> Result<usize, usize> {
    // Where it is if none of its neighbours has ended: most often.
    let full = (id.0 % BLOCK) as usize;
    match block.get(full) {
        Some(lease) if lease.id == id => Ok(full),
        _ => block.binary_search_by_key(&id, |lease| lease.id),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::types::{Clock, Ttl};

    fn lease(id: u64, renewed: u64) -> Lease {
        let ttl = Ttl::DEFAULT;
        let (renewed, deadline) = (Clock(renewed), Clock(renewed + ttl.as_ms()));
        Lease { id: LeaseId(id), ttl, renewed, deadline, instances: Default::default() }
    }

    proptest! {
        #[test]
        fn it_is_a_map(changes in vec((0_u8..3, 0_u64..200), 0..600)) {
            let mut table = LeaseTable::default();
            let mut model = BTreeMap::new();
            let mut before = None;
            for (number, (change, id)) in (0..).zip(changes) {
                if number == 300 {
                    before = Some((table.clone(), model.clone()));
                }
                match change {
                    0 => {
                        table.insert(lease(id, number));
                        model.insert(id, lease(id, number));
                    }
                    1 => prop_assert_eq!(table.remove(LeaseId(id)), model.remove(&id)),
                    _ => {
                        let renewed = |lease: &mut Lease| lease.renewed = Clock(number);
                        prop_assert_eq!(
                            table.get_mut(LeaseId(id)).map(renewed),
                            model.get_mut(&id).map(renewed)
                        );
                    }
                }
                prop_assert_eq!(table.get(LeaseId(id)), model.get(&id));
                prop_assert_eq!(table.len(), model.len());
            }
            for (table, model) in before.into_iter().chain([(table, model)]) {
                prop_assert!(table.values().eq(model.values()));
                prop_assert!(table.blocks.values().all(|block| !block.is_empty()));
            }
        }
    }
}
