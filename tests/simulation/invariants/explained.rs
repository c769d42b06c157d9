//! Every change is one that a write asked for, and a write explains one at most: an update or an
//! override that disappears is a change that nobody asked for. (When leases end is looked at in
//! `live_leases.rs`.)

use std::collections::{BTreeMap, BTreeSet};

use quorate_proto::v1::{ChangeKind, RemoveReason};

use crate::simulation::history::{Answer, Ask, Held, History, Map, Notes, Told, apply};
use crate::simulation::liveness::is_of_burst;
use crate::simulation::plan::Ms;

/// A write, over all of its attempts, that may have been done.
struct Write<'a> {
    key: &'a str,
    ask: &'a Ask,
    /// When its first attempt was sent, and the highest revision that was acknowledged before.
    sent: Ms,
    floor: u64,
    /// Where it was acknowledged; `None`: nobody knows whether it was done.
    done: Option<u64>,
    /// A change that it made is known.
    explains: bool,
}

/// A change, and where the one of the same instance before it was.
struct Change<'a> {
    key: &'a str,
    at: Ms,
    revision: u64,
    before: u64,
}

pub(crate) fn check(notes: &Notes, history: &History) -> Vec<String> {
    let mut writes = writes(notes);
    let (mut wrong, mut map) = (Vec::new(), Map::new());
    // The last change of each key: where, and the override then.
    let mut last: BTreeMap<&str, (u64, Option<&str>)> = BTreeMap::new();
    for (revision, at, told) in history.iter().filter(|(_, _, told)| !is_of_burst(&told.key)) {
        let (before, overridden) = last.get(&*told.key).copied().unwrap_or_default();
        let change = Change { key: &told.key, at, revision, before };
        for what in unexplained(&mut writes, &change, told, map.get(&told.key), overridden) {
            wrong.push(format!("{revision}: no call asked to {what}: {told:?}"));
        }
        last.insert(&told.key, (revision, told.held.overridden.as_deref()));
        apply(&mut map, told);
    }
    wrong
}

/// Writes that were refused at each attempt are left out.
fn writes(notes: &Notes) -> Vec<Write<'_>> {
    let mut done: Vec<(Ms, u64)> = Vec::new();
    for call in &notes.calls {
        if let Answer::Done { revision, .. } = call.answer {
            done.push((call.to, revision));
        }
    }
    let mut writes: BTreeMap<(&str, Ms, String), Write<'_>> = BTreeMap::new();
    for call in notes.calls.iter().filter(|call| !matches!(call.answer, Answer::Refused(_))) {
        let name = (&*call.key, call.from, format!("{:?}", call.ask));
        let before = done.iter().filter(|(at, _)| *at < call.sent);
        let floor = before.map(|(_, revision)| *revision).max().unwrap_or(0);
        let (key, ask, sent) = (&*call.key, &call.ask, call.sent);
        let write = Write { key, ask, sent, floor, done: None, explains: false };
        let write = writes.entry(name).or_insert(write);
        if let Answer::Done { revision, .. } = call.answer {
            write.done = Some(revision);
        }
    }
    let mut writes: Vec<_> = writes.into_values().collect();
    writes.sort_by_key(|write| write.sent);
    writes
}

