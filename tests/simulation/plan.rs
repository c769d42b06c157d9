//! What a seed means: which faults happen when, and how the nodes are tuned. A pure function of the
//! seed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::steps::{Step, StepKind, steps};

/// Simulated time since the run began, in ms.
pub(crate) type Ms = u64;

/// The founders; nodes that come later go on counting.
pub(crate) const NODES: u64 = 3;

/// The cluster gets this long to form before the first fault.
const FAULTS_FROM: Ms = 3_000;
/// All faults are over by then.
pub(crate) const HEALED: Ms = 30_000;
/// By then everything must work again, at the first attempt.
pub(crate) const CALM: Ms = HEALED + 6_000;
/// Far enough after `HEALED` that every process that died before is gone (the largest TTL, and 10
/// s).
pub(crate) const END: Ms = HEALED + 17_000;

/// A run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) faults: Vec<Fault>,
    pub(crate) steps: Vec<Step>,
    pub(crate) tuning: Tuning,
}

/// What differs between runs in how nodes are configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tuning {
    pub(crate) snapshot_every: u64,
    pub(crate) keep_entries: u64,
    pub(crate) watch_ring: usize,
    pub(crate) latency_max_ms: u64,
    /// Nodes and clients speak TLS.
    pub(crate) tls: bool,
}

/// One fault, from a time to a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) from: Ms,
    pub(crate) until: Ms,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The nodes lose their memory. `kill`: what they had not handed to the operating system is
    /// lost too.
    Crash { nodes: BTreeSet<u64>, kill: bool },
    /// A node hears and is heard by no other node; `clients`: nor by clients.
    Isolate { node: u64, clients: bool },
    /// No node hears another.
    Shatter,
    /// Nothing arrives from a node at another.
    Deaf { from: u64, to: u64 },
    /// What two nodes send each other arrives only after the fault.
    Hold { a: u64, b: u64 },
    /// Every message takes up to `ms`.
    Slow { ms: u64 },
    /// What a node sends another arrives `ms` later, in order; the way back is as it was.
    Late { from: u64, to: u64, ms: u64 },
    /// A node loses its disk, and comes back on an empty one. Only while the cluster is founded.
    Wipe { node: u64 },
    /// A node's clock jumps ahead, as after a stall: all of its timers are late at once. Takes no
    /// time.
    Stall { node: u64, ms: u64 },
}

/// What a fault does to the way between two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    Open,
    Held,
    /// Nothing from the first to the second / the reverse.
    DeafForward,
    DeafBackward,
    Cut,
}

impl Plan {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let tuning = Tuning {
            snapshot_every: pick(&mut rng, &[100, 300, 50_000]),
            keep_entries: pick(&mut rng, &[10, 1_000]),
            watch_ring: pick(&mut rng, &[200, 100_000]),
            latency_max_ms: pick(&mut rng, &[5, 20, 60]),
            // Not drawn, so that all else stays what it was.
            tls: seed % 4 == 2,
        };
        let count = rng.random_range(6..=11);
        let mut faults: Vec<Fault> = (0..count).map(|_| fault(&mut rng)).collect();
        // Drawn after and apart from the others, which stay what they were.
        if rng.random_bool(0.5) {
            faults.push(late(&mut rng));
        }
        if rng.random_bool(0.5) {
            let count = rng.random_range(1..=4);
            let mut wiped = false;
            // Of three disks one may be lost: with two, a quorum's memory is.
            faults.extend((0..count).map(|_| while_founding(&mut rng)).filter(|fault| {
                !matches!(fault.kind, Kind::Wipe { .. }) || !std::mem::replace(&mut wiped, true)
            }));
        }
        let (steps, more) = steps(seed);
        faults.extend(more);
        faults.sort_by_key(|fault| (fault.from, fault.until));
        Self { seed, faults, steps, tuning }
    }

    /// All nodes that there ever are.
    pub(crate) fn nodes(&self) -> RangeInclusive<u64> {
        let new = self.steps.iter().filter_map(|step| match step.kind {
            StepKind::Change(act) => act.comes(),
            StepKind::Transfer { .. } => None,
        });
        1..=new.max().unwrap_or(NODES)
    }

    /// All ways between them, each once.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        let last = *self.nodes().end();
        (1..=last).flat_map(move |a| (a + 1..=last).map(move |b| (a, b)))
    }

    fn active(&self, at: Ms) -> impl Iterator<Item = &Fault> {
        self.faults.iter().filter(move |fault| fault.from <= at && at < fault.until)
    }

    /// The nodes that are down, and whether their crash was a kill.
    pub(crate) fn down(&self, at: Ms) -> BTreeMap<u64, bool> {
        let mut down = BTreeMap::new();
        for fault in self.active(at) {
            match &fault.kind {
                Kind::Crash { nodes, kill } => {
                    for node in nodes {
                        *down.entry(*node).or_default() |= kill;
                    }
                }
                Kind::Wipe { node } => *down.entry(*node).or_default() = true,
                _ => {}
            }
        }
        down
    }

    /// Whether a node loses its disk then.
    pub(crate) fn wiped(&self, node: u64, at: Ms) -> bool {
        self.faults.iter().any(|fault| fault.from == at && fault.kind == Kind::Wipe { node })
    }

    /// How much later than otherwise what a node sends another arrives.
    pub(crate) fn late_ms(&self, from: u64, to: u64, at: Ms) -> Ms {
        let late = self.active(at).filter_map(|fault| match fault.kind {
            Kind::Late { from: a, to: b, ms } if (a, b) == (from, to) => Some(ms),
            _ => None,
        });
        late.max().unwrap_or(0)
    }

    /// The state of the way between two nodes, `a < b`.
    pub(crate) fn way(&self, a: u64, b: u64, at: Ms) -> Way {
        let mut ways = BTreeSet::from([Way::Open]);
        for fault in self.active(at) {
            ways.insert(match &fault.kind {
                Kind::Isolate { node, .. } if [a, b].contains(node) => Way::Cut,
                Kind::Shatter => Way::Cut,
                Kind::Deaf { from, to } if (*from, *to) == (a, b) => Way::DeafForward,
                Kind::Deaf { from, to } if (*from, *to) == (b, a) => Way::DeafBackward,
                Kind::Hold { a: x, b: y } if (*x, *y) == (a, b) => Way::Held,
                _ => Way::Open,
            });
        }
        match ways.contains(&Way::DeafForward) && ways.contains(&Way::DeafBackward) {
            true => Way::Cut,
            false => *ways.last().expect("one at least"),
        }
    }

    /// Whether clients reach a node.
    pub(crate) fn reachable(&self, node: u64, at: Ms) -> bool {
        !self.active(at).any(|fault| fault.kind == Kind::Isolate { node, clients: true })
    }

    pub(crate) fn latency_ms(&self, at: Ms) -> u64 {
        let slow = self.active(at).filter_map(|fault| match fault.kind {
            Kind::Slow { ms } => Some(ms),
            _ => None,
        });
        slow.max().unwrap_or(self.tuning.latency_max_ms)
    }

    /// Whether nothing at all is wrong.
    pub(crate) fn healthy(&self, at: Ms) -> bool {
        self.active(at).next().is_none()
    }

    /// The moments at which something changes, in order.
    pub(crate) fn moments(&self) -> BTreeSet<Ms> {
        self.faults.iter().flat_map(|fault| [fault.from, fault.until]).collect()
    }
}

