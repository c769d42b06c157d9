//! The latest changes, for watchers that resume or fall behind: the newest as all watchers share
//! them, with their encodings, the older ones as they are. A change takes 32 bytes here then, with
//! what is shared 120: 8 MiB of a full ring. What is old goes although nothing new comes, or a node
//! would keep for ever what a busy minute left.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use quorate_state::{Event, Revision};
use tokio::time::Instant;

use crate::applied::shared_event::{SharedEvent, message_bytes};

/// Encodings are kept of the latest changes that take at most this much together, bytes. Most
/// changes are seen in one way only; what is kept is three times as much at most.
const ENCODED_MAX: usize = 8 * 1024 * 1024;

/// A change that is this old goes. A client that resumes is seconds behind, after a restart of its
/// node or of itself; one that was away for longer, with its machine or its network, is given a
/// snapshot, which costs more and says as much.
const AGE_MAX: Duration = Duration::from_secs(180);

/// Ages are looked at this often, so a change may become this much older.
pub(super) const AGES_EVERY: Duration = Duration::from_secs(10);

/// The latest changes stay, however old: at most this many, and this many bytes of them. So a
/// watcher can resume after days where changes are rare. Not many more: each keeps a few pages of
/// the allocator's, whose other contents are gone; the bytes are of as many changes of 2.6 KiB, and
/// of fewer larger ones.
const STAYING_MAX: usize = 100;
const STAYING_BYTES_MAX: usize = 256 * 1024;

/// As many changes are let go under the lock at once, and only freed without it.
const GOING_MAX: usize = 1_000;

/// The latest changes, in order of their revisions.
#[derive(Debug)]
pub(super) struct Ring {
    /// Changes with revisions `base + 1, base + 2, ..`.
    older: VecDeque<Event>,
    /// The changes behind them.
    latest: VecDeque<Arc<SharedEvent>>,
    base: Revision,
    /// Of both; of the latest.
    bytes: usize,
    latest_bytes: usize,
    max: usize,
    bytes_max: usize,
    /// The last revision when ages were looked at: all up to it are at least that old.
    seen: VecDeque<(Instant, Revision)>,
}

/// Changes that were let go, to be dropped without the lock.
#[derive(Debug, Default)]
pub(super) struct Gone {
    older: Vec<Event>,
    latest: Vec<Arc<SharedEvent>>,
}

impl Gone {
    /// Whether there may be more that are old.
    pub(super) fn is_full(&self) -> bool {
        self.older.len() + self.latest.len() >= GOING_MAX
    }
}

impl Ring {
    /// Keeps at most this many changes, and this many bytes of them.
    pub(super) fn new(max: usize, bytes_max: usize) -> Self {
        let (older, latest, seen) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        Self { older, latest, base: Revision(0), bytes: 0, latest_bytes: 0, max, bytes_max, seen }
    }

    /// How many changes are kept at most.
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
            // A watcher's queue may still have it.
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

    /// Lets go of what is old, of [`GOING_MAX`] at most.
    pub(super) fn age(&mut self, now: Instant) -> Gone {
        let length = self.older.len() + self.latest.len();
        let last = Revision(self.base.0 + length as u64);
        if self.seen.back().is_none_or(|(_, seen)| *seen < last) {
            self.seen.push_back((now, last));
        }
        let mut old = self.base;
        while let Some((_, upto)) = self.seen.front().filter(|(at, _)| now >= *at + AGE_MAX) {
            old = old.max(*upto);
            if old.0 - self.base.0 > GOING_MAX as u64 {
                break;
            }
            self.seen.pop_front();
        }
        let mut gone = Gone::default();
        let stays = |ring: &Self| {
            let kept = ring.older.len() + ring.latest.len();
            kept <= STAYING_MAX && ring.bytes <= STAYING_BYTES_MAX
        };
        while self.base < old && !gone.is_full() && !stays(self) {
            if let Some(event) = self.older.pop_front() {
                self.bytes -= message_bytes(&event);
                gone.older.push(event);
            } else if let Some(shared) = self.latest.pop_front() {
                self.bytes -= shared.bytes;
                self.latest_bytes -= shared.bytes;
                gone.latest.push(shared);
            }
            self.base = Revision(self.base.0 + 1);
        }
        shrink(&mut self.older);
        shrink(&mut self.latest);
        gone
    }

