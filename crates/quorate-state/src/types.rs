//! Names, ids and times as types of their own. Names are checked where they are made.

use std::fmt::{self, Display};

use arcstr::ArcStr;
use serde::{Deserialize, Serialize};

use crate::limits::{self, Invalid};

/// Registry time in ms: it grows only by what leaders write into the log, and stands still without
/// a leader.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Clock(pub u64);

impl Clock {
    /// This time and `ms` more.
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

/// Counts the changes of instances since the cluster began; dense: every change has the next
/// number.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Revision(pub u64);

/// Which lease. None that is given out is 0, or has been in this cluster before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LeaseId(pub u64);

/// Which run of a process; a higher one replaces a lower one.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Incarnation(pub u64);

/// How long a lease lives without renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ttl(u32);

impl Ttl {
    /// What a registration gets that asks for none.
    pub const DEFAULT: Self = Self(limits::TTL_DEFAULT_MS as u32);

    /// A TTL in ms.
    ///
    /// # Errors
    /// Under a second or over 24 hours.
    pub fn from_ms(ms: u64) -> Result<Self, Invalid> {
        if (limits::TTL_MIN_MS..=limits::TTL_MAX_MS).contains(&ms) {
            return Ok(Self(ms as u32));
        }
        let limit = format!("must be {} to {} ms", limits::TTL_MIN_MS, limits::TTL_MAX_MS);
        Err(Invalid::number("ttl_ms", ms, limit))
    }

    /// In ms.
    pub fn as_ms(self) -> u64 {
        u64::from(self.0)
    }
}

pub(crate) fn check_name(field: impl Display, value: &str) -> Result<(), Invalid> {
    let alphanumeric_at = |end: Option<char>| end.is_some_and(|c| c.is_ascii_alphanumeric());
    if value.is_empty() {
        return Err(Invalid::text(field, value, "must not be empty"));
    }
    if value.len() > limits::NAME_BYTES {
        let limit =
            format!("is {} bytes long, at most {} allowed", value.len(), limits::NAME_BYTES);
        return Err(Invalid::text(field, value, limit));
    }
    if !value.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')) {
        return Err(Invalid::text(field, value, "only A-Z a-z 0-9 . _ - are allowed"));
    }
    if !alphanumeric_at(value.chars().next()) || !alphanumeric_at(value.chars().next_back()) {
        return Err(Invalid::text(field, value, "must begin and end with a letter or a digit"));
    }
    Ok(())
}

/// The same check for a name that may be left empty.
pub(crate) fn check_optional_name(field: impl Display, value: &str) -> Result<(), Invalid> {
    if value.is_empty() { Ok(()) } else { check_name(field, value) }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $type(ArcStr);

        impl $type {
            /// A checked name; `field` is what the error calls it.
            ///
            /// # Errors
            /// Empty, longer than 253 bytes, or with other characters than `A-Z a-z 0-9 . _ -`.
            pub fn new(field: impl Display, value: &str) -> Result<Self, Invalid> {
                check_name(field, value)?;
                Ok(Self(value.into()))
            }

            /// As text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// Keeps deployments apart; nothing in one namespace is seen from another.
    Namespace
);
name!(
    /// A service.
    ServiceName
);
name!(
    /// An instance, unique within its service.
    InstanceId
);

impl Default for Namespace {
    fn default() -> Self {
        Self("default".into())
    }
}

impl ServiceName {
    /// A name that was checked before.
    pub(crate) fn known(name: &str) -> Self {
        Self(name.into())
    }

    /// The lower end of all names that begin with `prefix`, for ranges in ordered maps: not a valid
    /// name by itself.
    pub(crate) fn range_start(prefix: &str) -> Self {
        Self(prefix.into())
    }
}

impl InstanceId {
    /// Sorts before every valid id.
    pub(crate) fn lowest() -> Self {
        Self("".into())
    }
}

/// A service in its namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceKey {
    /// The namespace.
    pub namespace: Namespace,
    /// The service's name in it.
    pub name: ServiceName,
}

impl Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// An instance in its service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InstanceKey {
    /// The service.
    pub service: ServiceKey,
    /// The instance's id in it.
    pub id: InstanceId,
}

impl Display for InstanceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.id)
    }
}
