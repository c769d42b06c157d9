//! What operators ask for by mistake: it is refused in words, and a refused change of members
//! leaves nothing behind.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use quorate_client::Client;
use quorate_proto::v1::{
    InstanceOverride, ListOverridesRequest, SetOverrideRequest, SetOverrideResponse,
};
use tonic::Code;

use super::calls::{assert_refused, register, timed};
use super::harness::{Cluster, eventually};
use super::metrics::metrics;

/// A leader may keep silent for this long (`silence_max` of the node, by its default settings).
pub(crate) const SILENCE: Duration = Duration::from_millis(560);

/// A refusal through the client crate.
#[track_caller]
fn assert_says<T: std::fmt::Debug>(result: Result<T, quorate_client::Error>, words: &[&str]) {
    let said = result.expect_err("it is refused").to_string();
    for word in words {
        assert!(said.contains(word), "no {word:?} in: {said}");
    }
}

async fn assert_members(cluster: &Cluster, expected: &[u64]) {
    for id in expected {
        let ids: Vec<u64> = cluster.members(*id).await.iter().map(|member| member.id).collect();
        assert_eq!(ids, expected, "as node {id} has them");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replacement_that_cannot_be_is_refused_and_leaves_nothing() {
    let mut cluster = Cluster::start(3).await;
    let admin = cluster.client().await.admin();
    let by_a_voter = admin.replace_node(3, 2, cluster.peer_address(2)).await;
    assert_says(by_a_voter, &["FailedPrecondition", "node 2 votes already", "cluster remove 3"]);
    assert_members(&cluster, &[1, 2, 3]).await;
    assert_eq!(cluster.voters(1).await, [1, 2, 3]);

    cluster.add_waiting(4).await;
    let of_nobody = admin.replace_node(77, 4, cluster.peer_address(4)).await;
    assert_says(of_nobody, &["NotFound", "node 77 is not a member", "cluster status"]);
    assert_members(&cluster, &[1, 2, 3]).await;

    // The same call again finds its work done.
    for _ in 0..2 {
        let members = admin.replace_node(3, 4, cluster.peer_address(4)).await.expect("replaced");
        assert_eq!(members.iter().map(|member| member.id).collect::<Vec<_>>(), [1, 2, 4]);
    }
    assert_says(admin.remove_node(9).await, &["NotFound", "node 9 is not a member"]);
    // Nothing listens at the first address: that attempt took nobody out.
    let nodes = [vec!["127.0.0.1:1".to_owned()], cluster.addresses()].concat();
    let first_is_down = Client::builder(nodes).in_order(true).member_refresh(None);
    let admin = first_is_down.build().expect("a client").admin();
    assert_says(admin.remove_node(9).await, &["NotFound", "node 9 is not a member"]);
    assert_members(&cluster, &[1, 2, 4]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_node_is_replaced() {
    let mut cluster = Cluster::start(1).await;
    register(&mut cluster.registry(1), "web", "a").await;
    let admin = cluster.client().await.admin();
    cluster.add_waiting(2).await;
    let members = admin.replace_node(1, 2, cluster.peer_address(2)).await.expect("replaced");
    assert_eq!(members.iter().map(|member| member.id).collect::<Vec<_>>(), [2]);
    assert_eq!(cluster.leader_of(&[2]).await, 2);
    cluster.stop(1).await;
    register(&mut cluster.registry(2), "web", "b").await;
    assert_eq!(cluster.own_status(2).await.expect("a status").instances, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_no_change_begins_and_the_caller_soon_hears_why() {
    let mut cluster = Cluster::start(2).await;
    let leader = cluster.leader().await;
    let dead = cluster.follower().await;
    let client = cluster.client_builder().call_timeout(Duration::from_secs(8));
    let admin = client.build().expect("a client").admin();
    cluster.stop(dead).await;
    // A node counts as alive until it was not heard of for twice the silence that a leader may
    // keep.
    eventually("the leader has not heard of it for so long", || async {
        let now = metrics(&cluster, leader).await;
        (now["quorate_raft_last_contact_seconds"] > 2.0 * SILENCE.as_secs_f64()).then_some(())
    })
    .await;
    let (took, refused) = timed(admin.remove_node(dead)).await;
    assert_says(refused, &["only 1 of 2 voters", "2 are needed"]);
    assert!(took < Duration::from_secs(12), "it took {took:?}");
    cluster.add_waiting(3).await;
    let refused = admin.replace_node(dead, 3, cluster.peer_address(3)).await;
    assert_says(refused, &["only 1 of 2 voters"]);
    assert_says(admin.add_node(3, cluster.peer_address(3), false).await, &["only 1 of 2 voters"]);

    cluster.restart(dead).await;
    cluster.leader_of(&[1, 2]).await;
    register(&mut cluster.registry(leader), "web", "a").await;
    assert_members(&cluster, &[1, 2]).await;

    // There is no leader: the answer comes at the call's own deadline.
    cluster.stop(dead).await;
    cluster.stop(leader).await;
    cluster.restart(leader).await;
    let (took, unanswered) = timed(admin.remove_node(dead)).await;
    assert_says(unanswered, &["no leader within"]);
    assert!(took < Duration::from_secs(12), "it took {took:?}");
}

async fn set_override(cluster: &Cluster, service: &str, id: &str) -> SetOverrideResponse {
    let mut decision = InstanceOverride { reason: format!("of {id}"), ..Default::default() };
    decision.set_status(quorate_client::InstanceStatus::OutOfService);
    let request = SetOverrideRequest {
        service: service.to_owned(),
        id: id.to_owned(),
        r#override: Some(decision),
        ..Default::default()
    };
    cluster.admin(1).set_override(request).await.expect("an override").into_inner()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overrides_are_listed_in_pages_and_say_whether_the_instance_is_there() {
    let cluster = Cluster::start(3).await;
    register(&mut cluster.registry(1), "web", "b").await;
    for (service, id) in [("web", "c"), ("db", "z"), ("web", "b")] {
        set_override(&cluster, service, id).await;
    }
    // Each node, at once: what was acknowledged is seen.
    for node in cluster.ids() {
        let mut request = ListOverridesRequest { limit: 2, ..Default::default() };
        let mut seen = Vec::new();
        loop {
            let answer = cluster.admin(node).list_overrides(request.clone()).await;
            let answer = answer.expect("overrides").into_inner();
            assert!(answer.overrides.len() <= 2);
            for found in answer.overrides {
                let reason = found.r#override.expect("an override").reason;
                seen.push((found.service, found.id, reason, found.registered));
            }
            request.after = answer.next;
            if request.after.is_none() {
                break;
            }
        }
        let row = |service: &str, id: &str, registered| {
            (service.to_owned(), id.to_owned(), format!("of {id}"), registered)
        };
        assert_eq!(seen, [row("db", "z", false), row("web", "b", true), row("web", "c", false)]);
    }
    let admin = cluster.client().await.admin();
    admin.clear_override("web", "b").await.expect("cleared");
    let left = admin.overrides().await.expect("overrides");
    assert_eq!(left.iter().map(|left| left.id.as_str()).collect::<Vec<_>>(), ["z", "c"]);
    let elsewhere = ListOverridesRequest { namespace: "other".to_owned(), ..Default::default() };
    let none = cluster.admin(2).list_overrides(elsewhere).await.expect("none").into_inner();
    assert!(none.overrides.is_empty() && none.next.is_none());
    let bad = ListOverridesRequest { namespace: "a/b".to_owned(), ..Default::default() };
    assert_refused(cluster.admin(2).list_overrides(bad).await, Code::InvalidArgument, &["a/b"]);
}

/// Overrides of instances that are not registered; a refusal names the limit, and one override less
/// makes room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_overrides_ahead_are_refused_by_their_limit() {
    const AHEAD: u64 = 10_000;
    const AT_ONCE: usize = 256;
    let cluster = Cluster::start(1).await;
    let admin = cluster.admin(1);
    let set = async |id: u64, weight: Option<u32>| {
        let value =
            weight.map(|weight| InstanceOverride { weight: Some(weight), ..<_>::default() });
        let (service, id) = ("web".to_owned(), format!("i{id}"));
        let request = SetOverrideRequest { service, id, r#override: value, ..<_>::default() };
        admin.clone().set_override(request).await
    };
    let mut all = stream::iter((0..AHEAD).map(|id| set(id, Some(0)))).buffer_unordered(AT_ONCE);
    while let Some(answer) = all.next().await {
        answer.expect("there is room");
    }
    let names = ["default/web/i10000", "10000"];
    assert_refused(set(AHEAD, Some(0)).await, Code::ResourceExhausted, &names);
    set(1, Some(7)).await.expect("another value of one that is there");
    register(&mut cluster.registry(1), "web", "i10001").await;
    set(AHEAD + 1, Some(0)).await.expect("one of an instance that is there");
    for id in [1, 2] {
        set(id, None).await.expect("one less");
    }
    set(AHEAD, Some(0)).await.expect("there is room again");
}
