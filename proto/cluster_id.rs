//! Which cluster, as a type of its own.

use std::fmt;
use std::num::NonZeroU64;

use crate::v1::ResponseHeader;

/// Which cluster: drawn at random when it was founded, never 0. Shown as 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(NonZeroU64);

impl ClusterId {
    /// The id that is this number on the wire; `None` for 0, which stands for none there.
    pub const fn new(number: u64) -> Option<Self> {
        match NonZeroU64::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The number on the wire.
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// The cluster that an answer is of, as far as its node knows.
    pub fn of(header: &ResponseHeader) -> Option<Self> {
        Self::new(header.cluster_id)
    }

    /// The number on the wire of one that may not be known.
    pub fn to_wire(id: Option<Self>) -> u64 {
        id.map_or(0, Self::get)
    }
}

impl From<NonZeroU64> for ClusterId {
    fn from(number: NonZeroU64) -> Self {
        Self(number)
    }
}

impl From<ClusterId> for NonZeroU64 {
    fn from(id: ClusterId) -> Self {
        id.0
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_the_wire_0_stands_for_none() {
        assert_eq!((ClusterId::new(0), ClusterId::to_wire(None)), (None, 0));
        let id = ClusterId::new(0xab).unwrap();
        assert_eq!(ClusterId::to_wire(Some(id)), 0xab);
        assert_eq!(id.to_string(), "00000000000000ab");
    }
}
