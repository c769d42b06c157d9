//! A cluster has an identity of its own, drawn when it is founded; no second one is founded beside
//! it.

use bytes::Bytes;
use prost::Message as _;
use quorate_proto::peer::v1::leader_call::Call;
use quorate_proto::peer::v1::peer_client::PeerClient;
use quorate_proto::peer::v1::{
    AnnounceMember, Forwarded, LeaderAnswer, LeaderCall, RemoveMember, SnapshotChunk,
    TransferRequest, VoteRequest, Write, leader_answer,
};
use quorate_proto::v1::{BackupRequest, RemoveNodeRequest, ReplaceNodeRequest};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::calls::{assert_refused, register};
use super::failover::seldom_by_silence;
use super::harness::{Cluster, eventually};
use super::removed::says_removed;
use super::snapshots::snapshot_in;
use super::strangers::{append, ballot, snapshot, vote};

/// Which cluster a registration was done in, and the id of its lease.
async fn registered(cluster: &Cluster) -> (u64, u64) {
    let answer = register(&mut cluster.registry(1), "web", "a").await;
    (answer.header.expect("a header").cluster_id, answer.lease_id)
}

/// Everything is lost, and the same nodes found a cluster on the same addresses again.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cluster_founded_again_on_the_same_addresses_is_another_one() {
    let mut cluster = Cluster::start(3).await;
    let before = registered(&cluster).await;
    cluster.stop_all().await;
    for id in 1..=3 {
        cluster.wipe(id);
    }
    for id in 1..=3 {
        cluster.restart(id).await;
    }
    cluster.settled().await;
    let after = registered(&cluster).await;
    assert_ne!(before.0, after.0, "each founding draws an id");
    assert_ne!(before.1 >> 32, after.1 >> 32, "ids of leases do not meet");

    // All nodes are of that one, and stay so.
    cluster.stop_all().await;
    for id in 1..=3 {
        cluster.restart(id).await;
    }
    cluster.settled().await;
    for id in 1..=3 {
        let status = cluster.own_status(id).await.expect("a status");
        assert_eq!(status.header.expect("a header").cluster_id, after.0, "node {id}");
    }
}

/// Of five founders, three could be a quorum that has lost its memory with the two that are away:
/// they wait, and the fourth makes the cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn three_of_five_founders_wait_and_four_found() {
    let mut cluster = Cluster::prepare_founders(5).await;
    for id in 1..=3 {
        cluster.restart(id).await;
    }
    for id in 1..=3 {
        eventually("it has heard the two others, and waits", || async {
            let status = cluster.own_status(id).await?;
            let reason = status.condition.as_ref()?.reason.clone();
            assert_eq!(status.header?.cluster_id, 0, "node {id} has founded a cluster: {reason}");
            let (_, silent) = reason.split_once("start ")?;
            let [three, four, five] =
                [3, 4, 5].map(|other| silent.contains(&format!("node {other} at ")));
            (four && five && !three && silent.matches("node ").count() == 2).then_some(())
        })
        .await;
    }
    cluster.restart(4).await;
    assert!((1..=4).contains(&cluster.leader().await));
    registered(&cluster).await;
    // The fifth is let in: it is a founder, too.
    cluster.restart(5).await;
    cluster.settled().await;
    assert_eq!(cluster.own_status(5).await.expect("a status").instances, 1);
}

/// The machines of replaced founders are repaired: they boot with empty directories and their old
/// flags.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn replaced_founders_that_come_back_empty_found_nothing() {
    let mut cluster = Cluster::start_with(3, seldom_by_silence()).await;
    let (cluster_id, _) = registered(&cluster).await;
    for (old_id, new_id) in [(1, 4), (2, 5)] {
        cluster.add_waiting(new_id).await;
        let peer_address = cluster.peer_address(new_id).to_owned();
        let replace = ReplaceNodeRequest { old_id, new_id, peer_address };
        cluster.admin(3).replace_node(replace).await.expect("a replacement");
    }
    cluster.stop(1).await;
    cluster.stop(2).await;
    let leader = cluster.leader_of(&[3, 4, 5]).await;
    let status = cluster.own_status(leader).await.unwrap();
    let term = status.header.unwrap().term;
    for id in [1, 2] {
        cluster.wipe(id);
        cluster.restart(id).await;
    }
    for id in [1, 2] {
        let why = cluster.ended(id).await.to_string();
        assert!(why.contains(&format!("cluster {cluster_id:016x}")), "{why}");
        assert!(why.contains("--join") && why.contains(cluster.client_address(3)), "{why}");
    }
    let status = cluster.own_status(leader).await.unwrap();
    let header = status.header.unwrap();
    assert_eq!((header.term, header.leader_id), (term, leader), "the leader and its term stay");
    assert_eq!(status.instances, 1);
}

