//! The keys of the instances that a lease keeps, in order. Most leases keep one, which stands in
//! the lease itself.

use crate::tables::sorted_map::SortedMap;
use crate::types::InstanceKey;

/// The instances of one lease. Equal sets are equal values: `Many` has at least two.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Kept {
    #[default]
    None,
    One(InstanceKey),
    Many(SortedMap<InstanceKey, ()>),
}

impl Kept {
    pub(crate) fn insert(&mut self, key: InstanceKey) {
        match self {
            Self::None => *self = Self::One(key),
            Self::One(only) if *only == key => {}
            Self::One(only) => {
                *self = Self::Many([(only.clone(), ()), (key, ())].into_iter().collect());
            }
            Self::Many(keys) => {
                keys.insert(key, ());
            }
        }
    }

    pub(crate) fn remove(&mut self, key: &InstanceKey) {
        match self {
            Self::One(only) if only == key => *self = Self::None,
            Self::None | Self::One(_) => {}
            Self::Many(keys) => {
                keys.remove(key);
                if keys.len() == 1 {
                    let only = keys.keys().next().cloned();
                    *self = only.map_or(Self::None, Self::One);
                }
            }
        }
    }

    pub(crate) fn contains(&self, key: &InstanceKey) -> bool {
        match self {
            Self::None => false,
            Self::One(only) => only == key,
            Self::Many(keys) => keys.get(key).is_some(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::One(_) => 1,
            Self::Many(keys) => keys.len(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &InstanceKey> {
        let (one, many) = match self {
            Self::None => (None, None),
            Self::One(only) => (Some(only), None),
            Self::Many(keys) => (None, Some(keys)),
        };
        one.into_iter().chain(many.into_iter().flat_map(SortedMap::keys))
    }
}
