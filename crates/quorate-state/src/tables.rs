//! Tables that the registry is made of: cheap to clone, in a fixed order.

pub(crate) mod deadlines;
pub(crate) mod kept;
pub(crate) mod name_ends;
pub(crate) mod sorted_map;

pub use sorted_map::SortedMap;
