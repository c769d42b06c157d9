//! What a balancer works out when a view changes, so that a pick need not: groups, turns, and sums
//! of weights.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::time::Instant;

use super::{Picked, Policy};
use crate::following::Instances;
use crate::types::Instance;

/// The turns of a weighted round at most (and at least four for each instance): a bound on its
/// memory, and on how exact it is.
const TURNS_MAX: u64 = 4_096;

#[derive(Debug)]
pub(super) struct Prepared {
    /// What it was made from: compared by pointer.
    pub(super) source: Arc<Instances>,
    /// The caller's zone, and all others; without a zone, all are near.
    pub(super) groups: [Group; 2],
    /// How much of the calls stays near, when there are others.
    pub(super) share_of_near: f64,
    pub(super) away_version: u64,
    /// When an instance that went away counts again.
    pub(super) valid_until: Option<Instant>,
}

#[derive(Debug, Default)]
pub(super) struct Group {
    seats: Vec<Arc<Seat>>,
    /// Sums of weights up to and with each seat.
    sums: Vec<u64>,
    /// The order of turns: places in `seats`.
    turns: Vec<u32>,
}

/// An instance as of one of its changes, and the calls that were given to it. All that a pick
/// writes stands side by side: with many threads, each cache line that is written is one to wait
/// for.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) instance: Arc<Instance>,
    /// Calls in flight; with [`RETIRED`] once the instance has changed, from when on all count as
    /// `older`.
    in_flight: AtomicU32,
    /// The calls in flight that were given to its retired seats, all of them together; not there
    /// before there is one.
    older: OnceLock<Arc<AtomicU32>>,
}

const RETIRED: u32 = 1 << 31;

impl Default for Prepared {
    fn default() -> Self {
        Self {
            source: Arc::new(Instances::none()),
            groups: Default::default(),
            share_of_near: 1.0,
            away_version: 0,
            valid_until: None,
        }
    }
}

impl Prepared {
    /// From the instances that may be chosen; calls in flight go on from the ones of `before`.
    pub(super) fn new(
        source: Arc<Instances>,
        here: &[Arc<Instance>],
        zone: Option<&str>,
        policy: Policy,
        before: &Self,
    ) -> Self {
        let seats = before.groups.iter().flat_map(|group| &group.seats);
        let seats: HashMap<(&str, u64), &Arc<Seat>> = seats
            .map(|seat| ((seat.instance.id.as_str(), seat.instance.incarnation), seat))
            .collect();
        let seat = |instance: &Arc<Instance>| match seats
            .get(&(instance.id.as_str(), instance.incarnation))
        {
            Some(seat) if Arc::ptr_eq(&seat.instance, instance) => Arc::clone(seat),
            Some(seat) => Arc::new(seat.renewed(instance.clone())),
            None => Arc::new(Seat::new(instance.clone())),
        };
        let is_near = |instance: &&Arc<Instance>| zone.is_none_or(|zone| instance.zone == zone);
        let (near, far): (Vec<_>, Vec<_>) = here.iter().partition(is_near);
        let group =
            |of: Vec<&Arc<Instance>>| Group::new(of.into_iter().map(seat).collect(), policy);
        let groups = [group(near), group(far)];
        Self { share_of_near: share(here, &groups), source, groups, ..Self::default() }
    }
}

/// The part of the calls that the near zone carries: all, if it has its share of the weights.
fn share(here: &[Arc<Instance>], [near, far]: &[Group; 2]) -> f64 {
    let mut zones: Vec<&str> = here.iter().map(|instance| instance.zone.as_str()).collect();
    zones.sort_unstable();
    zones.dedup();
    let fair = (near.weight() + far.weight()) as f64 / zones.len().max(1) as f64;
    if fair > 0.0 { (near.weight() as f64 / fair).min(1.0) } else { 1.0 }
}

impl Group {
    fn new(seats: Vec<Arc<Seat>>, policy: Policy) -> Self {
        let weights: Vec<u64> = seats.iter().map(|seat| u64::from(seat.instance.weight)).collect();
        let sums = weights.iter().scan(0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        });
        let sums = sums.collect();
        let turns = match policy {
            Policy::RoundRobin => (0..).take(seats.len()).collect(),
            Policy::WeightedRoundRobin => turns(&weights),
            Policy::Random | Policy::LeastLoaded => Vec::new(),
        };
        Self { seats, sums, turns }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.seats.len()
    }

    pub(super) fn weight(&self) -> u64 {
        self.sums.last().copied().unwrap_or(0)
    }

    pub(super) fn at(&self, place: usize) -> &Arc<Seat> {
        &self.seats[place]
    }

    pub(super) fn at_weight(&self, weight: u64) -> Option<&Arc<Seat>> {
        self.seats.get(self.sums.partition_point(|sum| *sum <= weight))
    }

    pub(super) fn at_turn(&self, turn: usize) -> &Arc<Seat> {
        self.at(self.turns[turn % self.turns.len()] as usize)
    }

    /// Turns of a round.
    pub(super) fn turns(&self) -> usize {
        self.turns.len()
    }

    pub(super) fn seats(&self) -> impl Iterator<Item = &Arc<Seat>> {
        self.seats.iter()
    }
}

impl Seat {
    fn new(instance: Arc<Instance>) -> Self {
        Self { instance, in_flight: AtomicU32::new(0), older: OnceLock::new() }
    }

