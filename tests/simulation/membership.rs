//! The members, change after change, and when they could form a quorum.

use std::collections::BTreeSet;

use quorate_proto::v1::{Member, MemberRole};

use super::plan::{END, Fault, Kind, Ms, NODES, Plan, Way};

/// A leader does not notice shorter stalls (`STALL` in quorate-node's clock.rs).
const UNSEEN_STALL: Ms = 400;

/// A message that takes this long comes back too late for the shortest election timeout (240 ms).
const VOTE_TIMELY: Ms = 120;

/// A change of the members that the operator makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Replace { old: u64, new: u64 },
    Add { new: u64, voter: bool },
    Remove { old: u64 },
}

impl Act {
    /// The node that comes.
    pub(crate) fn comes(self) -> Option<u64> {
        match self {
            Self::Replace { new, .. } | Self::Add { new, .. } => Some(new),
            Self::Remove { .. } => None,
        }
    }

    /// The node that goes.
    pub(crate) fn goes(self) -> Option<u64> {
        match self {
            Self::Replace { old, .. } | Self::Remove { old } => Some(old),
            Self::Add { .. } => None,
        }
    }
}

/// A change that the operator began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) act: Act,
    pub(crate) begun: Ms,
    /// When the cluster said that it is done.
    pub(crate) done: Option<Ms>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Members {
    pub(crate) voters: BTreeSet<u64>,
    pub(crate) learners: BTreeSet<u64>,
}

impl Members {
    pub(crate) fn founders() -> Self {
        Self { voters: (1..=NODES).collect(), learners: BTreeSet::new() }
    }

    /// As a node lists them.
    pub(crate) fn told(members: &[Member]) -> Self {
        let voter = |member: &&Member| member.role() == MemberRole::Voter;
        let (voters, learners): (Vec<_>, Vec<_>) = members.iter().partition(voter);
        let ids = |members: Vec<&Member>| members.into_iter().map(|member| member.id).collect();
        Self { voters: ids(voters), learners: ids(learners) }
    }

    pub(crate) fn all(&self) -> BTreeSet<u64> {
        &self.voters | &self.learners
    }

    pub(crate) fn after(mut self, act: Act) -> Self {
        if let Some(old) = act.goes() {
            self.voters.remove(&old);
            self.learners.remove(&old);
        }
        match act {
            Act::Add { new, voter: false } => drop(self.learners.insert(new)),
            Act::Add { new, .. } | Act::Replace { new, .. } => {
                self.learners.remove(&new);
                self.voters.insert(new);
            }
            Act::Remove { .. } => {}
        }
        self
    }

    /// What the last accepted change made of the founders.
    pub(crate) fn accepted(changes: &[Change]) -> Self {
        let accepted = changes.iter().filter(|change| change.done.is_some());
        accepted.fold(Self::founders(), |members, change| members.after(change.act))
    }
}

/// The sets of voters that may count at a moment: before, in and after the change that is going on.
fn may_count(changes: &[Change], at: Ms) -> Vec<BTreeSet<u64>> {
    let mut members = Members::founders();
    let mut sets = Vec::new();
    for change in changes.iter().filter(|change| change.begun <= at) {
        let before = members.voters.clone();
        members = members.after(change.act);
        sets.clear();
        if change.done.is_none_or(|done| at <= done) {
            sets.push(before.union(&members.voters).copied().collect());
            sets.push(before);
        }
    }
    sets.push(members.voters);
    sets
}

/// For each millisecond of a run, whether its voters could form a quorum.
pub(crate) struct Quorums<'a> {
    plan: &'a Plan,
    /// By one of the sets of voters that may count.
    possible: Vec<bool>,
    /// By all of them, under one leader.
    certain: Vec<bool>,
}

impl<'a> Quorums<'a> {
    pub(crate) fn new(plan: &'a Plan, changes: &[Change]) -> Self {
        let mut moments = plan.moments();
        moments.insert(0);
        moments
            .extend(changes.iter().flat_map(|change| [Some(change.begun), change.done]).flatten());
        // A change counts for the moment itself in which it is done.
        moments.extend(changes.iter().filter_map(|change| Some(change.done? + 1)));
        let (mut possible, mut certain) = (Vec::new(), Vec::new());
        let mut moments = moments.into_iter().peekable();
        while let Some(at) = moments.next() {
            let until = moments.peek().copied().unwrap_or(2 * END) as usize;
            let sets = may_count(changes, at);
            // What a held way has taken before may arrive; a question and its answer may not.
            let may_lead =
                leaders_of(plan, at, |a, b| matches!(plan.way(a, b, at), Way::Open | Way::Held));
            possible.resize(until, sets.iter().any(|set| !may_lead(set).is_empty()));
            let can_lead = leaders_of(plan, at, |a, b| {
                let late = plan.late_ms(a, b, at) + plan.late_ms(b, a, at);
                plan.way(a, b, at) == Way::Open && late < VOTE_TIMELY
            });
            let all = sets.iter().map(can_lead).reduce(|all, more| &all & &more);
            // Where a vote takes longer than candidates wait for it, no node may come to lead.
            let in_time = plan.latency_ms(at) < VOTE_TIMELY;
            certain.resize(until, in_time && all.is_some_and(|all| !all.is_empty()));
        }
        Self { plan, possible, certain }
    }