/// What a change did that no write asked for.
fn unexplained(
    writes: &mut [Write<'_>],
    change: &Change<'_>,
    told: &Told,
    before: Option<&Held>,
    overridden: Option<&str>,
) -> Vec<&'static str> {
    let held = &told.held;
    if told.kind == ChangeKind::Removed {
        let is_asked = told.reason == RemoveReason::Expired || deregisters(writes, change, held);
        return if is_asked { Vec::new() } else { vec!["deregister it"] };
    }
    let run = |held: &Held| (held.incarnation, held.lease);
    let registers = |ask: &Ask| matches!(ask, Ask::Register { incarnation, .. } if *incarnation == held.incarnation);
    let updates = |ask: &Ask| {
        let wanted = (held.incarnation, held.weight);
        matches!(ask, Ask::Update { incarnation, weight } if (*incarnation, *weight) == wanted)
    };
    let overrides =
        |ask: &Ask| matches!(ask, Ask::Override { reason } if *reason == held.overridden);
    let before = before.filter(|before| run(before) == run(held));
    let mut missing = Vec::new();
    let is_overridden_anew = held.overridden.as_deref() != overridden;
    match before {
        None if !explain(writes, change, registers) => missing.push("register it"),
        // A run that registers again takes back what it updated.
        Some(before) if before.weight != held.weight => {
            let by = explain(writes, change, updates) || explain(writes, change, registers);
            if !by {
                missing.push("give it that weight");
            }
        }
        Some(_) if !is_overridden_anew => missing.push("change nothing"),
        _ => {}
    }
    if is_overridden_anew && !explain(writes, change, overrides) {
        // Of an instance that was not registered, it shows only now.
        let ahead = |write: &Write<'_>| {
            before.is_none()
                && overrides(write.ask)
                && write.done.is_some_and(|at| (change.before..change.revision).contains(&at))
        };
        if !take(writes, change, ahead) {
            missing.push("override it so");
        }
    }
    missing
}

