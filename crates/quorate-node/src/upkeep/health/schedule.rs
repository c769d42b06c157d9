//! Which checks there are, when each is due, and what each has come to.
//!
//! A check has one probe at a time. The next one is due a whole interval (10 % more or less, so
//! that checks that began together drift apart) after the last one began. Checks whose last probe
//! was not answered in time, or whose name was not looked up in time, wait in a queue of their own:
//! they may only take a part of the room, so that they do not hold up targets that answer.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use quorate_state::{
    CheckedInstances, Health, HealthCheck, HealthReason, HealthReport, Instance, InstanceKey,
};
use tokio::time::Instant;

use super::probe::Failure;
use super::verdict::{self, Streak, Verdict};

/// The first probes of checks that came at the same time are spread over this, or over the interval
/// if it is shorter.
const FIRST_WITHIN: Duration = Duration::from_secs(5);

/// Which check; never used twice.
pub(super) type CheckId = u64;

/// All checks, and the queues in which they wait for their next probe.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    known: CheckedInstances,
    instances: HashMap<InstanceKey, Watched>,
    checks: HashMap<CheckId, Probed>,
    prompt: BTreeSet<(Instant, CheckId)>,
    hanging: BTreeSet<(Instant, CheckId)>,
    last_id: CheckId,
}

#[derive(Debug)]
struct Watched {
    instance: Arc<Instance>,
    checks: Vec<CheckId>,
}

#[derive(Debug)]
struct Probed {
    key: InstanceKey,
    check: HealthCheck,
    streak: Streak,
    /// Why it fails: what the first probe found that failed while it did. `None`: it does not fail.
    reason: Option<HealthReason>,
    /// When its next probe is due; `None`: one is under way.
    due: Option<Instant>,
    began: Instant,
    /// It waits with those that may hang.
    hangs: bool,
    /// The last lookup of its name was late.
    name_is_slow: bool,
    /// That it is not probed was logged, and it has not been since.
    told: bool,
}

/// A probe to be made.
#[derive(Debug)]
pub(super) struct Due {
    pub(super) id: CheckId,
    pub(super) instance: Arc<Instance>,
    pub(super) check: HealthCheck,
    /// It may hang, as its last probe did.
    pub(super) hangs: bool,
    /// The last lookup of its name was late.
    pub(super) name_is_slow: bool,
}

impl Schedule {
    /// Takes over what changed. `share` gives numbers from 0 to 1.
    pub(super) fn update(
        &mut self,
        now: Instant,
        checked: CheckedInstances,
        mut share: impl FnMut() -> f64,
    ) {
        let before = std::mem::replace(&mut self.known, checked.clone());
        for (key, after) in checked.since(&before) {
            let old = self.instances.get_mut(key);
            match (old, after) {
                (Some(old), Some(after)) if is_probed_alike(&old.instance, after) => {
                    old.instance = after.clone();
                    self.agree(key);
                }
                (_, after) => {
                    self.remove(key);
                    if let Some(after) = after {
                        self.add(now, after, &mut share);
                    }
                }
            }
        }
    }

    /// Where the health of an instance is another one than its checks say here, another node had it
    /// set: a leader before this one, of which not everything was applied yet. The checks begin
    /// anew from there.
    fn agree(&mut self, key: &InstanceKey) {
        let Some(Watched { instance, checks }) = self.instances.get(key) else { return };
        let Some(known) = instance.health() else { return };
        let verdicts = checks.iter().filter_map(|id| Some(self.checks.get(id)?.streak.verdict));
        if verdict::health(verdicts, known) == known {
            return;
        }
        for id in checks {
            if let Some(probed) = self.checks.get_mut(id) {
                probed.streak = Streak::from_health(known, checks.len());
                probed.reason = None;
            }
        }
    }

    fn add(&mut self, now: Instant, instance: &Arc<Instance>, share: &mut impl FnMut() -> f64) {
        let Some(checks) = instance.checks() else { return };
        let known = instance.health().unwrap_or_default();
        let mut ids = Vec::new();
        for check in checks.iter() {
            self.last_id += 1;
            let first = Duration::from_millis(check.interval_ms.into()).min(FIRST_WITHIN);
            let due = now + first.mul_f64(share());
            let probed = Probed {
                key: instance.key.clone(),
                check: check.clone(),
                streak: Streak::from_health(known, checks.count()),
                reason: None,
                due: Some(due),
                began: now,
                hangs: false,
                name_is_slow: false,
                told: false,
            };
            self.checks.insert(self.last_id, probed);
            self.prompt.insert((due, self.last_id));
            ids.push(self.last_id);
        }
        let watched = Watched { instance: instance.clone(), checks: ids };
        self.instances.insert(instance.key.clone(), watched);
    }

    fn remove(&mut self, key: &InstanceKey) {
        for id in self.instances.remove(key).into_iter().flat_map(|watched| watched.checks) {
            if let Some(due) = self.checks.remove(&id).and_then(|probed| probed.due) {
                self.prompt.remove(&(due, id));
                self.hanging.remove(&(due, id));
            }
        }
    }

    /// When something is due next; checks of targets that hang count only if they have room.
    pub(super) fn next(&self, room_for_hanging: bool) -> Option<Instant> {
        let hanging = self.hanging.first().filter(|_| room_for_hanging);
        self.prompt.first().into_iter().chain(hanging).map(|(due, _)| *due).min()
    }

