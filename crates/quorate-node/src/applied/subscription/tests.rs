//! What a watcher is sent, and when.

use std::convert::Infallible;

use prometheus_client::metrics::histogram::Histogram;
use quorate_state::{
    Command, Deregister, Event, Incarnation, InstanceId, InstanceKey, InstanceRef, InstanceSpec,
    Namespace, Op, Register, ServiceName, SpecParts, Update,
};

use super::*;
use crate::applied::hub::Follower;

impl Subscription<Infallible> {
    async fn next(&mut self) -> Positioned {
        self.next_of(usize::MAX).await
    }

    async fn next_of(&mut self, bytes: usize) -> Positioned {
        let Ok(next) =
            std::future::poll_fn(|cx| self.poll_next(cx, &mut |_, _| Poll::Ready(bytes))).await;
        next
    }
}

fn key(id: &str) -> InstanceKey {
    let name = ServiceName::new("service", "web").unwrap();
    let service = ServiceKey { namespace: Namespace::default(), name };
    InstanceKey { service, id: InstanceId::new("id", id).unwrap() }
}

fn apply(applied: &Applied, op: Op) {
    let mut state = applied.lock();
    let command = Command::new(state.registry.clock(), op);
    let events = state.registry.apply(&command).events;
    state.hub.publish(events);
    state.hub.take_wakes().iter().for_each(|watcher| watcher.call());
}

fn register(applied: &Applied, id: &str) {
    register_all(applied, &[id]);
}

/// In one command.
fn register_all(applied: &Applied, ids: &[&str]) {
    register_with(applied, ids, "");
}

fn register_with(applied: &Applied, ids: &[&str], note: &str) {
    let parts = SpecParts {
        endpoints: [("http".to_owned(), "http://10.0.0.1:80".to_owned())].into(),
        metadata: [("note".to_owned(), note.to_owned())].into(),
        ..SpecParts::default()
    };
    let spec = InstanceSpec::new("", parts).unwrap();
    let instances = ids.iter().map(|id| (key(id), spec.clone())).collect();
    let incarnation = Some(Incarnation(1));
    apply(
        applied,
        Op::Register(Register { lease: None, ttl: None, incarnation, instances, within: None }),
    );
}

fn weigh(applied: &Applied, id: &str, weight: u32) {
    let target = InstanceRef { key: key(id), incarnation: None };
    apply(applied, Op::Update(Update { weight: Some(weight), ..Update::of(target) }));
}

fn watch(
    applied: &Arc<Applied>,
    leaders: &watch::Sender<Option<NodeId>>,
    begin: Begin,
) -> Subscription<Infallible> {
    watch_for(applied, leaders, begin, &[])
}

/// For instances that have all of these tags.
fn watch_for(
    applied: &Arc<Applied>,
    leaders: &watch::Sender<Option<NodeId>>,
    begin: Begin,
    tags: &[&str],
) -> Subscription<Infallible> {
    let all = Filter::all_of(Namespace::default(), Selection::Prefix(String::new()));
    let filter = Filter { tags: tags.iter().map(ToString::to_string).collect(), ..all };
    let bookmark = Duration::from_secs(60);
    let (leaders, end) = (leaders.subscribe(), std::future::pending());
    Subscription::start(applied.clone(), filter, (begin, None), leaders, bookmark, end)
}

fn changes(positioned: Positioned) -> Vec<Event> {
    let Message::Delta(events) = positioned.message else { panic!("{positioned:?}") };
    events.iter().map(|shared| shared.event.clone()).collect()
}

/// One that reads slowly has much that is queued, and its right to that may be gone.
#[tokio::test]
async fn a_watch_that_is_over_sends_nothing_of_what_is_queued() {
    let applied = Arc::new(Applied::new(100_000, usize::MAX, Histogram::new([])));
    let leaders = watch::Sender::new(None);
    let ids: Vec<String> = (0..5_000).map(|at| format!("i{at}")).collect();
    register_all(&applied, &ids.iter().map(String::as_str).collect::<Vec<_>>());
    let filter = Filter::all_of(Namespace::default(), Selection::Prefix(String::new()));
    let (over, end) = tokio::sync::oneshot::channel();
    let (leaders, bookmark) = (leaders.subscribe(), Duration::from_secs(60));
    let mut slow = Subscription::start(
        applied.clone(),
        filter,
        (Begin::Snapshot, None),
        leaders,
        bookmark,
        end,
    );
    let mut next = async || {
        std::future::poll_fn(|cx| slow.poll_next(cx, &mut |_, _| Poll::Ready(usize::MAX))).await
    };
    let first = next().await.unwrap();
    assert!(matches!(first.message, Message::Snapshot { last: false, .. }), "{first:?}");
    over.send("over").unwrap();
    assert_eq!(next().await.map(drop).unwrap_err().unwrap(), "over");
}

