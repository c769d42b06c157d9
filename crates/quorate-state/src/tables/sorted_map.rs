//! An ordered map that is cheap to clone and stays small: in blocks of up to 32 entries, which are
//! full where entries came in order, and not much larger than what is in them where there are few.
//! A B-tree's nodes are half full when entries come in order, and never smaller than 16 entries: an
//! instance took 42 bytes more, of 578.
//!
//! Changing it copies the block in question where a clone shares it, and the list of blocks: good
//! for thousands of entries, not for millions.

use std::sync::Arc;

/// Entries of a block.
const BLOCK: usize = 32;

type Block<K, V> = Arc<Vec<(K, V)>>;

/// A map that is ordered by key, in blocks.
#[derive(Debug, Clone)]
pub struct SortedMap<K, V>(Blocks<K, V>);

/// No block is empty.
#[derive(Debug, Clone)]
enum Blocks<K, V> {
    None,
    One(Block<K, V>),
    Many { blocks: Arc<Vec<Block<K, V>>>, len: usize },
}

impl<K, V> SortedMap<K, V> {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        match &self.0 {
            Blocks::None => 0,
            Blocks::One(block) => block.len(),
            Blocks::Many { len, .. } => *len,
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All entries, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.blocks().iter().flat_map(|block| block.iter()).map(|(key, value)| (key, value))
    }

    /// All keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// All values, in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    fn blocks(&self) -> &[Block<K, V>] {
        match &self.0 {
            Blocks::None => &[],
            Blocks::One(block) => std::slice::from_ref(block),
            Blocks::Many { blocks, .. } => blocks,
        }
    }
}

impl<K: Ord + Clone, V: Clone> SortedMap<K, V> {
    /// The value of a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        let (at, place) = self.find(key);
        place.ok().map(|place| &self.blocks()[at][place].1)
    }

    /// The entries with higher keys than this, in order.
    pub fn after<'a>(&'a self, key: &K) -> impl Iterator<Item = (&'a K, &'a V)> + use<'a, K, V> {
        let (at, place) = self.find(key);
        let begun = place.map_or_else(|place| place, |place| place + 1);
        let blocks = self.blocks().get(at..).unwrap_or_default();
        let entries = blocks.iter().flat_map(|block| block.iter());
        entries.skip(begun).map(|(key, value)| (key, value))
    }

    /// Which block a key is in or belongs into, and where in it.
    fn find(&self, key: &K) -> (usize, Result<usize, usize>) {
        let blocks = self.blocks();
        let later = blocks.get(1..).unwrap_or_default();
        let at = later.partition_point(|block| block[0].0 <= *key);
        let block = blocks.get(at).map_or(&[][..], |block| block);
        (at, block.binary_search_by(|(other, _)| other.cmp(key)))
    }

    /// Puts a value in; what was there before.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let (at, place) = self.find(&key);
        match place {
            Ok(place) => Some(std::mem::replace(&mut self.block_mut(at)?[place].1, value)),
            Err(place) => {
                self.insert_at(at, place, (key, value));
                None
            }
        }
    }

    fn block_mut(&mut self, at: usize) -> Option<&mut Vec<(K, V)>> {
        match &mut self.0 {
            Blocks::None => None,
            Blocks::One(block) => Some(Arc::make_mut(block)),
            Blocks::Many { blocks, .. } => Arc::make_mut(blocks).get_mut(at).map(Arc::make_mut),
        }
    }

    fn insert_at(&mut self, at: usize, place: usize, entry: (K, V)) {
        match &mut self.0 {
            Blocks::None => self.0 = Blocks::One(Arc::new(vec![entry])),
            Blocks::One(block) if block.len() < BLOCK => put_in(block, place, entry),
            Blocks::One(block) => {
                let blocks = Arc::new(vec![block.clone()]);
                self.0 = Blocks::Many { blocks, len: BLOCK };
                self.insert_at(at, place, entry);
            }
            Blocks::Many { blocks, len } => {
                *len += 1;
                let blocks = Arc::make_mut(blocks);
                if blocks[at].len() < BLOCK {
                    put_in(&mut blocks[at], place, entry);
                } else if place == BLOCK && at + 1 == blocks.len() {
                    blocks.push(Arc::new(vec![entry]));
                } else {
                    let left = Arc::make_mut(&mut blocks[at]);
                    let right = left.split_off(BLOCK / 2);
                    left.shrink_to_fit();
                    blocks.insert(at + 1, Arc::new(right));
                    match place.checked_sub(BLOCK / 2) {
                        Some(place) => put_in(&mut blocks[at + 1], place, entry),
                        None => put_in(&mut blocks[at], place, entry),
                    }
                }
            }
        }
    }

    /// Takes a key out; its value.
    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let (at, place) = self.find(key);
        let block = self.block_mut(at)?;
        let (_, value) = block.remove(place.ok()?);
        if block.capacity() >= 2 * block.len() + 4 {
            block.shrink_to_fit();
        }
        let left = block.len();
        match &mut self.0 {
            Blocks::Many { blocks, len } => {
                *len -= 1;
                let blocks = Arc::make_mut(blocks);
                if left < BLOCK / 4 {
                    merge(blocks, at);
                }
                if let [only] = &blocks[..] {
                    self.0 = Blocks::One(only.clone());
                }
            }
            _ if left == 0 => self.0 = Blocks::None,
            _ => {}
        }
        Some(value)
    }
}

