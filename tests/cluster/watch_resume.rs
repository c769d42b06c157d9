//! How a watch goes on: on another node, after a restart, after what it missed was forgotten, with
//! a position that is not this cluster's, or ahead of the node.

use std::time::Duration;

use quorate_node::Tunables;
use quorate_proto::v1::FetchRequest;
use tonic::Code;

use super::calls::{
    assert_refused, fetch_all, fetch_of, local, register, register_many, set_weight,
};
use super::harness::{Cluster, eventually};
use super::stream::{Stream, subscribe_to, subscribe_to_prefix};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_at_another_node_where_it_stopped() {
    let cluster = Cluster::start(3).await;
    let mut registry = cluster.registry(1);
    let begin = register(&mut registry, "web", "first").await.header.unwrap().revision;
    let mut stream = Stream::open(&registry, subscribe_to(&["web"])).await.unwrap();
    stream.begin_after(begin).await;
    let mut end = 0;
    for node in [2, 3, 1, 2, 3] {
        for at in 0..5 {
            let id = format!("n{node}-{at}-{end}");
            end = register(&mut registry, "web", &id).await.header.unwrap().revision;
        }
        stream = stream.resume(&cluster.registry(node), subscribe_to(&["web"])).await.unwrap();
        stream.reach(end).await;
        assert_eq!(stream.snapshots, 0, "no snapshot where the changes are still known");
        assert_eq!(stream.header.as_ref().unwrap().node_id, node);
    }
    assert_eq!(stream.revisions(), (begin + 1..=end).collect::<Vec<_>>());
    assert_eq!(stream.map, fetch_all(&mut registry).await.1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_that_is_too_old_gets_a_reset_in_band() {
    // S2.8: no error to handle, the same stream goes on.
    let tunables = Tunables { watch_ring: 20, ..Tunables::default() };
    let cluster = Cluster::start_with(3, tunables).await;
    let follower = cluster.follower().await;
    let mut registry = cluster.registry(follower);
    let old = register(&mut registry, "web", "i00000").await.header.unwrap().revision;
    let mut stream = Stream::open(&registry, subscribe_to(&["web"])).await.unwrap();
    stream.begin_after(old).await;
    assert!(!stream.reset, "a first snapshot is no reset");
    let end = register_many(&mut registry, "web", 60).await.header.unwrap().revision;
    // What the leader has acknowledged, this follower may apply later: the rest would come as
    // changes.
    let applied = FetchRequest { min_revision: end, ..local(fetch_of(&["web"])) };
    registry.fetch(applied).await.unwrap();
    let mut stream = stream.resume(&registry, subscribe_to(&["web"])).await.unwrap();
    stream.reach(end).await;
    assert_eq!((stream.snapshots, stream.reset, stream.deltas), (1, true, 0));
    assert_eq!(stream.map.len(), 60);
    let later = set_weight(&mut registry, "web", "i00003", 5).await;
    stream.reach(later).await;
    assert_eq!((stream.snapshots, stream.deltas), (1, 1));
    assert_eq!(stream.map, fetch_all(&mut registry).await.1);

    // The oldest position that the ring still reaches gets changes; one before it does not.
    for (from, reset) in [(later - 20, false), (later - 21, true), (old + 1, true)] {
        let mut subscribe = subscribe_to(&["nothing"]);
        subscribe.from_revision = from;
        let mut stream = Stream::open(&registry, subscribe).await.unwrap();
        // The position moves with a message only: the snapshot, or a bookmark.
        stream.reach(later).await;
        assert_eq!(stream.reset, reset, "from {from} with {later} reached");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_of_another_cluster_gets_a_reset() {
    let cluster = Cluster::start(1).await;
    let mut registry = cluster.registry(1);
    let end = register(&mut registry, "web", "a").await.header.unwrap().revision;
    let mut stream = Stream::open(&registry, subscribe_to_prefix("")).await.unwrap();
    stream.snapshot().await;
    let cluster_id = stream.header.unwrap().cluster_id;
    assert_ne!(cluster_id, 0);
    // Far ahead of this cluster, too: it is not waited for.
    for from_revision in [1, end, 1_000_000] {
        let mut subscribe = subscribe_to_prefix("");
        (subscribe.from_revision, subscribe.cluster_id) = (from_revision, cluster_id ^ 1);
        let mut stream = Stream::open(&registry, subscribe).await.unwrap();
        stream.snapshot().await;
        assert!(stream.reset);
        assert_eq!((stream.position, stream.ids()), (end, vec!["a"]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_ahead_of_a_lagging_node_is_waited_for() {
    // S0.14, S4.3: never a snapshot of the past, never a change twice.
    let cluster = Cluster::start_cuttable(3, Tunables::default()).await;
    let leader = cluster.leader().await;
    let lagging = cluster.follower().await;
    let mut at_leader = cluster.registry(leader);
    register(&mut at_leader, "web", "a").await;
    cluster.cut_off(lagging);
    let mut stream = Stream::open(&at_leader, subscribe_to(&["web"])).await.unwrap();
    let ahead = register_many(&mut at_leader, "web", 10).await.header.unwrap().revision;
    stream.reach(ahead).await;

    // It does not get there in time: another node may be further.
    let mut subscribe = subscribe_to(&["web"]);
    subscribe.from_revision = ahead;
    let mut channel = cluster.registry(lagging);
    let (asks, requests) = tokio::sync::mpsc::channel(1);
    let kind = quorate_proto::v1::watch_request::Kind::Subscribe(subscribe);
    asks.send(quorate_proto::v1::WatchRequest { kind: Some(kind) }).await.unwrap();
    let mut request = tonic::Request::new(tokio_stream::wrappers::ReceiverStream::new(requests));
    request.set_timeout(Duration::from_secs(3));
    let refused = channel.watch(request).await;
    assert_refused(refused.map(|_| ()), Code::Unavailable, &[&ahead.to_string()]);

    // It gets there while it is waited for.
    let resuming = stream.resume(&channel, subscribe_to(&["web"]));
    let reconnecting = async {
        let more = register(&mut at_leader, "web", "more").await.header.unwrap().revision;
        cluster.reconnect(lagging);
        more
    };
    let (stream, more) = tokio::join!(resuming, reconnecting);
    let mut stream = stream.unwrap();
    stream.reach(more).await;
    assert_eq!((stream.snapshots, stream.map.len()), (0, 12));
    assert_eq!(stream.revisions().last(), Some(&more));
    assert_eq!(stream.map, fetch_all(&mut at_leader).await.1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfers_and_restarts_lose_and_repeat_nothing() {
    let mut cluster = Cluster::start(3).await;
    let staying = cluster.follower().await;
    let mut registry = cluster.registry(staying);
    let begin = register(&mut registry, "web", "first").await.header.unwrap().revision;
    let mut stays = Stream::open(&registry, subscribe_to_prefix("")).await.unwrap();
    stays.begin_after(begin).await;
    let mut roams = Stream::open(&registry, subscribe_to_prefix("")).await.unwrap();
    roams.begin_after(begin).await;
    let (_, first) = fetch_all(&mut registry).await;
    let admin = cluster.client().await.admin();
    let mut end = 0;
    for turn in 0..3 {
        for to in cluster.ids() {
            admin.transfer_leader(Some(to)).await.expect("a transfer");
            let id = format!("t{turn}-{to}");
            end = register(&mut cluster.registry(to), "web", &id).await.header.unwrap().revision;
            roams = roams.resume(&cluster.registry(to), subscribe_to_prefix("")).await.unwrap();
            roams.reach(end).await;
        }
    }
    let other = cluster.ids().into_iter().find(|id| *id != staying).unwrap();
    let mut at_other =
        Stream::open(&cluster.registry(other), subscribe_to_prefix("")).await.unwrap();
    at_other.reach(end).await;
    cluster.stop(other).await;
    let status = at_other.end().await;
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    end = register(&mut registry, "web", "meanwhile").await.header.unwrap().revision;
    cluster.restart(other).await;
    cluster.settled().await;
    // The restarted node has read its log again, and with it the changes: it can resume old
    // positions.
    let mut again = subscribe_to_prefix("");
    again.from_revision = begin;
    let mut again = Stream::open(&cluster.registry(other), again).await.unwrap();
    again.map = first;
    again.reach(end).await;
    assert_eq!(again.snapshots, 0, "its log was not purged");
    stays.reach(end).await;
    roams = roams.resume(&cluster.registry(other), subscribe_to_prefix("")).await.unwrap();
    roams.reach(end).await;
    let (_, map) = fetch_all(&mut registry).await;
    for stream in [stays, roams, again] {
        assert_eq!(stream.revisions(), (begin + 1..=end).collect::<Vec<_>>());
        assert_eq!(stream.map, map);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_installs_a_snapshot_resets_its_watchers() {
    let tunables = Tunables { keep_entries: 10, snapshot_every: 100, ..Tunables::default() };
    let cluster = Cluster::start_cuttable(3, tunables).await;
    let leader = cluster.leader().await;
    let lagging = cluster.follower().await;
    let mut at_leader = cluster.registry(leader);
    register_many(&mut at_leader, "web", 5).await;
    let mut stream =
        Stream::open(&cluster.registry(lagging), subscribe_to(&["web"])).await.unwrap();
    stream.snapshot().await;
    stream.reach(5).await;
    cluster.cut_off(lagging);
    let mut end = 0;
    for weight in 0..400 {
        end = set_weight(&mut at_leader, "web", "i00001", weight).await;
    }
    eventually("the leader has purged what the other one needs", || async {
        let status = cluster.own_status(leader).await?;
        (status.members[0].purged_index > 100).then_some(())
    })
    .await;
    cluster.reconnect(lagging);
    stream.reach(end).await;
    assert!(stream.reset, "what was missed is not known any more: a snapshot on the same stream");
    let last = register(&mut at_leader, "web", "last").await.header.unwrap().revision;
    stream.reach(last).await;
    assert_eq!(stream.map, fetch_all(&mut cluster.registry(lagging)).await.1);
    let installed = cluster.own_status(lagging).await.unwrap().members[0].snapshot_index;
    assert!(installed > 100, "by a snapshot: {installed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_loses_its_leader_says_so_on_the_stream() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
    register(&mut cluster.registry(leader), "web", "a").await;
    let survivor = others[0];
    let mut stream =
        Stream::open(&cluster.registry(survivor), subscribe_to_prefix("")).await.unwrap();
    stream.snapshot().await;
    assert_ne!(stream.header.as_ref().unwrap().leader_id, 0);
    cluster.stop(others[1]).await;
    cluster.stop(leader).await;
    // The lead was handed over to it, so it led for a moment.
    eventually("the survivor has no leader", || async {
        let header = cluster.own_status(survivor).await?.header?;
        (header.leader_id == 0).then_some(())
    })
    .await;
    stream.until("the loss of the leader", |stream| stream.leader == Some(0)).await;
    assert_eq!(stream.ids(), ["a"], "what was sent stays");
    // A watch that begins now says so in its first message, and still has the list.
    let mut late =
        Stream::open(&cluster.registry(survivor), subscribe_to_prefix("")).await.unwrap();
    late.snapshot().await;
    assert_eq!((late.header.as_ref().unwrap().leader_id, late.ids()), (0, vec!["a"]));
    cluster.restart(leader).await;
    cluster.leader().await;
    stream.until("a leader", |stream| stream.leader.is_some_and(|leader| leader != 0)).await;
    let end = register(&mut cluster.registry(leader), "web", "b").await.header.unwrap().revision;
    stream.reach(end).await;
    late.reach(end).await;
    assert_eq!((stream.ids(), late.ids()), (vec!["a", "b"], vec!["a", "b"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_follows_over_the_death_of_every_node_in_turn() {
    // S0.13, S0.14, S2.8: through the client crate.
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    let mut watch = client.watch("web");
    watch.synced().await.expect("a first snapshot");
    for (turn, id) in [1, 2, 3, 2].into_iter().enumerate() {
        cluster.stop(id).await;
        let at = cluster.leader().await;
        let name = format!("i{turn}");
        register(&mut cluster.registry(at), "web", &name).await;
        eventually("the client sees it", || async {
            watch.snapshot().get("web", &name).map(|_| ())
        })
        .await;
        assert_eq!(watch.snapshot().len(), turn + 1, "a failure never shrinks the list");
        cluster.restart(id).await;
        cluster.settled().await;
    }
    let first = watch.next().await;
    assert!(first.is_some());
}
