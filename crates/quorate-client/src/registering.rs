//! Being registered: a handle and the task that keeps it, the stream that renews all leases, servers that register themselves.
//!
//! | file | duty |
//! |---|---|
//! | `handle` | what the caller holds |
//! | `keeper` | the task that keeps one registration |
//! | `renewals` | one stream for the renewals of all |
//! | `claims` | what is registered already, and incarnations |
//! | `serve` | registers when bound, drains, stops |

pub(crate) mod claims;
pub(crate) mod handle;
mod keeper;
pub(crate) mod renewals;
pub(crate) mod serve;

pub use handle::{Gone, Lease, RegistrationHandle, RegistrationState};
pub use serve::{Served, Serving, Stop};