/// Founders lose their disks before they have reported where clients reach them: that they are
/// known would show that they have run before. Node 2 is left, and stands for election later than
/// the two would.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn founders_that_come_back_empty_and_untold_found_no_second_cluster() {
    let mut cluster = Cluster::prepare_founders(3).await;
    for id in [1, 3] {
        // As in the membership that the founders begin with: nothing to report.
        cluster.config_mut(id).advertise = Some(String::new());
    }
    for id in 1..=3 {
        cluster.restart(id).await;
    }
    cluster.leader().await;
    eventually("node 1 serves", || async { cluster.own_status(1).await?.header }).await;
    cluster.stop(3).await;
    cluster.leader().await;
    let (cluster_id, _) = registered(&cluster).await;
    cluster.stop_all().await;
    for id in [1, 3] {
        cluster.wipe(id);
        cluster.config_mut(id).advertise = None;
    }
    let tunables = &mut cluster.config_mut(2).tunables;
    (tunables.election_timeout_min_ms, tunables.election_timeout_max_ms) = (4_000, 4_500);
    for id in [2, 1, 3] {
        cluster.restart(id).await;
    }
    cluster.settled().await;
    for id in 1..=3 {
        let status = cluster.own_status(id).await.expect("a status");
        assert_eq!(status.header.expect("a header").cluster_id, cluster_id, "node {id}");
        assert_eq!(status.instances, 1, "node {id}");
    }
}

/// A call of a node that names itself.
pub(crate) fn from<T>(message: T, cluster_id: u64, sender: u64, target: u64) -> Request<T> {
    let mut request = Request::new(message);
    for (name, value) in [
        ("quorate-cluster-id", format!("{cluster_id:016x}")),
        ("quorate-node-id", sender.to_string()),
        ("quorate-target-id", target.to_string()),
    ] {
        request.metadata_mut().insert(name, value.parse().unwrap());
    }
    request
}

pub(crate) async fn peer(cluster: &Cluster, id: u64) -> PeerClient<Channel> {
    PeerClient::connect(format!("http://{}", cluster.peer_address(id))).await.unwrap()
}

/// The largest number as the log has it.
const LARGEST: [u8; 10] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];

