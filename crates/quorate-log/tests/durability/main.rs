//! The log and the snapshots as their users see them: openraft's conformance suite, restarts,
//! crashes and damage. One binary, so that the crate links once.

#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

mod conformance;
mod crash;
mod damage;
mod reopen;
mod shrink;
mod snapshots;
mod toy;