    /// The seat of the same run of the instance after it has changed.
    fn renewed(&self, instance: Arc<Instance>) -> Self {
        let older = self.older.get_or_init(Arc::default).clone();
        let before = self.in_flight.fetch_or(RETIRED, Ordering::AcqRel);
        if before & RETIRED == 0 {
            older.fetch_add(before, Ordering::Relaxed);
        }
        Self { older: OnceLock::from(older), ..Self::new(instance) }
    }

    pub(super) fn pick(seat: &Arc<Self>) -> Picked {
        if seat.in_flight.fetch_add(1, Ordering::Acquire) & RETIRED != 0 {
            seat.older().map(|older| older.fetch_add(1, Ordering::Relaxed));
        }
        Picked { seat: seat.clone() }
    }

    pub(super) fn leave(&self) {
        if self.in_flight.fetch_sub(1, Ordering::Acquire) & RETIRED != 0 {
            self.older().map(|older| older.fetch_sub(1, Ordering::Relaxed));
        }
    }

    fn older(&self) -> Option<&AtomicU32> {
        self.older.get().map(|older| &**older)
    }

    /// The calls in flight from here, the one to come, and what it says itself.
    fn load(&self) -> u64 {
        let own = self.in_flight.load(Ordering::Relaxed) & !RETIRED;
        let older = self.older().map_or(0, |older| older.load(Ordering::Relaxed));
        u64::from(own) + u64::from(older) + u64::from(self.instance.load) + 1
    }

    /// The one with the smaller load for its weight.
    pub(super) fn less_loaded<'a>(one: &'a Arc<Self>, other: &'a Arc<Self>) -> &'a Arc<Self> {
        let weight = |seat: &Self| u64::from(seat.instance.weight);
        if other.load() * weight(one) < one.load() * weight(other) { other } else { one }
    }
}

/// A round in which each place comes as often as its weight says, evenly spread: the turn n of
/// weight w is due at (n + phase) / w, and the earliest is next. The phases, multiples of the
/// golden ratio, keep places of equal weight apart.
fn turns(weights: &[u64]) -> Vec<u32> {
    let common = weights.iter().fold(0, |a, b| gcd(a, *b)).max(1);
    let sum: u64 = weights.iter().map(|weight| weight / common).sum();
    let limit = TURNS_MAX.max(weights.len() as u64 * 4);
    let reduced = weights.iter().map(|weight| {
        let weight = weight / common;
        if sum <= limit { weight } else { (weight * limit / sum).max(1) }
    });
    let reduced: Vec<u64> = reduced.collect();
    let total = reduced.iter().sum::<u64>();
    // In units of 2^-32.
    let due = |place: u32, turn: u64, weight: u64| {
        let phase = u64::from((place + 1).wrapping_mul(0x9E37_79B9));
        ((turn << 32) + phase) / weight
    };
    let mut heap: BinaryHeap<Reverse<(u64, u32, u64)>> = BinaryHeap::new();
    for (place, weight) in (0_u32..).zip(&reduced) {
        heap.push(Reverse((due(place, 0, *weight), place, 0)));
    }
    let mut turns = Vec::with_capacity(total as usize);
    while let Some(Reverse((_, place, turn))) = heap.pop() {
        turns.push(place);
        let weight = reduced[place as usize];
        if turn + 1 < weight {
            heap.push(Reverse((due(place, turn + 1, weight), place, turn + 1)));
        }
    }
    turns
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_exact_and_evenly_spread() {
        // S1.16
        assert_eq!(turns(&[100, 100, 100]), [1, 0, 2]);
        assert_eq!(turns(&[500, 100, 100]), [0, 1, 0, 0, 0, 2, 0], "the light ones apart");
        for weights in [vec![1, 2, 3, 4], vec![7], vec![1_000_000, 1], vec![3; 2_000]] {
            let turns = turns(&weights);
            let count = |place: u32| turns.iter().filter(|turn| **turn == place).count() as u64;
            let total: u64 = weights.iter().sum();
            for (place, weight) in (0..).zip(&weights) {
                let exact = *weight as f64 / total as f64;
                let is = count(place) as f64 / turns.len() as f64;
                assert!((exact - is).abs() <= 1.0 / 4_096.0 + 1e-9, "{weights:?}: {exact} {is}");
            }
            assert!(turns.len() <= 8_000, "{}", turns.len());
        }
    }

    #[test]
    fn calls_in_flight_are_counted_over_changes() {
        let instance = || Arc::new(Instance { weight: 1, ..Instance::default() });
        let first = Arc::new(Seat::new(instance()));
        let (a, b) = (Seat::pick(&first), Seat::pick(&first));
        assert_eq!(first.load(), 3);
        let second = Arc::new(first.renewed(instance()));
        assert_eq!(second.load(), 3);
        // A pick that had looked before, and one that looks now.
        let (c, d) = (Seat::pick(&first), Seat::pick(&second));
        assert_eq!(second.load(), 5);
        let third = Arc::new(second.renewed(instance()));
        // Two tasks that prepare a view, one after the other.
        let fourth = Arc::new(second.renewed(instance()));
        for (picked, left) in [(a, 4), (d, 3), (c, 2), (b, 1)] {
            drop(picked);
            assert_eq!((third.load(), fourth.load()), (left, left));
        }
    }
}