/// By the write that names the lowest run that will do: others name more.
fn deregisters(writes: &mut [Write<'_>], change: &Change<'_>, held: &Held) -> bool {
    let named = writes.iter().filter_map(|write| match write.ask {
        Ask::Deregister { incarnation } if *incarnation >= held.incarnation => Some(*incarnation),
        _ => None,
    });
    let named: BTreeSet<u64> = named.collect();
    named.into_iter().any(|run| {
        explain(
            writes,
            change,
            |ask| matches!(ask, Ask::Deregister { incarnation } if *incarnation == run),
        )
    })
}

/// By a write that was acknowledged there, or by one that may have been done by then.
fn explain(writes: &mut [Write<'_>], change: &Change<'_>, fits: impl Fn(&Ask) -> bool) -> bool {
    take(writes, change, |write| fits(write.ask) && write.done == Some(change.revision))
        || take(writes, change, |write| {
            let in_time = write.sent <= change.at && write.floor < change.revision;
            fits(write.ask) && write.done.is_none() && in_time
        })
}

fn take(writes: &mut [Write<'_>], change: &Change<'_>, fits: impl Fn(&Write<'_>) -> bool) -> bool {
    let mut free = writes.iter_mut().filter(|write| write.key == change.key && !write.explains);
    let found = free.find(|write| fits(write));
    found.map(|write| write.explains = true).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation::history::Call;
    use tonic::Code;

    /// Each call is answered, or not, within 5 ms; each change is told at its revision, ms.
    struct Rows(Notes);

    impl Rows {
        fn call(&mut self, from: Ms, ask: Ask, answer: Answer) -> &mut Self {
            let (key, node, sent, to) = ("svc/a".to_owned(), 1, from, from + 5);
            self.0.calls.push(Call { key, name: (1, 1), node, sent, from, to, ask, answer });
            self
        }

        fn told(&mut self, kind: ChangeKind, weight: u32, overridden: Option<&str>) -> &mut Self {
            let revision = self.0.told.len() as u64 + 1;
            let overridden = overridden.map(str::to_owned);
            let (incarnation, lease) = (1, 7);
            let (created, modified) = (1, revision);
            let held = Held { incarnation, lease, weight, overridden, created, modified };
            let (key, reason) = ("svc/a".to_owned(), RemoveReason::Deregistered);
            let told = Told { key, kind, held, reason };
            self.0.told.insert(revision, vec![("w".to_owned(), 100 * revision, told)]);
            self
        }
    }

    const UNKNOWN: Answer = Answer::Unknown(Code::Unavailable);

    fn done(revision: u64) -> Answer {
        Answer::Done { revision, lease: 7 }
    }

    fn update(weight: u32) -> Ask {
        Ask::Update { incarnation: 1, weight }
    }

    fn overrides(reason: Option<&str>) -> Ask {
        Ask::Override { reason: reason.map(str::to_owned) }
    }

    fn find(more: fn(&mut Rows)) -> Vec<String> {
        let mut rows = Rows(Notes::default());
        let register = Ask::Register { incarnation: 1, ttl_ms: 1_000 };
        rows.call(90, register, done(1)).told(ChangeKind::Added, 100, None);
        rows.call(190, update(1_001), done(2)).told(ChangeKind::Modified, 1_001, None);
        rows.call(290, overrides(Some("x")), UNKNOWN).told(ChangeKind::Modified, 1_001, Some("x"));
        more(&mut rows);
        check(&rows.0, &History::new(&rows.0))
    }

    const AGAIN: ChangeKind = ChangeKind::Modified;

    #[test]
    fn what_was_asked_for_is_right() {
        let right: [fn(&mut Rows); 5] = [
            |_| {},
            |rows| {
                rows.call(390, update(1_002), UNKNOWN).told(AGAIN, 1_002, Some("x"));
            },
            |rows| {
                rows.call(390, overrides(None), done(4)).told(AGAIN, 1_001, None);
            },
            |rows| {
                let deregister = Ask::Deregister { incarnation: 2 };
                rows.call(390, deregister, UNKNOWN).told(ChangeKind::Removed, 1_001, Some("x"));
            },
            // Overridden while it was not there.
            |rows| {
                rows.call(390, Ask::Deregister { incarnation: 1 }, done(4));
                rows.told(ChangeKind::Removed, 1_001, Some("x"));
                rows.call(400, overrides(Some("y")), done(4));
                let register = Ask::Register { incarnation: 1, ttl_ms: 1_000 };
                rows.call(490, register, done(5)).told(ChangeKind::Added, 100, Some("y"));
            },
        ];
        for (row, more) in right.into_iter().enumerate() {
            assert_eq!(find(more), Vec::<String>::new(), "row {row}");
        }
    }

    /// What is missed, and what more was seen.
    type Row = (&'static str, fn(&mut Rows));

    #[test]
    fn what_disappears_is_seen() {
        let wrong: [Row; 9] = [
            ("give it that weight", |rows| {
                rows.told(AGAIN, 100, Some("x"));
            }),
            ("override it so", |rows| {
                rows.told(AGAIN, 1_001, None);
            }),
            ("deregister it", |rows| {
                rows.told(ChangeKind::Removed, 1_001, Some("x"));
            }),
            ("change nothing", |rows| {
                rows.told(AGAIN, 1_001, Some("x"));
            }),
            // Of one call, twice.
            ("give it that weight", |rows| {
                rows.call(390, update(1_002), UNKNOWN).told(AGAIN, 1_002, Some("x"));
                rows.call(490, update(1_003), done(5)).told(AGAIN, 1_003, Some("x"));
                rows.told(AGAIN, 1_002, Some("x"));
            }),
            // By calls that were refused, came later, or were acknowledged elsewhere.
            ("override it so", |rows| {
                let refused = Answer::Refused(Code::NotFound);
                rows.call(390, overrides(None), refused).told(AGAIN, 1_001, None);
            }),
            ("override it so", |rows| {
                rows.told(AGAIN, 1_001, None).call(401, overrides(None), UNKNOWN);
            }),
            ("override it so", |rows| {
                rows.told(AGAIN, 1_001, None).call(390, overrides(None), done(5));
            }),
            // What somebody else had acknowledged before it was sent.
            ("override it so", |rows| {
                rows.call(380, Ask::Renew { lease: 7 }, done(4));
                rows.call(390, overrides(None), UNKNOWN);
                rows.told(AGAIN, 1_001, None);
            }),
        ];
        for (row, (what, more)) in wrong.into_iter().enumerate() {
            let found = find(more);
            assert!(found.iter().any(|line| line.contains(what)), "row {row}: {found:?}");
        }
    }
}
