//! Nobody hears that something is not there which is: a deregistration that was done is answered as
//! done when it is sent again, and a lease that others still see is not unknown.

use std::collections::BTreeMap;

use quorate_proto::v1::{ChangeKind, RemoveReason};
use tonic::Code;

use crate::simulation::history::{Answer, Ask, Call, History, Notes};
use crate::simulation::plan::Ms;

pub(crate) fn check(notes: &Notes, history: &History) -> Vec<String> {
    let mut wrong = deregistrations(notes, history);
    wrong.extend(renewals(notes, history));
    wrong
}

/// Refused after it was done: an attempt before is of unknown fate, and its run was seen to go.
/// Only a process itself names its latest run, so nobody else can have done that.
fn deregistrations(notes: &Notes, history: &History) -> Vec<String> {
    let is_of = |call: &Call, run: u64| matches!(call.ask, Ask::Deregister { incarnation } if incarnation == run);
    let mut wrong = Vec::new();
    for call in &notes.calls {
        let (Ask::Deregister { incarnation: run }, Answer::Refused(_)) = (&call.ask, &call.answer)
        else {
            continue;
        };
        let of_run = notes.calls.iter().filter(|other| other.key == call.key && is_of(other, *run));
        let (same, others): (Vec<_>, Vec<_>) = of_run.partition(|other| other.from == call.from);
        let tried = same
            .iter()
            .any(|before| before.sent < call.sent && matches!(before.answer, Answer::Unknown(_)));
        let gone = history.iter().find(|(_, at, told)| {
            let deregistered =
                told.kind == ChangeKind::Removed && told.reason == RemoveReason::Deregistered;
            let since = call.from <= *at && *at < call.sent;
            since && deregistered && told.key == call.key && told.held.incarnation == *run
        });
        if let Some((revision, at, _)) = gone.filter(|_| tried && others.is_empty()) {
            wrong.push(format!("was done at {revision}, told at {at} ms: {call:?}"));
        }
    }
    wrong
}

/// Unknown, though it stands at the revision of a call that began later. (No lease comes back.)
fn renewals(notes: &Notes, history: &History) -> Vec<String> {
    // By lease: the last revision at which it keeps something.
    let mut kept: BTreeMap<u64, u64> = BTreeMap::new();
    history.replay(|revision, map| {
        kept.extend(map.values().map(|held| (held.lease, revision)));
    });
    // What began when, and the revision that it saw.
    let mut seen: Vec<(Ms, u64)> = Vec::new();
    for call in &notes.calls {
        if let Answer::Done { revision, .. } = call.answer {
            seen.push((call.from, revision));
        }
    }
    for read in notes.reads.iter().filter(|read| read.linearizable) {
        seen.push((read.from, read.revision));
    }
    let mut wrong = Vec::new();
    for call in &notes.calls {
        let (Ask::Renew { lease }, Answer::Refused(Code::NotFound)) = (&call.ask, &call.answer)
        else {
            continue;
        };
        let later = seen.iter().filter(|(from, _)| *from > call.to).map(|(_, revision)| *revision);
        if let (Some(later), Some(until)) = (later.min(), kept.get(lease))
            && later <= *until
        {
            wrong.push(format!("its lease stands at {later}, asked for later: {call:?}"));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation::history::{Held, Told};

    const UNKNOWN: Answer = Answer::Unknown(Code::Unavailable);
    const REFUSED: Answer = Answer::Refused(Code::NotFound);

    fn call(from: Ms, sent: Ms, ask: Ask, answer: Answer) -> Call {
        Call {
            key: "svc/a".to_owned(),
            name: (1, 1),
            node: 1,
            from,
            sent,
            to: sent + 5,
            ask,
            answer,
        }
    }

    /// Told at 100, 200, ... ms: run 1 of lease 7 comes, and goes for this reason.
    fn notes(reason: RemoveReason, calls: Vec<Call>) -> Notes {
        let (incarnation, lease, weight, overridden) = (1, 7, 100, None);
        let held = Held { incarnation, lease, weight, overridden, created: 1, modified: 1 };
        let told = |kind| Told { key: "svc/a".to_owned(), kind, held: held.clone(), reason };
        let mut notes = Notes::default();
        notes.calls = calls;
        for (revision, kind) in [(1, ChangeKind::Added), (2, ChangeKind::Removed)] {
            notes.told.insert(revision, vec![("w".to_owned(), 100 * revision, told(kind))]);
        }
        notes
    }

    fn found(reason: RemoveReason, calls: Vec<Call>) -> usize {
        let notes = notes(reason, calls);
        check(&notes, &History::new(&notes)).len()
    }

    #[test]
    fn a_deregistration_that_was_done_is_not_refused() {
        let ask = |run| Ask::Deregister { incarnation: run };
        let first = call(190, 190, ask(1), UNKNOWN);
        let again = call(190, 210, ask(1), REFUSED);
        let (deregistered, expired) = (RemoveReason::Deregistered, RemoveReason::Expired);
        assert_eq!(found(deregistered, vec![first.clone(), again.clone()]), 1);
        assert_eq!(found(expired, vec![first.clone(), again.clone()]), 0, "not by this write");
        assert_eq!(found(deregistered, vec![again.clone()]), 0, "it is the first attempt");
        let early = call(190, 199, ask(1), REFUSED);
        assert_eq!(found(deregistered, vec![first.clone(), early]), 0, "before it was told");
        let other = call(150, 150, ask(1), UNKNOWN);
        assert_eq!(found(deregistered, vec![other, first, again]), 0, "another may have done it");
    }

    #[test]
    fn a_lease_that_stands_is_not_unknown() {
        let refused = || call(110, 110, Ask::Renew { lease: 7 }, REFUSED);
        let later = |from, revision| {
            let answer = Answer::Done { revision, lease: 0 };
            call(from, from, Ask::Update { incarnation: 1, weight: 1_001 }, answer)
        };
        let expired = RemoveReason::Expired;
        assert_eq!(found(expired, vec![refused(), later(120, 1)]), 1);
        assert_eq!(found(expired, vec![refused(), later(120, 2)]), 0, "it is gone there");
        assert_eq!(found(expired, vec![refused(), later(112, 1)]), 0, "at the same time");
        assert_eq!(found(expired, vec![refused()]), 0, "nobody saw it");
    }
}
