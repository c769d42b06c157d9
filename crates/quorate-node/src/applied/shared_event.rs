//! A change as all watchers share it: what it is, about how large, and its encodings. Knows no
//! watcher and no filter.

use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use quorate_state::Event;
use tokio::time::Instant;

use crate::applied::wire_size::instance_bytes;

/// How a watcher sees a change: what it wants to see of an instance comes, changes or goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
    Added,
    Modified,
    Removed,
}

/// A change with the encodings that watchers share. A change and a view make the message, so all
/// watchers that see a change the same way are sent the same bytes; to convert and encode for each
/// of a thousand watchers of one instance was half of the processor time of a fan-out.
#[derive(Debug)]
pub(crate) struct SharedEvent {
    pub(crate) event: Event,
    /// When it was applied here.
    pub(super) at: Instant,
    /// About what it takes in a message.
    pub(super) bytes: usize,
    /// `None`: they are not kept (any more).
    encodings: Mutex<Option<Vec<(View, Bytes)>>>,
}

impl SharedEvent {
    pub(crate) fn new(event: Event, at: Instant) -> Self {
        let bytes = message_bytes(&event);
        Self { event, at, bytes, encodings: Mutex::new(Some(Vec::new())) }
    }

    /// The change in this view, encoded now or before.
    pub(crate) fn encoded(&self, view: View, encode: impl FnOnce() -> Bytes) -> Bytes {
        let mut encodings = self.lock();
        let known = encodings.iter().flatten().find(|(known, _)| *known == view);
        if let Some((_, encoded)) = known {
            return encoded.clone();
        }
        let encoded = encode();
        if let Some(encodings) = &mut *encodings {
            encodings.push((view, encoded.clone()));
        }
        encoded
    }

    /// From now on, watchers that still have to be sent it encode for themselves.
    pub(crate) fn forget_encodings(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<(View, Bytes)>>> {
        self.encodings.lock().expect("invariant: to encode a change does not panic")
    }
}

/// About what a change takes in a message.
pub(super) fn message_bytes(event: &Event) -> usize {
    event.after().or(event.before()).map_or(0, |instance| instance_bytes(instance))
}
