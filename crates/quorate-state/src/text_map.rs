//! Texts by name, in order, in no more memory than they need: a `BTreeMap` of one entry takes 550 bytes beside its texts,
//! and every instance has two. Written as a map is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, Serializer};

/// See the head of this file. Never changed, only made anew.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "BTreeMap<Box<str>, Box<str>>")]
pub struct TextMap(Box<[(Box<str>, Box<str>)]>);

impl TextMap {
    /// Names and texts, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, text)| (&**name, &**text))
    }

    /// The same as a map.
    pub fn to_map(&self) -> BTreeMap<String, String> {
        self.iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect()
    }
}

impl From<BTreeMap<Box<str>, Box<str>>> for TextMap {
    fn from(map: BTreeMap<Box<str>, Box<str>>) -> Self {
        Self(map.into_iter().collect())
    }
}

impl From<BTreeMap<String, String>> for TextMap {
    fn from(map: BTreeMap<String, String>) -> Self {
        Self(map.into_iter().map(|(name, text)| (name.into(), text.into())).collect())
    }
}

impl Serialize for TextMap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}
