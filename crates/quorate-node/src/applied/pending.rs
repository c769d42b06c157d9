//! What this node has proposed as leader and not applied yet, as far as it makes the registry
//! larger: that counts, too, or all that is under way could go beyond the limit together.
//!
//! A caller that is gone leaves its write in the log, so what is here goes when it is applied, when
//! Raft refuses it, or with the term.

use std::collections::HashMap;

use quorate_state::Request;

/// Writes under way.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// The term in which they were proposed.
    term: u64,
    /// By origin and number.
    writes: HashMap<(u64, u64), Growth>,
    /// By how much they make it larger, in all.
    bytes: usize,
    /// How many there have been.
    proposed: u64,
}

#[derive(Debug)]
struct Growth {
    bytes: usize,
    /// Which of those that there have been.
    nth: u64,
}

impl Pending {
    /// By how much the registry grows at most by what was proposed in this term.
    pub(crate) fn bytes(&self, term: u64) -> usize {
        if term == self.term { self.bytes } else { 0 }
    }

    /// A write is about to be proposed.
    pub(crate) fn add(&mut self, term: u64, request: &Request, bytes: usize) {
        if term != self.term {
            *self = Self { term, proposed: self.proposed, ..Self::default() };
        }
        self.remove(request);
        self.proposed += 1;
        self.writes.insert(name(request), Growth { bytes, nth: self.proposed });
        self.bytes += bytes;
    }

    /// It is applied, or Raft has refused it.
    pub(crate) fn remove(&mut self, request: &Request) {
        if let Some(growth) = self.writes.remove(&name(request)) {
            self.bytes -= growth.bytes;
        }
    }

    pub(crate) fn proposed(&self) -> u64 {
        self.proposed
    }

    /// All that was in the log when so many had been proposed is applied: what is left of them
    /// never came into it.
    pub(crate) fn forget(&mut self, proposed: u64) {
        self.writes.retain(|_, growth| growth.nth > proposed);
        self.bytes = self.writes.values().map(|growth| growth.bytes).sum();
    }
}

fn name(request: &Request) -> (u64, u64) {
    (request.origin, request.number)
}

#[cfg(test)]
mod tests {
    use quorate_state::{Clock, Share};

    use super::*;

    fn request(number: u64) -> Request {
        let (since, share) = (Clock(0), Share(1));
        Request { origin: 7, number, done_below: 0, since, digest: 0, share }
    }

    #[test]
    fn what_is_under_way_counts_until_it_is_over() {
        let mut pending = Pending::default();
        for (number, bytes) in [(1, 10), (2, 20), (1, 11)] {
            pending.add(3, &request(number), bytes);
        }
        assert_eq!(pending.bytes(3), 31, "an attempt at the same write counts once");
        assert_eq!(pending.bytes(4), 0, "another leader's writes are not known");
        pending.remove(&request(1));
        pending.remove(&request(1));
        assert_eq!(pending.bytes(3), 20);
        pending.add(4, &request(3), 5);
        assert_eq!((pending.bytes(3), pending.bytes(4)), (0, 5));
    }

    #[test]
    fn what_never_came_into_the_log_does_not_count_for_ever() {
        let mut pending = Pending::default();
        pending.add(3, &request(1), 10);
        pending.add(3, &request(2), 20);
        let before = pending.proposed();
        pending.add(3, &request(3), 5);
        // Tried again since.
        pending.add(3, &request(2), 20);
        pending.forget(before);
        assert_eq!(pending.bytes(3), 25);
        pending.remove(&request(2));
        assert_eq!(pending.bytes(3), 5);
    }
}