    /// What is due, if anything is.
    pub(super) fn take_due(&mut self, now: Instant, room_for_hanging: bool) -> Option<Due> {
        let next = self.next(room_for_hanging).filter(|due| *due <= now)?;
        let prompt = self.prompt.first().is_some_and(|(due, _)| *due == next);
        let queue = if prompt { &mut self.prompt } else { &mut self.hanging };
        let (_, id) = queue.pop_first()?;
        let probed = self.checks.get_mut(&id)?;
        (probed.due, probed.began) = (None, now);
        let instance = self.instances.get(&probed.key)?.instance.clone();
        let (check, hangs, name_is_slow) =
            (probed.check.clone(), probed.hangs, probed.name_is_slow);
        Some(Due { id, instance, check, hangs, name_is_slow })
    }

    /// Notes what came of a probe; what is to be reported, if that is news. `share` is from 0 to 1.
    /// A failure that says nothing of the target is logged once, until one does.
    pub(super) fn done(
        &mut self,
        now: Instant,
        id: CheckId,
        result: &Result<(), Failure>,
        share: f64,
    ) -> Option<HealthReport> {
        let probed = self.checks.get_mut(&id)?;
        let Watched { instance, .. } = self.instances.get(&probed.key)?;
        let interval = Duration::from_millis(probed.check.interval_ms.into());
        let due = (probed.began + interval.mul_f64(0.9 + 0.2 * share)).max(now);
        probed.due = Some(due);
        (probed.hangs, probed.name_is_slow) = match result {
            Err(Failure::Stalled) => (probed.hangs, probed.name_is_slow),
            // It took its time, and says nothing of the name.
            Err(Failure::NoLookup) => (true, probed.name_is_slow),
            Err(Failure::Lookup { late, .. }) => (*late, *late),
            Err(Failure::Timeout(_)) => (true, false),
            _ => (false, false),
        };
        let queue = if probed.hangs { &mut self.hanging } else { &mut self.prompt };
        queue.insert((due, id));
        match result {
            Err(failure) if !failure.is_the_targets() => {
                let passing = matches!(failure, Failure::Stalled);
                if !passing && !std::mem::replace(&mut probed.told, true) {
                    tracing::warn!(instance = %probed.key, %failure, "a health check is not made");
                }
                if !matches!(failure, Failure::NotAllowed { .. }) {
                    return None;
                }
                probed.streak.bar();
            }
            _ => {
                probed.told = false;
                probed.streak.note(result.is_ok(), &probed.check);
            }
        }
        match (probed.streak.verdict, result) {
            (Verdict::Failing, Err(failure)) => {
                let reason = || failure.reason(instance, &probed.check);
                probed.reason.get_or_insert_with(reason);
            }
            (Verdict::Failing, Ok(())) => {}
            (Verdict::Passing | Verdict::Undecided | Verdict::Barred, _) => probed.reason = None,
        }
        let key = probed.key.clone();
        self.news(&key)
    }

    /// What the checks of an instance say that is not known yet.
    ///
    /// A reason is that of a check that fails, whichever probe ended last. Another one alone is
    /// news only when the known one is of no check that fails any more: one that passes again, or,
    /// after a change of the leader, one that fails with other words now. So it is written once for
    /// a check that begins to fail, not with each of its probes.
    pub(super) fn news(&self, key: &InstanceKey) -> Option<HealthReport> {
        let Watched { instance, checks } = self.instances.get(key)?;
        let known = instance.health()?;
        let checks: Vec<&Probed> = checks.iter().filter_map(|id| self.checks.get(id)).collect();
        let verdicts = || checks.iter().map(|check| check.streak.verdict);
        let health = verdict::health(verdicts(), known);
        let mut reasons = checks.iter().filter_map(|check| check.reason.as_ref());
        let reason = reasons.clone().next().filter(|_| health == Health::Critical);
        let said =
            reason.is_none() || reasons.any(|reason| reason.as_str() == instance.health_reason());
        let undecided = verdicts().any(|verdict| verdict == Verdict::Undecided);
        if health == known && (said || undecided) {
            return None;
        }
        let (key, incarnation) = (key.clone(), instance.incarnation);
        Some(HealthReport { key, incarnation, health, reason: reason.cloned() })
    }
}

/// What is to be reported, where nothing may be probed, of what came or changed since `seen`: what
/// was found while it could be says nothing of now.
pub(super) fn no_longer_known<'a>(
    checked: &'a CheckedInstances,
    seen: &'a CheckedInstances,
) -> impl Iterator<Item = HealthReport> + use<'a> {
    let is_known = |instance: &&Arc<Instance>| {
        instance.health().is_some_and(|health| health != Health::Unknown)
    };
    let known = checked.since(seen).filter_map(move |(_, after)| after.filter(is_known));
    known.map(|instance| {
        let (key, incarnation) = (instance.key.clone(), instance.incarnation);
        HealthReport { key, incarnation, health: Health::Unknown, reason: None }
    })
}

/// Whether nothing changed that a probe depends on.
fn is_probed_alike(old: &Instance, new: &Instance) -> bool {
    old.incarnation == new.incarnation
        && old.checks() == new.checks()
        && old.spec.endpoints() == new.spec.endpoints()
}

#[cfg(test)]
mod tests;
