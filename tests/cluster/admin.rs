//! What operators see: the status of every node from every node, health, reflection, transfers of
//! the lead.

use std::collections::BTreeSet;

use quorate_proto::v1::{
    MemberStatus, NodeState, StatusRequest, StatusResponse, TransferLeaderRequest,
};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1alpha as alpha;

use super::calls::{assert_refused, in_time, register, register_many, set_weight, timed};
use super::failover::seldom_by_silence;
use super::harness::{Cluster, SOON, eventually};

const SERVICES: [&str; 3] = ["", "quorate.v1.Registry", "quorate.v1.Admin"];

async fn status_from(cluster: &Cluster, node: u64) -> StatusResponse {
    let answer = cluster.admin(node).status(StatusRequest { local_only: false }).await;
    answer.expect("a status").into_inner()
}

fn of(status: &StatusResponse, id: u64) -> &MemberStatus {
    let is = |m: &&MemberStatus| m.member.as_ref().is_some_and(|member| member.id == id);
    status.members.iter().find(is).expect("it is listed")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_tells_how_all_of_them_are() {
    let cluster = Cluster::start_cuttable(3, seldom_by_silence()).await;
    let leader = cluster.leader().await;
    let lagging = cluster.follower().await;
    let mut registry = cluster.registry(leader);
    register_many(&mut registry, "web", 50).await;
    let mut revision = 0;
    for weight in 0..300 {
        revision = set_weight(&mut registry, "web", "i00007", weight).await;
    }
    for node in cluster.ids() {
        let status = eventually("all are up to date", || async {
            let status = status_from(&cluster, node).await;
            let current = status.members.iter().all(|m| m.reachable && m.revision == revision);
            let hashed = status.members.iter().all(|m| m.state_hash_index >= 256);
            (current && hashed && status.members.iter().all(|m| m.lag == 0)).then_some(status)
        })
        .await;
        let ids: Vec<u64> = status.members.iter().map(|m| m.member.as_ref().unwrap().id).collect();
        assert_eq!(ids, [1, 2, 3]);
        assert_eq!((status.services, status.instances, status.leases), (1, 50, 1));
        assert_eq!(status.header.as_ref().unwrap().node_id, node);
        let leaders = status.members.iter().filter(|m| m.state() == NodeState::Leader);
        assert_eq!(leaders.count(), 1);
        assert_eq!(of(&status, leader).state(), NodeState::Leader);
        let terms: BTreeSet<u64> = status.members.iter().map(|m| m.term).collect();
        assert_eq!(terms.len(), 1);
        for member in &status.members {
            assert!(
                !member.version.is_empty() && member.disk_free_bytes > 0 && member.uptime_ms > 0
            );
        }
        // Nodes that stand at the same index must have the same hash; after 256 more entries, all
        // of them do.
        let hashes: BTreeSet<(u64, u64)> =
            status.members.iter().map(|m| (m.state_hash_index, m.state_hash)).collect();
        assert_eq!(hashes.len(), 1, "{hashes:?}");
        let own = cluster.own_status(node).await.unwrap();
        assert_eq!(own.members.len(), 1, "local_only");
    }

    cluster.cut_off(lagging);
    for weight in 0..40 {
        set_weight(&mut registry, "web", "i00007", weight).await;
    }
    let (took, status) = timed(status_from(&cluster, leader)).await;
    assert!(took < SOON / 2, "one that does not answer is not waited for: {took:?}");
    let missing = of(&status, lagging);
    assert!(!missing.reachable && !missing.error.is_empty() && missing.revision == 0);
    // From its own side, it knows how far it is behind.
    let status = status_from(&cluster, lagging).await;
    assert!(of(&status, lagging).lag >= 40, "{:?}", of(&status, lagging));
    assert!(of(&status, leader).reachable);
    cluster.reconnect(lagging);
    eventually("it catches up", || async {
        let status = status_from(&cluster, leader).await;
        (of(&status, lagging).reachable && of(&status, lagging).lag == 0).then_some(())
    })
    .await;
}

/// A thousand callers at once do not have each node asked a thousand times. What each of them is
/// told was asked after it came.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_that_ask_how_all_are_share_what_the_nodes_say() {
    let mut cluster = Cluster::start(3).await;
    let admin = cluster.admin(1);
    let before = of(&status_from(&cluster, 1).await, 2).uptime_ms;
    let rounds = eventually("node 2 answers in time", || async {
        let calls = (0..1_000).map(|_| {
            let mut admin = admin.clone();
            async move { admin.status(StatusRequest { local_only: false }).await }
        });
        let answers = futures_util::future::join_all(calls).await;
        let told = answers.into_iter().map(|answer| answer.expect("a status").into_inner());
        // Each round tells another uptime; 0: there was no answer in time.
        let uptimes = told.map(|status| of(&status, 2).uptime_ms);
        let rounds: BTreeSet<u64> = uptimes.filter(|uptime| *uptime > 0).collect();
        (!rounds.is_empty()).then_some(rounds)
    })
    .await;
    let took = rounds.last().expect("there are some") - before;
    let most = took as usize / 50 + 2;
    assert!(rounds.len() <= most, "{} rounds within {took} ms", rounds.len());
    cluster.stop(3).await;
    let status = status_from(&cluster, 1).await;
    assert!(!of(&status, 3).reachable, "it was stopped before");
}