    /// The most that registry time may have moved on between two moments: as much as the clock on
    /// the wall, without the times when no quorum was possible, of which a leader may count
    /// `slack`.
    pub(crate) fn registry_ms_max(&self, from: Ms, to: Ms, slack: Ms) -> Ms {
        let mut passed = 0;
        let mut before = true;
        for possible in &self.possible[from as usize..to as usize] {
            passed += Ms::from(*possible);
            if before && !possible {
                passed += slack;
            }
            before = *possible;
        }
        let stalls = self.plan.faults.iter().filter(|fault| (from..=to).contains(&fault.from));
        let jumps = stalls.map(|Fault { kind, .. }| match kind {
            Kind::Stall { ms, .. } => UNSEEN_STALL.min(*ms),
            _ => 0,
        });
        passed + jumps.sum::<Ms>()
    }

    /// How long a quorum was certainly possible between two moments.
    pub(crate) fn quorum_ms(&self, from: Ms, to: Ms) -> Ms {
        self.certain[from as usize..to as usize].iter().filter(|certain| **certain).count() as Ms
    }
}

/// The voters of a set that can lead it: up, and on a way that `talk` takes (of the lower id to the
/// higher) with enough of the others that are.
fn leaders_of(
    plan: &Plan,
    at: Ms,
    talk: impl Fn(u64, u64) -> bool,
) -> impl Fn(&BTreeSet<u64>) -> BTreeSet<u64> {
    let down = plan.down(at);
    move |voters| {
        let up: Vec<u64> = voters.iter().copied().filter(|node| !down.contains_key(node)).collect();
        let hears = |leader: u64| {
            let heard =
                |node: &&u64| **node == leader || talk(leader.min(**node), leader.max(**node));
            up.iter().filter(heard).count()
        };
        up.iter().copied().filter(|leader| hears(*leader) > voters.len() / 2).collect()
    }
}

#[test]
fn a_held_way_gives_no_certain_quorum() {
    let hold = Fault { from: 100, until: 300, kind: Kind::Hold { a: 2, b: 3 } };
    let nodes = BTreeSet::from([1]);
    let kill = Fault { from: 200, until: 400, kind: Kind::Crash { nodes, kill: true } };
    let late = Fault { from: 500, until: 600, kind: Kind::Late { from: 3, to: 2, ms: 500 } };
    let mut plan = Plan::new(0);
    plan.steps.clear();
    plan.tuning.latency_max_ms = 5;
    plan.faults = vec![hold, kill, late];
    let quorums = Quorums::new(&plan, &[]);
    assert_eq!(quorums.quorum_ms(0, 700), 600, "2 and 3 alone cannot agree from 200 to 300");
    assert_eq!(quorums.registry_ms_max(0, 700, 0), 700, "what is held may be a last vote");
    plan.faults[1].until = 650;
    let quorums = Quorums::new(&plan, &[]);
    assert_eq!(quorums.quorum_ms(0, 700), 500, "nor while what 3 says is late");
}

#[test]
fn quorums_follow_the_members() {
    let kill = |node, from, until| Fault {
        from,
        until,
        kind: Kind::Crash { nodes: BTreeSet::from([node]), kill: true },
    };
    let mut plan = Plan::new(0);
    plan.steps.clear();
    plan.faults = vec![kill(1, 100, 200), kill(2, 150, 300)];
    let quorums = Quorums::new(&plan, &[]);
    assert_eq!(quorums.quorum_ms(0, 400), 350);
    assert_eq!(quorums.registry_ms_max(0, 400, 7), 357);
    let act = Act::Remove { old: 1 };
    let changes = [Change { act, begun: 50, done: Some(99) }];
    let quorums = Quorums::new(&plan, &changes);
    assert_eq!(quorums.quorum_ms(0, 400), 250, "without node 2 there is none of two");
    let changes = [Change { act, begun: 50, done: None }];
    let quorums = Quorums::new(&plan, &changes);
    assert_eq!(quorums.quorum_ms(0, 400), 250);
    assert_eq!(quorums.registry_ms_max(0, 400, 0), 350, "it may not have had its effect yet");
}
