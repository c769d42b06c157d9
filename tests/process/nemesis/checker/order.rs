//! The order in which calls and messages followed each other, against that of the revisions.

use std::collections::BTreeMap;
use std::time::Instant;

use super::{Answer, Call, Seen, Told};

/// By moment and by revision.
pub(super) struct Order<'a> {
    stands: &'a BTreeMap<u32, u64>,
    /// When a call ended or a watcher was told, and the highest revision seen by then.
    ended: Vec<(Instant, u64)>,
    /// When a call began, and the lowest revision that those had seen which began then or later: a
    /// write the one before its own.
    begun: Vec<(Instant, u64)>,
    /// The revision that a call saw, and when the last one began that saw no later one.
    reached: Vec<(u64, Instant)>,
}

impl<'a> Order<'a> {
    /// `stands`: where each weight was set.
    pub(super) fn new(calls: &[Call], told: &Told, stands: &'a BTreeMap<u32, u64>) -> Self {
        let (ended, begun, reached) = (Vec::new(), Vec::new(), Vec::new());
        let mut order = Self { stands, ended, begun, reached };
        for call in calls {
            let Some(place) = order.place(call) else { continue };
            // Others may still have been under way then.
            let seen = match &call.seen {
                Seen::Write(write) if !matches!(write.answer, Answer::Done(_)) => None,
                _ => Some(call.ended),
            };
            order.ended.extend(seen.map(|ended| (ended, place)));
            let is_write = matches!(call.seen, Seen::Write(_));
            order.begun.push((call.begun, place - u64::from(is_write)));
            order.reached.push((place, call.begun));
        }
        order.ended.extend(told.changes.iter().map(|(revision, (_, at))| (*at, *revision)));
        order.ended.sort();
        let mut highest = 0;
        for (_, place) in &mut order.ended {
            highest = highest.max(*place);
            *place = highest;
        }
        order.begun.sort();
        let mut lowest = u64::MAX;
        for (_, place) in order.begun.iter_mut().rev() {
            lowest = lowest.min(*place);
            *place = lowest;
        }
        order.reached.sort();
        let mut latest = order.reached.first().map(|(_, begun)| *begun);
        for (_, begun) in &mut order.reached {
            latest = latest.max(Some(*begun));
            *begun = latest.unwrap_or(*begun);
        }
        order
    }

    /// The revision at which a write stands, or that a read has.
    fn place(&self, call: &Call) -> Option<u64> {
        match &call.seen {
            Seen::Read { revision, .. } => Some(*revision),
            Seen::Write(write) => match write.answer {
                Answer::Done(Some(revision)) => Some(revision),
                _ => self.stands.get(&write.weight).copied(),
            },
        }
    }

    /// The highest revision that somebody had seen before this moment.
    pub(super) fn before(&self, moment: Instant) -> u64 {
        let passed = self.ended.partition_point(|(at, _)| *at < moment);
        passed.checked_sub(1).map_or(0, |last| self.ended[last].1)
    }

    /// The highest revision that there can have been at this moment.
    pub(super) fn after(&self, moment: Instant) -> u64 {
        let passed = self.begun.partition_point(|(at, _)| *at <= moment);
        self.begun.get(passed).map_or(u64::MAX, |(_, place)| *place)
    }

    /// A moment at which a revision was not yet there, the latest that is known.
    pub(super) fn reached(&self, revision: u64) -> Option<Instant> {
        let passed = self.reached.partition_point(|(at, _)| *at < revision);
        passed.checked_sub(1).map(|last| self.reached[last].1)
    }

    /// What began after something had ended comes after it.
    pub(super) fn check(&self, calls: &[Call]) -> Vec<String> {
        let early = calls.iter().filter_map(|call| {
            let (at, floor) = (self.place(call)?, self.before(call.begun));
            let is_early = match call.seen {
                Seen::Read { .. } => at < floor,
                Seen::Write(_) => at <= floor,
            };
            is_early
                .then(|| format!("at {at}, but something had ended before at {floor}: {call:?}"))
        });
        early.collect()
    }
}