fn fault(rng: &mut StdRng) -> Fault {
    let node = rng.random_range(1..=NODES);
    let other = (node + rng.random_range(0..NODES - 1)) % NODES + 1;
    let kind = match rng.random_range(0..100) {
        0..25 => Kind::Crash { nodes: BTreeSet::from([node]), kill: rng.random_bool(0.75) },
        25..32 => Kind::Crash { nodes: BTreeSet::from([node, other]), kill: true },
        32..38 => Kind::Crash { nodes: (1..=NODES).collect(), kill: true },
        38..58 => Kind::Isolate { node, clients: rng.random_bool(0.5) },
        58..64 => Kind::Shatter,
        64..74 => Kind::Deaf { from: node, to: other },
        74..82 => Kind::Hold { a: node.min(other), b: node.max(other) },
        82..90 => Kind::Slow { ms: pick(rng, &[100, 200, 400]) },
        _ => Kind::Stall { node, ms: pick(rng, &[300, 1_000, 4_000, 15_000]) },
    };
    let from = rng.random_range(FAULTS_FROM..HEALED - 4_000);
    let lasts = match kind {
        Kind::Stall { .. } => 1,
        _ => pick(rng, &[200, 600, 1_500, 3_000, 6_000]) + rng.random_range(0..500),
    };
    Fault { from, until: (from + lasts).min(HEALED), kind }
}

fn late(rng: &mut StdRng) -> Fault {
    let (from, to) = two(rng);
    let begins = rng.random_range(FAULTS_FROM..HEALED - 10_000);
    let kind = Kind::Late { from, to, ms: pick(rng, &[500, 2_000]) };
    // What is under way arrives after it, before all must be well.
    Fault { from: begins, until: begins + pick(rng, &[3_000, 8_000]), kind }
}

/// Founders crash, lose their disks, and are cut off from each other before there is a cluster and
/// while there is none.
fn while_founding(rng: &mut StdRng) -> Fault {
    let (node, other) = two(rng);
    let kind = match rng.random_range(0..100) {
        0..30 => Kind::Crash { nodes: BTreeSet::from([node]), kill: true },
        30..40 => Kind::Crash { nodes: BTreeSet::from([node, other]), kill: true },
        40..50 => Kind::Crash { nodes: (1..=NODES).collect(), kill: true },
        50..65 => Kind::Wipe { node },
        65..80 => Kind::Isolate { node, clients: false },
        80..90 => Kind::Deaf { from: node, to: other },
        _ => Kind::Shatter,
    };
    let from = rng.random_range(20..FAULTS_FROM);
    Fault { from, until: from + pick(rng, &[50, 300, 1_000]) + rng.random_range(0..200), kind }
}

fn two(rng: &mut StdRng) -> (u64, u64) {
    let node = rng.random_range(1..=NODES);
    (node, (node + rng.random_range(0..NODES - 1)) % NODES + 1)
}

pub(crate) fn pick<T: Copy>(rng: &mut StdRng, from: &[T]) -> T {
    from[rng.random_range(0..from.len())]
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: {:?}", self.seed, self.tuning)?;
        for Fault { from, until, kind } in &self.faults {
            writeln!(f, "  {from:>6} to {until:>6} ms  {kind:?}")?;
        }
        for Step { at, kind } in &self.steps {
            writeln!(f, "  {at:>6} ms  {kind:?}")?;
        }
        Ok(())
    }
}
