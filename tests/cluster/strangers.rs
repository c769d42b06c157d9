//! What no peer can do to a node's log, whatever it says: messages that are written by hand.

use quorate_node::Tunables;
use quorate_proto::peer::v1::{AppendRequest, Ballot, LogId, SnapshotChunk, VoteRequest};
use quorate_proto::v1::{BackupRequest, TriggerSnapshotRequest};
use tonic::Code;

use super::calls::{assert_refused, fetch_of, ids, local, register, set_weight};
use super::failover::seldom_by_silence;
use super::founding::{from, peer};
use super::harness::{Cluster, eventually};
use super::impostor::Impostor;
use super::snapshots::snapshot_in;

/// A number as postcard has it.
fn number(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

/// The vote of a node for itself in an election, or as the leader.
pub(crate) fn vote(term: u64, node_id: u64, committed: bool) -> Ballot {
    Ballot { term, node_id, committed }
}

pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId { term, index }
}

/// Of a candidate with this log.
pub(crate) fn ballot(vote: Ballot, last: Option<LogId>) -> VoteRequest {
    VoteRequest { vote: Some(vote), last, is_transfer: false }
}

/// An append of a leader, of entries that say nothing.
pub(crate) fn append(vote: Ballot, previous: Option<LogId>, entries: &[LogId]) -> AppendRequest {
    let blank = |id: &LogId| [number(id.term), number(id.index), vec![0]].concat();
    let list = entries.iter().flat_map(blank);
    let list = [1].into_iter().chain(number(entries.len() as u64)).chain(list);
    let entries = if entries.is_empty() { Vec::new() } else { list.collect() };
    AppendRequest { vote: Some(vote), previous, committed: None, entries: entries.into() }
}

/// The id of a cluster of three with an instance, its leader and another node, and that one's term
/// and last applied entry.
async fn of_three(tunables: Tunables) -> (Cluster, u64, [u64; 2], [u64; 2]) {
    let cluster = Cluster::start_with(3, tunables).await;
    let leader = cluster.leader().await;
    let target = leader % 3 + 1;
    let registered = register(&mut cluster.registry(target), "web", "a").await;
    let cluster_id = registered.header.expect("a header").cluster_id;
    let status = cluster.own_status(target).await.expect("a status");
    let at = [status.header.expect("a header").term, status.members[0].applied_index];
    (cluster, cluster_id, [leader, target], at)
}