/// A vote of the largest term for this node, in an election, by an empty log.
fn largest_vote(node: u64) -> VoteRequest {
    ballot(vote(u64::MAX, node, false), None)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn strangers_and_absurd_terms_are_refused_by_name() {
    let cluster = Cluster::start_with(3, seldom_by_silence()).await;
    let (cluster_id, _) = registered(&cluster).await;
    let leader = cluster.leader().await;
    let term = cluster.own_status(leader).await.unwrap().header.unwrap().term;
    for target in 1..=3 {
        let mut peer = peer(&cluster, target).await;
        let member = target % 3 + 1;
        for (cluster_id, sender, speaks_for, why) in [
            (0, 99, 99, "not of 0000000000000000"),
            (cluster_id ^ 1, member, member, "this is a node of cluster"),
            (cluster_id, 99, 99, "node 99 is refused"),
            (cluster_id, member, 99, "it speaks for node 99"),
            (cluster_id, member, member, "it claims term 18446744073709551615"),
        ] {
            let vote = || from(largest_vote(speaks_for), cluster_id, sender, target);
            assert_refused(peer.vote(vote()).await, Code::FailedPrecondition, &[why]);
            assert_refused(peer.pre_vote(vote()).await, Code::FailedPrecondition, &[why]);
        }
        // Of a member that says it leads.
        let (leads, why) = (vote(u64::MAX, member, true), ["it claims term 18446744073709551615"]);
        let sent = from(append(leads, None, &[]), cluster_id, member, target);
        assert_refused(peer.append(sent).await, Code::FailedPrecondition, &why);
        let chunks = tokio_stream::iter(snapshot(leads, b"it is not looked at"));
        let sent = from(chunks, cluster_id, member, target);
        assert_refused(peer.install_snapshot(sent).await, Code::FailedPrecondition, &why);
        let transfer = TransferRequest { leader: Some(leads), to_id: target, last: None };
        for (sender, why) in [(member, why[0]), (99, "node 99 is refused: it is no member")] {
            let sent = from(transfer, cluster_id, sender, target);
            let refused = peer.transfer_leader(sent).await;
            assert_refused(refused, Code::FailedPrecondition, &[why]);
        }
    }
    let header = cluster.own_status(leader).await.unwrap().header.unwrap();
    assert_eq!((header.term, header.leader_id), (term, leader), "the leader and its term stay");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn forwarded_calls_are_checked_like_those_of_clients() {
    let cluster = Cluster::start(3).await;
    let (cluster_id, _) = registered(&cluster).await;
    let leader = cluster.leader().await;
    let (mut peer, member) = (peer(&cluster, leader).await, leader % 3 + 1);
    let own = |client_address: &str| {
        Call::Announce(AnnounceMember {
            id: member,
            peer_address: "a:1".to_owned(),
            client_address: client_address.to_owned(),
        })
    };
    let largest_grace = [&[1, 6][..], &LARGEST].concat();
    let largest_grace = || {
        let op = largest_grace.clone().into();
        Call::Write(Write { op, origin: 1, number: 1, done_below: 1, ..Write::default() })
    };
    let addresses_of_99 =
        AnnounceMember { id: 99, peer_address: "a:1".to_owned(), client_address: "a:1".to_owned() };
    let unknown = || Call::Write(Write { op: vec![1, 99].into(), ..Write::default() });
    let long_address = format!("{}:1", "a".repeat(300));
    let fine = || own("a:1");
    for (sender, call, code, why) in [
        (member, Some(largest_grace()), Code::InvalidArgument, "only a leader proposes this"),
        (
            member,
            Some(Call::Announce(addresses_of_99)),
            Code::FailedPrecondition,
            "the addresses of node 99",
        ),
        (member, Some(own("a")), Code::InvalidArgument, "client_address"),
        (
            member,
            Some(own(&long_address)),
            Code::InvalidArgument,
            "client_address = 302: at most 260",
        ),
        (member, None, Code::FailedPrecondition, "its sender is newer"),
        (member, Some(unknown()), Code::FailedPrecondition, "its sender is newer"),
        (99, Some(largest_grace()), Code::FailedPrecondition, "node 99 is refused"),
        (
            99,
            Some(Call::Remove(RemoveMember { id: member })),
            Code::FailedPrecondition,
            "node 99 is refused",
        ),
    ] {
        // Beside one that is no part of it.
        let calls = [Some(fine()), call].map(|call| LeaderCall { call }.encode_to_vec().into());
        let message = Forwarded { calls: calls.to_vec(), timeout_ms: 5_000 };
        let messages = tokio_stream::once(message);
        let answers = peer.forward(from(messages, cluster_id, sender, leader)).await;
        let answers = match answers {
            Ok(answers) => answers.into_inner().message().await.map(Option::unwrap),
            Err(status) => Err(status),
        };
        let refused = answers.map(|answers| {
            let [first, second] = answers.answers.try_into().expect("an answer to each");
            let read = |bytes: Bytes| LeaderAnswer::decode(bytes).unwrap().answer;
            let other = read(first);
            assert!(matches!(other, Some(leader_answer::Answer::Members(_))), "{other:?}");
            let Some(leader_answer::Answer::Failure(failure)) = read(second) else {
                panic!("{why}: it is done");
            };
            Status::new(Code::from_i32(failure.code), failure.message)
        });
        assert_refused::<()>(Err(refused.unwrap_or_else(|status| status)), code, &[why]);
    }
    assert_eq!(cluster.voters(leader).await, [1, 2, 3]);
}

/// The backup of another cluster, with a log position that this one does not have yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_snapshot_that_does_not_fit_changes_nothing() {
    let cluster = Cluster::start(3).await;
    let other = Cluster::start_another(7).await;
    let (cluster_id, _) = registered(&cluster).await;
    let mut backup = other.admin(7).backup(BackupRequest::default()).await.unwrap().into_inner();
    let leader = cluster.leader().await;
    let target = leader % 3 + 1;
    let mut file = Vec::new();
    while let Some(chunk) = backup.message().await.unwrap() {
        file.extend(chunk.data);
    }
    let whole = snapshot(vote(5, leader, true), snapshot_in(&file));
    let no_vote = whole.clone().map(|chunk| SnapshotChunk { vote: None, ..chunk });
    let mut peer = peer(&cluster, target).await;
    for (cluster_id, chunks, code, why) in [
        (0, &whole, Code::FailedPrecondition, "not of 0000000000000000"),
        (cluster_id, &whole, Code::FailedPrecondition, "is refused: its snapshot is"),
        (cluster_id, &no_vote, Code::InvalidArgument, "lacks a vote"),
    ] {
        let sent = from(tokio_stream::iter(chunks.clone()), cluster_id, leader, target);
        assert_refused(peer.install_snapshot(sent).await, code, &[why]);
    }
    assert_eq!(cluster.own_status(target).await.unwrap().instances, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_removed_node_that_is_back_says_so_and_disturbs_nobody() {
    let mut cluster = Cluster::start_with(3, seldom_by_silence()).await;
    registered(&cluster).await;
    let leader = cluster.leader().await;
    let (removed, stays) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    cluster.stop(removed).await;
    let remove = RemoveNodeRequest { id: removed };
    cluster.admin(leader).remove_node(remove).await.expect("a removal");
    let term = cluster.own_status(leader).await.unwrap().header.unwrap().term;
    cluster.restart(removed).await;
    let reason = says_removed(&cluster, removed).await.condition.unwrap().reason;
    assert!(reason.contains(cluster.client_address(stays)), "{reason}");
    let header = cluster.own_status(leader).await.unwrap().header.unwrap();
    assert_eq!((header.term, header.leader_id), (term, leader), "the leader and its term stay");
}