async fn health(cluster: &Cluster, node: u64, service: &str) -> Option<ServingStatus> {
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(cluster.channel(node)).check(request).await.ok()?;
    Some(answer.into_inner().status())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_follows_the_leader() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    cluster.add_waiting(4).await;
    let survivor = (1..=3).find(|id| *id != leader).unwrap();
    let all_are = async |cluster: &Cluster, node: u64, wanted: ServingStatus| {
        for service in SERVICES {
            eventually(&format!("{service:?} of node {node} is {wanted:?}"), || async {
                (health(cluster, node, service).await? == wanted).then_some(())
            })
            .await;
        }
    };
    for node in 1..=3 {
        all_are(&cluster, node, ServingStatus::Serving).await;
    }
    all_are(&cluster, 4, ServingStatus::NotServing).await;
    let request = HealthCheckRequest { service: "no.such.Service".to_owned() };
    let unknown = HealthClient::new(cluster.channel(1)).check(request).await;
    assert_refused(unknown, Code::NotFound, &[]);

    let request = HealthCheckRequest { service: SERVICES[1].to_owned() };
    let changes = HealthClient::new(cluster.channel(survivor)).watch(request).await.unwrap();
    let mut changes = changes.into_inner();
    let first = changes.message().await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::Serving);
    for id in (1..=3).filter(|id| *id != survivor) {
        cluster.stop(id).await;
    }
    all_are(&cluster, survivor, ServingStatus::NotServing).await;
    // On its way there it led for a moment, so this is not the only news.
    let told = async {
        while changes.message().await.unwrap().unwrap().status() == ServingStatus::Serving {}
    };
    tokio::time::timeout(SOON, told).await.expect("the loss is reported");
    cluster.restart(leader).await;
    all_are(&cluster, survivor, ServingStatus::Serving).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reflection_lists_what_there_is() {
    let cluster = Cluster::start(1).await;
    let mut client = ServerReflectionClient::new(cluster.channel(1));
    let mut ask = async |question: MessageRequest| {
        let request =
            ServerReflectionRequest { host: String::new(), message_request: Some(question) };
        let answers = client.server_reflection_info(tokio_stream::iter([request])).await.unwrap();
        let answer = answers.into_inner().message().await.unwrap().expect("an answer");
        answer.message_response.expect("a response")
    };
    let MessageResponse::ListServicesResponse(list) =
        ask(MessageRequest::ListServices(String::new())).await
    else {
        panic!("a list of services")
    };
    let names: BTreeSet<String> = list.service.into_iter().map(|service| service.name).collect();
    for name in ["quorate.v1.Registry", "quorate.v1.Admin", "grpc.health.v1.Health"] {
        assert!(names.contains(name), "{name} in {names:?}");
        let symbol = MessageRequest::FileContainingSymbol(name.to_owned());
        let found = ask(symbol).await;
        assert!(matches!(found, MessageResponse::FileDescriptorResponse(_)), "{name}: {found:?}");
    }
    assert!(!names.contains("quorate.peer.v1.Peer"), "peers have a listener of their own");

    // Older tools ask so; the messages are the same.
    let request = alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(alpha::server_reflection_request::MessageRequest::ListServices(
            String::new(),
        )),
    };
    let mut client =
        alpha::server_reflection_client::ServerReflectionClient::new(cluster.channel(1));
    let answers = client.server_reflection_info(tokio_stream::iter([request])).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().expect("an answer");
    let text = format!("{:?}", answer.message_response);
    assert!(text.contains("quorate.v1.Registry"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lead_goes_where_it_is_sent() {
    let cluster = Cluster::start(3).await;
    // On a busy machine, silence may elect another one between.
    let mut lost = Vec::new();
    for to in [3, 1, 2, 2, 1, 0, 0] {
        let before = cluster.leader().await;
        let mut leader = before;
        // By any node: also by the one that is to lead, and the one that leads.
        for at in cluster.ids() {
            let request = in_time(TransferLeaderRequest { to_id: to });
            let (took, answer) = timed(cluster.admin(at).transfer_leader(request)).await;
            leader = answer.expect("a transfer").into_inner().leader_id;
            assert!(took < SOON / 2, "far below its deadline: {took:?}");
            match to {
                0 => break,
                to => assert_eq!(leader, to),
            }
        }
        let moved = to != 0 || leader != before;
        if !moved || cluster.leader().await != leader {
            lost.push(to);
        }
        register(&mut cluster.registry(leader), "web", "a").await;
    }
    assert!(lost.len() <= 1, "{lost:?}: not so");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_can_hand_over_as_soon_as_it_leads() {
    let cluster = Cluster::start(3).await;
    let mut leader = cluster.leader().await;
    // Where silence has elected another one between.
    let mut same = Vec::new();
    for turn in 0..40 {
        // The next leader is asked at once, before it has heard of any member.
        let request = in_time(TransferLeaderRequest { to_id: 0 });
        let answer = cluster.admin(leader).transfer_leader(request).await;
        let answer = answer.unwrap_or_else(|status| panic!("turn {turn}: {status:?}"));
        let next = answer.into_inner().leader_id;
        if next == leader {
            same.push(turn);
        }
        leader = next;
    }
    assert!(same.len() <= 4, "handed to itself in the turns {same:?}");
    register(&mut cluster.registry(1), "web", "a").await;
}
