//! The texts of an instance in one piece of memory, which the log's entries, the state and its
//! events share: 320 bytes for one endpoint and 256 bytes of metadata, where six pieces took 464,
//! and each holder had its own.
//!
//! Each text stands behind its length, each list or map behind its count; which of them stand in
//! which order is up to `spec.rs`. Numbers have digits to the base of 64, the lowest first, as
//! characters below 128; all digits but the last have bit 6 set. So the whole is a text itself, and
//! its parts need no check when they are read.

use std::collections::BTreeMap;
use std::fmt;

use arcstr::ArcStr;
use serde::{Serialize, Serializer};

/// Several texts in one block of memory. Equal contents are equal texts. Never changed, only made
/// anew.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Texts(ArcStr);

/// Texts in order. Written as a sequence is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct TextList<'a> {
    count: usize,
    packed: &'a str,
}

/// Texts by name, in the order of the names. Written as a map is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TextMap<'a> {
    count: usize,
    packed: &'a str,
}

impl Texts {
    pub(crate) fn pack(write: impl FnOnce(&mut Packer)) -> Self {
        let mut packer = Packer(String::with_capacity(512));
        write(&mut packer);
        Self(packer.0.into())
    }

    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Reads them in the order in which they were packed.
    pub(crate) fn reader(&self) -> Reader<'_> {
        Reader(&self.0)
    }
}

/// What is packed so far.
pub(crate) struct Packer(String);

impl Packer {
    pub(crate) fn text(&mut self, text: &str) {
        push_number(&mut self.0, text.len());
        self.0.push_str(text);
    }

    /// Must be in order, without anything twice.
    pub(crate) fn list<'a>(&mut self, texts: impl ExactSizeIterator<Item = &'a str>) {
        push_number(&mut self.0, texts.len());
        texts.for_each(|text| self.text(text));
    }

    /// Must be in the order of the names, without one twice.
    pub(crate) fn map<'a>(&mut self, texts: impl ExactSizeIterator<Item = (&'a str, &'a str)>) {
        push_number(&mut self.0, texts.len());
        texts.for_each(|(name, text)| {
            self.text(name);
            self.text(text);
        });
    }
}

impl<'a> TextList<'a> {
    pub(crate) fn iter(self) -> impl ExactSizeIterator<Item = &'a str> {
        let mut reader = Reader(self.packed);
        (0..self.count).map(move |_| reader.text())
    }
}

impl fmt::Debug for TextList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl Serialize for TextList<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'a> TextMap<'a> {
    /// Names and texts, in the order of the names.
    pub fn iter(self) -> impl ExactSizeIterator<Item = (&'a str, &'a str)> {
        let mut reader = Reader(self.packed);
        (0..self.count).map(move |_| (reader.text(), reader.text()))
    }

    /// The same as a map.
    pub fn to_map(self) -> BTreeMap<String, String> {
        self.iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect()
    }
}

impl fmt::Debug for TextMap<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl Serialize for TextMap<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

fn push_number(packed: &mut String, mut number: usize) {
    while number > 63 {
        packed.push(char::from((number & 63) as u8 | 64));
        number >>= 6;
    }
    packed.push(char::from(number as u8));
}

/// What is still to be read. Reads nothing but what `pack` wrote.
pub(crate) struct Reader<'a>(&'a str);

impl<'a> Reader<'a> {
    fn number(&mut self) -> usize {
        let (number, end) = number_at(self.0.as_bytes(), 0);
        self.0 = &self.0[end..];
        number
    }

    pub(crate) fn list(&mut self) -> TextList<'a> {
        let (count, packed) = self.group(1);
        TextList { count, packed }
    }

    pub(crate) fn map(&mut self) -> TextMap<'a> {
        let (count, packed) = self.group(2);
        TextMap { count, packed }
    }

    pub(crate) fn text(&mut self) -> &'a str {
        let (length, start) = number_at(self.0.as_bytes(), 0);
        let (text, rest) = self.0[start..].split_at(length);
        self.0 = rest;
        text
    }

    /// The number of its items, and the items: each of this many texts.
    fn group(&mut self, texts: usize) -> (usize, &'a str) {
        let count = self.number();
        let mut end = 0;
        for _ in 0..count * texts {
            let (length, start) = number_at(self.0.as_bytes(), end);
            end = start + length;
        }
        let (all, rest) = self.0.split_at(end);
        self.0 = rest;
        (count, all)
    }
}

/// The number there, and where it ends.
#[inline]
fn number_at(packed: &[u8], at: usize) -> (usize, usize) {
    let (mut number, mut end) = (0, at);
    loop {
        let digit = packed[end];
        number |= usize::from(digit & 63) << (6 * (end - at));
        end += 1;
        if digit & 64 == 0 {
            return (number, end);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    #[test]
    fn what_was_packed_is_there_again() {
        let long: Vec<String> =
            [0, 1, 31, 32, 33, 64, 2_047, 2_048, 16_384].map(|length| "ü".repeat(length)).into();
        let names: Vec<String> = (0..100).map(|number| format!("name-{number:03}")).collect();
        let entry = |at: usize| (names[at].as_str(), long[at].as_str());
        let map = |numbers: Range<usize>| -> BTreeMap<String, String> {
            numbers.map(|at| (names[at].clone(), long[at].clone())).collect()
        };
        for count in 0..long.len() {
            let (zone, version) = (long[count].as_str(), names[count].as_str());
            let texts = Texts::pack(|texts| {
                texts.list(names.iter().take(10 * count).map(String::as_str));
                texts.text(zone);
                texts.map((0..count).map(entry));
                texts.map((0..long.len() - count).map(entry));
                texts.text(version);
            });
            let mut reader = texts.reader();
            assert!(reader.list().iter().eq(names.iter().take(10 * count)));
            assert_eq!(reader.text(), zone);
            let endpoints = reader.map();
            assert_eq!(endpoints.to_map(), map(0..count));
            assert_eq!(endpoints.iter().len(), count);
            assert_eq!(reader.map().to_map(), map(0..long.len() - count));
            assert_eq!(reader.text(), version);
        }
    }
}
