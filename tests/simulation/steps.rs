//! What the operator does in a run and the faults that go with it. A pure function of the seed,
//! drawn apart from the rest of the plan.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::membership::{Act, Members};
use super::plan::{Fault, HEALED, Kind, Ms, NODES, pick};

/// Changes of the members begin in this time, so that most of them are done under faults.
const CHANGES_FROM: Ms = 4_500;
const CHANGES_UNTIL: Ms = 22_000;

const CHANGES: RangeInclusive<usize> = 1..=3;

/// Something that the operator does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) at: Ms,
    pub(crate) kind: StepKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StepKind {
    /// 0: to the voter that is furthest along.
    Transfer {
        to: u64,
    },
    Change(Act),
}

/// The steps of a seed in order, and their faults.
pub(crate) fn steps(seed: u64) -> (Vec<Step>, Vec<Fault>) {
    let mut rng = StdRng::seed_from_u64(seed ^ 0x1d1e);
    let (mut steps, mut faults) = (Vec::new(), Vec::new());
    if rng.random_bool(0.5) {
        for _ in 0..rng.random_range(1..=8) {
            let kind = StepKind::Transfer { to: rng.random_range(0..=NODES) };
            steps.push(Step { at: rng.random_range(CHANGES_FROM..HEALED), kind });
        }
    }
    if rng.random_bool(0.4) {
        change_members(&mut rng, &mut steps, &mut faults);
    }
    steps.sort_by_key(|step| step.at);
    (steps, faults)
}

fn change_members(rng: &mut StdRng, steps: &mut Vec<Step>, faults: &mut Vec<Fault>) {
    let count = rng.random_range(CHANGES);
    let mut times: Vec<Ms> =
        (0..count).map(|_| rng.random_range(CHANGES_FROM..CHANGES_UNTIL)).collect();
    times.sort_unstable();
    let mut members = Members::founders();
    let mut newest = NODES;
    for at in times {
        let act = act(rng, &members, newest + 1);
        newest = newest.max(act.comes().unwrap_or(0));
        let voters: Vec<u64> = members.voters.iter().copied().collect();
        if rng.random_bool(0.4) {
            // The node that is to lead when it begins dies meanwhile.
            let leader = pick(rng, &voters);
            let kind = StepKind::Transfer { to: leader };
            steps.push(Step { at: at - rng.random_range(200..1_000), kind });
            let kind = Kind::Crash { nodes: BTreeSet::from([leader]), kill: true };
            faults.push(fault(rng, at..at + 1_500, &[300, 1_000, 2_500], kind));
        }
        if let Some(new) = act.comes()
            && rng.random_bool(0.4)
        {
            let other = pick(rng, &voters);
            let kind = newcomer_fault(rng, new, other);
            faults.push(fault(rng, at..at + 1_500, &[200, 800, 2_500], kind));
        }
        if let Some(old) = act.goes() {
            let kind = Kind::Crash { nodes: BTreeSet::from([old]), kill: true };
            match rng.random_range(0..10) {
                // Dead before, and back afterwards with its old directory.
                0..4 => faults.push(fault(rng, at - 900..at - 100, &[4_000, 8_000], kind)),
                4..7 => faults.push(fault(rng, at + 1_500..at + 5_000, &[500, 2_000], kind)),
                _ => {}
            }
        }
        members = members.after(act);
        steps.push(Step { at, kind: StepKind::Change(act) });
    }
}

fn act(rng: &mut StdRng, members: &Members, new: u64) -> Act {
    let voters: Vec<u64> = members.voters.iter().copied().collect();
    let learner = members.learners.first().copied();
    let old = pick(rng, &voters);
    match rng.random_range(0..10) {
        0..5 => Act::Replace { old, new: learner.filter(|_| rng.random_bool(0.5)).unwrap_or(new) },
        5..7 if voters.len() < 4 => Act::Add { new: learner.unwrap_or(new), voter: true },
        7 if learner.is_none() => Act::Add { new, voter: false },
        8 if learner.is_some() => Act::Remove { old: learner.unwrap_or(0) },
        _ if voters.len() > 2 => Act::Remove { old },
        _ => Act::Add { new, voter: true },
    }
}

fn newcomer_fault(rng: &mut StdRng, new: u64, other: u64) -> Kind {
    match rng.random_range(0..5) {
        0 => Kind::Crash { nodes: BTreeSet::from([new]), kill: true },
        1 => Kind::Isolate { node: new, clients: rng.random_bool(0.5) },
        2 => Kind::Deaf { from: other, to: new },
        3 => Kind::Deaf { from: new, to: other },
        _ => Kind::Hold { a: new.min(other), b: new.max(other) },
    }
}

fn fault(rng: &mut StdRng, begins: std::ops::Range<Ms>, lasts: &[Ms], kind: Kind) -> Fault {
    let from = rng.random_range(begins);
    let until = from + pick(rng, lasts) + rng.random_range(0..300);
    Fault { from, until: until.min(HEALED), kind }
}
