//! What a hub makes of what its streams bring.

use quorate_proto::v1::InstanceStatus;

use super::*;

fn event(id: usize, weight: u32) -> WatchEvent {
    let instance = Instance { id: id.to_string(), weight, ..Instance::default() };
    WatchEvent::Modified(Arc::new(instance))
}

#[test]
fn who_hears_of_a_change_finds_it() {
    // S2.12
    let feed = Arc::new(Feed::new(Selector::service("web")));
    let mut topics = Topics::default();
    topics.add(feed.clone());
    topics.replace(&["web".to_owned()], 1, Vec::new());
    let queue = feed.listen();
    let mut instance = Instance { id: "a".to_owned(), ..Instance::default() };
    instance.set_status(InstanceStatus::Up);
    let mut change = Change { revision: 2, instance: Some(instance), ..Change::default() };
    change.set_kind(ChangeKind::Added);
    let topic = topics.by_name.get_mut("web").unwrap();
    assert!(topic.apply(change));
    assert!(feed.current.load().is_empty() && queue.pop().is_none(), "neither yet");
    topic.publish();
    assert!(feed.current.load().get("a").is_some());
    assert!(matches!(queue.pop(), Some(WatchEvent::Added(instance)) if instance.id == "a"));
    assert!(queue.pop().is_none());
}

#[test]
fn a_service_that_was_not_read_yet_takes_no_changes() {
    // S2.7, S0.13
    let mut topics = Topics::default();
    let (a, b) = (Feed::new(Selector::service("a")), Feed::new(Selector::service("b")));
    let (a, b) = (Arc::new(a), Arc::new(b));
    topics.add(a.clone());
    topics.replace(&["a".to_owned()], 5, Vec::new());
    topics.add(b.clone());
    // The stream of "a" brings one more message, which would bring "b" too if it had been asked
    // for before.
    let instance = |id: &str| Instance {
        service: "b".to_owned(),
        id: id.to_owned(),
        status: InstanceStatus::Up as i32,
        ..Instance::default()
    };
    let kind = ChangeKind::Added as i32;
    let change = Change { revision: 6, kind, instance: Some(instance("b2")), reason: 0 };
    assert_eq!(topics.apply(vec![change]), Vec::<String>::new());
    topics.move_to(&topics.names(), 7);
    let now = Instant::now();
    topics.remove(&a, now);
    assert!(topics.forget_unused(now + LINGER));
    assert_eq!(topics.lowest(&topics.names()), 0, "the next stream has to begin with a snapshot");
    assert_eq!(b.current.load().origin(), Origin::Nowhere);
    // Which may come from a node that is behind.
    let instances = vec![instance("b1"), instance("b2")];
    let part = Service { name: "b".to_owned(), instances, ..Service::default() };
    topics.replace(&["b".to_owned()], 6, vec![part]);
    assert_eq!(b.current.load().len(), 2);
    topics.move_to(&topics.names(), 8);
    assert_eq!(topics.lowest(&topics.names()), 8);
}

fn view(service: &str) -> Arc<Feed> {
    Arc::new(Feed::new(Selector::service(service)))
}

#[test]
fn a_service_stays_for_a_while_after_its_last_view() {
    let mut topics = Topics::default();
    let (a, b) = (view("a"), view("b"));
    assert!(topics.add(a.clone()) && topics.add(b.clone()));
    topics.replace(&topics.names(), 5, Vec::new());
    let now = Instant::now();
    assert!(!topics.remove(&a, now) && !topics.remove(&b, now));
    assert_eq!(topics.used().count(), 0);
    let again = view("a");
    assert!(!topics.add(again.clone()), "it is followed");
    assert_eq!(again.current.load().origin(), Origin::Registry);
    let nearly = now + LINGER - Duration::from_millis(1);
    assert!(!topics.forget_unused(nearly) && topics.forget_unused(now + LINGER));
    assert_eq!(topics.names(), ["a"]);
    // The next view of one that is refused asks anew.
    topics.refuse("a", Error::NoAddresses);
    assert!(topics.remove(&again, now) && topics.names().is_empty());
    topics.add(a.clone());
    topics.remove(&a, now);
    topics.refuse("a", Error::NoAddresses);
    assert!(topics.names().is_empty());
}

