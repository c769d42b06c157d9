//! A dead instance is gone within its TTL and 10 s, elections included; time without a possible
//! quorum does not count.

use quorate_proto::v1::ChangeKind;

use crate::simulation::history::{Answer, Ask, Fate, History, Notes};
use crate::simulation::liveness::last_maps;
use crate::simulation::membership::Quorums;
use crate::simulation::plan::{END, Ms};

const BOUND: Ms = 10_000;
/// A renewal that was given up may still arrive for this long.
const LINGERS: Ms = 1_000;

pub(crate) fn check(quorums: &Quorums<'_>, notes: &Notes, history: &History) -> Vec<String> {
    let mut wrong = Vec::new();
    for (key, fates) in &notes.fates {
        let ttl = notes.calls.iter().find_map(|call| match call.ask {
            Ask::Register { ttl_ms, .. } if call.key == *key => Some(ttl_ms),
            _ => None,
        });
        let limit = ttl.unwrap_or(0) + BOUND + LINGERS;
        for fate in fates {
            let Fate::Dead { incarnation, at: died } = *fate else { continue };
            let changed = history.iter().find(|(_, at, told)| {
                let ended = told.kind == ChangeKind::Removed || told.held.incarnation > incarnation;
                *at >= died && told.key == *key && told.held.incarnation >= incarnation && ended
            });
            let until = changed.map_or(END, |(_, at, _)| at);
            let healthy = quorums.quorum_ms(died, until);
            let before = history.iter().filter(|(_, at, told)| *at < died && told.key == *key);
            let was_there = before.last().is_some_and(|(_, _, t)| t.kind != ChangeKind::Removed);
            if was_there && healthy > limit {
                wrong.push(format!(
                    "{key} died at {died} ms, was there until {until} ms: {changed:?}"
                ));
            }
        }
        let Some(Fate::Dead { incarnation, at }) = fates.last() else { continue };
        let registered_since = notes.calls.iter().any(|call| {
            let anew = matches!(call.ask, Ask::Register { incarnation: i, .. } if i > *incarnation);
            call.key == *key && anew && !matches!(call.answer, Answer::Refused(_))
        });
        for (node, map) in last_maps(notes) {
            if map.contains_key(key) && !registered_since && at + limit < END {
                wrong.push(format!("{key} died at {at} ms, and n{node} still has it at the end"));
            }
        }
    }
    wrong
}