    /// At most `most` changes after this revision, which is not before the base; whether they are
    /// the last.
    pub(super) fn after(&self, position: Revision, most: usize) -> (Vec<Arc<SharedEvent>>, bool) {
        let length = self.older.len() + self.latest.len();
        let from = (position.0.saturating_sub(self.base.0) as usize).min(length);
        let to = (from + most).min(length);
        let older = self.older.len();
        let shared = |event: &Event| Arc::new(SharedEvent::new(event.clone(), Instant::now()));
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

/// Gives back most of the room of a container that is nearly empty.
fn shrink<T>(changes: &mut VecDeque<T>) {
    if changes.len() < changes.capacity() / 4 {
        changes.shrink_to(changes.len() * 2);
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
                pushed.push(Arc::new(SharedEvent::new(event, Instant::now())));
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

    /// A ring with `changes` changes of `bytes` bytes each, made within no time, and the last
    /// revision.
    fn ring_of(changes: u32, bytes: usize) -> (Ring, Revision) {
        let (mut registry, key) = registry(bytes);
        let mut ring = Ring::new(100_000, 64 * 1024 * 1024);
        ring.restart(registry.revision());
        for weight in 0..changes {
            let event = Arc::unwrap_or_clone(weigh(&mut registry, &key, weight).remove(0));
            ring.push(Arc::new(SharedEvent::new(event, Instant::now())));
        }
        (ring, registry.revision())
    }

    /// Changes that are left after a look at their ages.
    fn left(ring: &mut Ring, now: Instant, end: Revision) -> u64 {
        while ring.age(now).is_full() {}
        end.0 - ring.base().0
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_old_goes_though_nothing_new_comes_and_its_room_too() {
        // Few bytes: the latest hundred stay; many: the latest that take a part of a MiB.
        for (changes, bytes) in [(6_000, 10), (900, 12_000), (90, 10)] {
            let (mut ring, end) = ring_of(changes, bytes);
            let fit = STAYING_BYTES_MAX / ring.latest[0].bytes;
            let stay = fit.min(STAYING_MAX).min(changes as usize) as u64;
            let made = Instant::now();
            assert_eq!(left(&mut ring, made, end), u64::from(changes));
            let nearly = made + AGE_MAX - Duration::from_millis(1);
            assert_eq!(left(&mut ring, nearly, end), u64::from(changes), "none is old yet");
            assert_eq!(left(&mut ring, made + AGE_MAX, end), stay);
            let room = ring.latest.capacity() + ring.older.capacity();
            assert!(room <= 4 * stay as usize, "room for {room}");
            let (all, last) = ring.after(ring.base(), usize::MAX / 2);
            assert!(last && all.len() as u64 == stay);
            assert_eq!(all[0].event.revision.0, ring.base().0 + 1);
            assert_eq!(all.iter().map(|shared| shared.bytes).sum::<usize>(), ring.bytes);
            let latest: usize = ring.latest.iter().map(|shared| shared.bytes).sum();
            assert_eq!(ring.latest_bytes, latest);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn of_what_comes_all_the_time_the_old_part_goes() {
        let (mut registry, key) = registry(10);
        let mut ring = Ring::new(100_000, 64 * 1024 * 1024);
        ring.restart(registry.revision());
        for look in 0..60 {
            for weight in 0..200 {
                let event = weigh(&mut registry, &key, 1_000 * look + weight).remove(0);
                ring.push(Arc::new(SharedEvent::new(Arc::unwrap_or_clone(event), Instant::now())));
            }
            let kept = left(&mut ring, Instant::now(), registry.revision());
            // One more look than fits into the age.
            assert_eq!(kept, 200 * u64::from(look + 1).min(18), "at look {look}");
            assert!(ring.seen.len() <= 19);
            tokio::time::advance(AGES_EVERY).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_lets_go_of_a_bounded_part() {
        let (mut ring, end) = ring_of(5_500, 10);
        let made = Instant::now();
        assert!(!ring.age(made).is_full());
        let mut left = 5_500;
        for expected in [4_500, 3_500, 2_500, 1_500, 500, 100, 100] {
            let gone = ring.age(made + AGE_MAX);
            left -= (gone.older.len() + gone.latest.len()) as u64;
            assert_eq!((left, end.0 - ring.base().0), (expected, expected));
            assert_eq!(gone.is_full(), expected >= 500);
        }
    }
}
