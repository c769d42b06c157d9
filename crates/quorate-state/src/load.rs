//! How loaded an instance is.

use std::fmt::Display;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::limits::{self, Invalid};

/// What an instance says of its load, 0 to 1,000,000, in a unit of its own.
///
/// It has three bytes (little endian), which every instance had to spare: no load costs no memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load([u8; 3]);

impl Load {
    /// Checks it; `field` is what errors call it.
    ///
    /// # Errors
    /// Over the limit.
    pub fn new(field: impl Display + Copy, load: u32) -> Result<Self, Invalid> {
        if load > limits::LOAD {
            return Err(Invalid::number(field, load, format!("at most {}", limits::LOAD)));
        }
        let [a, b, c, _] = load.to_le_bytes();
        Ok(Self([a, b, c]))
    }

    /// The number.
    pub fn get(self) -> u32 {
        let [a, b, c] = self.0;
        u32::from_le_bytes([a, b, c, 0])
    }
}

/// As the number that it is. What is over the limit is no load.
impl Serialize for Load {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.get().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Load {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new("load", u32::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}
