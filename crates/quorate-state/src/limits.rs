//! The limits of what may be registered, and the error that names the field that breaks one.
//! The same numbers stand in `proto/quorate/v1/types.proto`, which `tests/limits.rs` compares.

use std::fmt::Display;

/// Scopes that one command carries of its caller's rights; more of them are left out, and only less
/// is allowed.
pub const SCOPES: usize = 64;

/// Names: bytes. The longest DNS name (RFC 1035, section 2.3.4).
pub const NAME_BYTES: usize = 253;
/// Endpoints of one instance.
pub const ENDPOINTS: usize = 32;
/// One endpoint's URI: bytes.
pub const URI_BYTES: usize = 2_048;
/// Metadata entries of one instance.
pub const METADATA_ENTRIES: usize = 64;
/// Metadata keys and values of one instance together: bytes.
pub const METADATA_BYTES: usize = 16 * 1024;
/// Services that one instance may require.
pub const REQUIRES: usize = 64;
/// Tags of one instance.
pub const TAGS: usize = 32;
/// One tag: bytes.
pub const TAG_BYTES: usize = 64;
/// Weight.
pub const WEIGHT: u32 = 1_000_000;
/// The weight of an instance that names none.
pub const WEIGHT_DEFAULT: u32 = 100;
/// The smallest TTL: ms.
pub const TTL_MIN_MS: u64 = 1_000;
/// The largest TTL: ms.
pub const TTL_MAX_MS: u64 = 24 * 60 * 60 * 1_000;
/// The TTL of a registration that names none: ms.
pub const TTL_DEFAULT_MS: u64 = 15_000;
/// An operator's reason for an override: bytes.
pub const REASON_BYTES: usize = 1_024;
/// Overrides of a registry at most, so that they are bounded where instances come and go.
pub const OVERRIDES: usize = 100_000;
/// One of an instance that is not registered is only taken while there are fewer than this.
pub const OVERRIDES_AHEAD: usize = 10_000;
/// Instances in one call, and services in one read.
pub const INSTANCES_PER_CALL: usize = 1_000;
/// Leases in one call.
pub const LEASES_PER_CALL: usize = 10_000;
/// Instances under one lease, over all calls: what one expiry removes at once.
pub const INSTANCES_PER_LEASE: usize = 10_000;
/// The largest load that an instance can say it has.
pub const LOAD: u32 = 1_000_000;
/// Health checks of one instance.
pub const CHECKS: usize = 4;
/// The shortest interval of a check: ms.
pub const CHECK_INTERVAL_MIN_MS: u32 = 1_000;
/// The longest interval of a check: ms.
pub const CHECK_INTERVAL_MAX_MS: u32 = 60 * 60 * 1_000;
/// The interval of a check that names none: ms.
pub const CHECK_INTERVAL_DEFAULT_MS: u32 = 10_000;
/// The shortest timeout of a probe; the longest is its interval: ms.
pub const CHECK_TIMEOUT_MIN_MS: u32 = 100;
/// The timeout of a probe that names none, or the interval where that is shorter: ms.
pub const CHECK_TIMEOUT_DEFAULT_MS: u32 = 2_000;
/// The largest of both thresholds of a check.
pub const CHECK_THRESHOLD: u32 = 10;
/// `failures_before_critical` of a check that names none.
pub const CHECK_FAILURES_DEFAULT: u32 = 3;
/// `successes_before_passing` of a check that names none.
pub const CHECK_SUCCESSES_DEFAULT: u32 = 1;
/// The path or the service of a check: bytes.
pub const CHECK_TEXT_BYTES: usize = 1_024;
/// Why an instance is critical: bytes. What is longer is cut.
pub const HEALTH_REASON_BYTES: usize = 256;

/// A value that is out of its limits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} = {value}: {limit}")]
pub struct Invalid {
    /// Which field, as the caller knows it.
    pub field: String,
    /// Its value, or the beginning of it, or its size.
    pub value: String,
    /// What it must be.
    pub limit: String,
}

impl Invalid {
    /// A field with a value that is shown as text, cut where it is long.
    pub fn text(field: impl Display, value: &str, limit: impl Into<String>) -> Self {
        const SHOWN: usize = 64;
        let mut shown: String = value.chars().take(SHOWN).collect();
        if shown.len() < value.len() {
            shown.push('…');
        }
        Self { field: field.to_string(), value: format!("{shown:?}"), limit: limit.into() }
    }

    /// A field with a number or a size.
    pub fn number(field: impl Display, value: impl ToString, limit: impl Into<String>) -> Self {
        Self { field: field.to_string(), value: value.to_string(), limit: limit.into() }
    }
}
