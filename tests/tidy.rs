//! The rules of the code base that no compiler and no lint checks: which crate may depend on which,
//! where tasks are spawned and clocks are read, how long files and functions may be, what must not
//! be there, whether links lead somewhere. Each fault is reported as `file:line: what; what to do`.
//! Plain std, and only as much Rust and TOML as rustfmt leaves to be read by lines.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "tidy/alerts.rs"]
mod alerts;
#[path = "tidy/behaviours.rs"]
mod behaviours;
#[path = "tidy/circles.rs"]
mod circles;
#[path = "tidy/dashboard.rs"]
mod dashboard;
#[path = "tidy/dependencies.rs"]
mod dependencies;
#[path = "tidy/documents.rs"]
mod documents;
#[path = "tidy/doors.rs"]
mod doors;
#[path = "tidy/measured.rs"]
mod measured;
#[path = "tidy/places.rs"]
mod places;
#[path = "tidy/privacy.rs"]
mod privacy;
#[path = "tidy/reference.rs"]
mod reference;
#[path = "tidy/rooms.rs"]
mod rooms;
#[path = "tidy/scripts.rs"]
mod scripts;
#[path = "tidy/secrets.rs"]
mod secrets;
#[path = "tidy/sizes.rs"]
mod sizes;
#[path = "readme/skipped.rs"]
mod skipped;
#[path = "tidy/sources.rs"]
mod sources;

/// Fails with all faults, if there are any.
fn no_faults(faults: &[String]) {
    assert!(faults.is_empty(), "{} faults:\n{}\n", faults.len(), faults.join("\n"));
}
