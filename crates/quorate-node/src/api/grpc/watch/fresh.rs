//! How old what a watcher has may be: no older than what the node had when the watcher had come as
//! far as it.

use std::time::Duration;

use tokio::time::Instant;

use crate::node::Node;
use crate::node::leadership::Moment;

/// What one watcher has.
#[derive(Debug)]
pub(super) struct Fresh {
    /// The latest moment that it may have reached.
    known: Moment,
    /// When it was last told how old it is.
    told: Instant,
}

impl Fresh {
    /// Of one that begins now.
    pub(super) fn begin(node: &Node) -> Self {
        Self { known: node.moment(), told: Instant::now() }
    }

    /// The moment for its first message, which is copied from the node's state later than this
    /// began.
    pub(super) fn at_first(&self) -> Option<Instant> {
        self.known.at
    }

    /// Whether it was told nothing of its age for so long.
    pub(super) fn is_due(&self, every: Duration) -> bool {
        self.told.elapsed() >= every
    }

    /// The moment for a message, with which the watcher has everything up to `reached`, as far as
    /// this or the node's moments say. While others write, `now` is mostly a little further than
    /// any watcher, and the `last` moment is not.
    pub(super) fn of(&mut self, reached: u64, now: Moment, last: Moment) -> Option<Instant> {
        let is_reached = |moment: &Moment| moment.revision <= reached;
        if is_reached(&now) {
            self.known = now;
        } else if is_reached(&last) && (!is_reached(&self.known) || last.at > self.known.at) {
            self.known = last;
        }
        let at = self.known.at.filter(|_| is_reached(&self.known));
        if at.is_some() {
            self.told = Instant::now();
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_watcher_that_is_behind_is_told_no_age_of_what_it_does_not_have() {
        let at = |ms| Some(Instant::now() + Duration::from_millis(ms));
        let moment = |at, revision| Moment { at, revision };
        let mut fresh = Fresh { known: moment(at(0), 10), told: Instant::now() };
        for (what, reached, now, last, expected) in [
            ("it resumes from before", 4, (at(50), 12), (at(40), 11), None),
            ("on its way", 9, (at(100), 12), (at(90), 12), None),
            ("as far as the node was when it came", 10, (at(150), 12), (at(140), 12), at(0)),
            ("as far as the node is", 12, (at(200), 12), (at(190), 12), at(200)),
            ("nothing was written since", 12, (at(250), 12), (at(240), 12), at(250)),
            ("it reads slowly", 12, (at(5_000), 90), (at(4_900), 89), at(250)),
            ("in between", 80, (at(5_100), 95), (at(5_000), 92), at(250)),
            ("it has all", 95, (at(5_200), 95), (at(5_100), 94), at(5_200)),
            ("others write all the time", 120, (at(9_000), 123), (at(8_900), 119), at(8_900)),
            ("what it knows is later", 120, (at(9_000), 123), (at(8_000), 100), at(8_900)),
            ("the node does not know", 125, (None, 125), (None, 124), None),
        ] {
            let (now, last) = (moment(now.0, now.1), moment(last.0, last.1));
            assert_eq!(fresh.of(reached, now, last), expected, "{what}");
        }
    }

    /// The first of many messages that catch up tells none.
    #[tokio::test(start_paused = true)]
    async fn a_message_that_tells_no_age_puts_the_next_one_off_no_further() {
        let every = Duration::from_secs(5);
        let moment = |revision| Moment { at: Some(Instant::now()), revision };
        let mut fresh = Fresh { known: moment(10), told: Instant::now() };
        assert!(!fresh.is_due(every));
        tokio::time::advance(every).await;
        for (reached, is_due) in [(4, true), (10, false)] {
            fresh.of(reached, moment(12), moment(11));
            assert_eq!(fresh.is_due(every), is_due, "at {reached}");
        }
    }
}