/// The leader leads on in its term, and the node has what it had.
async fn nothing_happened(
    cluster: &Cluster,
    [leader, target]: [u64; 2],
    [term, applied]: [u64; 2],
) {
    let header = cluster.own_status(target).await.unwrap().header.unwrap();
    assert_eq!((header.term, header.leader_id), (term, leader), "the leader and its term stay");
    let own = cluster.own_status(target).await.unwrap().members[0].clone();
    assert!(own.last_log_index >= applied, "{own:?}");
    let found = cluster.registry(target).fetch(local(fetch_of(&["web"]))).await.unwrap();
    assert_eq!(ids(&found.into_inner()), ["a"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_gets_no_vote_however_modest_its_term() {
    let (cluster, cluster_id, nodes, at) = of_three(seldom_by_silence()).await;
    let mut peer = peer(&cluster, nodes[1]).await;
    // No entries, and as many as the node has.
    for last in [None, Some(log_id(at[0], at[1]))] {
        let stands = ballot(vote(at[0] + 1, 99, false), last);
        let ballot = || from(stands, cluster_id, 99, nodes[1]);
        let why = ["node 99 is refused: it is no voter"];
        assert_refused(peer.vote(ballot()).await, Code::FailedPrecondition, &why);
        assert_refused(peer.pre_vote(ballot()).await, Code::FailedPrecondition, &why);
    }
    nothing_happened(&cluster, nodes, at).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_is_committed_is_cut_whatever_a_peer_says() {
    let (mut cluster, cluster_id, nodes, at) = of_three(seldom_by_silence()).await;
    let ([term, applied], target) = (at, nodes[1]);
    let mut peer = peer(&cluster, target).await;
    let sender = 6 - nodes[0] - target;
    let leads = vote(term + 1, sender, true);
    let why = format!("node {sender} is refused: it has another entry at ");
    for append in [
        append(leads, Some(log_id(term + 1, applied)), &[]),
        append(leads, Some(log_id(term, applied - 1)), &[log_id(term + 1, applied)]),
        append(leads, None, &[log_id(term + 1, 0)]),
    ] {
        let sent = from(append.clone(), cluster_id, sender, target);
        assert_refused(peer.append(sent).await, Code::FailedPrecondition, &[&why]);
        let sent = from(tokio_stream::once(append), cluster_id, sender, target);
        let answers = peer.append_stream(sent).await.expect("a stream");
        let answer = answers.into_inner().message().await;
        assert_eq!(answer.expect("it ends"), None, "it is not answered");
    }
    nothing_happened(&cluster, nodes, at).await;

    // Of the entries that a snapshot has, only the order is known.
    let taken = cluster.admin(target).trigger_snapshot(TriggerSnapshotRequest {}).await;
    let index = taken.expect("a snapshot").into_inner().snapshot_index;
    eventually("the log behind it is purged", || async {
        (cluster.own_status(target).await?.members[0].purged_index >= index).then_some(())
    })
    .await;
    let append = append(leads, Some(log_id(term + 1, 1)), &[]);
    let sent = from(append, cluster_id, sender, target);
    let why = format!("{why}1 ");
    assert_refused(peer.append(sent).await, Code::FailedPrecondition, &[&why]);
    nothing_happened(&cluster, nodes, at).await;
    cluster.stop(target).await;
    cluster.restart(target).await;
    cluster.settled().await;
    let own = cluster.own_status(target).await.unwrap().members[0].clone();
    assert!(own.last_log_index >= applied, "also on its disk: {own:?}");
}

/// Raft takes it for granted that they do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_do_not_follow_each_other_are_not_taken() {
    let (cluster, cluster_id, nodes, at) = of_three(seldom_by_silence()).await;
    let ([term, applied], [leader, target]) = (at, nodes);
    let mut peer = peer(&cluster, target).await;
    let leads = vote(term, leader, true);
    // Far behind all that it has, so that no other look at it says no.
    let previous = Some(log_id(term, applied + 1_000));
    let why = format!("node {leader} is refused: its entries do not follow each other");
    for entries in [&[applied + 1_002][..], &[applied + 1_001, applied + 1_003]] {
        let entries: Vec<_> = entries.iter().map(|index| log_id(term, *index)).collect();
        let sent = from(append(leads, previous, &entries), cluster_id, leader, target);
        assert_refused(peer.append(sent).await, Code::FailedPrecondition, &[&why]);
    }
    nothing_happened(&cluster, nodes, at).await;
}

/// The snapshot file in a backup of a node.
pub(crate) async fn backup(cluster: &Cluster, id: u64) -> Vec<u8> {
    let mut backup = cluster.admin(id).backup(BackupRequest::default()).await.unwrap().into_inner();
    let mut file = Vec::new();
    while let Some(chunk) = backup.message().await.unwrap() {
        file.extend(chunk.data);
    }
    snapshot_in(&file).to_vec()
}

/// A snapshot as its leader sends it.
pub(crate) fn snapshot(vote: Ballot, file: &[u8]) -> [SnapshotChunk; 2] {
    [(Some(vote), Vec::new()), (None, file.to_vec())]
        .map(|(vote, data)| SnapshotChunk { vote, data: data.into() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_the_past_or_of_another_cluster_replaces_nothing() {
    let (mut cluster, cluster_id, nodes, at) = of_three(seldom_by_silence()).await;
    let [leader, target] = nodes;
    let old = backup(&cluster, leader).await;
    // Of a later term than any here, so that it would replace everything.
    let mut other = Cluster::start_another(7).await;
    while other.own_status(7).await.unwrap().header.unwrap().term <= at[0] {
        other.stop(7).await;
        other.restart(7).await;
        other.settled().await;
    }
    for weight in 1..30 {
        register(&mut other.registry(7), "web", "stranger").await;
        set_weight(&mut other.registry(7), "web", "stranger", weight).await;
    }
    let strange = backup(&other, 7).await;
    set_weight(&mut cluster.registry(target), "web", "a", 7).await;
    let mut peer = peer(&cluster, target).await;
    for (file, why) in [
        (&old, "its snapshot is older than what is committed"),
        (&strange, "its snapshot is of cluster"),
    ] {
        let chunks = snapshot(vote(at[0] + 9, leader, true), file);
        let sent = from(tokio_stream::iter(chunks), cluster_id, leader, target);
        let why = format!("node {leader} is refused: {why}");
        assert_refused(peer.install_snapshot(sent).await, Code::FailedPrecondition, &[&why]);
    }
    nothing_happened(&cluster, nodes, at).await;
    // From the leader that it follows, it is one whose answers to appends were lost.
    let chunks = snapshot(vote(at[0], leader, true), &old);
    let sent = from(tokio_stream::iter(chunks), cluster_id, leader, target);
    let answer = peer.install_snapshot(sent).await.expect("it has all of it").into_inner();
    assert_eq!(answer.vote, Some(vote(at[0], leader, true)));
    nothing_happened(&cluster, nodes, at).await;
    cluster.stop(target).await;
    cluster.restart(target).await;
    cluster.settled().await;
}

/// An impostor that listens where a member was answers each message with the largest term.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absurd_term_in_an_answer_ends_no_lead() {
    let (mut cluster, _, nodes, at) = of_three(Tunables::default()).await;
    let [leader, gone] = nodes;
    cluster.stop(gone).await;
    let impostor = Impostor::start(cluster.peer_address(gone), vote(u64::MAX, gone, false)).await;
    eventually("it is asked, and asked again", || async { (impostor.appends() > 3).then_some(()) })
        .await;
    register(&mut cluster.registry(leader), "web", "b").await;
    // A candidate asks it, too.
    cluster.stop(leader).await;
    cluster.restart(leader).await;
    register(&mut cluster.registry(leader), "web", "c").await;
    assert!(impostor.votes() > 0, "it was not asked for its vote");
    let term = cluster.own_status(leader).await.unwrap().header.unwrap().term;
    assert!(term < at[0] + 100, "{term}");
}
