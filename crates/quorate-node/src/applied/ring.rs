//! The latest changes, for watchers that resume or fall behind: the newest as all watchers share them, with their encodings,
//! the older ones as they are. A change takes 32 bytes here then, with what is shared 104: 6 MiB of a full ring.

use std::collections::VecDeque;
use std::sync::Arc;

use quorate_state::{Event, Revision};

use crate::applied::shared_event::{SharedEvent, message_bytes};

/// Of the latest changes that take so much together, encodings are kept, bytes. Most changes are seen in one way only; what
/// is kept is three times as much at most.
const ENCODED_MAX: usize = 8 * 1024 * 1024;

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Ring {
    /// Changes with revisions `base + 1, base + 2, ..`.
    older: VecDeque<Event>,
    /// Those behind them.
    latest: VecDeque<Arc<SharedEvent>>,
    base: Revision,
    /// Of both; of the latest.
    bytes: usize,
    latest_bytes: usize,
    max: usize,
    bytes_max: usize,
}

impl Ring {
    /// Keeps so many changes, and so many bytes of them.
    pub(super) fn new(max: usize, bytes_max: usize) -> Self {
        let (older, latest) = (VecDeque::new(), VecDeque::new());
        Self { older, latest, base: Revision(0), bytes: 0, latest_bytes: 0, max, bytes_max }
    }

    /// So many changes are kept at most.
    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// Everything after this revision is here.
    pub(super) fn base(&self) -> Revision {
        self.base
    }

    /// The next change. The oldest go, when there are too many.
    pub(super) fn push(&mut self, shared: Arc<SharedEvent>) {
        self.bytes += shared.bytes;
        self.latest_bytes += shared.bytes;
        self.latest.push_back(shared);
        while self.latest_bytes > ENCODED_MAX.min(self.bytes_max) {
            let Some(shared) = self.latest.pop_front() else { break };
            self.latest_bytes -= shared.bytes;
            // Somebody's queue may still have it.
            shared.forget_encodings();
            self.older.push_back(shared.event.clone());
        }
        while self.older.len() + self.latest.len() > self.max || self.bytes > self.bytes_max {
            let gone = self.older.pop_front().map(|event| message_bytes(&event));
            let gone = gone.or_else(|| {
                let bytes = self.latest.pop_front()?.bytes;
                self.latest_bytes -= bytes;
                Some(bytes)
            });
            let Some(bytes) = gone else { break };
            self.bytes -= bytes;
            self.base = Revision(self.base.0 + 1);
        }
    }

    /// At most so many changes after this revision, which is not before the base; whether they are the last.
    pub(super) fn after(&self, position: Revision, most: usize) -> (Vec<Arc<SharedEvent>>, bool) {
        let length = self.older.len() + self.latest.len();
        let from = (position.0.saturating_sub(self.base.0) as usize).min(length);
        let to = (from + most).min(length);
        let older = self.older.len();
        let shared = |event: &Event| Arc::new(SharedEvent::new(event.clone()));
        let mut changes = Vec::with_capacity(to - from);
        changes.extend(self.older.range(from.min(older)..to.min(older)).map(shared));
        let latest = from.saturating_sub(older)..to.saturating_sub(older);
        changes.extend(self.latest.range(latest).cloned());
        (changes, to == length)
    }

    /// Nothing up to this revision is known any more.
    pub(super) fn restart(&mut self, revision: Revision) {
        *self = Self { base: revision, ..Self::new(self.max, self.bytes_max) };
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::applied::hub::tests::{registry, weigh};
    use crate::applied::shared_event::View;

    /// Whether it keeps what it is asked to encode.
    fn keeps_encodings(shared: &SharedEvent) -> bool {
        shared.encoded(View::Added, || Bytes::from_static(b"first"));
        shared.encoded(View::Added, || Bytes::from_static(b"second")) == "first"
    }

    #[test]
    fn all_changes_are_there_and_encodings_of_the_latest() {
        let (mut registry, key) = registry(12_000);
        // At first it holds more than encodings are kept of, then less; or few.
        for (max, bytes_max) in
            [(100_000, 2 * ENCODED_MAX), (100_000, ENCODED_MAX / 2), (100, usize::MAX)]
        {
            let mut ring = Ring::new(max, bytes_max);
            ring.restart(registry.revision());
            let mut pushed = Vec::new();
            for weight in 0..3_000 {
                let event = Arc::unwrap_or_clone(weigh(&mut registry, &key, weight).remove(0));
                pushed.push(Arc::new(SharedEvent::new(event)));
                ring.push(pushed[pushed.len() - 1].clone());
            }
            let end = registry.revision();
            let kept = (end.0 - ring.base().0) as usize;
            assert!(kept <= max && kept * 12_000 <= bytes_max && kept >= 100);
            let (all, last) = ring.after(ring.base(), usize::MAX / 2);
            let revisions: Vec<_> = all.iter().map(|shared| shared.event.revision.0).collect();
            assert!(last && revisions == (ring.base().0 + 1..=end.0).collect::<Vec<_>>());
            assert_eq!(all.iter().map(|shared| shared.bytes).sum::<usize>(), ring.bytes);
            for (position, most) in [(0, 1), (0, kept - 1), (kept - 50, 20), (kept - 1, 9)] {
                let (some, last) = ring.after(Revision(ring.base().0 + position as u64), most);
                let to = (position + most).min(kept);
                let same = |(one, other): (&Arc<SharedEvent>, &Arc<SharedEvent>)| {
                    one.event.revision == other.event.revision
                };
                assert!(
                    some.iter().zip(&all[position..to]).all(same) && some.len() == to - position
                );
                assert_eq!(last, to == kept);
            }
            assert_eq!(ring.after(end, 10).0.len(), 0);
            let latest: Vec<_> = pushed.iter().map(|shared| keeps_encodings(shared)).collect();
            let bytes: usize = ring.latest.iter().map(|shared| shared.bytes).sum();
            assert_eq!(ring.latest_bytes, bytes);
            let wanted = bytes_max.min(ENCODED_MAX).min(ring.bytes);
            assert!(bytes <= wanted && bytes > wanted - 20_000, "{bytes}");
            let shown = latest.iter().rev().take(ring.latest.len());
            assert!(shown.copied().all(|keeps| keeps), "of the latest ones");
            assert!(max == 100 || !latest[0], "not of the others");
        }
    }
}
