//! Being registered: a handle and the task that keeps it, the stream that renews all leases,
//! servers that register themselves.
//!
//! | file | duty |
//! |---|---|
//! | `registrar` | what all registrations of a client share, and how one begins |
//! | `handle` | what the caller holds |
//! | `keeper` | the task that keeps one registration |
//! | `renewals` | one stream for the renewals of all |
//! | `claims` | what is registered already, and incarnations |
//! | `serve` | registers when bound, drains, stops |

mod claims;
mod handle;
mod keeper;
mod registrar;
mod renewals;
#[cfg(feature = "serve")]
mod serve;

pub use handle::{Gone, Lease, RegistrationHandle, RegistrationState};
pub(crate) use registrar::Registrar;
#[cfg(feature = "serve")]
pub use serve::{Served, Serving, Stop};
