//! What is wrong with the answers that callers got: every write is done once at most, all happen in
//! one order, and that order is the one in which calls followed each other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::INSTANCES;

/// A write that nobody has answered is done or lost by then.
const MAY_STILL_COME: Duration = Duration::from_secs(60);

/// A write or a read that was answered, or may have happened.
#[derive(Debug, Clone)]
pub(super) enum Seen {
    /// `weight`: what it sets, or, of what `removes` the instance, only its name. `revision`: where
    /// it stands, if it was acknowledged with one.
    Write { instance: usize, weight: u32, revision: Option<u64>, refused: bool, removes: bool },
    /// The weight of each instance that is there, and the revision that set it.
    Read { revision: u64, state: BTreeMap<usize, (u32, u64)> },
}

#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) begun: Instant,
    /// `None`: its end was not seen.
    pub(super) ended: Option<Instant>,
    pub(super) seen: Seen,
}

/// Of the writes, those that remove an instance.
#[derive(Default)]
struct Removals {
    /// What was acknowledged, by its weight.
    done: BTreeSet<u32>,
    /// When calls began of which nobody knows whether they were done, by instance.
    unknown: BTreeMap<usize, BTreeSet<Instant>>,
}

/// All that is wrong with the answers.
pub(super) fn check(calls: &[Call]) -> Vec<String> {
    let mut wrong = Vec::new();
    // What each revision set, and the revision that each weight was set at, by any answer.
    let mut set: BTreeMap<u64, (usize, u32)> = BTreeMap::new();
    let mut stands: BTreeMap<u32, u64> = BTreeMap::new();
    let mut told = |revision, instance, weight, call: &Call| {
        let other = *set.entry(revision).or_insert((instance, weight));
        let at = *stands.entry(weight).or_insert(revision);
        // The weight that all are registered with belongs to no write.
        if other != (instance, weight) || (weight >= 1_000 && at != revision) {
            wrong.push(format!("{revision} set {other:?}, {weight} was set at {at}: {call:?}"));
        }
    };
    for call in calls {
        match &call.seen {
            Seen::Write { instance, weight, revision: Some(revision), .. } => {
                told(*revision, *instance, *weight, call);
            }
            Seen::Write { .. } => {}
            Seen::Read { state, .. } => {
                for (instance, (weight, revision)) in state {
                    told(*revision, *instance, *weight, call);
                }
            }
        }
    }
    for call in calls {
        let Seen::Write { weight, refused: true, .. } = &call.seen else { continue };
        if let Some(at) = stands.get(weight) {
            wrong.push(format!("refused, and stands at {at}: {call:?}"));
        }
    }
    wrong.extend(check_order(calls, &stands));
    wrong
}

/// What began after something had ended comes after it; a read has everything up to its revision.
fn check_order(calls: &[Call], stands: &BTreeMap<u32, u64>) -> Vec<String> {
    let place = |call: &Call| match &call.seen {
        Seen::Read { revision, .. } => Some(*revision),
        Seen::Write { weight, revision, .. } => revision.or_else(|| stands.get(weight).copied()),
    };
    let mut wrong = Vec::new();
    let mut ended: Vec<(Instant, u64)> =
        calls.iter().filter_map(|call| Some((call.ended?, place(call)?))).collect();
    ended.sort();
    // The highest place of all that ended by then.
    let mut highest = 0;
    for entry in &mut ended {
        highest = highest.max(entry.1);
        entry.1 = highest;
    }
    let before = |begun: Instant| {
        let passed = ended.partition_point(|(at, _)| *at < begun);
        passed.checked_sub(1).map_or(0, |last| ended[last].1)
    };
    // By instance: each revision that set it.
    let mut set: BTreeMap<usize, BTreeMap<u64, u32>> = BTreeMap::new();
    for call in calls {
        if let Seen::Write { instance, weight, .. } = &call.seen
            && let Some(at) = stands.get(weight)
        {
            set.entry(*instance).or_default().insert(*at, *weight);
        }
    }
    let removals = Removals::of(calls);
    for call in calls {
        let Some(at) = place(call) else { continue };
        let floor = before(call.begun);
        let early = match call.seen {
            Seen::Read { .. } => at < floor,
            Seen::Write { .. } => at <= floor,
        };
        if early {
            wrong.push(format!("at {at}, but something had ended before at {floor}: {call:?}"));
        }
        let Seen::Read { revision, state } = &call.seen else { continue };
        wrong.extend(check_absent(&removals, &set, call));
        for (instance, (weight, at)) in state {
            let newer = set.get(instance).and_then(|set| set.range(at + 1..).next());
            let newer = newer.filter(|(newer, _)| *newer <= revision);
            if *at > *revision || newer.is_some() {
                wrong.push(format!("{weight} of {at}, but {newer:?} was there: {call:?}"));
            }
        }
    }
    wrong
}