/// It was right as of then; the stream of the others says nothing of it.
#[test]
fn a_service_that_was_refused_for_a_while_does_not_go_back_in_time() {
    let mut topics = Topics::default();
    let (refused, other) = (view("refused"), view("other"));
    topics.add(refused.clone());
    topics.add(other);
    let part = |ids: &[&str]| {
        let instance = |id: &&str| Instance { id: (*id).to_owned(), ..Instance::default() };
        let instances = ids.iter().map(instance).collect();
        vec![Service { name: "refused".to_owned(), instances, ..Service::default() }]
    };
    topics.replace(&topics.names(), 9, part(&["a"]));
    topics.refuse("refused", Error::NoAddresses);
    assert_eq!(topics.synced(), ["other"], "an audit would be refused");
    topics.move_to(&["other".to_owned()], 12);
    // It is allowed again, by a node that is behind.
    topics.replace(&["refused".to_owned()], 8, part(&[]));
    assert!(topics.refused("refused").is_none());
    assert_eq!(topics.known("refused").map(|(at, all)| (at, all.len())), Some((9, 1)));
    assert_eq!(topics.lowest(&topics.names()), 9, "from there on changes are needed");
}

#[test]
fn what_was_without_a_view_for_longest_makes_room() {
    let mut topics = Topics::default();
    let views: Vec<_> = (0..SERVICES_PER_CALL).map(|at| view(&format!("s{at}"))).collect();
    views.iter().for_each(|view| assert!(topics.add(view.clone())));
    let now = Instant::now();
    topics.remove(&views[7], now + Duration::from_secs(1));
    topics.remove(&views[8], now);
    assert!(topics.add(view("new")));
    assert_eq!(topics.names().len(), SERVICES_PER_CALL);
    assert!(topics.by_name.contains_key("s7") && !topics.by_name.contains_key("s8"));
}

#[test]
fn what_is_cached_of_another_cluster_is_not_shown() {
    for (answers, shown) in [(0, 1), (7, 1), (8, 0)] {
        let feed = Arc::new(Feed::new(Selector::service("s").statuses([])));
        let mut topics = Topics::default();
        topics.add(feed.clone());
        topics.belongs_to(ClusterId::new(answers));
        topics.take_cached("s", ClusterId::new(7), vec![Instance::default()]);
        assert_eq!(feed.current.load().len(), shown, "{answers} answers");
    }
}

/// Whatever is late: a view is never empty in between.
#[test]
fn what_is_known_is_shown_until_the_list_of_another_cluster_is_there() {
    let feed = Arc::new(Feed::new(Selector::service("s").statuses([])));
    let mut topics = Topics::default();
    topics.add(feed.clone());
    let list = |ids: &[&str]| {
        let instance = |id: &&str| Instance { id: (*id).to_owned(), ..Instance::default() };
        let instances = ids.iter().map(instance).collect();
        vec![Service { name: "s".to_owned(), instances, ..Service::default() }]
    };
    topics.belongs_to(ClusterId::new(7));
    topics.replace(&topics.names(), 9, list(&["a"]));
    let queue = feed.listen();
    assert!(matches!(queue.pop(), Some(WatchEvent::Added(instance)) if instance.id == "a"));
    topics.belongs_to(ClusterId::new(8));
    assert!(feed.current.load().get("a").is_some() && queue.pop().is_none());
    topics.replace(&topics.names(), 2, list(&["b", "c"]));
    assert!(feed.current.load().get("a").is_none());
    assert_eq!(feed.current.load().len(), 2);
}

#[test]
fn a_queue_keeps_each_change_until_there_are_too_many() {
    // S2.12
    let mut pending = Pending::default();
    let mut read = |pushed: u32| {
        (0..pushed).for_each(|weight| pending.push(event(0, weight)));
        let mut all = Vec::new();
        while let Some(WatchEvent::Modified(instance)) = pending.pop() {
            all.push(instance.weight);
        }
        all
    };
    assert_eq!(read(1_024), (0..1_024).collect::<Vec<_>>());
    assert_eq!(read(10_000), [9_999]);
    assert_eq!(read(3), [0, 1, 2], "a reader that has caught up gets each one again");
}

#[test]
fn listeners_that_are_gone_are_forgotten_where_nothing_changes() {
    let feed = Feed::new(Selector::service("s"));
    let kept: Vec<_> = (0..10).map(|_| feed.listen()).collect();
    for _ in 0..10_000 {
        drop(feed.listen());
    }
    let queues = feed.queues();
    assert!(queues.len() <= 4 * kept.len(), "{} for {} listeners", queues.len(), kept.len());
    for queue in &kept {
        assert!(queues.iter().any(|known| Arc::ptr_eq(known, queue)));
    }
}
