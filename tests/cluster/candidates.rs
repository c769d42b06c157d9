//! Which candidate goes on when several stand for election at the same moment, and a leader whose
//! successor cannot win.

use std::time::{Duration, Instant};

use quorate_node::Tunables;
use quorate_proto::v1::TransferLeaderRequest;
use tonic::Code;

use super::calls::{assert_refused, in_time, register};
use super::failover::seldom_by_silence;
use super::founding::{from, peer};
use super::harness::{Cluster, eventually};
use super::strangers::{ballot, log_id, vote};

/// Node 1 does not answer in time where the machine is busy; that does not happen each time.
const ROUNDS: usize = 8;

/// Each would vote for itself, again and again: `PeerService::goes_before`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_equal_candidates_the_one_with_the_higher_id_goes_on() {
    let mut cluster = Cluster::start_freezable(3).await;
    eventually("another one than node 2 leads", || async {
        if cluster.leader().await == 2 {
            let request = TransferLeaderRequest { to_id: 3 };
            let _seen_by_who_leads = cluster.admin(2).transfer_leader(request).await;
        }
        (cluster.leader().await != 2).then_some(())
    })
    .await;
    let registered = register(&mut cluster.registry(2), "web", "a").await;
    let cluster_id = registered.header.expect("a header").cluster_id;
    // The one between two others misses them, and stands again and again.
    cluster.freeze(1);
    cluster.freeze(3);
    let status = cluster.own_status(2).await.expect("a status");
    let (term, last) = (status.header.expect("a header").term, status.members[0].last_log_index);
    let peer = peer(&cluster, 2).await;
    let ask = async |sender, last| {
        let stands = ballot(vote(term + 1, sender, false), Some(log_id(term, last)));
        let answer = peer.clone().pre_vote(from(stands, cluster_id, sender, 2)).await;
        answer.expect("an answer").into_inner().granted
    };
    eventually("it misses its leader", || async { ask(3, last).await.then_some(()) }).await;
    eventually("it has just asked itself", || async { (!ask(1, last).await).then_some(()) }).await;
    assert!(ask(3, last).await, "the higher id goes on");
    assert!(ask(1, last + 1).await, "so does the one with more of the log");
    cluster.thaw(1);
    cluster.thaw(3);
    let won = cluster.leader().await;
    assert!((1..=3).contains(&won));
}

/// Node 2 of two leads, and hears node 1, which does not hear it.
async fn unheard_leader(tunables: Tunables) -> Cluster {
    let cluster = Cluster::start_cuttable(2, tunables).await;
    eventually("node 2 leads", || async {
        let handed = cluster.admin(1).transfer_leader(TransferLeaderRequest { to_id: 2 }).await;
        (handed.is_ok() && cluster.leader().await == 2).then_some(())
    })
    .await;
    cluster.cut_off(2);
    cluster
}

/// It takes no writes while it waits for the other one. That one is well, by all that it says, and
/// is not heard where it asks for a vote.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_successor_cannot_win_goes_on() {
    let cluster = unheard_leader(Tunables::default()).await;
    let request = in_time(TransferLeaderRequest { to_id: 1 });
    let refused = cluster.admin(2).transfer_leader(request).await;
    assert_refused(refused, Code::FailedPrecondition, &["node 1 cannot lead now", "goes on"]);
    register(&mut cluster.registry(2), "web", "a").await;
}

/// As where all stop at the same time. To win, the other one may take longer than the whole grace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_successor_cannot_win_stops_in_order() {
    let tunables = seldom_by_silence();
    let grace = Duration::from_millis(tunables.shutdown_grace_ms);
    let longest = tunables.election_timeout_min_ms + tunables.election_timeout_max_ms;
    assert!(2 * Duration::from_millis(longest) > grace);
    for round in 1.. {
        let mut cluster = unheard_leader(tunables.clone()).await;
        let begun = Instant::now();
        cluster.stop(2).await;
        let took = begun.elapsed();
        eprintln!("measured: round {round}: a leader whose successor cannot win stops in {took:?}");
        // Node 1 was asked to lead. Else it did not answer before, and there was nothing to see.
        if took >= grace / 4 {
            return;
        }
        assert!(round < ROUNDS, "node 1 was never asked to lead; the last stop took {took:?}");
    }
}
