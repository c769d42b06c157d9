//! Leaders that are not to be deposed. (How soon a leader that died is replaced is tested with real
//! processes.)

use std::time::{Duration, Instant};

use quorate_node::Tunables;

use super::calls::register;
use super::harness::{Cluster, eventually};

/// A follower that suspects its leader asks for so many connections to it, to see one refused
/// (`PROBES` in quorate-node's upkeep/failover.rs).
const PROBES: u64 = 10;

/// How long the answers of a voter are on their way, of the 300 ms that a leader that stops has for
/// each.
const ANSWERS_TAKE: Duration = Duration::from_millis(200);

/// Where a busy machine begins a stop late, no answer arrives: it is not late each time.
const ROUNDS: usize = 8;

/// A cluster in which only a silence of 9 s elects another leader: longer than a busy machine lets
/// a leader wait for its turn. The first one is there soon all the same, if need be by its second
/// election.
pub(crate) fn seldom_by_silence() -> Tunables {
    Tunables {
        election_timeout_min_ms: 4_000,
        election_timeout_max_ms: 5_000,
        ..Tunables::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_connections_to_a_leader_that_lives_depose_nobody() {
    let cluster = Cluster::start_cuttable(3, seldom_by_silence()).await;
    let leader = cluster.leader().await;
    let term = cluster.own_status(leader).await.unwrap().header.unwrap().term;
    let followers: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
    for round in 0..4 {
        // So that the leader has connections to break.
        register(&mut cluster.registry(leader), "web", &format!("r{round}")).await;
        // One at a time: the other one could vote for it.
        let follower = followers[round % 2];
        let before = [leader, follower].map(|id| cluster.dialled(id));
        cluster.cut_off(follower);
        // Both notice: the leader asks for another connection, and the follower looks whether the
        // leader lives, to the end.
        eventually("the leader is suspected, and lives", || async {
            let dialled = [leader, follower].map(|id| cluster.dialled(id));
            (dialled[0] >= before[0] + PROBES && dialled[1] > before[1]).then_some(())
        })
        .await;
        cluster.reconnect(follower);
    }
    register(&mut cluster.registry(followers[0]), "web", "last").await;
    assert_eq!(cluster.leader().await, leader);
    assert_eq!(cluster.own_status(leader).await.unwrap().header.unwrap().term, term);
}

/// The one that is to lead next may go away before it is asked whether it can. However long
/// elections take, that is looked at for a part of the time that a stop has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stops_waits_for_no_successor_longer_than_a_stop_may_take() {
    let tunables = seldom_by_silence();
    let grace = Duration::from_millis(tunables.shutdown_grace_ms);
    for round in 1.. {
        let mut cluster = Cluster::start_cuttable(2, tunables.clone()).await;
        let (leader, other) = (cluster.leader().await, cluster.follower().await);
        cluster.delay(other, Duration::ZERO, ANSWERS_TAKE);
        // Its first answer arrives, and no second one.
        cluster.cut_off_after(other, ANSWERS_TAKE * 3 / 2);
        let begun = Instant::now();
        cluster.stop(leader).await;
        let took = begun.elapsed();
        eprintln!("measured: round {round}: a leader whose successor goes away stops in {took:?}");
        // It waited for the second one. Else the first did not arrive, or both did.
        if took >= grace / 4 {
            return;
        }
        assert!(round < ROUNDS, "no successor was waited for; the last stop took {took:?}");
    }
}
