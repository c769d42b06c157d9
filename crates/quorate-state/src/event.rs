//! What watchers see, and what applying a command gives.

use std::sync::Arc;

use crate::command::Reply;
use crate::spec::Instance;
use crate::types::{InstanceKey, Revision};

/// One change of one instance. Every event has a revision of its own, one higher than the event
/// before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The revision that this change made.
    pub revision: Revision,
    /// What changed.
    pub change: Change,
}

/// What happened to an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It was not there.
    Added {
        /// As it is now.
        after: Arc<Instance>,
    },
    /// It was there, perhaps from an earlier run of its process.
    Modified {
        /// As it was.
        before: Arc<Instance>,
        /// As it is now.
        after: Arc<Instance>,
    },
    /// It is gone.
    Removed {
        /// As it was.
        before: Arc<Instance>,
        /// Why it is gone.
        reason: RemoveReason,
    },
}

/// Why an instance is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoveReason {
    /// Its owner or an operator removed it.
    Deregistered,
    /// Its lease ended without renewal.
    Expired,
}

impl Event {
    /// Which instance changed.
    pub fn key(&self) -> &InstanceKey {
        match &self.change {
            Change::Added { after } | Change::Modified { after, .. } => &after.key,
            Change::Removed { before, .. } => &before.key,
        }
    }

    /// The instance as it was; `None`: it was not there.
    pub fn before(&self) -> Option<&Arc<Instance>> {
        match &self.change {
            Change::Added { .. } => None,
            Change::Modified { before, .. } | Change::Removed { before, .. } => Some(before),
        }
    }

    /// The instance as it is now; `None`: it is gone.
    pub fn after(&self) -> Option<&Arc<Instance>> {
        match &self.change {
            Change::Added { after } | Change::Modified { after, .. } => Some(after),
            Change::Removed { .. } => None,
        }
    }
}

/// What applying one command gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The answer to the command.
    pub reply: Reply,
    /// For watchers, in the order of their revisions; empty when nothing changed.
    pub events: Vec<Arc<Event>>,
    /// The state's revision after the command; of one that was done before, that after it was done.
    pub revision: Revision,
}
