//! What this node has proposed as leader and not applied yet, as far as it makes the registry
//! larger: that counts, too, or all that is under way could go beyond the limit together.
//!
//! A caller that is gone leaves its write in the log, so what is here goes when it is applied, when
//! all is applied that was handed to Raft before, or with the term.

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
    /// How many attempts were given up.
    given_up: u64,
}

#[derive(Debug, Default)]
struct Growth {
    bytes: usize,
    /// Attempts whose callers are there: each may be on its way into the log yet.
    waiting: u32,
    /// How many attempts at all writes were given up when the last one at this was.
    given_up: u64,
}

impl Pending {
    /// By how much the registry grows at most by what was proposed in this term, but for `own`.
    pub(crate) fn bytes(&self, term: u64, own: Option<&Request>) -> usize {
        if term != self.term {
            return 0;
        }
        let own = own.and_then(|own| self.writes.get(&name(own)));
        self.bytes - own.map_or(0, |own| own.bytes)
    }

    /// A write is about to be proposed. Another attempt in the same name may be something else,
    /// and either may be what is done. Whether it counts: not in a term that is over.
    pub(crate) fn add(&mut self, term: u64, request: &Request, bytes: usize) -> bool {
        if term < self.term {
            return false;
        }
        if term > self.term {
            *self = Self { term, given_up: self.given_up, ..Self::default() };
        }
        let write = self.writes.entry(name(request)).or_default();
        self.bytes += bytes.saturating_sub(write.bytes);
        write.bytes = write.bytes.max(bytes);
        write.waiting += 1;
        true
    }

    /// It is applied.
    pub(crate) fn remove(&mut self, request: &Request) {
        if let Some(growth) = self.writes.remove(&name(request)) {
            self.bytes -= growth.bytes;
        }
    }

    /// The caller of an attempt is gone: it was handed to Raft, or never will be.
    pub(crate) fn give_up(&mut self, request: &Request) {
        if let Some(write) = self.writes.get_mut(&name(request)) {
            self.given_up += 1;
            write.given_up = self.given_up;
            write.waiting = write.waiting.saturating_sub(1);
        }
    }

    pub(crate) fn given_up(&self) -> u64 {
        self.given_up
    }

    /// All that was handed to Raft when so many had been given up is applied: what is left of them
    /// never came into the log.
    pub(crate) fn forget(&mut self, given_up: u64) {
        self.writes.retain(|_, write| write.waiting > 0 || write.given_up > given_up);
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
        for (number, bytes) in [(1, 10), (2, 20), (1, 11), (1, 3)] {
            pending.add(3, &request(number), bytes);
        }
        assert_eq!(pending.bytes(3, None), 31, "an attempt at the same write counts once");
        assert_eq!(pending.bytes(3, Some(&request(1))), 20, "and needs no room beside the first");
        assert_eq!(pending.bytes(3, Some(&request(7))), 31);
        assert_eq!(pending.bytes(4, None), 0, "another leader's writes are not known");
        pending.remove(&request(1));
        pending.remove(&request(1));
        assert_eq!(pending.bytes(3, None), 20);
        pending.add(4, &request(3), 5);
        assert!(!pending.add(3, &request(4), 7));
        assert_eq!((pending.bytes(3, None), pending.bytes(4, None)), (0, 5), "3 is over");
    }

    #[test]
    fn what_never_came_into_the_log_does_not_count_for_ever() {
        let mut pending = Pending::default();
        for (number, bytes) in [(1, 10), (2, 20), (3, 5), (4, 40)] {
            pending.add(3, &request(number), bytes);
        }
        pending.give_up(&request(1));
        pending.give_up(&request(2));
        let before = pending.given_up();
        // Tried again since.
        pending.add(3, &request(2), 20);
        pending.give_up(&request(3));
        pending.forget(before);
        assert_eq!(pending.bytes(3, None), 65, "the rest may be on its way into the log");
        pending.give_up(&request(2));
        pending.forget(pending.given_up());
        assert_eq!(pending.bytes(3, None), 40, "the caller of one is there");
        pending.remove(&request(4));
        pending.give_up(&request(4));
        assert_eq!(pending.bytes(3, None), 0);
    }
}
