//! Changes of the members are done, and what was accepted last is so in the end, as every member says. A node that was taken
//! out answers nothing that only a member may: no linearizable read, no write.

use std::collections::BTreeMap;

use crate::simulation::history::{Answer, Notes};
use crate::simulation::membership::Members;
use crate::simulation::plan::Ms;

pub(crate) fn check(notes: &Notes) -> Vec<String> {
    let mut wrong = Vec::new();
    let expected = Members::accepted(&notes.changes);
    for (node, members) in &notes.last_members {
        if *members != expected {
            wrong.push(format!("at the end, n{node} says {members:?}: {:?}", notes.changes));
        }
    }
    for change in notes.changes.iter().filter(|change| change.done.is_none()) {
        wrong.push(format!("never done: {change:?}"));
    }
    // When each of those that were taken out was out for sure.
    let out = notes.changes.iter().filter_map(|change| Some((change.act.goes()?, change.done?)));
    let out: BTreeMap<u64, Ms> = out.collect();
    let is_out = |node: u64, at: Ms| out.get(&node).is_some_and(|since| *since < at);
    for read in notes.reads.iter().filter(|read| read.linearizable) {
        if is_out(read.node, read.from) {
            let (node, from) = (read.node, read.from);
            wrong.push(format!("n{node} was out, and answered a linearizable read at {from} ms"));
        }
    }
    for call in &notes.calls {
        if matches!(call.answer, Answer::Done { .. }) && is_out(call.node, call.sent) {
            wrong.push(format!("n{} was out, and did a write: {call:?}", call.node));
        }
    }
    wrong
}
