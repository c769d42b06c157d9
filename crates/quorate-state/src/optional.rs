//! Optional fields: how the records of the log and of snapshots grow (ARCHITECTURE, "How a format
//! grows").
//!
//! postcard knows a field by its position alone, so nothing can be added to what was written
//! before. A record therefore ends with its optional fields: a number with one bit for each that is
//! there, lowest first, then these fields. A new field takes the next bit. Where it is not set, the
//! bytes are as they were before there was one, and so is their hash.
//!
//! A bit that this version does not know makes the record unreadable. To pass over the field would
//! let this node apply a command in another way than the others do.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error, SeqAccess, Visitor};
use serde::ser::SerializeTuple;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The end of a record: a tuple of `Option`s, in the order in which they were added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Optional<T>(pub T);

/// Reads a tuple of these types.
struct Reader<T>(PhantomData<T>);

macro_rules! optional {
    ($($type:ident $bit:tt),*) => {
        impl<$($type: Serialize),*> Serialize for Optional<($(Option<$type>,)*)> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let bits: u32 = 0 $(| (u32::from(self.0.$bit.is_some()) << $bit))*;
                let mut fields = serializer.serialize_tuple(1 + bits.count_ones() as usize)?;
                fields.serialize_element(&bits)?;
                $(if let Some(field) = &self.0.$bit {
                    fields.serialize_element(field)?;
                })*
                fields.end()
            }
        }

        impl<'de, $($type: Deserialize<'de>),*> Visitor<'de> for Reader<($($type,)*)> {
            type Value = Optional<($(Option<$type>,)*)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the optional fields of a record")
            }

            fn visit_seq<Q: SeqAccess<'de>>(self, mut fields: Q) -> Result<Self::Value, Q::Error> {
                const KNOWN: u32 = 0 $(| (1 << $bit))*;
                let bits: u32 = next(&mut fields)?;
                if bits & !KNOWN != 0 {
                    return Err(Q::Error::custom("an optional field of a newer version"));
                }
                Ok(Optional(($(
                    if bits & (1 << $bit) == 0 { None::<$type> } else { Some(next(&mut fields)?) },
                )*)))
            }
        }

        impl<'de, $($type: Deserialize<'de>),*> Deserialize<'de> for Optional<($(Option<$type>,)*)> {
            fn deserialize<X: Deserializer<'de>>(deserializer: X) -> Result<Self, X::Error> {
                const FIELDS: &[u32] = &[$($bit),*];
                let reader = Reader::<($($type,)*)>(PhantomData);
                deserializer.deserialize_tuple(1 + FIELDS.len(), reader)
            }
        }
    };
}

optional!();
optional!(A 0);
optional!(A 0, B 1);
optional!(A 0, B 1, C 2);
optional!(A 0, B 1, C 2, D 3);
optional!(A 0, B 1, C 2, D 3, E 4);
optional!(A 0, B 1, C 2, D 3, E 4, F 5);
optional!(A 0, B 1, C 2, D 3, E 4, F 5, G 6);
optional!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7);

fn next<'de, T: Deserialize<'de>, Q: SeqAccess<'de>>(fields: &mut Q) -> Result<T, Q::Error> {
    fields.next_element()?.ok_or_else(|| Q::Error::custom("the record ends too early"))
}

/// Reads a record that takes up all of these bytes.
///
/// # Errors
/// What postcard finds. `SerdeDeCustom`: it is well-formed, but holds what this version does not
/// know, a field or a variant, or a value over its limit; also where bytes are left over, which
/// postcard itself passes over.
pub fn read_whole<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, postcard::Error> {
    match postcard::take_from_bytes(bytes)? {
        (record, []) => Ok(record),
        _ => Err(postcard::Error::SerdeDeCustom),
    }
}

/// Writes and reads a struct as a record: the fields that it always has, then its optional ones
/// (see [`Optional`]), which are `Option`s. New ones are only ever put at the end of the second
/// list.
#[macro_export]
macro_rules! record {
    ($type:ident { $($field:ident),* } { $($optional:ident),* }) => {
        impl ::serde::Serialize for $type {
            fn serialize<S: ::serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let Self { $($field,)* $($optional,)* } = self;
                let optional = $crate::Optional(($($optional.as_ref(),)*));
                ::serde::Serialize::serialize(&($($field,)* optional,), serializer)
            }
        }

        impl<'de> ::serde::Deserialize<'de> for $type {
            fn deserialize<D: ::serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let ($($field,)* $crate::Optional(($($optional,)*)),) =
                    ::serde::Deserialize::deserialize(deserializer)?;
                Ok(Self { $($field,)* $($optional,)* })
            }
        }
    };
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

    use super::*;

    /// As it was, and as it is after it has grown.
    #[derive(Debug, Clone, PartialEq)]
    struct Before {
        name: String,
        size: Option<u32>,
    }

    #[derive(Debug, Clone, PartialEq)]
    struct After {
        name: String,
        size: Option<u32>,
        color: Option<String>,
    }

    record!(Before { name } { size });
    record!(After { name } { size, color });

    #[test]
    fn what_does_not_have_the_new_field_is_written_and_read_as_before() {
        for size in [None, Some(300)] {
            let before = Before { name: "a".to_owned(), size };
            let after = After { name: "a".to_owned(), size, color: None };
            let bytes = postcard::to_stdvec(&before).unwrap();
            assert_eq!(postcard::to_stdvec(&after).unwrap(), bytes);
            assert_eq!(postcard::from_bytes::<After>(&bytes).unwrap(), after);
            assert_eq!(postcard::from_bytes::<Before>(&bytes).unwrap(), before);
        }
    }

    #[test]
    fn a_field_that_is_not_known_is_refused_and_not_passed_over() {
        let color = Some("red".to_owned());
        for size in [None, Some(300)] {
            let after = After { name: "a".to_owned(), size, color: color.clone() };
            let bytes = postcard::to_stdvec(&after).unwrap();
            assert_eq!(postcard::from_bytes::<After>(&bytes).unwrap(), after);
            let refused = postcard::from_bytes::<Before>(&bytes).unwrap_err();
            assert_eq!(refused, postcard::Error::SerdeDeCustom);
        }
    }

    #[test]
    fn bytes_that_are_left_over_are_refused() {
        let bytes = [1, b'a', 0, 0];
        assert_eq!(read_whole::<Before>(&bytes[..3]).unwrap().name, "a");
        assert_eq!(read_whole::<Before>(&bytes), Err(postcard::Error::SerdeDeCustom));
    }

    #[test]
    fn the_bytes() {
        let after = |size, color: Option<&str>| {
            let color = color.map(str::to_owned);
            postcard::to_stdvec(&After { name: "a".to_owned(), size, color }).unwrap()
        };
        assert_eq!(after(None, None), [1, b'a', 0]);
        assert_eq!(after(Some(7), None), [1, b'a', 0b01, 7]);
        assert_eq!(after(None, Some("r")), [1, b'a', 0b10, 1, b'r']);
        assert_eq!(after(Some(7), Some("r")), [1, b'a', 0b11, 7, 1, b'r']);
        assert_eq!(postcard::to_stdvec(&Optional(())).unwrap(), [0]);
        postcard::from_bytes::<Optional<()>>(&[1]).unwrap_err();
    }
}
