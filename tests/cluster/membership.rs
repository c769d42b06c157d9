//! Members come and go while services work: none of their calls may notice.

use std::time::{Duration, Instant};

use quorate_node::Tunables;
use quorate_proto::v1::{
    AddNodeRequest, FetchRequest, ListServicesRequest, MemberRole, NodeState, RemoveNodeRequest,
    TransferLeaderRequest,
};
use tokio::time::{sleep, timeout};
use tonic::Code;

use super::calls::{
    assert_refused, assert_refused_late, fetch_all, fetch_of, ids, in_time, local, register,
    registration, spec, with_timeout,
};
use super::harness::{Cluster, SOON, eventually};
use super::load::Load;
use super::metrics::metrics;
use super::operators::SILENCE;
use super::stream::{Stream, subscribe_to_prefix};

/// What each message to a node takes, and each of its answers: so long is it behind the others.
const BEHIND: Duration = Duration::from_millis(100);

/// Longer than a leader waits for one answer of whoever is to lead next (0.3 s).
const STANDS_STILL: Duration = Duration::from_millis(700);

/// On a busy machine, nobody may answer a leader that stops in time, and the others elect one when
/// it is gone. Not each time.
const STOPS: u32 = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_founders_are_replaced_under_load_and_no_call_fails() {
    // S1.2, S1.3, S0.13
    let mut cluster = Cluster::start(3).await;
    let admin = cluster.client().await.admin();
    let load = Load::start(&cluster).await;
    load.goes_on().await;

    cluster.add_waiting(4).await;
    let members = admin.add_node(4, cluster.peer_address(4), false).await.expect("node 4 is added");
    assert_eq!(members.iter().map(|m| m.id).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert!(members.iter().all(|member| member.role() == MemberRole::Voter));
    load.goes_on().await;

    cluster.add_joining(5, false).await;
    eventually("node 5 votes", || async {
        (cluster.voters(1).await == [1, 2, 3, 4, 5]).then_some(())
    })
    .await;
    load.goes_on().await;

    for to in [2, 5, 1] {
        let leader = admin.transfer_leader(Some(to)).await.expect("a transfer");
        assert_eq!(leader, to);
        load.goes_on().await;
    }

    cluster.add_waiting(6).await;
    let members =
        admin.replace_node(2, 6, cluster.peer_address(6)).await.expect("node 2 is replaced");
    assert_eq!(members.iter().map(|m| m.id).collect::<Vec<_>>(), [1, 3, 4, 5, 6]);
    load.goes_on().await;
    cluster.stop(2).await;

    let members = admin.remove_node(3).await.expect("node 3 is removed");
    assert_eq!(members.iter().map(|m| m.id).collect::<Vec<_>>(), [1, 4, 5, 6]);
    load.goes_on().await;
    cluster.stop(3).await;

    // The last founder, and the leader.
    admin.transfer_leader(Some(1)).await.expect("a transfer");
    let members = admin.remove_node(1).await.expect("the leader is removed");
    assert_eq!(members.iter().map(|m| m.id).collect::<Vec<_>>(), [4, 5, 6]);
    load.goes_on().await;
    cluster.stop(1).await;
    load.goes_on().await;

    for _ in 0..2 {
        admin.transfer_leader(None).await.expect("a transfer");
        load.goes_on().await;
    }
    load.finish().await;
}

/// Of those that answer, and not the one with the highest id, which is behind here all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lead_goes_to_the_voter_that_is_furthest_along() {
    let cluster = Cluster::start_cuttable(3, Tunables::default()).await;
    let admin = cluster.client().await.admin();
    let load = Load::start(&cluster).await;
    cluster.delay(3, BEHIND, BEHIND);
    // On a busy machine, the other one may not answer in time, or not lead in time (0).
    let mut next = Vec::new();
    let right = |next: &[u64]| next.iter().filter(|id| **id == 2).count();
    while right(&next) < 3 && next.len() < 7 {
        admin.transfer_leader(Some(1)).await.expect("a transfer");
        load.goes_on().await;
        next.push(admin.transfer_leader(None).await.unwrap_or(0));
    }
    assert_eq!(right(&next), 3, "{next:?}");
    cluster.delay(3, Duration::ZERO, Duration::ZERO);
    for _ in 0..6 {
        load.goes_on().await;
    }
    load.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_observer_serves_and_never_votes() {
    let mut cluster = Cluster::start(3).await;
    let registered = register(&mut cluster.registry(1), "web", "a").await;
    cluster.add_joining(4, true).await;
    eventually("node 4 is a learner", || async {
        let members = cluster.members(1).await;
        let own = members.into_iter().find(|member| member.id == 4)?;
        assert_eq!(own.role(), MemberRole::Learner, "an observer is never promoted");
        (own.client_address == cluster.client_address(4)).then_some(())
    })
    .await;
    // It serves everything, writes too.
    let mut at_observer = cluster.registry(4);
    eventually("the observer serves", || async {
        let answer = cluster.registry(4).fetch(fetch_of(&["web"])).await.ok()?.into_inner();
        (ids(&answer) == ["a"]).then_some(())
    })
    .await;
    register(&mut at_observer, "web", "b").await;
    let mut stream = Stream::open(&at_observer, subscribe_to_prefix("")).await.unwrap();
    stream.reach(registered.header.unwrap().revision + 1).await;
    assert_eq!(stream.ids(), ["a", "b"]);

    let admin = cluster.client().await.admin();
    let refused = admin.transfer_leader(Some(4)).await.unwrap_err().to_string();
    assert!(refused.contains("FailedPrecondition") && refused.contains("node 4"), "{refused}");

    // Two of three voters gone: with the observer's vote there would be a quorum.
    let leader = cluster.leader().await;
    for id in (1..=3).filter(|id| *id != leader) {
        cluster.stop(id).await;
    }
    for id in [leader, 4] {
        let write = async || {
            let limit = Duration::from_secs(2);
            let request = with_timeout(registration(vec![spec("web", "c")]), limit);
            cluster.registry(id).register(request).await
        };
        assert_refused_late(write, Code::Unavailable, &[]).await;
    }
    cluster.restart(if leader == 1 { 2 } else { 1 }).await;
    cluster.leader().await;
    assert_eq!(cluster.voters(4).await, [1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_answers_no_reads() {
    // S0.13: not an empty list, and not yesterday's.
    let mut cluster = Cluster::start(4).await;
    let leader = cluster.leader().await;
    let gone = cluster.follower().await;
    register(&mut cluster.registry(leader), "web", "a").await;
    let mut at_gone = cluster.registry(gone);
    let (revision, _) = fetch_all(&mut at_gone).await;
    let mut stream = Stream::open(&at_gone, subscribe_to_prefix("")).await.unwrap();
    stream.reach(revision).await;

    let admin = cluster.client().await.admin();
    admin.remove_node(gone).await.expect("a removal");
    let register_more = register(&mut cluster.registry(leader), "web", "b").await;
    assert!(register_more.header.unwrap().revision > revision);

    let limit = Duration::from_secs(5);
    let fetch = at_gone.fetch(with_timeout(fetch_of(&["web"]), limit)).await;
    assert_refused(fetch, Code::Unavailable, &[]);
    let list = at_gone.list_services(with_timeout(ListServicesRequest::default(), limit)).await;
    assert_refused(list, Code::Unavailable, &[]);
    eventually("local reads are refused too", || async {
        let answer = cluster.registry(gone).fetch(local(FetchRequest::default())).await;
        match answer {
            Ok(answer) => {
                let answer = answer.into_inner();
                assert_eq!(ids(&answer), ["a"], "never an empty list");
                None
            }
            Err(status) => (status.code() == Code::Unavailable).then_some(()),
        }
    })
    .await;
    let opened = Stream::open(&at_gone, subscribe_to_prefix("")).await.map(|_| ());
    assert_refused(opened, Code::Unavailable, &[&format!("node {gone}")]);
    // The watcher that was there learns that nothing new will come.
    stream.until("the loss of the leader", |stream| stream.leader == Some(0)).await;
    assert!(stream.map.contains_key(&("web".to_owned(), "a".to_owned())), "and keeps its list");
    // One that does not go by itself is sent away.
    let ended = stream.end().await;
    assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
    assert!(ended.message().contains(&format!("node {gone} is not a member")), "{ended:?}");
    cluster.stop(gone).await;
    // It comes back with its old directory: still no member, still no list.
    cluster.restart(gone).await;
    let fetch = cluster.registry(gone).fetch(with_timeout(fetch_of(&["web"]), limit)).await;
    assert_refused(fetch, Code::Unavailable, &[]);
    eventually("local reads are refused again", || async {
        let answer = cluster.registry(gone).fetch(local(FetchRequest::default())).await;
        (answer.err()?.code() == Code::Unavailable).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_removal_loses_the_live_majority() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    let (dead, alive) = (others[0], others[1]);
    let admin = cluster.client().await.admin();
    cluster.stop(dead).await;
    // A node counts as alive until it was not heard of for twice the silence that a leader may
    // keep; it is told of one.
    eventually("the leader does not hear the dead node", || async {
        let now = metrics(&cluster, leader).await;
        (now["quorate_raft_voters_reachable"] == 2.0).then_some(())
    })
    .await;
    sleep(SILENCE).await;
    for id in [alive, leader] {
        let refused = admin.remove_node(id).await.unwrap_err().to_string();
        assert!(refused.contains("FailedPrecondition"), "{refused}");
        // Where the machine is busy, it has not heard of the living one either.
        let why = ["only 1 of 2 voters", "only 1 of 3 voters can be reached"];
        assert!(why.iter().any(|why| refused.contains(why)), "{refused}");
    }
    cluster.add_waiting(4).await;
    // Replacing a live one keeps two of three alive; replacing the dead one is what it is for.
    let address = cluster.peer_address(4);
    eventually("the dead node is replaced", || async {
        admin.replace_node(dead, 4, address).await.ok()
    })
    .await;
    register(&mut cluster.registry(4), "web", "a").await;

    eventually("two of two are left", || async { admin.remove_node(4).await.ok() }).await;
    cluster.stop(4).await;
    eventually("one of one is left", || async { admin.remove_node(alive).await.ok() }).await;
    let refused = admin.remove_node(leader).await.unwrap_err().to_string();
    assert!(refused.contains("FailedPrecondition") && refused.contains("last voter"), "{refused}");
    let refused = admin.transfer_leader(None).await.unwrap_err().to_string();
    assert!(refused.contains("FailedPrecondition") && refused.contains("no other"), "{refused}");
    register(&mut cluster.registry(leader), "web", "b").await;
    assert_eq!(fetch_all(&mut cluster.registry(leader)).await.1.len(), 2);
}

/// The nodes that say that they lead.
async fn leading(cluster: &Cluster) -> Vec<u64> {
    let mut leads = Vec::new();
    for id in cluster.ids() {
        let own = cluster.own_status(id).await.expect("a status").members[0].clone();
        leads.extend((own.state() == NodeState::Leader).then_some(id));
    }
    leads
}

/// A planned stop hands the lead over: writes through the others go on without an election timeout.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_leads_no_more_and_its_calls_are_answered() {
    let mut cluster = Cluster::start(3).await;
    let mut next = Vec::new();
    for _ in 0..STOPS {
        let leader = cluster.leader().await;
        let other = cluster.follower().await;
        let mut stream =
            Stream::open(&cluster.registry(leader), subscribe_to_prefix("")).await.unwrap();
        stream.snapshot().await;
        cluster.stop(leader).await;
        let status = stream.end().await;
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(status.message().contains("stopping"), "{status:?}");
        next = leading(&cluster).await;
        register(&mut cluster.registry(other), "web", "a").await;
        cluster.restart(leader).await;
        cluster.settled().await;
        let (_, map) = fetch_all(&mut cluster.registry(leader)).await;
        assert_eq!(map.len(), 1);
        if next.len() == 1 {
            break;
        }
    }
    assert_eq!(next.len(), 1, "another one leads before the old one is gone");
    cluster.stop_all().await;
}

/// A call that waits goes elsewhere, and does not wait for its deadline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_wait_at_a_node_that_stops_hear_that_it_is_stopping() {
    let mut cluster = Cluster::start_cuttable(3, Tunables::default()).await;
    let alone = cluster.follower().await;
    cluster.ids().into_iter().for_each(|id| cluster.cut_off(id));
    eventually("it has no leader", || async {
        let header = cluster.own_status(alone).await?.header?;
        (header.leader_id == 0).then_some(())
    })
    .await;
    let (mut reader, mut writer) = (cluster.registry(alone), cluster.registry(alone));
    let read = tokio::spawn(async move { reader.fetch(in_time(fetch_of(&["web"]))).await });
    let request = in_time(registration(vec![spec("web", "a")]));
    let write = tokio::spawn(async move { writer.register(request).await });
    eventually("both wait", || async {
        let condition = cluster.own_status(alone).await?.condition?;
        // With the call that asks.
        (condition.busiest_calls >= 3).then_some(())
    })
    .await;
    let begun = Instant::now();
    cluster.stop(alone).await;
    let took = begun.elapsed();
    let says = format!("node {alone} is stopping");
    assert_refused(read.await.unwrap(), Code::Unavailable, &[&says]);
    assert_refused(write.await.unwrap(), Code::Unavailable, &[&says]);
    // Half of its grace is for calls that go on.
    let grace = Duration::from_millis(Tunables::default().shutdown_grace_ms);
    assert!(took < grace / 2, "it waited for them: {took:?}");
}

/// Nobody answers its first question.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stops_while_the_others_stand_still_asks_them_again() {
    let mut cluster = Cluster::start_freezable(3).await;
    let mut next = Vec::new();
    for _ in 0..STOPS {
        let leader = cluster.leader().await;
        for id in cluster.ids().into_iter().filter(|id| *id != leader) {
            cluster.freeze_for(id, STANDS_STILL);
        }
        cluster.stop(leader).await;
        next = leading(&cluster).await;
        if next.len() == 1 {
            break;
        }
        cluster.restart(leader).await;
        cluster.settled().await;
    }
    assert_eq!(next.len(), 1, "it handed the lead over");
}

/// Its caller gives it more time than one question takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lead_goes_to_a_voter_that_answers_only_after_a_while() {
    let mut cluster = Cluster::start_freezable(3).await;
    for _ in 0..2 {
        let leader = cluster.leader().await;
        for id in cluster.ids().into_iter().filter(|id| *id != leader) {
            cluster.freeze_for(id, STANDS_STILL);
        }
        let request = in_time(TransferLeaderRequest { to_id: 0 });
        let answer = cluster.admin(leader).transfer_leader(request).await;
        let next = answer.expect("one of them answers").into_inner().leader_id;
        assert!(cluster.ids().contains(&next), "{next}");
    }
}

/// It may take for ever, and what stops that may be a change of the members.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_does_not_catch_up_holds_no_other_change_up() {
    let mut cluster = Cluster::start_cuttable(3, Tunables::default()).await;
    cluster.add_waiting(4).await;
    let address = cluster.peer_address(4).to_owned();
    // Nobody waits for it so long: the others have their turn before.
    let patience = SOON * 3;
    for is_taken_out in [true, false] {
        let leader = cluster.leader_of(&[1, 2, 3]).await;
        // It says its id, and gets no entry: by then the line is cut.
        cluster.delay(4, BEHIND * 5, Duration::ZERO);
        let request = AddNodeRequest { id: 4, peer_address: address.clone(), learner_only: false };
        let mut admin = cluster.admin(1);
        let adding = async move { admin.add_node(with_timeout(request, patience)).await };
        let adding = tokio::spawn(adding);
        eventually("node 4 is a learner", || async {
            cluster.members(leader).await.iter().any(|member| member.id == 4).then_some(())
        })
        .await;
        cluster.cut_off(4);
        cluster.delay(4, Duration::ZERO, Duration::ZERO);

        if is_taken_out {
            let removal = in_time(RemoveNodeRequest { id: 4 });
            cluster.admin(leader).remove_node(removal).await.expect("it is taken out");
            let ended = timeout(SOON, adding).await.expect("nobody waits for it any more");
            assert_refused(ended.unwrap(), Code::NotFound, &["node 4 is not a member"]);
            cluster.reconnect(4);
        } else {
            let to_id = if leader == 2 { 3 } else { 2 };
            let transfer = in_time(TransferLeaderRequest { to_id });
            cluster.admin(1).transfer_leader(transfer).await.expect("the lead changes");
            cluster.reconnect(4);
            adding.await.unwrap().expect("it is a voter");
        }
    }
    assert_eq!(cluster.voters(1).await, [1, 2, 3, 4]);
}
