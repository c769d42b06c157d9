//! Numbers the writes of one origin, as `RequestId` in `types.proto` wants it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};

/// A sender of writes: a node, or one run of a client.
#[derive(Debug, Clone)]
pub struct Origin {
    id: u64,
    numbers: Arc<Mutex<Numbers>>,
}

#[derive(Debug)]
struct Numbers {
    next: u64,
    open: BTreeSet<u64>,
}

/// A write that is not over: an answer to it is waited for. Dropped when it is.
#[derive(Debug)]
pub struct OpenWrite {
    origin: Origin,
    number: u64,
}

impl Origin {
    /// `id`: random, not 0.
    pub fn new(id: u64) -> Self {
        let numbers = Numbers { next: 1, open: BTreeSet::new() };
        Self { id: id.max(1), numbers: Arc::new(Mutex::new(numbers)) }
    }

    /// Begins a write, with the next number.
    pub fn begin(&self) -> OpenWrite {
        let mut numbers = self.lock();
        let number = numbers.next;
        numbers.next += 1;
        numbers.open.insert(number);
        OpenWrite { origin: self.clone(), number }
    }

    fn lock(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().expect("invariant: nothing panics under this lock")
    }
}

impl OpenWrite {
    /// Of the origin.
    pub fn origin(&self) -> u64 {
        self.origin.id
    }

    /// Its own.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// All writes of the origin with lower numbers are over.
    pub fn done_below(&self) -> u64 {
        self.origin.lock().open.first().copied().unwrap_or(self.number)
    }
}

impl Drop for OpenWrite {
    fn drop(&mut self) {
        self.origin.lock().open.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_is_below_all_that_is_not() {
        let origin = Origin::new(7);
        let (first, second, third) = (origin.begin(), origin.begin(), origin.begin());
        assert_eq!([first.number(), second.number(), third.number()], [1, 2, 3]);
        assert_eq!((third.origin(), third.done_below()), (7, 1));
        drop(second);
        assert_eq!(third.done_below(), 1);
        drop(first);
        assert_eq!(third.done_below(), 3);
        assert_eq!(origin.begin().done_below(), 3);
    }
}
