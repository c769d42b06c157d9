//! What is known of a watcher, for people.

use std::net::IpAddr;

use quorate_state::Revision;

/// Where a watcher comes from, and at which revision it begins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start {
    pub(crate) from: Option<IpAddr>,
    pub(crate) at: Revision,
}

/// A watcher, as people want to know it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Follower {
    pub(crate) from: Option<IpAddr>,
    /// `None`: it follows named services.
    pub(crate) prefix: Option<String>,
    pub(crate) since: Revision,
    /// Everything up to here was taken by its stream.
    pub(crate) sent: Revision,
    pub(crate) queued: usize,
    /// It is served from the ring.
    pub(crate) behind: bool,
}
