//! What must not be done to the members, what may be done twice, and a node that has no cluster.

use std::time::Duration;

use quorate_node::Start;
use quorate_proto::v1::{
    AddNodeRequest, FetchRequest, FetchResponse, Metadata, RemoveNodeRequest, ReplaceNodeRequest,
    TransferLeaderRequest, WatchAck,
};
use tonic::Code;

use super::calls::{
    assert_refused, fetch_all, fetch_of, in_time, local, register, registration, renewal, spec,
    with_timeout,
};
use super::harness::{Cluster, eventually};
use super::stream::{Stream, subscribe_to_prefix};

fn add(id: u64, peer_address: &str) -> AddNodeRequest {
    AddNodeRequest { id, peer_address: peer_address.to_owned(), learner_only: false }
}

fn replace(old_id: u64, new_id: u64, peer_address: &str) -> ReplaceNodeRequest {
    ReplaceNodeRequest { old_id, new_id, peer_address: peer_address.to_owned() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_there_are_not_are_refused_as_such() {
    let cluster = Cluster::start(1).await;
    for path in
        ["/quorate.v1.Registry/Nothing", "/quorate.v1.Admin/Nothing", "/no.v1.Service/Fetch"]
    {
        let mut caller = tonic::client::Grpc::new(cluster.channel(1));
        caller.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<FetchRequest, FetchResponse>::default();
        let request = tonic::Request::new(FetchRequest::default());
        let refused = caller.unary(request, path.parse().unwrap(), codec).await;
        assert_refused(refused, Code::Unimplemented, &[]);
    }
}

/// It may wait for days; a client that has its address is to go on with the next one at once, and
/// not when its deadline is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_waits_to_be_taken_in_sends_callers_elsewhere() {
    let mut cluster = Cluster::start(1).await;
    let lease = register(&mut cluster.registry(1), "web", "a").await.lease_id;
    cluster.add_waiting(2).await;
    let (mut waiting, mut admin) = (cluster.registry(2), cluster.admin(2));
    let words = ["node 2 is not a member of the cluster", "ask another node"];
    let written = waiting.register(in_time(registration(vec![spec("web", "b")]))).await;
    assert_refused(written, Code::Unavailable, &words);
    assert_refused(waiting.renew(in_time(renewal([lease]))).await, Code::Unavailable, &words);
    let read = waiting.fetch(in_time(fetch_of(&["web"]))).await;
    assert_refused(read, Code::Unavailable, &words);
    let peer_address = cluster.peer_address(2).to_owned();
    let add = add(2, &peer_address);
    assert_refused(admin.add_node(in_time(add.clone())).await, Code::Unavailable, &words);
    cluster.admin(1).add_node(in_time(add)).await.expect("it is taken in");
    register(&mut waiting, "web", "b").await;
}

/// Field 1 is a number here, and a text or a message in what the methods take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_no_such_message_are_the_callers_mistake() {
    let cluster = Cluster::start(1).await;
    for path in ["/quorate.v1.Registry/Fetch", "/quorate.v1.Admin/RemoveNode"] {
        let mut caller = tonic::client::Grpc::new(cluster.channel(1));
        caller.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<Metadata, FetchResponse>::default();
        let entries = [("a".to_owned(), "b".to_owned())].into();
        let request = tonic::Request::new(Metadata { entries });
        let codec_of_text = tonic_prost::ProstCodec::<WatchAck, FetchResponse>::default();
        let number = tonic::Request::new(WatchAck { revision: 7 });
        let refused = match path.ends_with("Fetch") {
            true => caller.unary(number, path.parse().unwrap(), codec_of_text).await,
            false => caller.unary(request, path.parse().unwrap(), codec).await,
        };
        assert_refused(refused, Code::InvalidArgument, &["cannot be read"]);
    }
    let mut caller = tonic::client::Grpc::new(cluster.channel(1));
    caller.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<WatchAck, FetchResponse>::default();
    let numbers = tonic::Request::new(tokio_stream::iter([WatchAck { revision: 7 }]));
    let path = "/quorate.v1.Registry/Watch".parse().unwrap();
    let refused = match caller.streaming(numbers, path, codec).await {
        Ok(answers) => answers.into_inner().message().await.map(|_| ()),
        Err(status) => Err(status),
    };
    assert_refused(refused, Code::InvalidArgument, &["cannot be read"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_members_that_cannot_be_are_refused_by_name() {
    let mut cluster = Cluster::start(1).await;
    let other_cluster = Cluster::start_another(7).await;
    cluster.add_waiting(4).await;
    let mut admin = cluster.admin(1);
    let (four, seven) = (cluster.peer_address(4), other_cluster.peer_address(7));

    let wrong_id = admin.add_node(add(9, four)).await;
    assert_refused(wrong_id, Code::FailedPrecondition, &["id 4", "not 9", four]);
    let foreign = admin.add_node(add(7, seven)).await;
    assert_refused(foreign, Code::FailedPrecondition, &["another cluster", seven]);
    let foreign = admin.replace_node(replace(1, 7, seven)).await;
    assert_refused(foreign, Code::FailedPrecondition, &["another cluster", seven]);
    let taken = admin.add_node(add(1, four)).await;
    assert_refused(taken, Code::FailedPrecondition, &["node 1", "already"]);
    let itself = admin.replace_node(replace(1, 1, four)).await;
    assert_refused(itself, Code::InvalidArgument, &["new_id", "1"]);
    let nobody = admin.replace_node(replace(8, 4, four)).await;
    assert_refused(nobody, Code::NotFound, &["node 8"]);
    for (id, address, field) in
        [(0, four, "id"), (4, "nonsense", "peer_address"), (4, ":80", "peer_address")]
    {
        assert_refused(admin.add_node(add(id, address)).await, Code::InvalidArgument, &[field]);
    }
    let last = admin.remove_node(RemoveNodeRequest { id: 1 }).await;
    assert_refused(last, Code::FailedPrecondition, &["node 1", "last voter"]);
    let stranger = admin.transfer_leader(TransferLeaderRequest { to_id: 9 }).await;
    assert_refused(stranger, Code::FailedPrecondition, &["node 9"]);

    // Nothing of all that has left a trace.
    assert_eq!(cluster.members(1).await.len(), 1);
    assert_eq!(cluster.voters(1).await, [1]);
    assert_eq!(other_cluster.voters(7).await, [7]);
    register(&mut cluster.registry(1), "web", "a").await;
}

/// Somebody has left `bootstrap` where a node is to be taken in. It keeps that in its directory, so
/// to start it without is not enough, and it says so itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_waits_to_found_a_cluster_is_refused_as_what_it_is() {
    let mut cluster = Cluster::start(1).await;
    cluster.add_waiting(2).await;
    let two = cluster.peer_address(2).to_owned();
    let founders = [(2, two.clone()), (3, "127.0.0.1:9".to_owned())].into();
    for start in [Start::Bootstrap(founders), Start::Wait] {
        cluster.stop(2).await;
        cluster.config_mut(2).start = start.clone();
        cluster.restart(2).await;
        let what_to_do = ["node 2", &two, "waits to found", "without --bootstrap, on an empty"];
        let refused = cluster.admin(1).add_node(in_time(add(2, &two))).await;
        let refused = assert_refused(refused, Code::FailedPrecondition, &what_to_do);
        assert!(!refused.message().contains("cluster ("), "of no cluster: {refused:?}");
        let waits = match start {
            Start::Wait => "without that on an empty directory",
            _ => "start node 3 at 127.0.0.1:9",
        };
        eventually(waits, || async {
            let reason = cluster.own_status(2).await?.condition?.reason;
            assert!(!reason.contains("cluster add"), "it is refused: {reason}");
            reason.contains(waits).then_some(())
        })
        .await;
    }
    cluster.stop(2).await;
    cluster.wipe(2);
    cluster.restart(2).await;
    cluster.admin(1).add_node(in_time(add(2, &two))).await.expect("it is taken in");
    assert_eq!(cluster.voters(1).await, [1, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_where_nobody_answers_is_named_in_time() {
    let cluster = Cluster::start(1).await;
    let mut admin = cluster.admin(1);
    let request = with_timeout(add(5, "127.0.0.1:9"), Duration::from_secs(4));
    let status = admin.add_node(request).await.unwrap_err();
    assert!(status.message().contains("127.0.0.1:9"), "{status:?}");
    assert_eq!(cluster.members(1).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adding_and_replacing_can_be_repeated_and_removing_is_done_once() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let old = cluster.follower().await;
    cluster.add_waiting(4).await;
    cluster.add_waiting(5).await;
    let (four, five) = (cluster.peer_address(4).to_owned(), cluster.peer_address(5).to_owned());
    // By any node, the one that is to go included.
    for at in [leader, old] {
        let answer = cluster.admin(at).add_node(add(4, &four)).await.unwrap().into_inner();
        assert_eq!(answer.members.len(), 4);
    }
    for at in [leader, 4, leader] {
        let answer = cluster.admin(at).replace_node(replace(old, 5, &five)).await.unwrap();
        assert_eq!(answer.into_inner().members.len(), 4);
    }
    let answer = cluster.admin(5).remove_node(RemoveNodeRequest { id: 4 }).await.unwrap();
    let ids: Vec<u64> = answer.into_inner().members.iter().map(|m| m.id).collect();
    assert!(!ids.contains(&4) && !ids.contains(&old) && ids.len() == 3, "{ids:?}");
    // A node that is not a member cannot be taken out: a mistyped id is not to look like a success.
    for (at, id) in [(5, old), (leader, 4), (5, 99)] {
        let refused = cluster.admin(at).remove_node(RemoveNodeRequest { id }).await;
        assert_refused(refused, Code::NotFound, &[&format!("node {id} is not a member")]);
    }
    assert_eq!(cluster.members(leader).await.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_cluster_answers_nothing_and_can_be_taken_in() {
    let mut cluster = Cluster::start(1).await;
    register(&mut cluster.registry(1), "web", "a").await;
    cluster.add_waiting(2).await;
    let mut lonely = cluster.registry(2);
    eventually("node 2 listens", || async { cluster.own_status(2).await.map(|_| ()) }).await;
    let limit = Duration::from_secs(3);
    for request in [FetchRequest::default(), fetch_of(&["web"]), local(FetchRequest::default())] {
        let answer = lonely.fetch(with_timeout(request, limit)).await;
        assert_refused(answer, Code::Unavailable, &[]);
    }
    let write = with_timeout(registration(vec![spec("web", "b")]), limit);
    assert_refused(lonely.register(write).await, Code::Unavailable, &[]);
    let opened = Stream::open(&lonely, subscribe_to_prefix("")).await.map(|_| ());
    assert_refused(opened, Code::Unavailable, &["node 2"]);

    cluster.admin(1).add_node(add(2, cluster.peer_address(2))).await.expect("node 2 is added");
    assert_eq!(fetch_all(&mut lonely).await.1.len(), 1);
}
