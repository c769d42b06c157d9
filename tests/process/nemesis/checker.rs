//! What is wrong with what callers and watchers saw: every change was asked for, every write is
//! done once at most, all happen in one order, and that order is the one in which calls followed
//! each other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

#[path = "checker/order.rs"]
mod order;
#[path = "checker/tests.rs"]
mod tests;

use self::order::Order;

/// Weights from here on are each set by one write; what has a lower one was there to begin with.
pub(super) const FIRST_WEIGHT: u32 = 1_000;

/// A write that nobody has answered is done or lost by then.
const MAY_STILL_COME: Duration = Duration::from_secs(60);

/// A call: a write, or a read that was answered.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) begun: Instant,
    pub(super) ended: Instant,
    pub(super) seen: Seen,
}

#[derive(Debug, Clone)]
pub(super) enum Seen {
    Write(Write),
    /// The weight of each instance that is there, and the revision that set it.
    Read {
        revision: u64,
        state: State,
    },
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Write {
    pub(super) instance: usize,
    /// What it sets; of what `removes` the instance, only its name.
    pub(super) weight: u32,
    pub(super) removes: bool,
    pub(super) answer: Answer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// It stands at this revision, if its caller is told one.
    Done(Option<u64>),
    /// There was no such instance, as an attempt heard that began at `asked` or later. `alone`:
    /// there was no other attempt, which may still be done.
    Refused { asked: Instant, alone: bool },
    /// It may be done, once.
    Unknown,
}

/// What a revision did to an instance: the weight that it set; `None`: it was removed.
pub(super) type Change = (usize, Option<u32>);

/// What watchers were told.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// By revision, and when the first of them was told.
    changes: BTreeMap<u64, (Change, Instant)>,
    /// Where each watcher is.
    pub(super) reached: BTreeMap<usize, u64>,
    wrong: Vec<String>,
}

impl Told {
    pub(super) fn add(&mut self, revision: u64, change: Change, at: Instant) {
        let (known, _) = *self.changes.entry(revision).or_insert((change, at));
        if known != change {
            self.wrong.push(format!("{revision} did {known:?}, and {change:?} as another is told"));
        }
    }

    pub(super) fn len(&self) -> usize {
        self.changes.len()
    }
}

impl Write {
    fn change(&self) -> Change {
        (self.instance, (!self.removes).then_some(self.weight))
    }
}

/// All writes among the calls.
fn writes(calls: &[Call]) -> impl Iterator<Item = (&Call, &Write)> {
    calls.iter().filter_map(|call| match &call.seen {
        Seen::Write(write) => Some((call, write)),
        Seen::Read { .. } => None,
    })
}

/// All that is wrong.
pub(super) fn check(calls: &[Call], told: &Told) -> Vec<String> {
    let mut wrong = told.wrong.clone();
    let changes = changes(calls, told, &mut wrong);
    let mut stands = BTreeMap::new();
    for (revision, (_, weight)) in &changes {
        let Some(weight) = weight.filter(|weight| *weight >= FIRST_WEIGHT) else { continue };
        if let Some(before) = stands.insert(weight, *revision) {
            wrong.push(format!("{weight} was set at {before}, and a second time at {revision}"));
        }
    }
    let order = Order::new(calls, told, &stands);
    wrong.extend(order.check(calls));
    wrong.extend(check_acknowledged(calls, &stands));
    wrong.extend(check_refused(calls, &changes, &stands, &order));
    wrong.extend(check_asked(calls, &changes));
    wrong.extend(check_removals(calls, &changes, &order));
    wrong.extend(check_reads(calls, &changes));
    wrong
}

/// What each revision did, by all that watchers and callers were told; none may be left out.
fn changes(calls: &[Call], told: &Told, wrong: &mut Vec<String>) -> BTreeMap<u64, Change> {
    let mut changes: BTreeMap<u64, Change> =
        told.changes.iter().map(|(revision, (change, _))| (*revision, *change)).collect();
    let mut add = |revision: u64, change: Change, call: &Call| {
        let known = *changes.entry(revision).or_insert(change);
        if known != change {
            wrong.push(format!("{revision} did {known:?}, not {change:?}: {call:?}"));
        }
    };
    for call in calls {
        match &call.seen {
            Seen::Write(write) => {
                if let Answer::Done(Some(revision)) = write.answer {
                    add(revision, write.change(), call);
                }
            }
            Seen::Read { state, .. } => {
                for (instance, (weight, revision)) in state {
                    add(*revision, (*instance, Some(*weight)), call);
                }
            }
        }
    }
    let last = changes.last_key_value().map_or(0, |(last, _)| *last);
    let unknown: Vec<u64> = (1..=last).filter(|at| !changes.contains_key(at)).collect();
    if !unknown.is_empty() {
        wrong.push(format!("nobody was told what these revisions did: {unknown:?}"));
    }
    changes
}

