//! How a watch begins: nothing is missed between the snapshot and the first change, however much is
//! going on, and a large snapshot comes in parts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prost::Message;
use quorate_node::Tunables;
use quorate_proto::v1::watch_response::Kind;
use quorate_proto::v1::{ChangeKind, DeregisterRequest};
use tokio::task::JoinSet;

use super::calls::{
    Registry, deregister, fetch_all, in_time, named, register, register_many, registration,
    set_weight, spec,
};
use super::harness::Cluster;
use super::stream::{Stream, subscribe_to, subscribe_to_prefix};

/// How many changes of each kind were acknowledged: added, modified, removed.
type Counts = [u64; 3];

/// Operations in the large churn.
const OPERATIONS: u64 = 10_000;
const WRITERS: u64 = 40;

/// Registers, changes and removes instances of its own, one operation after the other; every one
/// changes something.
async fn churn(mut registry: Registry, writer: u64, operations: u64) -> Counts {
    let mut counts = Counts::default();
    let service = format!("churn-{}", writer % 7);
    for at in 0..operations {
        let id = format!("w{writer}-{}", at / 4 % 5);
        // Each instance: added, changed, changed, removed; then anew with a higher incarnation.
        match at % 4 {
            0 => {
                let mut request = registration(vec![spec(&service, &id)]);
                request.incarnation = 10 + at;
                registry.register(in_time(request)).await.expect("a registration");
                counts[0] += 1;
            }
            3 => {
                deregister(&mut registry, &service, &id).await;
                counts[2] += 1;
            }
            step => {
                let weight = (at * 2 + step) as u32;
                set_weight(&mut registry, &service, &id, weight).await;
                counts[1] += 1;
            }
        }
    }
    counts
}

