//! Nodes that are started on older copies of their directories: what they had acknowledged is not
//! forgotten, and they catch up.

use std::fs;
use std::path::Path;
use std::time::Duration;

use quorate_node::Tunables;
use quorate_proto::v1::TransferLeaderRequest;
use tempfile::TempDir;
use tokio::time::Instant;

use super::calls::{fetch_of, in_time, register, with_timeout};
use super::failover::seldom_by_silence;
use super::founding::{from, peer};
use super::harness::{Cluster, eventually};
use super::strangers::{ballot, vote};

const COUNT: usize = 10;

/// Registrations that a linearizable read of this node finds; `None`: it does not answer.
async fn found(cluster: &Cluster, node: u64) -> Option<usize> {
    let fetch = with_timeout(fetch_of(&["web"]), Duration::from_millis(500));
    match cluster.registry(node).fetch(fetch).await {
        Ok(answer) => {
            Some(answer.into_inner().services.first().map_or(0, |web| web.instances.len()))
        }
        Err(status) if status.code() == tonic::Code::NotFound => Some(0),
        Err(_) => None,
    }
}

async fn recovering(cluster: &Cluster, node: u64) -> Option<String> {
    Some(cluster.own_status(node).await?.members.first()?.recovering.clone())
}

/// A stopped node gets its directory back from a copy: as new files, or, as from an image of the
/// disk, with the old ones brought back.
fn roll_back(cluster: &Cluster, node: u64, copy: &TempDir, as_image: bool) {
    let dir = cluster.data_dir(node);
    if !as_image {
        fs::remove_dir_all(dir).unwrap();
    }
    copy_over(copy.path(), dir);
}

/// Makes a directory the same as another; a file that is there keeps its place.
fn copy_over(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    let files = |dir: &Path| fs::read_dir(dir).unwrap().map(|file| file.unwrap());
    for file in files(to).filter(|file| !from.join(file.file_name()).exists()) {
        fs::remove_file(file.path()).unwrap();
    }
    for file in files(from) {
        let target = to.join(file.file_name());
        match file.path().is_dir() {
            true => copy_over(&file.path(), &target),
            false => drop(fs::copy(file.path(), target).unwrap()),
        }
    }
}

async fn wait_for_all(cluster: &Cluster) {
    for node in cluster.ids() {
        eventually("all registrations are there", || async {
            (found(cluster, node).await == Some(COUNT)).then_some(())
        })
        .await;
        eventually("the node votes again", || async {
            recovering(cluster, node).await?.is_empty().then_some(())
        })
        .await;
    }
}

async fn transfer(cluster: &Cluster, to: u64) {
    if cluster.leader().await != to {
        let request = in_time(TransferLeaderRequest { to_id: to });
        cluster.admin(cluster.ids()[0]).transfer_leader(request).await.unwrap();
        eventually("it leads", || async { (cluster.leader().await == to).then_some(()) }).await;
    }
}

/// Three nodes, of which the first has a copy of its directory from before `COUNT` registrations,
/// which 1 and 2 acknowledged while 3 was down, and node 2 led. Nodes 1 and 3 are stopped.
async fn cluster_with_copy(tunables: Tunables) -> (Cluster, TempDir) {
    let mut cluster = Cluster::start_with(3, tunables).await;
    cluster.stop(1).await;
    let copy = tempfile::tempdir().unwrap();
    copy_over(cluster.data_dir(1), copy.path());
    cluster.restart(1).await;
    cluster.settled().await;
    cluster.stop(3).await;
    transfer(&cluster, 2).await;
    for at in 0..COUNT {
        register(&mut cluster.registry(2), "web", &format!("i{at}")).await;
    }
    cluster.stop(1).await;
    (cluster, copy)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_forgets_nothing_together_with_a_node_that_was_away() {
    let (mut cluster, copy) = cluster_with_copy(Tunables::default()).await;
    cluster.stop(2).await;
    roll_back(&cluster, 1, &copy, false);
    cluster.restart(1).await;
    cluster.restart(3).await;
    // Node 3 has answered; it was not there.
    eventually("the node waits for another one to say how far it was", || async {
        let why = recovering(&cluster, 1).await?;
        (why.contains("copy") && why.contains("until 1 more")).then_some(())
    })
    .await;
    // Several elections long: they take 0.6 s.
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        for node in [1, 3] {
            let found = found(&cluster, node).await;
            assert!(found.is_none_or(|found| found == COUNT), "node {node} forgot: {found:?}");
        }
    }
    cluster.restart(2).await;
    wait_for_all(&cluster).await;
}

/// Without a word and until the next election it would wait, while its leader takes it for one that
/// has everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_catches_up_with_a_leader_that_lives() {
    let (mut cluster, copy) = cluster_with_copy(seldom_by_silence()).await;
    cluster.restart(3).await;
    let term = |status: quorate_proto::v1::StatusResponse| status.members[0].term;
    let before = term(cluster.own_status(2).await.unwrap());
    roll_back(&cluster, 1, &copy, false);
    let begun = Instant::now();
    cluster.restart(1).await;
    wait_for_all(&cluster).await;
    eprintln!("measured: caught up within {:?}", begun.elapsed());
    let after = term(cluster.own_status(2).await.unwrap());
    assert_eq!(before, after, "without another election");
}

/// Nothing in the directory shows that it is older; node 2 knows, and is enough to go on with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_of_the_disk_catches_up_with_the_only_one_that_knows() {
    let (mut cluster, copy) = cluster_with_copy(Tunables::default()).await;
    roll_back(&cluster, 1, &copy, true);
    cluster.restart(1).await;
    wait_for_all(&cluster).await;
}

/// It lost nothing but its own vote, which nobody gave it: the leader of the term before goes on,
/// and is none that it may follow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_forgot_that_it_stood_for_election_is_back_soon() {
    let mut cluster = Cluster::start(3).await;
    let registered = register(&mut cluster.registry(1), "web", "a").await;
    let cluster_id = registered.header.unwrap().cluster_id;
    let gone = cluster.follower().await;
    cluster.stop(gone).await;
    let rest: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != gone).collect();
    let leader = cluster.leader_of(&rest).await;
    let term = cluster.own_status(leader).await.unwrap().members[0].term;
    let stands = from(ballot(vote(term + 1, gone, false), None), cluster_id, gone, leader);
    let answer = peer(&cluster, leader).await.vote(stands).await.unwrap().into_inner();
    assert!(!answer.granted, "{answer:?}");
    cluster.restart(gone).await;
    eventually("it follows a later leader", || async {
        let status = cluster.own_status(gone).await?.members.first()?.clone();
        (status.term > term && status.recovering.is_empty()).then_some(())
    })
    .await;
    assert_eq!(found(&cluster, gone).await, Some(1));
}