/// What a read has not was removed since it was last set, or may have been: by a call whose answer
/// is not known, if that is not long ago.
fn check_absent(
    removals: &Removals,
    set: &BTreeMap<usize, BTreeMap<u64, u32>>,
    read: &Call,
) -> Vec<String> {
    let Seen::Read { revision, state } = &read.seen else { return Vec::new() };
    let is_explained = |instance: &usize| {
        let last = set.get(instance).and_then(|set| set.range(..=revision).next_back());
        let Some((_, last)) = last else { return true };
        let until = read.ended.unwrap_or_else(Instant::now);
        let unknown = removals.unknown.get(instance);
        let unknown =
            unknown.and_then(|begun| begun.range(until - MAY_STILL_COME..until).next_back());
        removals.done.contains(last) || unknown.is_some()
    };
    let absent = (0..INSTANCES).filter(|instance| !state.contains_key(instance));
    let lost = absent.filter(|instance| !is_explained(instance));
    lost.map(|instance| format!("{instance} is gone, and nothing removed it: {read:?}")).collect()
}

impl Removals {
    fn of(calls: &[Call]) -> Self {
        let mut removals = Self::default();
        for call in calls {
            match &call.seen {
                Seen::Write { removes: true, weight, revision: Some(_), .. } => {
                    removals.done.insert(*weight);
                }
                Seen::Write { removes: true, instance, refused: false, .. } => {
                    removals.unknown.entry(*instance).or_default().insert(call.begun);
                }
                Seen::Write { .. } | Seen::Read { .. } => {}
            }
        }
        removals
    }
}

/// The checker finds what it is for.
#[test]
fn the_checker_sees_what_is_done_twice_lost_or_out_of_order() {
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    let call = |from, to, seen| Call { begun: at(from), ended: Some(at(to)), seen };
    let write = |from, to, weight, revision| {
        let (instance, refused, removes) = (0, false, false);
        call(from, to, Seen::Write { instance, weight, revision, refused, removes })
    };
    let removal = |from, to, weight, revision| {
        let (instance, refused, removes) = (0, false, true);
        call(from, to, Seen::Write { instance, weight, revision, refused, removes })
    };
    let nothing =
        |from, to, revision| call(from, to, Seen::Read { revision, state: BTreeMap::new() });
    let read = |from, to, revision, weight, set| {
        call(from, to, Seen::Read { revision, state: [(0, (weight, set))].into() })
    };
    let good = vec![
        write(0, 10, 1_000, Some(1)),
        write(5, 20, 1_001, None),
        read(15, 30, 2, 1_001, 2),
        write(40, 50, 1_002, Some(3)),
        read(60, 70, 3, 1_002, 3),
    ];
    assert_eq!(check(&good), Vec::<String>::new());
    for (what, bad) in [
        ("done twice", read(80, 90, 4, 1_001, 4)),
        ("a stale read", read(80, 90, 2, 1_001, 2)),
        ("an update that is lost", read(80, 90, 3, 1_001, 2)),
        ("a write before one that had ended", write(80, 90, 1_003, Some(3))),
        ("another's revision", write(80, 90, 1_003, Some(2))),
        ("a state that never was", read(80, 90, 3, 1_004, 3)),
    ] {
        let mut calls = good.clone();
        calls.push(bad);
        assert!(!check(&calls).is_empty(), "{what}");
    }
    for (what, is_wrong, more) in [
        ("gone", true, vec![nothing(80, 90, 3)]),
        ("removed", false, vec![removal(72, 75, 1_005, Some(4)), nothing(80, 90, 4)]),
        ("still there", true, vec![removal(72, 75, 1_005, Some(4)), read(80, 90, 4, 1_002, 3)]),
        (
            "removed twice",
            true,
            vec![
                removal(72, 75, 1_005, Some(4)),
                write(76, 80, 1_006, Some(5)),
                nothing(81, 90, 6),
            ],
        ),
        ("may be removed", false, vec![removal(72, 75, 1_005, None), nothing(80, 90, 4)]),
    ] {
        let calls = [good.clone(), more].concat();
        assert_eq!(!check(&calls).is_empty(), is_wrong, "{what}: {:?}", check(&calls));
    }
    let mut refused = good;
    let (instance, weight, revision) = (0, 1_001, None);
    refused[1].seen = Seen::Write { instance, weight, revision, refused: true, removes: false };
    assert!(!check(&refused).is_empty(), "refused and done");
}
