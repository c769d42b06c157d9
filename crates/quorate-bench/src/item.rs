//! What is registered: the same instances with the same 256 bytes on both peers. Everything derives
//! from its number, so that what comes back can be checked without keeping it.

use std::fmt::Write;

/// The length of an instance's value.
pub(crate) const VALUE_BYTES: usize = 256;
/// Instances of one service.
pub(crate) const SERVICE_SIZE: u64 = 100;
/// The first bytes of a value, in hexadecimal: which change wrote it.
const STAMP_BYTES: usize = 16;

/// One instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) service: String,
    pub(crate) id: String,
    pub(crate) value: String,
}

impl Item {
    /// The instance with this number, one of a service of a hundred, as change `stamp` writes it.
    pub(crate) fn new(group: &str, number: u64, stamp: u64) -> Self {
        Self {
            service: service(group, number / SERVICE_SIZE),
            id: id(number),
            value: value(number, stamp),
        }
    }
}

/// A service's name: no name begins with another one.
pub(crate) fn service(group: &str, number: u64) -> String {
    format!("{group}-{number:06}")
}

/// An instance's id.
pub(crate) fn id(number: u64) -> String {
    format!("instance-{number:08}")
}

/// The number in an id.
pub(crate) fn number(id: &str) -> Option<u64> {
    id.strip_prefix("instance-")?.parse().ok()
}

/// 256 letters and digits that do not repeat: nothing that one peer could compress better than the
/// other.
pub(crate) fn value(number: u64, stamp: u64) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut value = String::with_capacity(VALUE_BYTES);
    write!(value, "{stamp:016x}").expect("invariant: a text takes everything");
    let mut state = number ^ (stamp << 32) ^ 0x5EED;
    while value.len() < VALUE_BYTES {
        let mut bits = next(&mut state);
        // Ten letters of six bits; the last four bits are left.
        for _ in 0..10.min(VALUE_BYTES - value.len()) {
            value.push(char::from(LETTERS[(bits & 63) as usize]));
            bits >>= 6;
        }
    }
    value
}

/// Which change wrote a value.
pub(crate) fn stamp(value: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(value.get(..STAMP_BYTES)?).ok()?;
    u64::from_str_radix(digits, 16).ok()
}

/// The numbers below this, in a random order that is always the same.
pub(crate) fn shuffled(count: u64) -> Vec<u64> {
    let mut numbers: Vec<u64> = (0..count).collect();
    let mut state = 0x5EED;
    for at in (1..numbers.len()).rev() {
        numbers.swap(at, (next(&mut state) % (at as u64 + 1)) as usize);
    }
    numbers
}

/// SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_their_length_and_tell_their_stamp() {
        for (number, change) in [(0, 0), (7, 1), (1_000_000, u64::MAX)] {
            let text = value(number, change);
            assert_eq!(text.len(), VALUE_BYTES);
            assert_eq!(stamp(text.as_bytes()), Some(change));
        }
        assert_ne!(value(1, 5)[STAMP_BYTES..], value(2, 5)[STAMP_BYTES..]);
        assert_eq!(stamp(b"short"), None);
        assert_eq!(number(&id(42)), Some(42));
    }

    #[test]
    fn a_random_order_has_each_number_once() {
        let mut order = shuffled(200);
        assert_ne!(order, (0..200).collect::<Vec<_>>());
        assert_eq!(order, shuffled(200));
        order.sort_unstable();
        assert_eq!(order, (0..200).collect::<Vec<_>>());
    }
}
