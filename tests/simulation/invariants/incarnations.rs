//! An older run of a process never changes what a newer one holds, and a restart is one MODIFY.

use quorate_proto::v1::ChangeKind;

use crate::simulation::history::{Answer, Ask, History, Map, Notes, apply};

pub(crate) fn check(notes: &Notes, history: &History) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut map = Map::new();
    for (revision, _, told) in history.iter() {
        let held = map.get(&told.key);
        if held.is_some_and(|held| held.incarnation > told.held.incarnation) {
            wrong.push(format!("revision {revision}: {told:?} over {held:?}"));
        }
        let kind = match held {
            Some(_) if told.kind == ChangeKind::Removed => ChangeKind::Removed,
            Some(_) => ChangeKind::Modified,
            None => ChangeKind::Added,
        };
        if told.kind != kind {
            wrong.push(format!("revision {revision}: {told:?} where {held:?} was"));
        }
        apply(&mut map, told);
    }
    // A deregistered run does not come back.
    for call in &notes.calls {
        let (Ask::Deregister { incarnation }, Answer::Done { revision, .. }) =
            (&call.ask, &call.answer)
        else {
            continue;
        };
        let back = history
            .iter()
            .skip(*revision as usize)
            .find(|(_, _, told)| told.key == call.key && told.held.incarnation <= *incarnation);
        if let Some((revision, _, told)) = back {
            wrong.push(format!("{call:?} and yet at {revision}: {told:?}"));
        }
    }
    wrong
}