fn count(stream: &Stream) -> Counts {
    let of = |kind| stream.kinds().iter().filter(|found| **found == kind).count() as u64;
    [of(ChangeKind::Added), of(ChangeKind::Modified), of(ChangeKind::Removed)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_operations_reach_every_watcher_once_and_in_order() {
    // S2.7, S4.3, S3.1
    let cluster = Cluster::start(3).await;
    let (begin, _) = fetch_all(&mut cluster.registry(1)).await;
    let mut watchers = JoinSet::new();
    let done = Arc::new(AtomicBool::new(false));
    for at in 0..6_u64 {
        let registries: Vec<Registry> = (1..=3).map(|id| cluster.registry(id)).collect();
        let done = done.clone();
        let mut node = at as usize % 3;
        let open = Stream::open(&registries[node], subscribe_to_prefix(""));
        let mut stream = open.await.expect("a watch");
        // Here, not in the task: what is written before a watcher has its snapshot never reaches it
        // as a change.
        stream.snapshot().await;
        assert_eq!(stream.position, begin, "nothing is written yet");
        watchers.spawn(async move {
            // Half of them go on at another node every now and then.
            while !done.load(Ordering::Relaxed) {
                stream.next().await.expect("a message");
                if at >= 3 && stream.deltas > 40 {
                    node = (node + 1) % 3;
                    let resumed = stream.resume(&registries[node], subscribe_to_prefix(""));
                    stream = resumed.await.expect("a resumed watch");
                }
            }
            stream
        });
    }
    // Each writer has a node of its own, all of them the same log.
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let registry = cluster.registry(1 + writer % 3);
        writers.spawn(churn(registry, writer, OPERATIONS / WRITERS));
    }
    let all = writers.join_all().await;
    let expected = all
        .iter()
        .fold(Counts::default(), |sum, one| [sum[0] + one[0], sum[1] + one[1], sum[2] + one[2]]);
    assert_eq!(expected.iter().sum::<u64>(), OPERATIONS);
    done.store(true, Ordering::Relaxed);
    // Wakes watchers that wait for a message.
    register(&mut cluster.registry(2), "churn-end", "end").await;
    let (end, map) = fetch_all(&mut cluster.registry(3)).await;
    assert_eq!(end, begin + OPERATIONS + 1, "every change has one revision");
    for mut stream in watchers.join_all().await {
        stream.reach(end).await;
        assert_eq!(stream.map, map, "the maps agree");
        assert_eq!(stream.revisions(), (begin + 1..=end).collect::<Vec<_>>(), "none lost or twice");
        assert_eq!(count(&stream), [expected[0] + 1, expected[1], expected[2]]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missed_between_the_snapshot_and_the_first_change() {
    // S2.7: many subscriptions while much changes, on leader and followers.
    let cluster = Cluster::start(3).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for writer in 0..6 {
        let (registry, stop) = (cluster.registry(1 + writer % 3), stop.clone());
        writers.spawn(async move {
            let mut round = 0;
            while !stop.load(Ordering::Relaxed) {
                churn(registry.clone(), 1_000 * round + writer, 20).await;
                round += 1;
            }
        });
    }
    let mut streams = Vec::new();
    for at in 0..40_u64 {
        let registry = cluster.registry(1 + at % 3);
        let mut stream = Stream::open(&registry, subscribe_to_prefix("")).await.unwrap();
        stream.snapshot().await;
        let begin = stream.position;
        // The next one begins later.
        stream.reach(begin + 1).await;
        streams.push((begin, stream));
    }
    stop.store(true, Ordering::Relaxed);
    writers.join_all().await;
    let (end, map) = fetch_all(&mut cluster.registry(1)).await;
    let mut begins = BTreeMap::new();
    for (begin, mut stream) in streams {
        stream.reach(end).await;
        assert_eq!(stream.map, map);
        // One that fell far behind may have been coalesced; that is not what is tested here, and
        // 1,024 changes away.
        let expected: Vec<u64> = (begin + 1..=end).collect();
        assert_eq!(stream.revisions(), expected, "after a snapshot at {begin}");
        begins.insert(begin, ());
    }
    assert!(begins.len() > 10, "they began at different revisions: {:?}", begins.keys());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_instances_are_one_stream_in_several_parts() {
    // S2.10
    let cluster = Cluster::start(1).await;
    let mut registry = cluster.registry(1);
    register_many(&mut registry, "large", 10_000).await;
    register(&mut registry, "small", "a").await;
    let (revision, map) = fetch_all(&mut registry).await;
    let mut stream = Stream::open(&registry, subscribe_to_prefix("")).await.unwrap();
    // What changes while the parts are under way comes after them.
    let end = set_weight(&mut registry, "large", "i00000", 7).await;
    let mut largest = 0;
    while stream.position < revision {
        let message = stream.next().await.unwrap();
        largest = largest.max(message.encoded_len());
    }
    assert_eq!(stream.map, map);
    assert!(stream.snapshots >= 5, "in {} parts", stream.snapshots);
    assert!(largest < 512 * 1024, "a part of {largest} bytes");
    stream.reach(end).await;
    assert_eq!(stream.revisions(), [end]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_stay_small_however_large_the_instances_are() {
    // The contract says about 256 KiB; a receiver with the usual limit of 4 MiB must be able to
    // follow.
    const USUAL_LIMIT: usize = 4 * 1024 * 1024;
    let cluster =
        Cluster::start_with(1, Tunables { watch_ring: 5_000, ..Tunables::default() }).await;
    let mut registry = cluster.registry(1);
    let fat = |at: usize, turn: usize| {
        let mut spec = spec("fat", &format!("i{at:04}"));
        spec.metadata.insert("blob".to_owned(), format!("{turn}").repeat(16_000));
        spec
    };
    let register_fat = async |registry: &mut Registry, turn: usize| {
        let mut last = 0;
        for begin in (0..1_000).step_by(100) {
            let specs = (begin..begin + 100).map(|at| fat(at, turn)).collect();
            let answer = registry.register(registration(specs)).await.expect("fat instances");
            last = answer.into_inner().header.unwrap().revision;
        }
        last
    };
    let first = register_fat(&mut registry, 1).await;
    let mut stream = Stream::open(&registry, subscribe_to(&["fat"])).await.unwrap();
    let mut largest = 0;
    while stream.position < first {
        largest = largest.max(stream.next().await.unwrap().encoded_len());
    }
    assert!(largest < 512 * 1024, "a part of a snapshot of {largest} bytes");
    // A replay of 1,000 changes, as large as they come.
    drop(stream);
    let second = register_fat(&mut registry, 2).await;
    let mut subscribe = subscribe_to(&["fat"]);
    subscribe.from_revision = first;
    let opened = registry.clone().max_decoding_message_size(USUAL_LIMIT);
    let mut stream = Stream::open(&opened, subscribe).await.unwrap();
    stream.map = fetch_all(&mut registry).await.1;
    stream.reach(second).await;
    assert_eq!(stream.changes.len(), 1_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_change_is_one_message() {
    // S0.12
    let cluster = Cluster::start(3).await;
    let follower = cluster.follower().await;
    let mut registry = cluster.registry(follower);
    let mut stream = Stream::open(&registry, subscribe_to(&["web"])).await.unwrap();
    stream.snapshot().await;
    assert_eq!((stream.snapshots, stream.deltas), (1, 0));
    for at in 1..=5 {
        let end = register(&mut registry, "web", &format!("i{at}")).await.header.unwrap().revision;
        stream.reach(end).await;
        assert_eq!((stream.deltas, stream.changes.len()), (at, at));
    }
    // Three instances that register at once come at once.
    let specs = (6..9).map(|at| spec("web", &format!("i{at}"))).collect();
    let end = registry.register(registration(specs)).await.unwrap().into_inner();
    stream.reach(end.header.unwrap().revision).await;
    assert_eq!((stream.deltas, stream.changes.len()), (6, 8));
    // So do three that leave at once.
    let instances = (6..9).map(|at| named("web", &format!("i{at}"))).collect();
    let request = DeregisterRequest { instances, ..DeregisterRequest::default() };
    let end = registry.deregister(request).await.unwrap().into_inner();
    assert_eq!(end.removed, 3);
    stream.reach(end.header.unwrap().revision).await;
    assert_eq!((stream.deltas, stream.changes.len()), (7, 11));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_on_an_unknown_service_begins_empty_and_gets_it() {
    let cluster = Cluster::start(1).await;
    let mut registry = cluster.registry(1);
    let mut stream = Stream::open(&registry, subscribe_to(&["later"])).await.unwrap();
    let message = stream.next().await.unwrap();
    let Some(Kind::Snapshot(snapshot)) = message.kind else { panic!("{message:?}") };
    assert!(snapshot.last && !snapshot.reset);
    let names: Vec<_> = snapshot.services.iter().map(|s| (s.name.as_str(), s.known)).collect();
    assert_eq!(names, [("later", false)], "unknown is reported as such");
    let end = register(&mut registry, "later", "a").await.header.unwrap().revision;
    stream.reach(end).await;
    assert_eq!(stream.ids(), ["a"]);
}