/// Of a snapshot, of changes, and of coalesced changes: nothing is missing and nothing comes twice,
/// and no position is told before all that it stands for.
#[tokio::test]
async fn where_there_is_little_room_what_is_ready_comes_in_small_messages() {
    const LITTLE: usize = 1_000;
    let applied = Arc::new(Applied::new(100_000, usize::MAX, Histogram::new([])));
    let leaders = watch::Sender::new(None);
    let ids: Vec<String> = (0..300).map(|at| format!("i{at:0>3}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    register_all(&applied, &ids);
    let mut watcher = watch(&applied, &leaders, Begin::Snapshot);
    let mut told = Vec::new();
    loop {
        let Positioned { message, previous, revision } = watcher.next_of(LITTLE).await;
        let Message::Snapshot { services, last, reset: false } = message else { panic!() };
        let instances = services.into_iter().flat_map(|part| part.instances);
        let part: Vec<_> = instances.map(|it| it.key.id.as_str().to_owned()).collect();
        assert!(part.len() <= 10, "{} at once", part.len());
        told.extend(part);
        assert_eq!((previous.0, revision.0), (0, if last { 300 } else { 0 }));
        if last {
            break;
        }
    }
    assert_eq!(told, ids);

    // The first as much as there is room for, and the rest when there is more.
    ids.iter().for_each(|id| weigh(&applied, id, 1));
    let (mut position, mut told) = (300, Vec::new());
    while position < 600 {
        let room = if told.len() < 100 { LITTLE } else { usize::MAX };
        let positioned = watcher.next_of(room).await;
        assert_eq!(positioned.previous.0, position);
        position = positioned.revision.0;
        let part = changes(positioned);
        assert!(part.len() <= 10, "what is cut stays so");
        told.extend(part.iter().map(|event| event.revision.0));
        assert_eq!(told.last(), Some(&position), "gapless");
    }
    assert!(told.into_iter().eq(301..=600));

    for weight in 2..12 {
        ids.iter().for_each(|id| weigh(&applied, id, weight));
    }
    let mut told = Vec::new();
    while position < 3_600 {
        let positioned = watcher.next_of(LITTLE).await;
        assert_eq!(positioned.previous.0, 600);
        position = positioned.revision.0;
        let part = changes(positioned);
        assert!(part.len() <= 10, "{} at once", part.len());
        told.extend(part.iter().map(|event| event.key().id.as_str().to_owned()));
        assert_eq!(position > 600, told.len() == 300, "moved by the last alone");
    }
    assert_eq!(told, ids, "the latest of each");
}

/// It has a message of its own, wherever it stands, and no message has nothing.
#[tokio::test]
async fn an_instance_that_is_larger_than_there_is_room_for_comes_alone() {
    const LITTLE: usize = 300;
    let all = ["large-1", "a", "large-2", "large-3", "b", "c", "large-4"];
    for services in [&all[..], &all[..1], &all[1..3]] {
        let applied = Arc::new(Applied::new(100_000, usize::MAX, Histogram::new([])));
        let leaders = watch::Sender::new(None);
        for id in services {
            let metadata = if id.starts_with("large") { "x".repeat(2 * LITTLE) } else { "".into() };
            register_with(&applied, &[id], &metadata);
        }
        let mut watcher = watch(&applied, &leaders, Begin::Snapshot);
        let (mut told, mut is_last) = (Vec::new(), false);
        while !is_last {
            let Message::Snapshot { services, last, .. } = watcher.next_of(LITTLE).await.message
            else {
                panic!("{told:?}")
            };
            let instances = services.iter().flat_map(|part| &part.instances);
            let ids: Vec<_> = instances.map(|it| it.key.id.as_str().to_owned()).collect();
            assert!(!ids.is_empty(), "after {told:?}");
            assert!(ids.len() == 1 || !ids.iter().any(|id| id.starts_with("large")), "{ids:?}");
            told.extend(ids);
            is_last = last;
        }
        let mut expected = services.to_vec();
        expected.sort_unstable();
        assert_eq!(told, expected);
    }
}

/// More changes than its queue holds, and than one piece of the ring.
/// What a watcher does not take for long comes together: another leader, and that it has missed
/// changes.
#[tokio::test(start_paused = true)]
async fn each_message_begins_where_the_one_before_it_ended() {
    let applied = Arc::new(Applied::new(10, usize::MAX, Histogram::new([])));
    let leaders = watch::Sender::new(None);
    register(&applied, "first");
    let mut slow = watch(&applied, &leaders, Begin::Snapshot);
    let mut position = slow.next().await.revision;
    for round in 0..2_000 {
        register(&applied, &format!("i{round}"));
    }
    leaders.send_replace(NodeId::new(1));
    tokio::time::advance(Duration::from_secs(100)).await;
    let mut kinds = Vec::new();
    while position < Revision(2_001) {
        let Positioned { message, previous, revision } = slow.next().await;
        let (kind, begins) = match message {
            Message::Snapshot { last, .. } => (if last { "whole" } else { "part" }, true),
            Message::Leader(_) => ("leader", false),
            Message::Delta(_) | Message::Bookmark => ("more", false),
        };
        let expected = if begins { Revision(0) } else { position };
        assert_eq!(previous, expected, "{kind} after {kinds:?}");
        position = revision;
        kinds.push(kind);
    }
    assert!(kinds.contains(&"whole") && kinds.contains(&"leader"), "{kinds:?}");
}

#[tokio::test]
async fn a_slow_watcher_is_told_the_latest_of_each_instance() {
    let applied = Arc::new(Applied::new(100_000, usize::MAX, Histogram::new([])));
    let leaders = watch::Sender::new(None);
    register(&applied, "a");
    register(&applied, "b");
    let mut slow = watch(&applied, &leaders, Begin::Snapshot);
    assert!(matches!(slow.next().await.message, Message::Snapshot { last: true, .. }));
    for weight in 0..3_500 {
        weigh(&applied, "a", weight);
    }
    weigh(&applied, "b", 1);
    let all = slow.next().await;
    assert_eq!((all.previous, all.revision), (Revision(2), Revision(2 + 3_501)));
    let told: Vec<_> = changes(all)
        .iter()
        .map(|event| {
            let (before, after) = (event.before().unwrap(), event.after().unwrap());
            (before.key.id.as_str().to_owned(), before.weight(), after.weight())
        })
        .collect();
    assert_eq!(told, [("a".to_owned(), 100, 3_499), ("b".to_owned(), 100, 1)]);
    weigh(&applied, "b", 2);
    assert_eq!(changes(slow.next().await).len(), 1, "from here on it is sent all again");
}

/// More than one message takes, of which only the last moves the position: in between, an instance
/// is gone before what took its place has come, which never was so.
#[tokio::test]
async fn a_slow_watcher_is_told_in_parts_that_count_together() {
    let applied = Arc::new(Applied::new(100_000, usize::MAX, Histogram::new([])));
    let leaders = watch::Sender::new(None);
    register(&applied, "old");
    let others: Vec<String> = (0..1_500).map(|at| format!("i{at}")).collect();
    register_all(&applied, &others.iter().map(String::as_str).collect::<Vec<_>>());
    let mut slow = watch(&applied, &leaders, Begin::Snapshot);
    let mut begun = slow.next().await;
    while !matches!(begun.message, Message::Snapshot { last: true, .. }) {
        begun = slow.next().await;
    }
    register(&applied, "new");
    let old = InstanceRef { key: key("old"), incarnation: None };
    apply(&applied, Op::Deregister(Deregister::Instances(vec![old])));
    others.iter().for_each(|id| weigh(&applied, id, 1));
    weigh(&applied, "new", 1);
    let now = applied.lock().registry.revision();
    let part = slow.next().await;
    assert_eq!((part.previous, part.revision), (begun.revision, begun.revision));
    let told = changes(part);
    assert!(told[0].after().is_none() && told.iter().all(|event| *event.key() != key("new")));
    let last = slow.next().await;
    assert_eq!((last.previous, last.revision), (begun.revision, now));
    assert_eq!(*changes(last).last().unwrap().key(), key("new"));
}

/// From many pieces of the ring ago.
#[tokio::test]
async fn a_watcher_that_resumes_is_told_every_change() {
    let applied = Arc::new(Applied::new(100_000, usize::MAX, Histogram::new([])));
    let leaders = watch::Sender::new(None);
    register(&applied, "a");
    for weight in 0..2_500 {
        weigh(&applied, "a", weight);
    }
    let mut resumed = watch(&applied, &leaders, Begin::After(Revision(1)));
    let mut told = Vec::new();
    while told.last() != Some(&2_501) {
        let positioned = resumed.next().await;
        assert_eq!(positioned.previous.0, told.last().copied().unwrap_or(1));
        told.extend(changes(positioned).iter().map(|event| event.revision.0));
    }
    assert!(told.into_iter().eq(2..=2_501));
}

/// It waits to hear where it stands; who is only woken in vain does not.
#[tokio::test(start_paused = true)]
async fn a_watcher_that_resumes_is_told_at_once_that_it_has_all() {
    let applied = Arc::new(Applied::new(100_000, usize::MAX, Histogram::new([])));
    let leaders = watch::Sender::new(None);
    register(&applied, "a");
    (0..2_500).for_each(|weight| weigh(&applied, "a", weight));
    let begun = Instant::now();
    let mut whole = watch(&applied, &leaders, Begin::After(Revision(2_501)));
    let mut blind = watch_for(&applied, &leaders, Begin::After(Revision(1)), &["none"]);
    for (resumed, from) in [(&mut whole, 2_501), (&mut blind, 1)] {
        let first = resumed.next().await;
        assert!(matches!(first.message, Message::Bookmark), "{first:?}");
        assert_eq!((first.previous, first.revision), (Revision(from), Revision(2_501)));
    }
    let many: Vec<String> = (0..100).map(|at| format!("i{at}")).collect();
    register_all(&applied, &many.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(changes(whole.next().await).len(), 100);
    assert_eq!(begun.elapsed(), Duration::ZERO);
    let second = Duration::from_secs(1);
    let in_vain = tokio::time::timeout(second, blind.next()).await;
    assert!(in_vain.is_err(), "{in_vain:?}");
}

/// Between single changes, too many at once to be queued.
#[tokio::test]
async fn many_changes_of_one_command_are_told_once_and_in_order() {
    let applied = Arc::new(Applied::new(100_000, usize::MAX, Histogram::new([])));
    let leaders = watch::Sender::new(None);
    let mut watcher = watch(&applied, &leaders, Begin::Snapshot);
    assert!(matches!(watcher.next().await.message, Message::Snapshot { last: true, .. }));
    let many: Vec<String> = (0..1_500).map(|at| format!("i{at}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let mut told = Vec::new();
    for round in 0..3 {
        weigh(&applied, "i0", round);
        register(&applied, &format!("before{round}"));
        register_all(&applied, &many[500 * round as usize..][..500]);
        register(&applied, &format!("after{round}"));
        let upto = applied.lock().registry.revision().0;
        while round % 2 == 0 && told.last() != Some(&upto) {
            let positioned = watcher.next().await;
            assert_eq!(positioned.previous.0, told.last().copied().unwrap_or(0));
            told.extend(changes(positioned).iter().map(|event| event.revision.0));
        }
    }
    assert!(told.into_iter().eq(1..=applied.lock().registry.revision().0));
}

/// A watcher from before what the ring keeps begins anew.
#[tokio::test]
async fn the_ring_is_bounded_by_bytes() {
    let applied = Arc::new(Applied::new(100_000, 10_000, Histogram::new([])));
    let leaders = watch::Sender::new(None);
    register(&applied, "a");
    for weight in 0..100 {
        weigh(&applied, "a", weight);
    }
    let first = watch(&applied, &leaders, Begin::After(Revision(1))).next().await;
    assert!(matches!(first.message, Message::Snapshot { reset: true, .. }), "{first:?}");
    let first = watch(&applied, &leaders, Begin::After(Revision(90))).next().await;
    assert_eq!(changes(first).len(), 11);
}

/// Counted from the last message, whatever that was.
#[tokio::test(start_paused = true)]
async fn a_bookmark_comes_when_nothing_was_sent_for_long() {
    let applied = Arc::new(Applied::new(100_000, usize::MAX, Histogram::new([])));
    let leaders = watch::Sender::new(None);
    let mut watcher = watch(&applied, &leaders, Begin::Snapshot);
    assert!(matches!(watcher.next().await.message, Message::Snapshot { last: true, .. }));
    let begun = Instant::now();
    for seconds in [40, 90, 140] {
        tokio::time::sleep_until(begun + Duration::from_secs(seconds)).await;
        register(&applied, &format!("i{seconds}"));
        assert_eq!(changes(watcher.next().await).len(), 1);
    }
    for seconds in [200, 260, 320] {
        let bookmark = watcher.next().await;
        assert!(matches!(bookmark.message, Message::Bookmark), "{bookmark:?}");
        assert_eq!((bookmark.previous, bookmark.revision), (Revision(3), Revision(3)));
        let at = begun.elapsed();
        let expected = Duration::from_secs(seconds);
        assert!(at >= expected && at < expected + Duration::from_millis(10), "{at:?}");
    }
}

/// Each of them is polled only when it has woken.
#[tokio::test(start_paused = true)]
async fn what_comes_seldom_is_told_between_changes() {
    let applied = Arc::new(Applied::new(100_000, usize::MAX, Histogram::new([])));
    let leaders = watch::Sender::new(None);
    let (end, ended) = tokio::sync::oneshot::channel();
    let filter = Filter::all_of(Namespace::default(), Selection::Prefix(String::new()));
    let (leader, bookmark) = (leaders.subscribe(), Duration::from_secs(60));
    let mut watcher = Subscription::start(
        applied.clone(),
        filter,
        (Begin::Snapshot, None),
        leader,
        bookmark,
        ended,
    );
    let (messages, mut told) = tokio::sync::mpsc::unbounded_channel();
    let reading = tokio::spawn(async move {
        loop {
            match std::future::poll_fn(|cx| {
                watcher.poll_next(cx, &mut |_, _| Poll::Ready(usize::MAX))
            })
            .await
            {
                Ok(positioned) => messages.send(positioned).unwrap(),
                Err(end) => return end,
            }
        }
    });
    assert!(matches!(told.recv().await.unwrap().message, Message::Snapshot { .. }));
    for leader in [NodeId::new(1), None, NodeId::new(3)] {
        leaders.send_replace(leader);
        let news = told.recv().await.unwrap().message;
        assert!(matches!(news, Message::Leader(now) if now == leader), "{news:?}");
        register(&applied, &format!("i{leader:?}").replace(['(', ')'], "-x"));
        assert_eq!(changes(told.recv().await.unwrap()).len(), 1);
    }
    end.send("over").unwrap();
    assert_eq!(reading.await.unwrap(), Ok("over"));
}

#[tokio::test(start_paused = true)]
async fn old_changes_are_forgotten_while_nothing_happens_and_recent_ones_are_not() {
    let applied = Applied::new(100_000, 64 * 1024 * 1024, Histogram::new([]));
    register(&applied, "a");
    (0..5_000).for_each(|weight| weigh(&applied, "a", weight));
    let reaches = |after| applied.lock().hub.reaches(Revision(after));
    for (seconds, oldest) in [(170, 0), (30, 4_901), (3_600, 4_901)] {
        let forgetting = applied.forget_old_changes();
        let never = tokio::time::timeout(Duration::from_secs(seconds), forgetting).await;
        assert!(never.is_err());
        assert!(reaches(oldest), "after {seconds} s more");
        assert!(oldest == 0 || !reaches(oldest - 1), "after {seconds} s more");
    }
}

/// How far a watcher is, and what waits for it: when it is idle, behind by some, and by too much.
#[tokio::test]
async fn it_is_known_how_far_each_watcher_is() {
    let applied = Arc::new(Applied::new(100_000, usize::MAX, Histogram::new([])));
    let leaders = watch::Sender::new(None);
    register_all(&applied, &["a"]);
    let service = key("a").service;
    let shown = || {
        let state = applied.lock();
        let now = state.registry.revision();
        let (followers, all) = state.hub.followers(&service, now, 1);
        assert_eq!(followers.len(), all.min(1));
        (followers.into_iter().next(), now)
    };
    assert_eq!(shown().0, None);
    let mut watcher = watch(&applied, &leaders, Begin::Snapshot);
    let begun = shown().1;
    let of = |sent, queued, behind| {
        let (from, prefix, since) = (None, Some(String::new()), begun);
        Some(Follower { from, prefix, since, sent, queued, behind })
    };
    assert_eq!(shown(), (of(begun, 0, false), begun));
    (1..=3).for_each(|weight| weigh(&applied, "a", weight));
    let after = Revision(begun.0 + 3);
    assert_eq!(shown(), (of(begun, 3, false), after), "three wait");
    for _snapshot_and_changes in 0..2 {
        watcher.next().await;
    }
    assert_eq!(shown(), (of(after, 0, false), after), "it has taken them");
    (1..=2_000).for_each(|weight| weigh(&applied, "a", 100 + weight));
    let (shown, now) = shown();
    assert_eq!((shown, now.0), (of(after, 0, true), after.0 + 2_000), "its queue was full");
}
