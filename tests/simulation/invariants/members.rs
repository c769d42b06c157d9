//! Changes of the members are done, and what was accepted last is so in the end, as every member
//! says. A node that was taken out answers nothing that only a member may: no linearizable read, no
//! write.

use std::collections::BTreeMap;

use crate::simulation::history::{Answer, Ask, Call, Notes, Read};
use crate::simulation::membership::{Act, Change, Members};
use crate::simulation::plan::Ms;

pub(crate) fn check(notes: &Notes) -> Vec<String> {
    let mut wrong = Vec::new();
    let expected = Members::accepted(&notes.changes);
    for (node, members) in &notes.last_members {
        if *members != expected {
            wrong.push(format!("at the end, n{node} says {members:?}: {:?}", notes.changes));
        }
    }
    for node in expected.all().iter().filter(|node| !notes.last_members.contains_key(node)) {
        wrong.push(format!("at the end, n{node} does not list the members"));
    }
    for change in notes.changes.iter().filter(|change| change.done.is_none()) {
        wrong.push(format!("never done: {change:?}"));
    }
    // When each node that was taken out was out for sure.
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

#[test]
fn the_check_sees_who_answers_though_it_is_out() {
    let (act, read) = (Act::Remove { old: 3 }, |from, linearizable| Read {
        from,
        to: from + 5,
        node: 3,
        linearizable,
        min_revision: 0,
        revision: 1,
        age_ms: 0,
        map: BTreeMap::new(),
    });
    let mut notes = Notes::default();
    notes.changes.push(Change { act, begun: 100, done: Some(200) });
    notes.reads = vec![read(150, true), read(200, true), read(300, false)];
    let two = Members { voters: [1, 2].into(), learners: [].into() };
    notes.last_members = [(1, two.clone()), (2, two)].into();
    assert_eq!(check(&notes), Vec::<String>::new());
    notes.reads.push(read(201, true));
    assert_eq!(check(&notes).len(), 1, "a read after it was out");
    let ask = Ask::Renew { lease: 7 };
    let answer = Answer::Done { revision: 1, lease: 7 };
    let key = "svc/a".to_owned();
    let name = (1, 1);
    notes.calls.push(Call { name, key, node: 3, sent: 201, from: 150, to: 210, ask, answer });
    assert_eq!(check(&notes).len(), 2, "a write that it was asked for then");
    notes.last_members.insert(1, Members::founders());
    assert_eq!(check(&notes).len(), 3, "other members than the change made");
    notes.changes.push(Change { act: Act::Remove { old: 2 }, begun: 300, done: None });
    assert_eq!(check(&notes).len(), 4, "a change that does not end");
}