/// Puts a small block together with one beside it, if they fill no more than three quarters of a
/// block.
fn merge<K: Clone, V: Clone>(blocks: &mut Vec<Block<K, V>>, at: usize) {
    let first = at.min(blocks.len().saturating_sub(2));
    let [left, right] = &mut blocks[first..first + 2] else { return };
    if left.len() + right.len() <= BLOCK / 4 * 3 {
        Arc::make_mut(left).extend_from_slice(right);
        blocks.remove(first + 1);
    } else if blocks[at].is_empty() {
        blocks.remove(at);
    }
}

/// Puts an entry into a block that has room, which grows by little at a time: most blocks are never
/// full.
fn put_in<K: Clone, V: Clone>(block: &mut Block<K, V>, place: usize, entry: (K, V)) {
    let block = Arc::make_mut(block);
    if block.len() == block.capacity() {
        block.reserve_exact(block.len().clamp(1, 8));
    }
    block.insert(place, entry);
}

impl<K, V> Default for SortedMap<K, V> {
    fn default() -> Self {
        Self(Blocks::None)
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for SortedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl<K: Eq, V: Eq> Eq for SortedMap<K, V> {}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for SortedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::default();
        for (key, value) in entries {
            map.insert(key, value);
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn check_blocks(map: &SortedMap<u16, u32>) {
        assert!(map.blocks().iter().all(|block| (1..=BLOCK).contains(&block.len())));
        assert_eq!(matches!(map.0, Blocks::Many { .. }), map.blocks().len() > 1);
        assert_eq!(map.blocks().iter().map(|block| block.len()).sum::<usize>(), map.len());
    }

    proptest! {
        /// Keys of few or of many values, so that blocks are split, merged and emptied; what was
        /// cloned stays as it was.
        #[test]
        fn it_is_a_map(
            changes in vec((any::<bool>(), 0_u16..400), 0..800),
            dense in any::<bool>(),
        ) {
            let mut map = SortedMap::default();
            let mut model = BTreeMap::new();
            let mut kept = Vec::new();
            for (number, (inserts, key)) in (0_u32..).zip(changes) {
                let key = if dense { key % 40 } else { key };
                if number % 64 == 0 {
                    kept.push((map.clone(), model.clone()));
                }
                if inserts {
                    prop_assert_eq!(map.insert(key, number), model.insert(key, number));
                } else {
                    prop_assert_eq!(map.remove(&key), model.remove(&key));
                }
                check_blocks(&map);
                prop_assert_eq!(map.get(&key), model.get(&key));
                prop_assert!(map.after(&key).eq(model.range(key + 1..)));
            }
            kept.push((map, model));
            for (map, model) in kept {
                prop_assert!(map.iter().eq(model.iter()));
                prop_assert_eq!(map, model.into_iter().collect());
            }
        }
    }

    #[test]
    fn blocks_are_full_where_entries_come_in_order_and_go_where_they_leave() {
        let mut map: SortedMap<u16, u32> = (0..1_000).map(|key| (key, 0)).collect();
        assert_eq!(map.blocks().len(), 1_000_usize.div_ceil(BLOCK));
        for key in 0..990 {
            map.remove(&key);
            check_blocks(&map);
        }
        assert!(matches!(&map.0, Blocks::One(block) if block.capacity() < 24));
        for key in 990..1_000 {
            map.remove(&key);
        }
        assert!(matches!(map.0, Blocks::None));
    }
}
