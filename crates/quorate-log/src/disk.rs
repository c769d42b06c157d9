//! What lies on disk, and how it gets there.
//!
//! | file | duty |
//! |---|---|
//! | `sled` | where records lie, how they are written, removed, synced and read |
//! | `journal` | what is not yet synced in sled, made durable with one write and one sync |
//! | `witness` | remembers what was acknowledged, to notice a log that lost its end |
//! | `codec`, `meta`, `numbers` | the formats of batches and of single values |
//! | `shrink` | writes a quiet log anew, to give back what it took when it was longer |
//! | `room` | how much room the disk has |

pub(crate) mod codec;
pub(crate) mod journal;
pub(crate) mod meta;
pub(crate) mod numbers;
mod room;
pub(crate) mod shrink;
pub(crate) mod sled;
pub(crate) mod witness;