/// What was acknowledged without a revision stands somewhere.
fn check_acknowledged(calls: &[Call], stands: &BTreeMap<u32, u64>) -> Vec<String> {
    let lost = writes(calls).filter(|(_, write)| {
        write.answer == Answer::Done(None) && !stands.contains_key(&write.weight)
    });
    lost.map(|(call, _)| format!("acknowledged, and stands nowhere: {call:?}")).collect()
}

/// What was refused does not stand, unless by an attempt that came after the one that was refused;
/// and at some moment in the call, the instance was not there: what an attempt met is remembered,
/// and told to those after it, when others may have registered the instance again.
fn check_refused(
    calls: &[Call],
    changes: &BTreeMap<u64, Change>,
    stands: &BTreeMap<u32, u64>,
    order: &Order,
) -> Vec<String> {
    let mut of: BTreeMap<usize, BTreeMap<u64, bool>> = BTreeMap::new();
    for (revision, (instance, weight)) in changes {
        of.entry(*instance).or_default().insert(*revision, weight.is_some());
    }
    let mut wrong = Vec::new();
    for (call, write) in writes(calls) {
        let Answer::Refused { asked, alone } = write.answer else { continue };
        let (from, to) = (order.before(asked), order.after(call.ended));
        if let Some(at) = stands.get(&write.weight).filter(|at| alone || **at <= from) {
            wrong.push(format!("refused, and stands at {at}: {call:?}"));
        }
        let Some(of) = of.get(&write.instance) else { continue };
        let from = order.before(call.begun);
        let was_there = of.range(..=from).next_back().is_some_and(|(_, there)| *there);
        let mut meanwhile = of.range(from + 1..to.max(from).saturating_add(1));
        if was_there && meanwhile.all(|(_, there)| *there) {
            wrong.push(format!("refused, and was there from {from} to {to}: {call:?}"));
        }
    }
    wrong
}

/// Each weight that was set is one that a write was to set there.
fn check_asked(calls: &[Call], changes: &BTreeMap<u64, Change>) -> Vec<String> {
    let asked: BTreeSet<Change> = writes(calls).map(|(_, write)| write.change()).collect();
    let unasked = changes.iter().filter(|(_, change)| {
        change.1.is_some_and(|weight| weight >= FIRST_WEIGHT) && !asked.contains(change)
    });
    unasked.map(|(at, change)| format!("{at} did {change:?}, which no call asked for")).collect()
}

/// Each removal is that of one call: of one that was acknowledged there, or of one whose answer is
/// not known, if that is not long ago and explains no other.
fn check_removals(calls: &[Call], changes: &BTreeMap<u64, Change>, order: &Order) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut done = BTreeMap::new();
    let mut unknown: BTreeMap<usize, BTreeSet<(Instant, u32)>> = BTreeMap::new();
    for (call, write) in writes(calls).filter(|(_, write)| write.removes) {
        match write.answer {
            Answer::Done(revision) => {
                if let Some(other) = done.insert(revision, call) {
                    wrong.push(format!("two calls removed it: {other:?}, {call:?}"));
                }
            }
            Answer::Unknown => {
                unknown.entry(write.instance).or_default().insert((call.begun, write.weight));
            }
            Answer::Refused { .. } => {}
        }
    }
    let gone = changes.iter().filter(|(_, change)| change.1.is_none());
    for (revision, (instance, _)) in gone.filter(|(at, _)| !done.contains_key(&Some(**at))) {
        let unknown = unknown.entry(*instance).or_default();
        // What is left of long ago was never done.
        let still = order.reached(*revision).and_then(|at| at.checked_sub(MAY_STILL_COME));
        unknown.retain(|(begun, _)| still.is_none_or(|still| *begun >= still));
        let first = unknown.first().copied();
        match first.filter(|(begun, _)| order.before(*begun) < *revision) {
            Some(explains) => drop(unknown.remove(&explains)),
            None => wrong.push(format!("{instance} is gone at {revision}: no call removed it")),
        }
    }
    wrong
}

/// Each instance with its weight, and the revision of its last change.
type State = BTreeMap<usize, (u32, u64)>;

/// A read has exactly what all changes up to its revision left.
fn check_reads(calls: &[Call], changes: &BTreeMap<u64, Change>) -> Vec<String> {
    let mut reads: BTreeMap<u64, Vec<(&Call, &State)>> = BTreeMap::new();
    for call in calls {
        if let Seen::Read { revision, state } = &call.seen {
            reads.entry(*revision).or_default().push((call, state));
        }
    }
    let (mut wrong, mut state, mut changes) = (Vec::new(), BTreeMap::new(), changes.iter());
    let mut next = changes.next();
    for (revision, reads) in reads {
        while let Some((at, (instance, weight))) = next.filter(|(at, _)| **at <= revision) {
            match weight {
                Some(weight) => drop(state.insert(*instance, (*weight, *at))),
                None => drop(state.remove(instance)),
            }
            next = changes.next();
        }
        for (call, _) in reads.into_iter().filter(|(_, read)| **read != state) {
            wrong.push(format!("at {revision} there was {state:?}: {call:?}"));
        }
    }
    wrong
}
