//! The limits that both sides of the wire keep. All limits of what may be registered stand in
//! `types.proto`, and in the state machine, which checks them; the node's crate compares those that
//! are here with them.

/// A name: bytes.
pub const NAME_BYTES: usize = 253;
/// Leases in one message of a renewal.
pub const LEASES_PER_CALL: usize = 10_000;
/// Services that one read or watch may name.
pub const SERVICES_PER_CALL: usize = 1_000;
/// The weight of an instance, at most.
pub const WEIGHT: u32 = 1_000_000;
/// The shortest lease: ms.
pub const TTL_MIN_MS: u64 = 1_000;
/// The longest lease: ms.
pub const TTL_MAX_MS: u64 = 24 * 60 * 60 * 1_000;
/// A request: bytes.
pub const REQUEST_BYTES: usize = 4 * 1024 * 1024;
/// An answer to a fetch: bytes. More is read in pages.
pub const ANSWER_BYTES: usize = 32 * 1024 * 1024;
/// What a client has to take in one message, bytes: an answer, and what stands around it.
pub const DECODE_BYTES: usize = 40 * 1024 * 1024;
