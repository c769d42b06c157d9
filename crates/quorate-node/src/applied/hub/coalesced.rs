//! Changes that are sent together, where only the latest of each instance counts.

use std::collections::HashMap;
use std::sync::Arc;

use quorate_state::{Change, Event, InstanceKey};

use crate::applied::shared_event::SharedEvent;

/// Changes of which only the latest of each instance counts.
#[derive(Debug, Default)]
pub(in crate::applied) struct Coalesced {
    merged: HashMap<InstanceKey, Arc<SharedEvent>>,
}

impl Coalesced {
    pub(in crate::applied) fn add(&mut self, later: Arc<SharedEvent>) {
        let key = later.event.key().clone();
        let event = match self.merged.remove(&key) {
            None => Some(later),
            Some(earlier) => {
                let both = merge(&earlier.event, &later.event);
                both.map(|both| Arc::new(SharedEvent::new(both, later.at)))
            }
        };
        if let Some(event) = event {
            self.merged.insert(key, event);
        }
    }

    /// For each instance one change, from what it was at first to what it is at last, in the order
    /// of the last ones.
    pub(in crate::applied) fn into_events(self) -> Vec<Arc<SharedEvent>> {
        let mut events: Vec<_> = self.merged.into_values().collect();
        events.sort_by_key(|shared| shared.event.revision);
        events
    }
}

/// Two changes of one instance as one; `None`: it came and went.
fn merge(earlier: &Event, later: &Event) -> Option<Event> {
    let change = match (earlier.before().cloned(), later.change.clone()) {
        (None, Change::Removed { .. }) => return None,
        (None, Change::Added { after } | Change::Modified { after, .. }) => Change::Added { after },
        (Some(before), Change::Removed { reason, .. }) => Change::Removed { before, reason },
        (Some(before), Change::Added { after } | Change::Modified { after, .. }) => {
            Change::Modified { before, after }
        }
    };
    Some(Event { revision: later.revision, change })
}
